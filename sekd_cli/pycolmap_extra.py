"""COLMAP's library, an extra."""

import signal
import threading
from typing import Any

import numpy as np  # noqa: F401 - pycolmap's copy of zlib, loaded before, gets in the way: writing a PNG crashes

from sekd_cli.errors import MissingExtraError


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
