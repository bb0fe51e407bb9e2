"""A disk without room, as far as a process can be told of one."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond so many bytes of a file fails with EFBIG while the block runs."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def pwrite_until_full(writes: int) -> Callable[..., int]:
    """What stands for `os.pwrite` where a disk has room for so many writes."""
    real, calls = os.pwrite, count()

    def pwrite(*arguments: Any) -> int:
        if next(calls) >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    return pwrite
