"""Repeatability of the detector: the same probability at corresponding pixels of two views (paper Sec. 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.geometry import inside, pixel_grid, sample_map
from sekd_cli.training.parallax import Correspondence
from sekd_cli.training.ranks import ranks, total


def detector_repeatability(
    first_logits: Tensor,
    second_logits: Tensor,
    correspondence: Correspondence,
    second_seen: Tensor,
    first_seen: Tensor | None = None,
    *,
    stride: int = 2,
) -> Tensor:
    """Symmetric Kullback-Leibler divergence of keypoint probabilities, weighted by their mean (paper Eq. 6).

    first_logits, second_logits: (B, H, W); second_seen, first_seen: (B, H, W) bool, where a view shows the photograph;
    without the latter the first shows it wherever the second does. stride: every so many pixels of the second along
    each axis are compared.
    """
    batch, height, width = second_logits.shape
    xy = (
        pixel_grid(height, width, device=second_logits.device)
        .reshape(height, width, 2)[::stride, ::stride]
        .reshape(-1, 2)
    )
    first_xy = correspondence.in_first(xy.expand(batch, -1, -1))
    first = sample_map(first_logits[:, None], first_xy)[:, 0]
    second = second_logits[:, ::stride, ::stride].flatten(1)
    counted = second_seen[:, ::stride, ::stride].flatten(1) & inside(first_xy, height, width)
    if first_seen is not None:
        counted &= sample_map((~first_seen).float()[:, None], first_xy)[:, 0] == 0
    p, q = first.sigmoid(), second.sigmoid()
    # KL(p, q) + KL(q, p) of two Bernoulli distributions is (p - q) (logit p - logit q)
    divergence = (p - q) * (first - second)
    weight = (p + q).detach() / 2 * counted
    return (divergence * weight).sum() / total(weight.sum()).clamp(min=1e-6)


def frozen_detector_loss(score_logits: Tensor, frozen_logits: Tensor) -> Tensor:
    """How far the detector moved while the descriptor was learning: MSE on the scores (paper step B)."""
    return F.mse_loss(score_logits.sigmoid(), frozen_logits.sigmoid()) / ranks()


def frozen_descriptor_loss(descriptor_maps: tuple[Tensor, ...], frozen_maps: tuple[Tensor, ...]) -> Tensor:
    """How far the descriptors moved while the detector was learning: MSE on the normalised maps (paper step D)."""
    pairs = zip(descriptor_maps, frozen_maps, strict=True)
    losses = [
        F.mse_loss(F.normalize(maps.float(), dim=1), F.normalize(frozen.float(), dim=1)) for maps, frozen in pairs
    ]
    return torch.stack(losses).mean() / ranks()
