"""Guided matching: once it is known where keypoints should be in the other image, more are matched (beyond the paper).

A keypoint whose nearest neighbour in the whole other image is a wrong one often has its right one where a homography
takes it (docs/EXPERIMENTS.md, 126), or a match nearby (130), with few rivals there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import MatchingSettings
from sekd_cli.matching import match_among
from sekd_cli.nearest import nearest

NEAREST, LEAST_AGREEING = 10, 0.4  # matches around a new one, and the share of them that the model must explain
CANDIDATES_AT_ONCE = 1 << 16  # 32 MB of descriptors of 64 values


class Guided(NamedTuple):
    """Matches near where they should be."""

    pairs: np.ndarray  # (K, 2) int64, rows of both images' keypoints
    scores: np.ndarray  # (K,) float32
    supported: np.ndarray  # (K,) bool: those around which others agree with it


_NOTHING = Guided(np.empty((0, 2), np.int64), np.empty(0, np.float32), np.empty(0, bool))


def match_guided(
    keypoints: tuple[np.ndarray, np.ndarray],
    descriptors: tuple[Tensor, Tensor],
    pairs: np.ndarray,
    inliers: np.ndarray,
    there: np.ndarray,
    *,
    threshold: float,
    settings: MatchingSettings,
) -> Guided:
    """Further matches, of keypoints that have none which agrees: by their descriptors, among those near.

    keypoints: (N0, 2), (N1, 2) in pixels; descriptors: (N0, D), (N1, D), rows of unit length, on one device.
    pairs: (M, 2) int64, rows of both, matched by descriptors alone; inliers: (M,) bool, those that agree on a model.
    there: (N0, 2), where it takes the first image's keypoints in the second. threshold: pixels between that and a
    match. Filters of settings, and probabilities, are among those near.

    All of them say more exactly where a plane is. But a plane is seldom all that two photographs show, and beyond it
    keypoints are near by chance: supported are those around which, in both images, LEAST_AGREEING of the NEAREST
    `pairs` are inliers.
    """
    free = [np.setdiff1d(np.arange(len(xy)), pairs[inliers, side]) for side, xy in enumerate(keypoints)]
    expected, xy1 = there[free[0]].astype(np.float32), keypoints[1][free[1]].astype(np.float32)
    own0, own1 = (own[torch.from_numpy(rows).to(own.device)] for own, rows in zip(descriptors, free, strict=True))
    if not len(expected) or not len(xy1):
        return _NOTHING

    matches, scores = (one.cpu().numpy() for one in match_among(own0, own1, _near(expected, xy1, threshold), settings))
    matched = np.flatnonzero(matches >= 0)
    if not len(matched):
        return _NOTHING
    found = np.column_stack((free[0][matched], free[1][matches[matched]]))
    agreeing = [_share_agreeing(xy[found[:, side]], xy[pairs[:, side]], inliers) for side, xy in enumerate(keypoints)]
    return Guided(found, scores[matched], np.minimum(*agreeing) >= LEAST_AGREEING)


def _near(expected: np.ndarray, xy1: np.ndarray, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (K,) int64 of places (N0, 2) and of points (N1, 2) within the threshold, of some places at a time."""
    order = np.argsort(xy1[:, 1])
    heights = xy1[order, 1]
    first, last = (np.searchsorted(heights, expected[:, 1] + step) for step in (-threshold, threshold))
    counts = last - first  # of those in a strip as high
    begins = counts.cumsum() - counts
    for rows in np.split(np.arange(len(expected)), np.flatnonzero(np.diff(begins // CANDIDATES_AT_ONCE)) + 1):
        row = np.repeat(rows, counts[rows])
        column = order[first[row] + np.arange(len(row)) - (begins[row] - begins[rows[0]])]
        near = ((expected[row] - xy1[column]) ** 2).sum(axis=1) < threshold**2
        yield torch.from_numpy(row[near]), torch.from_numpy(column[near])


def _share_agreeing(xy: np.ndarray, matched: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    """The share (K,) of inliers among the NEAREST of the matched points (M, 2) around each of xy (K, 2)."""
    return np.asarray(inliers[nearest(xy, matched, min(NEAREST, len(matched)))].mean(axis=1))
