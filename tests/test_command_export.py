"""`sekd export` as a user types it; what it writes is tested in test_export_colmap and test_export_onnx."""

import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from drawn_features import SIZE, write_photographs, write_views, write_views_and_matches

from sekd_cli import cli

NAMES = ["a 1.png", "b/c.png"]
SOME_FAILED, USAGE, NOTHING, BAD_INPUT, BAD_OUTPUT, NO_PACKAGE = 1, 2, 3, 4, 5, 6  # exit codes
COLMAP = ["export", "colmap", "--images", "photos"]


@pytest.fixture
def in_a_folder_with_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    monkeypatch.chdir(tmp_path)
    write_photographs(NAMES)
    write_views_and_matches(NAMES)
    capfd.readouterr()


@pytest.mark.usefixtures("in_a_folder_with_matches")
def test_a_database_with_the_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    import pycolmap

    assert cli.main(COLMAP) == 0
    out, err = capfd.readouterr()
    assert out == "database.db\n"
    assert err == "2 images, 1 pair with 62 matches, 1 pair verified\n"  # and COLMAP itself is silent
    with pycolmap.Database.open("database.db") as database:
        numbers, geometries = database.read_two_view_geometries()
    assert len(numbers) == 1
    assert len(geometries[0].inlier_matches) >= 50


@pytest.mark.usefixtures("in_a_folder_with_matches")
def test_missing_and_unreadable_images_are_told_and_the_exit_code_is_1(capfd: pytest.CaptureFixture[str]) -> None:
    (Path("photos") / NAMES[1]).unlink()
    assert cli.main([*COLMAP, "-o", "some.db"]) == SOME_FAILED
    out, err = capfd.readouterr()
    assert out == "some.db\n"
    assert "error: b/c.png: not in photos, left out" in err
    (Path("photos") / NAMES[1]).write_bytes(b"text")
    assert cli.main([*COLMAP, "-o", "other.db"]) == SOME_FAILED
    assert "error: b/c.png: COLMAP can't read it, left out; convert it to one of JPEG, PNG" in capfd.readouterr().err


@pytest.mark.usefixtures("in_a_folder_with_matches")
def test_an_image_of_another_size_is_told_and_the_exit_code_is_1(capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(Path("photos") / NAMES[1]), np.full((SIZE // 2, SIZE // 2), 128, np.uint8))
    assert cli.main(COLMAP) == SOME_FAILED
    assert "error: b/c.png: not as large as when it was extracted" in capfd.readouterr().err


@pytest.mark.usefixtures("in_a_folder_with_matches")
def test_errors_are_one_line_with_their_exit_code(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    for name in NAMES:
        path = Path("text") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no image")
    cases = [
        (["export", "colmap", "--images", "text"], NOTHING, "text: COLMAP can use none of 2 images"),
        ([*COLMAP, "--matches", "feats.h5"], BAD_INPUT, "feats.h5: holds features, not matches"),
        ([*COLMAP, "--features", "matches.h5"], BAD_INPUT, "matches.h5: holds matches, not features"),
        (["export", "colmap", "--images", "empty"], NOTHING, "empty has no image of feats.h5"),
        ([*COLMAP, "--features", "gone.h5"], BAD_INPUT, "gone.h5: no such file"),
        ([*COLMAP, "--matches", "gone.h5"], BAD_INPUT, "gone.h5: no such file"),
        ([*COLMAP, "--camera-model", "BROWNIE"], USAGE, "BROWNIE"),
        ([*COLMAP, "-o", "pairs.txt"], BAD_OUTPUT, "exists already"),
        ([*COLMAP, "-o", "feats.h5", "--overwrite"], USAGE, "feats.h5: is an input too"),
        ([*COLMAP, "-o", "photos/../matches.h5", "--overwrite"], USAGE, "matches.h5: is an input too"),
    ]
    for arguments, code, message in cases:
        assert cli.main(arguments) == code
        out, err = capfd.readouterr()
        assert not out
        assert message in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert cli.main(COLMAP) == NO_PACKAGE
    assert "pip install 'sekd[colmap]'" in capfd.readouterr().err


def test_a_model_of_given_weights(
    untrained_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "onnx", "--weights", str(untrained_weights)]) == 0
    out, err = capfd.readouterr()
    assert out == "sekd.onnx\n"
    assert err.startswith("compact network, ")
    facts = {one.key: one.value for one in onnx.load("sekd.onnx").metadata_props}
    assert facts["network"] == "compact"
    assert len(facts["weights_sha256"]) == 64
    assert cli.main(["export", "onnx", "--weights", str(untrained_weights)]) == BAD_OUTPUT
    assert cli.main(["export", "onnx", "--weights", "gone.safetensors", "-o", "x.onnx"]) == BAD_INPUT
    itself = ["--weights", str(untrained_weights), "-o", str(untrained_weights), "--overwrite"]
    assert cli.main(["export", "onnx", *itself]) == USAGE


@pytest.mark.usefixtures("in_a_folder_with_matches")
def test_matches_of_other_images_make_no_database(capfd: pytest.CaptureFixture[str]) -> None:
    write_views(Path("others.h5"), ["x.png", "y.png"])
    Path("pairs.txt").write_text("x.png y.png")
    assert (
        cli.main(["match", "pairs.txt", "--features", "others.h5", "-o", "others.m.h5", "--quiet", "--device", "cpu"])
        == 0
    )
    assert cli.main([*COLMAP, "--matches", "others.m.h5"]) == NOTHING
    assert "others.m.h5: matches of other images; give those of feats.h5" in capfd.readouterr().err
    assert not Path("database.db").exists()


@pytest.mark.usefixtures("in_a_folder_with_matches")
def test_files_without_any_image_or_pair_make_no_database(capfd: pytest.CaptureFixture[str]) -> None:
    with h5py.File("pairless.h5", "w") as file:
        file.create_group("a 1.png_b-c.png")["matches0"] = np.zeros(3, np.int32)  # as older hloc named pairs
    with h5py.File("bare.h5", "w") as file:
        file.create_group("a 1.png")["keypoints"] = np.zeros((3, 2), np.float32)  # as of a matcher without descriptors
    assert cli.main([*COLMAP, "--matches", "pairless.h5"]) == NOTHING
    assert "pairless.h5: no matches of any pair; give those of feats.h5" in capfd.readouterr().err
    assert cli.main([*COLMAP, "--features", "bare.h5"]) == NOTHING
    assert "bare.h5: no image has keypoints and descriptors" in capfd.readouterr().err
    assert not Path("database.db").exists()
