"""`sekd refine`: a feature file whose keypoints agree with the aligned matches of a match file, as `adjust` moves them.

Rows stay what they were, so the matches stay true. Descriptors are those of the places where keypoints were found,
which are kept beside the new ones: by these is known which features were matched.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sekd_cli.adjustment import Links, adjust, in_parts, links_of
from sekd_cli.errors import NothingToDoError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.hdf5_file import create_hdf5, settings_in
from sekd_cli.level_sizes import finest_of, pixel_size
from sekd_cli.match_file import Identity, MatchReader
from sekd_cli.new_file import new_file, spare_inputs
from sekd_cli.pairs import Pair
from sekd_cli.stored_features import StoredFeatures, write_group

Tell = Callable[[str, int, int], None]
"""Told of what is done now ("read pairs"), how many are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What was done."""

    images: int
    keypoints: int
    moved: int
    links: int  # aligned matches
    median_move: float  # pixels as the network saw them, of those that moved; 0 where none did


class _Image(NamedTuple):
    """What of an image's features decides where they go."""

    start: int  # the number of its first keypoint
    pixel: float  # of the file's, one that the network saw
    features: Identity


def refine(features_path: Path, matches_path: Path, output: Path, *, overwrite: bool, tell: Tell) -> Refined:
    """Write the features with refined keypoints to a new file.

    Raises InputFileError if a file is damaged, the matches are not of these features, or none is aligned; OutputError
    if the output exists (unless `overwrite`) or can't be written.
    """
    spare_inputs([output], [features_path, matches_path])
    with FeatureReader(features_path) as features, MatchReader(matches_path) as matches:
        features.refuse_refined()
        images = _read_images(features, tell)
        links = _read_links(matches, images, tell)
        count = sum(image.features.keypoints for image in images.values())
        moves = adjust(links, count, lambda done, of: tell("solve rounds", done, of))
        with new_file(output, overwrite=overwrite) as temporary:
            _write(features, images, moves, temporary, tell)
    sizes = np.linalg.norm(moves, axis=1)
    moved = sizes[sizes > 0]
    return Refined(
        images=len(images),
        keypoints=count,
        moved=len(moved),
        links=sum(len(part.first) for part in links),
        median_move=float(np.median(moved)) if len(moved) else 0.0,
    )


def _read_images(features: FeatureReader, tell: Tell) -> dict[str, _Image]:
    images: dict[str, _Image] = {}
    start = 0
    names = features.some_names()
    for done, name in enumerate(names, start=1):
        found = features.read(name)
        images[name] = _Image(start, pixel_size(found.image_size, finest_of(found.scales)), Identity.of(found))
        start += len(found)
        tell("read images", done, len(names))
    return images


def _read_links(matches: MatchReader, images: dict[str, _Image], tell: Tell) -> list[Links]:
    """All aligned matches between these images. Raises NothingToDoError if there are none."""
    pairs = [pair for pair in matches.pairs() if pair[0] in images and pair[1] in images]
    links = list(in_parts(_each_pairs_links(matches, pairs, images, tell)))
    if not links:
        reason = "no aligned matches of these images; run sekd match --verify MODEL --refine --images FOLDER"
        if any(matches.read(pair).alignment is not None for pair in pairs):
            reason = "no match could be aligned; give --images of sekd match the photographs of these features"
        raise NothingToDoError(f"{matches.path}: {reason}")
    return links


def _each_pairs_links(
    matches: MatchReader, pairs: list[Pair], images: dict[str, _Image], tell: Tell
) -> Iterator[Links]:
    for done, pair in enumerate(pairs, start=1):
        image0, image1 = images[pair[0]], images[pair[1]]
        found = matches.read_of(pair, (image0.features, image1.features))
        if found.alignment is not None:
            starts, pixels = (image0.start, image1.start), (image0.pixel, image1.pixel)
            yield links_of(found.alignment, found.indices(), starts, pixels)
        tell("read pairs", done, len(pairs))


def _write(features: FeatureReader, images: dict[str, _Image], moves: np.ndarray, path: Path, tell: Tell) -> None:
    settings = settings_in(features.attributes)
    attributes = {**features.attributes, "settings": json.dumps({**settings, "refined": True}, sort_keys=True)}
    dtype = "float16" if settings.get("descriptor_dtype") == "float16" else "float32"
    with create_hdf5(path, attributes) as file:
        for done, (name, image) in enumerate(images.items(), start=1):
            found = features.read(name, turned=True)
            moved = _moved(found, moves[image.start : image.start + len(found)] * np.float32(image.pixel))
            write_group(file.create_group(name), moved, None, dtype)
            tell("write images", done, len(images))


def _moved(features: StoredFeatures, moves: np.ndarray) -> StoredFeatures:
    """With keypoints moved by (N, 2) pixels, none out of the image."""
    found = features.keypoints
    last = np.maximum(np.asarray(features.image_size, dtype=np.float32) - 1, found)
    return replace(features, keypoints=np.clip(found + moves, np.minimum(found, 0), last), found=found)
