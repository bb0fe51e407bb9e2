"""Matching one pair of images: descriptors made comparable, mutual nearest neighbours, geometric verification."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.errors import DeviceError, ImageError
from sekd_cli.feature_file import StoredFeatures
from sekd_cli.match_file import StoredMatches, fingerprint
from sekd_cli.matching import match_descriptors
from sekd_cli.verification import Camera, verify


@dataclass(frozen=True, kw_only=True)
class MatchableImage:
    """The features of one image, ready to be matched."""

    name: str
    keypoints: np.ndarray  # (N, 2) float32, pixels
    descriptors: Tensor  # (N, D) float32 on the device, rows of unit length
    fingerprint: int
    camera: Camera | None = None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.keypoints.nbytes + self.descriptors.nbytes


def matchable_image(
    name: str, features: StoredFeatures, device: torch.device | str = "cpu", camera: Camera | None = None
) -> MatchableImage:
    """Features as stored, made ready; descriptors of other tools need not be of unit length, or even finite."""
    descriptors = torch.from_numpy(features.descriptors).to(device, torch.float32).nan_to_num(0.0, 0.0, 0.0)
    return MatchableImage(
        name=name,
        keypoints=features.keypoints,
        descriptors=F.normalize(descriptors, dim=1),
        fingerprint=fingerprint(features),
        camera=camera,
    )


def match_images(
    image0: MatchableImage,
    image1: MatchableImage,
    settings: MatchingSettings,
    verification: VerificationSettings | None = None,
) -> StoredMatches:
    """The matches of one pair, verified if asked for.

    Raises ImageError if the descriptors can't be compared, DeviceError if the device has not enough memory.
    """
    width0, width1 = image0.descriptors.shape[1], image1.descriptors.shape[1]
    if width0 != width1 and len(image0.descriptors) and len(image1.descriptors):
        raise ImageError(f"descriptors of {width0} and of {width1} values; extract both with the same weights")
    try:
        matches0, scores0 = match_descriptors(image0.descriptors, image1.descriptors, settings)
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device ran out of memory; give --device cpu, or extract fewer keypoints") from error
    matches = StoredMatches(matches0=matches0.cpu().numpy().astype(np.int32), scores0=scores0.cpu().numpy())
    if verification is None:
        return matches
    pairs = matches.indices()
    cameras = (image0.camera, image1.camera) if image0.camera and image1.camera else None
    xy0, xy1 = image0.keypoints[pairs[:, 0]], image1.keypoints[pairs[:, 1]]
    inliers, model = verify(xy0, xy1, verification, cameras)
    outliers = pairs[~inliers, 0]
    matches.matches0[outliers], matches.scores0[outliers] = -1, 0
    name = None if model is None else verification.model
    return StoredMatches(matches0=matches.matches0, scores0=matches.scores0, model_name=name, model=model)
