"""Matches on disk: one HDF5 file in hloc's layout, a group for the first image of a pair, in it one for the second.

Groups are named by the images' names with `/` replaced by `-`. A pair's group holds its matches (see `stored_matches`).
Attributes: `names`, both with a tab between them; `features`, fingerprints of what was matched; `complete`, written
last. hloc's files, which have no attributes, are read as well.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sekd_cli import __version__
from sekd_cli.counting import counted
from sekd_cli.errors import InputFileError, OutputError, UsageError
from sekd_cli.feature_file import FeatureReader
from sekd_cli.hdf5_file import add_attribute, attribute, check_name, member, names_in, plain_attributes
from sekd_cli.kept_file import SCHEMA, KeptReader, KeptWriter, changed
from sekd_cli.pairs import Pair
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.stored_matches import StoredMatches, read_group, write_group


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
    """By what changed features are noticed: a checksum of keypoints, as they were found, and descriptors."""
    found = features.keypoints if features.found is None else features.found
    keypoints, descriptors = (np.ascontiguousarray(one).data for one in (found, features.descriptors))
    return zlib.crc32(descriptors, zlib.crc32(keypoints))


class Identity(NamedTuple):
    """What of an image's features must be as it was when they were matched."""

    fingerprint: int
    keypoints: int

    @classmethod
    def of(cls, features: StoredFeatures) -> "Identity":
        """That of these features."""
        return cls(fingerprint(features), len(features))


def match_attributes(features: FeatureReader, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The root attributes of a match file: who made it, of which features, how."""
    made_by = {name: features.attributes.get(name) for name in ("network", "weights_sha256", "settings")}
    return {
        "sekd_schema": SCHEMA,
        "sekd_version": __version__,
        "content": "matches",
        "features": json.dumps(
            {name: value for name, value in made_by.items() if value is not None},
            sort_keys=True,
            default=str,  # other tools' attributes may be of any kind
        ),
        "settings": json.dumps(dict(settings), sort_keys=True),
    }


class MatchWriter(KeptWriter):
    """Adds the matches of pairs to a file whose attributes are `match_attributes`; see `KeptWriter`."""

    called = "match file"

    def __init__(self, path: Path, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """See `KeptWriter`."""
        super().__init__(path, attributes, overwrite=overwrite)
        self.started = self._started()  # whether there are matches of before

    def is_complete(self, pair: Pair, fingerprints: tuple[int, int]) -> bool:
        """Whether a pair is there, either way round, made of features with these fingerprints.

        Raises ChangedFeaturesError if it was made of others.
        """
        if not self.started:
            return False
        with self._reading():
            for names, expected in ((pair, fingerprints), (pair[::-1], fingerprints[::-1])):
                group = member(self._writer.file, _place(names))
                if isinstance(group, h5py.Group) and attribute(group, "complete", False):
                    if tuple(attribute(group, "features", ())) != expected or _names_of(group) != tuple(names):
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
            for names in (pair, pair[::-1]) if self.started else ():
                if _place(names) in file:
                    del file[_place(names)]
                    if not len(file[flat_name(names[0])]):  # which would look like a pair half written
                        del file[flat_name(names[0])]
            group = file.create_group(_place(pair))
            write_group(group, matches)
            add_attribute(group, "names", np.bytes_("\t".join(pair).encode()))
            add_attribute(group, "features", np.array(fingerprints, dtype=np.int64))
            add_attribute(group, "complete", True)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._writer.failure(error) from error

    def _started(self) -> bool:
        return len(self._writer.file) > 0

    def _differences(self, attributes: Mapping[str, Any]) -> list[str]:
        stored = plain_attributes(self._writer.file)
        found = [] if stored["sekd_schema"] == attributes["sekd_schema"] else ["another schema"]
        if stored.get("features") != attributes["features"]:
            found.append("of features of other weights or settings")
        old, new = (json.loads(str(one.get("settings", "{}"))) for one in (stored, attributes))
        return found + changed(old, new)

    def _refusal(self, differences: str) -> str:
        return (
            f"holds matches made otherwise ({differences}); "
            "give the same again to go on, --overwrite to start afresh, or another output with -o"
        )


class ChangedFeaturesError(OutputError):
    """The features of a pair are no longer those that were matched."""


class MatchReader(KeptReader):
    """The matches in a file, of `sekd` or of another tool with hloc's layout."""

    content, remedy = "matches", "match again"

    def pairs(self) -> Iterator[Pair]:
        """The names of all complete pairs, in the order of the file; of other tools' files, the flat names."""
        with self._reading():
            for flat, group in self._groups():
                yield _names_of(group) or flat

    def flat_pairs(self) -> Iterator[Pair]:
        """Those of which the file keeps no other than the flat names."""
        with self._reading():
            yield from (flat for flat, group in self._groups() if _names_of(group) is None)

    def _groups(self) -> Iterator[tuple[Pair, h5py.Group]]:
        for first in names_in(self._file):
            inner = member(self._file, first)
            for second in names_in(inner) if isinstance(inner, h5py.Group) else ():
                group = member(inner, second)
                if isinstance(group, h5py.Group) and self._is_complete(group):
                    yield (first, second), group

    def read(self, pair: Pair, count0: int | None = None) -> StoredMatches:
        """The matches of one pair. One stored the other way round is turned where `count0`, the first image's number
        of keypoints, is given. Raises InputFileError if there are none, or they are damaged.
        """  # noqa: D205 - one sentence
        with self._reading():
            if (group := self._find(pair)) is not None:
                return read_group(group)
            if count0 is not None and (group := self._find((pair[1], pair[0]))) is not None:
                matches = read_group(group)
                if matches.matches0.max(initial=-1) >= count0:
                    keypoints = counted(count0, "keypoint")
                    raise InputFileError(f"{self.path}: {pair[0]} has only {keypoints}; give its own features")
                return matches.reversed(count0)
        raise InputFileError(f"{self.path}: no matches of {pair[0]} and {pair[1]}; run sekd match on them")

    def fingerprints(self, pair: Pair) -> tuple[int, ...]:
        """Fingerprints of the two images' features that were matched; none where the file doesn't tell."""
        with self._reading():
            group = self._find(pair)
            return () if group is None else _fingerprints(group)

    def read_of(self, pair: Pair, features: tuple[Identity, Identity]) -> StoredMatches:
        """As `read`, of images with these features. Raises InputFileError if the matches can't be theirs."""
        both = f"{self.path}: {pair[0]} and {pair[1]}"
        with self._reading():
            group = self._find(pair)
            if group is not None and _fingerprints(group) not in {(), tuple(one.fingerprint for one in features)}:
                raise InputFileError(f"{both} were matched with other features; give those, or run sekd match --update")
            matches = self.read(pair) if group is None else read_group(group)
        for name, (_, count), largest in zip(pair, features, matches.indices().max(axis=0, initial=-1), strict=True):
            if largest >= count:
                raise InputFileError(
                    f"{both} match keypoint {largest} of {name}, which has {count}; give the features that were matched"
                )
        return matches

    def _find(self, pair: Pair) -> h5py.Group | None:
        group = member(self._file, _place(pair))
        if not isinstance(group, h5py.Group) or not self._is_complete(group):
            return None
        return group if (_names_of(group) or pair) == tuple(pair) else None  # else `a-b` asked for, `a/b` stored

    def _is_complete(self, group: h5py.Group) -> bool:
        if not isinstance(member(group, "matches0"), h5py.Dataset):
            return False
        return not self._own or bool(attribute(group, "complete", False))


def _fingerprints(group: h5py.Group) -> tuple[int, ...]:
    return tuple(int(one) for one in attribute(group, "features", ()))


def _names_of(group: h5py.Group) -> Pair | None:
    """Both names, None where there are none. Raises ValueError if they can't be."""
    stored = attribute(group, "names")
    if stored is None:
        return None
    first, second = (stored if isinstance(stored, str) else bytes(stored).decode()).split("\t")
    for name in (first, second):
        check_name(name)
    return first, second
