"""Batches of pairs: what both views show, which points are in both, and what every part of a batch depends on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from drawn import draw_photographs, drawn_photograph
from torch import Tensor

from sekd_cli.geometry import distances, inside, pixel_grid, warp_points
from sekd_cli.image_search import find_images
from sekd_cli.training.dataset import PairDataset, PlanDataset, look, render, surround
from sekd_cli.training.occlusion import draw_hidden, hidden_at
from sekd_cli.training.photographs import Photographs, cache_photographs
from sekd_cli.training.photometric import Light
from sekd_cli.training.randomness import generator_of
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.validation import HeldOutPairs

SMALL = TrainingSettings(height=64, width=96, batch_size=3, detected_points=20, random_points=10)


def dataset(photographs: Photographs, labels: np.ndarray, **changes: Any) -> PairDataset:
    return PairDataset(photographs, np.arange(5), labels, replace(SMALL, **changes), (3,))


def test_a_batch_depends_on_its_step_alone_and_its_points_correspond(photographs: Photographs) -> None:
    labels = np.full((5, 4, 3), np.nan, np.float32)
    labels[:, 0] = (96, 80, 1)
    pairs = PairDataset(photographs, np.arange(5), labels, SMALL, (7, 1))
    batch, again, other = pairs[3], pairs[3], pairs[4]
    assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))
    assert not torch.equal(batch.images, other.images)
    first, second = batch.points.chunk(2)
    for index in range(3):
        homogeneous = torch.cat((first[index], torch.ones(len(first[index]), 1)), 1) @ batch.second_from_first[index].T
        warped = homogeneous[:, :2] / homogeneous[:, 2:]
        seen = batch.matched[index]
        assert seen.sum() > 5
        assert (warped - second[index])[seen].abs().max() < 1e-3


def test_views_show_the_same_thing_at_the_same_points(photographs: Photographs, even_light: None) -> None:
    labels = np.full((5, 1, 3), np.nan, np.float32)
    settings = replace(SMALL, zoom=1.05, stretch=1.0, shear=0.0, tilt=0.1, rotation=40.0, any_rotation_share=0.0)
    batch = PairDataset(photographs, np.arange(5), labels, settings, (0, 0))[0]
    size = torch.tensor([settings.width, settings.height])
    grid = (2 * batch.points + 1) / size - 1
    values = torch.nn.functional.grid_sample(batch.images, grid[:, None], align_corners=False)[:, 0, 0]
    first, second = values.chunk(2)
    apart = (first - second)[batch.matched].abs()
    assert apart.median() < 0.05  # interpolation and noise; other points differ by ten times that
    assert (first - second.roll(1, 1))[batch.matched].abs().median() > 2 * apart.median()


def test_a_batch_rendered_at_once_as_on_a_gpu_is_that_rendered_pair_by_pair(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 3)
    for seed, (height, width) in enumerate([(120, 250), (260, 130)]):  # of other sizes, so that padding matters
        cv2.imwrite(str(folder / f"other{seed}.png"), drawn_photograph(seed, height, width))
    mixed = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    labels = np.full((5, 1, 3), 50, np.float32)
    pairs = dataset(mixed, labels, batch_size=6)
    for step in range(3):
        plan = PlanDataset(pairs)[step]
        assert len({tuple(size) for size in plan.sizes.tolist()}) > 1
        at_once = render(plan, 64, 96, torch.device("cpu"), at_once=True)
        for one, other in zip(at_once, pairs[step], strict=True):
            torch.testing.assert_close(one, other, atol=3e-4, rtol=0)  # pixels are addressed otherwise


def test_beyond_the_edges_of_a_photograph_lies_another_one_mirrored_in_the_second_view() -> None:
    own, light_left = torch.full((1, 3, 30, 40), 60, dtype=torch.uint8), torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    light_left[..., :48] = 200
    size = torch.tensor([[40.0, 30.0]])
    mix = torch.full((2, 1, 3), 1 / 765)  # the mean of the colours
    maps = torch.eye(3).repeat(2, 1, 1, 1)  # the photograph in the top-left corner of views of 96x64
    image, seen = look(own, size, mix, maps, height=64, width=96)
    within = image.clone()
    surround(image, seen, light_left, torch.tensor([[96.0, 64.0]]), mix)
    assert seen.any()
    assert torch.equal(image[seen], within[seen])
    expected = torch.zeros(2, 1, 64, 96)
    expected[0, ..., :48] = expected[1, ..., 48:] = 200 / 255
    torch.testing.assert_close(image[~seen], expected[~seen])


def test_what_is_in_front_hides_points_and_labels_and_shows_another_photograph(photographs: Photographs) -> None:
    labels = np.random.default_rng(0).uniform(0, 250, (5, 60, 3)).astype(np.float32)
    pairs, without = (dataset(photographs, labels, batch_size=4, hidden_share=share) for share in (0.5, 0.0))
    plans = [(pairs.plan(step), without.plan(step)) for step in range(6)]
    some = torch.cat([plan.hidden.flatten(0, 1).flatten(1).any(dim=1) for plan, _ in plans])
    assert 0.2 < some.float().mean() < 0.8  # of the views
    lost = 0
    for plan, bare in plans:
        batch, whole = (render(each, 64, 96, torch.device("cpu")) for each in (plan, bare))
        hidden = plan.hidden.flatten(0, 1)
        assert torch.equal(batch.seen, whole.seen & ~hidden)
        kept = (batch.keypoints == whole.keypoints).all(dim=-1)
        assert not hidden_at(hidden, batch.keypoints).any()
        assert torch.equal(~kept, hidden_at(hidden, whole.keypoints))
        assert not (hidden_at(hidden, batch.points) & batch.matched.repeat(2, 1)).any()
        shown = torch.nn.functional.max_pool2d(hidden[:, None].float(), 25, 1, 12)[:, 0] > 0  # blurs and blocks spread
        torch.testing.assert_close(batch.images[~shown[:, None]], whole.images[~shown[:, None]])
        lost += int((~kept).sum())
    assert lost > 10


def test_what_hides_covers_a_part_of_a_view_and_nothing_beyond_it() -> None:
    hidden = draw_hidden(400, 1.0, 64, 96, generator_of(0)).float().mean(dim=(1, 2))
    assert 0.1 < hidden.mean() < 0.4
    one = torch.zeros(1, 4, 6, dtype=torch.bool)
    one[0, 2, 4] = one[0, 0, 0] = one[0, 3, 5] = True
    places = torch.tensor([[[3.6, 2.2], [4.6, 2.2], [-3.0, -3.0], [9.0, 9.0], [0.4, 0.3]]])
    assert hidden_at(one, places).tolist() == [[True, False, False, False, True]]


def test_labels_that_there_are_not_are_in_no_view_however_much_it_sees(photographs: Photographs) -> None:
    nothing = np.full((5, 4, 3), np.nan, np.float32)
    for parallax_share in (0.0, 1.0):
        far = dataset(photographs, nothing, closest=100.0, farthest=100.0, parallax_share=parallax_share)
        keypoints = far.plan(0).keypoints
        assert keypoints.isfinite().all()
        assert not inside(keypoints, SMALL.height, SMALL.width).any()


def test_held_out_photographs_come_one_by_one_with_the_next_ones_beyond(photographs: Photographs) -> None:
    pairs = HeldOutPairs(photographs, np.array([4, 2, 0]), replace(SMALL, batch_size=2))
    for row, (own, others) in enumerate([(4, (2, 0)), (2, (0, 4)), (0, (4, 2))]):
        plan = pairs.plan(row)
        assert all(torch.equal(one, photographs[own]) for one in plan.photographs)
        assert all(torch.equal(one, photographs[other]) for one, other in zip(plan.others, others, strict=True))


def test_the_parts_of_a_batch_for_two_ranks_are_the_whole(photographs: Photographs) -> None:
    labels = np.full((5, 1, 3), 50, np.float32)
    settings = replace(SMALL, batch_size=4, closest=3.0, farthest=3.0)
    whole = PairDataset(photographs, np.arange(5), labels, settings, (3,))[7]
    parts = [PairDataset(photographs, np.arange(5), labels, settings, (3,), share=(rank, 2))[7] for rank in (0, 1)]
    for name in ("second_from_first", "matched"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for name in ("images", "seen", "keypoints", "points"):
        halves = [getattr(part, name).unflatten(0, (2, -1)) for part in parts]
        assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), getattr(whole, name)), name


def test_both_views_of_a_plain_pair_are_neither_blurred_nor_compressed_nor_noisy(photographs: Photographs) -> None:
    def light_of(share: float) -> Light:
        labels = np.full((5, 1, 3), np.nan, np.float32)
        return dataset(photographs, labels, batch_size=32, plain_share=share).plan(0).light

    usual, half, plain = (light_of(share) for share in (0.0, 0.5, 1.0))
    for name in ("kernel", "block_step", "noise"):
        some, rest = (getattr(each, name).flatten(1 if name == "kernel" else 0) for each in (usual, half))
        assert some.any()
        assert not getattr(plain, name).any()
        assert 0 < (some != rest).sum() < (some != 0).sum()
    kept = (half.noise == usual.noise) & (half.kernel == usual.kernel).flatten(1).all(dim=1)
    changed = (half.noise + half.block_step + half.kernel.sum(dim=(1, 2))) != 0
    assert not (changed.reshape(2, 32) & ~kept.reshape(2, 32).all(dim=0)).any()  # a pair is plain, not one view of it
    torch.testing.assert_close(half.tone, usual.tone)


def test_points_are_in_both_views_and_labels_are_the_first_of_them(photographs: Photographs) -> None:
    labels = np.random.default_rng(0).uniform(20, 150, (5, 60, 3)).astype(np.float32)
    pairs = dataset(photographs, labels, batch_size=6, closest=2.0, farthest=2.0)  # that see beyond the edges
    total = 0
    for step in range(3):
        plan = pairs.plan(step)
        assert plan.points.shape == (12, 30, 2)
        first, second = plan.points.chunk(2)
        matched = plan.matched
        assert inside(first, 64, 96)[matched].all()
        assert inside(second, 64, 96)[matched].all()
        assert inside(warp_points(first, plan.photograph_from_view[0]), 160, 192, 1.99)[matched].all()
        known = distances(first, plan.keypoints[:6]).amin(dim=2) < 1e-3
        total += int((known & matched).sum())
        alone = dataset(photographs, labels, batch_size=6, random_points=0).plan(step)
        known = distances(alone.points[:6], alone.keypoints[:6]).amin(dim=2) < 1e-3
        assert known[alone.matched].all(), "the paper: labels only"
        unmatched = alone.points[~alone.matched.repeat(2, 1)]
        assert len(unmatched)
        assert not unmatched.any(), "none is far away or infinite"
    assert total > 50


def test_beyond_the_edges_lies_another_photograph_or_none_and_light_is_as_the_settings_say(
    photographs: Photographs,
) -> None:
    labels = np.full((5, 1, 3), 50, np.float32)
    pairs = dataset(photographs, labels, batch_size=40, exposed_share=1.0, hidden_share=0.5)
    plan, other = pairs.plan(0), pairs.plan(1)
    same = [torch.equal(one, two) for one, two in zip(plan.photographs, plan.others, strict=True)]
    assert sum(same) < 20
    assert (plan.light.tone[:, 0] != 1).all()
    assert (plan.mix[0] != plan.mix[1]).any(dim=1).all(), "each view has its own mix of colours"
    assert not torch.equal(plan.hidden, other.hidden)
    assert len(dataset(photographs, labels, other_surroundings=False).plan(0).others) == 0


def test_two_pixels_along_the_edge_of_a_photograph_are_not_seen(photographs: Photographs) -> None:
    whole = photographs[0][None]
    size = torch.tensor([[192.0, 160.0]])
    seen = look(whole, size, torch.full((1, 1, 3), 1 / 765), torch.eye(3)[None, None], height=160, width=192)[1][0, 0]
    expected = torch.zeros(160, 192, dtype=torch.bool)
    expected[2:-2, 2:-2] = True
    assert torch.equal(seen, expected)


def test_which_labels_are_compared_is_left_to_chance(photographs: Photographs) -> None:
    labels = np.random.default_rng(0).uniform(79, 81, (5, 60, 3)).astype(np.float32)
    pairs = dataset(photographs, labels, batch_size=6, detected_points=3, random_points=0)
    taken: set[int] = set()
    for step in range(5):
        plan = pairs.plan(step)
        nearest = distances(plan.points[:6], plan.keypoints[:6]).argmin(dim=2)
        taken.update(nearest[plan.matched].tolist())
    assert len(taken) > 25


def test_what_a_view_shrinks_does_not_alias() -> None:
    stripes = (torch.arange(192) % 2 * 255).to(torch.uint8).expand(1, 3, 160, 192)
    there = torch.diag(torch.tensor([3.0, 1.0, 1.0]))[None, None]
    size, mix = torch.tensor([[192.0, 160.0]]), torch.full((1, 1, 3), 1 / 765)
    assert look(stripes, size, mix, there, height=160, width=60)[0][..., 8:-8].std() < 0.02


def test_labels_go_with_the_chosen_photographs(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 4)
    for seed in (1, 3):
        cv2.imwrite(str(folder / f"{seed:03d}.png"), drawn_photograph(seed, 200 + 10 * seed, 180))
    photographs = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    chosen = np.array([3, 1, 2])
    labels = np.array([[[30, 50, 1]], [[60, 80, 1]], [[90, 110, 1]]], np.float32)
    plan = PairDataset(photographs, chosen, labels, replace(SMALL, batch_size=12), (3,)).plan(0)

    def shown(stacked: Tensor, sizes: Tensor) -> list[int]:
        cut = [one[:, :height, :width] for one, (width, height) in zip(stacked, sizes.int().tolist(), strict=True)]
        return [next(row for row in range(3) if torch.equal(photographs[chosen[row]], one)) for one in cut]

    used = shown(plan.photographs, plan.sizes)
    assert set(used) == set(shown(plan.others, plan.other_sizes)) == {0, 1, 2}
    found = warp_points(plan.keypoints, plan.photograph_from_view.flatten(0, 1))
    torch.testing.assert_close(found, torch.from_numpy(labels[used * 2, :, :2]), atol=0.01, rtol=0)
    for one, (width, height) in zip(plan.photographs, plan.sizes.int().tolist(), strict=True):
        last = pixel_grid(*one.shape[1:]).minimum(torch.tensor((width - 1, height - 1))).long()
        assert torch.equal(one.flatten(1), one[:, last[:, 1], last[:, 0]]), "its last pixels are drawn out"
