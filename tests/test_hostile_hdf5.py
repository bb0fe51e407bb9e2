"""HDF5 files of any content: what the readers make of them is right data or one clear error, whatever is in there."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from drawn_features import ATTRIBUTES, drawn_features
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sekd_cli.errors import InputFileError, SekdError
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.file_info import file_info
from sekd_cli.match_file import MatchReader, MatchWriter
from sekd_cli.stored_matches import StoredMatches

IN_ONE_FOLDER = settings(max_examples=150)
IMAGES = ["a.jpg", "b/c.jpg", "b/d e.jpg"]
PAIRS = [("a.jpg", "b/c.jpg"), ("b/c.jpg", "b/d e.jpg")]
MATCH_ATTRIBUTES = {**ATTRIBUTES, "content": "matches", "features": "{}"}
MATCHES = StoredMatches(
    matches0=np.array([2, -1, 0], dtype=np.int32),
    scores0=np.array([0.75, 0, 0.5], dtype=np.float32),
    model_name="homography",
    model=np.diag([1.0, 2, 1]),
)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    st.binary(min_size=1, max_size=40).map(np.void),
    st.sampled_from(["{", "[1]", "null", '{"shard": 7}', '{"max_keypoints": {}}', "1/0", "x" * 40_000]),
    st.lists(st.integers(-5, 5), max_size=4).map(np.array),
    st.lists(st.floats(width=32), max_size=4).map(np.array),
)
"""Of attributes; None for an empty one."""

SHAPES = st.one_of(st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from([(3, 2), (2, 3), (3,), (2,)]))
TYPES = st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "u2", "i8", "u8", "?", "c8", "S3", "V4", "f4,i4"])


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """What a dataset may hold: numbers of any shape and type, extreme ones among them, text, or nothing at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([h5py.Empty("f4"), np.array([b"text", b"more"]), "text"]))
    kind = np.dtype(draw(TYPES))
    values = np.zeros(draw(SHAPES), dtype=kind)
    if kind.kind in "fiu":
        values.fill(1)
        if values.size and draw(st.booleans()):
            extreme = [np.nan, np.inf, np.finfo(kind).max] if kind.kind == "f" else [np.iinfo(kind).max]
            values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from(extreme))
    return values


def datasets(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these datasets, perhaps others, perhaps what makes the group count."""
    return st.dictionaries(st.sampled_from([*names, "other"]), arrays(), max_size=len(names) + 1)


FILES = st.fixed_dictionaries(
    {
        "root": st.dictionaries(
            st.sampled_from(["sekd_schema", "settings", "features", "content", "network", "x"]), VALUES, max_size=4
        ),
        "group": st.dictionaries(
            st.sampled_from(["complete", "crc32", "source", "names", "features", "y"]), VALUES, max_size=4
        ),
        "own": st.booleans(),
    }
)


def build(path: Path, place: str, stored: dict[str, Any], around: dict[str, Any]) -> None:
    """A file with one group of these datasets, and these attributes."""

    def set_attributes(attributes: h5py.AttributeManager, values: dict[str, Any]) -> None:
        for name, value in values.items():
            attributes[name] = h5py.Empty("f4") if value is None else value

    with h5py.File(path, "w") as file:
        if around["own"]:
            file.attrs["sekd_schema"] = 1
        set_attributes(file.attrs, around["root"])
        group = file.create_group(place)
        for name, values in stored.items():
            group[name] = values
        if around["own"]:
            group.attrs["complete"] = True
        set_attributes(group.attrs, around["group"])


@contextlib.contextmanager
def one_clear_line() -> Iterator[None]:
    try:
        yield
    except SekdError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
        assert "\n" not in str(error)  # noqa: PT017


def finite_or_equal(one: np.ndarray, stored: Any) -> None:
    np.testing.assert_array_equal(one, np.asarray(stored).astype(np.float32))


@IN_ONE_FOLDER
@given(datasets("keypoints", "descriptors", "scores", "scales", "image_size"), FILES)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of the comparison
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what newer numpy refuses, which is damage then
def test_features_of_any_shape_and_type_are_read_as_they_are_or_refused(
    tmp_path: Path, stored: dict[str, Any], around: dict[str, Any]
) -> None:
    path = tmp_path / "any.h5"
    build(path, "folder/a.jpg", stored, around)
    with one_clear_line():
        file_info(path)
    with one_clear_line(), FeatureReader(path) as reader:
        for name in reader.names():
            assert name == "folder/a.jpg"
            found = reader.read(name)
            finite_or_equal(found.keypoints, stored["keypoints"])
            finite_or_equal(found.descriptors.T, stored["descriptors"])
            assert found.keypoints.shape == (len(found), 2)
            assert len(found.descriptors) == len(found.scores) == len(found)
            assert found.scales is None or len(found.scales) == len(found)
            assert all(isinstance(edge, int) for edge in found.image_size)


@IN_ONE_FOLDER
@given(datasets("matches0", "matching_scores0", "homography", "essential"), FILES)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_matches_of_any_shape_and_type_are_read_as_they_are_or_refused(
    tmp_path: Path, stored: dict[str, Any], around: dict[str, Any]
) -> None:
    path = tmp_path / "any.h5"
    build(path, "a.jpg/b.jpg", stored, around)
    with one_clear_line():
        file_info(path)
    with one_clear_line(), MatchReader(path) as reader:
        for pair in reader.pairs():
            found = reader.read(pair)
            np.testing.assert_array_equal(found.matches0, stored["matches0"])
            assert found.matches0.shape == found.scores0.shape
            assert (found.indices() >= 0).all()
            assert found.model is None or found.model.shape == (3, 3)
            reader.read(pair[::-1], count0=int(found.matches0.max(initial=-1)) + 1)


NAMES = st.one_of(
    st.sampled_from(["..", "...", " ", "\n", "../up", "/absolute", "a//b", "x" * 60_000, "a/" * 600 + "b", "ü/写真"]),
    st.text(max_size=20),
    st.binary(min_size=1, max_size=8),
)


@IN_ONE_FOLDER
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_groups_of_any_name_are_read_under_it_or_left_out(tmp_path: Path, names: list[str | bytes]) -> None:
    path = tmp_path / "names.h5"
    with h5py.File(path, "w") as file:
        for name in names:
            with contextlib.suppress(ValueError, TypeError, RuntimeError):  # no name for h5py either
                group = file.require_group(name)
                group["keypoints"], group["descriptors"] = np.ones((1, 2)), np.ones((4, 1))
        assume(len(file))
    with FeatureReader(path) as reader:
        for name in reader.names():
            assert not {"", ".", ".."} & set(name.split("/"))
            assert len(reader.read(name)) == 1
            assert name in reader
        for name in ("..", "../up", "/absolute", "a//b"):
            assert name not in reader


def test_names_that_are_no_text_are_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features, matches = tmp_path / "f.h5", tmp_path / "m.h5"
    with h5py.File(features, "w") as file:
        file["a.jpg/keypoints"], file["a.jpg/descriptors"] = np.ones((1, 2)), np.ones((4, 1))
        h5py.h5g.create(file.id, b"gr\xfcn.jpg")
    with h5py.File(matches, "w") as file:
        file["a.jpg/b.jpg/matches0"] = np.zeros(3, dtype=np.int32)
        for group in (file, file["a.jpg"]):
            h5py.h5g.create(group.id, b"gr\xfcn.jpg")
    with FeatureReader(features) as reader:
        assert list(reader.names()) == ["a.jpg"]
    with MatchReader(matches) as reader:
        assert list(reader.pairs()) == [("a.jpg", "b.jpg")]
    for path, count in ((features, 1), (matches, 2)):
        assert caplog.text.count(rf"{path}: the name b'gr\xfcn.jpg' is no UTF-8; left out") == count
    assert file_info(features)["images"] == file_info(matches)["pairs"] == 1


def test_names_in_a_match_file_that_lead_elsewhere_are_damage(tmp_path: Path) -> None:
    for names in (b"..\ta", b"/etc/x\tb", b"\xff\tb", b"\t", b"a"):
        with h5py.File(tmp_path / "m.h5", "w") as file:
            file["a.jpg/b.jpg/matches0"] = np.zeros(3, dtype=np.int32)
            file["a.jpg/b.jpg"].attrs["names"] = np.bytes_(names)
        with MatchReader(tmp_path / "m.h5") as reader, pytest.raises(InputFileError, match="damaged"):
            list(reader.pairs())


def test_groups_a_thousand_deep_are_refused_in_one_line(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file.create_group("a/" * 3000 + "b")
    with FeatureReader(tmp_path / "deep.h5") as reader, pytest.raises(InputFileError, match="damaged"):
        reader.names()
    with pytest.raises(InputFileError, match="damaged"):
        file_info(tmp_path / "deep.h5")


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    with FeatureWriter(folder / "feats.h5", ATTRIBUTES) as features:
        for view, name in enumerate(IMAGES):
            features.write(name, drawn_features(view, common=4, own=2, width=4))
    with MatchWriter(folder / "matches.h5", MATCH_ATTRIBUTES) as matches:
        for pair in PAIRS:
            matches.write(pair, MATCHES, (1, 2))
    return folder


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[float, int]]:
    """Where in a file, as a share of its length, and which byte stands there instead."""
    count = draw(st.sampled_from([1, 1, 2, 8, 64]))
    values = st.one_of(st.sampled_from([0, 255]), st.integers(0, 255))
    return draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), values), min_size=count, max_size=count))


def damaged(path: Path, changes: list[tuple[float, int]], target: Path) -> Path:
    content = bytearray(path.read_bytes())
    for share, value in changes:
        content[int(share * len(content))] = value
    target.write_bytes(content)
    return target


def check_damaged_files(whole: Path, target: Path, read: Callable[[Path], int]) -> None:
    """Reading damaged copies is refused or right; of each `read` says how many images or pairs it compared."""
    compared = 0

    @settings(max_examples=300)
    @given(damage())
    def compare(changes: list[tuple[float, int]]) -> None:
        nonlocal compared
        path = damaged(whole, changes, target)
        with contextlib.suppress(InputFileError):
            compared += read(path)

    compare()
    assert compared


def test_changed_bytes_of_a_feature_file_never_change_a_number(own_files: Path, tmp_path: Path) -> None:
    """They don't hang either: HDF5's older structures, without checksums, led its C code in circles here."""

    def read(path: Path) -> int:
        compared = 0
        with FeatureReader(path) as reader:
            assert reader.names() == IMAGES
            for view, name in enumerate(IMAGES):
                with contextlib.suppress(InputFileError):
                    found, expected = reader.read(name), drawn_features(view, common=4, own=2, width=4)
                    for one in ("keypoints", "scores", "descriptors", "image_size"):
                        np.testing.assert_array_equal(getattr(found, one), getattr(expected, one))
                    compared += 1
        return compared

    check_damaged_files(own_files / "feats.h5", tmp_path / "damaged.h5", read)


def test_changed_bytes_of_a_match_file_never_change_a_number(own_files: Path, tmp_path: Path) -> None:
    def read(path: Path) -> int:
        compared = 0
        with MatchReader(path) as reader:
            assert sorted(reader.pairs()) == PAIRS
            for pair in PAIRS:
                with contextlib.suppress(InputFileError):
                    found = reader.read(pair)
                    for one in ("matches0", "scores0", "model"):
                        np.testing.assert_array_equal(getattr(found, one), getattr(MATCHES, one))
                    compared += 1
        return compared

    check_damaged_files(own_files / "matches.h5", tmp_path / "damaged.h5", read)


@settings(IN_ONE_FOLDER, max_examples=100)
@given(damage())
def test_changed_bytes_let_a_writer_go_on_or_refuse(
    own_files: Path, tmp_path: Path, changes: list[tuple[float, int]]
) -> None:
    features = damaged(own_files / "feats.h5", changes, tmp_path / "feats.h5")
    with one_clear_line(), FeatureWriter(features, ATTRIBUTES) as writer:
        for name in IMAGES:
            writer.is_complete(name)
            writer.write(name, drawn_features(7, common=4, own=2, width=4))
    matches = damaged(own_files / "matches.h5", changes, tmp_path / "matches.h5")
    with one_clear_line(), MatchWriter(matches, MATCH_ATTRIBUTES) as match_writer:
        for pair in PAIRS:
            match_writer.is_complete(pair, (1, 2))
            match_writer.write(pair, MATCHES, (1, 2))


def test_every_single_byte_of_the_numbers_is_watched(own_files: Path, tmp_path: Path) -> None:
    content = (own_files / "feats.h5").read_bytes()
    start = content.index(drawn_features(0, common=4, own=2, width=4).keypoints.tobytes())
    for offset in range(start, start + 6 * 2 * 4, 5):
        changed = content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]
        (tmp_path / "changed.h5").write_bytes(changed)
        with (
            FeatureReader(tmp_path / "changed.h5") as reader,
            pytest.raises(InputFileError, match=r"a\.jpg: damaged .*no longer those"),
        ):
            reader.read("a.jpg")
