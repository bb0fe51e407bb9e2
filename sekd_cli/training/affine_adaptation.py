"""Affine adaptation: what a network says of an image and of random transforms of it (paper Sec. 3.1, steps A, C)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sekd_cli.geometry import inside, pixel_grid, sample_map, warp_image, warp_points
from sekd_cli.networks import DenseMaps, DenseNetwork
from sekd_cli.networks.precision import mixed_precision
from sekd_cli.training.photometric import change_light, draw_light
from sekd_cli.training.views import random_affinities


@dataclass(frozen=True, kw_only=True)
class References:
    """The maps of an image (item 0 of the batch) and of its R transforms, and where each pixel came from."""

    maps: DenseMaps  # of a batch of 1 + R
    image_from_reference: Tensor  # (R, 3, 3)


def look_at_references(network: DenseNetwork, image: Tensor, count: int, generator: torch.Generator) -> References:
    """Run the network over an image (1, H, W) and `count` random affine and photometric transforms of it."""
    height, width = image.shape[-2:]
    device = next(network.parameters()).device
    image = image.to(device, non_blocking=True)
    image_from_reference = random_affinities(height, width, count, generator).to(device)
    turned = warp_image(image.expand(count, 1, height, width), image_from_reference, height, width)
    batch = torch.cat((image[None], change_light(turned, draw_light(count, generator))))
    with mixed_precision(device):
        maps = network(batch.contiguous(memory_format=torch.channels_last))
    return References(maps=maps, image_from_reference=image_from_reference)


def adapted_scores(references: References, border: float) -> Tensor:
    """The keypoint probability averaged over the image and its references, each counted where it sees the pixel.

    border: pixels along a reference's edge that don't count. Returns (H, W) in [0, 1].
    """
    scores = references.maps.score_map
    height, width = scores.shape[-2:]
    own = pixel_grid(height, width, device=scores.device)[None]
    xy = warp_points(own.expand(len(scores) - 1, -1, -1), torch.linalg.inv(references.image_from_reference))
    seen = inside(xy, height, width, border)
    returned = sample_map(scores[1:, None], xy)[:, 0] * seen
    total = scores[0] + returned.sum(0).reshape(height, width)
    return total / (1 + seen.sum(0)).reshape(height, width)
