"""SEKD: self-evolving keypoint detection and description (Song et al. 2020, arXiv 2006.05077)."""

__version__ = "0.1.0"
