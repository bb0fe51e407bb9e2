"""Matching pairs of images: descriptors made comparable, mutual nearest neighbours, geometric verification."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.errors import DeviceError, ImageError
from sekd_cli.guided_matching import match_guided
from sekd_cli.match_file import fingerprint
from sekd_cli.matching import NO_MATCH, match_batch, match_descriptors
from sekd_cli.model_fitting import refit_homography
from sekd_cli.patch_alignment import FARTHEST, led
from sekd_cli.seen_pixels import SeenPixels, align_matches
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import Camera, refit, verify


@dataclass(frozen=True, kw_only=True)
class MatchableImage:
    """The features of one image, ready to be matched."""

    name: str
    keypoints: np.ndarray  # (N, 2) float32, pixels
    descriptors: Tensor  # (N, D) float32 on the device, rows of unit length
    fingerprint: int
    turned: Tensor | None = None  # (3, N, D) likewise, of the image turned by 1, 2 and 3 quarters
    camera: Camera | None = None
    pixels: Callable[[], SeenPixels] | None = None  # by which verified matches are aligned; may raise ImageError

    @property
    def size(self) -> int:
        """Bytes in memory, but for pixels."""
        turned = 0 if self.turned is None else self.turned.nbytes
        return self.keypoints.nbytes + self.descriptors.nbytes + turned

    def at_turn(self, turn: int) -> Tensor:
        """The descriptors (N, D) of the image turned by so many quarters. Raises ImageError if there are none."""
        if turn == 0:
            return self.descriptors
        if self.turned is None:
            raise ImageError(f"{self.name}: no descriptors of it turned; extract it with --rotations")
        return self.turned[turn - 1]


def matchable_image(
    name: str,
    features: StoredFeatures,
    device: torch.device | str = "cpu",
    camera: Camera | None = None,
    pixels: Callable[[], SeenPixels] | None = None,
) -> MatchableImage:
    """Features as stored, made ready."""

    def ready(descriptors: np.ndarray) -> Tensor:
        return comparable(torch.from_numpy(descriptors).to(device))

    return MatchableImage(
        name=name,
        keypoints=features.keypoints,
        descriptors=ready(features.descriptors),
        fingerprint=fingerprint(features),
        turned=None if features.turned is None else ready(features.turned),
        camera=camera,
        pixels=pixels,
    )


def comparable(descriptors: Tensor) -> Tensor:
    """Descriptors (..., D) as float32 rows of unit length; other tools' need be neither that nor finite."""
    return F.normalize(descriptors.float().nan_to_num(0.0, 0.0, 0.0), dim=-1)


@contextmanager
def _memory_told() -> Iterator[None]:
    """Raise DeviceError where the device's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device ran out of memory; give --device cpu, or extract fewer keypoints") from error


@_memory_told()
def match_images(
    image0: MatchableImage,
    image1: MatchableImage,
    settings: MatchingSettings,
    verification: VerificationSettings | None = None,
) -> StoredMatches:
    """The matches of one pair, verified if asked for; with `settings.rotations` those of the best turn.

    Verified ones are aligned where the images' pixels are there. Raises ImageError if the descriptors can't be
    compared, or pixels not be read, DeviceError if the device has not enough memory.
    """
    found = [match_descriptors(*one, settings) for one in _candidates(image0, image1, settings)]
    return _best_turn(found, (image0, image1), settings, verification)


@_memory_told()
def match_together(
    pairs: Sequence[tuple[MatchableImage, MatchableImage]],
    settings: MatchingSettings,
    verification: VerificationSettings | None,
) -> list[StoredMatches | ImageError]:
    """What `match_images` gives, or raises, for each of several pairs: on a GPU faster than one by one.

    Raises DeviceError if the device has not enough memory.
    """
    failures: dict[int, ImageError] = {}
    candidates: list[list[tuple[Tensor, Tensor]]] = []
    for index, (image0, image1) in enumerate(pairs):
        try:
            candidates.append(_candidates(image0, image1, settings))
        except ImageError as error:
            candidates.append([])
            failures[index] = error
    found = iter(_match_by_width([one for several in candidates for one in several], settings))
    matches: list[StoredMatches | ImageError] = []
    for index, several in enumerate(candidates):
        at_turns = [next(found) for _ in several]
        try:
            matches.append(failures.get(index) or _best_turn(at_turns, pairs[index], settings, verification))
        except ImageError as error:
            matches.append(error)
    return matches


def _match_by_width(
    candidates: Sequence[tuple[Tensor, Tensor]], settings: MatchingSettings
) -> list[tuple[Tensor, Tensor]]:
    """`match_batch` of those whose descriptors have the same number of values, in the order given."""
    by_width: dict[tuple[int, int], list[int]] = {}
    for index, (one, other) in enumerate(candidates):
        by_width.setdefault((one.shape[1], other.shape[1]), []).append(index)
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for (width0, width1), same in by_width.items():
        if width0 == width1:
            results.update(zip(same, match_batch([candidates[index] for index in same], settings), strict=True))
        else:  # one of the two is empty
            results.update((index, match_descriptors(*candidates[index], settings)) for index in same)
    return [results[index] for index in range(len(candidates))]


def _candidates(
    image0: MatchableImage, image1: MatchableImage, settings: MatchingSettings
) -> list[tuple[Tensor, Tensor]]:
    """The descriptors to be matched, at each turn of the second image. Raises ImageError if they can't be compared."""
    return [_descriptors((image0, image1), turn) for turn in (range(4) if settings.rotations else (0,))]


def _descriptors(images: tuple[MatchableImage, MatchableImage], turn: int) -> tuple[Tensor, Tensor]:
    own = images[0].descriptors, images[1].at_turn(turn)
    width0, width1 = (one.shape[1] for one in own)
    if width0 != width1 and all(map(len, own)):
        raise ImageError(f"descriptors of {width0} and of {width1} values; extract both with the same weights")
    return own


def _best_turn(
    found: Sequence[tuple[Tensor, Tensor]],
    images: tuple[MatchableImage, MatchableImage],
    settings: MatchingSettings,
    verification: VerificationSettings | None,
) -> StoredMatches:
    """Of the matches at each turn the most, or the most that are verified; of equally many the more alike."""
    at_turns = [
        StoredMatches(
            matches0=matches0.cpu().numpy().astype(np.int32),
            scores0=scores0.cpu().numpy(),
            turn=turn if settings.rotations else None,
        )
        for turn, (matches0, scores0) in enumerate(found)
    ]
    if verification is not None:
        at_turns = [verified(one, images, settings, verification) for one in at_turns]
    best = max(at_turns, key=lambda one: (len(one.indices()), one.scores0.sum()))
    return best if verification is None else _aligned(best, images, settings, verification)


def verified(
    matches: StoredMatches,
    images: tuple[MatchableImage, MatchableImage],
    settings: MatchingSettings,
    verification: VerificationSettings,
) -> StoredMatches:
    """The matches that agree on a model, and those that a homography leads to; none where there is no model.

    settings: by which these are matched. Raises ImageError if their descriptors can't be compared.
    """
    xy0, xy1 = (image.keypoints for image in images)
    pairs = matches.indices()
    scores = matches.scores0[pairs[:, 0]]
    inliers, model = verify(xy0[pairs[:, 0]], xy1[pairs[:, 1]], verification, _cameras(images), scores)
    agreed, scores = pairs[inliers], scores[inliers]
    if model is not None and verification.model == "homography" and inliers.any():
        more = match_guided(
            (xy0, xy1),
            _descriptors(images, matches.turn or 0),
            pairs,
            inliers,
            cv2.perspectiveTransform(xy0[None].astype(np.float64), model)[0],
            threshold=verification.threshold,
            settings=settings,
        )
        everything = np.concatenate((agreed, more.pairs))
        fitted, near = refit_homography(model, xy0[everything[:, 0]], xy1[everything[:, 1]], verification.threshold)
        near[len(agreed) :] &= more.supported
        if near.sum() >= verification.min_inliers:  # else what is near by chance drew it away
            model, agreed, scores = fitted, everything[near], np.concatenate((scores, more.scores))[near]
    kept = _only(matches, agreed, scores)
    return replace(kept, model_name=None if model is None else verification.model, model=model)


def _only(matches: StoredMatches, pairs: np.ndarray, scores: np.ndarray) -> StoredMatches:
    """With no other matches than the pairs (M, 2) of keypoints, and their scores (M,)."""
    kept = replace(matches, matches0=np.full_like(matches.matches0, NO_MATCH), scores0=np.zeros_like(matches.scores0))
    kept.matches0[pairs[:, 0]], kept.scores0[pairs[:, 0]] = pairs[:, 1], scores
    return kept


def _aligned(
    matches: StoredMatches,
    images: tuple[MatchableImage, MatchableImage],
    settings: MatchingSettings,
    verification: VerificationSettings,
) -> StoredMatches:
    """Verified matches aligned by both images' pixels, if these are there, and the model fitted to them.

    What `Alignment.kept` doesn't keep is left out; what those that it does lead to and can be aligned is added.
    """
    pairs = matches.indices()
    if images[0].pixels is None or images[1].pixels is None or matches.model is None or not len(pairs):
        return matches
    pixels, (xy0, xy1) = (images[0].pixels(), images[1].pixels()), (image.keypoints for image in images)
    found = align_matches(pixels, xy0[pairs[:, 0]], xy1[pairs[:, 1]])
    kept = found.kept()
    pairs, found = pairs[kept], found.only(kept)
    there, affines = led(xy0, xy0[pairs[:, 0]], xy1[pairs[:, 1]] + found.offsets, found.affines)
    more = match_guided(
        (xy0, xy1),
        _descriptors(images, matches.turn or 0),
        pairs,
        np.ones(len(pairs), dtype=bool),
        there,
        threshold=FARTHEST / float(pixels[1].scale.min()),
        settings=settings,
    )
    new = align_matches(pixels, xy0[more.pairs[:, 0]], xy1[more.pairs[:, 1]], affines[more.pairs[:, 0]])
    fits = new.correlations > 0
    scores = np.concatenate((matches.scores0[pairs[:, 0]], more.scores[fits]))
    pairs = np.concatenate((pairs, more.pairs[fits]))
    order = np.argsort(pairs[:, 0])
    pairs, scores, found = pairs[order], scores[order], found.joined(new.only(fits)).only(order)
    places = xy1[pairs[:, 1]] + found.offsets
    model, inliers = refit(matches.model, xy0[pairs[:, 0]], places, verification, _cameras(images))
    if inliers.sum() < verification.min_inliers:
        return matches
    return replace(_only(matches, pairs[inliers], scores[inliers]), model=model, alignment=found.only(inliers))


def _cameras(images: tuple[MatchableImage, MatchableImage]) -> tuple[Camera, Camera] | None:
    return (images[0].camera, images[1].camera) if images[0].camera and images[1].camera else None
