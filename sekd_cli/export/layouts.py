"""The layouts of the IMC benchmark and of Kaggle's baselines: a folder of flat files, each with a key an image.

`keypoints.h5` (N, 2), `descriptors.h5` (N, D), `scores.h5` (N,) and `scales.h5` (N,), float32; `matches.h5` int32. The
IMC benchmark (Jin et al., IJCV 2021) takes the file name without its extension as key, and matches (2, M) under `A-B`,
A > B as strings; Kaggle's baselines take the file name with its extension, and matches (M, 2) under `A/B`.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import h5py
import numpy as np

from sekd_cli.counting import counted
from sekd_cli.errors import UsageError
from sekd_cli.hdf5_file import create_hdf5
from sekd_cli.image_search import SUFFIXES
from sekd_cli.match_file import MatchReader, check_flat_names, flat_name
from sekd_cli.new_file import new_file, writing
from sekd_cli.pairs import Pair
from sekd_cli.stored_features import StoredFeatures

logger = logging.getLogger(__name__)

FLAT_LAYOUTS = ("imc", "kaggle")
FEATURE_FILES = ("keypoints", "descriptors", "scores", "scales")
IMC_MOST_KEYPOINTS = 8000  # of an image; its validator refuses more


class FeatureSource(Protocol):
    """Anything with features by name, such as a `FeatureReader`."""

    def names(self) -> list[str]:
        """Names of all images."""

    def read(self, name: str) -> StoredFeatures:
        """The features of one."""


class PairMatches(NamedTuple):
    """The matches of one pair of images."""

    pair: Pair
    indices: np.ndarray  # (M, 2) int64: keypoints of the first image and of the second


def key_of(name: str, layout: str) -> str:
    """The key of an image in a flat layout."""
    path = PurePosixPath(name)
    return path.stem if layout == "imc" and path.suffix.lower() in SUFFIXES else path.name  # `a.v2` may be a key


def keys_of(names: Iterable[str], layout: str) -> dict[str, str]:
    """Keys by name. Raises UsageError, naming both, if two images would have the same key."""
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(key_of(name, layout), name)
        if other != name:
            key = key_of(name, layout)
            raise UsageError(f"{other} and {name} would both be {key} in the {layout} layout; convert them separately")
    return {name: key for key, name in owners.items()}


@dataclass(frozen=True, kw_only=True)
class FlatOutput:
    """The files of a flat layout to be written; they appear when `outputs` closes, none of them if that is by an error.

    Its methods raise UsageError if keys collide, OutputError if a file exists (unless `overwrite`) or can't be written.
    """

    layout: str  # of FLAT_LAYOUTS
    folder: Path
    outputs: ExitStack
    overwrite: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the root of each file

    def write_features(self, source: FeatureSource) -> int:
        """Write all features; returns how many images."""
        keys = keys_of(source.names(), self.layout)
        with ExitStack() as stack:
            keypoints, descriptors, scores, scales = (stack.enter_context(self._new(kind)) for kind in FEATURE_FILES)
            for name, key in keys.items():
                features = source.read(name)
                if self.layout == "imc" and len(features) > IMC_MOST_KEYPOINTS:
                    logger.warning(
                        "%s: %d keypoints, the IMC benchmark takes %d", name, len(features), IMC_MOST_KEYPOINTS
                    )
                keypoints[key] = features.keypoints.astype(np.float32, copy=False)
                descriptors[key] = features.descriptors.astype(np.float32, copy=False)
                scores[key] = features.scores.astype(np.float32, copy=False)
                scale = np.ones(len(features)) if features.scales is None else features.scales
                scales[key] = scale.astype(np.float32, copy=False)
        return len(keys)

    def write_matches(self, matches: Iterable[PairMatches], names: Iterable[str]) -> int:
        """Write matches; returns the number of pairs. UsageError also if two pairs would have the same key.

        names: of all images in any pair, and of others whose keys shall not collide either. A pair that comes again,
        either way round, is left out.
        """
        keys = keys_of(names, self.layout)
        owners: dict[str, Pair] = {}
        with self._new("matches") as file:
            for (name0, name1), indices in matches:
                if not _take_place(owners, (name0, name1), keys, self.layout):
                    logger.warning("%s and %s: there twice, the second left out", name0, name1)
                    continue
                place, reverse = _place(keys[name0], keys[name1], self.layout)
                ordered = indices[:, ::-1] if reverse else indices
                outer, _, inner = place.rpartition("/")
                group = file.require_group(outer or "/")  # one that HDF5 makes on its way to a dataset has a time
                group[inner] = (ordered.T if self.layout == "imc" else ordered).astype(np.int32)
        count = len(owners)
        if self.layout == "imc" and count < len(keys) * (len(keys) - 1) // 2:
            here = f"{counted(count, 'pair')} of {counted(len(keys), 'image')}"
            logger.warning("%s: the IMC benchmark's validator asks for all pairs", here)
        return count

    def write_stored_matches(self, matches: MatchReader, names: Sequence[str]) -> int:
        """`write_matches` of a match file in hloc's layout; `names` are those in the feature file, if there is one."""
        pairs = list(named_pairs(matches, names))
        involved = {*names, *(name for pair in pairs for name in pair)}
        return self.write_matches((PairMatches(pair, matches.read(pair).indices()) for pair in pairs), involved)

    @contextmanager
    def _new(self, kind: str) -> Iterator[h5py.File]:
        """The file of this kind, open while the block runs."""
        path = self.folder / f"{kind}.h5"
        part = self.outputs.enter_context(new_file(path, overwrite=self.overwrite))
        with writing(path), create_hdf5(part, self.attributes) as file:  # of `outputs` the last file would be named
            yield file


def _place(key0: str, key1: str, layout: str) -> tuple[str, bool]:
    """Where a pair's matches go, and whether they go the other way round."""
    if layout == "imc":
        return f"{max(key0, key1)}-{min(key0, key1)}", key0 < key1
    return f"{key0}/{key1}", False


def check_pairs(pairs: Iterable[Pair], keys: Mapping[str, str], layout: str) -> None:
    """Raise UsageError, naming both, if two pairs would have the same key; those of other images are passed over."""
    owners: dict[str, Pair] = {}
    for pair in pairs:
        if pair[0] in keys and pair[1] in keys:
            _take_place(owners, pair, keys, layout)


def _take_place(owners: dict[str, Pair], pair: Pair, keys: Mapping[str, str], layout: str) -> bool:
    """Put a pair among the owners of places; False if it is there, either way round. UsageError if another is."""
    place, turned = (_place(keys[first], keys[second], layout)[0] for first, second in (pair, pair[::-1]))
    other = owners.get(place) or owners.get(turned)
    if other is not None and set(other) != set(pair):
        both = f"{other[0]} and {other[1]}, {pair[0]} and {pair[1]}"
        raise UsageError(f"{both} would both be {place} in the {layout} layout; convert them separately")
    if other is not None:
        return False
    owners[place] = pair
    return True


def named_pairs(matches: MatchReader, names: Iterable[str]) -> Iterator[Pair]:
    """All pairs of a match file under the names that images have in a feature file.

    Files of other tools know only flat names, in which `/` became `-`. Raises UsageError where two of `names` are the
    same then.
    """
    if matches.attributes.get("sekd_schema") is not None:
        yield from matches.pairs()
        return
    names = list(names)
    check_flat_names(names)
    known = {flat_name(name): name for name in names}
    for first, second in matches.pairs():
        yield known.get(flat_name(first), first), known.get(flat_name(second), second)
