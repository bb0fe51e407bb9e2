"""A photograph at the sizes at which the network sees it, and the keypoints of all sizes joined."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import ViewSettings
from sekd_cli.images import DEFAULT_MAX_PIXELS, Photograph

SMALLEST_SIDE = 128  # pixels; `auto` halves while both sides have so many
SAME_POINT = 0.5  # pixels of the larger of two levels; more takes partners from photographs zoomed otherwise


@dataclass(frozen=True, kw_only=True)
class Level:
    """A photograph at one size, upright."""

    grey: np.ndarray  # (H, W) uint8
    statistics: tuple[float, float]  # mean and standard deviation of `grey` in [0, 1]
    mask: np.ndarray | None  # (H, W) bool, like `grey`: false where no keypoint may be


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image as the network will see it, and its way back to the file."""

    levels: tuple[Level, ...]  # largest first
    full_mask: np.ndarray | None  # (H, W) bool, upright, before it was resized: false where no keypoint may be
    upright_size: tuple[int, int]  # width, height before it was resized
    orientation: int  # EXIF
    stored_size: tuple[int, int]  # width, height in the file

    def scale(self, level: Level) -> tuple[float, float]:
        """Pixels that the network sees per pixel of the upright image, along x and y."""
        height, width = level.grey.shape
        return width / self.upright_size[0], height / self.upright_size[1]


def prepare(photograph: Photograph, settings: ViewSettings, mask: np.ndarray | None = None) -> PreparedImage:
    """A photograph at every size that the network shall see. Safe in any thread.

    mask: (H, W) bool like the photograph, false where no keypoint may be.
    """
    pixels = photograph.pixels
    grey = np.ascontiguousarray(pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    height, width = grey.shape
    sizes = level_sizes(width, height, settings)
    return PreparedImage(
        levels=tuple(_level(grey, mask, size) for size in sizes),
        full_mask=mask,
        upright_size=(width, height),
        orientation=photograph.orientation,
        stored_size=photograph.stored_size,
    )


def level_sizes(width: int, height: int, settings: ViewSettings) -> list[tuple[int, int]]:
    """Width, height of every level, each once, largest first: the scales of what `max_size` leaves of an image.

    None is enlarged beyond `max_size`, nor beyond the pixels that an image may have by default.
    """
    longer = max(width, height)
    most = settings.max_size / longer if settings.max_size else math.inf
    base = min(1.0, most)
    most = min(most, max(base, (DEFAULT_MAX_PIXELS / (width * height)) ** 0.5))
    if isinstance(settings.scales, str):  # AUTO
        factors = [base]
        while min(width, height) * factors[-1] / 2 >= SMALLEST_SIDE:
            factors.append(factors[-1] / 2)
    else:
        factors = [min(base * scale, most) for scale in settings.scales]
    sizes = {(max(1, round(width * factor)), max(1, round(height * factor))) for factor in factors}
    return sorted(sizes, reverse=True)


def _level(grey: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]) -> Level:
    height, width = grey.shape
    if size != (width, height):
        how = cv2.INTER_AREA if size[0] < width or size[1] < height else cv2.INTER_LINEAR
        grey = np.asarray(cv2.resize(grey, size, interpolation=how))
        if mask is not None:
            mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    mean, deviation = cv2.meanStdDev(grey)
    return Level(grey=grey, statistics=(float(mean[0, 0]) / 255, float(deviation[0, 0]) / 255), mask=mask)


@dataclass(frozen=True, kw_only=True)
class LevelFeatures:
    """Features of a level or of several, on the CPU."""

    keypoints: Tensor  # (N, 2) float64, pixels of the upright image
    scores: Tensor  # (N,), descending
    descriptors: Tensor  # (T, N, D): of each keypoint at each of the turns in which the network saw the image
    scales: Tensor  # (N,) float64, pixels of the upright image per pixel of the level

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, which: Tensor) -> "LevelFeatures":
        """Some of them, by index or mask."""
        return LevelFeatures(
            keypoints=self.keypoints[which],
            scores=self.scores[which],
            descriptors=self.descriptors[:, which],
            scales=self.scales[which],
        )


def join_levels(levels: Sequence[LevelFeatures], limit: int, *, suppress: bool = True) -> LevelFeatures:
    """The best `limit` (0: all) of the features of all levels, which come largest first, by score.

    suppress: of two keypoints of different levels that are one point only the better stays.
    """
    if len(levels) == 1:
        return levels[0]
    kept = [torch.ones(len(level), dtype=torch.bool) for level in levels]
    for (larger, kept0), (smaller, kept1) in combinations(zip(levels, kept, strict=True), 2):
        if not suppress or not len(larger) or not len(smaller):
            continue
        for index0, index1 in _near(larger.keypoints, smaller.keypoints, SAME_POINT * float(larger.scales[0])):
            better = larger.scores[index0] >= smaller.scores[index1]
            kept0[index0[~better]] = False
            kept1[index1[better]] = False
    parts = [level.only(which) for level, which in zip(levels, kept, strict=True)]
    joined = LevelFeatures(
        keypoints=torch.cat([part.keypoints for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        descriptors=torch.cat([part.descriptors for part in parts], dim=1),
        scales=torch.cat([part.scales for part in parts]),
    )
    return joined.only(joined.scores.argsort(descending=True, stable=True)[: limit or None])


def _near(xy0: Tensor, xy1: Tensor, reach: float) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of a point of xy0 (N0, 2) and one of xy1 (N1, 2) at most `reach` apart along x and along y, in parts.

    By a grid with cells of that size: its rows are searched for the three cells around each point of xy1.
    """
    low = torch.minimum(xy0.amin(dim=0), xy1.amin(dim=0))
    cells0, cells1 = ((xy - low).div(reach).long() + 1 for xy in (xy0, xy1))
    width = int(torch.maximum(cells0[:, 0].max(), cells1[:, 0].max())) + 2
    numbers, order = (cells0[:, 1] * width + cells0[:, 0]).sort(stable=True)
    for row in (-1, 0, 1):
        middle = (cells1[:, 1] + row) * width + cells1[:, 0]
        first = torch.searchsorted(numbers, middle - 1)
        count = torch.searchsorted(numbers, middle + 1, right=True) - first
        for step in range(int(count.max())):
            index1 = (count > step).nonzero()[:, 0]
            index0 = order[first[index1] + step]
            close = (xy0[index0] - xy1[index1]).abs().amax(dim=1) <= reach
            yield index0[close], index1[close]
