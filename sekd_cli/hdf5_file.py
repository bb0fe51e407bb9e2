"""HDF5 files that survive being killed while they are written, and say clearly what is wrong with them.

HDF5 changes an open file in several writes; a process killed between two of them leaves a file that nothing opens.
So a writer here gives HDF5 a file object (`_StagedFile`) that lets it append at once, which nothing refers to yet, but
holds back every change to bytes that are already part of the file. `HDF5Writer.commit` puts these changes into a
journal beside the file, applies them and removes the journal. A process killed before leaves the file as it was; one
killed within these few microseconds leaves a journal with which the next reader or writer here completes the change.
"""

import errno
import io
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py

from sekd_cli.errors import InputFileError, OutputError

try:
    import fcntl
except ImportError:  # not on Windows, where a second writer goes unnoticed
    fcntl = None  # type: ignore[assignment]

JOURNAL_MAGIC = b"sekdjrn1"
JOURNAL_HEAD = struct.Struct("<8sQQI")  # magic, size of the file, length and CRC-32 of the changes that follow
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


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
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise InputFileError(f"{path}: {what}; give the {kind} file that sekd wrote")
    try:
        if _journal_path(path).exists():
            _recover(path)
        return h5py.File(path, "r", locking="best-effort")
    except BlockingIOError as error:
        raise InputFileError(f"{path}: being written by another process; wait until it is done") from error
    except OSError as error:
        raise InputFileError(f"{path}: {_reason(path, error)}; give the {kind} file that sekd wrote") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _reason(path: Path, error: OSError) -> str:
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


class HDF5Writer:
    """A file open for adding groups, locked against other writers; `commit` makes what was added durable."""

    def __init__(self, path: Path, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open `path`, or create it with the root `attributes`; `overwrite` starts afresh in any case.

        Raises OutputError if it can't be written, isn't HDF5, or another process is writing it.
        """
        self.path = path
        try:
            self._staged = _open_locked(path, attributes, overwrite=overwrite)
        except BlockingIOError as error:
            message = f"{path}: another process is using it; wait for that one, or give another output with -o"
            raise OutputError(message) from error
        except OSError as error:
            raise OutputError(f"{path}: {write_reason(error)}") from error
        try:
            self.file = h5py.File(self._staged, "r+")
        except OSError as error:
            self._staged.close()
            message = f"{path}: {_reason(path, error)}, so nothing was written; give another output with -o"
            raise OutputError(message) from error

    def commit(self) -> None:
        """Make everything added so far part of the file. Raises OutputError, and leaves the file as it was before."""
        try:
            self.file.flush()
            self._staged.commit()
        except (OSError, RuntimeError) as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> OutputError:
        """What to tell after HDF5 failed: its own words say less than the operating system's."""
        cause = self._staged.error or error
        self._staged.abandon()
        return OutputError(f"{self.path}: {write_reason(cause)}; what was done is kept, run the same command to go on")

    def close(self) -> None:
        """Commit and close; after a failure, close and leave the file at its last commit."""
        try:
            self.file.close()
            self._staged.commit()
        except (OSError, RuntimeError, ValueError) as error:
            if not self._staged.abandoned:
                raise self.failure(error) from error
        finally:
            self._staged.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._staged.abandon()
        self.close()


def write_reason(error: BaseException) -> str:
    """Why a file can't be written, with the remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EROFS: "the folder is read-only; give another output with -o",
        errno.EACCES: "permission denied; give another output with -o",
        errno.EPERM: "permission denied; give another output with -o",
        errno.EISDIR: "is a folder; give a file with -o",
        errno.ENOTDIR: "its folder is a file; give another output with -o",
        errno.EFBIG: "larger than this file system or process may write; give another output with -o",
    }
    number = error.errno if isinstance(error, OSError) else None
    return remedies.get(number or 0, f"can't be written ({one_line(error)})")


class _StagedFile(io.RawIOBase):
    """A file whose changes to existing bytes stay in memory until `commit`; appending happens at once."""

    def __init__(self, descriptor: int, journal: Path) -> None:
        self._descriptor = descriptor
        self._journal = journal
        self._position = 0
        self._committed = self._length = os.fstat(descriptor).st_size  # where existing bytes end; the length HDF5 sees
        self._changes: list[tuple[int, bytes]] = []
        self.error: OSError | None = None
        self.abandoned = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the file as HDF5 believes it to be."""
        view = memoryview(buffer).cast("B")
        start, count = self._position, max(0, min(len(view), self._length - self._position))
        read = os.preadv(self._descriptor, [view[:count]], start)
        view[read:count] = bytes(count - read)
        for offset, data in self._changes:
            first, last = max(start, offset), min(start + count, offset + len(data))
            if first < last:
                view[first - start : last - start] = data[first - offset : last - offset]
        self._position += count
        return count

    def write(self, data: Any) -> int:
        """Write what lies beyond the existing bytes, keep what changes them."""
        view = memoryview(data).cast("B")
        start, count = self._position, len(view)
        kept = max(0, min(count, self._committed - start))
        if kept:
            self._changes.append((start, bytes(view[:kept])))
        if kept < count and not self.abandoned:
            self._write_all(start + kept, view[kept:])
        self._position += count
        self._length = max(self._length, self._position)
        return count

    def truncate(self, size: int | None = None) -> int:
        """Set the length; shrinking waits for `commit`."""
        self._length = self._position if size is None else size
        if self._length >= self._committed and not self.abandoned:
            self._remember(os.ftruncate, self._descriptor, self._length)
        return self._length

    def commit(self) -> None:
        """Apply the changes kept back, through the journal."""
        if self.abandoned:
            return
        if self._changes:
            size = os.fstat(self._descriptor).st_size
            self._remember(_write_journal, self._journal, size, self._changes)
            for offset, data in self._changes:
                self._write_all(offset, memoryview(data))
        if self._length < self._committed:
            self._remember(os.ftruncate, self._descriptor, self._length)
        if self._changes:
            self._journal.unlink()
        self._changes.clear()
        self._committed = self._length

    def abandon(self) -> None:
        """Write nothing more: the file stays as the last commit left it."""
        self.abandoned = True

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)  # which gives the lock back
        super().close()

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            written = self._remember(os.pwrite, self._descriptor, data, offset)
            offset, data = offset + written, data[written:]

    def _remember(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:  # HDF5 would lose it on the way through its C code
            self.error = error
            raise


def _open_locked(path: Path, attributes: Mapping[str, Any], *, overwrite: bool) -> _StagedFile:
    """The file at `path`, created where needed, its lock held. Raises OSError, BlockingIOError if locked already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = os.open(path, os.O_RDWR) if path.exists() else None
    if old is None:
        _journal_path(path).unlink(missing_ok=True)  # of a file that was deleted since
    try:
        if old is not None:
            _lock(old)
            _apply_journal(old, _journal_path(path))
            _refuse_other_files(old)
            if not overwrite and os.fstat(old).st_size:
                staged, old = _StagedFile(old, _journal_path(path)), None
                return staged
        return _StagedFile(_create_locked(path, attributes, replace=old is not None), _journal_path(path))
    finally:
        if old is not None:
            os.close(old)


def _refuse_other_files(descriptor: int) -> None:
    start = os.pread(descriptor, len(HDF5_MAGIC), 0)
    if start and start != HDF5_MAGIC:
        raise OSError("it exists and is not an HDF5 file, so it stays as it is; give another output with -o")


def _create_locked(path: Path, attributes: Mapping[str, Any], *, replace: bool) -> int:
    """Put a new file with these root attributes at `path` in one step, already locked."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs.update(attributes)
        descriptor = os.open(temporary, os.O_RDWR)
        _lock(descriptor)
        if replace or fcntl is None:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # fails where another process was faster
    except FileExistsError as error:
        raise BlockingIOError(errno.EAGAIN, "created by another process meanwhile") from error
    finally:
        temporary.unlink(missing_ok=True)
    return descriptor


def _lock(descriptor: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a file system without locks


def _journal_path(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _write_journal(journal: Path, size: int, changes: list[tuple[int, bytes]]) -> None:
    """Write down the changes to a file that is `size` bytes long now; the size tells it from another file."""
    body = b"".join(struct.pack("<QQ", offset, len(data)) + data for offset, data in changes)
    journal.write_bytes(JOURNAL_HEAD.pack(JOURNAL_MAGIC, size, len(body), zlib.crc32(body)) + body)


def _apply_journal(descriptor: int, journal: Path) -> None:
    """Apply a whole journal once more; one that was not written to its end has not been applied at all."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if len(content) >= JOURNAL_HEAD.size:
        magic, size, length, checksum = JOURNAL_HEAD.unpack_from(content)
        body = content[JOURNAL_HEAD.size :]
        whole = magic == JOURNAL_MAGIC and len(body) == length and zlib.crc32(body) == checksum
        if whole and size == os.fstat(descriptor).st_size:
            position = 0
            while position < length:
                offset, count = struct.unpack_from("<QQ", body, position)
                os.pwrite(descriptor, body[position + 16 : position + 16 + count], offset)
                position += 16 + count
    journal.unlink()


def _recover(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        _lock(descriptor)
        _apply_journal(descriptor, _journal_path(path))
    finally:
        os.close(descriptor)
