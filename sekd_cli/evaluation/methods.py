"""What can be evaluated: a network of ours, OpenCV's features, or a feature file; all behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sekd_cli.config import MatchingSettings
from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.homography import FloatArray, warp
from sekd_cli.evaluation.images import EvaluationImage
from sekd_cli.matching import NO_MATCH, match_descriptors


@dataclass(frozen=True, kw_only=True)
class LocalFeatures:
    """The features of one image, best first."""

    keypoints: NDArray[np.float32]  # (N, 2), x and y in pixels of the evaluated image
    scores: NDArray[np.float32]  # (N,), descending
    descriptors: NDArray[Any]  # (N, D) float32 rows of unit length, or (N, D) uint8 for binary ones

    def __len__(self) -> int:
        return len(self.keypoints)

    def moved(self, target_from_source: FloatArray) -> "LocalFeatures":
        """The same features with their keypoints through a homography (3, 3)."""
        return replace(self, keypoints=warp(self.keypoints, target_from_source).astype(np.float32))


class Method(ABC):
    """Features under a label."""

    label: str

    @abstractmethod
    def features(self, image: EvaluationImage) -> LocalFeatures:
        """The best features of an image, at most the budget."""

    def check(self, paths: Iterable[Path]) -> None:
        """Before the work: raise InputFileError if some of these images can't have features."""
        del paths

    def match(self, first: LocalFeatures, second: LocalFeatures) -> NDArray[np.int64]:
        """Mutual nearest neighbours, (M, 2) indices."""
        if len(first) == 0 or len(second) == 0:
            return np.zeros((0, 2), dtype=np.int64)
        if (width0 := first.descriptors.shape[1]) != (width1 := second.descriptors.shape[1]):
            raise InputFileError(f"{self.label}: descriptors of {width0} and {width1} values; extract all images alike")
        if first.descriptors.dtype == np.uint8:
            return _match_binary(first.descriptors, second.descriptors)
        return match_mutually(first.descriptors, second.descriptors)


class ComputedMethod(Method):
    """Features computed here from the pixels."""

    network_seconds = 0.0  # of the last image: its network, or what OpenCV does in its place
    discarded_seconds = 0.0  # of the last image: tries that didn't fill the budget, which no user would make

    @abstractmethod
    def compute(self, grey: NDArray[np.uint8]) -> LocalFeatures:
        """The best features of grey pixels (H, W), at most the budget."""

    def features(self, image: EvaluationImage) -> LocalFeatures:
        """See `Method.features`."""
        return self.compute(image.grey)


def match_mutually(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.int64]:
    """Mutual nearest neighbours of unit vectors (N0, D), (N1, D): (M, 2) indices."""
    matches0, _ = match_descriptors(torch.from_numpy(first), torch.from_numpy(second), MatchingSettings())
    index0 = (matches0 != NO_MATCH).nonzero()[:, 0]
    return torch.stack((index0, matches0[index0]), dim=1).numpy()


def _match_binary(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(first, second)
    return np.array([(match.queryIdx, match.trainIdx) for match in matches], dtype=np.int64).reshape(-1, 2)
