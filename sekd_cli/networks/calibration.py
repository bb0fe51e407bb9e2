"""What a network's maps hold, seen on pictures drawn for it: no photograph has to come with the weights.

Dead leaves, discs of all sizes that lie on each other, have the edges, the contrasts and the spectrum of photographs;
what the maps of a trained network hold of them is much what they hold of photographs (docs/EXPERIMENTS.md, 112).
"""

from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from sekd_cli.networks.compact import CompactNetwork

PICTURES = 4
EDGE = 256  # pixels
LEAVES = 4000  # a picture: hardly a pixel is left uncovered
SMALLEST, LARGEST = 2.0, 90.0  # radii in pixels
NOISE = 2.0  # grey levels
ROW = 64  # values
SHARE = 0.99999  # of a map's values that its range holds: the last few would make every step coarser


def dead_leaves(seed: int) -> np.ndarray:
    """A picture (EDGE, EDGE) uint8 of discs, each on top of those before; there are the more of a size the smaller."""
    random = np.random.default_rng(seed)
    share = random.random(LEAVES)
    radii = ((1 - share) / SMALLEST**2 + share / LARGEST**2) ** -0.5
    picture = np.zeros((EDGE, EDGE), np.uint8)
    centres, greys = random.integers(0, EDGE, (LEAVES, 2)), random.integers(0, 256, LEAVES)
    for (x, y), radius, grey in zip(centres.tolist(), radii.tolist(), greys.tolist(), strict=True):
        cv2.circle(picture, (x, y), round(radius), grey, thickness=-1)
    softened = cv2.GaussianBlur(picture, (3, 3), 0) + random.normal(0, NOISE, picture.shape)
    return np.asarray(softened.clip(0, 255).astype(np.uint8))


@torch.inference_mode()
def maps_of(network: CompactNetwork) -> dict[str, Tensor]:
    """What each part of a network, by its name, gives of such pictures."""
    maps: dict[str, Tensor] = {}
    handles = [part.register_forward_hook(partial(_keep, maps, name)) for name, part in network.named_modules()]
    pictures = torch.from_numpy(np.stack([dead_leaves(seed) for seed in range(PICTURES)]))[:, None]
    try:
        network(pictures.contiguous(memory_format=torch.channels_last))
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _keep(maps: dict[str, Tensor], name: str, _part: nn.Module, _given: object, found: Tensor) -> None:
    maps[name] = found


def range_of(values: Tensor) -> tuple[float, float]:
    """The least and the largest of a map's values (of any shape), but for what is beyond `SHARE` at either end."""
    flat = values.flatten()
    beyond = round((1 - SHARE) * flat.numel()) + 1
    return -_largest(-flat, beyond), _largest(flat, beyond)


def _largest(values: Tensor, rank: int) -> float:
    """The largest of values (N,) but for `rank - 1`, looked for only in those rows of them that have the largest."""
    whole = len(values) // ROW * ROW
    rows = values[:whole].view(-1, ROW)
    best = rows.amax(1).topk(min(rank, len(rows))).indices
    candidates = torch.cat((rows[best].flatten(), values[whole:]))
    return candidates.topk(rank).values[-1].item()
