"""`sekd match --refine` and `sekd refine`: photographs of one plane, keypoints found beside where its points are."""

import dataclasses
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from drawn_features import ATTRIBUTES, homography, write_views
from full_disk import files_of_at_most
from numpy.typing import NDArray
from PIL import Image

from sekd_cli import cli, refining, seen_pixels
from sekd_cli.commands import show_run
from sekd_cli.config import MatchingSettings
from sekd_cli.drawing import INLIER, Colour, Legend, View, draw_matches
from sekd_cli.errors import ImageError
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.level_sizes import finest_of
from sekd_cli.match_file import MatchReader, fingerprint
from sekd_cli.match_pipeline import PairMatcher
from sekd_cli.pair_matching import MatchableImage, match_images, match_together, matchable_image
from sekd_cli.stored_features import StoredFeatures, source_of
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import verification_settings

NAMES = ["a.png", "b/b 1.jpg", "c.png"]
SIZES = {"a.png": 1.0, "b/b 1.jpg": 1.0, "c.png": 2.0}  # pixels of the file, one that keypoints were found in
POINTS, OFF = 120, 0.6  # points of the plane; pixels by which keypoints are off
WIDTH, HEIGHT = 448, 320
MISSING_PAIR, USAGE, NOTHING, BAD_INPUT, BAD_OUTPUT = 1, 2, 3, 4, 5  # exit codes
REFINE = ["match", "pairs.txt", "--verify", "homography", "--refine", "--images", "photos"]


def seen(view: int) -> NDArray[np.float64]:
    """`file_from_plane` (3, 3) of a view, in its file."""
    size = SIZES[NAMES[view]]
    middle = np.array([[1, 0, 40.0], [0, 1, 30], [0, 0, 1]])
    return np.array([[size, 0, 0.5 * size - 0.5], [0, size, 0.5 * size - 0.5], [0, 0, 1]]) @ homography(view) @ middle


def places(view: int) -> NDArray[np.float64]:
    """Where the points really are in the file, (POINTS, 2)."""
    on_plane = np.random.default_rng(7).uniform(40, (WIDTH - 120, HEIGHT - 100), (1, POINTS, 2))
    return np.asarray(cv2.perspectiveTransform(on_plane, seen(view))[0])


def found(view: int) -> StoredFeatures:
    """The features of a view, in an order of its own."""
    rng = np.random.default_rng(view)
    order, size = rng.permutation(POINTS), SIZES[NAMES[view]]
    descriptors = np.random.default_rng(8).normal(size=(POINTS, 16))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    off = size * rng.normal(0, OFF, (POINTS, 2))
    return StoredFeatures(
        keypoints=(places(view) + off)[order].astype(np.float32),
        scores=np.linspace(1, 0.5, POINTS).astype(np.float32),
        descriptors=descriptors[order].astype(np.float32),
        image_size=(int(size * WIDTH), int(size * HEIGHT)),
        scales=np.full(POINTS, size, np.float32),
    )


def truth(view: int) -> NDArray[np.float64]:
    """Where the points of the rows of `found` are."""
    return places(view)[np.random.default_rng(view).permutation(POINTS)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """`photos`, `feats.h5`, `pairs.txt`, `matches.h5` and `refined.h5` of all pairs."""
    folder = tmp_path_factory.mktemp("scene")
    plane = cv2.imread(str(examples / "china.jpg"))[:HEIGHT, :WIDTH]
    with FeatureWriter(folder / "feats.h5", ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            features = found(view)
            path = folder / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = cv2.warpPerspective(plane, seen(view), features.image_size, flags=cv2.INTER_CUBIC)
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
            writer.write(name, features)
    (folder / "pairs.txt").write_text("a.png\tb/b 1.jpg\na.png c.png\nc.png\tb/b 1.jpg\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*REFINE, "--quiet"]) == 0
        assert cli.main(["refine", "matches.h5", "--quiet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_copy(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(scene, tmp_path / "scene")
    monkeypatch.chdir(tmp_path / "scene")


def distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(one - other, axis=1))


def between(pair: tuple[str, str], path: str = "feats.h5", *, aligned: bool = False) -> NDArray[np.float64]:
    """How far the second keypoint of each match is from where the first's place is, in pixels as found."""
    first, second = (NAMES.index(name) for name in pair)
    with MatchReader(Path("matches.h5")) as matches, FeatureReader(Path(path)) as features:
        stored = matches.read(pair)
        xy0, xy1 = (features.read(name).keypoints for name in pair)
    indices = stored.indices()
    places1 = xy1[indices[:, 1]].astype(np.float64)
    if aligned:
        assert stored.alignment is not None
        places1 += stored.alignment.offsets
    there = cv2.perspectiveTransform(
        xy0[None, indices[:, 0]].astype(np.float64), seen(second) @ np.linalg.inv(seen(first))
    )
    return distances(there[0], places1) / SIZES[pair[1]]


PAIRS = pytest.mark.parametrize("pair", [("a.png", "b/b 1.jpg"), ("a.png", "c.png"), ("c.png", "b/b 1.jpg")])


@PAIRS
def test_aligned_matches_are_of_one_point(pair: tuple[str, str]) -> None:
    assert np.median(between(pair)) > 0.8
    assert np.median(between(pair, aligned=True)) < 0.2
    assert len(between(pair)) > 0.8 * POINTS


def test_the_model_is_that_of_the_aligned_matches() -> None:
    corners = np.array([[[0.0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]]])
    expected = cv2.perspectiveTransform(corners, seen(1) @ np.linalg.inv(seen(0)))[0]
    assert cli.main(["match", "pairs.txt", "--verify", "homography", "-o", "plain.h5", "--quiet"]) == 0
    errors = []
    for path in ("plain.h5", "matches.h5"):
        with MatchReader(Path(path)) as reader:
            model = reader.read(("a.png", "b/b 1.jpg")).model
        errors.append(distances(cv2.perspectiveTransform(corners, model)[0], expected).mean())
    assert errors[1] < 0.5 * errors[0]


def test_a_pair_turned_round_has_its_alignment_turned() -> None:
    pair = ("a.png", "c.png")
    with MatchReader(Path("matches.h5")) as reader:
        there, back = reader.read(pair), reader.read(pair[::-1], count0=POINTS)
    assert there.alignment is not None
    assert back.alignment is not None
    xy0, xy1 = found(0).keypoints, found(2).keypoints
    rows = back.indices()
    first = cv2.perspectiveTransform(xy1[None, rows[:, 0]].astype(np.float64), seen(0) @ np.linalg.inv(seen(2)))[0]
    assert np.median(distances(first, xy0[rows[:, 1]] + back.alignment.offsets)) < 0.2
    order = np.argsort(there.indices()[:, 1])
    np.testing.assert_array_equal(back.alignment.correlations, there.alignment.correlations[order])


@PAIRS
def test_refined_keypoints_are_of_one_point_in_all_photographs(pair: tuple[str, str]) -> None:
    assert np.median(between(pair, "refined.h5")) < 0.25


def test_refined_keypoints_lie_nearer_to_their_points() -> None:
    with FeatureReader(Path("feats.h5")) as before, FeatureReader(Path("refined.h5")) as after:
        for view, name in enumerate(NAMES):
            old, new = (np.median(distances(one.read(name).keypoints, truth(view))) for one in (before, after))
            assert new < 0.8 * old


def test_a_refined_file_keeps_the_rest_and_where_keypoints_were_found() -> None:
    with FeatureReader(Path("feats.h5")) as before, FeatureReader(Path("refined.h5")) as after:
        assert after.names() == before.names()
        for name in NAMES:
            old, new = before.read(name), after.read(name)
            np.testing.assert_array_equal(new.found, old.keypoints)
            for field in ("scores", "descriptors", "scales", "image_size"):
                np.testing.assert_array_equal(getattr(new, field), getattr(old, field))
            assert fingerprint(new) == fingerprint(old)
        settings = json.loads(str(after.attributes["settings"]))
        assert settings == {**json.loads(str(before.attributes["settings"])), "refined": True}


def test_the_matches_go_with_the_refined_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "refined.h5", "matches.h5", "--to", "imc", "-o", "imc"]) == 0
    with h5py.File("imc/keypoints.h5") as file, FeatureReader(Path("refined.h5")) as features:
        np.testing.assert_array_equal(file["a"][()], features.read("a.png").keypoints)


def test_no_keypoint_moves_out_of_its_image() -> None:
    xy = np.float32([[0.5, 0.25], [WIDTH - 1.25, HEIGHT - 1.5], [-0.25, HEIGHT - 0.75], [50, 50]])
    features = dataclasses.replace(found(0), keypoints=xy)
    moves = np.float32([[-1, -1], [1, 1], [-1, 1], [1, -1]])
    moved = refining._moved(features, moves)
    expected = [[0, 0], [WIDTH - 1, HEIGHT - 1], [-0.25, HEIGHT - 0.75], [51, 49]]
    np.testing.assert_array_equal(moved.keypoints, expected)
    np.testing.assert_array_equal(moved.found, xy)


def test_descriptors_of_half_the_size_and_at_turns_stay() -> None:
    with h5py.File("feats.h5") as file:
        attributes = dict(file.attrs)
    settings = json.dumps({"descriptor_dtype": "float16", "rotations": True})
    turned = np.random.default_rng(0).normal(size=(3, POINTS, 16)).astype(np.float16).astype(np.float32)
    with FeatureWriter(Path("half.h5"), {**attributes, "settings": settings}) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, dataclasses.replace(found(view), turned=turned), descriptor_dtype="float16")
    assert cli.main([*REFINE, "--features", "half.h5", "-o", "half-matches.h5"]) == 0
    assert cli.main(["refine", "half-matches.h5", "-f", "half.h5", "-o", "out.h5"]) == 0
    with h5py.File("out.h5") as file:
        assert file["a.png/descriptors"].dtype == np.float16
    with FeatureReader(Path("out.h5")) as reader:
        np.testing.assert_array_equal(reader.read("a.png", turned=True).turned, turned)


@pytest.mark.parametrize("dtype", ["halves", "object", None, "uint8"])
def test_descriptors_that_a_strange_file_says_are_no_fractions_are_kept_in_32_bits(dtype: str | None) -> None:
    with h5py.File("feats.h5", "a") as file:
        file.attrs["settings"] = json.dumps({"descriptor_dtype": dtype})
    assert cli.main(["refine", "matches.h5", "-o", "x.h5", "--quiet"]) == 0
    with FeatureReader(Path("x.h5")) as reader:
        np.testing.assert_array_equal(reader.read("a.png").descriptors, found(0).descriptors)


def test_features_of_another_tool_are_refined_too() -> None:
    with h5py.File("other.h5", "w") as file:
        for view, name in enumerate(NAMES[:2]):  # their scale is not known, so all of their pixels are seen
            file[f"{name}/keypoints"] = found(view).keypoints
            file[f"{name}/descriptors"] = found(view).descriptors.T
    Path("two.txt").write_text("a.png\tb/b 1.jpg\n")
    arguments = ["--features", "other.h5", "-o"]
    assert cli.main(["match", "two.txt", *REFINE[2:], *arguments, "other-matches.h5"]) == 0
    assert cli.main(["refine", "other-matches.h5", *arguments, "other-refined.h5"]) == 0
    with FeatureReader(Path("other-refined.h5")) as reader:
        off = distances(reader.read("a.png").keypoints, truth(0))
    assert np.median(off) < 0.8 * np.median(distances(found(0).keypoints, truth(0)))
    with h5py.File("other-refined.h5") as file:
        assert "sekd_schema" not in file.attrs


def test_it_tells_what_it_did(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["refine", "matches.h5", "-o", "again.h5"]) == 0
    out, err = capfd.readouterr()
    assert out == "again.h5\n"
    assert "3 images: " in err
    assert f" of {3 * POINTS} keypoints moved, by 0." in err
    assert Path("again.h5").read_bytes() == Path("refined.h5").read_bytes()


def test_the_same_again_matches_nothing_anew(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(REFINE) == 0
    assert "0 pairs done, 3 done before" in capfd.readouterr().err
    without = [argument for argument in REFINE if argument not in {"--refine", "--images", "photos"}]
    assert cli.main(without) == BAD_OUTPUT
    assert "refine 132 there, None now" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "another size", "damaged"])
def test_a_photograph_that_does_not_do_costs_its_own_pairs_alone(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path("photos/c.png")
    if kind == "missing":
        path.unlink()
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        Image.open(path).resize((200, 100)).save(path)
    assert cli.main([*REFINE, "-o", "some.h5"]) == MISSING_PAIR
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "photos/c.png: " in lines[0]
    if kind == "another size":
        assert "200x100 pixels, but its features are of 896x640" in lines[0]
    with MatchReader(Path("some.h5")) as reader:
        assert list(reader.pairs()) == [("a.png", "b/b 1.jpg")]


def test_how_many_matches_are_aligned_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    cv2.imwrite("photos/a.png", noise)  # two of three pairs stay as they are
    assert cli.main([*REFINE, "-o", "told.h5"]) == 0
    words = re.search(r"([\d,]+) matches, \d+ a pair, (\d+) of them aligned", capfd.readouterr().err)
    assert words
    assert cli.main(["info", "told.h5", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [told["matches"], told["matches_aligned"]] == [int(number) for number in words.groups()]
    assert 50 < told["matches_aligned"] < 0.5 * told["matches"]
    plain = [argument for argument in REFINE if argument not in {"--refine", "--images", "photos"}]
    assert cli.main([*plain, "-o", "plain.h5"]) == 0
    assert "aligned" not in capfd.readouterr().err
    assert cli.main(["info", "plain.h5"]) == 0
    assert "aligned" not in capfd.readouterr().out


def test_show_draws_what_match_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[View, View, list[Colour], Legend]] = []

    def draw(first: View, second: View, colours: list[Colour], legend: Legend, *, faint: int) -> NDArray[np.uint8]:
        drawn.append((first, second, colours, legend))
        return draw_matches(first, second, colours, legend, faint=faint)

    monkeypatch.setattr(show_run, "draw_matches", draw)
    pair = ["photos/a.png", "photos/c.png", "--features", "feats.h5", "--size", "0", "-o", "x.png"]
    assert cli.main(["show", *pair, "--verify", "homography", "--refine"]) == 0
    with MatchReader(Path("matches.h5")) as matches, FeatureReader(Path("feats.h5")) as features:
        stored = matches.read(("a.png", "c.png"))
        xy0, xy1 = (features.read(name).keypoints for name in ("a.png", "c.png"))
    assert stored.alignment is not None
    indices, count = stored.indices(), len(stored.alignment.offsets)
    (first, second, colours, legend) = drawn[0]
    assert colours[-count:] == [INLIER] * count
    assert INLIER not in colours[:-count]
    np.testing.assert_array_equal(first.keypoints[-count:], xy0[indices[:, 0]])
    np.testing.assert_allclose(second.keypoints[-count:], xy1[indices[:, 1]] + stored.alignment.offsets, atol=1e-4)
    assert legend.marks[0][1] == f"{count} inliers of a homography, {count} aligned"


def test_show_refuses_what_match_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    pair = ["show", "photos/a.png", "photos/c.png", "--verify", "homography", "--refine", "-o", "x.png", "--features"]
    assert cli.main([*pair, "refined.h5"]) == BAD_INPUT
    assert "refined already" in capfd.readouterr().err
    with FeatureWriter(Path("known.h5"), ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, found(view), source=source_of(Path("photos", name)))
    assert cli.main([*pair, "known.h5"]) == 0
    Image.fromarray(255 - np.asarray(Image.open("photos/c.png"))).save("photos/c.png", compress_level=1)
    assert cli.main([*pair, "known.h5"]) == MISSING_PAIR
    assert "bytes, but its features are of a file of" in capfd.readouterr().err


def test_a_photograph_that_is_not_there_is_told_by_its_path(capfd: pytest.CaptureFixture[str]) -> None:
    Path("two.txt").write_text("a.png c.png\n")
    Path("empty").mkdir()
    assert cli.main(["match", "two.txt", *REFINE[2:-1], "empty", "-o", "x.h5", "--quiet"]) == NOTHING
    reason = "empty/a.png: no such file; check the path"
    assert capfd.readouterr().err.splitlines()[0] == f"error: a.png and c.png: {reason}"


def test_photographs_of_pairs_without_a_model_are_not_opened() -> None:
    rng = np.random.default_rng(0)
    with FeatureWriter(Path("two.h5"), ATTRIBUTES) as writer:
        writer.write("a.png", found(0))
        elsewhere = rng.uniform(0, 300, (POINTS, 2)).astype(np.float32)
        writer.write("nowhere.png", dataclasses.replace(found(0), keypoints=elsewhere))
    Path("two.txt").write_text("a.png nowhere.png\n")
    assert cli.main(["match", "two.txt", *REFINE[2:], "--features", "two.h5", "-o", "x.h5"]) == 0


@pytest.mark.parametrize(("cache", "reads"), [(10**9, 3), (2 * 3 * WIDTH * HEIGHT, 3), (0, 6)])
def test_photographs_stay_in_half_of_the_memory(cache: int, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    whole = seen_pixels.read_image
    monkeypatch.setattr(seen_pixels, "read_image", lambda path, **how: opened.append(path) or whole(path, **how))
    settings = MatchingSettings(), verification_settings("homography")
    matcher = PairMatcher(Path("feats.h5"), cache, *settings, folder=Path("photos"))
    matched = matcher(list(itertools.combinations(NAMES, 2)))
    assert [one.failure for one in matched] == [""] * 3
    assert len(opened) == reads


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_photograph_that_cannot_be_read_is_tried_once(content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos/a.png").unlink()
    if content is not None:
        Path("photos/a.png").write_bytes(content)
    opened = []
    whole = seen_pixels.read_image
    monkeypatch.setattr(seen_pixels, "read_image", lambda path, **how: opened.append(path) or whole(path, **how))
    settings = MatchingSettings(), verification_settings("homography")
    matcher = PairMatcher(Path("feats.h5"), 0, *settings, folder=Path("photos"))
    failures = [one.failure for one in matcher([("a.png", "c.png"), ("b/b 1.jpg", "a.png"), ("b/b 1.jpg", "c.png")])]
    assert failures[0].startswith("photos/a.png: ")
    assert failures == [failures[0], failures[0], ""]
    assert opened.count(Path("photos/a.png")) == 1


def test_another_photograph_of_the_name_and_size_is_refused_and_a_copy_is_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = Path("photos/c.png")
    with FeatureWriter(Path("known.h5"), ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, found(view), source=source_of(Path("photos", name)))
    os.utime(path, (1, 1))
    known = [*REFINE, "--features", "known.h5", "-o", "known-matches.h5"]
    assert cli.main(known) == 0
    before = path.stat().st_size
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path, compress_level=1)
    capfd.readouterr()
    assert cli.main([*known, "--overwrite"]) == MISSING_PAIR
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    told = f"{path.stat().st_size:,} bytes, but its features are of a file of {before:,}"
    reason = f"photos/c.png: {told}; give that one, or run sekd extract --update"
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines] == [reason]


def test_of_pairs_together_one_with_a_bad_photograph_fails_alone() -> None:
    def unreadable() -> seen_pixels.SeenPixels:
        raise ImageError("c.png: gone")

    def image(view: int) -> MatchableImage:
        features = found(view)
        photograph = seen_pixels.SeenPhotograph(Path("photos") / NAMES[view], None, finest_of(features.scales))
        return matchable_image(NAMES[view], features, pixels=photograph.read if view < 2 else unreadable)

    pairs = [(image(one), image(other)) for one, other in ((0, 2), (0, 1), (1, 2))]
    alone, aligned, other = match_together(pairs, MatchingSettings(), verification_settings("homography"))
    assert isinstance(alone, ImageError)
    assert isinstance(other, ImageError)
    assert isinstance(aligned, StoredMatches)
    assert aligned.alignment is not None


def test_photographs_beyond_the_usual_limit_are_read_since_they_were_extracted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekd_cli.feature_cache.DEFAULT_MAX_PIXELS", 100)
    assert cli.main([*REFINE, "-o", "large.h5"]) == 0


def test_where_most_looks_different_matches_stay_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    cv2.imwrite("photos/a.png", noise)
    assert cli.main([*REFINE, "-o", "night.h5"]) == 0
    assert cli.main(["match", "pairs.txt", "--verify", "homography", "-o", "plain.h5"]) == 0
    with MatchReader(Path("night.h5")) as one, MatchReader(Path("plain.h5")) as other:
        pair = ("a.png", "b/b 1.jpg")
        np.testing.assert_array_equal(one.read(pair).matches0, other.read(pair).matches0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["match", "pairs.txt", "--refine", "--images", "photos"], USAGE, "--refine: only with --verify"),
        (
            ["match", "pairs.txt", "--verify", "homography", "--refine"],
            USAGE,
            "--refine: give the folder of the images",
        ),
        (
            ["match", "pairs.txt", "--verify", "homography", "--images", "photos"],
            USAGE,
            "only with --refine or --verify",
        ),
        ([*REFINE, "--features", "refined.h5", "-o", "x.h5"], BAD_INPUT, "refined.h5: refined already"),
        (["refine", "matches.h5", "--features", "refined.h5", "-o", "x.h5"], BAD_INPUT, "refined.h5: refined already"),
        (["refine", "matches.h5"], BAD_OUTPUT, "refined.h5: exists already"),
        (["refine", "matches.h5", "-o", "feats.h5", "--overwrite"], USAGE, "feats.h5: is an input too"),
        (["refine", "feats.h5", "-o", "x.h5"], BAD_INPUT, "feats.h5: holds features, not matches"),
        (["refine", "missing.h5", "-o", "x.h5"], BAD_INPUT, "missing.h5"),
    ],
)
def test_what_is_wrong_gets_one_line(
    arguments: list[str], code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    err = capfd.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


def test_matches_that_are_not_aligned_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match", "pairs.txt", "-o", "plain.h5", "--quiet"]) == 0
    assert cli.main(["refine", "plain.h5", "-o", "x.h5"]) == NOTHING
    assert "plain.h5: no aligned matches of these images; run sekd match --verify" in capfd.readouterr().err
    assert not Path("x.h5").exists()


def test_matches_that_no_photograph_aligned_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save("photos/a.png")
    Path("two.txt").write_text("a.png\tb/b 1.jpg\n")
    assert cli.main(["match", "two.txt", *REFINE[2:], "-o", "dark.h5", "--quiet"]) == 0
    assert cli.main(["refine", "dark.h5", "-o", "x.h5"]) == NOTHING
    told = "dark.h5: no match could be aligned; give --images of sekd match the photographs of these features"
    assert told in capfd.readouterr().err


def test_matches_of_other_features_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    write_views(Path("others.h5"), NAMES)
    assert cli.main(["refine", "matches.h5", "-f", "others.h5", "-o", "x.h5"]) == BAD_INPUT
    assert "matched with other features" in capfd.readouterr().err


def test_a_full_disk_is_told_of_the_output_and_leaves_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    with files_of_at_most(Path("refined.h5").stat().st_size // 2):
        assert cli.main(["refine", "matches.h5", "-o", "x.h5", "--quiet"]) == BAD_OUTPUT
    reason = "larger than this file system or process may write; give another output with -o"
    assert capfd.readouterr().err == f"error: x.h5: {reason}\n"
    assert sorted(Path().iterdir()) == before


def images_of(views: list[StoredFeatures], *, aligned: bool = True) -> list[MatchableImage]:
    """The first photographs with these features, and with their pixels if they are to be aligned."""
    images = []
    for name, view in zip(NAMES, views, strict=False):
        photograph = seen_pixels.SeenPhotograph(Path("photos") / name, None, finest_of(view.scales))
        images.append(matchable_image(name, view, pixels=photograph.read if aligned else None))
    return images


DECEIVED = np.arange(0, POINTS, 4)  # keypoints of the first view that look more like the one of another of these


def deceiving() -> tuple[list[StoredFeatures], NDArray[np.int64]]:
    """Two such views, and the second's keypoint of each of the first's."""
    views = [found(0), found(1)]
    second = np.argsort(np.random.default_rng(1).permutation(POINTS))[np.random.default_rng(0).permutation(POINTS)]
    descriptors = views[1].descriptors.copy()
    own = views[0].descriptors[DECEIVED]
    descriptors[second[DECEIVED]] = 0.75 * np.roll(own, 5, axis=0) + 0.65 * own
    return [views[0], dataclasses.replace(views[1], descriptors=descriptors)], second


def test_what_looks_more_like_something_far_away_is_matched_where_its_neighbours_lead() -> None:
    views, second = deceiving()
    right = []
    for aligned in (False, True):
        images = images_of(views, aligned=aligned)
        matches = match_images(images[0], images[1], MatchingSettings(), verification_settings("fundamental"))
        right.append((matches.matches0 == second)[DECEIVED].mean())
        if aligned:
            assert (matches.matches0 == second)[matches.matches0 >= 0].mean() > 0.97
            similarity = (images[0].descriptors @ images[1].descriptors.T).numpy()
            first, other = matches.indices().T
            np.testing.assert_allclose(matches.scores0[first], similarity[first, other], atol=1e-5)
            assert matches.alignment is not None
            there = cv2.perspectiveTransform(views[0].keypoints[None, first] * 1.0, seen(1) @ np.linalg.inv(seen(0)))[0]
            assert np.median(distances(views[1].keypoints[other] + matches.alignment.offsets, there)) < 0.1
    assert right[0] == 0
    assert right[1] > 0.7


def test_the_filters_and_the_turn_hold_for_what_is_matched_where_others_lead() -> None:
    views, second = deceiving()
    verification = verification_settings("fundamental")
    strict = match_images(*images_of(views), MatchingSettings(min_similarity=0.9), verification)
    assert (strict.matches0[DECEIVED] == -1).all()
    turned = np.random.default_rng(0).normal(size=(3, *views[1].descriptors.shape)).astype(np.float32)
    upright, turned[1] = turned[0], views[1].descriptors
    views[1] = dataclasses.replace(views[1], descriptors=upright, turned=turned)
    images = images_of(views)
    matches = match_images(images[0], images[1], MatchingSettings(rotations=True), verification)
    assert matches.turn == 2
    assert (matches.matches0 == second)[DECEIVED].mean() > 0.7
    first, other = matches.indices().T
    similarity = (images[0].descriptors @ images[1].at_turn(2).T).numpy()
    np.testing.assert_allclose(matches.scores0[first], similarity[first, other], atol=1e-5)


def test_what_does_not_fit_is_left_out_unless_too_few_are_left() -> None:
    hidden = cv2.imread("photos/a.png", cv2.IMREAD_GRAYSCALE)
    hidden[:, :200] = np.random.default_rng(0).integers(0, 256, (HEIGHT, 200))
    cv2.imwrite("photos/a.png", hidden)
    views = [found(0), found(1)]
    usual = verification_settings("homography")
    plain, kept = (match_images(*images_of(views, aligned=one), MatchingSettings(), usual) for one in (False, True))
    assert kept.alignment is not None
    assert (kept.alignment.correlations > 0).all()
    assert usual.min_inliers < len(kept.indices()) < len(plain.indices())
    enough = dataclasses.replace(usual, min_inliers=len(kept.indices()))
    assert match_images(*images_of(views), MatchingSettings(), enough).alignment is not None
    more = dataclasses.replace(usual, min_inliers=len(kept.indices()) + 1)
    stayed = match_images(*images_of(views), MatchingSettings(), more)
    assert stayed.alignment is None
    np.testing.assert_array_equal(stayed.matches0, plain.matches0)


@pytest.mark.parametrize("model", [["fundamental"], ["essential", "--camera", "500"]])
def test_matches_that_agree_on_lines_are_aligned_too(model: list[str]) -> None:
    Path("two.txt").write_text("a.png\tb/b 1.jpg\n")
    assert cli.main(["match", "two.txt", "--verify", *model, *REFINE[4:], "-o", "lines.h5", "--quiet"]) == 0
    with MatchReader(Path("lines.h5")) as reader:
        stored = reader.read(("a.png", "b/b 1.jpg"))
    assert stored.model_name == model[0]
    assert stored.alignment is not None
    indices = stored.indices()
    truth1 = cv2.perspectiveTransform(
        found(0).keypoints[None, indices[:, 0]].astype(np.float64), seen(1) @ np.linalg.inv(seen(0))
    )[0]
    assert np.median(distances(found(1).keypoints[indices[:, 1]] + stored.alignment.offsets, truth1)) < 0.2


def test_a_list_of_alignments_that_is_too_short_is_damage(capfd: pytest.CaptureFixture[str]) -> None:
    with h5py.File("matches.h5", "a") as file:
        group = file["a.png/b-b 1.jpg"]
        offsets = group["offsets"][:-1]
        del group["offsets"], group.attrs["crc32"]
        group["offsets"] = offsets
    assert cli.main(["refine", "matches.h5", "-o", "x.h5"]) == BAD_INPUT
    assert "matches.h5" in capfd.readouterr().err
