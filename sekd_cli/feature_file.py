"""Features on disk: one HDF5 file, a group an image (see `stored_features`).

A group is named by the image's POSIX path relative to the image root.
"""

import json
import logging
import os
import threading
import unicodedata
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from sekd_cli import __version__
from sekd_cli.errors import ImageError, InputFileError, NothingToDoError
from sekd_cli.hdf5_file import attribute, check_name, member, names_in, plain_attributes, settings_in
from sekd_cli.kept_file import SCHEMA, KeptReader, KeptWriter, changed
from sekd_cli.stored_features import Source, StoredFeatures, is_image, read_group, write_group

logger = logging.getLogger(__name__)

PIXEL_CONVENTION = "(x, y) in the pixel grid of the stored file; the centre of the top-left pixel is (0, 0)"


class FeatureReader(KeptReader):
    """The features in a file, of `sekd` or of another tool with hloc's layout. Safe to use from several threads."""

    content, remedy = "features", "extract it again"

    def __init__(self, path: Path) -> None:
        """See `KeptReader`."""
        super().__init__(path)
        self._lock = threading.Lock()
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        """Names of all images whose features are complete, sorted."""
        if self._names is None:
            with self._lock, self._reading():
                self._names = sorted(_images(self._file, own=self._own))
        return list(self._names)

    def some_names(self) -> list[str]:
        """`names`. Raises NothingToDoError if there are none."""
        names = self.names()
        if not names:
            raise NothingToDoError(f"{self.path}: no image has keypoints and descriptors; give features with both")
        return names

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not _is_plain(name):
            return False
        with self._lock, self._reading():
            group = member(self._file, name)
            return isinstance(group, h5py.Group) and is_image(group, own=self._own)

    def read(self, name: str, *, turned: bool = False) -> StoredFeatures:
        """The features of one image; `turned` reads the descriptors at other turns too, if there are any.

        Raises InputFileError if there are none, or they are damaged.
        """
        if name not in self:
            raise InputFileError(
                f"{self.path}: no features of {name}{self._example()}; run sekd extract on it, or check the name"
            )
        with self._lock, self._reading(f"{self.path}: {name}"):
            return read_group(self._file[name], f"{self.path}: {name}", turned=turned)

    def file_size(self, name: str) -> int | None:
        """Bytes of the image file that features were extracted from, None where that isn't known."""
        with self._lock, self._reading(f"{self.path}: {name}"):
            source = attribute(self._file[name], "source") if self._own else None
            return None if source is None else int(source[0])

    def _example(self) -> str:
        """A name that is there, to compare a wrong one with."""
        names = self.names()
        return f" (but of {names[0]})" if names else ""

    def own_name(self, name: str) -> str:
        """The name of the same image here, where there is one."""
        return name if name.isascii() else next((one for one in spellings(name) if one in self), name)

    @property
    def has_turns(self) -> bool:
        """Whether the images were extracted with descriptors at other turns."""
        return bool(_settings(self.attributes).get("rotations", False))

    def refuse_refined(self) -> None:
        """Raise InputFileError if keypoints are no longer where they were found."""
        if settings_in(self.attributes).get("refined", False):
            raise InputFileError(f"{self.path}: refined already; give the features that it was made of")


class FeatureWriter(KeptWriter):
    """Adds the features of images to a file whose attributes are `file_attributes`; see `KeptWriter`."""

    called = "feature file"

    def names(self) -> list[str]:
        """Names of all images whose features are there."""
        with self._reading():
            return list(_images(self._writer.file, own=True))

    def is_complete(self, name: str, source: Source | None = None) -> bool:
        """Whether the features of an image are there. Raises ChangedImageError if `source` differs from theirs."""
        if not _is_plain(name):
            return False  # and `write` will say so
        with self._reading():
            group = member(self._writer.file, name)
            if not isinstance(group, h5py.Group) or not is_image(group, own=True):
                return False
            if source is not None and tuple(attribute(group, "source", source)) != tuple(source):
                raise ChangedImageError(f"{name}: changed since its features were extracted")
            return True

    def write(
        self,
        name: str,
        features: StoredFeatures,
        *,
        source: Source | None = None,
        descriptor_dtype: str = "float32",
    ) -> None:
        """Add the features of one image, in place of any that are there.

        Raises ImageError for a name that can't be used, OutputError if the file can't be written.
        """
        try:
            write_image(self._writer.file, name, features, source, descriptor_dtype)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._writer.failure(error) from error

    def _started(self) -> bool:
        return next(_images(self._writer.file, own=True), None) is not None

    def _differences(self, attributes: Mapping[str, Any]) -> list[str]:
        return changed(_settings(plain_attributes(self._writer.file)), _settings(attributes))

    def _refusal(self, differences: str) -> str:
        return (
            f"holds features made with other settings ({differences}); "
            "give these again to go on, --overwrite to start afresh, or another output with -o"
        )


class ChangedImageError(ImageError):
    """An image is no longer the one whose features are stored."""


def write_image(
    file: h5py.File, name: str, features: StoredFeatures, source: Source | None, descriptor_dtype: str
) -> None:
    """Add the features of one image to an open file, in place of any that are there.

    Raises ImageError for a name that can't be used, what h5py raises if the file can't be written.
    """
    try:
        check_name(name)
        _check_nesting(file, name)
    except ValueError as error:
        raise ImageError(f"{name!r}: {error}") from error
    if name in file:
        del file[name]
    write_group(file.create_group(name), features, source, descriptor_dtype)


def _check_nesting(file: h5py.File, name: str) -> None:
    parts = name.split("/")
    for length in range(1, len(parts)):
        group = file.get("/".join(parts[:length]))
        if group is not None and (not isinstance(group, h5py.Group) or is_image(group, own=True)):
            raise ValueError(f"{'/'.join(parts[:length])!r} is an image too, so it can't be its folder")
    group = file.get(name)
    if isinstance(group, h5py.Group) and not is_image(group, own=True) and next(_images(group, own=True), None):
        raise ValueError("it is the folder of another image too")


def file_attributes(*, network: str, weights_sha256: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The root attributes of a feature file: who made it, how, and what its numbers mean."""
    return {
        "sekd_schema": SCHEMA,
        "sekd_version": __version__,
        "network": network,
        "weights_sha256": weights_sha256,
        "settings": json.dumps(dict(settings), sort_keys=True),
        "pixel_convention": PIXEL_CONVENTION,
    }


def _images(group: h5py.Group, *, own: bool, prefix: str = "", above: frozenset[int] = frozenset()) -> Iterator[str]:
    """Names below a group; `above` are the addresses of its parents, so that a cycle of links ends."""
    for key in names_in(group):
        child = member(group, key)
        if not isinstance(child, h5py.Group):
            continue
        if not _is_plain(key):
            logger.warning("%s: group %r can't be an image's name; left out", group.file.filename, prefix + key)
        elif is_image(child, own=own):
            yield prefix + key
        else:
            address = h5py.h5o.get_info(child.id).addr
            if address not in above:
                yield from _images(child, own=own, prefix=f"{prefix}{key}/", above=above | {address})


def name_of(path: Path, names: Container[str]) -> str | None:
    """The longest of `names` that the path of an image, or where it leads to, ends with."""
    both = (Path(os.path.abspath(path)).parts, path.resolve().parts)  # noqa: PTH100 - links stay
    ends = ("/".join(parts[start:]) for parts in both for start in range(len(parts)))
    return next((name for end in ends for name in spellings(end) if name in names), None)


def spellings(name: str) -> tuple[str, str, str]:
    """A name as it is, with accents on their letters, as from a keyboard, and beside them, as macOS has its files."""
    return name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def _is_plain(key: str) -> bool:
    try:
        check_name(key)
    except ValueError:
        return False
    return True


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the numbers in a file, flat."""
    chosen = {name: attributes.get(name) for name in ("sekd_schema", "network", "weights_sha256")}
    return {**settings_in(attributes), **chosen}
