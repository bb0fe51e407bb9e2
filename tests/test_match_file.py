"""Match files: read back, resumed, refused; and hloc's own way of reading them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from drawn_features import ATTRIBUTES, drawn_features, write_views
from hypothesis import given, settings
from hypothesis import strategies as st

from sekd_cli.errors import InputFileError, OutputError, UsageError
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.file_info import file_info
from sekd_cli.match_file import (
    ChangedFeaturesError,
    MatchReader,
    MatchWriter,
    check_flat_names,
    fingerprint,
    match_attributes,
)
from sekd_cli.patch_alignment import Alignment
from sekd_cli.stored_matches import StoredMatches

PAIR = ("left/a.jpg", "right/b c.jpg")
MATCHES = StoredMatches(
    matches0=np.array([2, -1, 0], dtype=np.int32), scores0=np.array([0.75, 0, 0.5], dtype=np.float32)
)
MODEL = np.array([[1.0, 0, 5], [0, 2, 0], [0, 0, 1]])


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return write_views(tmp_path / "feats.h5", ["a.jpg"])


@pytest.fixture
def attributes(features: Path) -> dict[str, Any]:
    with FeatureReader(features) as reader:
        return match_attributes(reader, {"ratio": 1.0})


@pytest.fixture
def path(tmp_path: Path, attributes: dict[str, Any]) -> Path:
    """A file with one pair in it."""
    path = tmp_path / "matches.h5"
    with MatchWriter(path, attributes) as writer:
        writer.write(PAIR, MATCHES, (1, 2))
    return path


def read_as_hloc(path: Path, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    """hloc's `find_pair` and `get_matches`, in their words."""
    with h5py.File(path, "r") as file:
        pair = name0.replace("/", "-") + "/" + name1.replace("/", "-")
        reverse = pair not in file
        if reverse:
            pair = name1.replace("/", "-") + "/" + name0.replace("/", "-")
            assert pair in file
        matches, scores = file[pair]["matches0"].__array__(), file[pair]["matching_scores0"].__array__()
    (index,) = np.where(matches != -1)
    matches = np.stack([index, matches[index]], -1)
    return (np.flip(matches, -1) if reverse else matches), scores[index]


def test_what_is_written_is_read_again(path: Path) -> None:
    with MatchReader(path) as reader:
        assert list(reader.pairs()) == [PAIR]
        with pytest.raises(InputFileError, match="no matches of"):
            reader.read(("left-a.jpg", "right-b c.jpg"))  # another image, of the same flat name
        found = reader.read(PAIR)
    assert found.matches0.tolist() == [2, -1, 0]
    assert found.scores0.tolist() == [0.75, 0, 0.5]
    assert found.indices().tolist() == [[0, 2], [2, 0]]
    assert found.model is found.model_name is None


def test_of_which_features_a_pair_was_made_is_told_where_it_is_known(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "hloc.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"] = np.array([0], np.int32)
    with MatchReader(path) as reader, MatchReader(tmp_path / "hloc.h5") as hlocs:
        assert reader.fingerprints(PAIR) == (1, 2)
        assert hlocs.fingerprints(("a.jpg", "b.jpg")) == hlocs.fingerprints(("x", "y")) == ()


def test_hloc_reads_it_as_it_is(path: Path) -> None:
    matches, scores = read_as_hloc(path, *PAIR)
    assert matches.tolist() == [[0, 2], [2, 0]]
    assert scores.tolist() == [0.75, 0.5]
    assert read_as_hloc(path, *PAIR[::-1])[0].tolist() == [[2, 0], [0, 2]]
    with h5py.File(path) as file:
        assert file["left-a.jpg/right-b c.jpg/matches0"].dtype == np.int32
        assert file["left-a.jpg/right-b c.jpg/matching_scores0"].dtype == np.float32


def test_a_pair_may_be_read_the_other_way_round(path: Path) -> None:
    with MatchReader(path) as reader:
        found = reader.read(PAIR[::-1], count0=3)
        assert found.matches0.tolist() == [2, -1, 0]
        assert found.scores0.tolist() == [0.5, 0, 0.75]
        with pytest.raises(InputFileError, match=r"no matches of right/b c\.jpg and left/a\.jpg"):
            reader.read(PAIR[::-1])


def test_a_pair_without_keypoints_may_be_read_the_other_way_round(path: Path, attributes: dict[str, Any]) -> None:
    nothing = StoredMatches(matches0=np.empty(0, np.int32), scores0=np.empty(0, np.float32))
    with MatchWriter(path, attributes) as writer:
        writer.write(("none.jpg", "c.jpg"), nothing, (1, 2))
    with MatchReader(path) as reader:
        assert reader.read(("c.jpg", "none.jpg"), count0=2).matches0.tolist() == [-1, -1]


@pytest.mark.parametrize("name", ["homography", "fundamental", "essential"])
def test_the_model_is_kept_and_turned_with_the_pair(tmp_path: Path, attributes: dict[str, Any], name: str) -> None:
    verified = StoredMatches(matches0=MATCHES.matches0, scores0=MATCHES.scores0, model_name=name, model=MODEL)
    with MatchWriter(tmp_path / "m.h5", attributes) as writer:
        writer.write(PAIR, verified, (1, 2))
    with MatchReader(tmp_path / "m.h5") as reader:
        found, turned = reader.read(PAIR), reader.read(PAIR[::-1], count0=3)
    assert found.model_name == turned.model_name == name
    np.testing.assert_array_equal(found.model, MODEL)
    expected = np.linalg.inv(MODEL) if name == "homography" else MODEL.T
    np.testing.assert_allclose(turned.model, expected)


def test_an_alignment_is_kept_and_turned_with_the_pair(tmp_path: Path, attributes: dict[str, Any]) -> None:
    affines = np.array([[[0, -2], [2, 0]], [[1, 0.5], [0, 1]]], dtype=np.float32)
    offsets, correlations = np.array([[2, 0], [1, 1]], np.float32), np.array([0.9, 0.8], np.float32)
    with MatchWriter(tmp_path / "m.h5", attributes) as writer:
        writer.write(PAIR, replace(MATCHES, alignment=Alignment(offsets, affines, correlations)), (1, 2))
    with MatchReader(tmp_path / "m.h5") as reader:
        found, turned = reader.read(PAIR).alignment, reader.read(PAIR[::-1], count0=3).alignment
    assert found is not None
    assert turned is not None
    np.testing.assert_array_equal(found.affines, affines)
    np.testing.assert_array_equal(found.offsets, offsets)
    np.testing.assert_array_equal(turned.correlations, correlations[::-1])  # keypoints 2 and 0 are matched
    np.testing.assert_allclose(turned.offsets, [[-0.5, -1], [0, 1]], atol=1e-6)


@pytest.mark.parametrize(("turn", "back"), [(None, None), (0, 0), (1, 3), (2, 2), (3, 1)])
def test_a_turn_is_kept_and_is_the_opposite_the_other_way_round(
    tmp_path: Path, attributes: dict[str, Any], turn: int | None, back: int | None
) -> None:
    with MatchWriter(tmp_path / "m.h5", attributes) as writer:
        writer.write(PAIR, replace(MATCHES, turn=turn), (1, 2))
    with MatchReader(tmp_path / "m.h5") as reader:
        assert (reader.read(PAIR).turn, reader.read(PAIR[::-1], count0=3).turn) == (turn, back)


@pytest.mark.parametrize(
    ("matches", "scores"),
    [(np.zeros((2, 2), int), np.zeros((2, 2))), (np.zeros(2), np.zeros(2)), (np.zeros(2, int), np.zeros(3))],
)
def test_what_is_no_list_of_matches_is_named(tmp_path: Path, matches: np.ndarray, scores: np.ndarray) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"], file["a.jpg/b.jpg/matching_scores0"] = matches, scores
    with MatchReader(tmp_path / "m.h5") as reader, pytest.raises(InputFileError, match=r"m\.h5.*no list of matches"):
        reader.read(("a.jpg", "b.jpg"))


def test_a_match_that_changed_since_it_was_written_is_damage(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["left-a.jpg/right-b c.jpg/matches0"][0] = 1
    with MatchReader(path) as reader, pytest.raises(InputFileError, match="no longer those that were written"):
        reader.read(PAIR)


def test_numbers_that_no_keypoint_has_are_no_others(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"] = np.array([2**32 + 1, -1])  # 1 in the last 32 bits
    with MatchReader(tmp_path / "wide.h5") as reader, pytest.raises(InputFileError, match="numbers of no keypoint"):
        reader.read(("a.jpg", "b.jpg"))


def test_matches_of_other_tools_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "hloc.h5", "w") as file:
        group = file.create_group("a.jpg/b.jpg")
        group["matches0"] = np.array([1, -1], dtype=np.int16)
        group["matching_scores0"] = np.array([0.5, 0], dtype=np.float16)
        file.create_group("a.jpg/half-written.jpg")
        file["a.jpg/loose"] = file["loose"] = np.zeros(2)
        file["gone"] = h5py.SoftLink("/nowhere")
    with MatchReader(tmp_path / "hloc.h5") as reader:
        assert list(reader.pairs()) == [("a.jpg", "b.jpg")]
        assert reader.read(("a.jpg", "b.jpg")).matches0.tolist() == [1, -1]
        assert reader.read(("b.jpg", "a.jpg"), count0=2).matches0.tolist() == [-1, 0]
        with pytest.raises(InputFileError, match="only 1 keypoint;"):
            reader.read(("b.jpg", "a.jpg"), count0=1)


def test_attributes_of_other_tools_may_be_of_any_kind(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["network"], file.attrs["settings"] = h5py.Empty("f"), np.array([b"fast"])
    found = []
    for _ in range(2):
        with FeatureReader(tmp_path / "other.h5") as reader:
            found.append(match_attributes(reader, {}))
    assert found[0] == found[1]
    assert "fast" in found[0]["features"]


def test_a_writer_goes_on_and_knows_what_is_done(path: Path, attributes: dict[str, Any]) -> None:
    with MatchWriter(path, attributes) as writer:
        assert writer.is_complete(PAIR, (1, 2))
        assert writer.is_complete(PAIR[::-1], (2, 1))
        assert not writer.is_complete(("left/a.jpg", "c.jpg"), (1, 3))
        writer.write(("left/a.jpg", "c.jpg"), MATCHES, (1, 3))
    with MatchReader(path) as reader:
        assert list(reader.pairs()) == [("left/a.jpg", "c.jpg"), PAIR]


def test_incomplete_pairs_count_as_missing_and_are_written_anew(path: Path, attributes: dict[str, Any]) -> None:
    with h5py.File(path, "r+") as file:
        del file["left-a.jpg/right-b c.jpg"].attrs["complete"]
    with MatchReader(path) as reader:
        assert list(reader.pairs()) == []
        with pytest.raises(InputFileError, match="no matches of"):
            reader.read(PAIR)
    with MatchWriter(path, attributes) as writer:
        assert not writer.is_complete(PAIR, (1, 2))
        writer.write(PAIR, MATCHES, (1, 2))
        assert writer.is_complete(PAIR, (1, 2))


def test_changed_features_are_noticed_and_replaced(path: Path, attributes: dict[str, Any]) -> None:
    with MatchWriter(path, attributes) as writer:
        for pair, prints in ((PAIR, (1, 3)), (PAIR[::-1], (1, 2)), (("left-a.jpg", "right-b c.jpg"), (1, 2))):
            with pytest.raises(ChangedFeaturesError, match=r"changed.*--update"):
                writer.is_complete(pair, prints)
        writer.write(PAIR[::-1], MATCHES, (3, 1))
        assert writer.is_complete(PAIR, (1, 3))
    with MatchReader(path) as reader:
        assert list(reader.pairs()) == [PAIR[::-1]]


def test_a_pair_replaced_the_other_way_round_leaves_nothing_behind(path: Path, attributes: dict[str, Any]) -> None:
    with MatchWriter(path, attributes) as writer:
        writer.write(PAIR[::-1], MATCHES, (5, 1))
    facts = file_info(path)
    assert (facts["pairs"], facts["incomplete"]) == (1, [])


def test_a_pair_that_is_replaced_takes_no_other_of_its_image_with_it(path: Path, attributes: dict[str, Any]) -> None:
    other = (PAIR[0], "c.jpg")
    with MatchWriter(path, attributes) as writer:
        writer.write(other, MATCHES, (1, 3))
        writer.write(PAIR, MATCHES, (5, 2))
    with MatchReader(path) as reader:
        assert list(reader.pairs()) == [other, PAIR]
        assert reader.fingerprints(PAIR) == (5, 2)


@pytest.mark.parametrize("names", ["../a.jpg\tb.jpg", "a.jpg\t/etc/b.jpg", "a.jpg", "a.jpg\tb.jpg\tc.jpg"])
def test_names_that_can_be_none_are_damage(path: Path, names: str) -> None:
    with h5py.File(path, "r+") as file:
        file["left-a.jpg/right-b c.jpg"].attrs["names"] = names
    with MatchReader(path) as reader, pytest.raises(InputFileError, match="damaged"):
        list(reader.pairs())


def test_other_settings_or_features_are_refused_and_named(path: Path, attributes: dict[str, Any]) -> None:
    before = path.read_bytes()
    other = attributes | {"settings": '{"ratio": 0.8}'}
    with pytest.raises(OutputError, match=r"ratio 1.0 there, 0.8 now.*--overwrite"):
        MatchWriter(path, other)
    with pytest.raises(OutputError, match="features of other weights or settings"):
        MatchWriter(path, attributes | {"features": "{}"})
    with pytest.raises(OutputError, match="another schema"):
        MatchWriter(path, attributes | {"sekd_schema": 0})
    assert path.read_bytes() == before
    with MatchWriter(path, attributes | {"sekd_version": "0.0.1"}) as writer:
        assert writer.is_complete(PAIR, (1, 2))
    with MatchWriter(path, other, overwrite=True) as writer:
        assert not writer.is_complete(PAIR, (1, 2))


def test_a_file_without_pairs_takes_any_settings(tmp_path: Path, attributes: dict[str, Any]) -> None:
    MatchWriter(tmp_path / "m.h5", attributes).close()
    with MatchWriter(tmp_path / "m.h5", attributes | {"settings": '{"ratio": 0.8}'}) as writer:
        writer.write(PAIR, MATCHES, (1, 2))
    with MatchReader(tmp_path / "m.h5") as reader:
        assert reader.attributes["settings"] == '{"ratio": 0.8}'


def test_a_feature_file_is_not_written_to(features: Path, attributes: dict[str, Any]) -> None:
    before = features.read_bytes()
    with pytest.raises(OutputError, match="holds features, not matches"):
        MatchWriter(features, attributes)
    assert features.read_bytes() == before


def test_a_file_of_another_tool_is_not_added_to(tmp_path: Path, attributes: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "hloc.h5", "w") as file:
        file.create_group("a.jpg/b.jpg")["matches0"] = np.zeros(3, np.int32)
    with pytest.raises(OutputError, match=r"hloc\.h5: not a match file of sekd; give another output with -o"):
        MatchWriter(tmp_path / "hloc.h5", attributes)


def test_a_second_writer_is_refused(path: Path, attributes: dict[str, Any]) -> None:
    with MatchWriter(path, attributes), pytest.raises(OutputError, match="another process"):
        MatchWriter(path, attributes)


def test_names_that_would_share_a_group_are_named() -> None:
    check_flat_names(["a/b.jpg", "a-c.jpg", "a/b.jpg"])
    with pytest.raises(UsageError, match=r"a/b\.jpg and a-b\.jpg"):
        check_flat_names(["a/b.jpg", "a-b.jpg"])


def test_a_fingerprint_tells_keypoints_and_descriptors() -> None:
    one = drawn_features(0)
    assert fingerprint(one) == fingerprint(drawn_features(0))
    assert fingerprint(one) != fingerprint(drawn_features(1))
    moved = drawn_features(0)
    moved.keypoints[5, 1] += 1
    assert fingerprint(one) != fingerprint(moved)


def test_of_which_features_it_was_made_is_in_the_file(tmp_path: Path, path: Path) -> None:
    with FeatureWriter(tmp_path / "other.h5", ATTRIBUTES | {"weights_sha256": "cd" * 32}) as writer:
        writer.write("a.jpg", drawn_features(0))
    with FeatureReader(tmp_path / "other.h5") as reader, pytest.raises(OutputError, match="other weights"):
        MatchWriter(path, match_attributes(reader, {"ratio": 1.0}))


def test_missing_and_wrong_files_are_named(tmp_path: Path, features: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    for name in ("none.h5", "text.h5"):
        with pytest.raises(InputFileError, match=name):
            MatchReader(tmp_path / name)
    with pytest.raises(InputFileError, match=r"feats\.h5: holds features, not matches"):
        MatchReader(features)


@settings(max_examples=60)
@given(st.data())
def test_damage_anywhere_gives_whole_matches_or_one_clear_error(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    damaged = path.with_name("damaged.h5")
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        with MatchReader(damaged) as reader:
            for pair in reader.pairs():
                found = reader.read(pair)
                assert found.matches0.shape == found.scores0.shape
    except InputFileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
