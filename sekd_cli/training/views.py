"""Random views of photographs: where a pair of images looks, and how adaptation turns one (paper Sec. 4.1)."""

import math

import torch
from torch import Tensor

from sekd_cli.geometry import affinity, tilt, translation
from sekd_cli.training.randomness import log_uniform, uniform
from sekd_cli.training.settings import TrainingSettings

FIRST_ROTATION = 15.0  # degrees; photographs are mostly taken upright


def _turn(share: Tensor, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    """Rotations in radians: mostly within a share (B,) of the range, some by any angle."""
    count = len(share)
    usual = share * uniform(-settings.rotation, settings.rotation, count, generator)
    whole = uniform(-180.0, 180.0, count, generator)
    chosen = uniform(0.0, 1.0, count, generator) < settings.any_rotation_share
    return torch.where(chosen, whole, usual).deg2rad()


def random_change(zoom: Tensor, share: Tensor, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    """Maps (B, 3, 3) about the origin from one view of a pair to the other, zoomed (B,): affine and perspective.

    share: (B,), how much of the settings' ranges a pair uses.
    """
    count = len(zoom)
    shear = share * uniform(-settings.shear, settings.shear, count, generator).deg2rad()
    stretch = log_uniform(1 / settings.stretch, settings.stretch, count, generator) ** share
    axis = uniform(-math.pi / 2, math.pi / 2, count, generator)  # of the stretch: any, so turn, stretch, turn back
    one, none = torch.ones(count), torch.zeros(count)
    turned = affinity(axis, one, none, one)
    change = affinity(_turn(share, settings, generator) - axis, zoom, shear, stretch) @ turned
    depth = share * uniform(0.0, settings.tilt, count, generator) / (settings.width / 2)
    towards = uniform(-math.pi, math.pi, count, generator)
    return change @ tilt(depth * towards.cos(), depth * towards.sin())


def random_pairs(sizes: Tensor, settings: TrainingSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where the two views of each photograph look: `photograph_from_view`, two of (B, 3, 3).

    sizes: (B, 2), widths and heights of the photographs. Either view may be the one that is changed more; a zoom is
    shared by both, so that the one doesn't look at a few blurred pixels, nor the other at much beyond the photograph;
    with `settings.sharp_zoom` both step back, by up to that power of the zoom, since a lens's zoom leaves both sharp.
    """
    count = len(sizes)
    centre = sizes * (0.5 + 0.3 * (torch.rand(count, 2, generator=generator) - 0.5))
    to_origin = translation(*torch.tensor([-(settings.width - 1) / 2, -(settings.height - 1) / 2]).expand(count, 2).T)
    to_centre = translation(centre[:, 0], centre[:, 1])
    first_turn = uniform(-FIRST_ROTATION, FIRST_ROTATION, count, generator).deg2rad()
    first_zoom = log_uniform(settings.closest, settings.farthest, count, generator)
    share = uniform(0.0, 1.0, count, generator) if settings.graded else torch.ones(count)
    zoom = log_uniform(1 / settings.zoom, settings.zoom, count, generator) ** share
    if settings.sharp_zoom:
        first_zoom = first_zoom * torch.maximum(zoom, 1 / zoom) ** uniform(0.0, settings.sharp_zoom, count, generator)
    one, none = torch.ones(count), torch.zeros(count)
    first = affinity(first_turn, first_zoom / zoom.sqrt(), none, one)
    shift = uniform(-settings.shift, settings.shift, 2 * count, generator).reshape(2, count) * settings.width
    second = first @ translation(shift[0], shift[1]) @ random_change(zoom, share, settings, generator)
    photograph_from_first = to_centre @ first @ to_origin
    photograph_from_second = to_centre @ second @ to_origin
    swap = (uniform(0.0, 1.0, count, generator) < 0.5)[:, None, None]
    return (
        torch.where(swap, photograph_from_second, photograph_from_first),
        torch.where(swap, photograph_from_first, photograph_from_second),
    )


def footprints(photograph_from_view: Tensor, height: int, width: int) -> Tensor:
    """What a pixel in the middle of each view covers of the photograph: Jacobians (B, 2, 2) of the maps (B, 3, 3)."""
    middle = photograph_from_view.new_tensor([(width - 1) / 2, (height - 1) / 2, 1.0])
    x, y, depth = (photograph_from_view @ middle).unbind(1)
    depth = depth.clamp(min=1e-6)[:, None, None]
    there = torch.stack((x, y), dim=1)[:, :, None] / depth
    jacobian: Tensor = (photograph_from_view[:, :2, :2] - there * photograph_from_view[:, 2:, :2]) / depth
    return jacobian


def random_affinities(height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """`image_from_reference` (count, 3, 3) for affine adaptation, in the paper's range (Sec. 4.1)."""
    shift = uniform(-0.04, 0.04, 2 * count, generator).reshape(2, count)
    middle_x, middle_y = torch.full((count,), (width - 1) / 2), torch.full((count,), (height - 1) / 2)
    change = affinity(
        uniform(-40.0, 40.0, count, generator).deg2rad(),
        log_uniform(0.7, 1.4, count, generator),
        uniform(-40.0, 40.0, count, generator).deg2rad(),
        torch.ones(count),
    )
    return (
        translation(middle_x + shift[0] * width, middle_y + shift[1] * height)
        @ change
        @ translation(-middle_x, -middle_y)
    )
