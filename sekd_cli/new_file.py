"""Files that appear whole or not at all: written beside their place, then moved there in one step."""

import errno
import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sekd_cli.errors import OutputError, UsageError
from sekd_cli.file_errors import error_number, one_line, refuse_devices, write_reason


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write to while the block runs; what it has put there then becomes `path`.

    If the block fails, `path` stays as it was; if it is a link, what it leads to is meant. Raises OutputError if `path`
    exists (unless `overwrite`) or can't be written.
    """
    if str(path) == "-":
        raise OutputError("-: this can't go to standard output; give a file with -o")
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with writing(path):
            if path.exists():  # not `place`: what /dev/stdout leads to has no path, if it is a pipe
                refuse_devices(path.stat())
                if not overwrite:
                    remedy = "give --overwrite to replace it, or another output with -o"
                    raise OutputError(f"{path}: exists already; {remedy}")
            make_folder(place.parent)
            clear_away_leftovers(place)
            yield temporary
            temporary.replace(place)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OutputError, with the name of the file that is written in the block, if it can't be."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error_number(error)
        if number is None and isinstance(error, RuntimeError):
            raise  # not about files
        told = error if isinstance(error, OSError) and error.errno else OSError(number, one_line(error))
        raise OutputError(f"{path}: {write_reason(told)}") from error


def spare_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise UsageError if a file would be written over one that is read."""
    inputs = [path for path in inputs if os.path.exists(path)]
    for output in outputs:
        if os.path.isfile(output) and any(output.samefile(path) for path in inputs):
            raise UsageError(f"{output}: is an input too; give another output with -o")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they aren't there. Raises OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # what a file in its place makes of it
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def clear_away_leftovers(path: Path) -> None:
    """Remove what processes that no longer run left half written here."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = part.name.split(".")[-2]
        if number.isdecimal() and not _runs(int(number)):
            with suppress(OSError):
                part.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's, or a system that doesn't tell
    return True
