"""Teaching the descriptor to tell the detector's points apart (paper Sec. 3.1 step B, Sec. 3.3)."""

import torch
from torch import Tensor

from sekd_cli.training.ranking import OwnKeypoints
from sekd_cli.training.ranks import previous, total

DUPLICATE = 0.008  # descriptor distance below which a "negative" is the same structure again (paper Sec. 4.1)


def near_others(points: Tensor, radius: float) -> Tensor:
    """Pairs of points nearer than `radius` pixels: (B, P, 2) -> (B, P, P) bool."""
    x, y = points.unbind(-1)
    return (x[:, :, None] - x[:, None]) ** 2 + (y[:, :, None] - y[:, None]) ** 2 < radius**2


def dual_softmax_loss(
    first: Tensor,
    second: Tensor,
    points: tuple[Tensor, Tensor],
    matched: Tensor,
    *,
    scale: float,
    safe_radius: float,
    own: OwnKeypoints | None = None,
) -> Tensor:
    """Negative log probability that each point finds its own in the other view, both ways.

    first, second: (B, P, D) unit descriptors of the same points in both views; points: their pixels, two of (B, P, 2);
    matched: (B, P) bool, which count. The other points of the pair and those of the next photograph are the wrong
    answers, but not those within `safe_radius` pixels; so are the network's own keypoints in the other view.
    """
    same = torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
    near = near_others(points[0], safe_radius) | near_others(points[1], safe_radius)
    counted = (matched[:, None, :] & matched[:, :, None] & ~near) | same  # (B, P, P)
    elsewhere = previous(matched)[:, None, :]  # (B, 1, P)

    # cosines are at most 1, so exp(scale * (cosine - 1)) never overflows and sums need no maximum taken out
    similarity = scale * (first @ second.transpose(1, 2) - 1)  # (B, P, P)
    odds = similarity.exp() * counted
    odds_first = (scale * (first @ previous(second).transpose(1, 2) - 1)).exp() * elsewhere
    odds_second = (scale * (second @ previous(first).transpose(1, 2) - 1)).exp() * elsewhere
    wrong_first, wrong_second = odds_first.sum(dim=2), odds_second.sum(dim=2)
    if own is not None:
        rivals = rival_odds(torch.cat((first, second)), torch.cat(points), own, scale, safe_radius).chunk(2)
        wrong_first, wrong_second = wrong_first + rivals[0], wrong_second + rivals[1]
    all_odds = (odds.sum(dim=2) + wrong_first) * (odds.sum(dim=1) + wrong_second)
    surprise = all_odds.log() - 2 * similarity.diagonal(dim1=1, dim2=2)
    return (surprise * matched).sum() / total(matched.sum()).clamp(min=1)


def rival_odds(descriptors: Tensor, points: Tensor, own: OwnKeypoints, scale: float, safe_radius: float) -> Tensor:
    """Odds that points are taken for keypoints of the other view that are elsewhere.

    descriptors, points: (2 B, P, D) and (2 B, P, 2), the same points in the first views and in the second.
    Returns (2 B, P).
    """
    pairs = len(points) // 2
    (x, y), (rival_x, rival_y) = points.roll(pairs, 0).unbind(-1), own.xy.roll(pairs, 0).unbind(-1)
    far = (x[:, :, None] - rival_x[:, None]) ** 2 + (y[:, :, None] - rival_y[:, None]) ** 2 >= safe_radius**2
    odds = (scale * (descriptors @ own.descriptors.roll(pairs, 0).transpose(1, 2) - 1)).exp()
    return (odds * (far & own.present.roll(pairs, 0)[:, None])).sum(dim=2)


def hardest_in_batch_loss(first: Tensor, second: Tensor, matched: Tensor, ratio: float) -> Tensor:
    """Distance to the own point less that to the hardest other, both ways, of the points that are hard (paper Eq. 3).

    first, second: (B, P, D) unit descriptors of the same points in both views; matched: (B, P) bool. Only points whose
    d+ / d- exceeds `ratio` count; others nearer than DUPLICATE are the same structure again.
    """
    similarity = first @ second.transpose(1, 2)
    distance = (2 - 2 * similarity).clamp(min=1e-8).sqrt()  # (B, P, P) of unit vectors
    positive = distance.diagonal(dim1=1, dim2=2)
    own = torch.eye(first.shape[1], dtype=torch.bool, device=first.device)
    excluded = own | (distance < DUPLICATE) | ~matched[:, None, :] | ~matched[:, :, None]
    others = distance.masked_fill(excluded, 4.0)  # farther than any two unit vectors
    negative = torch.minimum(others.min(dim=1).values, others.min(dim=2).values)
    hard = matched & (positive > ratio * negative) & (negative < 4.0)
    return ((positive - negative) * hard).sum() / total(hard.sum()).clamp(min=1)
