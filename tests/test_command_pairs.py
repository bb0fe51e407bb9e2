"""`sekd pairs` as a user types it."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from sekd_cli import cli
from sekd_cli.feature_file import FeatureReader, FeatureWriter

pytestmark = pytest.mark.usefixtures("in_a_folder_with_features")

SOME_FAILED, USAGE, NOTHING, BAD_INPUT, BAD_OUTPUT = 1, 2, 3, 4, 5  # exit codes


def listed(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> list[str]:
    assert cli.main(["pairs", *arguments]) == 0
    return capfdbinary.readouterr().out.decode().splitlines()


def test_pairs_of_a_feature_file_are_listed(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    everything = ["a.jpg\tb/b 1.jpg", "a.jpg c.jpg", "b/b 1.jpg\tc.jpg"]
    assert listed(capfdbinary, "feats.h5") == everything
    assert listed(capfdbinary, "feats.h5", "--exhaustive") == everything
    assert listed(capfdbinary, "feats.h5", "--sequential", "1") == [everything[0], everything[2]]
    assert listed(capfdbinary, "feats.h5", "--sequential", "1", "--loop") == [
        everything[0],
        everything[2],
        "c.jpg a.jpg",
    ]
    assert sorted(listed(capfdbinary, "feats.h5", "--sequential", "1", "--nearest", "2")) == everything


def test_queries_are_paired_with_the_others_alone(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    expected = ["c.jpg a.jpg", "c.jpg\tb/b 1.jpg"]
    assert listed(capfdbinary, "feats.h5", "--queries", "c*") == expected
    assert listed(capfdbinary, "feats.h5", "--queries", "c*", "--nearest", "5") == expected
    assert listed(capfdbinary, "feats.h5", "--queries", "c*", "--nearest", "5", "--exhaustive") == expected
    assert len(listed(capfdbinary, "feats.h5", "--queries", "c*", "--nearest", "1")) == 1
    assert listed(capfdbinary, "feats.h5", "--queries", "a*", "--queries", "b/*") == ["a.jpg c.jpg", "b/b 1.jpg\tc.jpg"]
    for pattern, reason in (("*", "all images fit"), ("d*", "no image fits")):
        assert cli.main(["pairs", "feats.h5", "--queries", pattern]) == NOTHING
        assert reason in capfdbinary.readouterr().err.decode()
    assert cli.main(["pairs", "feats.h5", "--queries", "c*", "--sequential", "1"]) == USAGE


def test_threads_are_of_nearest_alone(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    expected = listed(capfdbinary, "feats.h5", "--nearest", "1")
    for threads in ("1", "2"):
        assert listed(capfdbinary, "feats.h5", "--nearest", "1", "--threads", threads) == expected
    assert cli.main(["pairs", "feats.h5", "--threads", "2"]) == USAGE


def test_pairs_go_into_a_file_if_one_is_named(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["pairs", "feats.h5"]) == 0
    piped = capfdbinary.readouterr().out
    assert cli.main(["pairs", "feats.h5", "-o", "new/list.txt"]) == 0
    assert capfdbinary.readouterr().out == b"new/list.txt\n"
    assert Path("new/list.txt").read_bytes() == piped
    assert cli.main(["pairs", "feats.h5", "-o", "new/list.txt"]) == BAD_OUTPUT
    assert cli.main(["pairs", "feats.h5", "--sequential", "1", "-o", "new/list.txt", "--overwrite"]) == 0
    assert len(Path("new/list.txt").read_bytes()) < len(piped)
    assert cli.main(["pairs", "feats.h5", "--overwrite"]) == USAGE
    capfdbinary.readouterr()
    assert cli.main(["pairs", "feats.h5", "-o", "-"]) == 0
    assert (capfdbinary.readouterr().out, Path("-").exists()) == (piped, False)


def test_pairs_of_images_have_the_names_that_extract_gives(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/10.png", "photos/9.png", "photos/sub/x.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, np.zeros((8, 8), np.uint8))
    assert listed(capfdbinary, "photos", "--sequential", "1") == ["9.png 10.png", "10.png sub/x.png"]
    assert listed(capfdbinary, "photos/sub/*.png", "photos/9.png", "--root", ".") == ["photos/9.png photos/sub/x.png"]
    Path("-").write_bytes(Path("feats.h5").read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"photos/10.png\nphotos/9.png\n")))
    assert listed(capfdbinary, "-") == ["9.png 10.png"]
    assert cli.main(["pairs", "feats.h5", "--root", "photos"]) == USAGE


def test_images_that_are_no_files_or_cannot_be_looked_up_are_told_and_left_out(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("photos").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(f"photos/{name}", np.zeros((8, 8), np.uint8))
    os.mkfifo("photos/c.png")
    assert cli.main(["pairs", "photos", "z" * 300]) == SOME_FAILED
    out, err = capfd.readouterr()
    assert out == "a.png b.png\n"
    assert sorted(err.splitlines()) == [
        "error: photos/c.png: neither a file nor a folder, not an image; leave it out",
        f"error: {'z' * 300}: no such file; check the path",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["none.h5"], BAD_INPUT, "none.h5: no such file"),
        (["z" * 300 + ".h5"], BAD_INPUT, "give the features file"),
        (["photos", "--nearest", "3"], USAGE, "needs one feature file"),
        (["feats.h5", "--loop"], USAGE, "only with --sequential"),
        (["feats.h5", "--sequential", "0"], USAGE, "0 is not in the range"),
        (["photos"], NOTHING, "one image; a pair takes two"),
        (["nowhere/"], NOTHING, "nowhere: no such file"),
        (["feats.h5", "feats.h5"], USAGE, "feats.h5: give one feature file and nothing else"),
        (["photos", "feats.h5"], USAGE, "feats.h5: give one feature file and nothing else"),
    ],
)
def test_pairs_say_what_is_wrong(
    arguments: list[str], code: int, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    cv2.imwrite("photos/a.png", np.zeros((8, 8), np.uint8))
    assert cli.main(["pairs", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert complaint in err


def test_pairs_of_a_match_file_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    Path("pairs.txt").write_text("a.jpg c.jpg")
    cli.main(["match", "pairs.txt", "--quiet"])
    capfd.readouterr()
    assert cli.main(["pairs", "matches.h5"]) == BAD_INPUT
    assert capfd.readouterr() == ("", "error: matches.h5: holds matches, not features; give the features file\n")


def test_nearest_leaves_out_images_that_cannot_be_read(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with h5py.File("feats.h5", "r+") as file:
        file["c.jpg/scores"][0] = 7  # not what the checksum is of
    assert cli.main(["pairs", "feats.h5", "--nearest", "2"]) == SOME_FAILED
    out, err = capfdbinary.readouterr()
    assert out == b"a.jpg\tb/b 1.jpg\n"
    assert err.startswith(b"error: feats.h5: c.jpg: damaged")
    assert len(err.splitlines()) == 1


def test_a_file_that_may_not_be_read_is_no_image_and_no_wrong_option(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # click asks it
    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(h5py, "File", forbidden)
    to_imc = ["--to", "imc", "-o", "scene"]
    for command, options in (("pairs", []), ("info", []), ("match", []), ("refine", []), ("convert", to_imc)):
        assert cli.main([command, "feats.h5", *options]) == BAD_INPUT
        assert "permission denied" in capfd.readouterr().err.lower()


def test_lists_are_utf8_whatever_the_locale() -> None:
    with FeatureWriter(Path("named.h5"), {}) as writer, FeatureReader(Path("feats.h5")) as reader:
        for name in ("ä.jpg", "ö.jpg"):
            writer.write(name, reader.read("a.jpg"))
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "sekd_cli", "pairs", "named.h5"]
    done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, check=True)
    assert done.stdout.decode() == "ä.jpg ö.jpg\n"


def test_a_name_that_no_list_can_hold_is_told(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("photos").mkdir()
    for name in ("a.png", "b\nb.png", "c.png"):
        cv2.imwrite("photos/x.png", np.zeros((8, 8), np.uint8))
        Path("photos/x.png").rename(f"photos/{name}")
    assert cli.main(["pairs", "photos"]) == SOME_FAILED
    out, err = capfdbinary.readouterr()
    assert out == b"a.png c.png\n"
    assert len(err.splitlines()) == 1
