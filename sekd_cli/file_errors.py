"""What goes wrong with files, in words: why one can't be written, and what mends it."""

import errno
import os
import re
import stat


def one_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def error_number(error: BaseException) -> int | None:
    """The operating system's number of an error, None if it isn't one of its own; HDF5 tells it in words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if told else None


def write_reason(error: BaseException) -> str:
    """Why a file can't be written, with the remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EROFS: "the folder is read-only; give another output with -o",
        errno.EACCES: "permission denied; give another output with -o",
        errno.EPERM: "permission denied; give another output with -o",
        errno.EISDIR: "is a folder; give a file with -o",
        errno.ESTALE: "was deleted or replaced while it was written; run the same command again",
        errno.ENODEV: "is no ordinary file; give another output with -o",
        errno.ENOTDIR: "its folder is a file; give another output with -o",
        errno.EFBIG: "larger than this file system or process may write; give another output with -o",
    }
    number = error.errno if isinstance(error, OSError) else None
    return remedies.get(number or 0, f"can't be written ({one_line(error)})")


def refuse_devices(status: os.stat_result) -> None:
    """Raise OSError for /dev/null and its like, which root could replace by a file, to everybody's harm."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
