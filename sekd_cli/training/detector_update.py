"""Teaching the detector where the labels are (paper Sec. 3.1 step D, Sec. 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 2  # pixels around a label that its Gaussian covers: beyond three sigmas of 0.7


def draw_targets(keypoints: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Keypoint probability that the detector should give: a Gaussian at each label, the largest where two meet.

    keypoints: (B, K, 2) pixels; those outside draw nothing. sigma: pixels; 0 for 1 at the
    label's pixel and 0 elsewhere.
    Returns (B, height, width) in [0, 1].
    """
    reach = torch.arange(-REACH, REACH + 1) if sigma > 0 else torch.zeros(1, dtype=torch.long)
    dy, dx = torch.meshgrid(reach, reach, indexing="ij")
    offsets = torch.stack((dx, dy), dim=-1).reshape(-1, 2).to(keypoints.device)
    pixels = keypoints.round()[:, :, None] + offsets  # (B, K, n, 2)
    squared = (pixels - keypoints[:, :, None]).square().sum(-1)
    values = torch.exp(-squared / (2 * sigma**2)) if sigma > 0 else torch.ones_like(squared)
    x, y = pixels.long().unbind(-1)
    drawn = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    position = torch.where(drawn, y * width + x, torch.zeros_like(x)).flatten(1)
    values = torch.where(drawn, values, torch.zeros_like(values)).flatten(1)
    targets = values.new_zeros(len(keypoints), height * width)
    return targets.scatter_reduce_(1, position, values, "amax").reshape(-1, height, width)


def focal_loss(score_logits: Tensor, targets: Tensor, seen: Tensor, gamma: float, balance: bool) -> Tensor:
    """Cross entropy of keypoint probabilities, where they're far from their targets, a labelled pixel (paper Eq. 5).

    score_logits, targets, seen: (B, H, W); pixels that aren't seen don't count. gamma: exponent of |target - p|.
    balance: weigh the background by #positives / #negatives, as the paper does with its targets of 0 and 1.
    """
    entropy = F.binary_cross_entropy_with_logits(score_logits, targets, reduction="none")
    loss = entropy * (targets - score_logits.sigmoid()).abs() ** gamma * seen
    positive = (targets * seen).sum()
    if balance:
        background = (seen.sum() - positive).clamp(min=1)
        loss = loss * torch.where(targets > 0, 1.0, positive / background)
    return loss.sum() / positive.clamp(min=1)
