"""What features are worth on pairs of photographs that a homography relates. Pure functions of numpy arrays.

Points are (M, 2), x and y in pixels, the centre of the top-left pixel at (0, 0). The metrics are those of HPatches
(Balntas et al. 2017), SuperPoint (DeTone et al. 2018) and D2-Net (Dusmanu et al. 2019), as in the paper (Sec. 4.2).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

BLOCK_ROWS = 256  # keypoints whose distances to all others are held at once
THRESHOLDS = tuple(range(1, 11))  # pixels; Avg.HA@1:10 is the mean over these


def warp(xy: FloatArray, target_from_source: FloatArray) -> NDArray[np.float64]:
    """Points (M, 2) through a homography; points on the horizon or behind it become inf."""
    homogeneous = np.column_stack((xy, np.ones(len(xy)))).astype(np.float64) @ np.asarray(target_from_source).T
    depth = homogeneous[:, 2:]
    visible = depth > 1e-12
    return np.where(visible, homogeneous[:, :2] / np.where(visible, depth, 1.0), np.inf)


def invertible(matrix: FloatArray) -> bool:
    """Whether the numbers of a square matrix are finite and it has an inverse."""
    return bool(np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix) == len(matrix))


def corners(width: int, height: int) -> NDArray[np.float64]:
    """Centres of the four outermost pixels, (4, 2)."""
    right, bottom = width - 1, height - 1
    return np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)], dtype=np.float64)


def corner_error(estimated: FloatArray | None, truth: FloatArray, width: int, height: int) -> float:
    """Mean distance in pixels of image 0's corners under two homographies; inf where none could be estimated.

    estimated, truth: (3, 3), to image 1 from image 0 of `width` x `height` pixels.
    """
    if estimated is None or not np.all(np.isfinite(estimated)):
        return float("inf")
    outline = corners(width, height)
    true_xy = warp(outline, _forward(truth, outline))
    estimated_xy = warp(outline, _forward(estimated, outline))
    if not np.all(np.isfinite(estimated_xy)):
        return float("inf")
    return float(np.linalg.norm(estimated_xy - true_xy, axis=1).mean())


def _forward(homography: FloatArray, xy: FloatArray) -> FloatArray:
    """The same homography with the sign that puts most of these points in front: (3, 3) is known up to a factor."""
    depth = xy @ homography[2, :2] + homography[2, 2]
    return homography if np.median(depth) > 0 else -homography


def transfer_errors(xy0: FloatArray, xy1: FloatArray, homography_1_from_0: FloatArray) -> NDArray[np.float64]:
    """Distances (M,) in pixels of image 1 between matched points, those of image 0 warped there."""
    if len(xy0) == 0:
        return np.zeros(0)
    offsets = warp(xy0, _forward(homography_1_from_0, xy0)) - xy1
    return np.asarray(np.linalg.norm(offsets, axis=1), dtype=np.float64)


def fractions_below(
    errors: FloatArray | Sequence[float], thresholds: FloatArray | Sequence[float]
) -> NDArray[np.float64]:
    """Share of errors at or below each threshold, (T,); zeros where there are no errors at all."""
    found = np.asarray(errors, dtype=np.float64)
    if len(found) == 0:
        return np.zeros(len(thresholds))
    return np.array([(found <= threshold).mean() for threshold in thresholds])


def matching_accuracy(
    xy0: FloatArray, xy1: FloatArray, homography_1_from_0: FloatArray, thresholds: Sequence[float] = THRESHOLDS
) -> NDArray[np.float64]:
    """Share of matches (M,) that are right to each threshold in pixels, (T,); zeros where there are no matches.

    Its mean over pairs is the mean matching accuracy (MMA).
    """
    return fractions_below(transfer_errors(xy0, xy1, homography_1_from_0), thresholds)


def repeatability(  # noqa: PLR0917 - a pair has two of everything
    xy0: FloatArray,
    xy1: FloatArray,
    homography_1_from_0: FloatArray,
    size0: tuple[int, int],
    size1: tuple[int, int],
    threshold: float = 3.0,
) -> tuple[float, float]:
    """Share of the keypoints in the common part that have one of the other image's near, and how near.

    xy0 (N0, 2), xy1 (N1, 2): all keypoints. size0, size1: (width, height). Each keypoint is warped to the other image
    and its nearest neighbour there looked for, distances in that image's pixels. Returns the share of both images'
    keypoints together (0 where none are in the common part) and the mean distance of those found (nan where none).
    """
    distances = np.concatenate(
        (
            _nearest(xy0, xy1, homography_1_from_0, size0, size1),
            _nearest(xy1, xy0, np.linalg.inv(homography_1_from_0), size1, size0),
        )
    )
    found = distances[distances <= threshold]
    if len(found) == 0:
        return 0.0, float("nan")
    return len(found) / len(distances), float(found.mean())


def _nearest(
    source: FloatArray,
    target: FloatArray,
    target_from_source: FloatArray,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
) -> NDArray[np.float64]:
    """For each source point that the target shows, the distance to the nearest target point that the source shows."""
    forward = _forward(target_from_source, corners(*source_size))
    backward = _forward(np.linalg.inv(target_from_source), corners(*target_size))
    warped = warp(source, forward)
    warped = warped[_within(warped, target_size)]
    shown = target[_within(warp(target, backward), source_size)].astype(np.float64)
    if len(shown) == 0:
        return np.full(len(warped), np.inf)
    nearest = np.empty(len(warped))
    for start in range(0, len(warped), BLOCK_ROWS):
        block = warped[start : start + BLOCK_ROWS]
        x, y = block[:, :1] - shown[:, 0], block[:, 1:] - shown[:, 1]
        nearest[start : start + BLOCK_ROWS] = (x * x + y * y).min(axis=1)
    return np.asarray(np.sqrt(nearest), dtype=np.float64)


def _within(xy: FloatArray, size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(((xy >= 0) & (xy <= np.array(size) - 1)).all(axis=1), dtype=np.bool_)


def area_under_curve(errors: FloatArray | Sequence[float], thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Area under the curve of recall against error up to each threshold, divided by the threshold, (T,).

    Trapezoids through the sorted errors, as SuperGlue's evaluation (Sarlin et al. 2020) does.
    """
    ordered = np.sort(np.asarray(errors, dtype=np.float64))
    recall = np.concatenate(([0.0], np.arange(1, len(ordered) + 1) / len(ordered)))
    ordered = np.concatenate(([0.0], ordered))
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x = np.concatenate((ordered[:last], [threshold]))
        y = np.concatenate((recall[:last], [recall[last - 1]]))
        areas.append(float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) / threshold)
    return np.array(areas)
