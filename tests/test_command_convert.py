"""`sekd convert` as a user types it; what it writes is tested in test_export_layouts."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from drawn_features import write_views, write_views_and_matches
from full_disk import files_of_at_most

from sekd_cli import cli

NAMES = ["a.jpg", "b/c.jpg"]
USAGE, NOTHING, BAD_INPUT, BAD_OUTPUT = 2, 3, 4, 5  # exit codes


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_views_and_matches(NAMES)
    capfd.readouterr()


def test_there_and_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "feats.h5", "matches.h5", "--to", "imc", "-o", "scene"]) == 0
    assert capfd.readouterr() == ("scene\n", "features of 2 images\nmatches of 1 pair\n")
    assert cli.main(["convert", "scene", "--to", "hloc", "-o", "back"]) == 0
    guessed = "warning: scene: guessed the size of 2 images; give --images\n"
    assert capfd.readouterr() == ("back\n", guessed + "features of 2 images\nmatches of 1 pair\n")
    Path("photos").mkdir()
    assert cli.main(["convert", "scene", "--to", "hloc", "--images", "photos", "-o", "again", "--quiet"]) == 0
    assert "guessed the size of 2 images\n" in capfd.readouterr().err  # the folder was given
    with h5py.File("back/matches.h5") as file:
        assert list(file) == ["c"]
        assert list(file["c"]) == ["a"]


def test_what_is_left_out_of_a_flat_folder_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "feats.h5", "matches.h5", "--to", "imc", "-o", "scene", "--quiet"]) == 0
    Path("scene/descriptors.h5").unlink()
    with h5py.File("scene/keypoints.h5", "r+") as file:
        file["sub/x"] = file["a"][()]
    capfd.readouterr()
    assert cli.main(["convert", "scene", "--to", "hloc", "-o", "back"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "warning: scene/keypoints.h5: 1 group left out, such as sub; keys are flat",
        "warning: scene: no descriptors.h5 in it, so features are left out",
        "matches of 1 pair",
    ]
    Path("scene/matches.h5").unlink()
    assert cli.main(["convert", "scene", "--to", "hloc", "-o", "alone"]) == BAD_INPUT
    assert "scene: no descriptors.h5 or matches.h5 in it" in capfd.readouterr().err


def test_errors_are_one_line_with_their_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    write_views(Path("twins.h5"), ["x/a.jpg", "y/a.jpg"])
    write_views(Path("other.h5"), NAMES, own=30)
    Path("text").write_text("text")
    Path("there").mkdir()
    Path("there/scores.h5").write_text("")
    cases = [
        (["twins.h5", "--to", "kaggle", "-o", "out"], USAGE, "x/a.jpg and y/a.jpg would both be a.jpg"),
        (["feats.h5", "--to", "hloc", "-o", "out"], USAGE, "already"),
        (["other.h5", "matches.h5", "--to", "imc", "-o", "out"], BAD_INPUT, "with other features of a.jpg"),
        (["text", "--to", "imc", "-o", "out"], BAD_INPUT, "text: not an HDF5 file"),
        (["none.h5", "--to", "imc", "-o", "out"], BAD_INPUT, "none.h5: no such file"),
        (["feats.h5", "--to", "imc", "-o", "there"], BAD_OUTPUT, "scores.h5: exists already"),
    ]
    for arguments, code, message in cases:
        assert cli.main(["convert", *arguments]) == code
        out, err = capfd.readouterr()
        assert not out
        assert message in err
        assert len(err.splitlines()) == 1
    assert sorted(path.name for path in Path("there").iterdir()) == ["scores.h5"]


def test_all_files_appear_or_none(capfd: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/matches.h5").write_text("")
    assert cli.main(["convert", "feats.h5", "matches.h5", "--to", "kaggle", "-o", "out"]) == BAD_OUTPUT
    assert "matches.h5: exists already" in capfd.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["matches.h5"]
    assert cli.main(["convert", "feats.h5", "matches.h5", "--to", "imc", "-o", "scene", "--quiet"]) == 0
    assert cli.main(["convert", "scene", "--to", "hloc", "-o", "out", "--quiet"]) == BAD_OUTPUT
    assert [path.name for path in Path("out").iterdir()] == ["matches.h5"]


def test_a_full_disk_is_told_of_the_output_and_leaves_no_file(capfd: pytest.CaptureFixture[str]) -> None:
    inputs = ["convert", "feats.h5", "matches.h5", "--quiet"]
    assert cli.main([*inputs, "--to", "imc", "-o", "scene"]) == 0
    reason = "larger than this file system or process may write; give another output with -o"
    for arguments, name in (
        ([*inputs, "--to", "imc"], "descriptors"),  # the largest
        (["convert", "scene", "--to", "hloc", "-q"], "feats"),
    ):
        capfd.readouterr()
        with files_of_at_most(4000):
            assert cli.main([*arguments, "-o", "out"]) == BAD_OUTPUT
        assert capfd.readouterr().err.splitlines()[-1] == f"error: out/{name}.h5: {reason}"
        assert not list(Path("out").iterdir())


def test_flat_names_that_may_have_been_paths_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    with h5py.File("hloc.h5", "w") as file:
        group = file.create_group("d0-0.jpg/d0-2.jpg")
        group["matches0"] = np.array([1, -1])
        group["matching_scores0"] = np.array([1.0, 0.0])
    assert cli.main(["convert", "hloc.h5", "--to", "kaggle", "-o", "out"]) == 0
    assert "d0-0.jpg may be a name with / in it; give the feature file as well" in capfd.readouterr().err


def test_one_file_of_kaggles_is_not_taken_for_features(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "feats.h5", "matches.h5", "--to", "kaggle", "-o", "scene", "--quiet"]) == 0
    assert cli.main(["convert", "scene/matches.h5", "--to", "imc", "-o", "out"]) == USAGE
    assert "one file of several that belong together" in capfd.readouterr().err


def test_what_can_not_be_looked_up_is_an_input_that_can_not_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "z" * 300, "--to", "imc", "-o", "out"]) == BAD_INPUT
    assert f"{'z' * 300}: not readable" in capfd.readouterr().err


def test_images_without_descriptors_are_counted_and_no_files_made_of_none(capfd: pytest.CaptureFixture[str]) -> None:
    with h5py.File("hloc.h5", "w") as file:
        file["a.jpg/keypoints"] = file["c/b.jpg/keypoints"] = np.ones((3, 2))
    assert cli.main(["convert", "hloc.h5", "--to", "imc", "-o", "out"]) == NOTHING
    none = "error: hloc.h5: no image has keypoints and descriptors; give features with both\n"
    assert capfd.readouterr() == ("", none)
    assert not Path("out").exists()
    with h5py.File("hloc.h5", "r+") as file:
        file["d.jpg/keypoints"], file["d.jpg/descriptors"] = np.ones((3, 2)), np.ones((8, 3))
    assert cli.main(["convert", "hloc.h5", "--to", "imc", "-o", "out"]) == 0
    told = "warning: hloc.h5: 2 images left out as incomplete, such as a.jpg\nfeatures of 1 image\n"
    assert capfd.readouterr() == ("out\n", told)
