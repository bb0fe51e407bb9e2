"""Robust fits, seeded: the homography or the essential matrix that most matches agree with (OpenCV 4 and 5).

OpenCV's estimators start from a seed of their own that no function sets in every version, so a seed here shuffles the
matches: another order, other samples.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sekd_cli.evaluation.cameras import CalibratedCamera, Pose
from sekd_cli.evaluation.homography import FloatArray
from sekd_cli.verification import fit_essential

ESTIMATORS = {"ransac": cv2.RANSAC, "magsac": cv2.USAC_MAGSAC}
POSE_CONFIDENCE = 0.99999

FARTHEST = 1e9  # baselines; OpenCV leaves points beyond 50 of them out, and where all are, it picks a pose blindly


def _shuffled(xy0: FloatArray, xy1: FloatArray, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.random.default_rng(seed).permutation(len(xy0))
    return (
        np.ascontiguousarray(xy0[order], dtype=np.float64),
        np.ascontiguousarray(xy1[order], dtype=np.float64),
    )


def estimate_homography(
    xy0: FloatArray, xy1: FloatArray, estimator: str, *, threshold: float = 3.0, seed: int = 0
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


def estimate_pose(
    xy0: FloatArray,
    xy1: FloatArray,
    cameras: tuple[CalibratedCamera, CalibratedCamera],
    *,
    threshold: float = 1.0,
    seed: int = 0,
) -> Pose | None:
    """Pose `1_from_0` (translation of unit length) by matched points (M, 2) in pixels; None where none is found.

    An essential matrix by `fit_essential`, then the one of its four poses with most points in front of both cameras.
    threshold: largest error of an inlier, pixels at the mean focal length.
    """
    if len(xy0) < 5:
        return None
    xy0, xy1 = _shuffled(cameras[0].normalise(xy0), cameras[1].normalise(xy1), seed)
    focal = (cameras[0].focal_length + cameras[1].focal_length) / 2
    try:
        matrices, mask = fit_essential(
            xy0, xy1, focal, method=cv2.USAC_MAGSAC, threshold=threshold, confidence=POSE_CONFIDENCE
        )
        if matrices is None or mask is None:
            return None
        poses = [
            cv2.recoverPose(one, xy0, xy1, np.eye(3), distanceThresh=FARTHEST, mask=mask.copy())[:3]
            for one in _stacked(matrices)
        ]
    except cv2.error:  # degenerate points
        return None
    if not poses:
        return None
    _, rotation, translation = max(poses, key=lambda pose: pose[0])
    return np.asarray(rotation, dtype=np.float64), np.asarray(translation, dtype=np.float64)[:, 0]


def _stacked(matrices: NDArray[Any]) -> list[NDArray[Any]]:
    """The five-point method may leave several solutions, one below the other."""
    return [matrices[row : row + 3] for row in range(0, len(matrices), 3)]
