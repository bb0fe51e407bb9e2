"""The features that OpenCV ships, as baselines: SIFT, RootSIFT and ORB, set to fill the keypoint budget.

SIFT (Lowe 2004): OpenCV's defaults, but for its precise upscaling, without which every keypoint is a quarter of a pixel
off; as long as there are fewer keypoints than asked for, the contrast threshold is halved (0.04, 0.02, ... 0.0003).
RootSIFT (Arandjelovic and Zisserman 2012): square roots of the L1-normalised descriptors. ORB (Rublee et al. 2011):
OpenCV's defaults, the FAST threshold halved likewise (20, 10, ... 1). A point with several orientations is several
keypoints, as OpenCV counts them; the best by response are kept.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures

SIFT_CONTRASTS = tuple(0.04 / 2**step for step in range(8))
FAST_THRESHOLDS = (20, 10, 5, 2, 1)
ALL = 100_000  # a budget of 0 means all; OpenCV wants a number for ORB


class OpenCVMethod(ComputedMethod):
    """Features of OpenCV: the first of several detectors, from strict to lenient, that fills the budget."""

    def __init__(self, label: str, max_keypoints: int, descriptor_bytes: int) -> None:
        self.label = label
        self._max_keypoints = max_keypoints
        self._descriptor_bytes = descriptor_bytes

    @abstractmethod
    def detectors(self) -> Iterator[Any]:
        """Detectors of OpenCV, the next more lenient than the last."""

    def compute(self, grey: NDArray[np.uint8]) -> LocalFeatures:
        """See `ComputedMethod.compute`."""
        spent = 0.0
        keypoints: Any = ()
        descriptors: NDArray[Any] | None = None
        for detector in self.detectors():
            start = perf_counter()
            keypoints, descriptors = detector.detectAndCompute(grey, None)
            self.network_seconds = perf_counter() - start
            spent += self.network_seconds
            if len(keypoints) >= self._max_keypoints:  # at once for 0, all
                break
        self.discarded_seconds = spent - self.network_seconds
        return _gather(keypoints, descriptors, self._max_keypoints, self._descriptor_bytes)


class Sift(OpenCVMethod):
    """SIFT; `root` for RootSIFT."""

    def __init__(self, max_keypoints: int, *, root: bool = False) -> None:
        super().__init__("rootsift" if root else "sift", max_keypoints, descriptor_bytes=128)
        self._root = root

    def detectors(self) -> Iterator[Any]:
        """See `OpenCVMethod.detectors`."""
        for contrast in SIFT_CONTRASTS:
            yield cv2.SIFT.create(
                nfeatures=self._max_keypoints, contrastThreshold=contrast, enable_precise_upscale=True
            )

    def compute(self, grey: NDArray[np.uint8]) -> LocalFeatures:
        """See `ComputedMethod.compute`."""
        features = super().compute(grey)
        unit = features.descriptors.astype(np.float32)
        if self._root:
            unit = np.sqrt(unit / np.maximum(unit.sum(axis=1, keepdims=True), 1e-12))
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        return replace(features, descriptors=unit)


class Orb(OpenCVMethod):
    """ORB, matched by Hamming distance."""

    def __init__(self, max_keypoints: int) -> None:
        super().__init__("orb", max_keypoints, descriptor_bytes=32)

    def detectors(self) -> Iterator[Any]:
        """See `OpenCVMethod.detectors`."""
        for threshold in FAST_THRESHOLDS:
            yield cv2.ORB.create(nfeatures=self._max_keypoints or ALL, fastThreshold=threshold)


def _gather(keypoints: Any, descriptors: NDArray[Any] | None, max_keypoints: int, width: int) -> LocalFeatures:
    """OpenCV's keypoints as arrays, best response first, cut to the budget (SIFT keeps ties beyond it)."""
    if descriptors is None or len(keypoints) == 0:
        descriptors = np.zeros((0, width), dtype=np.uint8)
    xy = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float32).reshape(-1, 2)
    scores = np.array([keypoint.response for keypoint in keypoints], dtype=np.float32)
    order = np.argsort(-scores, kind="stable")[: max_keypoints or None]
    return LocalFeatures(keypoints=xy[order], scores=scores[order], descriptors=descriptors[order])
