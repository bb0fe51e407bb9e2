"""Calibrated cameras and where they stood."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sekd_cli.evaluation.homography import FloatArray

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Rotation (3, 3) and translation (3,), X_target = R X_source + t."""

UNDISTORTED = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, 1000, 1e-12)
"""When OpenCV ends: after its own five steps tenths of a pixel are left at wide angles, or tens."""


@dataclass(frozen=True, kw_only=True)
class CalibratedCamera:
    """A pinhole camera, distorted perhaps, in the pixels of the file: the top-left pixel's centre is (0, 0)."""

    matrix: NDArray[np.float64]  # (3, 3), K
    distortion: tuple[float, ...] = ()  # OpenCV's k1, k2, p1, p2, k3, k4, k5, k6, as far as given
    image_size: tuple[int, int] | None = None  # width, height of its images, where that is known

    @property
    def focal_length(self) -> float:
        """Mean of both focal lengths, pixels."""
        return float(self.matrix[0, 0] + self.matrix[1, 1]) / 2

    def normalise(self, xy: FloatArray) -> NDArray[np.float64]:
        """Pixels (M, 2) -> directions (x / z, y / z), (M, 2), undistorted; finite where no direction is seen there."""
        if len(xy) == 0:
            return np.zeros((0, 2))
        plain = np.asarray((xy - self.matrix[:2, 2]) / np.diag(self.matrix)[:2], dtype=np.float64)
        if not any(self.distortion):
            return plain
        pixels = np.ascontiguousarray(xy, dtype=np.float64)[:, None]
        undistort = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)  # of OpenCV 4; 5 has one for both
        found = undistort(pixels, self.matrix, self._opencv_distortion(), R=None, P=None, criteria=UNDISTORTED)[:, 0]
        return np.where(np.isfinite(found), found, plain)

    def _opencv_distortion(self) -> NDArray[np.float64]:
        count = next(count for count in (4, 5, 8) if count >= len(self.distortion))
        return np.pad(np.array(self.distortion, dtype=np.float64), (0, count - len(self.distortion)))


@dataclass(frozen=True, kw_only=True)
class View:
    """One photograph of a scene: its camera, its pose, and the scene's points it shows where they are known."""

    camera: CalibratedCamera
    camera_from_world: Pose
    points: frozenset[int] = frozenset()
