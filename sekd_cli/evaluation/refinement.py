"""`--refine` of the evaluations: matches aligned by the photographs' pixels, as `sekd match --refine` does it."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sekd_cli.adjustment import adjust, in_parts, links_of
from sekd_cli.config import MatchingSettings
from sekd_cli.errors import ImageError, InputFileError
from sekd_cli.evaluation.methods import LocalFeatures, Method
from sekd_cli.pair_matching import MatchableImage, comparable, match_images
from sekd_cli.seen_pixels import SeenPixels
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import verification_settings


def matched_points(
    method: Method,
    features: tuple[LocalFeatures, LocalFeatures],
    pixels: tuple[SeenPixels, SeenPixels] | None,
    model: str,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Places (M, 2) of a pair's matches in both images: the method's own, or `refined_matches` if there are pixels."""
    first, second = features
    if pixels is None:
        found = method.match(first, second)
        places = second.keypoints[found[:, 1]]
    else:
        found, places = refined_matches(features, pixels, model, label=method.label)
    return first.keypoints[found[:, 0]], places


def refined_matches(
    features: tuple[LocalFeatures, LocalFeatures], pixels: tuple[SeenPixels, SeenPixels], model: str, *, label: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Matches (M, 2) of a pair and their places (M, 2) in the second image.

    As `match --verify MODEL --refine` gives them. Raises InputFileError with the label of the method that they are of
    if their descriptors can't be compared.
    """
    image0, image1 = map(_matchable, features, pixels)
    found = _matches(image0, image1, model, label)
    indices = found.indices()
    places = image1.keypoints[indices[:, 1]]
    return indices, places if found.alignment is None else places + found.alignment.offsets


def refine_scene(
    features: dict[str, LocalFeatures], pixels: dict[str, SeenPixels], *, label: str
) -> tuple[dict[str, NDArray[np.float32]], dict[tuple[str, str], NDArray[np.int64]]]:
    """Keypoints (N, 2) of each image and matches (M, 2) of all pairs.

    As `match --verify fundamental --refine` and `refine` leave them. Raises as `refined_matches`.
    """
    images = {name: _matchable(found, pixels[name]) for name, found in features.items()}
    starts = dict(zip(images, np.cumsum([0, *map(len, features.values())]), strict=False))
    units = {name: float(1 / one.scale.min()) for name, one in pixels.items()}  # pixels of the file a seen one
    links, matches = [], {}
    for name0, name1 in combinations(images, 2):
        found = _matches(images[name0], images[name1], "fundamental", label)
        matches[name0, name1] = found.indices()
        if found.alignment is not None:
            of_both = (starts[name0], starts[name1]), (units[name0], units[name1])
            links.append(links_of(found.alignment, found.indices(), *of_both))
    count = sum(map(len, features.values()))
    moves = adjust(list(in_parts(links)), count)
    ends = pairwise((*starts.values(), len(moves)))
    places = {
        name: (image.keypoints + moves[start:end] * units[name]).astype(np.float32)
        for (name, image), (start, end) in zip(images.items(), ends, strict=True)
    }
    return places, matches


def _matches(image0: MatchableImage, image1: MatchableImage, model: str, label: str) -> StoredMatches:
    try:
        return match_images(image0, image1, MatchingSettings(), verification_settings(model))
    except ImageError as error:
        raise InputFileError(f"{label}: {error}") from error


def _matchable(features: LocalFeatures, pixels: SeenPixels) -> MatchableImage:
    return MatchableImage(
        name="",
        keypoints=features.keypoints,
        descriptors=comparable(torch.from_numpy(_as_vectors(features.descriptors))),
        fingerprint=0,
        pixels=lambda: pixels,
    )


def _as_vectors(descriptors: NDArray[Any]) -> NDArray[Any]:
    """Of binary descriptors vectors whose cosines fall with the bits that differ; others as they are."""
    if descriptors.dtype != np.uint8:
        return descriptors
    return 2 * np.unpackbits(descriptors, axis=1).astype(np.float32) - 1
