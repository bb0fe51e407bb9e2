"""From photographs to features: shrink, pad, run the network in batches or tiles, bring keypoints back to the file.

The network sees every image upright. What it is padded with repeats the border and is cut off its score
map again, and the statistics that it normalises by are those of the image alone, so padding leaves no trace but a
slight one along the right and bottom border. Tiles overlap by more than the network's reach: a keypoint belongs to the
one tile whose core it lies in, and is the one that the whole image would have given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import DetectionSettings
from sekd_cli.errors import ImageError, UsageError
from sekd_cli.feature_file import StoredFeatures
from sekd_cli.features import detect, sample_descriptors
from sekd_cli.geometry import rescale_points
from sekd_cli.images import Photograph, to_stored
from sekd_cli.networks import DenseMaps, DenseNetwork
from sekd_cli.networks.inference import inference_network
from sekd_cli.precision import resolve_precision

REACH = 256  # pixels; no network's value depends on pixels further away (compact: 214), and a multiple of each stride
SMALLEST_TILE = 1024  # pixels; half of it is overlap already
TILE_PIXELS = {"compact": 4096, "published": 2048}  # edges for which a tile takes about 1 GB and 3 GB


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image as the network will see it, and its way back to the file."""

    grey: np.ndarray  # (H, W) uint8, upright, shrunk
    statistics: tuple[float, float]  # mean and standard deviation of `grey` in [0, 1]
    mask: np.ndarray | None  # (H, W) bool, like `grey`: false where no keypoint may be
    full_mask: np.ndarray | None  # bool, the same for the upright image before it was shrunk
    upright_size: tuple[int, int]  # width, height before it was shrunk
    orientation: int  # EXIF
    stored_size: tuple[int, int]  # width, height in the file

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels that the network sees per pixel of the upright image, along x and y."""
        return self.grey.shape[1] / self.upright_size[0], self.grey.shape[0] / self.upright_size[1]


def prepare(photograph: Photograph, *, max_size: int, mask: np.ndarray | None = None) -> PreparedImage:
    """Shrink a photograph until its longer edge is at most `max_size` pixels (0: leave it). Safe in any thread.

    mask: (H, W) bool like the photograph, false where no keypoint may be.
    """
    pixels = photograph.pixels
    grey = np.ascontiguousarray(pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    height, width = grey.shape
    factor = max_size / max(height, width)
    if max_size and factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
    shrunk_mask = None
    if mask is not None:
        size = grey.shape[1], grey.shape[0]
        shrunk_mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    mean, deviation = cv2.meanStdDev(grey)
    return PreparedImage(
        grey=grey,
        statistics=(float(mean[0, 0]) / 255, float(deviation[0, 0]) / 255),
        mask=shrunk_mask,
        full_mask=mask,
        upright_size=(width, height),
        orientation=photograph.orientation,
        stored_size=photograph.stored_size,
    )


class Extractor:
    """A network ready to extract features; holds no state between images."""

    def __init__(
        self,
        network: DenseNetwork,
        settings: DetectionSettings,
        *,
        device: torch.device,
        max_size: int = 1600,
        tile: int | None = None,
        precision: str = "float32",
    ) -> None:
        """max_size: longer edge in pixels, 0 for no limit. tile: edge in pixels above which an image is done in tiles,
        None for the network's own, 0 for never. precision: one of PRECISIONS.

        Raises UsageError.
        """  # noqa: D205 - both arguments belong together
        if max_size < 0:
            raise UsageError(f"--max-size {max_size}: give 0 (no limit) or more pixels")
        tile = TILE_PIXELS[network.name] if tile is None else tile
        if tile and tile < SMALLEST_TILE:
            raise UsageError(f"--tile {tile}: give 0 (never) or at least {SMALLEST_TILE} pixels")
        self.stride = network.stride
        self.settings = settings.completed(threshold=network.default_threshold, nms_radius=network.default_nms_radius)
        self.threshold = self.settings.threshold or 0.0
        self.device = device
        self.max_size = max_size
        self.tile = tile
        self.precision = resolve_precision(precision, device)
        self._network = inference_network(network, self.precision, device)

    def prepare(self, photograph: Photograph, mask: np.ndarray | None = None) -> PreparedImage:
        """See `prepare`; with this extractor's size."""
        return prepare(photograph, max_size=self.max_size, mask=mask)

    def padded_size(self, image: PreparedImage) -> tuple[int, int]:
        """Height, width with which an image goes through the network: only equal ones can share a batch."""
        height, width = image.grey.shape
        return -(-height // self.stride) * self.stride, -(-width // self.stride) * self.stride

    def extract(self, images: Sequence[PreparedImage]) -> list[StoredFeatures]:
        """The features of images of equal `padded_size`, keypoints in the pixel grid of their files.

        An even image has none. Raises ImageError if the device's memory is too small for an only image; several are
        then tried one by one.
        """
        try:
            if self.tile and max(images[0].grey.shape) > self.tile:
                return [self._extract_tiled(image) for image in images]
            return self._extract_batch(images)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error).lower():
                raise
            if len(images) == 1:
                message = f"too little memory on {self.device} for its size; give a smaller --tile or --max-size"
                raise ImageError(message) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [self.extract([image])[0] for image in images]

    def _extract_batch(self, images: Sequence[PreparedImage]) -> list[StoredFeatures]:
        maps = self._run([image.grey for image in images], [image.statistics for image in images])
        results = []
        for index, image in enumerate(images):
            keypoints, scores = self._detect(maps, index, image, _whole(image), self.settings)
            results.append(self._finish(image, keypoints, scores, self._describe(maps, index, keypoints)))
        return results

    def _extract_tiled(self, image: PreparedImage) -> StoredFeatures:
        everything = replace(self.settings, max_keypoints=0)
        limit = self.settings.max_keypoints or None
        best: list[Tensor] = []  # keypoints, scores, descriptors
        height, width = image.grey.shape
        for window in _windows(height, width, self.tile // REACH * REACH):
            pixels = image.grey[window.top : window.bottom, window.left : window.right]
            maps = self._run([pixels], [image.statistics])
            keypoints, scores = self._detect(maps, 0, image, window, everything)
            own = window.owns(keypoints)
            keypoints, scores = keypoints[own][:limit], scores[own][:limit]
            tile = [keypoints + window.origin(keypoints), scores, self._describe(maps, 0, keypoints)]
            joined = [torch.cat(pair) for pair in zip(best, tile, strict=True)] if best else tile
            order = joined[1].argsort(descending=True, stable=True)[:limit]
            best = [values[order] for values in joined]
        return self._finish(image, *best)

    @torch.inference_mode()
    def _run(self, pixels: Sequence[np.ndarray], statistics: Sequence[tuple[float, float]]) -> DenseMaps:
        """The maps of grey uint8 images (H, W) that are padded to the same multiple of the stride."""
        padded = np.stack([self._pad(one) for one in pixels])
        batch = torch.from_numpy(padded).to(self.device)[:, None].float().div_(255)
        maps: DenseMaps = self._network(
            batch.contiguous(memory_format=torch.channels_last), torch.tensor(statistics, device=self.device)
        )
        return maps

    def _pad(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape
        return np.pad(pixels, ((0, -height % self.stride), (0, -width % self.stride)), mode="edge")

    @torch.inference_mode()
    def _detect(
        self, maps: DenseMaps, index: int, image: PreparedImage, window: "_Window", settings: DetectionSettings
    ) -> tuple[Tensor, Tensor]:
        """Keypoints (N, 2) in pixels of the window, and scores (N,)."""
        logits = maps.score_logits[index, : window.bottom - window.top, : window.right - window.left]
        if image.statistics[1] == 0:  # an even image: what its borders look like is no keypoint
            return logits.new_zeros((0, 2)), logits.new_zeros(0)
        mask = None
        if image.mask is not None:
            part = image.mask[window.top : window.bottom, window.left : window.right]
            mask = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
        return detect(logits, settings, self.threshold, mask)

    @torch.inference_mode()
    def _describe(self, maps: DenseMaps, index: int, keypoints: Tensor) -> Tensor:
        own = tuple(one[index : index + 1] for one in maps.descriptor_maps)
        return sample_descriptors(own, keypoints[None], maps.score_logits.shape[-1])[0]

    def _finish(self, image: PreparedImage, keypoints: Tensor, scores: Tensor, descriptors: Tensor) -> StoredFeatures:
        """Keypoints (N, 2) of the shrunk image back to the file; those that landed in the mask left out."""
        scale_x, scale_y = image.scale
        back = torch.tensor((1 / scale_x, 1 / scale_y), dtype=torch.float64)
        upright = rescale_points(keypoints.cpu().double(), back).numpy()
        kept = np.ones(len(upright), dtype=bool)
        if image.full_mask is not None:
            x, y = np.rint(upright).astype(int).T
            kept = image.full_mask[y, x]
        stored = to_stored(upright[kept], image.orientation, image.stored_size)
        return StoredFeatures(
            keypoints=stored.astype(np.float32),
            scores=scores.float().cpu().numpy()[kept],
            descriptors=descriptors.float().cpu().numpy()[kept],
            image_size=image.stored_size,
            scales=np.full(int(kept.sum()), (1 / (scale_x * scale_y)) ** 0.5, dtype=np.float32),
        )


class _Window(NamedTuple):
    """A tile of an image, in its pixels: what the network sees, and within it the core whose keypoints it owns."""

    top: int
    bottom: int
    left: int
    right: int
    core_top: int
    core_bottom: int
    core_left: int
    core_right: int

    def origin(self, like: Tensor) -> Tensor:
        """(x, y) of its top-left pixel in the image."""
        return like.new_tensor((self.left, self.top))

    def owns(self, keypoints: Tensor) -> Tensor:
        """Which keypoints (N, 2) of the window round into its core, (N,) bool."""
        x, y = (keypoints + self.origin(keypoints)).round().unbind(dim=-1)
        return (x >= self.core_left) & (x < self.core_right) & (y >= self.core_top) & (y < self.core_bottom)


def _whole(image: PreparedImage) -> _Window:
    height, width = image.grey.shape
    return _Window(0, height, 0, width, 0, height, 0, width)


def _windows(height: int, width: int, tile: int) -> Iterator[_Window]:
    """Tiles that cover an image, row by row: cores touch, and tiles reach beyond them by REACH where there is image."""
    for core_top, core_bottom in _cores(height, tile):
        for core_left, core_right in _cores(width, tile):
            yield _Window(
                max(0, core_top - REACH),
                min(height, core_bottom + REACH),
                max(0, core_left - REACH),
                min(width, core_right + REACH),
                core_top,
                core_bottom,
                core_left,
                core_right,
            )


def _cores(extent: int, tile: int) -> Iterator[tuple[int, int]]:
    """Consecutive parts of `extent` pixels, each beginning at a multiple of REACH (and so of every stride)."""
    if extent <= tile:
        yield 0, extent
        return
    step = tile - 2 * REACH
    for start in range(0, extent, step):
        yield start, min(extent, start + step)
