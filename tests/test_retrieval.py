"""Images that look alike, found by their local descriptors."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from drawn_features import ATTRIBUTES, drawn_features, write_views

from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.retrieval import aggregate, learn_codebook, nearest, nearest_pairs


def test_a_word_holds_the_sum_of_its_residuals_each_normalised() -> None:
    codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    descriptors = torch.tensor([[3.0, 0.0], [0.0, 4.0], [10.0, 2.0]])
    # Residuals (3, 4) of the first word and (0, 2) of the second: units (0.6, 0.8), (0, 1), (0, 0), then over root 2.
    expected = torch.tensor([0.6, 0.8, 0.0, 1.0, 0.0, 0.0]) / 2**0.5
    torch.testing.assert_close(aggregate(descriptors, codebook), expected)


def test_an_image_without_descriptors_or_with_others_is_like_none() -> None:
    codebook = torch.eye(3)
    for descriptors in (torch.zeros(0, 3), torch.ones(5, 4)):
        assert aggregate(descriptors, codebook).tolist() == [0.0] * 9


def test_the_codebook_finds_clusters_whatever_their_sizes() -> None:
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    noise = 0.01 * torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    descriptors = torch.cat((centres.repeat(200, 1), centres[2:].repeat(300, 1))) + noise
    found = learn_codebook(descriptors, words=8)
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.02
    assert torch.equal(found, learn_codebook(descriptors, words=8))
    assert learn_codebook(torch.zeros(0, 2)).shape == (0, 2)
    assert learn_codebook(torch.ones(100, 4), words=8).shape == (2, 4)
    assert learn_codebook(torch.ones(2, 4), words=8).shape == (1, 4)


def test_neighbours_of_either_are_pairs_once() -> None:
    directions = torch.tensor([0.0, 10.0, 25.0, 180.0]).deg2rad()
    described = torch.stack((directions.cos(), directions.sin()), dim=1)
    assert list(nearest_pairs(described, 1)) == [(0, 1), (1, 2), (2, 3)]
    everything = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert list(nearest_pairs(described, 3)) == list(nearest_pairs(described, 99)) == everything
    assert list(nearest_pairs(described[:1], 3)) == []
    assert list(nearest_pairs(torch.zeros(4, 2), 1)) == [(0, 1), (0, 2), (0, 3)]  # of equals the first


@pytest.mark.parametrize("at_once", [1, 3, 1024])
def test_how_many_are_compared_at_once_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    described = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    expected = list(nearest_pairs(described, 3))
    monkeypatch.setattr("sekd_cli.retrieval.COMPARED_AT_ONCE", at_once)
    assert list(nearest_pairs(described, 3)) == expected


def test_views_of_a_plane_find_each_other(tmp_path: Path) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(5) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    with FeatureReader(tmp_path / "feats.h5") as reader:
        pairs = list(nearest(reader, names, 2, {}))
        assert pairs == list(nearest(reader, names, 2, {}))
    assert pairs == [(one, other) for one in names for other in names if one < other and one[:6] == other[:6]]


def test_a_descriptor_that_is_no_number_spoils_nothing(tmp_path: Path) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(3) for view in range(2)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            features = drawn_features(index, plane=index // 2)
            if index == 0:
                features.descriptors[3, 2] = np.nan
            writer.write(name, features)
    with FeatureReader(tmp_path / "feats.h5") as reader:
        assert list(nearest(reader, names, 1, {})) == [(names[0], names[1]), (names[2], names[3]), (names[4], names[5])]


def test_images_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    write_views(tmp_path / "feats.h5", ["a", "b", "c"])
    for damaged in ("b", "a", "c"):
        with h5py.File(tmp_path / "feats.h5", "r+") as file:
            file[f"{damaged}/keypoints"][0] = np.nan
        with FeatureReader(tmp_path / "feats.h5") as reader:
            pairs = list(nearest(reader, ["a", "b", "c"], 2, unreadable := {}))
        assert pairs == ([("a", "c")] if damaged == "b" else [])
        assert damaged in unreadable
    assert set(unreadable) == {"a", "b", "c"}


def test_images_without_keypoints_are_no_error(tmp_path: Path) -> None:
    write_views(tmp_path / "feats.h5", ["a", "b", "c"], common=0, own=0)
    with FeatureReader(tmp_path / "feats.h5") as reader:
        assert len(list(nearest(reader, ["a", "b", "c"], 2, {}))) == 3
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        writer.write("d", drawn_features(0))
        writer.write("e", drawn_features(1))
    with FeatureReader(tmp_path / "feats.h5") as reader:
        assert ("d", "e") in list(nearest(reader, ["a", "b", "c", "d", "e"], 1, {}))
    assert np.isfinite(drawn_features(0).descriptors).all()


def test_descriptors_need_not_be_of_unit_length(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(4)]
    with FeatureWriter(tmp_path / "f.h5", ATTRIBUTES) as writer:
        for view, name in enumerate(names):
            features = drawn_features(view, plane=view // 2)
            length = 1e15 if name == "3.jpg" else 1e-3
            writer.write(name, replace(features, descriptors=features.descriptors * np.float32(length)))
    with FeatureReader(tmp_path / "f.h5") as reader:
        assert list(nearest(reader, names, 1, {})) == [("0.jpg", "1.jpg"), ("2.jpg", "3.jpg")]
