"""Images that bytes don't suit, done in real numbers instead: text, line drawings, stars.

Where little is on an even ground, that lies many deviations from the mean, and maps beyond the ranges of `calibration`;
of photographs one in thirty is such an image (docs/EXPERIMENTS.md, 115).
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from torch import Tensor

from sekd_cli.networks.base import DenseMaps
from sekd_cli.networks.compact import MINIMUM_DEVIATION
from sekd_cli.networks.tracing import DenseFunction

FAR, MOST_FAR = 4.0, 0.005  # deviations from the mean; share of an image's pixels beyond


def is_sparse(pixels: np.ndarray, mean: float, deviation: float) -> bool:
    """Whether much of an image (H, W) of bytes lies far from the mean, which like the deviation is in [0, 1]."""
    reach = FAR * max(deviation, MINIMUM_DEVIATION)
    low, high = max(0, math.ceil(255 * (mean - reach))), min(255, math.floor(255 * (mean + reach)))
    if low == 0 and high == 255:  # as of most photographs
        return False
    near = cv2.countNonZero(cv2.inRange(pixels, low, high))
    return near < (1 - MOST_FAR) * pixels.size


class BytesWhereTheySuit:
    """A network in bytes, and the same in real numbers, made when it is first needed, for sparse images."""

    def __init__(self, in_bytes: DenseFunction, make_otherwise: Callable[[], DenseFunction]) -> None:
        self._in_bytes, self._make_otherwise = in_bytes, make_otherwise
        self._made: DenseFunction | None = None  # no lock: a process forked meanwhile would wait for it for ever

    def _otherwise(self) -> DenseFunction:
        if self._made is None:
            self._made = self._make_otherwise()
        return self._made

    def __call__(self, image: Tensor, statistics: Tensor) -> DenseMaps:
        """What the network says of images (B, 1, H, W) of bytes and their statistics (B, 2), on the CPU."""
        sparse = [is_sparse(one[0].numpy(), *of_one) for one, of_one in zip(image, statistics.tolist(), strict=True)]
        if not any(sparse):
            return self._in_bytes(image, statistics)
        suited = (self._otherwise() if one else self._in_bytes for one in sparse)
        return DenseMaps.joined(
            [function(image[i : i + 1], statistics[i : i + 1]) for i, function in enumerate(suited)]
        )
