"""Files that appear whole or not at all: written beside their place, then moved there in one step."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sekd_cli.errors import OutputError
from sekd_cli.hdf5_file import write_reason


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write to while the block runs; what it has put there then becomes `path`.

    If the block fails, `path` stays as it was. Raises OutputError if `path` exists (unless `overwrite`) or can't be
    written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; give --overwrite to replace it, or another output with -o")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        number = error_number(error)
        if number is None and isinstance(error, RuntimeError):
            raise  # not about files
        raise OutputError(f"{path}: {write_reason(OSError(number, '') if number else error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def error_number(error: BaseException) -> int | None:
    """The operating system's number of an error, None if it isn't one of its own; HDF5 tells it in words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if told else None
