"""`sekd` from Python: from images to features, and from features to matches (README shows it in three lines)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import DetectionSettings, MatchingSettings
from sekd_cli.device import resolve_device
from sekd_cli.errors import ImageError, UsageError
from sekd_cli.extraction import Extractor
from sekd_cli.features import Features
from sekd_cli.images import Photograph, read_image, to_eight_bits
from sekd_cli.matching import NO_MATCH, match_descriptors
from sekd_cli.networks.weights_file import load_network, packaged_weights


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What two images have in common, M matches, in the order of the first image's keypoints (its best first)."""

    indices: Tensor  # (M, 2) int64, rows of the first and of the second image's keypoints
    scores: Tensor  # (M,) float32, cosine similarity, or dual-softmax probability where a temperature was given
    keypoints0: Tensor  # (M, 2) float32, x and y in pixels of the first image
    keypoints1: Tensor  # (M, 2) float32, the same points in the second

    def __len__(self) -> int:
        return self.indices.shape[0]


class Sekd:
    """A network with its settings, ready to extract and match. One instance serves any number of images."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        max_keypoints: int = 2048,
        threshold: float | None = None,
        nms_radius: int | None = None,
        subpixel: bool = True,
        max_size: int = 1600,
        tile: int | None = None,
        precision: str = "auto",
    ) -> Self:
        """Load a network: the shipped weights, a .safetensors of `sekd train`, or the authors' checkpoint.

        The other arguments are the options of `sekd extract`. Raises InputFileError for a file that is no weights,
        DeviceError for a device that isn't there, UsageError for values that make no sense.
        """
        settings = DetectionSettings(
            max_keypoints=max_keypoints, threshold=threshold, nms_radius=nms_radius, subpixel=subpixel
        )
        network = load_network(packaged_weights() if weights is None else Path(weights))
        return cls(
            Extractor(
                network, settings, device=resolve_device(device), max_size=max_size, tile=tile, precision=precision
            )
        )

    def extract(self, image: str | Path | np.ndarray) -> Features:
        """The features of an image, best keypoint first, on the CPU.

        image: a file, or pixels: (H, W) grey or (H, W, 3) RGB, of any number type (fractions lie in [0, 1]). A file is
        turned upright by its EXIF tag for the network; keypoints are in the grid of the file as it is.
        Raises ImageError.
        """
        photograph = read_image(Path(image)) if isinstance(image, str | Path) else _photograph(image)
        stored = self._extractor.extract([self._extractor.prepare(photograph)])[0]
        return Features(
            keypoints=torch.from_numpy(stored.keypoints),
            scores=torch.from_numpy(stored.scores),
            descriptors=torch.from_numpy(stored.descriptors),
            image_size=stored.image_size,
        )

    def match(
        self,
        features0: Features,
        features1: Features,
        *,
        ratio: float = 1.0,
        min_similarity: float = -1.0,
        temperature: float = 0.0,
        min_probability: float = 0.0,
    ) -> Matches:
        """Mutual nearest neighbours of two images' descriptors, on the CPU when done.

        The filters are those of `sekd match`; `temperature` is its --dual-softmax. Raises UsageError for values that
        make no sense, or features of different networks.
        """
        dimension0, dimension1 = features0.descriptors.shape[1], features1.descriptors.shape[1]
        if dimension0 != dimension1:
            raise UsageError(f"descriptors of {dimension0} and {dimension1} values: extract both with the same weights")
        settings = MatchingSettings(
            ratio=ratio, min_similarity=min_similarity, temperature=temperature, min_probability=min_probability
        )
        device = self._extractor.device
        matches0, scores0 = match_descriptors(
            features0.descriptors.to(device), features1.descriptors.to(device), settings
        )
        matches0, scores0 = matches0.cpu(), scores0.cpu()
        index0 = (matches0 != NO_MATCH).nonzero()[:, 0]
        index1 = matches0[index0]
        return Matches(
            indices=torch.stack((index0, index1), dim=1),
            scores=scores0[index0],
            keypoints0=features0.keypoints[index0],
            keypoints1=features1.keypoints[index1],
        )


def _photograph(pixels: np.ndarray) -> Photograph:
    """An array as if it had been read from a file that lies upright."""
    if not isinstance(pixels, np.ndarray):
        raise ImageError(
            f"an image of type {type(pixels).__name__}: give a path, or an array as numpy.asarray makes it"
        )
    grey, colour = pixels.ndim == 2, pixels.ndim == 3 and pixels.shape[2] == 3
    if not (grey or colour) or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise ImageError(f"array of shape {pixels.shape} and type {pixels.dtype}: give (H, W) grey or (H, W, 3) RGB")
    if pixels.dtype != np.uint8:
        pixels = to_eight_bits(pixels.astype(np.uint8) * 255 if pixels.dtype.kind == "b" else pixels)
    return Photograph(pixels=pixels, orientation=1, stored_size=(pixels.shape[1], pixels.shape[0]))
