"""Matches on disk: one HDF5 file in hloc's layout, a group for the first image of a pair, in it one for the second.

Groups are named by the images' names with `/` replaced by `-`. A pair's group holds `matches0` (N0,) int32, the match
of each keypoint of the first image or -1, and `matching_scores0` (N0,) float32; where the pair was verified and a model
found, also that, (3, 3) float64, under its name (`homography`, `fundamental`, `essential`). Attributes: `names`, both
with a tab between them; `features`, fingerprints of what was matched; where rotations were tried `turn`, by how many
quarters counter-clockwise the second image is to be turned to lie as the first; `complete`, written last. hloc's files,
which have no attributes, are read as well.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from sekd_cli import __version__
from sekd_cli.errors import InputFileError, OutputError, UsageError
from sekd_cli.feature_file import SCHEMA, FeatureReader
from sekd_cli.hdf5_file import (
    HDF5Writer,
    check_arrays,
    check_name,
    member,
    open_for_reading,
    plain_attributes,
    watching_for_damage,
    write_arrays,
)
from sekd_cli.pairs import Pair
from sekd_cli.stored_features import MAXIMUM_VALUES, StoredFeatures

MODELS = ("homography", "fundamental", "essential")


@dataclass(frozen=True, kw_only=True)
class StoredMatches:
    """The matches of one pair of images."""

    matches0: np.ndarray  # (N0,) int32, each keypoint's match in the second image, -1 for none
    scores0: np.ndarray  # (N0,) float32, 0 for none
    model_name: str | None = None  # of MODELS, where one was fitted; then matches0 holds its inliers alone
    model: np.ndarray | None = None  # (3, 3) float64; see `verification.verify` for its meaning
    turn: int | None = None  # of the four that were tried: the second image turned by so many quarters fits best

    def indices(self) -> np.ndarray:
        """(M, 2) int64: keypoints of the first image, in order, and of the second."""
        first = np.flatnonzero(self.matches0 >= 0)
        return np.stack((first, self.matches0[first].astype(np.int64)), axis=1)

    def reversed(self, count1: int) -> "StoredMatches":
        """The same matches seen from the second image, which has `count1` keypoints."""
        pairs = self.indices()
        matches, scores = np.full(count1, -1, dtype=np.int32), np.zeros(count1, dtype=np.float32)
        matches[pairs[:, 1]], scores[pairs[:, 1]] = pairs[:, 0], self.scores0[pairs[:, 0]]
        model = self.model
        if model is not None:
            model = np.linalg.inv(model) if self.model_name == "homography" else model.T
        turn = None if self.turn is None else -self.turn % 4
        return StoredMatches(matches0=matches, scores0=scores, model_name=self.model_name, model=model, turn=turn)


def flat_name(name: str) -> str:
    """An image's name as hloc names groups in match files."""
    return name.replace("/", "-")


def _place(pair: Sequence[str]) -> str:
    return f"{flat_name(pair[0])}/{flat_name(pair[1])}"


def check_flat_names(names: Iterable[str]) -> None:
    """Raise UsageError if two images would share a group (`a/b.jpg` and `a-b.jpg`)."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(flat_name(name), name)
        if other != name:
            raise UsageError(f"{other} and {name} would both be named {flat_name(name)} in a match file; rename one")


def fingerprint(features: StoredFeatures) -> int:
    """By what changed features are noticed: a checksum of keypoints and descriptors."""
    keypoints, descriptors = (np.ascontiguousarray(one).data for one in (features.keypoints, features.descriptors))
    return zlib.crc32(descriptors, zlib.crc32(keypoints))


def match_attributes(features: FeatureReader, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The root attributes of a match file: who made it, of which features, how."""
    made_by = {name: features.attributes.get(name) for name in ("network", "weights_sha256", "settings")}
    return {
        "sekd_schema": SCHEMA,
        "sekd_version": __version__,
        "content": "matches",
        "features": json.dumps({name: value for name, value in made_by.items() if value is not None}, sort_keys=True),
        "settings": json.dumps(dict(settings), sort_keys=True),
    }


class MatchWriter:
    """Adds the matches of pairs to a file; durable after `commit`. One writer a file. Goes on where one stopped."""

    def __init__(self, path: Path, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open `path` to go on with it, or create it with the root `attributes` (see `match_attributes`).

        Raises OutputError if it can't be written, another process writes it, or it was made of features or with
        settings other than these; `overwrite` starts afresh instead of the last.
        """
        self.path = path
        self._writer = HDF5Writer(path, attributes, overwrite=overwrite)
        try:
            with self._reading():
                differences = _differences(self._writer.file, attributes)
            if differences:
                if len(self._writer.file):
                    raise OutputError(
                        f"{path}: holds matches made otherwise ({'; '.join(differences)}); "
                        "give the same again to go on, --overwrite to start afresh, or another output with -o"
                    )
                self._writer.close()
                self._writer = HDF5Writer(path, attributes, overwrite=True)
            self._empty = not len(self._writer.file)
        except BaseException:
            self._writer.close()
            raise

    def is_complete(self, pair: Pair, fingerprints: tuple[int, int]) -> bool:
        """Whether a pair is there, either way round, made of features with these fingerprints.

        Raises ChangedFeaturesError if it was made of others.
        """
        with self._reading():
            return not self._empty and self._is_complete(pair, fingerprints)

    def _is_complete(self, pair: Pair, fingerprints: tuple[int, int]) -> bool:
        for names, expected in ((pair, fingerprints), (pair[::-1], fingerprints[::-1])):
            group = member(self._writer.file, _place(names))
            if isinstance(group, h5py.Group) and group.attrs.get("complete", False):
                if tuple(group.attrs.get("features", ())) != expected or _names_of(group) != tuple(names):
                    raise ChangedFeaturesError(
                        f"{self.path}: the features of {names[0]} or {names[1]} changed since these were matched; "
                        "give --update to match such pairs again, --overwrite for all"
                    )
                return True
        return False

    def write(self, pair: Pair, matches: StoredMatches, fingerprints: tuple[int, int]) -> None:
        """Add the matches of one pair. Raises OutputError if the file can't be written."""
        file = self._writer.file
        try:
            for place in () if self._empty else (_place(pair), _place(pair[::-1])):
                if place in file:
                    del file[place]
            group = file.create_group(_place(pair))
            write_arrays(group, _arrays(matches))
            if matches.turn is not None:
                group.attrs["turn"] = matches.turn
            group.attrs["names"] = np.bytes_("\t".join(pair).encode())
            group.attrs["features"] = np.array(fingerprints, dtype=np.int64)
            group.attrs["complete"] = True
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._writer.failure(error) from error

    def commit(self) -> None:
        """Make everything written so far durable. Raises OutputError if the file can't be written."""
        self._writer.commit()

    def close(self) -> None:
        """Commit, close the file and let other writers in."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, value, traceback)

    def _reading(self) -> AbstractContextManager[None]:
        return watching_for_damage(self.path, "give --overwrite to start afresh", OutputError)


class ChangedFeaturesError(OutputError):
    """The features of a pair are no longer those that were matched."""


class MatchReader:
    """The matches in a file, of `sekd` or of another tool with hloc's layout."""

    def __init__(self, path: Path) -> None:
        """Raises InputFileError if the file is missing, damaged, not HDF5 or of a later version."""
        self.path = path
        self._file = open_for_reading(path, "matches")
        with self._reading():
            self.attributes: Mapping[str, Any] = plain_attributes(self._file)
        schema = self.attributes.get("sekd_schema")
        self._own = schema is not None
        if isinstance(schema, int) and schema > SCHEMA:
            self._file.close()
            raise InputFileError(f"{path}: written by a later sekd (schema {schema}, not {SCHEMA}); update sekd")

    def pairs(self) -> Iterator[Pair]:
        """The names of all complete pairs, in the order of the file; of other tools' files, the flat names."""
        with self._reading():
            for first in self._file:
                inner = member(self._file, first)
                for second in inner if isinstance(inner, h5py.Group) else ():
                    group = member(inner, second)
                    if isinstance(group, h5py.Group) and self._is_complete(group):
                        yield _names_of(group) or (first, second)

    def __contains__(self, pair: object) -> bool:
        with self._reading():
            return isinstance(pair, tuple) and (
                self._find((pair[0], pair[1])) is not None or self._find((pair[1], pair[0])) is not None
            )

    def read(self, pair: Pair, count1: int | None = None) -> StoredMatches:
        """The matches of one pair. One stored the other way round is turned where `count1`, the second image's number
        of keypoints, is given. Raises InputFileError if there are none, or they are damaged.
        """  # noqa: D205 - one sentence
        with self._reading():
            if (group := self._find(pair)) is not None:
                return self._read_group(group)
            if count1 is not None and (group := self._find((pair[1], pair[0]))) is not None:
                matches = self._read_group(group)
                if matches.matches0.max(initial=-1) >= count1:
                    raise InputFileError(f"{self.path}: {pair[1]} has only {count1} keypoints; give its own features")
                return matches.reversed(count1)
        raise InputFileError(f"{self.path}: no matches of {pair[0]} and {pair[1]}; run sekd match on them")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, pair: Pair) -> h5py.Group | None:
        group = member(self._file, _place(pair))
        if not isinstance(group, h5py.Group) or not self._is_complete(group):
            return None
        return group if (_names_of(group) or pair) == tuple(pair) else None  # else `a-b` asked for, `a/b` stored

    def _is_complete(self, group: h5py.Group) -> bool:
        if not isinstance(member(group, "matches0"), h5py.Dataset):
            return False
        return not self._own or bool(group.attrs.get("complete", False))

    def _read_group(self, group: h5py.Group) -> StoredMatches:
        arrays = {name: _read_array(group, name) for name in ("matches0", "matching_scores0", *MODELS) if name in group}
        check_arrays(group, arrays)
        matches0 = arrays["matches0"]
        scores0 = arrays.get("matching_scores0", np.ones(matches0.shape))
        if matches0.ndim != 1 or matches0.dtype.kind not in "iu" or scores0.shape != matches0.shape:
            raise ValueError(f"matches0 of {group.name} is no list of matches")
        name = next((name for name in MODELS if name in arrays), None)
        return StoredMatches(
            matches0=matches0.astype(np.int32),
            scores0=scores0.astype(np.float32),
            model_name=name,
            model=None if name is None else arrays[name].astype(np.float64).reshape(3, 3),
            turn=int(group.attrs["turn"]) if "turn" in group.attrs else None,
        )

    def _reading(self) -> AbstractContextManager[None]:
        return watching_for_damage(self.path, "match again")


def _arrays(matches: StoredMatches) -> dict[str, np.ndarray]:
    arrays = {
        "matches0": matches.matches0.astype(np.int32, copy=False),
        "matching_scores0": matches.scores0.astype(np.float32, copy=False),
    }
    if matches.model_name is not None and matches.model is not None:
        arrays[matches.model_name] = matches.model.astype(np.float64, copy=False)
    return arrays


def _read_array(group: h5py.Group, name: str) -> np.ndarray:
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iuf" or dataset.size > MAXIMUM_VALUES:
        raise ValueError(f"{name} of {group.name} is no array of numbers")
    return np.asarray(dataset[()])


def _names_of(group: h5py.Group) -> Pair | None:
    """Both names, None where there are none. Raises ValueError if they can't be."""
    stored = group.attrs.get("names")
    if stored is None:
        return None
    first, second = (stored if isinstance(stored, str) else bytes(stored).decode()).split("\t")
    for name in (first, second):
        check_name(name)
    return first, second


def _differences(file: h5py.File, attributes: Mapping[str, Any]) -> list[str]:
    """In words, where the attributes of a file are not those given; the version of sekd alone changes nothing."""
    stored = plain_attributes(file)
    if stored.get("content") != attributes["content"]:
        return ["not a match file of sekd"]
    found = [] if stored["sekd_schema"] == attributes["sekd_schema"] else ["another schema"]
    if stored.get("features") != attributes["features"]:
        found.append("of features of other weights or settings")
    old, new = (json.loads(str(one.get("settings", "{}"))) for one in (stored, attributes))
    return found + [
        f"{name} {old.get(name)} there, {new.get(name)} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
