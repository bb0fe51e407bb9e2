"""Everything that can go wrong in a way that a user can mend, each class with its exit code.

One place (`cli.py`) turns these into one line on stderr and the exit code. A message names the thing and the remedy.
The table is documented in README.md; keep the two alike.
"""

import re
from typing import ClassVar

SOME_FAILED = 1  # exit code of a command that did all but some of its images or pairs, each told


class SekdError(Exception):
    """Base class; the message is one line that names the thing and the remedy."""

    exit_code: ClassVar[int] = SOME_FAILED


class UsageError(SekdError):
    """Options or arguments that make no sense together."""

    exit_code = 2


class NothingToDoError(SekdError):
    """No readable input at all."""

    exit_code = 3


class ImageError(SekdError):
    """One image can't be read or used; the others go on."""


class InputFileError(SekdError):
    """A file that the whole command needs (weights, features, pairs, configuration) is missing or wrong."""

    exit_code = 4


class OutputError(SekdError):
    """The output can't be written, belongs to other settings, or is being written by another process."""

    exit_code = 5


class MissingExtraError(SekdError):
    """An optional dependency is needed and not installed."""

    exit_code = 6

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package}: pip install 'sekd[{extra}]'")


class DeviceError(SekdError):
    """The device asked for does not exist, or memory or threads ran out."""

    exit_code = 7


SHORT_OF_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    r"|Invalid buffer size"  # Metal's words
    r"|could not create a primitive$",  # oneDNN's words
    re.MULTILINE,
)
SHORT_OF_THREADS = "can't start new thread"  # Python's words
DATA_PROCESS_DIED = "DataLoader worker (pid"  # torch's words
NOT_LOADED = "failed to map segment"  # the loader's words, of a library that doesn't fit or may not run where it lies


def short_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch says that memory ran out."""
    return isinstance(error, MemoryError) or bool(SHORT_OF_MEMORY.search(str(error)))
