"""Joining the files of shards: each is checked against the others before anything is written."""

import json
import logging
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import h5py
import numpy as np

from sekd_cli.counting import counted
from sekd_cli.errors import InputFileError, NothingToDoError, UsageError
from sekd_cli.file_contents import FEATURES, FLAT, MATCHES, WHOLE, items, kind_of, reading
from sekd_cli.hdf5_file import create_hdf5, open_for_reading, plain, settings_in
from sekd_cli.kept_file import short
from sekd_cli.new_file import new_file, spare_inputs
from sekd_cli.shards import Shard, parse_shard

logger = logging.getLogger(__name__)

DECISIVE = ("sekd_schema", "network", "weights_sha256", "features")
"""Attributes that, beside the settings, decide the numbers in a file; `features` are those that were matched."""


class Merged(NamedTuple):
    """What was joined."""

    kind: str  # "features" or "matches"
    items: int  # images or pairs in the new file
    doubles: int  # that came again, the same, in a later file
    incomplete: int  # left out
    turned: int = 0  # pairs left out, as the same two came before the other way round


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One input; open only while it is looked at, as there may be more than a process may have open."""

    path: Path
    kind: str
    decisive: dict[str, Any]  # all that decides the numbers in it, but for the shard
    shard: Shard


def merge(
    paths: list[Path],
    output: Path,
    *,
    partial: bool = False,
    overwrite: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Merged:
    """Join feature files, or match files, into one new file; `partial` allows shards to be missing.

    Files without a shard number (of runs over different folders, of other tools) are joined as well. `advance` is
    called for each image or pair.

    Raises UsageError if shards are missing or double, or features are given with matches; InputFileError if settings or
    weights differ, an image is there twice with different features, or a file is damaged; OutputError if the output
    exists (unless `overwrite`) or can't be written.
    """
    spare_inputs([output], paths)
    parts = [_part(path) for path in paths]
    _check_alike(parts)
    _check_shards(parts, partial=partial)
    attributes = _attributes(parts[0])
    with new_file(output, overwrite=overwrite) as temporary, create_hdf5(temporary, attributes) as target:
        return _join(parts, target, advance)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with open_for_reading(path, "feature or match") as file, reading(path):
        yield file


def _part(path: Path) -> _Part:
    with _opened(path) as file:
        kind, settings = kind_of(file), settings_in(file.attrs)
        decisive = {name: plain(file.attrs.get(name)) for name in DECISIVE}
    if kind == FLAT:
        raise UsageError(f"{path}: not in hloc's layout; run sekd convert --to hloc on its folder first")
    shard = parse_shard(str(settings.pop("shard", WHOLE)))
    decisive.update(settings)
    return _Part(path=path, kind=kind, decisive=decisive, shard=shard)


def _check_alike(parts: list[_Part]) -> None:
    """Raise unless all parts were made the same way."""
    first = parts[0]
    for part in parts[1:]:
        if part.kind != first.kind:
            raise UsageError(f"{first.path} holds {first.kind}, {part.path} {part.kind}; merge them separately")
        old, new = first.decisive, part.decisive
        names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if names:
            words = "; ".join(f"{name} {short(old.get(name))} and {short(new.get(name))}" for name in names)
            raise InputFileError(
                f"{first.path} and {part.path} were made differently ({words}); make one of them again"
            )


def _check_shards(parts: list[_Part], *, partial: bool) -> None:
    """Raise unless each shard is there once; files that are no shards may be many."""
    first = parts[0]
    owners: dict[Shard, Path] = {}
    for part in parts:
        if part.shard.count != first.shard.count:
            shards = f"{first.path} is shard {first.shard}, {part.path} shard {part.shard}"
            raise UsageError(f"{shards}: not of one run; merge the shards of one at a time")
        if part.shard in owners and part.shard.count > 1:
            raise UsageError(f"{owners[part.shard]} and {part.path} are both shard {part.shard}; leave one out")
        owners[part.shard] = part.path
    count = first.shard.count
    missing = [f"{number}/{count}" for number in range(1, count + 1) if Shard(number, count) not in owners]
    if missing and not partial:
        raise UsageError(f"missing: shard {', '.join(missing)}; add what is missing, or give --partial")
    if missing:
        logger.warning("missing: shard %s", ", ".join(missing))


def _attributes(part: _Part) -> dict[str, Any]:
    """Those of the whole: what a process without shards would have written, so that one can go on with the file."""
    with _opened(part.path) as file:
        attributes, settings = dict(file.attrs), settings_in(file.attrs)
    if "shard" in settings:
        attributes["settings"] = json.dumps({**settings, "shard": WHOLE}, sort_keys=True)
    return attributes


def _join(parts: list[_Part], target: h5py.File, advance: Callable[[], None]) -> Merged:
    """Copy every complete group, bytes as they are."""
    owners: dict[str, _Part] = {}
    folders: dict[str, str] = {}  # names of images by the folders that they lie in
    counts = dict.fromkeys(parts, 0)
    doubles = incomplete = turned = 0
    for part in parts:
        with _opened(part.path) as file:
            for name, group, complete in items(file, part.kind):
                advance()
                counts[part] += complete
                if not complete:
                    incomplete += 1
                elif part.kind == MATCHES and name not in owners and "/".join(name.split("/")[::-1]) in owners:
                    turned += 1
                elif name not in owners:
                    if part.kind == FEATURES:
                        _check_nesting(name, owners, folders)
                    file.copy(group, target, name, expand_soft=True, expand_external=True)  # links led elsewhere
                    owners[name] = part
                elif _is_in(owners[name], name, group):
                    doubles += 1
                else:
                    raise InputFileError(
                        f"{name} differs in {owners[name].path} and {part.path}: if it was changed, delete the older "
                        "file and make it anew; if these are two of one name, extract both with --root"
                    )
    if incomplete and not owners:
        raise NothingToDoError(f"no complete {parts[0].kind} in any file; run their shard again")
    _tell_uneven(counts)
    return Merged(parts[0].kind, len(owners), doubles, incomplete, turned)


def _tell_uneven(counts: dict[_Part, int]) -> None:
    """Warn of shards with fewer images or pairs than they were dealt: each gets as many as another, or one less."""
    most = max(counts.values())
    for part, count in counts.items():
        if part.shard.count > 1 and count < most - 1:
            what = counted(count, "image" if part.kind == FEATURES else "pair")
            logger.warning(
                "%s has %s, another shard %s: its run hasn't ended, or some failed; run it again, and merge again",
                *(part.path, what, f"{most:,}"),
            )


def _check_nesting(name: str, owners: Container[str], folders: dict[str, str]) -> None:
    """Raise unless an image's group lies in no other image's, and none in its own; `folders` gets those it lies in."""
    inside = [str(folder) for folder in PurePosixPath(name).parents[:-1]]
    other = folders.get(name) or next((folder for folder in inside if folder in owners), None)
    if other is not None:
        raise InputFileError(
            f"{name} and {other}: the one is an image where the other has a folder; extract with --root"
        )
    folders |= dict.fromkeys(inside, name)


def _is_in(part: _Part, name: str, group: h5py.Group) -> bool:
    """Whether a part holds the same under a name."""
    with _opened(part.path) as file:
        return _equal(file[name], group)


def _equal(one: object, other: object) -> bool:
    """Whether two groups hold the same, or two datasets; what is no number is equal to itself."""
    if isinstance(one, h5py.Group) and isinstance(other, h5py.Group):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if not isinstance(one, h5py.Dataset) or not isinstance(other, h5py.Dataset):
        return False
    floats = one.dtype.kind == other.dtype.kind == "f"
    return np.array_equal(one[()], other[()], equal_nan=floats)
