"""Teaching the detector where the labels are (paper Sec. 3.1 step D, Sec. 3.3)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.training.ranks import total

REACH = 2  # pixels around a label that its Gaussian covers: beyond three sigmas of 0.7


def draw_targets(keypoints: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Keypoint probability that the detector should give: a Gaussian at each label, the largest where two meet.

    keypoints: (B, K, 2) pixels; those outside draw nothing. sigma: pixels; 0 for 1 at the label's pixel, 0 elsewhere.
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
    """Cross entropy of keypoint probabilities times |target - p| ** gamma, divided by the sum of targets (paper Eq. 5).

    score_logits, targets, seen: (B, H, W); pixels that aren't seen don't count.
    balance: weigh the background by #positives / #negatives, as the paper does with its targets of 0 and 1.
    """
    positive = total((targets * seen).sum())
    weight = seen.to(targets.dtype)
    if balance:
        background = (total(seen.sum()) - positive).clamp(min=1)
        weight = weight * torch.where(targets > 0, 1.0, positive / background)
    loss: Tensor = _FocalSum.apply(score_logits, targets, weight, gamma)  # type: ignore[no-untyped-call]
    return loss / positive.clamp(min=1)


class _FocalSum(torch.autograd.Function):
    """Sum of weight * entropy * |target - p| ** gamma, with its gradient made in the same pass.

    Autograd would keep a dozen full-resolution maps. An image at a time, what there is stays in a CPU's cache.
    """

    @staticmethod
    def forward(ctx: Any, score_logits: Tensor, targets: Tensor, weight: Tensor, gamma: float) -> Tensor:
        gradient = torch.empty_like(score_logits)
        total = score_logits.new_zeros(())
        step = 1 if score_logits.device.type == "cpu" else len(score_logits)
        parts = zip(*(torch.split(part, step) for part in (score_logits, targets, weight, gradient)), strict=True)
        for logits, target, counted, into in parts:
            p = logits.sigmoid()
            error = p - target
            off = error.abs()
            entropy = F.softplus(logits) - logits * target
            focused = counted * off**gamma
            total += (focused * entropy).sum()
            slope = p * (1 - p) * error.sign()  # of the distance `off`, by the logit
            focused_slope = focused / off.clamp_(min=1e-12)  # times gamma
            torch.addcmul(focused * error, entropy.mul_(gamma), slope.mul_(focused_slope), out=into)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None
