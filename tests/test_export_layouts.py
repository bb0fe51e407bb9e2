"""From hloc's layout to those of the IMC benchmark and Kaggle's baselines, and back."""

import logging
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from drawn_features import ATTRIBUTES, datasets, drawn_features, write_views, write_views_and_matches

from sekd_cli import cli
from sekd_cli.errors import InputFileError, OutputError, UsageError
from sekd_cli.export.conversion import Converted, convert
from sekd_cli.export.layouts import key_of, keys_of
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.match_file import MatchReader, flat_name

NAMES = ["b 1.jpg", "sub/a-x.png", "sub/c.jpg"]
FEATURES, MATCHES, SCENE = Path("feats.h5"), Path("matches.h5"), Path("scene")


@pytest.fixture(autouse=True)
def in_a_folder_with_features_and_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_views_and_matches(NAMES)


def stored_matches(one: str, other: str) -> np.ndarray:
    with MatchReader(MATCHES) as reader:
        return reader.read((one, other)).indices()


def write_photographs(*names: str) -> Path:
    for name in names:
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", np.zeros((30, 50), np.uint8))[1].tobytes())
    return Path("photos")


def test_imc_has_a_flat_file_a_kind_keyed_by_the_stem() -> None:
    assert convert([FEATURES], "imc", SCENE) == Converted(3, None)
    shapes = {"keypoints": (80, 2), "descriptors": (80, 16), "scores": (80,), "scales": (80,)}
    assert sorted(path.stem for path in SCENE.iterdir()) == sorted(shapes)
    for kind, shape in shapes.items():
        found = datasets(SCENE / f"{kind}.h5")
        assert set(found) == {"b 1", "a-x", "c"}
        assert {(one.shape, one.dtype) for one in found.values()} == {(shape, np.dtype(np.float32))}
    expected = drawn_features(1)
    np.testing.assert_array_equal(datasets(SCENE / "keypoints.h5")["a-x"], expected.keypoints)
    np.testing.assert_array_equal(datasets(SCENE / "descriptors.h5")["a-x"], expected.descriptors)
    np.testing.assert_array_equal(datasets(SCENE / "scores.h5")["a-x"], expected.scores)
    np.testing.assert_array_equal(datasets(SCENE / "scales.h5")["a-x"], 1)  # as none is known


def test_imc_matches_are_two_rows_under_the_larger_key_first(caplog: pytest.LogCaptureFixture) -> None:
    assert convert([FEATURES, MATCHES], "imc", SCENE) == Converted(3, 3)
    found = datasets(SCENE / "matches.h5")
    assert set(found) == {"b 1-a-x", "c-b 1", "c-a-x"}  # what the benchmark's validator expects of all pairs
    assert all(one.dtype == np.int32 and one.shape[0] == 2 for one in found.values())
    np.testing.assert_array_equal(found["b 1-a-x"].T, stored_matches("b 1.jpg", "sub/a-x.png"))
    np.testing.assert_array_equal(found["c-b 1"].T[:, ::-1], stored_matches("b 1.jpg", "sub/c.jpg"))  # turned round
    assert not caplog.messages, "all pairs are there"


def test_kaggle_has_file_names_and_groups() -> None:
    assert convert([MATCHES, FEATURES], "kaggle", SCENE) == Converted(3, 3)
    assert set(datasets(SCENE / "keypoints.h5")) == {"b 1.jpg", "a-x.png", "c.jpg"}
    found = datasets(SCENE / "matches.h5")
    assert set(found) == {"b 1.jpg/a-x.png", "b 1.jpg/c.jpg", "a-x.png/c.jpg"}
    np.testing.assert_array_equal(found["b 1.jpg/c.jpg"], stored_matches("b 1.jpg", "sub/c.jpg"))


@pytest.mark.parametrize("layout", ["imc", "kaggle"])
def test_the_same_matches_make_the_same_file_at_any_time(layout: str) -> None:
    convert([MATCHES, FEATURES], layout, SCENE)
    timed: list[str] = []

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if item.id.get_create_plist().get_obj_track_times():
            timed.append(name)

    with h5py.File(SCENE / "matches.h5") as file:
        file.visititems(look)
    assert not timed


@pytest.mark.parametrize("layout", ["imc", "kaggle"])
def test_there_and_back_nothing_is_lost_but_match_scores(layout: str) -> None:
    photographs = write_photographs(*NAMES)
    with FeatureWriter(FEATURES, ATTRIBUTES, overwrite=True) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, replace(drawn_features(view), scales=np.linspace(1, 4, 80, dtype=np.float32)))
    convert([FEATURES, MATCHES], layout, SCENE)
    assert convert([SCENE], "hloc", Path("back"), images=photographs) == Converted(3, 3)
    with FeatureReader(Path("back/feats.h5")) as back, FeatureReader(FEATURES) as before:
        assert back.names() == before.names() == NAMES
        for name in NAMES:
            ours, theirs = back.read(name), before.read(name)
            for one in ("keypoints", "scores", "descriptors", "scales"):
                np.testing.assert_array_equal(getattr(ours, one), getattr(theirs, one))
            assert ours.image_size == (50, 30)  # the photographs' own
    with MatchReader(Path("back/matches.h5")) as reader:
        assert all("/" in one + other for one, other in reader.pairs()), "the names themselves"
        for one, other in combinations(NAMES, 2):
            np.testing.assert_array_equal(reader.read((one, other), 80).indices(), stored_matches(one, other))


def test_hloc_reads_what_comes_back() -> None:
    convert([FEATURES, MATCHES], "kaggle", SCENE)
    convert([SCENE], "hloc", Path("back"))
    with h5py.File("back/matches.h5") as file:  # as hloc looks pairs up
        group = file["/".join(map(flat_name, ("b 1.jpg", "c.jpg")))]
        matches, scores = group["matches0"][()], group["matching_scores0"][()]
    assert matches.shape == scores.shape == (80,)
    found = np.flatnonzero(matches != -1)
    np.testing.assert_array_equal(np.stack((found, matches[found]), axis=1), stored_matches("b 1.jpg", "sub/c.jpg"))
    with h5py.File("back/feats.h5") as file:
        group = file["b 1.jpg"]
        assert group["keypoints"].shape == (80, 2)
        assert group["descriptors"].shape == (16, 80)
        assert group["image_size"][()].tolist() == np.ceil(group["keypoints"][()].max(axis=0) + 0.5).tolist()


def test_from_one_flat_layout_to_the_other() -> None:
    convert([FEATURES, MATCHES], "imc", SCENE)
    assert convert([SCENE], "kaggle", Path("k"), images=write_photographs(*NAMES)) == Converted(3, 3)
    np.testing.assert_array_equal(
        datasets(Path("k/matches.h5"))["c.jpg/b 1.jpg"], stored_matches("b 1.jpg", "sub/c.jpg")[:, ::-1]
    )
    (SCENE / "descriptors.h5").unlink()
    assert convert([SCENE], "kaggle", Path("m")) == Converted(None, 3)


def test_a_folder_with_features_alone_may_become_a_file() -> None:
    convert([FEATURES], "imc", SCENE)
    write_photographs(*NAMES)  # of which nothing was said
    convert([SCENE], "hloc", Path("one.h5"))
    with FeatureReader(Path("one.h5")) as reader:
        assert reader.names() == ["a-x", "b 1", "c"]
    convert([MATCHES], "imc", SCENE)
    with pytest.raises(UsageError, match="give a folder"):
        convert([SCENE], "hloc", Path("two.h5"))


@pytest.mark.parametrize(
    ("names", "layout", "key"),
    [
        (["x/a.jpg", "y/a.jpg"], "kaggle", "a.jpg"),
        (["a.jpg", "a.png"], "imc", "a"),
        (["x/a.jpg", "y/a.png"], "imc", "a"),
    ],
)
def test_keys_that_collide_are_an_error_that_names_both(names: list[str], layout: str, key: str) -> None:
    write_views(FEATURES, names)
    with pytest.raises(UsageError) as caught:
        convert([FEATURES], layout, SCENE)
    assert all(word in str(caught.value) for word in (*names, f"both be {key} "))
    assert not SCENE.exists()


def test_two_pairs_of_one_key_are_an_error_that_names_both() -> None:
    names = ["c-b.jpg", "a.jpg", "c.jpg", "b-a.jpg"]
    write_views(FEATURES, names)
    Path("pairs.txt").write_text("c-b.jpg a.jpg\nb-a.jpg c.jpg\n", encoding="utf-8")
    assert cli.main(["match", "pairs.txt", "--overwrite", "--quiet", "--device", "cpu"]) == 0
    with pytest.raises(UsageError) as caught:
        convert([MATCHES], "imc", SCENE)
    assert all(word in str(caught.value) for word in (*names, "both be c-b-a "))
    assert not list(SCENE.glob("*matches*"))
    assert convert([MATCHES], "kaggle", SCENE) == Converted(None, 2)


def test_names_that_hloc_would_confuse_stop_a_folder_of_matches() -> None:
    names = ["x/b.png", "x-b.png", "c.png"]
    write_views(FEATURES, names)
    convert([FEATURES], "kaggle", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        for key in ("b.png", "x-b.png"):
            file[f"{key}/c.png"] = np.array([[0, 5]])
    with pytest.raises(UsageError, match=r"x-b\.png and x/b\.png|x/b\.png and x-b\.png"):
        convert([SCENE], "hloc", Path("back"), images=write_photographs(*names))


def test_files_that_are_there_are_replaced_only_if_asked_for() -> None:
    convert([FEATURES], "imc", SCENE)
    before = (SCENE / "keypoints.h5").read_bytes()
    write_views(FEATURES, NAMES[:2])
    with pytest.raises(OutputError, match="--overwrite"):
        convert([FEATURES], "imc", SCENE)
    assert (SCENE / "keypoints.h5").read_bytes() == before
    assert convert([FEATURES], "imc", SCENE, overwrite=True) == Converted(2, None)
    assert set(datasets(SCENE / "scores.h5")) == {"b 1", "a-x"}
    for layout in ("hloc", "kaggle"):
        convert([SCENE], layout, Path(layout))
        with pytest.raises(OutputError, match="--overwrite"):
            convert([SCENE], layout, Path(layout))


def test_an_input_is_never_written_over() -> None:
    convert([FEATURES, MATCHES], "imc", SCENE)
    MATCHES.rename(SCENE / "feats.h5")
    Path("link").symlink_to(SCENE)
    before = {path: path.read_bytes() for path in SCENE.iterdir()}
    cases: list[tuple[list[Path], str, Path]] = [
        ([SCENE], "kaggle", SCENE),
        ([SCENE], "hloc", Path("link")),
        ([SCENE], "hloc", SCENE / "scores.h5"),
        ([FEATURES], "imc", FEATURES),
    ]
    for inputs, layout, output in cases:
        with pytest.raises(UsageError, match="is an input too"):
            convert(inputs, layout, output, overwrite=True)
    assert {path: path.read_bytes() for path in SCENE.iterdir()} == before
    (SCENE / "matches.h5").write_bytes((SCENE / "feats.h5").read_bytes())
    with pytest.raises(UsageError, match=r"scene/matches\.h5: is an input too"):
        convert([FEATURES, SCENE / "matches.h5"], "kaggle", SCENE, overwrite=True)
    assert convert([FEATURES], "kaggle", SCENE, overwrite=True) == Converted(3, None)


def test_what_the_benchmark_would_refuse_is_told(caplog: pytest.LogCaptureFixture) -> None:
    write_views(FEATURES, NAMES, common=7990, width=2)
    Path("pairs.txt").write_text("b 1.jpg\tsub/c.jpg\n")
    cli.main(["match", "pairs.txt", "--overwrite", "--quiet", "--device", "cpu"])
    with caplog.at_level(logging.WARNING):
        convert([FEATURES, MATCHES], "imc", SCENE)
    told = "\n".join(caplog.messages)
    assert "sub/c.jpg: 8010 keypoints, the IMC benchmark takes 8000" in told
    assert "1 pair of 3 images" in told
    caplog.clear()
    convert([FEATURES, MATCHES], "kaggle", SCENE, overwrite=True)
    assert not caplog.messages


def test_matches_of_another_tool_get_their_names_from_the_features() -> None:
    with h5py.File(MATCHES, "w") as file:
        file["sub-a-x.png/sub-c.jpg/matches0"] = np.array([1, -1, 0], np.int32)
    convert([FEATURES, MATCHES], "imc", SCENE)
    assert datasets(SCENE / "matches.h5")["c-a-x"].tolist() == [[1, 0], [0, 2]]


def test_our_own_matches_tell_apart_names_that_hloc_would_confuse() -> None:
    write_views(FEATURES, ["x/b.png", "x-b.png", "c.png"])
    Path("pairs.txt").write_text("x/b.png c.png\n")
    assert cli.main(["match", "pairs.txt", "--overwrite", "--quiet", "--device", "cpu"]) == 0
    assert convert([FEATURES, MATCHES], "kaggle", SCENE) == Converted(3, 1)
    assert list(datasets(SCENE / "matches.h5")) == ["b.png/c.png"]


def test_several_matches_of_a_keypoint_become_one_for_hloc(caplog: pytest.LogCaptureFixture) -> None:
    convert([FEATURES], "kaggle", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file["b 1.jpg/c.jpg"] = np.array([[5, 1], [7, 2], [5, 3]])
    convert([SCENE], "hloc", Path("back"))
    with MatchReader(Path("back/matches.h5")) as reader:
        assert reader.read(("b 1.jpg", "c.jpg")).indices().tolist() == [[5, 1], [7, 2]]
    assert "1 match left out" in caplog.text


def test_hlocs_matches_are_one_a_keypoint_of_the_first_image(caplog: pytest.LogCaptureFixture) -> None:
    with FeatureWriter(FEATURES, ATTRIBUTES, overwrite=True) as writer:
        writer.write("few.jpg", drawn_features(0, own=10))
        writer.write("many.jpg", drawn_features(1))
    convert([FEATURES], "kaggle", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file["few.jpg/many.jpg"] = np.array([[69, 79], [3, 0]])
    convert([SCENE], "hloc", Path("back"), images=write_photographs("few.jpg", "many.jpg"))
    found = datasets(Path("back/matches.h5"))
    matches, scores = (found[f"few.jpg/many.jpg/{name}"] for name in ("matches0", "matching_scores0"))
    assert (len(matches), matches[69], matches[3]) == (70, 79, 0)
    np.testing.assert_array_equal(scores, matches >= 0)
    assert not caplog.messages


def test_names_are_found_among_the_photographs() -> None:
    convert([FEATURES], "kaggle", SCENE)
    photographs = write_photographs("x/c.jpg", "x/c.jpg.png", "b 1.jpg", "a-x.png")  # not the mask beside c.jpg
    convert([SCENE], "hloc", Path("one.h5"), images=photographs)
    with FeatureReader(Path("one.h5")) as reader:
        assert reader.names() == ["a-x.png", "b 1.jpg", "x/c.jpg"]
    write_photographs("y/c.jpg")
    with pytest.raises(UsageError, match=r"c\.jpg could be x/c\.jpg or y/c\.jpg"):
        convert([SCENE], "hloc", Path("two.h5"), images=photographs)


def test_two_keys_of_the_same_photograph_are_told_instead_of_one_left_out() -> None:
    write_views(FEATURES, ["c", "c.jpg"])
    convert([FEATURES], "kaggle", SCENE)
    with pytest.raises(UsageError, match=r"c and c\.jpg would both be c\.jpg; take one of them out"):
        convert([SCENE], "hloc", Path("one.h5"), images=write_photographs("c.jpg"))
    assert convert([SCENE], "hloc", Path("one.h5")) == Converted(2, None)


def test_keys_without_a_photograph_stay_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    convert([FEATURES], "imc", SCENE)
    convert([SCENE], "hloc", Path("one.h5"), images=write_photographs("b 1.jpg"))
    with FeatureReader(Path("one.h5")) as reader:
        assert reader.names() == ["a-x", "b 1.jpg", "c"]
        assert reader.read("b 1.jpg").image_size == (50, 30)
    assert "no photograph of 2 keys" in caplog.text


def test_inputs_that_do_not_fit_together_are_refused() -> None:
    convert([FEATURES], "imc", SCENE)
    cases = {
        (FEATURES, FEATURES): "one feature file, one match file",
        (SCENE, MATCHES): "one folder of flat files",
        (SCENE / "keypoints.h5",): "give the folder",
    }
    for inputs, message in cases.items():
        with pytest.raises(UsageError, match=message):
            convert(inputs, "kaggle", Path("out"))
    with pytest.raises(UsageError, match="already"):
        convert([FEATURES], "hloc", Path("out"))
    Path("empty").mkdir()
    (SCENE / "keypoints.h5").unlink()
    for folder in (Path("empty"), SCENE):
        with pytest.raises(InputFileError, match=r"no keypoints\.h5 in it; give a folder in the imc or kaggle layout"):
            convert([folder], "hloc", Path("out"))


@pytest.mark.parametrize(
    ("place", "matches", "message"),
    [
        ("c-nobody", [[0], [0]], "without keypoints"),
        ("c-a-x", [[0], [80]], "not in keypoints.h5"),
        ("c-a-x", [[-1], [0]], "not in keypoints.h5"),
        ("c-a-x", [0, 1, 2], "no list of pairs"),
        ("c-a-x", [[0, 1, 2]] * 3, "no list of pairs"),
    ],
)
def test_damaged_matches_are_named(place: str, matches: list[object], message: str) -> None:
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file[place] = np.array(matches)
    with pytest.raises(InputFileError, match=message):
        convert([SCENE], "hloc", Path("back"))
    assert not Path("back/matches.h5").exists()


def test_a_name_with_a_tab_that_is_in_a_pair_is_refused() -> None:
    write_views(FEATURES, ["a.jpg", "b\t1.jpg"])
    convert([FEATURES], "kaggle", SCENE)
    assert convert([SCENE], "hloc", Path("features.h5")) == Converted(2, None)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file["a.jpg/b\t1.jpg"] = np.array([[0, 0]])
    with pytest.raises(UsageError, match=r"^'b\\t1\.jpg': a match file can't hold names with tabs; rename it"):
        convert([SCENE], "hloc", Path("back"))
    assert not any(Path("back").iterdir())


def test_keys_that_are_no_utf8_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    convert([FEATURES], "kaggle", SCENE)
    with h5py.File(SCENE / "keypoints.h5", "r+") as keypoints, h5py.File(SCENE / "matches.h5", "w") as matches:
        keypoints[b"d\xff.jpg"] = keypoints["c.jpg"][()]
        matches[b"d\xff.jpg/c.jpg"] = matches[b"a-x.png/d\xff.jpg"] = matches["a-x.png/c.jpg"] = np.array([[0, 0]])
    assert convert([SCENE], "hloc", Path("back")) == Converted(3, 1)
    assert caplog.text.count(r"the name b'd\xff.jpg' is no UTF-8; left out, rename it") == 3


def test_a_pair_key_that_can_be_read_two_ways_is_refused() -> None:
    write_views(FEATURES, ["a.jpg", "b-c.jpg", "a-b.jpg", "c.jpg"])
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file["a-b-c"] = np.array([[0], [0]])
    with pytest.raises(InputFileError, match="two pairs of images"):
        convert([SCENE], "hloc", Path("back"))


def test_damaged_features_are_named() -> None:
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / "scores.h5", "r+") as file:
        del file["c"]
        file["c"] = np.ones(3)
    with pytest.raises(InputFileError, match="c: not as many"):
        convert([SCENE], "hloc", Path("back"))
    with h5py.File(SCENE / "scores.h5", "r+") as file:
        del file["c"]
        file["c"] = np.ones((80, 2))
    with pytest.raises(InputFileError, match="c: not as many"):
        convert([SCENE], "hloc", Path("back"))
    (SCENE / "scores.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputFileError, match=r"scores\.h5: not an HDF5 file"):
        convert([SCENE], "hloc", Path("back"))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("keypoints", (160,)),
        ("keypoints", (80, 1)),
        ("descriptors", (80,)),
        ("descriptors", (79, 16)),
        ("scales", (79,)),
    ],
)
def test_arrays_of_a_wrong_shape_are_named(kind: str, shape: tuple[int, ...]) -> None:
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / f"{kind}.h5", "r+") as file:
        del file["c"]
        file["c"] = np.ones(shape)
    with pytest.raises(InputFileError, match=r"^scene: c: "):
        convert([SCENE], "hloc", Path("back"))


def test_other_tools_may_keep_more_of_a_keypoint_and_fewer_files() -> None:
    convert([FEATURES], "imc", SCENE)
    expected = drawn_features(2)
    wide = np.pad(expected.keypoints, ((0, 0), (0, 2)), constant_values=7)  # scale, angle
    column = expected.scores[:, None]
    for kind, values in (("keypoints", wide), ("scores", column), ("scales", column)):
        with h5py.File(SCENE / f"{kind}.h5", "r+") as file:
            del file["c"]
            file["c"] = values
    for without, scores, scales in (
        ("nothing", expected.scores, expected.scores),
        ("scales", expected.scores, None),
        ("scores", np.ones(80), None),
    ):
        (SCENE / f"{without}.h5").unlink(missing_ok=True)
        convert([SCENE], "hloc", Path(f"without_{without}.h5"))
        with FeatureReader(Path(f"without_{without}.h5")) as reader:
            found = reader.read("c")
        np.testing.assert_array_equal(found.keypoints, expected.keypoints)
        np.testing.assert_array_equal(found.scores, scores)
        np.testing.assert_array_equal(found.scales, scales)


def test_keypoints_that_are_no_numbers_are_named() -> None:
    convert([FEATURES], "imc", SCENE)
    for place in (np.nan, 1e30):
        with h5py.File(SCENE / "keypoints.h5", "r+") as file:
            file["c"][5] = place
        with pytest.raises(InputFileError, match="c: keypoints that are not finite, or in no image"):
            convert([SCENE], "hloc", Path("back"))
    with h5py.File(SCENE / "keypoints.h5", "r+") as file:
        file["c"][5] = 1e7
    convert([SCENE], "hloc", Path("back"))
    with FeatureReader(Path("back/feats.h5")) as reader:
        assert min(reader.read("c").image_size) > 0


def test_a_pair_that_a_folder_has_twice_is_taken_once(caplog: pytest.LogCaptureFixture) -> None:
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file["c-b 1"] = np.array([[1, 2, 3], [0, 4, 5]])
        file["b 1/c"] = np.array([[7, 8]])
        file["b 1-c"] = np.array([[0], [1]])
    assert convert([SCENE], "hloc", Path("back")) == Converted(3, 1)
    assert caplog.text.count("there twice, the second left out") == 2
    for layout, place in (("imc", "c-b 1"), ("kaggle", "b 1/c")):
        assert convert([SCENE], layout, Path(layout)) == Converted(3, 1)
        assert datasets(Path(layout) / "matches.h5")[place].ravel().tolist() == ([8, 7] if layout == "imc" else [7, 8])
    assert caplog.text.count("there twice, the second left out") == 6


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
@pytest.mark.parametrize("place", ["b 1/c", "c-b 1"])
def test_a_pair_without_matches_may_have_any_shape(place: str, shape: tuple[int, ...]) -> None:
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file[place] = np.zeros(shape, np.int32)
    assert convert([SCENE], "kaggle", Path("k")) == Converted(3, 1)
    assert [one.shape for one in datasets(Path("k/matches.h5")).values()] == [(0, 2)]


def test_two_matches_are_rows_or_columns_as_their_place_says() -> None:
    two = np.array([[0, 5], [1, 7]])
    convert([FEATURES], "imc", SCENE)
    with h5py.File(SCENE / "matches.h5", "w") as file:
        file["b 1/c"], file["c-a-x"] = two, two.T  # Kaggle's (M, 2), the benchmark's (2, M)
    convert([SCENE], "hloc", Path("back"))
    with MatchReader(Path("back/matches.h5")) as reader:
        for pair in (("b 1", "c"), ("c", "a-x")):
            assert reader.read(pair).indices().tolist() == two.tolist()


def test_images_without_keypoints_stay() -> None:
    write_views(FEATURES, ["a.jpg"], common=0, own=0)
    convert([FEATURES], "imc", SCENE)
    convert([SCENE], "hloc", Path("one.h5"))
    with FeatureReader(Path("one.h5")) as reader:
        found = reader.read("a")
    assert (len(found), found.image_size) == (0, (0, 0))


def test_a_size_that_is_guessed_is_known_to_be() -> None:
    convert([FEATURES], "kaggle", SCENE)
    convert([SCENE], "hloc", Path("guessed.h5"))
    convert([SCENE], "hloc", Path("told.h5"), images=write_photographs(*NAMES))
    with FeatureReader(Path("guessed.h5")) as guessed, FeatureReader(Path("told.h5")) as told:
        assert not guessed.read("b 1.jpg").size_stated
        assert told.read("b 1.jpg").size_stated


def test_only_the_suffix_of_an_image_is_left_out_of_a_key() -> None:
    names = ["x.y/a.v2.png", "x.y/a.v2", "IMG.0001.JPG", "IMG.0001"]
    assert [key_of(name, "imc") for name in names] == ["a.v2", "a.v2", "IMG.0001", "IMG.0001"]
    assert [key_of(name, "kaggle") for name in names] == ["a.v2.png", "a.v2", "IMG.0001.JPG", "IMG.0001"]
    assert keys_of(["a.jpg", "a.png"], "kaggle") == {"a.jpg": "a.jpg", "a.png": "a.png"}
