"""`sekd show` as a user types it: which picture comes out of which images and files, and where it goes."""

from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from drawn import drawn_photograph
from drawn_features import (
    ATTRIBUTES,
    SIZE,
    TURNED_ATTRIBUTES,
    drawn_features,
    homography,
    turned_by,
    write_photographs,
    write_views,
    write_views_and_matches,
)
from PIL import Image

from sekd_cli import cli
from sekd_cli.commands import show_run
from sekd_cli.drawing import INLIER, OUTLIER, Colour, Legend, View, colours_of, draw_keypoints, draw_matches
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.match_file import MatchReader
from sekd_cli.stored_features import StoredFeatures

NAMES = ["a.jpg", "b/c 1.jpg"]
SOME_FAILED, USAGE, NOTHING, BAD_INPUT, BAD_OUTPUT = 1, 2, 3, 4, 5  # exit codes


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Two grey photographs with features and matches, of which the first 60 agree on one homography."""
    monkeypatch.chdir(tmp_path)
    write_photographs(NAMES)
    write_views_and_matches(NAMES)
    capfd.readouterr()


PHOTOS = ["photos/a.jpg", "photos/b/c 1.jpg"]
FILES = ["--features", "feats.h5", "--matches", "matches.h5"]


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    return int((picture == colour).all(axis=-1).sum())


def test_keypoints_come_from_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", PHOTOS[0], "-f", "feats.h5", "-o", "k.png", "--size", "0"]) == 0
    assert capfd.readouterr() == ("k.png\n", "")
    picture = pixels("k.png")
    assert picture.shape[1] == SIZE
    with FeatureReader(Path("feats.h5")) as reader:
        xy = reader.read("a.jpg").keypoints
    inside = xy[((xy > 10) & (xy < SIZE - 10)).all(axis=1)]
    for x, y in np.rint(inside).astype(int):
        assert np.ptp(picture[y, x].astype(int)) > 20  # coloured, where the photograph is grey


def test_a_link_has_the_features_of_its_own_name_or_of_what_it_leads_to(capfd: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere.jpg").write_bytes(Path(PHOTOS[0]).read_bytes())
    Path(PHOTOS[0]).unlink()
    Path(PHOTOS[0]).symlink_to(Path("elsewhere.jpg").absolute())
    Path("linked.jpg").symlink_to(Path(PHOTOS[1]).absolute())
    assert cli.main(["show", PHOTOS[0], "linked.jpg", "-f", "feats.h5", "--keypoints", "-o", "out"]) == 0
    assert capfd.readouterr().out.splitlines() == ["out/a.keypoints.png", "out/linked.keypoints.png"]


def test_keypoints_are_extracted_where_no_file_is_given(
    untrained_weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("drawn.png", drawn_photograph(1))
    few = ["--weights", str(untrained_weights), "--max-keypoints", "20"]
    assert cli.main(["show", "drawn.png", *few]) == 0
    assert capfd.readouterr() == ("drawn.keypoints.png\n", "")
    assert pixels("drawn.keypoints.png").shape[1] == 2 * drawn_photograph(1).shape[1]  # small ones are enlarged


def test_weights_and_limits_are_as_asked_for(
    untrained_weights: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scores: list[np.ndarray] = []

    def draw(*given: Any) -> np.ndarray:
        scores.append(given[1])
        return draw_keypoints(*given)

    monkeypatch.setattr(show_run, "draw_keypoints", draw)
    cv2.imwrite("drawn.png", drawn_photograph(1))
    few = ["show", "drawn.png", "--max-keypoints", "20"]
    assert cli.main(few) == 0
    assert cli.main([*few, "--weights", str(untrained_weights)]) == 0
    assert len(scores[0]) == 20
    assert scores[0].tolist() != scores[1].tolist()
    assert cli.main([*few, "--max-pixels", "10"]) == NOTHING
    assert "raise --max-pixels" in capfd.readouterr().err


def test_what_show_extracts_is_what_extract_finds() -> None:
    cv2.imwrite("large.jpg", drawn_photograph(1, 1280, 3360))  # decoded at half its size
    assert cli.main(["extract", "large.jpg", "-o", "large.h5", "--device", "cpu"]) == 0
    assert cli.main(["show", "large.jpg", "-o", "now.png"]) == 0
    assert cli.main(["show", "large.jpg", "-o", "before.png", "-f", "large.h5"]) == 0
    np.testing.assert_array_equal(pixels("now.png"), pixels("before.png"))


def test_features_of_a_photograph_of_another_size_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(PHOTOS[0], np.full((90, 80), 128, np.uint8))
    assert cli.main(["show", PHOTOS[0], "-f", "feats.h5"]) == 0
    assert "80x90 pixels, but its features are of one with 400x400" in capfd.readouterr().err


def test_matches_come_from_the_file_coloured_by_score(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", *PHOTOS, *FILES]) == 0
    assert capfd.readouterr() == ("a-c 1.matches.png\n", "")
    picture = pixels("a-c 1.matches.png")
    assert 4 * SIZE < picture.shape[1] < 4.1 * SIZE  # small ones are enlarged
    assert count(picture, OUTLIER) == 0
    assert cli.main(["show", *reversed(PHOTOS), *FILES, "-o", "reversed.png"]) == 0  # stored the other way round


def test_matches_stored_the_other_way_round_are_drawn_whatever_the_numbers_of_keypoints() -> None:
    with FeatureWriter(Path("more.h5"), ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, drawn_features(view, own=20 + 30 * view))
    assert cli.main(["match", "pairs.txt", "--features", "more.h5", "-o", "more-m.h5"]) == 0
    for order, photos in (("as.png", PHOTOS), ("other.png", PHOTOS[::-1])):
        assert cli.main(["show", *photos, "-f", "more.h5", "-m", "more-m.h5", "-o", order]) == 0


def test_verify_tells_inliers_from_outliers() -> None:
    assert cli.main(["show", *PHOTOS, *FILES, "--verify", "homography", "-o", "v.png"]) == 0
    picture = pixels("v.png")[: 2 * SIZE]  # without the legend
    assert count(picture, INLIER) > 10 * count(picture, OUTLIER) > 0
    assert cli.main(["show", *PHOTOS, "-f", "feats.h5", "--verify", "fundamental", "-o", "f.png"]) == 0  # matched now
    assert count(pixels("f.png"), INLIER) > 0


def test_matches_that_were_verified_are_inliers_all() -> None:
    arguments = ["match", "pairs.txt", "-o", "verified.h5", "--verify", "homography", "--quiet", "--device", "cpu"]
    assert cli.main(arguments) == 0
    assert cli.main(["show", *PHOTOS, "-f", "feats.h5", "-m", "verified.h5", "-o", "v.png"]) == 0
    picture = pixels("v.png")
    assert count(picture, INLIER) > 0
    assert count(picture, OUTLIER) == 0
    assert cli.main(["show", *PHOTOS, *FILES, "--verify", "homography", "-o", "now.png"]) == 0
    now = pixels("now.png")[: 2 * SIZE]  # the same, above the outliers
    assert count(now, INLIER) == pytest.approx(count(picture[: 2 * SIZE], INLIER), rel=0.01)


def test_the_legend_tells_what_the_colours_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[Colour], Legend, int]] = []

    def draw(first: View, second: View, colours: list[Colour], legend: Legend, *, faint: int) -> np.ndarray:
        drawn.append((colours, legend, faint))
        return draw_matches(first, second, colours, legend, faint=faint)

    monkeypatch.setattr(show_run, "draw_matches", draw)
    assert cli.main(["match", "pairs.txt", "-o", "verified.h5", "--verify", "fundamental", "--device", "cpu"]) == 0
    plain = ["show", *PHOTOS, "-f", "feats.h5", "-o", "x.png"]
    for more in (["-m", "matches.h5"], ["-m", "matches.h5", "--verify", "homography"], ["-m", "verified.h5"]):
        assert cli.main([*plain, *more]) == 0
    with MatchReader(Path("matches.h5")) as reader:
        stored = reader.read((NAMES[0], NAMES[1]))
    scores = stored.scores0[stored.matches0 >= 0]
    (by_score, legend, faint), (verified, told, outliers), (before, kept, none) = drawn
    assert legend == ("a.jpg | b/c 1.jpg", f"{len(scores)} matches", tuple(np.quantile(scores, (0.02, 0.98))), ())
    assert by_score == colours_of(np.sort(scores))[0]  # the best on top
    assert (faint, none) == (0, 0)
    inliers = len(scores) - outliers
    assert verified == [OUTLIER] * outliers + [INLIER] * inliers
    marks = ((INLIER, f"{inliers} inliers of a homography"), (OUTLIER, f"{outliers} outliers"))
    assert told == ("a.jpg | b/c 1.jpg", f"{len(scores)} matches", None, marks)
    assert (set(before), kept.marks) == ({INLIER}, ((INLIER, "inliers of a fundamental matrix"),))


def test_matches_of_a_photograph_that_lies_turned_are_verified_by_its_descriptors_at_that_turn() -> None:
    with FeatureWriter(Path("turned.h5"), TURNED_ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, turned_by(drawn_features(view), 2 * view))
    files = ["-f", "turned.h5", "-m", "turns.h5"]
    assert cli.main(["match", "pairs.txt", "--features", "turned.h5", "-o", "turns.h5", "--rotations"]) == 0
    assert cli.main(["show", *PHOTOS, *files, "--verify", "homography", "-o", "v.png"]) == 0
    assert count(pixels("v.png"), INLIER) > 0


def test_a_line_ends_where_the_homography_says() -> None:
    """Of one match alone, so that its line is all there is."""
    xy = np.array([(120.0, 200.0)])
    moved = np.append(xy[0], 1) @ homography(1).T
    with FeatureWriter(Path("one.h5"), ATTRIBUTES) as writer:
        for name, point in zip(NAMES, (xy, moved[None, :2] / moved[2]), strict=True):
            one = {"scores": np.ones(1, np.float32), "descriptors": np.ones((1, 4)) / 2, "image_size": (SIZE, SIZE)}
            writer.write(name, StoredFeatures(keypoints=point.astype(np.float32), **one))
    assert cli.main(["show", *PHOTOS, "-f", "one.h5", "--size", "0", "-o", "one.png"]) == 0
    picture = pixels("one.png")
    left = picture.shape[1] - SIZE  # where the second photograph begins
    x, y = np.rint(moved[:2] / moved[2]).astype(int)
    for at in ((200, 120), (y, left + x)):
        assert np.ptp(picture[at].astype(int)) > 20


def test_two_images_are_drawn_alone_if_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    Path("out.1").mkdir()
    for folder in ("out", "out.1"):  # one that has a dot in its name must be there
        assert cli.main(["show", *PHOTOS, "-f", "feats.h5", "--keypoints", "-o", folder]) == 0
        assert capfd.readouterr().out.splitlines() == [f"{folder}/a.keypoints.png", f"{folder}/c 1.keypoints.png"]


def test_images_with_one_stem_get_pictures_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    twin = Path("photos/b/a.jpg")
    twin.write_bytes(Path(PHOTOS[0]).read_bytes())
    assert cli.main(["show", PHOTOS[0], str(twin), PHOTOS[0], "-f", "feats.h5", "-o", "out"]) == 0
    written = capfd.readouterr().out.splitlines()
    assert sorted(set(written)) == ["out/photos-a.jpg.keypoints.png", "out/photos-b-a.jpg.keypoints.png"]
    Path("photos-a.jpg").write_bytes(Path(PHOTOS[0]).read_bytes())
    assert cli.main(["show", PHOTOS[0], "photos-a.jpg", str(twin), "-o", "out"]) == USAGE
    assert "the same name" in capfd.readouterr().err


def test_a_turned_photograph_is_shown_upright() -> None:
    image = Image.new("L", (60, 40), 128)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save("turned.jpg", exif=exif)
    with FeatureWriter(Path("turned.h5"), ATTRIBUTES) as writer:
        one = {"scores": np.ones(1), "descriptors": np.ones((1, 4)), "image_size": (60, 40)}
        writer.write("turned.jpg", StoredFeatures(keypoints=np.array([(10, 5)], np.float32), **one))
    assert cli.main(["show", "turned.jpg", "-f", "turned.h5", "--size", "0", "-o", "t.png"]) == 0
    picture = pixels("t.png")
    assert picture.shape[1] == 40
    assert np.ptp(picture[10, 34].astype(int)) > 20  # x = 40 - 1 - 5, y = 10


def test_one_bad_image_stops_none_of_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    Path("bad.jpg").write_bytes(b"text")
    assert cli.main(["show", "bad.jpg", PHOTOS[0], "gone.jpg", "-f", "feats.h5"]) == SOME_FAILED
    out, err = capfd.readouterr()
    assert out == "a.keypoints.png\n"
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["bad.jpg", "gone.jpg"]
    assert cli.main(["show", "bad.jpg", "-f", "feats.h5"]) == NOTHING
    for pair in (["bad.jpg", PHOTOS[0]], [PHOTOS[0], "bad.jpg"], ["bad.jpg", "gone.jpg"]):
        assert cli.main(["show", *pair, "-f", "feats.h5"]) == NOTHING  # there's no picture of one
        told = capfd.readouterr().err
        assert all(f"error: {name}" in told for name in pair if name != PHOTOS[0])


def test_no_photograph_is_overwritten(capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite("mine.png", drawn_photograph(1))
    Path("text.png").write_text("no picture at all")
    for name in ("mine.png", "text.png"):
        before = Path(name).read_bytes()
        assert cli.main(["show", PHOTOS[0], "-f", "feats.h5", "-o", name]) == BAD_OUTPUT
        assert "no picture of sekd show" in capfd.readouterr().err
        assert Path(name).read_bytes() == before
    for _ in range(2):  # its own it writes again
        assert cli.main(["show", PHOTOS[0], "-f", "feats.h5", "-o", "k.png"]) == 0


def test_errors_are_one_line_with_their_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    write_views(Path("other.h5"), NAMES, own=30)
    write_views(Path("again.h5"), NAMES, plane=1)  # as many keypoints, elsewhere
    with FeatureWriter(Path("fewer.h5"), ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, drawn_features(view, own=20 - 15 * view))  # as many as were matched, and fewer
    Path("elsewhere.jpg").write_bytes(Path(PHOTOS[0]).read_bytes())
    cases = [
        ([PHOTOS[0], "--verify", "homography"], USAGE, "for two images"),
        ([PHOTOS[0], *FILES], USAGE, "for two images"),
        ([*PHOTOS, "--refine"], USAGE, "--refine: only with --verify"),
        ([*PHOTOS, *FILES, "--verify", "homography", "--refine"], USAGE, "matches that are found now"),
        ([*PHOTOS, "--matches", "matches.h5"], USAGE, "give --features too"),
        ([PHOTOS[0], "-f", "feats.h5", "-o", "k.jpg"], USAGE, ".png"),
        ([*PHOTOS, "-f", "feats.h5", "--keypoints", "-o", "k.png"], USAGE, "give a folder"),
        ([PHOTOS[0], "-f", "feats.h5", "--size", "-1"], USAGE, "--size -1"),
        ([PHOTOS[0], "-f", "feats.h5", "--weights", "w.safetensors"], USAGE, "--weights"),
        ([PHOTOS[0], "-f", "feats.h5", "--max-keypoints", "5"], USAGE, "--max-keypoints"),
        ([PHOTOS[0], "-f", "gone.h5"], BAD_INPUT, "gone.h5: no such file"),
        (["elsewhere.jpg", "-f", "feats.h5"], BAD_INPUT, "no features of elsewhere.jpg"),
        ([*PHOTOS, "-f", "other.h5", "-m", "matches.h5"], BAD_INPUT, "not of these features"),
        ([*PHOTOS, "-f", "fewer.h5", "-m", "matches.h5"], BAD_INPUT, "not of these features"),
        ([*PHOTOS, "-f", "again.h5", "-m", "matches.h5"], BAD_INPUT, "not of these features"),
        ([*PHOTOS[::-1], "-f", "again.h5", "-m", "matches.h5"], BAD_INPUT, "not of these features"),
        ([PHOTOS[0], PHOTOS[0], *FILES], BAD_INPUT, "no matches of a.jpg and a.jpg"),
    ]
    for arguments, code, message in cases:
        assert cli.main(["show", *arguments]) == code
        out, err = capfd.readouterr()
        assert not out
        assert message in err
        assert len(err.splitlines()) == 1


def test_a_viewer_is_opened_with_a_picture_of_its_own_folder(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def launch(url: str) -> int:
        opened.append(url)
        return 0 if len(opened) == 1 else 3

    monkeypatch.setattr(click, "launch", launch)
    assert cli.main(["show", PHOTOS[0], "-f", "feats.h5", "--open"]) == 0
    assert capfd.readouterr().out == f"{opened[0]}\n"
    assert pixels(opened[0]).size
    assert not Path("a.keypoints.png").exists()
    assert cli.main(["show", PHOTOS[0], "-f", "feats.h5", "--open", "-o", "k.png"]) == 0
    assert opened[1] == "k.png"
    assert "no viewer" in capfd.readouterr().err
