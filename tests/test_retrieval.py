"""Images that look alike, found by their local descriptors."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from drawn_features import ATTRIBUTES, drawn_features, write_views

from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.retrieval import KEYPOINTS, Directions, directions, learn_codebook, nearest, nearest_pairs, similarities


def alike(images: list[Directions]) -> np.ndarray:
    return np.concatenate(list(similarities(images)))


def test_a_word_holds_the_direction_of_its_descriptors() -> None:
    codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    found = directions(torch.tensor([[10.0, 2.0], [3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), codebook)
    assert found.words.tolist() == [0, 1]
    assert found.there.tolist() == [[76, 102], [0, 127]]  # 0.6 and 0.8, of (3, 0) and (0, 4); (0, 2)


def test_an_image_without_descriptors_or_with_others_is_like_none() -> None:
    codebook = torch.eye(3)
    none = [directions(descriptors, codebook) for descriptors in (torch.zeros(2, 3), torch.ones(5, 4))]
    assert [len(image.words) for image in none] == [0, 0]
    whole = directions(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)), codebook)
    expected = [[-1, 0, -1], [-1, 1, -1], [-1, 0, -1]]
    np.testing.assert_allclose(alike([none[0], whole, none[1]]), expected, atol=0.01)


def test_images_are_alike_by_directions_in_common_words_rare_ones_more() -> None:
    def image(**words: tuple[float, float]) -> Directions:
        there = np.array(list(words.values()), np.float64).reshape(-1, 2)
        return Directions(np.array([int(word[1:]) for word in words]), (127 * there).round().astype(np.int8))

    first = image(w0=(1, 0), w1=(0, 1), w3=(1, 0))
    second = image(w0=(0.6, 0.8), w1=(0.3, -0.954), w3=(0.1, 0.995))  # 0.6 in word 0; far apart, and at right angles
    third = image(w2=(1, 0))
    expected = 0.6**3 / 3
    found = alike([first, second, third])
    np.testing.assert_allclose(found, [[1, expected, 0], [expected, 1, 0], [0, 0, 1]], atol=0.02)
    fourth = image(w2=(1, 0), w3=(1, 0))  # has the first's word 3 and the third's word 2
    found = alike([first, second, third, fourth])
    of_two, of_three = np.log1p(4 / 2), np.log1p(4 / 3)  # images that have the word; the rarer is worth more
    np.testing.assert_allclose(found[3, 2], np.sqrt(of_two / (of_two + of_three)), atol=1e-3)
    of_both = np.sqrt((of_two + of_three) * (2 * of_two + of_three))
    np.testing.assert_allclose(found[3, 0], of_three / of_both, atol=1e-3)


@pytest.mark.parametrize("at_once", [1, 3, 1024])
def test_how_many_are_compared_at_once_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(6, 4, generator=generator)
    images = [directions(torch.randn(count, 4, generator=generator), codebook) for count in (9, 0, 3, 20, 1, 7, 12)]
    expected = alike(images)
    monkeypatch.setattr("sekd_cli.retrieval.COMPARED_AT_ONCE", at_once)
    found = list(similarities(images))
    assert len(found[0]) == min(at_once, len(images))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-6)


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


def test_a_word_that_nothing_is_nearest_to_stays_where_it_was() -> None:
    descriptors = torch.tensor([[3.0, 4.0]]).repeat(100, 1)  # both words begin there, and the first takes all
    assert learn_codebook(descriptors, words=8).tolist() == [[3.0, 4.0]] * 2


def test_neighbours_of_either_are_pairs_once() -> None:
    turns = np.deg2rad([0.0, 10.0, 25.0, 180.0])
    cosines = np.cos(turns[:, None] - turns)

    def pairs(rows: np.ndarray, count: int) -> list[tuple[int, int]]:
        return list(nearest_pairs(np.array_split(rows.copy(), 2), count))

    assert pairs(cosines, 1) == [(0, 1), (1, 2), (2, 3)]
    everything = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs(cosines, 3) == pairs(cosines, 99) == everything
    assert pairs(cosines[:1, :1], 3) == list(nearest_pairs([], 3)) == []
    assert pairs(np.zeros((99, 99)), 1) == [(0, other) for other in range(1, 99)]  # of equals the first


def test_queries_have_the_others_as_neighbours_alone() -> None:
    turns = np.deg2rad([0.0, 10.0, 5.0, 40.0, 12.0])
    rows = np.cos(turns[:, None] - turns)[:2]  # of two queries
    assert list(nearest_pairs([rows.copy()], 1, asked=2)) == [(0, 2), (1, 4)]
    assert list(nearest_pairs([rows[:1].copy(), rows[1:].copy()], 2, asked=2)) == [(0, 2), (0, 4), (1, 2), (1, 4)]
    assert list(nearest_pairs([rows.copy()], 9, asked=2)) == [(query, other) for query in (0, 1) for other in (2, 3, 4)]


def test_views_of_a_plane_find_each_other(tmp_path: Path) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(5) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    with FeatureReader(tmp_path / "feats.h5") as reader:
        pairs = list(nearest(reader, names, 2, {}))
        done: list[int] = []
        assert pairs == list(nearest(reader, names, 2, {}, done.append))
        assert done == [1] * len(names) + [len(names)]
    assert pairs == [(one, other) for one in names for other in names if one < other and one[:6] == other[:6]]


def test_queries_find_their_plane_among_the_others(tmp_path: Path) -> None:
    names = [f"plane{plane}/view{view}.jpg" for plane in range(5) for view in range(3)]
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for index, name in enumerate(names):
            writer.write(name, drawn_features(index, plane=index // 3))
    queries, others = names[2::3], [name for name in names if "view2" not in name]
    with FeatureReader(tmp_path / "feats.h5") as reader:
        done: list[int] = []
        found = list(nearest(reader, others, 2, {}, done.append, queries=queries))
        assert done == [1] * len(names) + [len(queries)]
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
