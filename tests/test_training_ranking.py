"""The network's own keypoints in training: which they are, which match, and what the losses ask of them."""

import math

import pytest
import torch
from plane import planar

from sekd_cli.detection import OCTAVE_COST
from sekd_cli.geometry import translation
from sekd_cli.networks import DenseMaps
from sekd_cli.training.descriptor_update import rival_odds
from sekd_cli.training.ranking import (
    OwnKeypoints,
    matching_losses,
    own_keypoints,
    position_loss,
    ranking_loss,
    right_matches,
)

SAME_VIEW = planar(torch.eye(3)[None])


def peaks_at(*views: list[tuple[int, int]], size: int = 16) -> torch.Tensor:
    """Logits (len(views), size, size) with Gaussian peaks at pixels, the first the highest."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    logits = torch.full((len(views), size, size), -8.0)
    for view, places in zip(logits, views, strict=True):
        for rank, (px, py) in enumerate(places):
            view.copy_(torch.maximum(view, 2.0 - rank - 0.7 * ((x - px) ** 2 + (y - py) ** 2)))
    return logits


def own(xy: list[list[tuple[float, float]]], descriptors: torch.Tensor, logits: torch.Tensor) -> OwnKeypoints:
    places = torch.tensor(xy)
    return OwnKeypoints(places, places, torch.ones(places.shape[:2], dtype=torch.bool), logits, descriptors)


def strongest(logits: torch.Tensor, count: int = 1) -> OwnKeypoints:
    """The own keypoints of two views with these logits (2, H, W), all alike."""
    seen = torch.ones(logits.shape, dtype=torch.bool)
    return own_keypoints([DenseMaps(logits, (torch.ones(2, 1, 4, 4),), torch.zeros(2, 1, 8, 8))], seen, count, 3)


def test_own_keypoints_are_the_strongest_maxima_that_are_seen() -> None:
    logits = peaks_at([(4, 5), (11, 3)], [(7, 7), (2, 2)])
    seen = torch.ones(2, 16, 16, dtype=torch.bool)
    seen[1, :4, :4] = False
    maps = DenseMaps(logits, (torch.randn(2, 8, 4, 4),), torch.randn(2, 4, 8, 8))
    found = own_keypoints([maps], seen, 2, 3)
    assert found.xy[0].tolist() == [[4, 5], [11, 3]]
    assert found.xy[1, 0].tolist() == [7, 7]
    assert found.logits[0].tolist() == [2.0, 1.0]
    assert found.descriptors.norm(dim=-1).allclose(torch.ones(2, 2))


def test_descriptors_are_read_at_the_refined_places_which_they_do_not_move() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    logits = (2 - 0.7 * ((x - 8.4) ** 2 + (y - 5) ** 2)).expand(2, 16, 16).clone().requires_grad_()
    ramp = torch.stack((x, 20 - x))[None].repeat(2, 1, 1, 1)  # of directions along x, a value a pixel
    found = own_keypoints(
        [DenseMaps(logits, (ramp,), torch.zeros(2, 1, 8, 8))], torch.ones(2, 16, 16, dtype=torch.bool), 1, 3
    )
    across = found.descriptors[:, 0, 0] / found.descriptors.sum(dim=2)[:, 0] * 20
    torch.testing.assert_close(across, found.peaks[:, 0, 0])
    assert across[0].item() == pytest.approx(8.4, abs=0.05)
    assert found.peaks.requires_grad
    assert not found.descriptors.requires_grad


def test_own_keypoints_lie_where_extraction_has_some_and_so_not_on_the_outermost_pixels() -> None:
    found = strongest(peaks_at([(0, 5), (8, 15), (1, 10)], [(7, 0), (8, 14)]))
    assert found.xy[:, 0].tolist() == [[1, 10], [8, 14]]


def test_what_is_no_maximum_is_absent_and_takes_no_place_from_those_of_another_octave() -> None:
    rising = 10 + torch.arange(16.0).expand(2, 16, 16)  # to the edge, where no maximum counts
    assert not strongest(rising, 4).present.any()
    octaves = [
        DenseMaps(logits, (torch.ones(2, 1, 4, 4),), torch.zeros(2, 1, 8, 8))
        for logits in (rising, peaks_at([(3, 6)], [(3, 6)], size=8))
    ]
    assert own_keypoints(octaves, torch.ones(2, 16, 16, dtype=torch.bool), 1, 3).present.all()


def test_more_own_keypoints_than_pixels_are_all_pixels() -> None:
    maps = [
        DenseMaps(peaks_at([(4, 5)], [(4, 5)], size=size), (torch.ones(2, 1, 4, 4),), torch.zeros(2, 1, 8, 8))
        for size in (16, 8)
    ]
    found = own_keypoints(maps, torch.ones(2, 16, 16, dtype=torch.bool), 1000, 3)
    assert found.present.shape == (2, 16 * 16 + 8 * 8)


def test_own_keypoints_of_a_halved_view_compete_for_less_and_lie_in_the_pixels_of_the_whole() -> None:
    whole, half = peaks_at([(4, 5), (11, 3)], [(4, 5), (11, 3)]), peaks_at([(3, 6)], [(3, 6)], size=8)
    seen = torch.ones(2, 16, 16, dtype=torch.bool)
    describe = [torch.ones(2, 1, 4, 4), -torch.ones(2, 1, 2, 2)]
    octaves = [
        DenseMaps(logits, (maps,), torch.zeros(2, 1, 8, 8))
        for logits, maps in zip((whole, half), describe, strict=True)
    ]
    found = own_keypoints(octaves, seen, 2, 3)
    assert found.logits[0].tolist() == [2.0, 2.0 - OCTAVE_COST]
    assert found.xy[0].tolist() == [[4, 5], [6.5, 12.5]], "a pixel of the half is the middle of four of the whole"
    torch.testing.assert_close(found.peaks[0], found.xy[0], atol=0.05, rtol=0)
    assert found.descriptors[0, :, 0].tolist() == [1, -1]
    seen[0, 13, 6] = False  # one of the four
    assert own_keypoints(octaves, seen, 2, 3).logits[0].tolist() == [2.0, 1.0]


def test_the_lessons_on_two_octaves_reach_both() -> None:
    logits = [peaks_at([(4, 5)], [(4, 5)]).requires_grad_(), peaks_at([(5, 2)], [(5, 2)], size=8).requires_grad_()]
    maps = [torch.randn(2, 4, size, size, requires_grad=True) for size in (4, 2)]
    octaves = [DenseMaps(one, (other,), torch.zeros(2, 1, 8, 8)) for one, other in zip(logits, maps, strict=True)]
    found = own_keypoints(octaves, torch.ones(2, 16, 16, dtype=torch.bool), 4, 3)
    loss = ranking_loss(found, SAME_VIEW, 16, 16) + sum(matching_losses(found, SAME_VIEW, 10.0))
    for gradient in torch.autograd.grad(loss, [*logits, *maps]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_a_match_is_right_when_mutual_and_near_the_true_place() -> None:
    east, north, west = torch.eye(3)
    descriptors = torch.stack((torch.stack((east, north, west)), torch.stack((north, east, west))))
    xy = [[(2.0, 2.0), (9.0, 9.0), (5.0, 5.0)], [(9.0, 11.9), (2.0, 2.0), (8.1, 5.0)]]  # moved by 2.9, 0 and 3.1 px
    right = right_matches(own(xy, descriptors, torch.zeros(2, 3)), SAME_VIEW)
    assert right.tolist() == [[True, True, False], [True, True, False]]


def test_a_neighbour_that_prefers_another_is_no_match() -> None:
    east, north = torch.eye(2)
    between = torch.tensor([0.8, 0.6])
    descriptors = torch.stack((torch.stack((east, between)), torch.stack((east, -north))))
    xy = [[(2.0, 2.0), (3.0, 2.0)], [(2.0, 2.0), (12.0, 12.0)]]
    assert right_matches(own(xy, descriptors, torch.zeros(2, 2)), SAME_VIEW).tolist() == [[True, False], [True, False]]


def test_absent_keypoints_match_nothing() -> None:
    descriptors = torch.eye(2).expand(2, 2, 2)
    xy = [[(2.0, 2.0), (9.0, 9.0)]] * 2
    found = own(xy, descriptors, torch.zeros(2, 2))
    for here, there, right in (([1, 0], [1, 1], [1, 0]), ([1, 1], [1, 0], [1, 0]), ([0, 0], [1, 1], [0, 0])):
        some = found._replace(present=torch.tensor([here, there]).bool())
        assert right_matches(some, SAME_VIEW).tolist() == [right, right]


def test_ranking_wants_high_scores_where_matches_are_right_and_low_ones_where_they_are_wrong() -> None:
    descriptors = torch.eye(2).expand(2, 2, 2)
    xy = [[(2.0, 2.0), (9.0, 9.0)], [(2.0, 2.0), (1.0, 12.0)]]
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = ranking_loss(own(xy, descriptors, logits), SAME_VIEW, 16, 16)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.sign().tolist() == [[-1, 1], [-1, 1]]


def test_keypoints_that_the_other_view_does_not_show_are_not_ranked() -> None:
    moved = planar(torch.tensor([[[1.0, 0, 14], [0, 1, 0], [0, 0, 1]]]))  # the second view looks 14 px further
    descriptors = torch.eye(2).expand(2, 2, 2)
    logits = torch.zeros(2, 2, requires_grad=True)
    ranking_loss(own([[(1.0, 2.0), (9.0, 9.0)]] * 2, descriptors, logits), moved, 16, 16).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [False, False]]


def test_position_loss_is_the_distance_of_refined_peaks_and_moves_them_together() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    first, second = (-0.7 * ((x - px) ** 2 + (y - 8.0) ** 2) - 4 for px in (8.0, 8.4))  # so low that log p is quadratic
    logits = torch.stack((first, second)).requires_grad_()
    loss = position_loss(strongest(logits), SAME_VIEW)
    assert loss.item() == pytest.approx(0.4, abs=0.02)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert position_loss(strongest(logits - 0.05 * gradient), SAME_VIEW).item() < loss.item()


def test_peaks_farther_than_two_pixels_are_other_points() -> None:
    assert position_loss(strongest(peaks_at([(4, 4)], [(8, 4)])), SAME_VIEW).item() == 0


def test_rivals_count_only_beyond_the_safe_radius() -> None:
    point = torch.tensor([[[5.0, 5.0]], [[5.0, 5.0]]])
    descriptors = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    rivals = own([[(6.0, 5.0), (15.0, 5.0)]] * 2, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 2), torch.zeros(2, 2))
    odds = rival_odds(descriptors, point, rivals, scale=2.0, safe_radius=6.0)
    assert odds.flatten().tolist() == pytest.approx([torch.tensor(-2.0).exp().item()] * 2)


def test_matching_loss_counts_wrong_matches_less_right_ones() -> None:
    east, north, west = torch.eye(3)
    descriptors = torch.stack((torch.stack((east, north, west)), torch.stack((north, east, west))))
    xy = [[(2.0, 2.0), (9.0, 9.0), (5.0, 5.0)], [(9.0, 10.0), (2.0, 2.0), (12.0, 5.0)]]  # the third moved by 7 px
    loss = matching_losses(own(xy, descriptors, torch.zeros(2, 3)), SAME_VIEW, 40.0)[0]
    # two can be matched; a match 1 px off is worth 1/e of an exact one, one 7 px off is wrong and costs half of it
    assert float(loss) == pytest.approx((1 / 2 - 1 - 1 / math.e) / 2, abs=1e-4)


@pytest.mark.parametrize("scale", [40.0, 80.0])
def test_unlike_descriptors_that_choose_each_other_are_matches_at_any_scale(scale: float) -> None:
    first = torch.eye(8)[:3]
    second = 0.25 * first + 0.968 * torch.eye(8)[3:6]  # cosine 0.25 with their own, 0 with others
    xy = [[(2.0, 2.0), (9.0, 9.0), (5.0, 5.0)]] * 2
    some = own(xy, torch.stack((first, second)).requires_grad_(), torch.zeros(2, 3))
    loss = matching_losses(some, SAME_VIEW, scale)[0]
    (slope,) = torch.autograd.grad(loss, some.descriptors)
    assert float(loss.detach()) == pytest.approx(-1, abs=1e-3)
    assert slope.isfinite().all()


def test_matching_loss_drives_apart_the_descriptors_of_a_wrong_match() -> None:
    descriptors = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=torch.manual_seed(0)), dim=2)
    descriptors[:, 3] = torch.nn.functional.normalize(torch.ones(8), dim=0)  # alike, at places far apart
    descriptors = descriptors.requires_grad_()
    xy = [[(2.0, 2.0), (9.0, 9.0), (5.0, 5.0), (2.0, 12.0)], [(2.0, 2.0), (9.0, 9.0), (5.0, 5.0), (14.0, 2.0)]]
    some = own(xy, descriptors, torch.zeros(2, 4))
    (slope,) = torch.autograd.grad(matching_losses(some, SAME_VIEW, 5.0)[0], descriptors)
    assert float((slope[0, 3] * descriptors[1, 3].detach()).sum()) > 0.01  # down the gradient is away


def test_absent_keypoints_are_in_no_expected_match() -> None:
    descriptors = torch.eye(2).expand(2, 2, 2)
    xy = [[(2.0, 2.0), (9.0, 9.0)]] * 2
    some = own(xy, descriptors, torch.zeros(2, 2))._replace(present=torch.tensor([[True, False], [True, True]]))
    assert float(matching_losses(some, SAME_VIEW, 40.0)[0]) == pytest.approx(-1, abs=1e-4)


def test_selection_lifts_points_of_both_views_over_those_of_one() -> None:
    xy = [[(2.0, 2.0), (30.0, 30.0), (9.0, 9.0), (50.0, 2.0)], [(2.0, 2.0), (2.0, 50.0), (9.0, 9.0), (60.0, 60.0)]]
    alike = torch.nn.functional.normalize(torch.eye(4) + 0.5, dim=1)  # alone points are each other's choice
    logits = torch.tensor([[1.0, 0.9, 0.8, -1.0]] * 2).requires_grad_()
    loss = matching_losses(own(xy, alike.expand(2, 4, 4), logits), SAME_VIEW, 40.0)[1]
    (slope,) = torch.autograd.grad(loss, logits)
    assert (slope[:, 1] > 0).all()  # found in one view alone: sinks
    assert (slope[:, 2] < 0).all()  # just below the cut, in both views: rises
    assert slope.sum(dim=1).abs().max() < 1e-5  # places are shared out, not added


def test_selection_shares_out_the_places_of_each_region() -> None:
    shared = [(2.0, 2.0), (100.0, 2.0), (2.0, 100.0)]  # of three regions, one point each that both views have
    xy = [[*shared, (30.0, 30.0), (110.0, 30.0), (30.0, 110.0)], [*shared, (2.0, 50.0), (130.0, 40.0), (50.0, 130.0)]]
    alike = torch.nn.functional.normalize(torch.eye(6) + 0.5, dim=1)
    logits = torch.tensor([[0.8, 0.9, 0.7, 0.9, 0.8, 0.8]] * 2).requires_grad_()
    (slope,) = torch.autograd.grad(matching_losses(own(xy, alike.expand(2, 6, 6), logits), SAME_VIEW, 40.0)[1], logits)
    for region in range(3):
        assert (slope[:, region] < -1e-4).all()
        torch.testing.assert_close(slope[:, region], -slope[:, region + 3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("present", [[True, True, True, False], [True, False, False, False]])
def test_what_absent_keypoints_are_like_does_not_matter(present: list[bool]) -> None:
    there, losses = torch.tensor(present), []
    for logit, descriptor in ((50.0, 0), (-50.0, 1)):
        logits = torch.tensor([1.0, 0.9, 0.8, 0.7]).where(there, torch.tensor(logit)).expand(2, 4)
        descriptors = torch.eye(4).where(there[:, None], torch.eye(4)[descriptor]).expand(2, 4, 4)
        some = own([[(2.0, 2.0), (9.0, 9.0), (5.0, 5.0), (2.0, 12.0)]] * 2, descriptors, logits)
        losses.append(torch.stack(matching_losses(some._replace(present=there.expand(2, 4)), SAME_VIEW, 40.0)))
    torch.testing.assert_close(losses[0], losses[1])


def test_selection_counts_right_matches_of_the_best_keypoints() -> None:
    xy = [[(8.0 * i, 0.0) for i in range(16)]] * 2
    logits = torch.linspace(60, -60, 16).expand(2, 16)  # far apart: each is selected or not
    descriptors = torch.eye(16).expand(2, 16, 16)
    right = matching_losses(own(xy, descriptors, logits), SAME_VIEW, 40.0)[1]
    moved = planar(torch.tensor([[[1.0, 0, 4], [0, 1, 0], [0, 0, 1]]]))
    wrong = matching_losses(own(xy, descriptors, logits), moved, 40.0)[1]
    # the last of a selection lies on its cut and is half there: 7.25 of 8, 3.25 of 4 and 1.25 of 2 matches
    assert -float(right) == pytest.approx((7.25 / 8 + 3.25 / 4 + 1.25 / 2) / 3, abs=0.01)
    assert float(wrong) == pytest.approx(-float(right) / 2, abs=0.01)


def test_points_beyond_the_horizon_leave_a_gradient_to_all_others() -> None:
    found = strongest(peaks_at([(4, 5), (13, 5)], [(5, 5), (2, 9)]).requires_grad_(), 2)
    tipped = torch.eye(3)[None].clone()
    tipped[0, 2, 0] = -0.1  # from x = 10 on, what the first view sees lies behind the second
    loss = position_loss(found, planar(tipped))
    (gradient,) = torch.autograd.grad(loss, found.peaks)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("without", [0, 1])
def test_a_view_without_keypoints_leaves_a_loss_to_the_other_pairs(without: int) -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    descriptors = torch.eye(3).repeat(4, 1, 1).requires_grad_()
    xy = [[(2.0, 2.0), (9.0, 9.0), (5.0, 5.0)]] * 4
    found = own(xy, descriptors, logits)
    alone = [part.item() for part in matching_losses(own(xy[:2], descriptors[:2], logits[:2]), SAME_VIEW, 40.0)]
    found.present[1 + 2 * without] = False  # of the second pair
    losses = matching_losses(found, planar(torch.eye(3).repeat(2, 1, 1)), 40.0)
    assert losses[0].item() == pytest.approx(alone[0])
    gradients = torch.autograd.grad(sum(losses), (logits, descriptors))  # type: ignore[arg-type]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_keypoint_unlike_all_others_leaves_a_gradient_to_them() -> None:
    east, other = torch.eye(2)
    aside = -0.22 * east + 0.975 * other  # odds of 1e-25, whose inverse squared is beyond float32
    descriptors = torch.stack((torch.stack((east, aside)), torch.stack((east, east)))).requires_grad_()
    xy = [[(2.0, 2.0), (9.0, 9.0)]] * 2
    losses = matching_losses(own(xy, descriptors, torch.zeros(2, 2)), SAME_VIEW, 80.0)
    for loss in losses:
        (slope,) = torch.autograd.grad(loss, descriptors, retain_graph=True)
        assert slope.isfinite().all()


def test_a_left_out_keypoint_that_is_anothers_only_choice_leaves_a_loss() -> None:
    east, west = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    descriptors = torch.stack((torch.stack((west, east)), torch.stack((west, east)))).requires_grad_()
    some = own([[(2.0, 2.0), (9.0, 9.0)]] * 2, descriptors, torch.zeros(2, 2))
    some.present[0, 1] = False  # nothing, times what is beyond float32
    losses = matching_losses(some, SAME_VIEW, 80.0)
    assert losses[0].item() == pytest.approx(-1, abs=1e-3)
    for loss in losses:
        (slope,) = torch.autograd.grad(loss, descriptors, retain_graph=True)
        assert slope.isfinite().all()


def test_ranking_counts_keypoints_that_are_there_and_in_the_other_view_alone() -> None:
    xy = [[(2.0, 2.0), (60.0, 5.0), (7.0, 7.0)]] * 2  # the second beyond a view of 16x16
    logits = torch.tensor([[0.0, 5.0, 6.0]] * 2)
    some = own(xy, torch.eye(3).expand(2, 3, 3), logits)
    some.present[:, 2] = False
    assert float(ranking_loss(some, SAME_VIEW, 16, 16)) == pytest.approx(math.log(2))


def test_ranking_follows_points_of_the_second_view_back_to_the_first() -> None:
    moved = planar(translation(torch.tensor([10.0]), torch.tensor([0.0])))
    xy = [[(2.0, 2.0), (9.0, 2.0)], [(12.0, 2.0), (4.0, 2.0)]]  # only the first of each is in both
    some = own(xy, torch.eye(2).expand(2, 2, 2), torch.tensor([[0.0, 50.0], [0.0, 50.0]]))
    assert float(ranking_loss(some, moved, 16, 16)) == pytest.approx(math.log(2))
