"""Matching pairs of images: descriptors made comparable, mutual nearest neighbours, geometric verification."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.errors import DeviceError, ImageError
from sekd_cli.guided_matching import match_guided
from sekd_cli.match_file import fingerprint
from sekd_cli.matching import NO_MATCH, match_batch, match_descriptors
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import Camera, refit_homography, verify

OUT_OF_MEMORY = "the device ran out of memory; give --device cpu, or extract fewer keypoints"


@dataclass(frozen=True, kw_only=True)
class MatchableImage:
    """The features of one image, ready to be matched."""

    name: str
    keypoints: np.ndarray  # (N, 2) float32, pixels
    descriptors: Tensor  # (N, D) float32 on the device, rows of unit length
    fingerprint: int
    turned: Tensor | None = None  # (3, N, D) likewise, of the image turned by 1, 2 and 3 quarters
    camera: Camera | None = None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        turned = 0 if self.turned is None else self.turned.nbytes
        return self.keypoints.nbytes + self.descriptors.nbytes + turned

    def at_turns(self, settings: MatchingSettings) -> list[Tensor]:
        """The descriptors (N, D) to be tried: at one turn, or at all. Raises ImageError if there is only one."""
        if not settings.rotations:
            return [self.descriptors]
        if self.turned is None:
            raise ImageError(f"{self.name}: no descriptors of it turned; extract it with --rotations")
        return [self.descriptors, *self.turned]


def matchable_image(
    name: str, features: StoredFeatures, device: torch.device | str = "cpu", camera: Camera | None = None
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
    )


def comparable(descriptors: Tensor) -> Tensor:
    """Descriptors (..., D) as float32 rows of unit length; other tools' need be neither that nor finite."""
    return F.normalize(descriptors.float().nan_to_num(0.0, 0.0, 0.0), dim=-1)


def match_images(
    image0: MatchableImage,
    image1: MatchableImage,
    settings: MatchingSettings,
    verification: VerificationSettings | None = None,
) -> StoredMatches:
    """The matches of one pair, verified if asked for; with `settings.rotations` those of the best turn.

    Raises ImageError if the descriptors can't be compared, DeviceError if the device has not enough memory.
    """
    candidates = _candidates(image0, image1, settings)
    try:
        found = [match_descriptors(*one, settings) for one in candidates]
    except torch.OutOfMemoryError as error:
        raise DeviceError(OUT_OF_MEMORY) from error
    return _best_turn(found, candidates, (image0, image1), settings, verification)


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
    try:
        found = iter(_match_by_width([one for several in candidates for one in several], settings))
    except torch.OutOfMemoryError as error:
        raise DeviceError(OUT_OF_MEMORY) from error
    return [
        failures[index]
        if index in failures
        else _best_turn([next(found) for _ in several], several, pairs[index], settings, verification)
        for index, several in enumerate(candidates)
    ]


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
    width0, width1 = image0.descriptors.shape[1], image1.descriptors.shape[1]
    if width0 != width1 and len(image0.descriptors) and len(image1.descriptors):
        raise ImageError(f"descriptors of {width0} and of {width1} values; extract both with the same weights")
    return [(image0.descriptors, descriptors1) for descriptors1 in image1.at_turns(settings)]


def _best_turn(
    found: Sequence[tuple[Tensor, Tensor]],
    candidates: Sequence[tuple[Tensor, Tensor]],
    images: tuple[MatchableImage, MatchableImage],
    settings: MatchingSettings,
    verification: VerificationSettings | None,
) -> StoredMatches:
    """Of the matches of candidates at each turn the most, or the most verified; of equally many the more alike."""
    at_turns = [
        StoredMatches(matches0=one.cpu().numpy().astype(np.int32), scores0=scores.cpu().numpy())
        for one, scores in found
    ]
    if verification is not None:
        at_turns = [
            _verified(one, images, descriptors, settings, verification)
            for one, descriptors in zip(at_turns, candidates, strict=True)
        ]
    if len(at_turns) == 1:
        return at_turns[0]
    turn = max(range(len(at_turns)), key=lambda turn: (len(at_turns[turn].indices()), at_turns[turn].scores0.sum()))
    return replace(at_turns[turn], turn=turn)


def _verified(
    matches: StoredMatches,
    images: tuple[MatchableImage, MatchableImage],
    descriptors: tuple[Tensor, Tensor],
    settings: MatchingSettings,
    verification: VerificationSettings,
) -> StoredMatches:
    """The matches that agree on a model, and those that a homography leads to; none where there is no model."""
    xy0, xy1 = (image.keypoints for image in images)
    pairs = matches.indices()
    scores = matches.scores0[pairs[:, 0]]
    cameras = (images[0].camera, images[1].camera) if images[0].camera and images[1].camera else None
    inliers, model = verify(xy0[pairs[:, 0]], xy1[pairs[:, 1]], verification, cameras, scores)
    agreed, scores = pairs[inliers], scores[inliers]
    if model is not None and verification.model == "homography":
        more = match_guided(
            (xy0, xy1), descriptors, pairs, inliers, model, threshold=verification.threshold, settings=settings
        )
        everything = np.concatenate((agreed, more.pairs))
        model, near = refit_homography(model, xy0[everything[:, 0]], xy1[everything[:, 1]], verification.threshold)
        near[len(agreed) :] &= more.supported
        agreed, scores = everything[near], np.concatenate((scores, more.scores))[near]
    kept = StoredMatches(
        matches0=np.full_like(matches.matches0, NO_MATCH),
        scores0=np.zeros_like(matches.scores0),
        model_name=None if model is None else verification.model,
        model=model,
    )
    kept.matches0[agreed[:, 0]], kept.scores0[agreed[:, 0]] = agreed[:, 1], scores
    return kept
