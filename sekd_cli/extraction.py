"""From photographs to features: resize, pad, run the network in batches or tiles, bring keypoints back to the file.

The network sees every image upright. Padding repeats the border and is cut off the score map again, and the statistics
that it normalises by are those of the image alone, so padding leaves but a slight trace along the right and bottom
border.

With rotations it sees every image at all four quarter turns. Keypoints are then where the mean of the four score maps
has them, so they are the same however a photograph lies, and each is described as it looks at each turn.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import DetectionSettings, ViewSettings
from sekd_cli.coordinates import rescale_points
from sekd_cli.detection import detect_at_once, detect_places, keypoints_at
from sekd_cli.errors import ImageError, UsageError, short_of_memory
from sekd_cli.images import Photograph, to_stored
from sekd_cli.level_sizes import largest_size, level_sizes
from sekd_cli.networks import DenseMaps, DenseNetwork
from sekd_cli.networks.inference import dense_function
from sekd_cli.networks.precision import resolve_precision
from sekd_cli.patches import Patch, View, joined_views
from sekd_cli.pyramid import Level, LevelFeatures, PreparedImage, best_of_levels, join_levels, prepare
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.tiles import REACH, SMALLEST_TILE, Window, whole, windows

MOST_PIXELS_ALONE = 128 * 128  # up to which images go one by one: on AMX, oneDNN's sums of them depend on the batch
LEAST_COLUMNS = 2  # of the coarsest map: on AMX, oneDNN's convolution of stride 2 reads beyond a narrower one
APPLE_GPU = threading.Lock()  # torch crashes if several threads compute on one at once
TILE_PIXELS = {"compact": 4096, "published": 2048}  # edges for which a tile takes about 1 GB and 3 GB


class Extractor:
    """A network ready to extract features; holds no state between images."""

    def __init__(
        self,
        network: DenseNetwork,
        settings: DetectionSettings,
        *,
        device: torch.device,
        views: ViewSettings | None = None,
        tile: int | None = None,
        precision: str = "float32",
        images: int | None = None,
    ) -> None:
        """views: at what sizes and turns the network sees images. tile: edge in pixels above which an image is done in
        tiles, None for the network's own, 0 for never. precision: one of PRECISIONS. images: how many there will be,
        if that's known.

        Raises UsageError.
        """  # noqa: D205 - all arguments belong together
        tile = TILE_PIXELS[network.name] if tile is None else tile
        if tile and tile < SMALLEST_TILE:
            raise UsageError(f"--tile {tile}: give 0 (never) or at least {SMALLEST_TILE} pixels")
        self.stride = network.stride
        self.settings = settings.completed(threshold=network.default_threshold, nms_radius=network.default_nms_radius)
        self.views = (views or ViewSettings()).completed(scales=network.default_scales)
        self.device = device
        self.tile = tile
        self.precision = resolve_precision(precision, device, quantisable=network.quantisable)
        self._turns = range(4 if self.views.rotations else 1)
        self._waits_for_launches = device.type != "cpu"
        self._alone: AbstractContextManager[object] = APPLE_GPU if device.type == "mps" else nullcontext()
        with self._own_precision():
            self._network = dense_function(network, self.precision, device, images)

    def prepare(self, photograph: Photograph, mask: np.ndarray | None = None) -> PreparedImage:
        """See `prepare`; at this extractor's sizes."""
        return prepare(photograph, self.views, mask)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """For `read_image`: how many pixels of so many along each edge the network will see at most."""
        return largest_size(width, height, self.views)

    def padded_sizes(self, image: PreparedImage) -> tuple[tuple[int, int], ...]:
        """Height, width with which each level of an image goes through the network: only equal ones share a batch."""
        return tuple(self._padded(*level.grey.shape) for level in image.levels)

    def padded_sizes_of(self, width: int, height: int) -> tuple[tuple[int, int], ...]:
        """The `padded_sizes` of an image of so many pixels."""
        return tuple(self._padded(rows, columns) for columns, rows in level_sizes(width, height, self.views))

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (-(-extent // self.stride) for extent in (height, width))
        least_rows = LEAST_COLUMNS if self.views.rotations else 1  # which are columns once it is turned
        return max(rows, least_rows) * self.stride, max(columns, LEAST_COLUMNS) * self.stride

    def extract(self, images: Sequence[PreparedImage]) -> list[StoredFeatures]:
        """The features of images of equal `padded_sizes`, keypoints in the pixel grid of their files.

        An even image has none. Raises ImageError if the device's memory is too small for an only image; several are
        then tried one by one.
        """
        try:
            return self._extract(images)
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
                raise
            if len(images) == 1:
                message = f"too little memory on {self.device} for its size; give a smaller --tile or --max-size"
                raise ImageError(message) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [self.extract([image])[0] for image in images]

    def _own_precision(self) -> torch.autocast:
        """A context in which a caller's autocast changes nothing: layers would get types that they can't take."""
        return torch.autocast(self.device.type, enabled=False)

    @torch.inference_mode()
    def _extract(self, images: Sequence[PreparedImage]) -> list[StoredFeatures]:
        of_levels: list[list[_Found]] = []
        with self._alone, self._own_precision():
            for same in zip(*(image.levels for image in images), strict=True):
                tiled = self.tile and max(same[0].grey.shape) > self.tile
                of_levels.append([self._tiled(level) for level in same] if tiled else self._untiled(same))
            each = zip(images, zip(*of_levels, strict=True), strict=True)
            return [_in_file(image, self._joined(image, found)) for image, found in each]

    def _joined(self, image: PreparedImage, found: Sequence["_Found"]) -> LevelFeatures:
        """The best of all levels of an image; only these are described."""
        counts = best_of_levels([one.scores for one in found], self.settings.max_keypoints)
        return join_levels(
            [
                one.in_photograph(count, *image.scale(level))
                for one, count, level in zip(found, counts, image.levels, strict=True)
            ]
        )

    def _untiled(self, levels: Sequence[Level]) -> list["_Found"]:
        patches = self._patches(levels, [whole(*level.grey.shape) for level in levels])
        each = list(zip(levels, patches, strict=True))
        if self._waits_for_launches:
            return self._at_once(each)
        return [self._found(patch, level, self.settings) for level, patch in each]

    def _at_once(self, each: Sequence[tuple[Level, Patch]]) -> list["_Found"]:
        """The features of many images, brought to the CPU: a GPU takes as long for a batch of equal ones as for one."""
        found: dict[int, _Found] = {}
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (level, _) in enumerate(each):
            of_size[level.grey.shape].append(index)
        for indices in of_size.values():
            levels, patches = zip(*(each[index] for index in indices), strict=True)
            keypoints, scores = detect_at_once(
                torch.stack([patch.score_logits() for patch in patches]),
                self.settings,
                self._allowed(levels, patches[0].window),
                octaves=torch.tensor([level.octaves for level in levels]),
            )
            together = Patch(patches[0].window, joined_views([patch.views for patch in patches]))
            descriptors = together.describe(keypoints).cpu()  # (T, B, N, D)
            features = zip(keypoints.cpu(), scores.cpu(), descriptors.unbind(1), strict=True)
            for index, (places, values, described) in zip(indices, features, strict=True):
                there = int((values > 0).sum())
                found[index] = _Found(values[:there], _first(places), _first_of(described))
        return [found[index] for index in range(len(each))]

    def _allowed(self, levels: Sequence[Level], window: Window) -> Tensor | None:
        """Where keypoints may be in a window of levels of one size, (B, h, w) bool; None for everywhere.

        Not where masks say so, and nowhere in an even image: what its borders look like is no keypoint.
        """
        if all(level.mask is None and level.statistics[1] > 0 for level in levels):
            return None
        masks = [window.cut(np.ones_like(one.grey, bool) if one.mask is None else one.mask) for one in levels]
        even = np.array([level.statistics[1] == 0 for level in levels])
        return torch.from_numpy(np.stack(masks) & ~even[:, None, None]).to(self.device)

    def _tiled(self, level: Level) -> "_Found":
        everything = replace(self.settings, max_keypoints=0)
        limit = self.settings.max_keypoints or None
        best: _Described | None = None
        height, width = level.grey.shape
        for window in windows(height, width, self.tile // REACH * REACH):
            patch = self._patches([level], [window])[0]
            found = self._found(patch, level, everything)
            keypoints, scores = found.keypoints(len(found.scores)), found.scores
            own = window.owns(keypoints)
            keypoints, scores = keypoints[own][:limit], scores[own][:limit]
            tile = _Described(keypoints + window.origin(keypoints), scores, patch.describe(keypoints))
            best = tile if best is None else best.joined(tile, limit)
        assert best is not None, "an image has at least one tile"
        return _Found(best.scores, _first(best.keypoints), _first_of(best.descriptors))

    def _patches(self, levels: Sequence[Level], parts: Sequence[Window]) -> list[Patch]:
        """What the network says of a window of each level; all go through it together."""
        patches = [Patch(part, []) for part in parts]
        statistics = [level.statistics for level in levels]
        for turns in self._turns:
            seen = [
                part.for_turn(turns, level.grey.shape, self.stride) for level, part in zip(levels, parts, strict=True)
            ]
            pixels = [np.rot90(part.cut(level.grey), turns) for level, part in zip(levels, seen, strict=True)]
            maps = self._run(pixels, statistics)
            for index, (patch, part) in enumerate(zip(patches, seen, strict=True)):
                patch.views.append(View.of(maps, index, turns, part.bottom - part.top, part.right - part.left))
        return patches

    def _run(self, pixels: Sequence[np.ndarray], statistics: Sequence[tuple[float, float]]) -> DenseMaps:
        """The maps of grey uint8 images (H, W) that are padded to the same multiple of the stride."""
        padded = np.stack([self._pad(one) for one in pixels])
        batch = torch.from_numpy(padded).to(self.device)[:, None].contiguous(memory_format=torch.channels_last)
        of_each = torch.tensor(statistics, dtype=torch.float32, device=self.device)
        if self.device.type == "cpu" and padded[0].size <= MOST_PIXELS_ALONE:
            return DenseMaps.joined([self._network(batch[i : i + 1], of_each[i : i + 1]) for i in range(len(batch))])
        return self._network(batch, of_each)

    def _pad(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape
        rows, columns = self._padded(height, width)
        below, right = rows - height, columns - width
        if not below and not right:
            return pixels
        return np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE))  # np.pad takes 0.3 ms

    def _found(self, patch: Patch, level: Level, settings: DetectionSettings) -> "_Found":
        """The keypoints of a window, in its pixels; they are refined when they are asked for."""
        logits, allowed = patch.score_logits(), self._allowed([level], patch.window)
        mask = None if allowed is None else allowed[0]
        places, scores = detect_places(logits, settings, mask, octaves=level.octaves)
        return _Found(scores, lambda count: keypoints_at(places[:count], logits, settings), patch.describe)


def _first(keypoints: Tensor) -> Callable[[int], Tensor]:
    """`_Found.keypoints` of keypoints (N, 2) that are refined already."""
    return lambda count: keypoints[:count]


def _first_of(descriptors: Tensor) -> Callable[[Tensor], Tensor]:
    """`_Found.describe` of keypoints whose descriptors (T, N, D) are there already."""
    return lambda keypoints: descriptors[:, : len(keypoints)]


class _Described(NamedTuple):
    """Features in the pixels of a level, on the device, best first."""

    keypoints: Tensor  # (N, 2)
    scores: Tensor  # (N,)
    descriptors: Tensor  # (T, N, D)

    def joined(self, other: "_Described", limit: int | None) -> "_Described":
        """The best of both."""
        scores, order = torch.cat((self.scores, other.scores)).sort(descending=True, stable=True)
        order = order[:limit]
        keypoints = torch.cat((self.keypoints, other.keypoints))[order]
        return _Described(keypoints, scores[:limit], torch.cat((self.descriptors, other.descriptors), dim=1)[:, order])


class _Found(NamedTuple):
    """The scores of keypoints of a level, on the device, best first, and how to have the best of them."""

    scores: Tensor  # (N,)
    keypoints: Callable[[int], Tensor]  # the first n of them in pixels of the level, (n, 2)
    describe: Callable[[Tensor], Tensor]  # the first n of them, (n, 2) -> (T, n, D)

    def in_photograph(self, count: int, scale_x: float, scale_y: float) -> LevelFeatures:
        """The first `count` as features on the CPU, keypoints taken back to the upright photograph."""
        keypoints, scores = self.keypoints(count), self.scores[:count]
        back = torch.tensor((1 / scale_x, 1 / scale_y), dtype=torch.float64)
        return LevelFeatures(
            keypoints=rescale_points(keypoints.cpu().double(), back),
            scores=scores.float().cpu(),
            descriptors=self.describe(keypoints).float().cpu(),
            scales=torch.full((count,), (scale_x * scale_y) ** -0.5, dtype=torch.float64),
        )


def _in_file(image: PreparedImage, features: LevelFeatures) -> StoredFeatures:
    """Features in the pixel grid of the file; those whose keypoints landed in the mask left out."""
    if image.full_mask is not None:
        x, y = features.keypoints.round().long().numpy().T
        features = features.only(torch.from_numpy(image.full_mask[y, x]))
    stored = to_stored(features.keypoints.numpy(), image.orientation, image.stored_size)
    descriptors = features.descriptors.numpy()
    return StoredFeatures(
        keypoints=stored.astype(np.float32),
        scores=features.scores.numpy(),
        descriptors=descriptors[0],
        image_size=image.stored_size,
        scales=features.scales.float().numpy(),
        turned=descriptors[1:] if len(descriptors) > 1 else None,
    )
