"""Relative pose between calibrated photographs: how far an estimate is from the truth. Pure functions of numpy arrays.

A pose `1_from_0` is a rotation (3, 3) and a translation (3,): X1 = R X0 + t. The error of a pair is the larger of the
two angles, as in Yi et al. 2018, SuperGlue (Sarlin et al. 2020) and the Image Matching Challenge (Jin et al. 2021).
"""

from collections.abc import Sequence

import numpy as np

from sekd_cli.evaluation.cameras import Pose
from sekd_cli.evaluation.homography import FloatArray, fractions_below

FAILED = float("inf")  # the error of a pair without an estimate
MAA_STEPS = 10


def rotation_error(estimated: FloatArray, truth: FloatArray) -> float:
    """Angle in degrees between two rotations (3, 3)."""
    difference = np.asarray(estimated, dtype=np.float64) @ np.asarray(truth, dtype=np.float64).T
    axis = np.array(
        (difference[2, 1] - difference[1, 2], difference[0, 2] - difference[2, 0], difference[1, 0] - difference[0, 1])
    )  # of length 2 sin; with the cosine it is exact at small angles, where the arc cosine alone is not
    return float(np.degrees(np.arctan2(np.linalg.norm(axis), np.trace(difference) - 1)))


def translation_error(estimated: FloatArray, truth: FloatArray) -> float:
    """Angle in degrees between two translations' lines, 0 to 90: their sign is not counted, as in IMC and SuperGlue.

    0 where the true translation is zero, which has no direction.
    """
    if np.linalg.norm(truth) < 1e-12:
        return 0.0
    sine = np.linalg.norm(np.cross(estimated, truth))
    return float(np.degrees(np.arctan2(sine, abs(np.dot(estimated, truth)))))


def pose_error(estimated: Pose | None, truth: Pose) -> float:
    """The larger of both angles in degrees between poses (rotation, translation); inf where there is no estimate."""
    if estimated is None:
        return FAILED
    return max(rotation_error(estimated[0], truth[0]), translation_error(estimated[1], truth[1]))


def mean_average_accuracy(errors: FloatArray | Sequence[float], limit: float) -> float:
    """IMC's mAA: the share of pairs within a tenth, two tenths, ... of `limit` degrees, averaged."""
    return float(fractions_below(errors, tuple(np.linspace(limit / MAA_STEPS, limit, MAA_STEPS))).mean())


def relative_pose(first: Pose, second: Pose) -> Pose:
    """`1_from_0` of two poses `camera_from_world`."""
    rotation = np.asarray(second[0] @ first[0].T, dtype=np.float64)
    return rotation, np.asarray(second[1] - rotation @ first[1], dtype=np.float64)


def viewing_angle(first: FloatArray, second: FloatArray) -> float:
    """Angle in degrees between the optical axes of two rotations `camera_from_world`."""
    return float(np.degrees(np.arccos(np.clip(np.dot(first[2], second[2]), -1, 1))))
