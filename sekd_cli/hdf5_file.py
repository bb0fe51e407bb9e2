"""HDF5 files: opened, made and checked, with a clear line for what is wrong; `hdf5_writer` adds to them."""

import errno
import fcntl
import json
import logging
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5p, h5s, h5t

from sekd_cli.errors import InputFileError, SekdError
from sekd_cli.file_errors import one_line
from sekd_cli.staged_file import StagedFile, apply_journal, journal_of

logger = logging.getLogger(__name__)

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
HDF5_SUFFIXES = {".h5", ".hdf5"}
CHECKED_METADATA = ("v108", "latest")
"""HDF5's second generation of structures, which every release since 2008 reads, but for what is copied from a file with
later ones. They have checksums; the first's have none, and damage made HDF5's C code go round in circles. The third
marks files as open, so that a kill spoils them."""
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What h5py raises on a damaged file, and our code on content of the wrong kind."""
UNTIMED = h5p.create(h5p.DATASET_CREATE)
UNTIMED.set_obj_track_times(False)  # the same numbers make the same file
MAXIMUM_VALUES = 2**31  # in one dataset; a larger claim is damage, not features
UNPACKED = 1100  # bytes of a stored one at most: zlib packs so well
LEAST_STORED = 256 << 10  # bytes that are no claim: what is left out of a chunked dataset isn't stored
METADATA_BYTES = 2 << 20  # of a file, kept in memory while it is read, or made anew
CHECKSUM = "crc32"  # attribute of a group: of its arrays, which HDF5 doesn't check


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a plain relative POSIX path that HDF5 can store as nested groups."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("the name is not valid UTF-8; rename it") from None
    if not name or "\0" in name or any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError(f"{name!r} is no plain relative path, so it can't name a group")


def open_for_reading(path: Path, kind: str) -> h5py.File:
    """Open a file, finishing first what a killed writer began. `kind` names its purpose in messages ("features").

    Raises InputFileError if it is missing, not HDF5, damaged, or being written.
    """
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "no such file"
            raise InputFileError(f"{path}: {what}; give the {kind} file that sekd wrote")
        if journal_of(path).exists():
            _recover(path)
        file = h5py.File(path, "r", locking="best-effort")
        bound_memory(file)
        return file
    except BlockingIOError as error:
        raise InputFileError(f"{path}: being written by another process; wait until it is done") from error
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise InputFileError(f"{path}: too many files are open at once; raise the limit (ulimit -n)") from error
        raise InputFileError(f"{path}: {reading_reason(path, error)}; give the {kind} file that sekd wrote") from error


@contextmanager
def watching_for_damage(where: Path | str, remedy: str, kind: type[SekdError] = InputFileError) -> Iterator[None]:
    """Turns what reading a damaged file raises into one clear line of this `kind`."""
    try:
        yield
    except DAMAGE as error:
        raise kind(f"{where}: damaged ({one_line(error)}); {remedy}") from error


def bound_memory(file: h5py.File, size: int = METADATA_BYTES) -> None:
    """Keep HDF5 from holding more than `size` bytes of a file's structures, which are twenty times as many in memory.

    By itself it grows to 32 MB of them.
    """
    settings = file.id.get_mdc_config()
    settings.max_size = settings.initial_size = size
    settings.min_size = min(settings.min_size, size)
    settings.set_initial_size = True
    file.id.set_mdc_config(settings)


def reading_reason(path: Path, error: OSError) -> str:
    """Why a file can't be opened."""
    if isinstance(error, PermissionError):
        return "not readable (permission denied)"
    try:
        with path.open("rb") as stream:
            start = stream.read(len(HDF5_MAGIC))
    except OSError as reading:
        return f"not readable ({reading.strerror})"
    if not start:
        return "an empty file"
    return f"a damaged or truncated HDF5 file ({one_line(error)})" if start == HDF5_MAGIC else "not an HDF5 file"


@contextmanager
def create_hdf5(path: Path, attributes: Mapping[str, Any]) -> Iterator[h5py.File]:
    """A new file with these root attributes, open while the block runs. Raises OSError if it can't be written."""
    staged = StagedFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), journal_of(path))
    try:  # by a StagedFile, whose writing never fails while HDF5 calls it: on a full disk HDF5 crashed
        with h5py.File(staged, "w", libver=CHECKED_METADATA) as file:
            bound_memory(file)
            for name, value in attributes.items():  # text inline: the heap of strings has no checksum
                file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) and value else value
            yield file
        staged.commit()
    finally:
        staged.close()


def write_arrays(group: h5py.Group, arrays: Mapping[str, np.ndarray], checksum: str = CHECKSUM) -> None:
    """Add arrays to a group, and as this attribute the checksum by which damage to them is noticed.

    By h5py's lower level, as `add_attribute`: what the upper one asks itself of every array takes a third of the time
    of writing it, and one thread writes for all.
    """
    for name, values in arrays.items():
        stored = np.asarray(values, order="C")
        h5d.create(group.id, name.encode(), *_kind(stored), UNTIMED).write(h5s.ALL, h5s.ALL, stored)
    add_attribute(group, checksum, _checksum(arrays))


def add_attribute(owner: h5py.Group | h5py.Dataset, name: str, value: object) -> None:
    """Give a group or dataset an attribute that it hasn't yet: numbers, or bytes."""
    stored = np.asarray(value)
    h5a.create(owner.id, name.encode(), *_kind(stored)).write(stored)


def _kind(values: np.ndarray) -> tuple[h5t.TypeID, h5s.SpaceID]:
    space = h5s.create_simple(values.shape) if values.shape else h5s.create(h5s.SCALAR)
    return h5t.py_create(values.dtype, logical=True), space


def check_arrays(group: h5py.Group, arrays: Mapping[str, np.ndarray], checksum: str = CHECKSUM) -> None:
    """Raise ValueError unless all `arrays` are what one `write_arrays` wrote; other tools' files pass."""
    stored = attribute(group, checksum)
    if stored is not None and int(stored) != _checksum(arrays):
        raise ValueError("its numbers are no longer those that were written")


def read_arrays(group: h5py.Group, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those arrays of numbers that a group has. Raises as `read_numbers`, KeyError if it is damaged."""
    there = (name for name in names if group.id.links.exists(name.encode()))
    opened = ((name, _opened(group, name)) for name in there)
    return {name: _numbers(stored, name) for name, stored in opened if stored is not None}


def read_numbers(group: h5py.Group, name: str) -> np.ndarray:
    """An array of numbers. Raises ValueError if it is none, or of a size that a few bytes only claim."""
    return _numbers(_opened(group, name), name)


def _numbers(stored: object, name: str) -> np.ndarray:
    """By h5py's lower level, in two fifths of the upper one's time, which asks itself much of every array."""
    if not isinstance(stored, h5d.DatasetID):
        raise ValueError(f"{name} is no array of numbers")
    kind = stored.get_type().encode()
    if (dtype := _dtype(kind)).kind not in "iuf" or stored.shape is None:
        raise ValueError(f"{name} is no array of numbers")
    size = math.prod(stored.shape)
    claimed = dtype.itemsize * size > UNPACKED * max(stored.get_storage_size(), LEAST_STORED)
    if claimed or size > MAXIMUM_VALUES:
        raise ValueError(f"{name} claims {stored.shape} numbers, which are not there")
    values = np.empty(stored.shape, dtype)
    stored.read(h5s.ALL, h5s.ALL, values, _in_memory(kind))
    return values


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    checksum = 0
    for name in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).data, checksum)
    return checksum


def names_in(group: h5py.Group) -> Iterator[str]:
    """Names of what a group holds; those that are no UTF-8 are told, and left out."""
    for name in group:
        if isinstance(name, str):
            yield name
        else:  # as h5py has them
            logger.warning("%s: the name %r is no UTF-8; left out, rename it", group.file.filename, bytes(name))


def member(group: h5py.Group, name: str) -> object:
    """What a group holds under a name; None if nothing, or a link to nowhere.

    Raises KeyError if it is damaged, which h5py's own `get` takes for nothing.
    """
    found = _opened(group, name)
    if isinstance(found, h5g.GroupID):
        return h5py.Group(found)
    return h5py.Dataset(found) if isinstance(found, h5d.DatasetID) else found


def _opened(group: h5py.Group, name: str) -> object:
    """What a group holds, for h5py's lower level; else as `member`."""
    try:
        return h5o.open(group.id, name.encode())
    except KeyError:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise
        return None


def attribute(owner: h5py.Group | h5py.Dataset, name: str, default: Any = None) -> Any:
    """An attribute, as `owner.attrs.get` gives it; numbers and bytes in two fifths of the time."""
    try:
        opened = h5a.open(owner.id, name.encode())
    except KeyError:
        return owner.attrs.get(name, default)
    kind, shape = opened.get_type().encode(), opened.shape
    dtype = _dtype(kind)
    if dtype.kind not in "biufS" or shape is None:
        return owner.attrs[name]
    found = np.empty(shape, dtype)
    opened.read(found, _in_memory(kind))
    return found[()]


@lru_cache(64)
def _dtype(encoded: bytes) -> np.dtype:
    """Of a type as HDF5 encodes it; to ask each attribute for its own takes as long as to read it."""
    dtype: np.dtype = h5t.decode(encoded).dtype
    return dtype


@lru_cache(64)
def _in_memory(encoded: bytes) -> h5t.TypeID:
    """What numbers of such a type are read as: other tools' may have fewer bits in the file than numpy has."""
    return h5t.py_create(_dtype(encoded))


def lock(descriptor: int) -> None:
    """Lock a file against other writers. Raises BlockingIOError if one has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a file system without locks


def _recover(path: Path) -> None:
    journal = journal_of(path)
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            lock(descriptor)
            apply_journal(descriptor, journal)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        what = f"{journal} holds the last change of a command that was killed, which you may not finish"
        raise InputFileError(f"{path}: {what} ({error.strerror}); run sekd info {path} as one who may") from error


def plain_attributes(file: h5py.File) -> dict[str, Any]:
    """The root attributes as Python has them: text and numbers."""
    return {name: plain(value) for name, value in file.attrs.items()}


def plain(value: object) -> object:
    """An attribute as Python has it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if hasattr(value, "tolist") else value


def settings_in(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file with these root attributes was made with; empty if it tells none."""
    try:
        settings = json.loads(str(plain(attributes.get("settings", "{}"))))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}
