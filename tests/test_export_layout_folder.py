"""`--layout` of `sekd extract` and `sekd match`: a folder beside the file, whole or not at all."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from drawn_features import datasets
from hostile_images import drawn, encoded, write_files

from sekd_cli import cli

Run = Callable[..., int]
FILES = ["descriptors.h5", "keypoints.h5", "scales.h5", "scores.h5"]
SOME_FAILED, USAGE, BAD_OUTPUT, INTERRUPTED = 1, 2, 5, 130  # exit codes


@pytest.fixture
def run(untrained_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`sekd extract` and `sekd match` in a folder with three photographs."""
    monkeypatch.chdir(tmp_path)
    write_files(Path("photos"), {f"{name}.png": encoded(drawn(seed=seed), "PNG") for seed, name in enumerate("abc")})

    def extract_or_match(command: str, *arguments: str, stdin: bytes = b"") -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        fixed = {"extract": ["--weights", str(untrained_weights), "--threshold", "0", "--max-keypoints", "50"]}
        return cli.main([command, *fixed.get(command, []), "--device", "cpu", *arguments])

    return extract_or_match


def contents(folder: str) -> dict[str, dict[str, np.ndarray]]:
    """All datasets of all files in a folder."""
    return {path.stem: datasets(path) for path in Path(folder).iterdir()}


@pytest.mark.parametrize("layout", ["imc", "kaggle"])
def test_the_folder_is_what_convert_writes_and_its_path_is_printed(
    run: Run, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    assert run("extract", "photos", "-o", "out/feats.h5", "--layout", layout) == 0
    assert capsys.readouterr().out == f"out/{layout}\n"
    assert sorted(path.name for path in Path("out", layout).iterdir()) == FILES
    pairs = b"a.png b.png\nc.png b.png\n"
    options = ["--features", "out/feats.h5", "-o", "out/matches.h5", "--layout", layout]
    assert run("match", "-", *options, stdin=pairs) == 0
    assert capsys.readouterr().out == f"out/{layout}\n"
    assert cli.main(["convert", "out/feats.h5", "out/matches.h5", "--to", layout, "-o", "converted"]) == 0
    np.testing.assert_equal(contents(f"out/{layout}"), contents("converted"))
    assert len(contents("converted")["matches"]) == 2


def test_hlocs_layout_is_the_file_itself(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("extract", "photos", "--layout", "hloc") == 0
    assert capsys.readouterr().out == "feats.h5\n"
    assert sorted(path.name for path in Path().iterdir()) == ["feats.h5", "photos"]


def test_the_same_command_goes_on_and_makes_the_folder_anew_only_if_something_changed(run: Run) -> None:
    command = ["extract", "photos", "--layout", "imc"]
    Path("photos/c.png").rename("later.png")
    assert run(*command) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("imc").iterdir()}
    assert run(*command) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("imc").iterdir()} == before
    Path("later.png").rename("photos/c.png")
    assert run(*command) == 0
    whole = contents("imc")
    assert set(whole["scores"]) == {"a", "b", "c"}
    Path("imc/scores.h5").unlink()
    assert run(*command) == 0
    np.testing.assert_equal(contents("imc"), whole)


def test_a_file_of_the_same_size_and_another_time_is_another(run: Run) -> None:
    command = ["extract", "photos", "--layout", "imc"]
    assert run(*command) == 0
    before = Path("imc/keypoints.h5").stat().st_mtime_ns
    os.utime("feats.h5", ns=(1, 1))
    assert run(*command) == 0
    assert Path("imc/keypoints.h5").stat().st_mtime_ns > before


@pytest.mark.parametrize("step", range(0, 12, 3))
def test_an_interrupt_while_it_is_written_leaves_nothing_half(
    run: Run, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    assert run("extract", "photos") == 0
    real, calls = h5py.Group.__setitem__, iter(range(100))

    def until(group: h5py.Group, name: str, value: object) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt
        real(group, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "__setitem__", until)
        assert run("extract", "photos", "--layout", "imc") == INTERRUPTED
    assert list(Path("imc").iterdir()) == []
    assert run("extract", "photos", "--layout", "imc") == 0
    assert sorted(path.name for path in Path("imc").iterdir()) == FILES


def test_what_a_killed_process_left_is_cleared_away(run: Run) -> None:
    Path("imc").mkdir()
    Path("imc/.keypoints.h5.999999999.part").write_bytes(b"half")  # no such process
    Path("imc/.keypoints.h5.1.part").write_bytes(b"another's")
    assert run("extract", "photos", "--layout", "imc") == 0
    assert sorted(path.name for path in Path("imc").iterdir()) == [".keypoints.h5.1.part", *FILES]


def test_images_that_fail_are_left_out_of_it(run: Run) -> None:
    Path("photos/b.png").write_bytes(b"")
    assert run("extract", "photos", "--layout", "kaggle") == SOME_FAILED
    assert set(contents("kaggle")["scores"]) == {"a.png", "c.png"}


def test_keys_that_collide_stop_matching_at_once_though_no_pair_has_them(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(Path("photos/sub"), {"a.jpg": encoded(drawn(), "JPEG")})
    assert run("extract", "photos") == 0
    assert run("match", "-", "--layout", "imc", stdin=b"b.png c.png\n") == USAGE
    assert "a.png and sub/a.jpg would both be a in the imc layout" in capsys.readouterr().err
    assert not Path("matches.h5").exists()


def test_pairs_of_one_key_stop_matching_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("c-b", "b-a"):
        write_files(Path("photos"), {f"{name}.png": encoded(drawn(), "PNG")})
    assert run("extract", "photos") == 0
    pairs = b"gone.png a.png\nc-b.png a.png\nb-a.png c.png\na.png c-b.png\n"
    assert run("match", "-", "--layout", "imc", stdin=pairs) == USAGE
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: c-b.png and a.png, b-a.png and c.png would both be c-b-a in the imc layout; convert them separately"
    )
    assert not Path("matches.h5").exists()
    assert run("match", "-", "--layout", "kaggle", stdin=pairs) == SOME_FAILED


def test_a_key_that_an_image_in_the_file_has_stops_extraction_at_once(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", "photos", "--layout", "imc") == 0
    before, done = contents("imc"), datasets(Path("feats.h5"))
    write_files(Path("others/sub"), {"a.jpg": encoded(drawn(), "JPEG")})
    capsys.readouterr()
    assert run("extract", "others", "--layout", "imc") == USAGE
    assert capsys.readouterr().err == (
        "error: a.png and sub/a.jpg would both be a in the imc layout; convert them separately\n"
    )
    np.testing.assert_equal([contents("imc"), datasets(Path("feats.h5"))], [before, done])
    assert run("extract", "others", "--layout", "imc", "--overwrite") == 0
    assert set(contents("imc")["scores"]) == {"a"}


def test_what_would_stop_it_in_the_end_stops_it_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(Path("photos/sub"), {"a.jpg": encoded(drawn(), "JPEG")})
    Path("imc").mkdir()
    Path("imc/scores.h5").write_text("of somebody else")
    cases = [
        (["photos", "--layout", "imc"], USAGE, "a.png and sub/a.jpg would both be a in the imc layout"),
        (["photos/a.png", "--layout", "imc"], BAD_OUTPUT, "imc/scores.h5: exists already and was not made of feats.h5"),
        (["photos", "--layout", "kaggle", "--shard", "1/2"], USAGE, "--layout kaggle: not of a shard"),
        (["photos", "--layout", "kaggle", "-o", "scene"], USAGE, "-o scene: give a file such as scene/feats.h5"),
    ]
    for arguments, code, words in cases:
        assert run("extract", *arguments) == code
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert not Path("feats.h5").exists()
    assert Path("imc/scores.h5").read_text() == "of somebody else"
    assert run("extract", "photos/a.png", "--layout", "imc", "--overwrite") == 0
    assert sorted(path.name for path in Path("imc").iterdir()) == FILES
    assert run("extract", "photos/b.png", "--layout", "imc", "-o", "other.h5") == BAD_OUTPUT
    assert run("match", "-", "--layout", "imc", "-o", "scene", stdin=b"a.png b.png\n") == USAGE
    assert "give a file such as scene/matches.h5; --layout imc is then in scene/imc" in capsys.readouterr().err
