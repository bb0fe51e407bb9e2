"""Drawn pictures have the ranges that photographs have, in every part of the released network."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sekd_cli.networks import calibration
from sekd_cli.networks.calibration import dead_leaves, maps_of, range_of
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.networks.packing import pack_fine_levels
from sekd_cli.networks.weights_file import load_network, packaged_weights


@pytest.mark.parametrize("seed", range(calibration.PICTURES))
def test_leaves_of_all_greys_cover_the_picture_which_is_always_the_same(seed: int) -> None:
    picture = dead_leaves(seed)
    assert picture.dtype == np.uint8
    assert picture.shape == (256, 256)
    assert np.array_equal(picture, dead_leaves(seed))
    assert not np.array_equal(picture, dead_leaves(seed + 1))
    assert 100 < picture.mean() < 155
    assert 50 < picture.std() < 90  # that of all greys, each as often, is 74


def test_a_leaf_is_noisy_and_its_edge_soft() -> None:
    picture = dead_leaves(3).astype(float)
    rows = np.abs(np.diff(picture, axis=1))
    assert 1 < np.median(rows[rows < 10]) < 4, "the difference of two pixels of one leaf"
    assert 0.1 < (rows > 20).mean() < 0.5, "edges, two or three pixels wide"


def test_a_range_leaves_one_value_in_a_hundred_thousand_out_at_either_end() -> None:
    for few in (3, 30):
        values = torch.linspace(-1, 1, 1_000_000)
        values[:few], values[-few:] = -100, 50
        low, high = range_of(values.reshape(10, 100, 1000)[:, :, torch.randperm(1000)])
        assert (low < -50) == (high > 25) == (few == 30)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300_011])
def test_a_range_is_found_wherever_the_largest_values_lie(count: int) -> None:
    torch.manual_seed(count)
    beyond = round((1 - calibration.SHARE) * count) + 1
    for values in (torch.randn(count), torch.randn(count).round(), torch.linspace(-1, 1, count)):
        least, most = values.sort().values[[beyond - 1, -beyond]].tolist()
        assert range_of(values) == (least, most)


def test_the_ranges_of_drawn_pictures_are_those_of_photographs(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = pack_fine_levels(fold_batch_norms(load_network(packaged_weights())))
    drawn = maps_of(network)
    assert drawn["level4.0"].shape == (4, 32, 64, 64)
    photographs = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:256, :256] for path in sorted(examples.glob("*.jpg"))]
    monkeypatch.setattr(calibration, "dead_leaves", lambda seed: photographs[seed])
    seen = maps_of(network)
    for name in ("level2.0", "level4.1", "level8.1", "level16.1", "level32.1", "onto8", "onto4", "joined4", "onto2"):
        (least, most), (low, high) = range_of(drawn[name]), range_of(seen[name])
        assert 0.5 < (most - least) / (high - low) < 2, name
        assert least >= 0 or low < 0, name


def test_nothing_stays_hooked() -> None:
    network = pack_fine_levels(fold_batch_norms(load_network(packaged_weights())))
    maps_of(network)
    assert not any(module._forward_hooks for module in network.modules())
    assert not torch.is_inference_mode_enabled()
