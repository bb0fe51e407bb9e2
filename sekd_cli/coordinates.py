"""The coordinate convention, of points and of sizes.

Points are (x, y) in pixels; the CENTRE of the top-left pixel is (0, 0), as in OpenCV and hloc. An image of W x H pixels
covers x in [-0.5, W - 0.5]. No other file but `geometry` writes a half pixel.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Points = TypeVar("Points", "Tensor", np.ndarray)

COLMAP_OFFSET = 0.5  # COLMAP puts the centre of the top-left pixel at (0.5, 0.5)


def rescale_points(xy: Points, scale: Points | float) -> Points:
    """Points of an image, in the same image resized by `scale` (new size / old size; a number or (sx, sy)).

    xy: (..., 2) pixels. Returns (..., 2) pixels.
    """
    return (xy + 0.5) * scale - 0.5


def resize_matrix(scale_x: float, scale_y: float) -> np.ndarray:
    """`resized_from_original`, (3, 3) float64: what `rescale_points` does, as a matrix."""
    return np.array([[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]], dtype=np.float64)


def nearest_pixels(new: int, old: int) -> np.ndarray:
    """Along an axis of `old` pixels resized to `new`: the old one nearest to the centre of each new one, (new,) int."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def quarter_turn(turns: int, height: int, width: int) -> np.ndarray:
    """`turned_from_upright` (3, 3) of an image H x W turned `turns` times counter-clockwise, as `numpy.rot90` does."""
    matrix = np.eye(3)
    for _ in range(turns % 4):
        matrix = np.array([[0, 1, 0], [-1, 0, width - 1], [0, 0, 1]], dtype=np.float64) @ matrix
        height, width = width, height
    return matrix
