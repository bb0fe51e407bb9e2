"""Teaching the descriptor to tell the detector's points apart (paper Sec. 3.1 step B, Sec. 3.3)."""

import torch
from torch import Tensor

from sekd_cli.training.ranking import LARGEST_EXPONENT, OwnKeypoints
from sekd_cli.training.ranks import previous, total

DUPLICATE = 0.008  # descriptor distance below which a "negative" is the same structure again (paper Sec. 4.1)


def farther(points: Tensor, others: Tensor, radius: float) -> Tensor:
    """Which pixels (B, P, 2) and (B, Q, 2) of a view are `radius` or more apart, (B, P, Q) bool."""
    return torch.cdist(points, others, compute_mode="use_mm_for_euclid_dist") >= radius


def largest_exponent(scale: float) -> float:
    """The exponent that `odds_of` gives equal descriptors.

    0 at small scales; larger at large ones, so that the odds of unlike descriptors don't become 0 in float32.
    """
    return min(max(scale - LARGEST_EXPONENT, 0.0), LARGEST_EXPONENT)


def odds_of(first: Tensor, second: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Exponentials of scale times a cosine, up to `largest_exponent`; 0 where not `allowed`, (B, P, Q) or broadcast.

    first, second: (B, P, D) and (B, Q, D), unit vectors, so that nothing overflows and no maximum is taken out of sums.
    """
    start = torch.where(allowed, first.new_tensor(largest_exponent(scale) - scale), -torch.inf)
    return torch.baddbmm(start, first, second.transpose(1, 2), alpha=scale).exp()


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
    far = [farther(one, one, safe_radius) for one in points]
    odds = odds_of(first, second, (matched[:, None, :] & matched[:, :, None] & far[0] & far[1]) | same, scale)
    elsewhere = previous(matched)[:, None, :]  # (B, 1, P)
    wrong_first = odds_of(first, previous(second), elsewhere, scale).sum(dim=2)
    wrong_second = odds_of(second, previous(first), elsewhere, scale).sum(dim=2)
    if own is not None:
        rivals = rival_odds(torch.cat((first, second)), torch.cat(points), own, scale, safe_radius).chunk(2)
        wrong_first, wrong_second = wrong_first + rivals[0], wrong_second + rivals[1]
    own_exponent = scale * ((first * second).sum(dim=2) - 1) + largest_exponent(scale)
    surprise = (odds.sum(dim=2) + wrong_first).log() + (odds.sum(dim=1) + wrong_second).log() - 2 * own_exponent
    return (surprise * matched).sum() / total(matched.sum()).clamp(min=1)


def rival_odds(descriptors: Tensor, points: Tensor, own: OwnKeypoints, scale: float, safe_radius: float) -> Tensor:
    """Odds that points are taken for keypoints of the other view that are elsewhere.

    descriptors, points: (2 B, P, D) and (2 B, P, 2), the same points in the first views and in the second.
    Returns (2 B, P).
    """
    pairs = len(points) // 2
    far = farther(points.roll(pairs, 0), own.xy.roll(pairs, 0), safe_radius)
    rivals = far & own.present.roll(pairs, 0)[:, None]
    return odds_of(descriptors, own.descriptors.roll(pairs, 0), rivals, scale).sum(dim=2)


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
