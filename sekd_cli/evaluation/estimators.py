"""Robust fits, seeded: the homography or the essential matrix that most matches agree with (OpenCV 4 and 5).

OpenCV's estimators start from a seed of their own that no function sets in every version, so a seed here shuffles the
matches: another order, other samples.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from sekd_cli.evaluation.homography import FloatArray

ESTIMATORS = {"ransac": cv2.RANSAC, "magsac": cv2.USAC_MAGSAC}


def _shuffled(xy0: FloatArray, xy1: FloatArray, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.random.default_rng(seed).permutation(len(xy0))
    return (
        np.ascontiguousarray(xy0[order], dtype=np.float64),
        np.ascontiguousarray(xy1[order], dtype=np.float64),
    )


def estimate_homography(
    xy0: FloatArray, xy1: FloatArray, estimator: str = "ransac", *, threshold: float = 3.0, seed: int = 0
) -> NDArray[np.float64] | None:
    """Homography (3, 3) to image 1 from image 0 by matched points (M, 2); None where none is found.

    estimator: a key of ESTIMATORS. threshold: largest error of an inlier, pixels. Confidence and the number of
    iterations are OpenCV's defaults (0.995, 2000), with which the published figures were made.
    """
    if len(xy0) < 4:
        return None
    xy0, xy1 = _shuffled(xy0, xy1, seed)
    try:
        found, _ = cv2.findHomography(xy0, xy1, ESTIMATORS[estimator], threshold)
    except cv2.error:  # degenerate points: some versions raise, others return nothing
        return None
    return None if found is None else np.asarray(found, dtype=np.float64)
