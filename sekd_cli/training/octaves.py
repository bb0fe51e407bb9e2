"""Views at half their size, and half of that: what extraction's scales are to photographs (paper Sec. 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sekd_cli.features import Features
from sekd_cli.geometry import halved


def images_at(images: Tensor, octave: int) -> Tensor:
    """Images (B, 1, H, W) halved `octave` times, (B, 1, h, w), channels last in memory."""
    return halved(images, octave).contiguous(memory_format=torch.channels_last)


def seen_at(seen: Tensor, octave: int) -> Tensor:
    """Which pixels of views halved `octave` times cover only pixels that are `seen`, (B, H, W) -> (B, h, w) bool."""
    return halved(seen.float(), octave) == 1 if octave else seen


def best_of_octaves(octaves: Sequence[Features], limit: int) -> Features:
    """The best `limit` of what was found in one image at several sizes."""
    scores, order = torch.cat([one.scores for one in octaves]).sort(descending=True, stable=True)
    return Features(
        keypoints=torch.cat([one.keypoints for one in octaves])[order[:limit]],
        scores=scores[:limit],
        descriptors=torch.cat([one.descriptors for one in octaves])[order[:limit]],
        image_size=octaves[0].image_size,
    )
