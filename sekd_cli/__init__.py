"""SEKD: self-evolving keypoint detection and description (Song et al. 2020, arXiv 2006.05077).

`Sekd`, `Features`, `Matches` and `Camera` are the Python API; they load torch when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sekd_cli.api import Matches, Sekd
    from sekd_cli.features import Features
    from sekd_cli.verification import Camera

__version__ = "0.1.0"
__all__ = ["Camera", "Features", "Matches", "Sekd", "__version__"]


def __getattr__(name: str) -> object:
    if name in ("Camera", "Features", "Matches", "Sekd"):
        return getattr(import_module("sekd_cli.api"), name)
    raise AttributeError(f"module 'sekd_cli' has no attribute {name!r}")
