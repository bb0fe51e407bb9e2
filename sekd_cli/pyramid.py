"""A photograph at the sizes at which the network sees it, and the keypoints of all sizes joined."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import ViewSettings
from sekd_cli.coordinates import nearest_pixels
from sekd_cli.images import Photograph
from sekd_cli.level_sizes import level_sizes


@dataclass(frozen=True, kw_only=True)
class Level:
    """A photograph at one size, upright."""

    grey: np.ndarray  # (H, W) uint8
    statistics: tuple[float, float]  # mean and standard deviation of `grey` in [0, 1]
    mask: np.ndarray | None  # (H, W) bool, like `grey`: false where no keypoint may be
    octaves: float  # how often the largest level was halved to give this one


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

    mask: (H, W) bool of the photograph's `upright_size`, false where no keypoint may be.
    """
    pixels = photograph.pixels
    grey = np.ascontiguousarray(pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    sizes = level_sizes(*photograph.upright_size, settings)
    return PreparedImage(
        levels=tuple(_level(one, mask, sizes[0]) for one in _at_sizes(grey, sizes)),
        full_mask=mask,
        upright_size=photograph.upright_size,
        orientation=photograph.orientation,
        stored_size=photograph.stored_size,
    )


def _at_sizes(grey: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """A grey image (h, w) at sizes (width, height), largest first."""
    largest = _resized(grey, sizes[0])
    yield largest
    for size in sizes[1:]:
        shrinks = largest.size <= grey.size and _halves(largest, size)
        yield _resized(largest if shrinks else grey, size)


def _resized(grey: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grey image (h, w) at a size (width, height).

    Halves are means, as those that networks learn from. Between them a cubic filter keeps more of what is fine, where
    matches are placed, than means of areas do (docs/EXPERIMENTS.md, 116).
    """
    while _halves(grey, size):
        half = tuple(max(edge // 2, least) for edge, least in zip(grey.shape[::-1], size, strict=True))
        grey = np.asarray(cv2.resize(grey, half, interpolation=cv2.INTER_AREA))
    height, width = grey.shape
    if size == (width, height):
        return grey
    if size[0] >= width and size[1] >= height:
        return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR))
    pixels = torch.from_numpy(np.require(grey, requirements="W"))[None, None]
    return F.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)[0, 0].numpy()


def _halves(grey: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a size is half of an image's or less, but for rounding."""
    shape = grey.shape[::-1]
    return size != shape and all(2 * edge <= whole + 1 for edge, whole in zip(size, shape, strict=True))


def _level(grey: np.ndarray, mask: np.ndarray | None, largest: tuple[int, int]) -> Level:
    if mask is not None and mask.shape != grey.shape:
        rows, columns = (nearest_pixels(new, old) for new, old in zip(grey.shape, mask.shape, strict=True))
        mask = mask[rows[:, None], columns]
    mean, deviation = cv2.meanStdDev(grey)
    deviates = float(deviation[0, 0]) if np.ptp(grey) else 0.0  # by OpenCV's rounding some even images do
    statistics = (float(mean[0, 0]) / 255, deviates / 255)
    octaves = 0.5 * math.log2(math.prod(largest) / grey.size)
    return Level(grey=grey, statistics=statistics, mask=mask, octaves=octaves)


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


def best_of_levels(scores: Sequence[Tensor], limit: int) -> list[int]:
    """How many of each level's keypoints, which come best first, are among the best `limit` (0: all) of all.

    scores: of each level, (N,) descending, on any device. Of equal ones the first level's come first.
    """
    counts = [len(one) for one in scores]
    if not limit or len(scores) == 1 or sum(counts) <= limit:
        return counts
    order = np.argsort(-torch.cat([one.cpu() for one in scores]).numpy(), kind="stable")[:limit]
    level = np.searchsorted(np.cumsum(counts), order, side="right")
    chosen: list[int] = np.bincount(level, minlength=len(counts)).tolist()
    return chosen


def join_levels(levels: Sequence[LevelFeatures]) -> LevelFeatures:
    """The features of all levels, by score.

    Of keypoints that different levels have at one place all stay: a point looks otherwise at each size, and which of
    its descriptors another photograph has depends on where that was taken (docs/EXPERIMENTS.md, 85).
    """
    if len(levels) == 1:
        return levels[0]
    joined = LevelFeatures(
        keypoints=torch.cat([level.keypoints for level in levels]),
        scores=torch.cat([level.scores for level in levels]),
        descriptors=torch.cat([level.descriptors for level in levels], dim=1),
        scales=torch.cat([level.scales for level in levels]),
    )
    return joined.only(joined.scores.argsort(descending=True, stable=True))
