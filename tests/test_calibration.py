"""Drawn pictures have the ranges that photographs have, in every part of the released network."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sekd_cli.networks import calibration
from sekd_cli.networks.calibration import dead_leaves, ranges_of
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


def test_the_ranges_of_drawn_pictures_are_those_of_photographs(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = pack_fine_levels(fold_batch_norms(load_network(packaged_weights())))
    drawn = ranges_of(network)
    photographs = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:256, :256] for path in sorted(examples.glob("*.jpg"))]
    monkeypatch.setattr(calibration, "dead_leaves", lambda seed: photographs[seed])
    seen = ranges_of(network)
    assert {"level2.0", "level32", "onto4", "joined4", "surroundings"} <= set(drawn)
    for name, (low, high) in seen.items():
        least, most = drawn[name]
        assert 0.5 < (most - least) / (high - low) < 2, name
        assert least >= 0 or low < 0, name


def test_nothing_stays_hooked() -> None:
    network = pack_fine_levels(fold_batch_norms(load_network(packaged_weights())))
    ranges_of(network)
    assert not any(module._forward_hooks for module in network.modules())
    assert not torch.is_inference_mode_enabled()
