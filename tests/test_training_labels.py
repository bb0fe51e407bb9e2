"""Affine adaptation, reliability and labelling."""

import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from drawn import cached_photographs, draw_photographs, drawn_photograph
from full_disk import files_of_at_most
from hostile_images import encoded
from torch import Tensor, nn

from sekd_cli.errors import InputFileError, NothingToDoError, OutputError, UsageError
from sekd_cli.geometry import distances, inside, pixel_grid, sample_map, translation, warp_points
from sekd_cli.image_search import find_images
from sekd_cli.networks import CompactNetwork, DenseMaps
from sekd_cli.training import labelling
from sekd_cli.training.affine_adaptation import References, adapted_scores, look_at_references
from sekd_cli.training.checkpoint import load_checkpoint, save_checkpoint
from sekd_cli.training.dataset import PairDataset, PlanDataset, look, render, surround
from sekd_cli.training.labelling import grey_of, label_photograph, label_photographs, pad_to_stride
from sekd_cli.training.occlusion import draw_hidden, hidden_at
from sekd_cli.training.photographs import Photographs, cache_photographs
from sekd_cli.training.photometric import LUMA, Light
from sekd_cli.training.randomness import generator_of
from sekd_cli.training.reliability import corner_strength, map_reliability, reliability
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.validation import HeldOutPairs

SMALL = TrainingSettings(height=64, width=96, batch_size=3, detected_points=20, random_points=10)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    return cached_photographs(tmp_path_factory.mktemp("photographs"), 5)


def references_of(feature_map: torch.Tensor, stride: int = 1) -> References:
    """References that are the image itself, moved nowhere."""
    count, _, height, width = feature_map.shape
    maps = DenseMaps(torch.zeros(count, height * stride, width * stride), (feature_map,), feature_map)
    return References(maps=maps, image_from_reference=torch.eye(3).repeat(count - 1, 1, 1))


def test_the_cache_keeps_the_photographs_and_is_used_again(photographs: Photographs, tmp_path: Path) -> None:
    pixels = torch.from_numpy(drawn_photograph(2)).permute(2, 0, 1).flip(0)  # OpenCV wrote BGR
    assert torch.equal(photographs[2], pixels)
    folder = draw_photographs(tmp_path / "in", 2)
    first = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    written = (tmp_path / "cache" / "photographs.bin").stat().st_mtime_ns
    again = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    assert (tmp_path / "cache" / "photographs.bin").stat().st_mtime_ns == written
    assert len(first) == len(again) == 2


def test_a_cache_made_anew_leaves_a_run_that_uses_it_what_it_had(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 2)
    used = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    before = used[1]
    assert cache_photographs(find_images([folder]), tmp_path / "cache", 120)[1].shape[2] == 120
    assert torch.equal(used[1], before)


@pytest.mark.parametrize("part", ["photographs.bin", "photographs.npz", "photographs.json"])
@pytest.mark.parametrize("left", [None, b"", b"no text \xff"], ids=["gone", "empty", "damaged"])
def test_a_cache_of_which_a_part_was_deleted_or_cut_off_is_made_anew(
    part: str, left: bytes | None, tmp_path: Path
) -> None:
    folder = draw_photographs(tmp_path / "in", 2)
    before = cache_photographs(find_images([folder]), tmp_path / "cache", 640)[1]
    (tmp_path / "cache" / part).unlink()
    if left is not None:
        (tmp_path / "cache" / part).write_bytes(left)
    assert torch.equal(cache_photographs(find_images([folder]), tmp_path / "cache", 640)[1], before)


def test_broken_and_tiny_photographs_are_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 1)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    assert len(cache_photographs(find_images([folder]), tmp_path / "cache", 640)) == 1
    (folder / "000.png").unlink()
    with pytest.raises(NothingToDoError, match="--data"):
        cache_photographs(find_images([folder]), tmp_path / "cache2", 640)


def test_a_jpeg_of_twice_the_size_is_shrunk_like_any(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = cv2.GaussianBlur(drawn_photograph(0, 480, 640), (0, 0), 3)
    cv2.imwrite(str(tmp_path / "in" / "a.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 98])
    cv2.imwrite(str(tmp_path / "in" / "b.png"), pixels)
    jpeg, png = iter(cache_photographs(find_images([tmp_path / "in"]), tmp_path / "cache", 250))
    assert jpeg.shape == png.shape == (3, 188, 250)
    assert (jpeg.int() - png.int()).abs().max() <= 8


def test_a_jpeg_on_its_side_is_shrunk_upright(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(drawn_photograph(0, 640, 480), "JPEG", orientation=6))
    (tmp_path / "in" / "b.jpg").write_bytes(encoded(drawn_photograph(0, 80, 1280), "JPEG"))
    only = cache_photographs(find_images([tmp_path / "in"]), tmp_path / "cache", 250)
    assert [one.shape for one in iter(only)] == [(3, 250, 188)]
    assert "b.jpg: 1280x80 pixels, shrunk to 250x16, are too few" in caplog.text


def test_a_photograph_that_is_too_narrow_once_shrunk_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = draw_photographs(tmp_path / "in", 1)
    cv2.imwrite(str(folder / "panorama.png"), drawn_photograph(1, 120, 900))
    assert len(cache_photographs(find_images([folder]), tmp_path / "cache", 640)) == 1
    assert "panorama.png: 900x120 pixels, shrunk to 640x85, are too few" in caplog.text


def test_a_photograph_that_was_changed_but_not_in_size_is_decoded_again(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in (0, 1):
        cv2.imwrite(str(folder / "one.bmp"), drawn_photograph(seed))
        os.utime(folder / "one.bmp", (seed, seed))
        cached = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
        assert torch.equal(cached[0], torch.from_numpy(drawn_photograph(seed)).permute(2, 0, 1).flip(0))


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


def test_views_show_the_same_thing_at_the_same_points(
    photographs: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekd_cli.training.dataset.change_light", lambda images, light: images)
    mix = torch.tensor(LUMA) / 255
    monkeypatch.setattr("sekd_cli.training.dataset.draw_mix", lambda count, generator: mix.expand(count, 3))
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
    pairs = PairDataset(mixed, np.arange(5), labels, replace(SMALL, batch_size=6, other_surroundings=True), (3,))
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


def test_what_is_in_front_hides_points_and_labels_and_shows_another_photograph(photographs: Photographs) -> None:
    labels = np.random.default_rng(0).uniform(0, 250, (5, 60, 3)).astype(np.float32)
    settings = replace(SMALL, batch_size=4, other_surroundings=True)
    hiding = replace(settings, hidden_share=0.5)
    pairs, without = (PairDataset(photographs, np.arange(5), labels, each, (3,)) for each in (hiding, settings))
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


def test_labels_that_there_are_not_are_in_no_view_however_much_it_sees(photographs: Photographs) -> None:
    nothing = np.full((5, 4, 3), np.nan, np.float32)
    for parallax_share in (0.0, 1.0):
        settings = replace(SMALL, closest=100.0, farthest=100.0, parallax_share=parallax_share)
        keypoints = PairDataset(photographs, np.arange(5), nothing, settings, (3,)).plan(0).keypoints
        assert keypoints.isfinite().all()
        assert not inside(keypoints, settings.height, settings.width).any()


def test_held_out_photographs_come_one_by_one_with_the_next_ones_beyond(photographs: Photographs) -> None:
    pairs = HeldOutPairs(photographs, np.array([4, 2, 0]), replace(SMALL, batch_size=2, other_surroundings=True))
    for row, (own, others) in enumerate([(4, (2, 0)), (2, (0, 4)), (0, (4, 2))]):
        plan = pairs.plan(row)
        assert all(torch.equal(one, photographs[own]) for one in plan.photographs)
        assert all(torch.equal(one, photographs[other]) for one, other in zip(plan.others, others, strict=True))


def test_the_parts_of_a_batch_for_two_ranks_are_the_whole(photographs: Photographs) -> None:
    labels = np.full((5, 1, 3), 50, np.float32)
    settings = replace(SMALL, batch_size=4, other_surroundings=True, closest=3.0, farthest=3.0)
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
        settings = replace(SMALL, batch_size=32, plain_share=share)
        return PairDataset(photographs, np.arange(5), labels, settings, (0, 0)).plan(0).light

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


def test_a_unique_map_is_reliable_and_an_even_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    unique = torch.randn(1, 64, 12, 12, generator=generator).expand(3, -1, -1, -1)
    even = torch.ones(3, 64, 12, 12)
    inner = (slice(4, 8), slice(4, 8))
    assert map_reliability(unique, references_of(unique), SMALL)[inner].min() > 20  # about 1.2 / 0.03
    assert map_reliability(even, references_of(even), SMALL)[inner].max() < 0.1


def test_the_ablations_leave_out_one_half_of_reliability() -> None:
    noise = torch.randn(3, 32, 12, 12, generator=torch.Generator().manual_seed(0))
    noise[1:] = noise[:1] + 0.5 * noise[1:]
    references = references_of(noise)
    whole = map_reliability(noise, references, SMALL)
    only_distinct = map_reliability(noise, references, SMALL.without("descriptor-repeatability"))
    only_repeatable = map_reliability(noise, references, SMALL.without("descriptor-distinctness"))
    assert not torch.allclose(whole, only_distinct)
    assert not torch.allclose(whole, only_repeatable)
    with pytest.raises(UsageError, match="reliability is nothing"):
        SMALL.without("descriptor-repeatability", "descriptor-distinctness")


def test_corners_are_found_at_corners() -> None:
    image = torch.zeros(1, 40, 40)
    image[0, 10:30, 10:30] = 1
    strength = corner_strength(image)
    y, x = divmod(int(strength.argmax()), 40)
    assert min(abs(x - 9.5), abs(x - 29.5)) < 2
    assert min(abs(y - 9.5), abs(y - 29.5)) < 2
    assert strength[20, 20] < -5
    assert strength[10, 20] < strength.max() - 3  # an edge is no corner


@pytest.mark.parametrize("kind", ["black", "grey", "edge"])
def test_a_photograph_without_corners_gets_no_labels(kind: str) -> None:
    image = torch.full((1, 64, 96), 0.0 if kind == "black" else 0.5)
    image[..., 40:] += 0.3 * (kind == "edge")
    assert len(label_photograph(image, "corners", CompactNetwork(), SMALL, generator_of(0))) == 0


def test_faint_corners_are_labelled_too() -> None:
    image = torch.full((1, 64, 96), 0.5)
    image[:, 20:40, 30:60] += 0.02
    assert len(label_photograph(image, "corners", CompactNetwork(), SMALL, generator_of(0))) == 4


def test_adaptation_averages_what_the_references_see() -> None:
    logits = torch.full((3, 8, 8), -2.0)
    logits[1:] = 2.0
    maps = DenseMaps(logits, (logits[:, None],), logits[:, None])
    scores = adapted_scores(References(maps=maps, image_from_reference=torch.eye(3).repeat(2, 1, 1)), border=0)
    low, high = float(torch.tensor(-2.0).sigmoid()), float(torch.tensor(2.0).sigmoid())
    assert scores[4, 4] == pytest.approx((low + 2 * high) / 3, rel=1e-5)
    away = torch.eye(3).repeat(2, 1, 1)
    away[:, 0, 2] = 100.0  # the references look elsewhere
    scores = adapted_scores(References(maps=maps, image_from_reference=away), border=0)
    assert scores[4, 4] == pytest.approx(low, rel=1e-5)


def test_labelling_goes_on_where_it_was_stopped_and_ends_the_same(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekd_cli.training.labelling.GROUP", 1)
    torch.manual_seed(0)
    network = CompactNetwork()
    settings = replace(SMALL, labels_per_photograph=30, adaptation_threshold=0.0, label_border=4)
    chosen = np.array([3, 0, 4, 1, 2])
    calls = iter([False, False, True])
    kind = "adaptation-reliability"

    def label(file: Path, **options: object) -> int:
        return label_photographs(kind, network, photographs, chosen, settings, key=(0, 2), file=file, **options)

    told: list[int] = []
    assert label(tmp_path / "whole.npy", progress=told.append) == 5
    assert told == [1, 2, 3, 4, 5]
    assert label(tmp_path / "part.npy", stop=lambda: next(calls)) == 3
    assert label(tmp_path / "part.npy") == 5
    whole, resumed = (np.load(tmp_path / name) for name in ("whole.npy", "part.npy"))
    assert np.array_equal(whole, resumed, equal_nan=True)
    assert np.isfinite(whole[:, 0]).all()
    with torch.inference_mode():
        own = label_photograph(grey_of(photographs[3]), kind, network.eval(), settings, generator_of(0, 2, 3))
    np.testing.assert_array_equal(whole[0, : len(own)], own)
    x, y = whole[..., 0], whole[..., 1]
    assert np.nanmin(x) >= 3
    assert np.nanmax(x) <= 192 - 4
    assert np.nanmax(y) <= 160 - 4


def test_labels_that_a_disk_has_no_room_for_are_told_before_they_are_made(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        assert offset == 0
        assert length == os.fstat(descriptor).st_size
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"labels\.npy: the disk is full"):
        label_photographs(
            "corners", CompactNetwork(), photographs, np.arange(5), SMALL, key=(0,), file=tmp_path / "labels.npy"
        )


@pytest.mark.parametrize("damaged", ["labels.npy", "labels.json"])
def test_damaged_labels_are_named_and_made_again_once_deleted(
    damaged: str, photographs: Photographs, tmp_path: Path
) -> None:
    def label() -> int:
        file = tmp_path / "labels.npy"
        return label_photographs("corners", CompactNetwork(), photographs, np.arange(5), SMALL, key=(0,), file=file)

    assert label() == 5
    os.truncate(tmp_path / damaged, 7)
    with pytest.raises(InputFileError, match=rf"{damaged}: damaged; delete it"):
        label()
    (tmp_path / damaged).unlink()
    assert label() == 5
    labels = np.load(tmp_path / "labels.npy")
    assert np.isfinite(labels[:, 0]).all()
    assert np.isnan(labels[:, -1]).all(), "there are fewer"


@pytest.mark.parametrize(("border", "nearest"), [(0, 1), (7, 6)])  # positions move by less than a pixel
def test_labels_come_as_near_to_the_edge_as_the_border_allows(border: int, nearest: int) -> None:
    image = torch.zeros(1, 64, 80)
    image[:, ::8, ::8] = 1.0
    settings = replace(SMALL, label_border=border)
    labels = label_photograph(image, "corners", CompactNetwork(), settings, generator_of(0))
    assert len(labels) > 20
    assert nearest <= labels[:, 0].min() < nearest + 8


def test_labels_are_apart_and_none_is_in_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((64, 96), -5.0)
    for x, y, logit in ((80, 20, 3.0), (76, 20, 2.0), (80, 25, 1.0), (30, 60, 4.0)):
        logits[y, x] = logit
    monkeypatch.setattr(labelling, "_network_logits", lambda *_: (logits, 0.5))
    settings = replace(SMALL, label_nms_radius=4)
    labels = label_photograph(torch.zeros(1, 50, 90), "adaptation", CompactNetwork(), settings, generator_of(0))
    expected = [[80, 20, 1 / (1 + math.exp(-3))], [80, 25, 1 / (1 + math.exp(-1))]]
    np.testing.assert_allclose(labels, expected, atol=1e-4)


def test_a_checkpoint_comes_back_and_code_in_one_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "tensor": torch.arange(3)})
    assert load_checkpoint(path)["step"] == 3
    torch.save({"format": 1, "code": Path}, path)  # a pickled class: refused, not run
    with pytest.raises(InputFileError, match="damaged checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputFileError, match="damaged checkpoint"):
        load_checkpoint(path)
    torch.save({"format": 1}, path)
    with pytest.raises(InputFileError, match="another version of sekd"):
        load_checkpoint(path)
    with pytest.raises(InputFileError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_checkpoint_on_a_full_disk_is_told_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3})
    with (
        files_of_at_most(1 << 16),
        pytest.raises(OutputError, match="larger than this file system or process may write"),
    ):
        save_checkpoint(path, {"step": 4, "tensor": torch.zeros(1 << 16)})
    assert load_checkpoint(path)["step"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_what_hides_covers_a_part_of_a_view_and_nothing_beyond_it() -> None:
    hidden = draw_hidden(400, 1.0, 64, 96, generator_of(0)).float().mean(dim=(1, 2))
    assert 0.1 < hidden.mean() < 0.4
    one = torch.zeros(1, 4, 6, dtype=torch.bool)
    one[0, 2, 4] = one[0, 0, 0] = one[0, 3, 5] = True
    places = torch.tensor([[[3.6, 2.2], [4.6, 2.2], [-3.0, -3.0], [9.0, 9.0], [0.4, 0.3]]])
    assert hidden_at(one, places).tolist() == [[True, False, False, False, True]]


def dataset(photographs: Photographs, labels: np.ndarray, **changes: Any) -> PairDataset:
    return PairDataset(photographs, np.arange(5), labels, replace(SMALL, **changes), (3,))


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


def test_which_labels_are_compared_is_left_to_chance(photographs: Photographs) -> None:
    labels = np.random.default_rng(0).uniform(79, 81, (5, 60, 3)).astype(np.float32)
    pairs = dataset(photographs, labels, batch_size=6, detected_points=3, random_points=0)
    taken: set[int] = set()
    for step in range(5):
        plan = pairs.plan(step)
        nearest = distances(plan.points[:6], plan.keypoints[:6]).argmin(dim=2)
        taken.update(nearest[plan.matched].tolist())
    assert len(taken) > 25


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


def test_what_a_view_shrinks_does_not_alias() -> None:
    stripes = (torch.arange(192) % 2 * 255).to(torch.uint8).expand(1, 3, 160, 192)
    there = torch.diag(torch.tensor([3.0, 1.0, 1.0]))[None, None]
    size, mix = torch.tensor([[192.0, 160.0]]), torch.full((1, 1, 3), 1 / 765)
    assert look(stripes, size, mix, there, height=160, width=60)[0][..., 8:-8].std() < 0.02


def moved_references(features: Tensor, right: int, down: int, stride: int = 1) -> References:
    """One reference, which looks so many positions farther to the right and down."""
    looked = features.roll((-down, -right), dims=(2, 3))
    references = references_of(torch.cat((features, looked)), stride)
    there = translation(torch.tensor([float(right * stride)]), torch.tensor([float(down * stride)]))
    return replace(references, image_from_reference=there)


@pytest.mark.parametrize("stride", [1, 4])
def test_reliability_looks_for_each_position_where_the_reference_has_it(stride: int) -> None:
    unique = torch.randn(1, 64, 16, 20, generator=torch.Generator().manual_seed(0))
    references = moved_references(unique, 5, 3, stride)
    found = map_reliability(references.maps.low_level_map, references, SMALL)
    assert found[8:12, 9:16].min() > 20
    assert found[:, :4].max() == found[:2].max() == 0, "nothing of what no reference sees"


def test_a_reference_that_does_not_see_a_position_says_nothing_of_it() -> None:
    noise = torch.randn(3, 32, 12, 12, generator=torch.Generator().manual_seed(0))
    noise[1:] = noise[:1] + 0.5 * noise[1:]
    both, first = references_of(noise), references_of(noise[:2])
    elsewhere = torch.cat((torch.eye(3)[None], translation(torch.tensor([100.0]), torch.zeros(1))))
    away = map_reliability(noise, replace(both, image_from_reference=elsewhere), SMALL)
    torch.testing.assert_close(away, map_reliability(noise[:2], first, SMALL))


def test_what_comes_again_within_the_window_is_not_reliable() -> None:
    tile = torch.randn(1, 64, 16, 4, generator=torch.Generator().manual_seed(0))
    again = tile.repeat(2, 1, 1, 5)  # every four positions: two steps of a window of 5
    assert map_reliability(again, references_of(again), SMALL)[4:12, 6:14].max() < 0.1


def test_both_levels_have_their_weight_and_further_references_none() -> None:
    generator = torch.Generator().manual_seed(0)
    unique = torch.randn(1, 64, 12, 12, generator=generator).repeat(4, 1, 1, 1)
    unique[3] = torch.randn(64, 12, 12, generator=generator)  # a third reference shows something else
    maps = DenseMaps(torch.zeros(4, 12, 12), (unique,), torch.ones(4, 8, 12, 12))
    references = References(maps=maps, image_from_reference=torch.eye(3).repeat(3, 1, 1))
    settings = replace(SMALL, low_level_weight=0.25, reliability_references=2)
    descriptors, low_level = (map_reliability(part[:3], references, settings) for part in (unique, maps.low_level_map))
    torch.testing.assert_close(reliability(references, settings), 0.75 * descriptors + 0.25 * low_level)
    swapped = replace(references, maps=maps._replace(descriptor_maps=(maps.low_level_map,), low_level_map=unique))
    torch.testing.assert_close(reliability(swapped, settings), 0.25 * descriptors + 0.75 * low_level)


class Echo(nn.Module):
    """A network whose logits are its image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> DenseMaps:
        return DenseMaps(image[:, 0], (image,), image)


def test_references_show_the_image_where_they_say_in_other_light(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = torch.meshgrid(torch.arange(80.0), torch.arange(96.0), indexing="ij")
    image = (0.5 + 0.3 * torch.sin(x / 9) * torch.cos(y / 7))[None]
    lit = look_at_references(Echo(), image, 3, generator_of(1)).maps.score_logits  # type: ignore[arg-type]
    drawn: list[Light] = []
    monkeypatch.setattr(
        "sekd_cli.training.affine_adaptation.change_light", lambda images, light: drawn.append(light) or images
    )
    _, references = (look_at_references(Echo(), image, 3, generator_of(seed)) for seed in (2, 1))  # type: ignore[arg-type]
    assert len(torch.cat([light.tone for light in drawn]).unique(dim=0)) == 6, "each has a light of its own"
    logits = references.maps.score_logits
    assert (lit[1:] - logits[1:]).abs().mean() > 0.02
    torch.testing.assert_close(lit[0], image[0])
    grid = pixel_grid(80, 96).expand(3, -1, -1)
    xy = warp_points(grid, torch.linalg.inv(references.image_from_reference))
    seen = inside(xy, 80, 96)
    assert seen.float().mean() > 0.3
    found = sample_map(logits[1:, None], xy)[:, 0]
    assert (found - image.flatten(1))[seen].abs().max() < 0.02
    returned = adapted_scores(references, border=0)
    assert (returned - image[0].sigmoid()).abs().mean() < 0.005


def test_what_lies_at_a_references_edge_does_not_count() -> None:
    logits = torch.full((2, 12, 20), -2.0)
    logits[1] = 2.0
    maps = DenseMaps(logits, (logits[:, None],), logits[:, None])
    scores = adapted_scores(References(maps=maps, image_from_reference=torch.eye(3)[None]), border=3)
    expected = logits[0].sigmoid()
    expected[3:-3, 3:-3] = logits[:, 3:-3, 3:-3].sigmoid().mean(0)
    torch.testing.assert_close(scores, expected)


def test_padding_is_to_the_right_and_below() -> None:
    image = torch.rand(1, 5, 6)
    padded = pad_to_stride(image, 4)
    assert padded.shape == (1, 8, 8)
    assert torch.equal(padded[:, :5, :6], image)
    assert torch.equal(padded[:, 5:, :6], image[:, 4:].expand(-1, 3, -1))
    assert torch.equal(padded[:, :, 6:], padded[:, :, 5:6].expand(-1, -1, 2))


@pytest.mark.parametrize(
    ("kind", "adapts", "expected"),
    [
        ("adaptation", True, (5, 0.8, 0.2)),
        ("adaptation", False, (0, 0.5, 0.2)),
        ("reliability", True, (7, 0.5, 0.6 / 1.6)),
        ("adaptation-reliability", True, (7, 0.4, 0.1)),
        ("adaptation-reliability", False, (7, 0.25, 0.1)),
    ],
)
def test_each_kind_of_label_has_its_references_score_and_threshold(
    kind: str, adapts: bool, expected: tuple[int, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    borders: list[float] = []

    def look(network: object, image: Tensor, references: int, generator: object) -> References:
        asked.append(references)
        found = references_of(torch.zeros(2, 1, *image.shape[-2:]))
        found.maps.score_logits[1:] = 5.0  # of the references
        return found

    def adapted(references: References, border: float) -> Tensor:
        borders.append(border)
        return torch.full((64, 96), 0.8)

    monkeypatch.setattr(labelling, "look_at_references", look)
    monkeypatch.setattr(labelling, "adapted_scores", adapted)
    monkeypatch.setattr(labelling, "reliability", lambda references, settings: torch.full((64, 96), 1.0))
    settings = replace(
        SMALL,
        adaptation_references=5,
        reliability_references=7,
        adaptation_threshold=0.2,
        reliability_threshold=0.6,
        label_border=9,
        affine_adaptation=adapts,
    )
    logits, found = labelling._network_logits(torch.zeros(1, 64, 96), kind, CompactNetwork(), settings, generator_of(0))
    assert set(borders) <= {9}
    assert (*asked, float(logits.sigmoid().mean()), found) == pytest.approx(expected)
