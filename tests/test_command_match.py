"""`sekd match` as a user types it."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from drawn_features import NAMES, TURNED_ATTRIBUTES, drawn_features, turned_by, write_views
from PIL import Image

import sekd_cli
from sekd_cli import cli
from sekd_cli.feature_file import FeatureWriter
from sekd_cli.match_file import MatchReader
from sekd_cli.match_pipeline import PairMatcher
from sekd_cli.match_writing import Outcome

MISSING_PAIR, NOTHING, BAD_INPUT, BAD_OUTPUT, USAGE = 1, 3, 4, 5, 2  # exit codes


@pytest.fixture(autouse=True)
def with_a_list(in_a_folder_with_features: None) -> None:
    """The defaults are files in the current folder."""
    Path("pairs.txt").write_text("# two pairs\na.jpg\tb/b 1.jpg\n\na.jpg c.jpg\n", encoding="utf-8")


def pairs_in(path: str) -> list[tuple[str, str]]:
    with MatchReader(Path(path)) as reader:
        return list(reader.pairs())


def test_pairs_are_matched_with_the_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match", "pairs.txt"]) == 0
    out, err = capfd.readouterr()
    assert out == "matches.h5\n"
    assert "2 pairs done, 0 failed" in err
    assert len(err.splitlines()) == 1
    assert pairs_in("matches.h5") == [("a.jpg", "b/b 1.jpg"), ("a.jpg", "c.jpg")]
    with MatchReader(Path("matches.h5")) as reader:
        matches = reader.read(("a.jpg", "c.jpg"))
        assert json.loads(str(reader.attributes["settings"]))["ratio"] == 1.0
    expected = drawn_features(0).descriptors @ drawn_features(2).descriptors.T
    for one, other in matches.indices():
        assert expected[one].argmax() == other


@pytest.mark.parametrize("device", ["auto", "mps"])
def test_where_there_is_an_apple_gpu_the_cpu_matches(
    device: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert cli.main(["match", "pairs.txt", "--device", device]) == 0
    assert ("--device mps: matched on the CPU" in capfd.readouterr().err) == (device == "mps")


def test_the_same_again_does_nothing_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["match", "pairs.txt"])
    before = Path("matches.h5").read_bytes()
    capfd.readouterr()
    assert cli.main(["match", "pairs.txt"]) == 0
    assert "0 pairs done, 2 done before" in capfd.readouterr().err
    assert Path("matches.h5").read_bytes() == before


def test_pairs_come_from_a_pipe() -> None:
    command = f"{sys.executable} -m sekd_cli"
    line = f"{command} pairs feats.h5 --exhaustive | {command} match - -o all.h5 --device cpu"
    environment = os.environ | {"PYTHONPATH": str(Path(sekd_cli.__file__).parents[1])}
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "all.h5\n"
    assert len(pairs_in("all.h5")) == 3


@pytest.mark.parametrize(("here", "given"), [("cafe\u0301", "caf\u00e9"), ("caf\u00e9", "cafe\u0301")])
def test_names_are_as_in_the_feature_file_whether_accents_are_apart_or_not(here: str, given: str) -> None:
    """MacOS takes them apart in names of files, a keyboard doesn't; a list of both has pairs twice."""
    with h5py.File("feats.h5", "r+") as file:
        file.move("c.jpg", f"{here}.jpg")
    lines = f"a.jpg {given}.jpg", f"a.jpg {here}.jpg", f"{here}.jpg {given}.jpg"
    Path("pairs.txt").write_text("\n".join(lines), encoding="utf-8")
    assert cli.main(["match", "pairs.txt"]) == 0
    assert pairs_in("matches.h5") == [("a.jpg", f"{here}.jpg")]


def test_images_without_features_are_told_one_line_each(capfd: pytest.CaptureFixture[str]) -> None:
    Path("pairs.txt").write_text("a.jpg gone.jpg\nb.jpg c.jpg\na.jpg c.jpg\n", encoding="utf-8")
    assert cli.main(["match", "pairs.txt", "--failures", "failed.jsonl"]) == MISSING_PAIR
    out, err = capfd.readouterr()
    assert out == "matches.h5\n"
    lines = err.splitlines()
    assert [line.split(":")[:2] for line in lines[:2]] == [
        ["error", " a.jpg and gone.jpg"],
        ["error", " b.jpg and c.jpg"],
    ]
    assert "1 pair done, 2 failed" in lines[2]
    assert pairs_in("matches.h5") == [("a.jpg", "c.jpg")]
    failed = [json.loads(line) for line in Path("failed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["pair"] for record in failed] == [["a.jpg", "gone.jpg"], ["b.jpg", "c.jpg"]]
    assert "no features of gone.jpg" in failed[0]["reason"]


def test_the_other_pairs_of_an_image_without_features_are_counted_alone(capfd: pytest.CaptureFixture[str]) -> None:
    Path("pairs.txt").write_text("a.jpg gone.jpg\ngone.jpg c.jpg\na.jpg c.jpg\n", encoding="utf-8")
    assert cli.main(["match", "pairs.txt"]) == MISSING_PAIR
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "2 failed (1 reason, told once)" in lines[1]


def test_repeated_pairs_are_matched_once(capfd: pytest.CaptureFixture[str]) -> None:
    Path("pairs.txt").write_text("a.jpg c.jpg\nc.jpg a.jpg\na.jpg a.jpg\na.jpg c.jpg\n", encoding="utf-8")
    assert cli.main(["match", "pairs.txt"]) == 0
    assert "3 pairs left out" in capfd.readouterr().err
    assert pairs_in("matches.h5") == [("a.jpg", "c.jpg")]


def test_shards_together_are_the_whole() -> None:
    lines = [f"{one}\t{other}\n" for one in NAMES for other in NAMES if one < other]
    Path("pairs.txt").write_text("".join(lines), encoding="utf-8")
    for shard in ("1/2", "2/2"):
        assert cli.main(["match", "pairs.txt", "--shard", shard, "-o", f"{shard[0]}.h5"]) == 0
    one, other = pairs_in("1.h5"), pairs_in("2.h5")
    assert len(one) + len(other) == len({*one, *other}) == 3


def test_more_shards_than_pairs_leave_empty_files_that_merge(capfd: pytest.CaptureFixture[str]) -> None:
    files = [f"{number}.h5" for number in (1, 2, 3)]
    for number, path in enumerate(files, start=1):
        assert cli.main(["match", "pairs.txt", "--shard", f"{number}/3", "-o", path, "--device", "cpu"]) == 0
        assert capfd.readouterr().out == f"{path}\n"
    assert [len(pairs_in(path)) for path in files] == [0, 1, 1]
    assert cli.main(["merge", *files, "-o", "all.h5"]) == 0
    assert len(pairs_in("all.h5")) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["pairs.txt", "--features", "none.h5"], BAD_INPUT, "none.h5: no such file"),
        (["pairs.txt", "--features", "pairs.txt"], BAD_INPUT, "pairs.txt: not an HDF5 file"),
        (["none.txt"], BAD_INPUT, "none.txt"),
        (["feats.h5"], BAD_INPUT, "feats.h5: an HDF5 file"),
        (["empty.txt"], NOTHING, "empty.txt: no pairs"),
        (["gone.txt"], NOTHING, "no pair could be matched"),
        (["clash.txt"], USAGE, "x/y and x-y"),
        (["pairs.txt", "-o", "feats.h5"], USAGE, "is the feature file"),
        (["pairs.txt", "-o", "feats.h5", "--overwrite"], USAGE, "is the feature file"),
        (["pairs.txt", "--features", "pairs.h5"], BAD_INPUT, "pairs.h5: holds matches, not features"),
        (["pairs.txt", "-o", "empty.txt/m.h5"], BAD_OUTPUT, "empty.txt/m.h5"),
        (["pairs.txt", "-o", "gone.txt"], BAD_OUTPUT, "not an HDF5 file"),
        (["pairs.txt", "--ratio", "0"], USAGE, "--ratio 0"),
        (["pairs.txt", "--min-similarity", "7"], USAGE, "--min-similarity"),
        (["pairs.txt", "--dual-softmax", "-1"], USAGE, "--dual-softmax"),
        (["pairs.txt", "--min-probability", "0.5"], USAGE, "needs --dual-softmax"),
        (["pairs.txt", "--threshold", "2"], USAGE, "only with --verify"),
        (["pairs.txt", "--min-inliers", "50"], USAGE, "--min-inliers and --refine: only with --verify"),
        (["pairs.txt", "--camera", "500"], USAGE, "only with --verify essential"),
        (["pairs.txt", "--verify", "homography", "--camera", "500"], USAGE, "only with --verify essential"),
        (["pairs.txt", "--verify", "fundamental", "--images", "."], USAGE, "only with --refine or --verify essential"),
        (["pairs.txt", "--cache", "nan"], USAGE, "--cache nan: give GB"),
        (["pairs.txt", "--cache", "inf"], USAGE, "--cache inf: give GB"),
        (["pairs.txt", "--failures", "feats.h5"], USAGE, "--failures feats.h5: is the feature file"),
        (["pairs.txt", "--failures", "./pairs.txt"], USAGE, "pairs.txt: is the pairs file"),
        (["pairs.txt", "--failures", "matches.h5"], USAGE, "matches.h5: is the match file"),
        (["pairs.txt", "--verify", "essential"], USAGE, "--camera"),
        (["pairs.txt", "--verify", "essential", "--camera", "wide"], USAGE, "--camera wide"),
        (["pairs.txt", "--verify", "essential", "--camera", "5,5"], USAGE, "--camera 5,5: give F"),
        (["pairs.txt", "--verify", "homography", "--threshold", "0"], USAGE, "--threshold 0"),
        (["pairs.txt", "--device", "toaster"], USAGE, "--device toaster"),
        (["pairs.txt", "--shard", "3/2"], USAGE, "--shard 3/2"),
    ],
)
def test_what_is_wrong_gets_one_line_and_its_own_exit_code(
    arguments: list[str], code: int, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").write_text("# nothing\n", encoding="utf-8")
    Path("gone.txt").write_text("x y\n", encoding="utf-8")
    Path("clash.txt").write_text("x/y a.jpg\nx-y a.jpg\n", encoding="utf-8")
    with h5py.File("pairs.h5", "w") as file:
        file.attrs.update({"sekd_schema": 1, "content": "matches"})
    before = Path("feats.h5").read_bytes()
    assert cli.main(["match", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert complaint in err
    assert "Traceback" not in err
    assert Path("feats.h5").read_bytes() == before
    assert Path("pairs.txt").read_text(encoding="utf-8").startswith("# two pairs")


def test_rotations_need_features_that_have_turns(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match", "pairs.txt", "--rotations"]) == BAD_INPUT
    assert (
        "feats.h5: holds no descriptors of turned photographs; run sekd extract --rotations" in capfd.readouterr().err
    )
    assert not Path("matches.h5").exists()


def test_rotations_match_what_lies_turned(capfd: pytest.CaptureFixture[str]) -> None:
    with FeatureWriter(Path("turned.h5"), TURNED_ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, turned_by(drawn_features(view), view))
    assert cli.main(["match", "pairs.txt", "-f", "turned.h5", "--rotations"]) == 0
    with MatchReader(Path("matches.h5")) as reader:
        found = [reader.read(pair) for pair in pairs_in("matches.h5")]
        assert json.loads(str(reader.attributes["settings"]))["rotations"] is True
    assert [matches.turn for matches in found] == [1, 2]
    assert min(len(matches.indices()) for matches in found) >= 55
    assert cli.main(["match", "pairs.txt", "--features", "turned.h5"]) == BAD_OUTPUT
    assert "rotations True there, False now" in capfd.readouterr().err


def test_other_settings_need_overwrite(capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["match", "pairs.txt"])
    assert cli.main(["match", "pairs.txt", "--ratio", "0.8"]) == BAD_OUTPUT
    assert "ratio 1.0 there, 0.8 now" in capfd.readouterr().err
    assert cli.main(["match", "pairs.txt", "--ratio", "0.8", "--overwrite"]) == 0


def test_changed_features_need_update(capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["match", "pairs.txt"])
    write_views(Path("feats.h5"), NAMES[::-1])
    assert cli.main(["match", "pairs.txt"]) == BAD_OUTPUT
    assert "--update" in capfd.readouterr().err
    assert cli.main(["match", "pairs.txt", "--update"]) == 0
    assert cli.main(["match", "pairs.txt", "-o", "fresh.h5"]) == 0
    with MatchReader(Path("matches.h5")) as updated, MatchReader(Path("fresh.h5")) as fresh:
        assert list(updated.pairs()) == list(fresh.pairs())
        for pair in fresh.pairs():
            np.testing.assert_array_equal(updated.read(pair).matches0, fresh.read(pair).matches0)
            np.testing.assert_array_equal(updated.read(pair).scores0, fresh.read(pair).scores0)


def test_how_pairs_are_verified_is_kept_and_another_way_needs_overwrite(capfd: pytest.CaptureFixture[str]) -> None:
    verified = ["match", "pairs.txt", "--verify", "homography"]
    assert cli.main([*verified, "--threshold", "2", "--min-inliers", "20"]) == 0
    with MatchReader(Path("matches.h5")) as reader:
        settings = json.loads(str(reader.attributes["settings"]))
    kept = {
        "model": "homography",
        "threshold": 2,
        "min_inliers": 20,
        "camera": None,
        "verification": 133,
    }
    assert kept.items() <= settings.items()
    for other in (["match", "pairs.txt"], verified, [*verified, "--threshold", "2"]):
        assert cli.main(other) == BAD_OUTPUT
        assert "holds matches made otherwise" in capfd.readouterr().err
    with h5py.File("matches.h5", "r+") as file:
        settings["verification"] = 128  # as a version of sekd made it that kept others
        file.attrs["settings"] = np.bytes_(json.dumps(settings, sort_keys=True).encode())
    assert cli.main([*verified, "--threshold", "2", "--min-inliers", "20"]) == BAD_OUTPUT
    assert "verification 128 there, 133 now" in capfd.readouterr().err


@pytest.mark.parametrize("linked", [True, False])
def test_the_feature_file_is_spared_by_whatever_path(linked: bool) -> None:
    before = Path("feats.h5").read_bytes()
    Path("link.h5").symlink_to("feats.h5")
    same = Path("link.h5") if linked else Path("feats.h5").absolute()
    assert cli.main(["match", "pairs.txt", "-o", str(same), "--overwrite"]) == USAGE
    assert Path("feats.h5").read_bytes() == before


def test_memory_and_threads_are_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, bool, int]] = []

    def match_nothing(*given: Any, matcher: PairMatcher, **_: object) -> Iterator[Outcome]:
        told.append((given[3].threads, given[3].update, matcher.cache_bytes))
        return iter(())

    monkeypatch.setattr("sekd_cli.commands.match_run.match_all", match_nothing)
    options = ["--cache", "2.5", "--threads", "3", "--update", "--device", "cpu"]
    assert cli.main(["match", "pairs.txt", *options]) == 0
    assert told == [(3, True, 2_500_000_000 // 2)]  # two pairs, a process each


def test_quiet_leaves_the_path_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match", "pairs.txt", "--quiet"]) == 0
    assert capfd.readouterr() == ("matches.h5\n", "")


def test_focal_lengths_come_from_the_images(capfd: pytest.CaptureFixture[str]) -> None:
    Path("photos/b").mkdir(parents=True)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 36  # focal length in mm of a film
    for name in NAMES:
        Image.new("L", (400, 400)).save(f"photos/{name}", exif=exif if name != "c.jpg" else Image.Exif())
    arguments = ["match", "pairs.txt", "--verify", "essential", "--min-inliers", "0"]
    assert cli.main([*arguments, "--images", "photos", "-o", "exif.h5"]) == MISSING_PAIR
    assert "c.jpg: no focal length in EXIF data" in capfd.readouterr().err
    assert pairs_in("exif.h5") == [("a.jpg", "b/b 1.jpg")]
    focal = 36 / 43.267 * 400 * np.sqrt(2)
    assert cli.main([*arguments, "--camera", f"{focal}", "-o", "given.h5"]) == 0
    with MatchReader(Path("exif.h5")) as one, MatchReader(Path("given.h5")) as other:
        pair = ("a.jpg", "b/b 1.jpg")
        np.testing.assert_array_equal(one.read(pair).matches0, other.read(pair).matches0)


def test_pairs_without_any_focal_length_are_told_so_once_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    Path("photos/b").mkdir(parents=True)
    for name in NAMES:
        Image.new("L", (400, 400)).save(f"photos/{name}")
    assert cli.main(["match", "pairs.txt", "--verify", "essential", "--images", "photos"]) == NOTHING
    lines = capfd.readouterr().err.splitlines()
    told, more = (line.removeprefix("error: ").split(": ") for line in lines if "focal" in line)
    assert told[0] in {"a.jpg and b/b 1.jpg", "a.jpg and c.jpg"}
    assert more[0] == "1 more pair"
    assert told[1] == more[1] == "no focal length in EXIF data; give --camera"
    assert any("2 failed (1 reason, told once)" in line for line in lines)


def test_names_of_any_bytes_pass_from_pairs_to_match(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["#1 ü.jpg", " spaces .jpg", "b.jpg"]
    write_views(Path("feats.h5"), names)
    cli.main(["pairs", "feats.h5"])
    out = capfdbinary.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(out)))
    assert cli.main(["match", "-", "-o", "m.h5"]) == 0
    assert {name for pair in pairs_in("m.h5") for name in pair} == set(names)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_list_of_failures_on_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs.txt").write_text("a.jpg\tgone.jpg\n")
    assert cli.main(["match", "pairs.txt", "--device", "cpu", "--failures", "/dev/full"]) == 5
    assert "/dev/full: No space left on device; give another --failures" in capsys.readouterr().err
