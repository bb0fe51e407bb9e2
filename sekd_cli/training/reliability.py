"""Reliability: can a descriptor be found again, and told apart from its neighbours (paper Sec. 3.2, step C)."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.coordinates import rescale_points
from sekd_cli.geometry import inside, pixel_grid, resize_image, sample_map, warp_points
from sekd_cli.training.affine_adaptation import References
from sekd_cli.training.settings import TrainingSettings

SOFTENING = 0.03  # added to the repeatability distance, so that none is divided by nothing (paper)
CORNER_WINDOW = 3  # pixels along each side, over which a raw patch is compared with its shifts
WEAKEST_CORNER = 0.003  # of the photograph's strongest: below are sky, walls and noise
NO_CORNER = 1e-7  # below which nothing is one, whatever the photograph's strongest


def _distances(own: Tensor, other: Tensor) -> Tensor:
    """Euclidean distances between unit vectors along dimension -3: (C, h, w), (..., C, h, w) -> (..., h, w)."""
    return (2 - 2 * (own * other).sum(dim=-3)).clamp(min=0).sqrt()


def map_reliability(feature_map: Tensor, references: References, settings: TrainingSettings) -> Tensor:
    """Reliability of every position of one feature map.

    feature_map: (1 + R, C, h, w), the image's and its references'. Returns (h, w): the mean over the references that
    see a position of distinctness / (repeatability + 0.03). Repeatability is the distance to the true corresponding
    position; distinctness the smallest distance to the other positions of a window around that.
    """
    features = F.normalize(feature_map.float(), dim=1)
    own, others = features[0], features[1:]
    count, channels, height, width = others.shape
    map_scale = references.maps.score_logits.shape[-1] / width
    centres = rescale_points(pixel_grid(height, width, device=own.device), map_scale)
    xy = warp_points(centres.expand(count, -1, -1), torch.linalg.inv(references.image_from_reference[:count]))
    extent = references.maps.score_logits.shape[-2:]
    seen = inside(xy, *extent).reshape(count, height, width)
    aligned = sample_map(others, xy, map_scale=map_scale).reshape(count, channels, height, width)
    aligned = F.normalize(aligned, dim=1)

    repeatability = _distances(own, aligned)
    distinctness = _nearest_neighbour(own, aligned, settings)
    if not settings.descriptor_repeatability:
        repeatability = torch.ones_like(repeatability)
    if not settings.descriptor_distinctness:
        distinctness = torch.ones_like(distinctness)
    ratio = distinctness / (repeatability + SOFTENING) * seen
    return ratio.sum(0) / seen.sum(0).clamp(min=1)


def _nearest_neighbour(own: Tensor, aligned: Tensor, settings: TrainingSettings) -> Tensor:
    """Smallest distance from each position of (C, h, w) to the window's other positions in (R, C, h, w): (R, h, w)."""
    step, half = settings.reliability_window_stride, settings.reliability_window // 2
    height, width = own.shape[-2:]
    padded = F.pad(aligned, (half * step,) * 4)  # nothing there: as far as vectors at right angles
    nearest = torch.full_like(aligned[:, 0], -1.0)
    for down in range(2 * half + 1):
        for right in range(2 * half + 1):
            if (down, right) != (half, half):
                shifted = padded[..., down * step : down * step + height, right * step : right * step + width]
                nearest = torch.maximum(nearest, (own * shifted).sum(dim=1))
    return (2 - 2 * nearest).clamp(min=0).sqrt()


def reliability(references: References, settings: TrainingSettings) -> Tensor:
    """Reliability of every pixel, (H, W): of the descriptor and of the low-level feature, weighted (paper Sec. 3.2)."""
    keep = 1 + settings.reliability_references
    height, width = references.maps.score_logits.shape[-2:]
    levels = (
        (references.maps.descriptor_map, 1 - settings.low_level_weight),
        (references.maps.low_level_map, settings.low_level_weight),
    )
    total = torch.zeros(height, width, device=references.maps.score_logits.device)
    for feature_map, weight in levels:
        if weight > 0:
            level = map_reliability(feature_map[:keep], references, settings)
            total += weight * resize_image(level[None, None], height, width)[0, 0]
    return total


def corner_strength(image: Tensor) -> Tensor:
    """Reliability of raw patches, before there is a network: logarithm of the structure tensor's smaller eigenvalue.

    To second order that eigenvalue is the smallest change that a small shift makes to the patch: its distinctness.
    image: (1, H, W) in [0, 1]. Returns (H, W), at most 0, cut off well below the weakest corner that counts.
    """
    smooth = cv2.GaussianBlur(image[0].numpy(), (0, 0), 1.0)
    strength = cv2.cornerMinEigenVal(smooth, CORNER_WINDOW, ksize=3)
    strongest = max(float(strength.max()), NO_CORNER / WEAKEST_CORNER)
    return torch.from_numpy(np.log(np.maximum(strength, WEAKEST_CORNER * strongest * 1e-2) / strongest))
