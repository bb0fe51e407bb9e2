"""The network's own keypoints, as the step goes: rivals of the descriptor, and lessons for the detector.

Labels say where keypoints are, not which are best, and only as exactly as they were found. What is asked of the score's
order is that the best keypoints are those that will be matched, which is reliability again (paper Sec. 3.2), measured
on whole sets of keypoints; what is asked of a peak is to be at the same place in both views.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.coordinates import rescale_points
from sekd_cli.detection import maxima_within, octave_score, refine
from sekd_cli.features import sample_descriptors
from sekd_cli.geometry import distances, inside
from sekd_cli.networks import DenseMaps
from sekd_cli.training.octaves import seen_at
from sekd_cli.training.parallax import Correspondence
from sekd_cli.training.ranks import total

RIGHT = 3.0  # pixels within which a match is right
EXACT = 1.0  # pixel at which a right match is worth 1/e of an exact one
WRONG_COST = 0.5  # of a match, of what an exact right one is worth
SOFTNESS = 0.2  # of the selection of the best keypoints, in logits
BUDGETS = (2, 4, 8)  # parts of the own keypoints that are selected
CELL = 80  # pixels along each side of a region
TINY = 1e-18  # odds below which a keypoint has no choice; the square of the inverse, in the gradient, is finite
HUGE = 1e30  # finite, so that a share of 0 of it is 0; of infinity it would be NaN
LARGEST_EXPONENT = 40.0  # of odds: their squares and the squares' sums stay finite, and small ones as far from nothing
SAME = 2.0  # pixels within which two peaks are the same point, found inexactly


class OwnKeypoints(NamedTuple):
    """The strongest keypoints of each view; the first view of all pairs, then the second of all."""

    xy: Tensor  # (2 B, K, 2) whole pixels of the size of the view at which they were found
    peaks: Tensor  # (2 B, K, 2) refined, with their gradient
    present: Tensor  # (2 B, K) bool; fewer maxima than K leave some out
    logits: Tensor  # (2 B, K) scores, with their gradient
    descriptors: Tensor  # (2 B, K, D) unit vectors, with their gradient


def own_keypoints(octaves: Sequence[DenseMaps], seen: Tensor, count: int, radius: int) -> OwnKeypoints:
    """The `count` strongest local maxima of each view, suppressed within `radius` pixels, where `seen` (2 B, H, W).

    octaves: what the network says of the views, and of the views at half their size, and so on; their maxima compete as
    in extraction (`octave_score`).
    """
    parts = [_of_octave(maps, octave, seen, count, radius) for octave, maps in enumerate(octaves)]
    joined = OwnKeypoints(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))
    if len(parts) == 1:
        return joined
    strengths = joined.logits.detach().masked_fill(~joined.present, -torch.inf)
    order = strengths.topk(min(count, strengths.shape[1]), dim=1).indices
    every = torch.arange(len(order), device=order.device)[:, None]
    return OwnKeypoints(*(values[every, order] for values in joined))


def _of_octave(maps: DenseMaps, octave: int, seen: Tensor, count: int, radius: int) -> OwnKeypoints:
    """The strongest of one size of the views, in the pixels of the largest."""
    logits = maps.score_logits.float()
    width, shrunk = logits.shape[-1], 2.0**octave
    with torch.no_grad():
        maxima = maxima_within(logits.detach(), radius, seen_at(seen, octave))
        strengths = logits.detach().masked_fill(~maxima, -torch.inf).flatten(1)
        best, flat = strengths.topk(min(count, strengths.shape[1]), dim=1)
        xy = torch.stack((flat % width, flat // width), dim=-1)
    peaks = refine(logits, *xy.unbind(-1))
    return OwnKeypoints(
        xy=rescale_points(xy.float(), shrunk),
        peaks=rescale_points(peaks, shrunk),
        present=best.isfinite(),
        logits=octave_score(logits.flatten(1).gather(1, flat), octave),
        descriptors=sample_descriptors(maps.descriptor_maps, peaks.detach(), width),
    )


@torch.no_grad()
def right_matches(own: OwnKeypoints, correspondence: Correspondence) -> Tensor:
    """Which keypoints have a mutual nearest neighbour that is the same point, (2 B, K) bool."""
    (first_xy, second_xy), (first, second) = own.xy.chunk(2), own.descriptors.chunk(2)
    absent = [~part for part in own.present.chunk(2)]
    similarity = first @ second.transpose(1, 2)  # (B, K, K)
    similarity = similarity.masked_fill(absent[0][:, :, None] | absent[1][:, None, :], -2.0)
    forward, backward = similarity.argmax(dim=2), similarity.argmax(dim=1)  # (B, K)
    index = torch.arange(forward.shape[1], device=forward.device)
    mutual = backward.gather(1, forward) == index
    there = second_xy.gather(1, forward[..., None].expand(-1, -1, 2))
    near = (correspondence.in_second(first_xy) - there).norm(dim=-1) < RIGHT
    right = mutual & near & ~absent[0]
    back = right.gather(1, backward) & (forward.gather(1, backward) == index)
    return torch.cat((right, back))


def _selected(own: OwnKeypoints, count: int) -> Tensor:
    """How much each keypoint is among the best `count` of its view, (2 B, K) in [0, 1].

    What one gains, others of its cell of `CELL` pixels lose: this favours the best of every region, not the best
    region, for points that lie together say little of a geometry.
    """
    logits = own.logits.masked_fill(~own.present, -1e4)
    cut = logits.detach().topk(count, dim=1).values[:, -1:]
    slope = ((logits.detach() - cut) / SOFTNESS).sigmoid()
    slope = slope * (1 - slope)
    column, row = (own.xy / CELL).long().unbind(-1)
    cells = F.one_hot(row * (column.max() + 1) + column).to(logits.dtype)  # (2 B, K, cells)
    # the cut is where it is, but moves as its cell's scores do: raising all of a cell changes nothing
    change = (slope * (logits - logits.detach()))[:, None] @ cells / (slope[:, None] @ cells).clamp(min=TINY)
    moved = (cells @ change.transpose(1, 2))[..., 0]
    return ((logits - cut - moved) / SOFTNESS).sigmoid() * own.present


def matching_losses(own: OwnKeypoints, correspondence: Correspondence, scale: float) -> tuple[Tensor, Tensor]:
    """Wrong matches less right ones to be expected of two views: of all keypoints, and of the best.

    A match's probability is that both keypoints choose each other, by a softmax of this scale over the other view; a
    right one is worth 1 if exact and soon less (`EXACT`), since geometry is found from those, and a wrong one
    costs `WRONG_COST`, since a robust estimator leaves it out. The first, for each keypoint that can be matched,
    teaches keypoints without a counterpart, whose mutual neighbours are most of all wrong matches, to be nobody's
    choice. The second, a keypoint selected, is the mean over `BUDGETS` and teaches the scores: places among the best go
    to points that are found in both views, not to those of one.
    """
    first_peaks, second_peaks = own.peaks.detach().chunk(2)
    first, second = own.descriptors.chunk(2)
    here, there = own.present.chunk(2)
    with torch.no_grad():
        warped = correspondence.in_second(first_peaks)
        apart = distances(warped, second_peaks)
        right = (apart < RIGHT) & here[:, :, None] & there[:, None]  # (B, K, K)
        cost = torch.where(right, -torch.exp(-apart / EXACT), WRONG_COST)
    views, most = own.logits.shape
    counts = [max(1, most // part) for part in BUDGETS]
    shares = torch.stack([own.present.to(first.dtype), *(_selected(own, count) for count in counts)], dim=-1)
    both = (here.any(dim=1) & there.any(dim=1)).repeat(2)  # a view without keypoints teaches nothing: 0 / 0
    shares = shares * both[:, None, None]
    first_share, second_share = shares.chunk(2)  # (B, K, n): how much each keypoint is there, in n cases
    start = first.new_full((1, 1, 1), LARGEST_EXPONENT - scale)
    odds = torch.baddbmm(start, first, second.transpose(1, 2), alpha=scale).exp()
    forward = first_share.square() / (odds @ second_share).clamp(min=TINY)
    backward = second_share.square() / (odds.transpose(1, 2) @ first_share).clamp(min=TINY)
    chosen = ((odds.square() * cost) @ backward).clamp(-HUGE, HUGE)
    expected = (forward * chosen).sum((0, 1))  # (n,)
    best = (expected[1:] / expected.new_tensor(counts)).mean() / total(expected.new_tensor(views / 2))
    return expected[0] / total(right.any(dim=2).sum()).clamp(min=1), best


def ranking_loss(own: OwnKeypoints, correspondence: Correspondence, height: int, width: int) -> Tensor:
    """Cross entropy between a keypoint's score and whether it was matched right, where the other view looks."""
    first_xy, second_xy = own.xy.chunk(2)
    there = torch.cat((correspondence.in_second(first_xy), correspondence.in_first(second_xy)))
    counted = own.present & inside(there, height, width)
    target = right_matches(own, correspondence).to(own.logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(own.logits, target, reduction="none")
    return (entropy * counted).sum() / total(counted.sum()).clamp(min=1)


def position_loss(own: OwnKeypoints, correspondence: Correspondence) -> Tensor:
    """Mean distance, in pixels, between the refined peaks of the same point in two views.

    The same are peaks that are nearest to each other and within `SAME` pixels.
    """
    first, second = own.peaks.chunk(2)  # (B, K, 2)
    there = correspondence.in_second(first).nan_to_num(posinf=-1e4)  # beyond the horizon: inf has no gradient
    with torch.no_grad():
        distance = distances(there, second)
        absent = [~part for part in own.present.chunk(2)]
        distance = distance.masked_fill(absent[0][:, :, None] | absent[1][:, None, :], torch.inf)
        nearest, partner = distance.min(dim=2)
        mutual = distance.argmin(dim=1).gather(1, partner) == torch.arange(partner.shape[1], device=partner.device)
        same = mutual & (nearest < SAME)
    apart = there - second.gather(1, partner[..., None].expand(-1, -1, 2))
    error = (apart.square().sum(-1) + 1e-4).sqrt().where(same, torch.zeros(()))
    return error.sum() / total(same.sum()).clamp(min=1)
