"""Tiles of an image too large to go through the network at once.

Tiles overlap by more than the network's reach: a keypoint belongs to the one tile whose core it lies in, and is the one
that the whole image would have given.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

REACH = 256  # pixels; no network's value depends on pixels further away (compact: 214), and a multiple of each stride
SMALLEST_TILE = 1024  # pixels; half of it is overlap already


class Window(NamedTuple):
    """A tile of an image, in its pixels: what the network sees, and within it the core whose keypoints it owns."""

    top: int
    bottom: int
    left: int
    right: int
    core_top: int
    core_bottom: int
    core_left: int
    core_right: int

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Its part of an image's pixels (H, W); a view."""
        return pixels[self.top : self.bottom, self.left : self.right]

    def origin(self, like: Tensor) -> Tensor:
        """(x, y) of its top-left pixel in the image."""
        return like.new_tensor((self.left, self.top))

    def owns(self, keypoints: Tensor) -> Tensor:
        """Which keypoints (N, 2) of the window round into its core, (N,) bool."""
        x, y = (keypoints + self.origin(keypoints)).round().unbind(dim=-1)
        return (x >= self.core_left) & (x < self.core_right) & (y >= self.core_top) & (y < self.core_bottom)

    def for_turn(self, turns: int, shape: tuple[int, ...], stride: int) -> "Window":
        """The window enlarged to the right and downward until, in an image of this shape (height, width) that is turned
        `turns` times counter-clockwise, it begins at multiples of the stride: so the network sees its pixels as it sees
        them in the whole turned image.
        """  # noqa: D205 - one sentence
        height, width = shape
        right, bottom = self.right, self.bottom
        if turns in {1, 2}:  # its right edge is the first row, or column, of the turned image's part
            right = width - (width - right) // stride * stride
        if turns in {2, 3}:
            bottom = height - (height - bottom) // stride * stride
        return self._replace(right=right, bottom=bottom)


def whole(height: int, width: int) -> Window:
    """An image as its only tile."""
    return Window(0, height, 0, width, 0, height, 0, width)


def windows(height: int, width: int, tile: int) -> Iterator[Window]:
    """Tiles that cover an image, row by row: cores touch, and tiles reach beyond them by REACH where there is image."""
    for core_top, core_bottom in cores(height, tile):
        for core_left, core_right in cores(width, tile):
            yield Window(
                max(0, core_top - REACH),
                min(height, core_bottom + REACH),
                max(0, core_left - REACH),
                min(width, core_right + REACH),
                core_top,
                core_bottom,
                core_left,
                core_right,
            )


def cores(extent: int, tile: int) -> Iterator[tuple[int, int]]:
    """Consecutive parts of `extent` pixels, each beginning at a multiple of REACH (and so of every stride)."""
    if extent <= tile:
        yield 0, extent
        return
    step = tile - 2 * REACH
    for start in range(0, extent, step):
        yield start, min(extent, start + step)
