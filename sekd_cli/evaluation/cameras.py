"""Calibrated cameras and where they stood."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sekd_cli.evaluation.homography import FloatArray

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Rotation (3, 3) and translation (3,), X_target = R X_source + t."""

NEWTON_STEPS = 10  # to undo distortion: OpenCV's five steps of its own leave tenths of a pixel at wide angles, or tens
DIFFERENCE = 1e-6  # of directions, by which the distortion's slope is measured


@dataclass(frozen=True, kw_only=True)
class Camera:
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
        distorted = np.asarray((xy - self.matrix[:2, 2]) / np.diag(self.matrix)[:2], dtype=np.float64)
        if not any(self.distortion):
            return distorted
        found = distorted
        with np.errstate(all="ignore"):  # numbers that mean no lens may lead anywhere
            for _ in range(NEWTON_STEPS):
                found = found - self._newton_step(found, self._distort(found) - distorted)
        return np.where(np.isfinite(found), found, distorted)

    def _newton_step(self, directions: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how much directions (M, 2) are to change for an error (M, 2) of where they are seen."""
        along_x, along_y = (
            (self._distort(directions + step) - self._distort(directions - step)) / (2 * DIFFERENCE)
            for step in DIFFERENCE * np.eye(2)
        )
        determinant = along_x[:, 0] * along_y[:, 1] - along_y[:, 0] * along_x[:, 1]
        x = error[:, 0] * along_y[:, 1] - error[:, 1] * along_y[:, 0]
        y = error[:, 1] * along_x[:, 0] - error[:, 0] * along_x[:, 1]
        return np.stack((x, y), axis=1) / determinant[:, None]

    def _distort(self, directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where directions (M, 2) are seen, as those of a camera without distortion, (M, 2)."""
        space = np.column_stack((directions, np.ones(len(directions))))
        seen = cv2.projectPoints(space, np.zeros(3), np.zeros(3), np.eye(3), self._opencv_distortion())[0]
        return np.asarray(seen, dtype=np.float64)[:, 0]

    def _opencv_distortion(self) -> NDArray[np.float64]:
        count = next(count for count in (4, 5, 8) if count >= len(self.distortion))
        return np.pad(np.array(self.distortion, dtype=np.float64), (0, count - len(self.distortion)))


@dataclass(frozen=True, kw_only=True)
class View:
    """One photograph of a scene: its camera, its pose, and the scene's points it shows where they are known."""

    camera: Camera
    camera_from_world: Pose
    points: frozenset[int] = frozenset()
