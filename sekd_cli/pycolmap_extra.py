"""COLMAP's library, an extra."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np  # noqa: F401 - pycolmap's copy of zlib, loaded before, gets in the way: writing a PNG crashes

from sekd_cli.errors import MissingExtraError
from sekd_cli.workers import CAN_FORK, Worker


def require_pycolmap() -> Any:
    """The module, quiet. Raises MissingExtraError."""
    try:
        import pycolmap  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("pycolmap", "colmap") from error
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value  # callers say what it can't read
    if threading.current_thread() is threading.main_thread():  # it takes SIGTERM for a crash, and prints its stack
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return pycolmap


def apart(call: Callable[[], None]) -> None:
    """Make a call of COLMAP in a process of its own, where one can be forked: a full disk makes COLMAP abort.

    Raises what the call raises, WorkerDiedError if it ended the process.
    """

    def quietly(_: bool) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of the stack that it prints
        call()

    try:
        worker = Worker(quietly) if CAN_FORK else None
    except OSError:  # there may be no more processes
        worker = None
    if worker is None:
        call()
        return
    try:
        worker(True)
    finally:
        worker.stop(0)  # it is done, or not waited for
