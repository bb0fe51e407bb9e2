"""Parallax between the views of a pair: what moves, where points go and come from, and what the views then show."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plane import planar

from sekd_cli.geometry import pixel_grid, translation
from sekd_cli.training.dataset import PairDataset, PlanDataset, render
from sekd_cli.training.parallax import STEEPEST, Correspondence, displacement, draw_parallax
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.ranking import OwnKeypoints, position_loss
from sekd_cli.training.settings import TrainingSettings

SIZES = torch.tensor([[320.0, 240.0], [200.0, 260.0], [640.0, 480.0]])
BENT = TrainingSettings(batch_size=4, height=64, width=96, parallax_share=0.75, random_points=60, detected_points=20)
"""Views of which most have parallax."""


def parallax(share: float = 1.0, sizes: torch.Tensor = SIZES, seed: int = 0) -> torch.Tensor:
    return draw_parallax(sizes, share, 0.06, torch.Generator().manual_seed(seed))


def moved(maps: torch.Tensor, sizes: torch.Tensor = SIZES) -> Correspondence:
    """Parallax alone, between two views that look at the photograph as it is."""
    unit = torch.eye(3).expand(len(sizes), 3, 3)
    return Correspondence(unit, torch.stack((unit, unit)), sizes, maps)


def test_displacements_are_along_one_direction_within_their_limits_in_a_share_of_the_photographs() -> None:
    sizes = SIZES.repeat(100, 1)
    drawn = parallax(0.4, sizes)
    lengths = drawn.norm(dim=1).flatten(1)
    some = lengths.amax(dim=1) > 0
    assert 0.3 < some.float().mean() < 0.5
    assert (lengths.amax(dim=1) <= 0.06 * sizes.amax(dim=1) + 1e-3).all()
    assert (lengths[some].amax(dim=1) > 3).float().mean() > 0.5
    across = torch.linalg.svdvals(drawn[some].flatten(2))
    assert (across[:, 1] < 1e-4 * across[:, 0]).all()


def test_nothing_is_folded_over() -> None:
    maps = parallax(seed=1)
    grid = pixel_grid(60, 80).reshape(60, 80, 2) * 4 - 10  # beyond the smaller photographs, too
    there = displacement(maps, SIZES, grid.reshape(1, -1, 2).expand(3, -1, -1)).reshape(3, 60, 80, 2)
    assert (there.diff(dim=1).norm(dim=-1) <= 4 * STEEPEST + 1e-3).all()
    assert (there.diff(dim=2).norm(dim=-1) <= 4 * STEEPEST + 1e-3).all()


def test_points_go_to_the_second_view_and_come_back() -> None:
    there = moved(parallax(seed=2))
    points = torch.rand(3, 500, 2, generator=torch.Generator().manual_seed(0)) * SIZES[:, None]
    second = there.in_second(points)
    assert ((second - points).norm(dim=-1).mean(dim=1) > 1).all()
    torch.testing.assert_close(there.in_first(second), points, atol=5e-3, rtol=0)


def test_no_displacement_is_a_homography() -> None:
    change = translation(torch.tensor([5.0, -3.0, 0.5]), torch.tensor([1.0, 2.0, -9.0]))
    maps = torch.stack((change, torch.eye(3).expand(3, 3, 3)))
    still = Correspondence(change, maps, SIZES, torch.zeros(3, 2, 8, 8))
    points = torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0)) * 200
    torch.testing.assert_close(still.in_second(points), planar(change).in_second(points))
    torch.testing.assert_close(still.in_first(points), planar(change).in_first(points))


def test_points_beyond_the_horizon_leave_a_gradient_to_all_others() -> None:
    tipped = torch.eye(3)[None].clone()
    tipped[0, 2, 0] = -0.1  # from x = 10 on, what the first view sees lies behind the photograph
    unit = torch.eye(3)[None]
    there = Correspondence(tipped, torch.stack((tipped, unit)), SIZES[:1], parallax(sizes=SIZES[:1]))
    places = torch.tensor([[[4.0, 5.0], [13.0, 5.0]], [[5.0, 5.0], [2.0, 9.0]]])
    assert there.in_second(places[:1])[0, 1].tolist() == [torch.inf, torch.inf]
    assert there.in_second(places[:1])[0, 0].isfinite().all()
    places[1, 0] = there.in_second(places[:1])[0, 0] + 1
    peaks = places.requires_grad_()
    found = OwnKeypoints(places.detach(), peaks, torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2), torch.eye(2))
    loss = position_loss(found, there)
    assert loss.item() == pytest.approx(2**0.5, abs=0.01)
    (gradient,) = torch.autograd.grad(loss, peaks)
    assert gradient.isfinite().all()
    assert gradient[0, 0].norm() > 0.5


def test_views_show_the_same_thing_where_parallax_has_moved_it(photographs: Photographs, even_light: None) -> None:
    labels = np.full((5, 1, 3), np.nan, np.float32)
    still = replace(BENT, zoom=1.05, stretch=1.0, shear=0.0, tilt=0.1, rotation=40.0, any_rotation_share=0.0)
    pairs = PairDataset(photographs, np.arange(5), labels, replace(still, batch_size=24, parallax=0.2), (0, 0))
    batch = pairs[0]
    first, second = batch.points.chunk(2)
    by_homography = batch.correspondence._replace(parallax=torch.zeros(24, 2, 0, 0)).in_second(first)
    shifted = batch.matched & ((by_homography - second).norm(dim=-1) > 3)
    assert shifted.sum() > 100

    def values(images: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        grid = (2 * points + 1) / torch.tensor([96, 64]) - 1
        return torch.nn.functional.grid_sample(images, grid[:, None], align_corners=False)[:, 0, 0]

    images = batch.images.chunk(2)
    apart = (values(images[0], first) - values(images[1], second))[shifted].abs()
    assert apart.median() < 0.05
    assert (values(images[0], first) - values(images[1], by_homography))[shifted].abs().median() > 2 * apart.median()


def test_labels_and_points_move_alike_and_pairs_without_parallax_are_as_they_were(photographs: Photographs) -> None:
    labels = np.random.default_rng(0).uniform(0, 250, (5, 60, 3)).astype(np.float32)
    pairs, flat = (
        PairDataset(photographs, np.arange(5), labels, each, (3,)) for each in (BENT, replace(BENT, parallax_share=0.0))
    )
    some = 0
    for step in range(4):
        batch, whole = pairs[step], flat[step]
        there = batch.keypoints.chunk(2)
        seen = (torch.stack(there) > -200).all(-1).all(0) & (torch.stack(there) < 300).all(-1).all(0)
        torch.testing.assert_close(batch.correspondence.in_second(there[0])[seen], there[1][seen], atol=0.02, rtol=0)
        points = batch.points.chunk(2)
        expected = batch.correspondence.in_second(points[0])
        torch.testing.assert_close(expected[batch.matched], points[1][batch.matched], atol=0.02, rtol=0)
        bent = batch.parallax.flatten(1).any(dim=1)
        some += int(bent.sum())
        untouched = torch.cat((torch.ones_like(bent), ~bent))  # first views all are
        torch.testing.assert_close(batch.images[untouched], whole.images[untouched], atol=2e-3, rtol=0)
        assert not torch.allclose(batch.images[~untouched], whole.images[~untouched], atol=2e-3)
    assert 6 <= some < 16


def test_a_batch_rendered_at_once_is_that_rendered_pair_by_pair(photographs: Photographs) -> None:
    pairs = PairDataset(photographs, np.arange(5), np.full((5, 1, 3), 50, np.float32), BENT, (3,))
    at_once = render(PlanDataset(pairs)[1], 64, 96, torch.device("cpu"), at_once=True)
    for one, other in zip(at_once, pairs[1], strict=True):
        torch.testing.assert_close(one, other, atol=3e-4, rtol=0)
