"""Parallax: what is nearer moves farther between two views, along the way that the camera went (beyond the paper).

A homography moves a whole view as one plane, so without this a descriptor may rely on all that lies around its keypoint
to lie so in every photograph. The photograph is bent before a pair's second view looks at it: at a place q of the bent
one is what the photograph has at q + displacement(q). The displacement changes by less than `STEEPEST` a pixel, so
nothing is folded over, and the way back is found by repetition. What edges hide is `occlusion`'s.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sekd_cli.coordinates import rescale_points
from sekd_cli.geometry import resize_image, sample_map, warp_points
from sekd_cli.training.randomness import log_uniform, uniform

COARSE, NODES = 4, 24  # numbers along each side of a photograph: that depth is drawn by, that displacements are kept at
ROUND, SHARP = 0.5, 4.0  # what depth is multiplied by before a hyperbolic tangent: hills, and planes one before another
STEEPEST = 0.6  # change of the displacement, in pixels a pixel
REPETITIONS = 16  # of the way back, each of which leaves at most as much of the error


def draw_parallax(sizes: Tensor, share: float, most: float, generator: torch.Generator) -> Tensor:
    """Displacements in pixels of photographs, at nodes over each, (B, 2, NODES, NODES); 0 in all but a `share`.

    sizes: (B, 2), widths and heights. most: the largest displacement, in longer edges.
    """
    count = len(sizes)
    drawn = resize_image(torch.randn(count, 1, COARSE, COARSE, generator=generator), NODES, NODES)
    depth = (log_uniform(ROUND, SHARP, count, generator)[:, None, None, None] * drawn).tanh()
    depth = depth / depth.abs().amax(dim=(1, 2, 3), keepdim=True)
    direction = uniform(-math.pi, math.pi, count, generator)
    length = uniform(0.0, most, count, generator) * sizes.amax(dim=1)
    along_x, along_y = (part.abs().amax(dim=(1, 2, 3)) for part in (depth.diff(dim=3), depth.diff(dim=2)))
    slope = torch.hypot(along_x * NODES / sizes[:, 0], along_y * NODES / sizes[:, 1])
    length = length.minimum(STEEPEST / slope)
    chosen = uniform(0.0, 1.0, count, generator) < share
    moved = torch.stack((direction.cos(), direction.sin()), dim=1) * (length * chosen)[:, None]
    return moved[:, :, None, None] * depth


def displacement(parallax: Tensor, sizes: Tensor, xy: Tensor) -> Tensor:
    """Of places (B, N, 2) of bent photographs, (B, N, 2) in pixels; parallax and sizes as `draw_parallax` has them."""
    scale = parallax.shape[-1] / sizes[:, None]
    return sample_map(parallax, rescale_points(xy, scale)).transpose(1, 2)


def bent(parallax: Tensor, sizes: Tensor, xy: Tensor) -> Tensor:
    """Where places (B, N, 2) of photographs are in the bent ones; what is at infinity stays there."""
    finite = xy.isfinite().all(dim=-1, keepdim=True)
    there = start = xy.where(finite, torch.zeros(()))
    for _ in range(REPETITIONS):
        there = start - displacement(parallax, sizes, there)
    return there.where(finite, xy.new_tensor(torch.inf))


class Correspondence(NamedTuple):
    """Where points of the first views of pairs are in the second."""

    second_from_first: Tensor  # (B, 3, 3), but for the parallax
    photograph_from_view: Tensor  # (2, B, 3, 3)
    sizes: Tensor  # (B, 2) widths and heights of the photographs
    parallax: Tensor  # (B, 2, n, n), see `draw_parallax`; (B, 2, 0, 0): none

    def only(self, pair: int) -> "Correspondence":
        """Of one pair, B = 1."""
        one = slice(pair, pair + 1)
        return Correspondence(
            self.second_from_first[one], self.photograph_from_view[:, one], self.sizes[one], self.parallax[one]
        )

    def in_second(self, first_xy: Tensor) -> Tensor:
        """Points (B, N, 2) of the first views, in the second; inf beyond the horizon."""
        if not self.parallax.numel():
            return warp_points(first_xy, self.second_from_first)
        photograph_from_first, photograph_from_second = self.photograph_from_view
        places = bent(self.parallax, self.sizes, warp_points(first_xy, photograph_from_first))
        return _finite_warp(places, torch.linalg.inv(photograph_from_second))

    def in_first(self, second_xy: Tensor) -> Tensor:
        """Points (B, N, 2) of the second views, in the first; inf beyond the horizon."""
        if not self.parallax.numel():
            return warp_points(second_xy, torch.linalg.inv(self.second_from_first))
        photograph_from_first, photograph_from_second = self.photograph_from_view
        places = warp_points(second_xy, photograph_from_second)
        places = places + displacement(self.parallax, self.sizes, places)
        return _finite_warp(places, torch.linalg.inv(photograph_from_first))


def _finite_warp(xy: Tensor, target_from_source: Tensor) -> Tensor:
    """`warp_points`, of points some of which are at infinity and stay there."""
    finite = xy.isfinite().all(dim=-1, keepdim=True)
    warped = warp_points(xy.where(finite, torch.zeros(())), target_from_source)
    return warped.where(finite, xy.new_tensor(torch.inf))
