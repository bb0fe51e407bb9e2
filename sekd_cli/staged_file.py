"""A file that changes from one state to the next as a whole, though its writer may be killed at any moment.

HDF5 changes an open file in several writes; a process killed between two of them leaves a file that nothing opens. The
file object here lets it append at once, which nothing refers to yet, but holds back every change to bytes that are
already part of the file. `StagedFile.commit` puts these changes into a journal beside the file, applies them and
removes the journal. A process killed before leaves the file as it was; one killed within these few microseconds leaves
a journal with which `apply_journal` completes the change.
"""
# ruff: noqa: D102 - io.RawIOBase tells what the methods without a docstring do

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOURNAL_MAGIC = b"sekdjrn1"
JOURNAL_HEAD = struct.Struct("<8sQQI")  # magic, size of the file, length and CRC-32 of the changes that follow


class StagedFile(io.RawIOBase):
    """A file whose changes to existing bytes stay in memory until `commit`; appending happens at once.

    What HDF5 calls here never fails: an exception would have to pass through its C code, which goes on calling. A
    failure is kept in `error`, after which nothing more is written, and `commit` raises it.
    """

    def __init__(self, descriptor: int, journal: Path) -> None:
        self._descriptor = descriptor
        self._journal = journal
        self._position = 0
        self._committed = self._length = os.fstat(descriptor).st_size  # where existing bytes end; the length HDF5 sees
        self._changes: list[tuple[int, bytes]] = []
        self._abandoned = False
        self.error: OSError | None = None

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
        if kept < count:
            self._unless_abandoned(_write_all, self._descriptor, start + kept, view[kept:])
        self._position += count
        self._length = max(self._length, self._position)
        return count

    def truncate(self, size: int | None = None) -> int:
        """Set the length; shrinking waits for `commit`."""
        self._length = self._position if size is None else size
        if self._length >= self._committed and self._length != os.fstat(self._descriptor).st_size:
            self._unless_abandoned(os.ftruncate, self._descriptor, self._length)
        return self._length

    def commit(self) -> None:
        """Apply the changes kept back, through the journal. Raises OSError, of now or of before."""
        self._unless_abandoned(self._apply_changes)
        if self.error is not None:
            raise self.error

    def status(self) -> os.stat_result:
        """Of the open file, wherever its name leads by now."""
        return os.fstat(self._descriptor)

    def abandon(self) -> None:
        """Write nothing more: the file stays as the last commit left it."""
        self._abandoned = True

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)  # which gives the lock back
        super().close()

    def _apply_changes(self) -> None:
        if all(os.pread(self._descriptor, len(data), offset) == data for offset, data in self._changes):
            self._changes.clear()  # closing a file HDF5 writes what is there: its time of change should stay
        if self._changes:
            _write_journal(self._journal, os.fstat(self._descriptor).st_size, self._changes)
            for offset, data in self._changes:
                _write_all(self._descriptor, offset, memoryview(data))
        if self._length < self._committed:
            os.ftruncate(self._descriptor, self._length)
        if self._changes:
            self._journal.unlink()
        self._changes.clear()
        self._committed = self._length

    def _unless_abandoned(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._abandoned:
            return
        try:
            action(*arguments)
        except OSError as error:
            self.error = error
            self._abandoned = True


def _write_all(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset, data = offset + written, data[written:]


def journal_of(path: Path) -> Path:
    """Where the journal of a file lies: beside the file itself, if `path` is a link to it."""
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + ".journal")


def _write_journal(journal: Path, size: int, changes: list[tuple[int, bytes]]) -> None:
    """Write down the changes to a file that is `size` bytes long now; the size tells it from another file."""
    body = b"".join(struct.pack("<QQ", offset, len(data)) + data for offset, data in changes)
    journal.write_bytes(JOURNAL_HEAD.pack(JOURNAL_MAGIC, size, len(body), zlib.crc32(body)) + body)


def apply_journal(descriptor: int, journal: Path) -> None:
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
                _write_all(descriptor, offset, memoryview(body)[position + 16 : position + 16 + count])
                position += 16 + count
    journal.unlink()
