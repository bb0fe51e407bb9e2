"""SEKD: self-evolving keypoint detection and description (Song et al. 2020, arXiv 2006.05077).

`Sekd`, `Features`, `Matches` and `Camera` are the Python API, which loads torch when it is first asked for. What it
raises is a `SekdError`: an `ImageError`, `UsageError`, `InputFileError` or `DeviceError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sekd_cli.errors import DeviceError, ImageError, InputFileError, SekdError, UsageError

if TYPE_CHECKING:
    from sekd_cli.api import Matches, Sekd
    from sekd_cli.features import Features
    from sekd_cli.verification import Camera

__version__ = "0.1.0"
__all__ = [
    "Camera",
    "DeviceError",
    "Features",
    "ImageError",
    "InputFileError",
    "Matches",
    "Sekd",
    "SekdError",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in ("Camera", "Features", "Matches", "Sekd"):
        return getattr(import_module("sekd_cli.api"), name)
    raise AttributeError(f"module 'sekd_cli' has no attribute {name!r}")
