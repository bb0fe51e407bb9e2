"""What an HDF5 file of features or matches holds, group by group, whoever wrote it, complete or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py

from sekd_cli.errors import InputFileError
from sekd_cli.file_errors import error_number, one_line
from sekd_cli.hdf5_file import DAMAGE, attribute, member, names_in, plain
from sekd_cli.stored_features import is_image

FEATURES, MATCHES, FLAT = "features", "matches", "flat"
"""Kinds of files: hloc's layout of features or matches; or one file of the IMC benchmark's layout, or Kaggle's."""

WHOLE = "1/1"  # the shard of a file that is not one of several


class Item(NamedTuple):
    """An image in a feature file, or a pair in a match file."""

    name: str  # where its group is: the image's name, or both images' flat names with a slash between
    group: h5py.Group
    complete: bool


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what h5py raises on damage to the file at `path` into an InputFileError; failures to write pass."""
    try:
        yield
    except DAMAGE as error:
        if error_number(error):
            raise
        raise InputFileError(f"{path}: damaged ({one_line(error)}); make it again") from error


def kind_of(file: h5py.File) -> str:
    """FEATURES, MATCHES or FLAT; what is empty and of no known kind holds features."""
    content = plain(file.attrs.get("content"))
    if content in {FEATURES, MATCHES}:
        return str(content)
    first = next((child for key in file if (child := file.get(key)) is not None), None)
    if isinstance(first, h5py.Dataset):
        return FLAT
    if first is None:
        return FEATURES
    second = next((child for key in first if (child := first.get(key)) is not None), None)
    if isinstance(second, h5py.Dataset) and not {"keypoints", "descriptors", "scores"} & first.keys():
        return FLAT
    return MATCHES if isinstance(second, h5py.Group) and "matches0" in second else FEATURES


def items(file: h5py.File, kind: str) -> Iterator[Item]:
    """Every image or pair; complete: marked so, or in files of other tools, with all datasets needed."""
    own = "sekd_schema" in file.attrs
    for name, group in _leaves(file):
        if kind == FEATURES:
            complete = is_image(group, own=own)
        else:
            complete = "matches0" in group and (not own or bool(attribute(group, "complete", False)))
        yield Item(name, group, complete)


def _leaves(
    group: h5py.Group, prefix: str = "", above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, h5py.Group]]:
    """Groups that hold datasets, or nothing; `above` are the addresses of parents, so that a cycle of links ends."""
    for key in names_in(group):
        child = member(group, key)
        if not isinstance(child, h5py.Group):
            continue
        address = h5py.h5o.get_info(child.id).addr
        if address in above:
            continue
        inner = [name for name in child if isinstance(name, str)]
        if len(child) == 0 or any(isinstance(member(child, name), h5py.Dataset) for name in inner):
            yield prefix + key, child
        else:
            yield from _leaves(child, f"{prefix}{key}/", above | {address})
