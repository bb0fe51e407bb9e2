"""Affine adaptation, reliability and labelling."""

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sekd_cli.errors import InputFileError, OutputError, UsageError
from sekd_cli.geometry import inside, pixel_grid, sample_map, translation, warp_points
from sekd_cli.networks import CompactNetwork, DenseMaps
from sekd_cli.training import labelling
from sekd_cli.training.affine_adaptation import References, adapted_scores, look_at_references
from sekd_cli.training.labelling import grey_of, label_photograph, label_photographs, pad_to_stride
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.photometric import Light
from sekd_cli.training.randomness import generator_of
from sekd_cli.training.reliability import corner_strength, map_reliability, reliability
from sekd_cli.training.settings import TrainingSettings

SMALL = TrainingSettings(height=64, width=96, batch_size=3, detected_points=20, random_points=10)


def references_of(feature_map: torch.Tensor, stride: int = 1) -> References:
    """References that are the image itself, moved nowhere."""
    count, _, height, width = feature_map.shape
    maps = DenseMaps(torch.zeros(count, height * stride, width * stride), (feature_map,), feature_map)
    return References(maps=maps, image_from_reference=torch.eye(3).repeat(count - 1, 1, 1))


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
    with pytest.raises(UsageError, match="descriptor_repeatability, descriptor_distinctness: leave one on"):
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

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)  # macOS has none
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


def test_faint_corners_are_labelled_too() -> None:
    image = torch.full((1, 64, 96), 0.5)
    image[:, 20:40, 30:60] += 0.02
    assert len(label_photograph(image, "corners", CompactNetwork(), SMALL, generator_of(0))) == 4


def test_labels_are_apart_and_none_is_in_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((64, 96), -5.0)
    for x, y, logit in ((80, 20, 3.0), (76, 20, 2.0), (80, 25, 1.0), (30, 60, 4.0)):
        logits[y, x] = logit
    monkeypatch.setattr(labelling, "_network_logits", lambda *_: (logits, 0.5))
    settings = replace(SMALL, label_nms_radius=4)
    labels = label_photograph(torch.zeros(1, 50, 90), "adaptation", CompactNetwork(), settings, generator_of(0))
    expected = [[80, 20, 1 / (1 + math.exp(-3))], [80, 25, 1 / (1 + math.exp(-1))]]
    np.testing.assert_allclose(labels, expected, atol=1e-4)


def test_a_reference_that_does_not_see_a_position_says_nothing_of_it() -> None:
    noise = torch.randn(3, 32, 12, 12, generator=torch.Generator().manual_seed(0))
    noise[1:] = noise[:1] + 0.5 * noise[1:]
    both, first = references_of(noise), references_of(noise[:2])
    elsewhere = torch.cat((torch.eye(3)[None], translation(torch.tensor([100.0]), torch.zeros(1))))
    away = map_reliability(noise, replace(both, image_from_reference=elsewhere), SMALL)
    torch.testing.assert_close(away, map_reliability(noise[:2], first, SMALL))
