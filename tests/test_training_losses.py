"""The losses and labels of training, against values by hand, plain formulas and laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from plane import planar

from sekd_cli.training.descriptor_update import dual_softmax_loss, hardest_in_batch_loss
from sekd_cli.training.detector_update import draw_targets, focal_loss
from sekd_cli.training.ranking import OwnKeypoints
from sekd_cli.training.repeatability import detector_repeatability, frozen_descriptor_loss, frozen_detector_loss


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_a_label_on_a_pixel_draws_one_there_and_the_gaussian_beside_it() -> None:
    targets = draw_targets(torch.tensor([[[5.0, 4.0]]]), 10, 12, sigma=0.7)
    assert targets[0, 4, 5] == 1
    assert targets[0, 4, 6] == pytest.approx(math.exp(-1 / (2 * 0.49)))
    assert targets[0, 5, 6] == pytest.approx(math.exp(-2 / (2 * 0.49)))
    assert targets[0, 4, 8] == 0


def test_a_label_between_pixels_is_symmetric_about_itself() -> None:
    targets = draw_targets(torch.tensor([[[5.5, 4.0]]]), 10, 12, sigma=0.7)
    assert targets[0, 4, 5] == targets[0, 4, 6] == pytest.approx(math.exp(-0.25 / (2 * 0.49)))


def test_labels_outside_draw_nothing_and_those_at_the_edge_only_inside() -> None:
    for corner in (0, 7):
        labels = torch.tensor([[[-1e4, -1e4], [corner, corner], [300.0, 2.0]]])
        targets = draw_targets(labels, 8, 8, sigma=0.7)
        assert targets[0, corner, corner] == 1
        assert (targets > 0).sum() == 9


def test_where_labels_meet_the_larger_counts() -> None:
    targets = draw_targets(torch.tensor([[[5.0, 4.0], [6.0, 4.0]]]), 10, 12, sigma=0.7)
    assert targets.amax() == targets[0, 4, 5] == targets[0, 4, 6] == 1


def test_sigma_zero_marks_the_nearest_pixel_alone() -> None:
    targets = draw_targets(torch.tensor([[[5.4, 3.6]]]), 8, 8, sigma=0.0)
    assert targets.sum() == 1
    assert targets[0, 4, 5] == 1


def test_the_focal_loss_of_one_pixel_by_hand() -> None:
    logit = torch.tensor([[[0.4]]])
    p = 1 / (1 + math.exp(-0.4))
    loss = focal_loss(logit, torch.ones(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), gamma=1.0, balance=False)
    assert float(loss) == pytest.approx(-(1 - p) * math.log(p), rel=1e-5)


def test_balancing_makes_one_positive_weigh_as_much_as_all_the_background() -> None:
    logits, targets = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    targets[0, 1, 1] = 1
    seen = torch.ones(1, 4, 4, dtype=torch.bool)
    each = 0.5 * math.log(2)  # |t - p| = 1/2, entropy = ln 2
    assert float(focal_loss(logits, targets, seen, 1.0, balance=True)) == pytest.approx(2 * each, rel=1e-5)
    assert float(focal_loss(logits, targets, seen, 1.0, balance=False)) == pytest.approx(16 * each, rel=1e-5)


@pytest.mark.parametrize(("balance", "pixels"), [(False, 16), (True, 0)])
def test_views_without_labels_have_a_loss(balance: bool, pixels: int) -> None:
    logits, seen = torch.zeros(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    loss = focal_loss(logits, torch.zeros(1, 4, 4), seen, 1.0, balance=balance)
    assert float(loss) == pytest.approx(pixels * 0.5 * math.log(2))


def test_pixels_that_are_not_seen_do_not_count() -> None:
    targets = torch.zeros(1, 4, 4)
    targets[0, 1, 1] = 1
    seen = torch.ones(1, 4, 4, dtype=torch.bool)
    seen[0, :, 3] = False
    logits = torch.zeros(1, 4, 4)
    wild = logits.clone()
    wild[0, :, 3] = 50.0
    assert focal_loss(logits, targets, seen, 2.0, balance=False) == focal_loss(wild, targets, seen, 2.0, balance=False)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_focal_loss_and_its_gradient_are_those_of_the_plain_formula(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets, chance = (torch.randn(3, 5, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    targets = targets.clamp(0, 1)
    seen = chance > -1
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    plain = entropy * (targets - logits.sigmoid()).abs() ** gamma * seen / (targets * seen).sum()
    assert float(focal_loss(logits, targets, seen, gamma, balance=False)) == pytest.approx(float(plain.sum()))
    assert torch.autograd.gradcheck(
        lambda values: 3 * focal_loss(values, targets, seen, gamma, balance=True), logits.requires_grad_()
    )


def test_equal_score_maps_are_perfectly_repeatable_and_a_shifted_one_under_its_shift() -> None:
    logits = torch.randn(1, 16, 20, generator=torch.Generator().manual_seed(1))
    seen = torch.ones(1, 16, 20, dtype=torch.bool)
    identity = planar(torch.eye(3)[None])
    assert float(detector_repeatability(logits, logits, identity, seen, stride=1)) == pytest.approx(0, abs=1e-6)
    shift = planar(torch.tensor([[[1.0, 0, 3], [0, 1, 2], [0, 0, 1]]]))  # second = first moved by (3, 2)
    moved = torch.roll(logits, (2, 3), dims=(1, 2))
    assert float(detector_repeatability(logits, moved, shift, seen, stride=1)) == pytest.approx(0, abs=1e-6)
    assert float(detector_repeatability(logits, moved, identity, seen, stride=1)) > 0.1


def test_repeatability_of_one_pixel_is_the_symmetric_divergence_by_hand() -> None:
    first, second = torch.tensor([[[1.0]]]), torch.tensor([[[-1.0]]])
    p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(1.0))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    seen = torch.ones(1, 1, 1, dtype=torch.bool)
    loss = detector_repeatability(first, second, planar(torch.eye(3)[None]), seen, stride=1)
    assert float(loss) == pytest.approx(2 * kl, rel=1e-5)


def test_repeatability_is_weighted_by_the_mean_probability_which_is_not_taught() -> None:
    first, second = torch.tensor([[[1.0, -2.0]]], requires_grad=True), torch.tensor([[[-1.0, 0.5]]], requires_grad=True)
    p, q = first.sigmoid(), second.sigmoid()
    weight = (p + q).detach()
    expected = ((p - q) * (first - second) * weight).sum() / weight.sum()
    seen = torch.ones(1, 1, 2, dtype=torch.bool)
    loss = detector_repeatability(first, second, planar(torch.eye(3)[None]), seen, stride=1)
    torch.testing.assert_close(loss, expected)
    for found, true in zip(*(torch.autograd.grad(one, (first, second)) for one in (loss, expected)), strict=True):
        torch.testing.assert_close(found, true)


def test_repeatability_counts_no_pixel_that_the_first_view_hides_even_in_part() -> None:
    first, second = torch.randn(2, 1, 16, 20, generator=torch.Generator().manual_seed(2))
    there = planar(torch.tensor([[[1.0, 0, 0.5], [0, 1, 0], [0, 0, 1]]]))  # half a pixel to the right
    seen, first_seen = torch.ones(2, 1, 16, 20, dtype=torch.bool)
    first_seen[0, :, 10:] = False
    wild = first.clone()
    wild[0, :, 10:] = 9.0
    losses = [
        float(detector_repeatability(logits, second, there, seen, first_seen, stride=1)) for logits in (first, wild)
    ]
    assert losses[0] == losses[1] > 0
    second_alone = seen.clone()
    second_alone[0, :, 10:] = False  # pixel 10 is at 9.5 in the first view, of which pixel 10 is hidden
    assert losses[0] == float(detector_repeatability(first, second, there, second_alone, stride=1))


def far_apart(count: int) -> torch.Tensor:
    """Points (2, count, 2) of two images."""
    return (torch.arange(count) * 100.0)[None, :, None].expand(2, -1, 2)


def dual(
    first: torch.Tensor, second: torch.Tensor, points: torch.Tensor, matched: torch.Tensor, scale: float = 20.0
) -> torch.Tensor:
    return dual_softmax_loss(first, second, (points, points), matched, scale=scale, safe_radius=6.0)


@pytest.mark.parametrize("count", [0, 3])
def test_dual_softmax_is_cross_entropy_both_ways_over_own_and_next_photograph_and_own_keypoints(count: int) -> None:
    first, second, points = unit(2, 5, 8, seed=1), unit(2, 5, 8, seed=2), far_apart(5)
    matched = torch.ones(2, 5, dtype=torch.bool)
    xy = torch.full((4, count, 2), -100.0)
    xy[2:, :1] = points[0, 0]  # in the second views one is the first point itself
    rivals = OwnKeypoints(xy, xy, torch.ones(4, count, dtype=torch.bool), xy[..., 0], unit(4, count, 8, seed=3))
    expected = 0.0
    for b in range(2):
        for i in range(5):
            for query, own, other, view in ((first, second, second[1 - b], 1), (second, first, first[1 - b], 0)):
                elsewhere = rivals.descriptors[2 * view + b, view * (i == 0) :]
                logits = 20 * torch.cat((own[b], other, elsewhere)) @ query[b, i]
                expected += float(F.cross_entropy(logits[None], torch.tensor([i]))) / 10
    found = dual_softmax_loss(first, second, (points, points), matched, scale=20.0, safe_radius=6.0, own=rivals)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    if not count:
        assert found == dual(first, second, points, matched)


def test_dual_softmax_of_unlike_descriptors_is_finite_at_large_scales() -> None:
    first, second = (
        F.normalize(torch.eye(8) + 0.05, dim=1)[:4].expand(2, 4, 8).clone(),
        -torch.eye(8)[4:].expand(2, 4, 8),
    )
    matched = torch.ones(2, 4, dtype=torch.bool)
    for scale in (20.0, 50.0, 80.0, 100.0):
        exact = float(dual(first.double(), second.double(), far_apart(4), matched, scale))
        ours = first.clone().requires_grad_()
        loss = dual(ours, second, far_apart(4), matched, scale)
        assert float(loss.detach()) == pytest.approx(exact, rel=1e-4)
        (slope,) = torch.autograd.grad(loss, ours)
        assert slope.isfinite().all()


def test_near_points_and_unmatched_points_are_no_wrong_answers() -> None:
    first = unit(2, 3, 8, seed=3)
    second = first.clone()
    matched = torch.tensor([[True, True, False], [False, False, False]])
    far, near = far_apart(3), far_apart(3).clone()
    near[0, 1] = near[0, 0] + 3.0  # within the safe radius of the first
    for points in ((near, near), (near, far), (far, near)):
        loss = dual_softmax_loss(first, second, points, matched, scale=20.0, safe_radius=6.0)
        assert float(loss) == pytest.approx(0, abs=1e-12)


def test_dual_softmax_has_the_gradient_of_its_value() -> None:
    first, second = unit(2, 3, 4, seed=5).requires_grad_(), unit(2, 3, 4, seed=6).requires_grad_()
    matched = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda a, b: dual(a, b, far_apart(3), matched), (first, second))


def test_the_triplet_loss_by_hand() -> None:
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    angle = math.radians(60)
    second = torch.tensor([[[math.cos(angle), math.sin(angle)], [0.0, 1.0]]])
    # point 0: d+ = 2 sin 30 = 1; its hardest other is second[1] at sqrt 2, or from the other side first[1] at
    # 2 sin 15 to second[0]. Point 1: d+ = 0, so it is easy and does not count.
    negative = 2 * math.sin(math.radians(15))
    loss = hardest_in_batch_loss(first, second, torch.ones(1, 2, dtype=torch.bool), ratio=0.85)
    assert float(loss) == pytest.approx(1 - negative, abs=1e-3)


def test_duplicates_are_not_negatives() -> None:
    first, second = (
        torch.tensor([[[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in angles]])
        for angles in ((0, 90), (60, 0.1))  # the second point of the second view looks like the first of the first
    )
    loss = hardest_in_batch_loss(first, second, torch.ones(1, 2, dtype=torch.bool), ratio=0.85)
    positives = 2 * math.sin(math.radians(30)) + 2 * math.sin(math.radians(44.95))
    assert float(loss) == pytest.approx(positives / 2 - 2 * math.sin(math.radians(15)), abs=1e-3)


@pytest.mark.parametrize("ratio", [0.85, 0.0])
def test_the_triplet_loss_is_of_hard_points_against_matched_ones_of_either_view(ratio: float) -> None:
    first, noise = unit(3, 30, 4, seed=1), unit(3, 30, 4, seed=2)
    second = F.normalize(first + 0.6 * noise, dim=2)
    matched = torch.rand(3, 30, generator=torch.Generator().manual_seed(3)) < 0.4
    matched[2] = False
    matched[2, 5] = True  # alone: there is nothing else to take it for
    apart = torch.cdist(first, second)
    costs, easy = [], 0
    for pair in range(2):
        there = matched[pair].nonzero()[:, 0].tolist()
        for point in there:
            others = [other for other in there if other != point]
            negative = min(apart[pair, point, others].min(), apart[pair, others, point].min())
            positive = apart[pair, point, point]
            if positive > ratio * negative:
                costs.append(float(positive - negative))
                easy += bool(positive < negative)
    assert 0 < easy < len(costs)
    assert (len(costs) < matched[:2].sum()) == (ratio > 0)
    assert float(hardest_in_batch_loss(first, second, matched, ratio=ratio)) == pytest.approx(sum(costs) / len(costs))


def test_no_matched_point_costs_nothing() -> None:
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    first, second = unit(2, 4, 8), unit(2, 4, 8, seed=9)
    assert float(dual(first, second, far_apart(4), nothing)) == 0
    assert float(hardest_in_batch_loss(first, second, nothing, 0.85)) == 0


def test_what_holds_a_part_still_by_hand() -> None:
    logits, frozen = torch.tensor([[[0.0]]]), torch.tensor([[[100.0]]])
    assert float(frozen_detector_loss(logits, frozen)) == pytest.approx(0.25)
    maps = (torch.tensor([3.0, 0.0])[None, :, None, None], torch.tensor([1.0, 0.0])[None, :, None, None])
    held = (torch.tensor([0.0, 7.0])[None, :, None, None], torch.tensor([9.0, 0.0])[None, :, None, None])
    assert float(frozen_descriptor_loss(maps, held)) == pytest.approx((1 + 0) / 2)
