"""Images that look alike, found by their local descriptors."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from drawn_features import ATTRIBUTES, drawn_features, write_views

from sekd_cli import retrieval
from sekd_cli.errors import DeviceError
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.retrieval import KEYPOINTS, nearest, neighbours
from sekd_cli.workers import CAN_FORK


def test_neighbours_are_the_most_alike_of_equals_the_first() -> None:
    turns = np.deg2rad([0.0, 10.0, 25.0, 180.0])
    cosines = np.cos(turns[:, None] - turns)
    assert neighbours(cosines.copy(), 0, 1) == [[1], [0], [1], [2]]
    assert neighbours(cosines[2:].copy(), 2, 2) == [[1, 0], [2, 1]]
    assert neighbours(cosines.copy(), 0, 3) == neighbours(cosines.copy(), 0, 99)
    assert neighbours(np.ones((1, 1)), 0, 3) == [[]]
    assert neighbours(np.zeros((3, 99)), 0, 2) == [[1, 2], [0, 2], [0, 1]]


def test_queries_have_the_others_as_neighbours_alone() -> None:
    turns = np.deg2rad([0.0, 10.0, 5.0, 40.0, 12.0])
    rows = np.cos(turns[:, None] - turns)[:2]  # of two queries
    assert neighbours(rows.copy(), 0, 1, asked=2) == [[2], [4]]
    assert neighbours(rows[1:].copy(), 1, 2, asked=2) == [[4, 2]]
    assert neighbours(rows.copy(), 0, 9, asked=2) == [[2, 4, 3], [4, 2, 3]]


def test_views_of_a_plane_find_each_other(tmp_path: Path) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(5) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    with FeatureReader(tmp_path / "feats.h5") as reader:
        pairs = list(nearest(reader, names, 2, {}))
        done: list[int] = []
        assert pairs == list(nearest(reader, names, 2, {}, done.append))
        assert done == [len(names), len(names)]
    assert pairs == [(one, other) for one in names for other in names if one < other and one[:6] == other[:6]]


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr("sekd_cli.retrieval.DESCRIBED_AT_ONCE", 2)
    monkeypatch.setattr("sekd_cli.retrieval.COMPARED_VALUES", 50)  # of 11 images at once 4
    names = [f"plane{plane}/view{view}.jpg" for plane in range(4) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        file[names[4]]["descriptors"][:] += 1  # damaged
    expected = [(one, other) for one in names for other in names if one < other and one[:6] == other[:6]]
    with FeatureReader(tmp_path / "feats.h5") as reader:
        done: list[int] = []
        unreadable: dict[str, str] = {}
        found = list(nearest(reader, names, 2, unreadable, done.append, processes=processes))
    assert [pair for pair in found if "plane1" not in pair[0] + pair[1]] == [
        pair for pair in expected if "plane1" not in pair[0]
    ]
    assert (names[3], names[5]) in found
    assert list(unreadable) == [names[4]]
    assert sum(done) == 2 * len(names) - 1
    assert sorted(done[-3:]) == [3, 4, 4]


@pytest.mark.skipif(not CAN_FORK, reason="no processes here")
def test_images_whose_process_dies_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(2) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    descriptors = retrieval._descriptors

    def deadly(features: FeatureReader, name: str, most: int) -> torch.Tensor:
        if name == names[1] and most == KEYPOINTS:
            os._exit(9)
        return descriptors(features, name, most)

    monkeypatch.setattr("sekd_cli.retrieval.SAMPLED_DESCRIPTORS", 2 * len(names))
    monkeypatch.setattr("sekd_cli.retrieval.DESCRIBED_AT_ONCE", 2)
    monkeypatch.setattr("sekd_cli.retrieval._descriptors", deadly)
    with FeatureReader(tmp_path / "feats.h5") as reader:
        found = list(nearest(reader, names, 1, unreadable := {}, processes=2))
    assert unreadable == {names[1]: f"{names[1]}: the process that read it died (exit code 9)"}
    assert (names[0], names[2]) in found


@pytest.mark.skipif(not CAN_FORK, reason="no processes here")
def test_a_process_that_dies_while_it_compares_is_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_views(tmp_path / "feats.h5", ["a", "b"])
    monkeypatch.setattr("sekd_cli.retrieval.COMPARED_AT_ONCE", 1)
    monkeypatch.setattr("sekd_cli.retrieval.neighbours", lambda *arguments: os._exit(9))
    told = pytest.raises(DeviceError, match=r"compare 2 images \(exit code 9\); give --threads 1")
    with FeatureReader(tmp_path / "feats.h5") as reader, told:
        list(nearest(reader, ["a", "b"], 1, {}, processes=2))


def test_queries_find_their_plane_among_the_others(tmp_path: Path) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(5) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    queries, others = names[2::3], [name for name in names if "view2" not in name]
    with FeatureReader(tmp_path / "feats.h5") as reader:
        done: list[int] = []
        found = list(nearest(reader, others, 2, {}, done.append, queries=queries))
        assert done == [len(names), len(queries)]
    assert found == [(query, other) for query in queries for other in others if query[:6] == other[:6]]
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        for name in queries[:2]:
            file[name]["descriptors"][:] += 1  # damaged
    for asked, expected in ((queries, found[4:]), (queries[:2], [])):
        with FeatureReader(tmp_path / "feats.h5") as reader:
            unreadable: dict[str, str] = {}
            assert list(nearest(reader, others, 2, unreadable, queries=asked)) == expected
            assert list(unreadable) == queries[:2]


@pytest.mark.parametrize(("most", "chosen"), [(3, "adg"), (5, "abcdefghi"), (99, "abcdefghi")])
def test_the_codebook_is_of_the_best_of_images_spread_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, chosen: str
) -> None:
    names = list("abcdefghi")
    write_views(tmp_path / "feats.h5", names)
    monkeypatch.setattr("sekd_cli.retrieval.SAMPLED_IMAGES", most)
    monkeypatch.setattr("sekd_cli.retrieval.SAMPLED_DESCRIPTORS", 2 * len(chosen))  # two of each
    learned_from: list[torch.Tensor] = []
    monkeypatch.setattr("sekd_cli.retrieval.learn_codebook", lambda all_: learned_from.append(all_) or all_[:1])
    with FeatureReader(tmp_path / "feats.h5") as reader:
        list(nearest(reader, names, 1, {}))
        best = [torch.from_numpy(reader.read(name).descriptors[:2]) for name in chosen]
    torch.testing.assert_close(learned_from, [torch.cat(best)])


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


def test_descriptors_of_another_width_are_like_none(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f.h5", ATTRIBUTES) as writer:
        for view, (name, width) in enumerate((("a", 16), ("b", 8), ("c", 16))):
            writer.write(name, drawn_features(view, width=width))
    with FeatureReader(tmp_path / "f.h5") as reader:
        assert ("a", "c") in list(nearest(reader, ["a", "b", "c"], 1, unreadable := {}))
    assert not unreadable


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


def test_an_image_is_known_by_its_best_keypoints_wherever_they_stand(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(4)]
    with FeatureWriter(tmp_path / "f.h5", ATTRIBUTES) as writer:
        for view, name in enumerate(names):
            features = drawn_features(view, plane=view // 2)
            other = drawn_features(9, plane=(view // 2 + 1) % 2)  # of the other plane, and worse
            count = len(features)
            assert count < KEYPOINTS
            rows = np.concatenate((np.tile(other.descriptors, (KEYPOINTS // count + 2, 1)), features.descriptors))
            scores = np.concatenate((np.full(len(rows) - count, 0.1), np.full(count, 0.9))).astype(np.float32)
            writer.write(
                name,
                replace(
                    features,
                    keypoints=np.zeros((len(rows), 2), np.float32),
                    scores=scores,
                    descriptors=rows.astype(np.float32),
                    scales=None,
                ),
            )
    with FeatureReader(tmp_path / "f.h5") as reader:
        assert list(nearest(reader, names, 1, {})) == [("0.jpg", "1.jpg"), ("2.jpg", "3.jpg")]
