"""SEKD: self-evolving keypoint detection and description (Song et al. 2020, arXiv 2006.05077).

`Sekd`, `Features` and `Matches` are the Python API; they load torch when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sekd_cli.api import Matches, Sekd
    from sekd_cli.features import Features

__version__ = "0.1.0"
__all__ = ["Features", "Matches", "Sekd", "__version__"]


def __getattr__(name: str) -> object:
    if name in ("Features", "Matches", "Sekd"):
        return getattr(import_module("sekd_cli.api"), name)
    raise AttributeError(f"module 'sekd_cli' has no attribute {name!r}")
