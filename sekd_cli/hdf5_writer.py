"""An HDF5 file's one writer, whose every commit is durable whatever kills it."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import h5py

from sekd_cli.errors import OutputError
from sekd_cli.file_errors import refuse_devices, write_reason
from sekd_cli.hdf5_file import CHECKED_METADATA, HDF5_MAGIC, bound_memory, create_hdf5, lock, reading_reason
from sekd_cli.new_file import clear_away_leftovers, make_folder
from sekd_cli.staged_file import StagedFile, apply_journal, journal_of

ADDED_METADATA_BYTES = 256 << 10  # of a file, kept in memory while it is added to: what was written isn't needed again


class HDF5Writer:
    """A file open for adding groups, locked against other writers; `commit` makes what was added durable."""

    def __init__(self, path: Path, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Open `path`, or create it with the root `attributes`; `overwrite` starts afresh in any case.

        Raises OutputError if it can't be written, isn't HDF5, or another process is writing it.
        """
        self.path = path
        self._failed = False
        try:
            if path.exists():  # not where it leads: what /dev/fd/1 leads to has no path, if it is a pipe
                refuse_devices(path.stat())
            self._staged = _open_locked(Path(os.path.realpath(path)), attributes, overwrite=overwrite)
        except BlockingIOError as error:
            message = f"{path}: another process is using it; wait for that one, or give another output with -o"
            raise OutputError(message) from error
        except OSError as error:
            raise OutputError(f"{path}: {write_reason(error)}") from error
        try:
            self.file = h5py.File(self._staged, "r+", libver=CHECKED_METADATA)
        except OSError as error:
            self._staged.close()
            message = f"{path}: {reading_reason(path, error)}, so nothing was written; give another output with -o"
            raise OutputError(message) from error
        bound_memory(self.file, ADDED_METADATA_BYTES)

    def commit(self) -> None:
        """Make everything added so far part of the file. Raises OutputError, and leaves the file as it was before."""
        try:
            self.file.flush()
            self._staged.commit()
            self._see_that_it_is_there()
        except (OSError, RuntimeError) as error:
            raise self.failure(error) from error

    def _see_that_it_is_there(self) -> None:
        """Raise OSError if the file was deleted or replaced: nobody would ever see what goes into it."""
        with suppress(OSError):
            if os.path.samestat(self.path.stat(), self._staged.status()):
                return
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def failure(self, error: Exception) -> OutputError:
        """What to tell after HDF5 failed: its own words say less than the operating system's."""
        self._failed = True
        self._staged.abandon()
        try:
            self._see_that_it_is_there()
        except OSError as gone:
            return OutputError(f"{self.path}: {write_reason(gone)}")
        cause = self._staged.error or error
        return OutputError(f"{self.path}: {write_reason(cause)}; what was done is kept, run the same command to go on")

    def close(self) -> None:
        """Commit and close; after a failure, close and leave the file at its last commit."""
        try:
            self.file.close()
            self._staged.commit()
            if not self._failed:
                self._see_that_it_is_there()
        except (OSError, RuntimeError, ValueError) as error:
            if not self._failed:
                raise self.failure(error) from error
        finally:
            self._staged.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._failed = True  # and the exception tells of it
            self._staged.abandon()
        self.close()


def _open_locked(path: Path, attributes: Mapping[str, Any], *, overwrite: bool) -> StagedFile:
    """The file at `path`, created where needed, its lock held. Raises OSError, BlockingIOError if locked already."""
    make_folder(path.parent)
    clear_away_leftovers(path)
    old = os.open(path, os.O_RDWR) if path.exists() else None
    if old is None:
        journal_of(path).unlink(missing_ok=True)  # of a file that was deleted since
    try:
        if old is not None:
            lock(old)
            apply_journal(old, journal_of(path))
            _refuse_other_files(old)
            if not overwrite and os.fstat(old).st_size:
                staged, old = StagedFile(old, journal_of(path)), None
                return staged
        return StagedFile(_create_locked(path, attributes, replace=old is not None), journal_of(path))
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
        with create_hdf5(temporary, attributes):
            pass
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            lock(descriptor)
            if replace:
                temporary.replace(path)
            else:
                _put_in_place(temporary, path)
        except BaseException:
            os.close(descriptor)
            raise
    except FileExistsError as error:
        raise BlockingIOError(errno.EAGAIN, "created by another process meanwhile") from error
    finally:
        temporary.unlink(missing_ok=True)
    return descriptor


def _put_in_place(temporary: Path, path: Path) -> None:
    """Move a file to a new path. Raises FileExistsError where another process was faster."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, as exFAT
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        temporary.replace(path)
