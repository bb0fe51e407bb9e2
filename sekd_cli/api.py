"""`sekd` from Python: from images to features, and from features to matches (README shows it in three lines)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import (
    DEFAULT_MAX_PIXELS,
    MODELS,
    DetectionSettings,
    MatchingSettings,
    VerificationSettings,
    ViewSettings,
    parse_scales,
)
from sekd_cli.device import keep_freed_tensors, matching_device, resolve_device
from sekd_cli.errors import ImageError, UsageError
from sekd_cli.extraction import Extractor
from sekd_cli.features import Features
from sekd_cli.images import Photograph, read_image, to_eight_bits, turn_upright
from sekd_cli.level_sizes import finest_of
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.pair_matching import MatchableImage, comparable, match_images
from sekd_cli.seen_pixels import SeenPhotograph, SeenPixels, seen_pixels
from sekd_cli.stored_features import are_places
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import Camera, verification_settings


@contextmanager
def _plain_tensors_on_the_cpu() -> Iterator[None]:
    """What the core takes for granted, whatever `torch.set_default_device` says to the program around it."""
    if torch.empty(0).is_cpu:
        yield
    else:
        with torch.device("cpu"):
            yield


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """What two images have in common, M matches, in the order of the first image's keypoints (its best first)."""

    indices: Tensor  # (M, 2) int64, rows of the first and of the second image's keypoints
    scores: Tensor  # (M,) float32, cosine similarity, or dual-softmax probability where a temperature was given
    keypoints0: Tensor  # (M, 2) float32, x and y in pixels of the first image
    keypoints1: Tensor  # (M, 2) float32, the same points in the second
    turn: int = 0  # with `rotations`: by so many quarters, counter-clockwise, the second image is to be turned
    model: Tensor | None = None  # (3, 3) float64, with `verify`: as OpenCV has it, from the first image to the second

    def __len__(self) -> int:
        return self.indices.shape[0]


class Sekd:
    """A network with its settings, as `from_pretrained` makes it. One instance serves any number of images."""

    def __init__(self, extractor: Extractor, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._extractor = extractor
        self._max_pixels = max_pixels

    @classmethod
    @_plain_tensors_on_the_cpu()
    def from_pretrained(
        cls,
        weights: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        max_keypoints: int = 2048,
        threshold: float | None = None,
        nms_radius: int | None = None,
        subpixel: bool = True,
        max_size: int = 1600,
        scales: str | float | Sequence[float] | None = None,
        rotations: bool = False,
        tile: int | None = None,
        precision: str = "auto",
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Self:
        """Load a network: the shipped weights, a .safetensors of `sekd train`, or the authors' checkpoint.

        The other arguments are the options of `sekd extract`; scales may be "auto", and without `subpixel` keypoints
        lie on whole pixels of what the network sees. On a CPU, where the C library is glibc, the process from then on
        keeps up to 128 MB of what it frees, without which extraction takes a sixth longer; environment variables of
        glibc's (MALLOC_...), where there are any, are left to rule. Raises InputFileError for a file that is no
        weights, DeviceError for a device that isn't there, UsageError for values that make no sense.
        """
        settings = DetectionSettings(
            max_keypoints=max_keypoints, threshold=threshold, nms_radius=nms_radius, subpixel=subpixel
        )
        if isinstance(scales, int | float):
            scales = [scales]
        parsed = parse_scales(scales) if scales is None or isinstance(scales, str) else tuple(scales)
        views = ViewSettings(max_size=max_size, scales=parsed, rotations=rotations)
        network = load_network(packaged_weights() if weights is None else Path(weights))
        chosen = resolve_device(str(device))
        extractor = Extractor(network, settings, device=chosen, views=views, tile=tile, precision=precision)
        if chosen.type == "cpu":
            keep_freed_tensors()
        return cls(extractor, max_pixels)

    @_plain_tensors_on_the_cpu()
    def extract(self, image: str | Path | np.ndarray, *, mask: np.ndarray | None = None) -> Features:
        """The features of an image, best keypoint first, on the CPU.

        image: a file, or pixels: (H, W) grey or (H, W, 3) RGB, of any number type (fractions lie in [0, 1]). A file is
        turned upright by its EXIF tag for the network; keypoints are in the grid of the file as it is. mask: (H, W) in
        that grid; where it is zero or false there are no keypoints. Raises ImageError.
        """
        if isinstance(image, str | Path):
            photograph = read_image(Path(image), max_pixels=self._max_pixels, enough=self._extractor.enough)
        else:
            photograph = _photograph(image)
        allowed = None if mask is None else _mask_of(photograph, mask)
        stored = self._extractor.extract([self._extractor.prepare(photograph, allowed)])[0]
        return Features(
            keypoints=torch.from_numpy(stored.keypoints),
            scores=torch.from_numpy(stored.scores),
            descriptors=torch.from_numpy(stored.descriptors),
            image_size=stored.image_size,
            scales=None if stored.scales is None else torch.from_numpy(stored.scales),
            turned=None if stored.turned is None else torch.from_numpy(stored.turned),
        )

    @_plain_tensors_on_the_cpu()
    def match(
        self,
        features0: Features,
        features1: Features,
        *,
        ratio: float = 1.0,
        min_similarity: float = -1.0,
        temperature: float = 0.0,
        min_probability: float = 0.0,
        rotations: bool = False,
        verify: str | None = None,
        verify_threshold: float | None = None,
        min_inliers: int | None = None,
        cameras: tuple[Camera, Camera] | None = None,
        refine: tuple[str | Path | np.ndarray, str | Path | np.ndarray] | None = None,
    ) -> Matches:
        """Mutual nearest neighbours of two images' descriptors, on the CPU when done.

        The filters are those of `sekd match`; `temperature` is its --dual-softmax. `rotations` tries the second image
        at all four quarter turns, which takes features extracted with rotations. `verify` (homography, fundamental or
        essential) keeps what agrees on one geometry to `verify_threshold` pixels (by default 3, 1 and 1), nothing where
        it is fewer than `min_inliers` (15) or chance, and finds more where a homography leads; essential takes both
        `cameras`. `refine`, both images as `extract` takes them, aligns what agrees by the pixels around it: then
        `keypoints1` is where the first image's keypoints are in the second, to a small part of a pixel. Raises
        UsageError for values that make no sense, features of different networks, or features without turns, ImageError
        for images that can't be read, or have another size.
        """
        dimension0, dimension1 = features0.descriptors.shape[1], features1.descriptors.shape[1]
        if dimension0 != dimension1:
            raise UsageError(f"descriptors of {dimension0} and {dimension1} values: extract both with the same weights")
        for features in (features0, features1):
            if features.keypoints.shape[0] != features.descriptors.shape[0]:
                raise UsageError(
                    f"{features.keypoints.shape[0]} keypoints, {features.descriptors.shape[0]} descriptors"
                )
            if not are_places(features.keypoints.detach().cpu().float().numpy()):
                raise UsageError("keypoints that are not finite, or in no image")
        if rotations and features1.turned is None:
            raise UsageError("rotations: the second image's features have no turns; extract with rotations=True")
        settings = MatchingSettings(
            ratio=ratio,
            min_similarity=min_similarity,
            temperature=temperature,
            min_probability=min_probability,
            rotations=rotations,
        )
        verification = _verification(verify, verify_threshold, min_inliers, cameras)
        if refine is not None and verification is None:
            raise UsageError("refine: only with verify")
        if refine is not None and not _are_two_images(refine):
            raise UsageError("refine: give both images, as (image0, image1)")
        both = zip((features0, features1), cameras or (None, None), refine or (None, None), strict=True)
        image0, image1 = (self._matchable(*one) for one in both)
        found = match_images(image0, image1, settings, verification)
        indices = torch.from_numpy(found.indices())
        index0, index1 = indices.unbind(dim=1)
        return Matches(
            indices=indices,
            scores=torch.from_numpy(found.scores0)[index0],
            keypoints0=features0.keypoints[index0],
            keypoints1=features1.keypoints[index1] + _offsets(found).to(features1.keypoints.device),
            turn=found.turn or 0,
            model=None if found.model is None else torch.from_numpy(found.model),
        )

    def _matchable(
        self, features: Features, camera: Camera | None, image: str | Path | np.ndarray | None
    ) -> MatchableImage:
        device = matching_device(self._extractor.device)
        pixels = None if image is None else self._pixels(features, image)
        return MatchableImage(
            name="",
            keypoints=features.keypoints.detach().cpu().float().numpy(),
            descriptors=comparable(features.descriptors.detach().to(device)),
            fingerprint=0,
            turned=None if features.turned is None else comparable(features.turned.detach().to(device)),
            camera=camera,
            pixels=None if pixels is None else lambda: pixels,
        )

    def _pixels(self, features: Features, image: str | Path | np.ndarray) -> SeenPixels:
        least = finest_of(None if features.scales is None else features.scales.detach().cpu().float().numpy())
        if isinstance(image, str | Path):
            return SeenPhotograph(Path(image), features.image_size, least, self._max_pixels).read()
        return seen_pixels(_photograph(image), features.image_size, least)


def _offsets(matches: StoredMatches) -> Tensor:
    """What to add to the second image's keypoints, (M, 2) or a number."""
    return torch.zeros(2) if matches.alignment is None else torch.from_numpy(matches.alignment.offsets)


def _verification(
    model: str | None, threshold: float | None, min_inliers: int | None, cameras: tuple[Camera, Camera] | None
) -> VerificationSettings | None:
    if model is None:
        if (threshold, min_inliers, cameras) != (None, None, None):
            raise UsageError("verify_threshold, min_inliers and cameras: only with verify")
        return None
    if model not in MODELS:
        raise UsageError(f"verify {model!r}: give {', '.join(MODELS)}, or None")
    if (model == "essential") != (cameras is not None) or not _are_two(cameras):
        raise UsageError("cameras: give both with verify='essential', none with others")
    return verification_settings(model, threshold, min_inliers)


def _are_two(cameras: object) -> bool:
    """Whether cameras, where there are any, are a pair of them."""
    if cameras is None:
        return True
    return isinstance(cameras, Sequence) and len(cameras) == 2 and all(isinstance(one, Camera) for one in cameras)


def _are_two_images(images: object) -> bool:
    """Whether these are a pair of what may be images; a path is no pair of letters."""
    if not isinstance(images, Sequence) or isinstance(images, str) or len(images) != 2:
        return False
    return all(image is not None for image in images)


def _mask_of(photograph: Photograph, mask: np.ndarray) -> np.ndarray:
    """Where keypoints may be, (H, W) bool, of an upright photograph. Raises ImageError for what is no mask of it."""
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "buif":
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ImageError(f"a mask of type {kind}: give a numpy array of numbers or bool, (H, W)")
    width, height = photograph.stored_size
    if mask.shape != (height, width):
        raise ImageError(f"mask of shape {mask.shape}, but its image has {height} rows of {width} pixels")
    return turn_upright(mask != 0, photograph.orientation)


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
