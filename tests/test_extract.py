import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cv2
import h5py
import numpy as np
import pytest
from full_disk import pwrite_until_full
from hostile_images import broken_files, drawn, encoded, whole_files, write_files

from sekd_cli import cli, images
from sekd_cli.batch_extraction import BatchExtractor, Job
from sekd_cli.counting import counted
from sekd_cli.errors import ImageError
from sekd_cli.extraction import Extractor
from sekd_cli.extraction_pipeline import PipelineSettings, _batches, _Extraction, _Sized
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.networks.tracing import traced
from sekd_cli.pyramid import PreparedImage
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.tiles import windows
from sekd_cli.workers import Worker

Extract = Callable[..., int]
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")


@pytest.fixture
def extract(untrained_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """`sekd extract` in a folder of its own, with an untrained network that fires anywhere."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, stdin: bytes = b"") -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        fixed = ["--weights", str(untrained_weights), "--threshold", "0", "--device", "cpu"]
        return cli.main(["extract", *fixed, *map(str, arguments)])

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, one of them in a subfolder."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.jpg", "b.png", "sub/c d.jpg")):
        write_files(folder / "sub", {})
        (folder / name).write_bytes(encoded(drawn(seed=seed), "JPEG" if name.endswith("jpg") else "PNG"))
    return folder


NAMES = ["a.jpg", "b.png", "sub/c d.jpg"]


def stored(path: Path | str = "feats.h5") -> dict[str, StoredFeatures]:
    with FeatureReader(Path(path)) as reader:
        return {name: reader.read(name) for name in reader.names()}


def assert_same(one: dict[str, StoredFeatures], other: dict[str, StoredFeatures]) -> None:
    np.testing.assert_equal(*({name: vars(features) for name, features in each.items()} for each in (one, other)))


def test_a_folder_becomes_a_file_whose_path_is_all_that_stdout_gets(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("photos", "-o", "out/f.h5", "--max-keypoints", 50) == 0
    captured = capsys.readouterr()
    assert captured.out == "out/f.h5\n"
    features = stored("out/f.h5")
    assert sorted(features) == NAMES
    total = sum(map(len, features.values()))
    assert captured.err.startswith(f"3 images done, 0 failed; {total} keypoints, ")
    for one in features.values():
        assert 0 < len(one) <= 50
        assert (np.diff(one.scores) <= 0).all()
        assert one.descriptors.shape == (len(one), 64)
        assert one.image_size == (128, 96)


def test_the_file_tells_how_it_was_made(extract: Extract, photos: Path) -> None:
    extract("photos")
    with h5py.File("feats.h5") as file:
        settings = json.loads(file.attrs["settings"])
        assert file.attrs["network"] == b"compact"
        assert len(file.attrs["weights_sha256"]) == 64
        assert b"top-left" in file.attrs["pixel_convention"]
    assert settings["max_keypoints"] == 2048
    assert settings["threshold"] == 0
    assert settings["max_size"] == 1600


def test_the_same_command_goes_on_and_does_nothing_twice(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.png").rename("elsewhere.png")
    assert extract("photos") == 0
    Path("elsewhere.png").rename(photos / "b.png")
    before = stored()
    assert extract("photos") == 0
    assert "1 image done, 2 done before, 0 failed" in capsys.readouterr().err
    assert sorted(stored()) == NAMES
    assert_same({name: stored()[name] for name in before}, before)
    content = Path("feats.h5").read_bytes()
    assert extract("photos") == 0
    captured = capsys.readouterr()
    assert captured.out == "feats.h5\n"
    assert "0 images done, 3 done before, 0 failed" in captured.err
    assert Path("feats.h5").read_bytes() == content


def test_other_settings_are_refused_and_overwriting_starts_afresh(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("photos")
    assert extract("photos", "--max-keypoints", 10) == 5
    captured = capsys.readouterr()
    assert "max_keypoints 2048 there, 10 now" in captured.err
    assert "--overwrite" in captured.err
    assert extract("photos/a.jpg", "--max-keypoints", 10, "--overwrite") == 0
    assert {name: len(features) for name, features in stored().items()} == {"a.jpg": 10}


def test_other_weights_are_refused(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract("photos")
    import torch

    from sekd_cli.networks import CompactNetwork
    from sekd_cli.networks.weights_file import save_network

    torch.manual_seed(5)
    save_network(tmp_path / "other.safetensors", CompactNetwork(), {})
    assert cli.main(["extract", "photos", "--weights", "other.safetensors", "--threshold", "0"]) == 5


def test_changed_images_are_noticed_and_updated_on_request(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("photos")
    before = stored()
    (photos / "b.png").write_bytes(encoded(drawn(seed=9), "PNG"))
    assert extract("photos") == 5
    assert "1 image with another size, modification time or mask than when extracted: b.png" in capsys.readouterr().err
    assert_same(stored(), before)
    assert extract("photos", "--update") == 0
    after = stored()
    assert not np.array_equal(after["b.png"].keypoints, before["b.png"].keypoints)
    after["b.png"] = before["b.png"]
    assert_same(after, before)


def test_paths_come_on_stdin_one_a_line_or_ended_by_zero(extract: Extract, photos: Path) -> None:
    assert extract("-", "-o", "lines.h5", stdin=b"\xef\xbb\xbfphotos/a.jpg\r\n\nphotos/sub/c d.jpg\n") == 0
    assert sorted(stored("lines.h5")) == ["a.jpg", "c d.jpg"]
    (photos / "a.jpg").rename(photos / "new\nline.jpg")
    assert extract("-", "-o", "zero.h5", "--root", "photos", stdin=b"photos/new\nline.jpg\0photos/sub/c d.jpg\0") == 0
    assert sorted(stored("zero.h5")) == ["new\nline.jpg", "sub/c d.jpg"]


def test_paths_that_would_mean_more_than_was_meant_are_refused(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):  # at its zero bytes "." is a path of its own, and / would be
        for text in ("\ufeffa.jpg\r\n", "a.jpg\r\nb.jpg\r\n", "a.jpg\nb.jpg"):
            assert extract("-", stdin=text.encode(encoding)) == 2
            assert "in UTF-16; save it as UTF-8" in capsys.readouterr().err
    assert extract("") == 2  # "$FOLDER" of a variable that isn't set
    assert "an empty path" in capsys.readouterr().err
    assert not Path("feats.h5").exists()


def test_one_bad_image_stops_none_and_its_reason_is_told_and_listed(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.jpg").write_bytes(b"")
    assert extract("photos", "missing.jpg", "--failures", "failures.jsonl") == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0] == "error: photos/a.jpg: an empty file; copy it again"
    assert lines[1] == "error: missing.jpg: no such file; check the path"
    assert lines[2].startswith("2 images done, 2 failed; ")
    assert len(lines) == 3
    assert captured.out == "feats.h5\n"
    assert sorted(stored()) == ["b.png", "sub/c d.jpg"]
    listed = [json.loads(line) for line in Path("failures.jsonl").read_text().splitlines()]
    assert sorted(one["name"] for one in listed) == ["a.jpg", "missing.jpg"]
    assert all(one["reason"].startswith(one["path"]) for one in listed)


def test_too_little_memory_for_one_image_stops_none(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To decode it, or for the network, which the images of its batch then go through one by one."""
    write_files(photos, {"even.png": encoded(np.full((96, 128), 90, np.uint8), "PNG")})
    read, together = images.read_image, Extractor.extract

    def read_small(path: Path, **options: Any) -> images.Photograph:
        if path.name == "a.jpg":
            raise MemoryError
        return read(path, **options)

    def extract_uneven(self: Extractor, batch: list[PreparedImage]) -> list[StoredFeatures]:
        if not all(np.ptp(image.levels[0].grey) for image in batch):
            raise ImageError("too little memory")
        return together(self, batch)

    monkeypatch.setattr("sekd_cli.batch_extraction.read_image", read_small)
    monkeypatch.setattr(Extractor, "extract", extract_uneven)
    assert extract("photos", "--threads", 1, "--batch-size", 4) == 1
    error = capsys.readouterr().err
    assert "photos/a.jpg: too large for the memory; make it smaller" in error
    assert "photos/even.png: too little memory" in error
    assert sorted(stored()) == ["b.png", "sub/c d.jpg"]


def test_a_failed_image_is_tried_again_when_it_was_mended(extract: Extract, photos: Path) -> None:
    content = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(content[:100])
    assert extract("photos") == 1
    (photos / "a.jpg").write_bytes(content)
    assert extract("photos") == 0
    assert sorted(stored()) == NAMES


@pytest.mark.parametrize("arguments", [["empty"], ["-"], ["missing.jpg"], ["empty", "notes.txt"]])
def test_nothing_to_do_is_three(extract: Extract, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("no image")
    assert extract(*arguments) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "case",
    [
        (["--weights", "missing.safetensors"], 4, "no such weights file"),
        (["--output", "photos"], 5, "is a folder"),
        (["--output", "-"], 5, "-: HDF5 can't go to standard output; give a file with -o"),
        (["--output", "/dev/stdout"], 5, "/dev/stdout: HDF5 can't go to standard output; give a file with -o"),
        (["--output", "photos/a.jpg"], 5, "not an HDF5 file, so it stays"),
        (["--device", "cuda:99"], 7, "--device cuda:99"),
        (["--device", "toaster"], 2, "--device toaster"),
        (["--threshold", "2"], 2, "--threshold"),
        (["--max-size", "-3"], 2, "--max-size"),
        (["--max-pixels", "-3"], 2, "--max-pixels"),
        (["--tile", "7"], 2, "--tile"),
        (["--shard", "5/4"], 2, "--shard"),
        (["--failures", "photos/a.jpg/no/folder"], 5, "--failures"),
        (["--batch-size", "0"], 2, "batch-size"),
        (["--masks", "missing"], 2, "masks"),
    ],
)
def test_what_is_wrong_with_the_whole_command_has_its_exit_code(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str], case: tuple[list[str], int, str]
) -> None:
    arguments, code, words = case
    assert extract("photos", *arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


def test_a_second_writer_is_told_to_wait(extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract("photos")
    with FeatureReader(Path("feats.h5")) as reader:
        attributes = reader.attributes
    with FeatureWriter(Path("feats.h5"), attributes):
        assert extract("photos") == 5
    assert "another process is using it" in capsys.readouterr().err


@pytest.mark.parametrize("room", [3, 10, 15, 20, 30])
def test_a_disk_that_fills_up_is_said_and_the_same_command_goes_on(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    extract("photos", "-o", "whole.h5")
    capsys.readouterr()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite_until_full(room))
    assert extract("photos") == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: feats.h5: the disk is full; free some space; what was done is kept" in captured.err
    monkeypatch.setattr(os, "pwrite", real)
    before = stored()
    assert extract("photos") == 0
    assert f"{counted(3 - len(before), 'image')} done" in capsys.readouterr().err
    assert_same(stored(), stored("whole.h5"))


def test_a_disk_that_is_full_from_the_beginning_leaves_no_file(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "pwrite", pwrite_until_full(0))
    assert extract("photos") == 5
    assert capsys.readouterr().err == "error: feats.h5: the disk is full; free some space\n"
    assert not list(Path().glob("*feats.h5*"))


def test_masks_are_named_as_colmap_does_and_black_is_ignored(extract: Extract, photos: Path) -> None:
    mask = np.full((96, 128), 255, dtype=np.uint8)
    mask[:, :64] = 0
    write_files(Path("masks/sub"), {})
    cv2.imwrite("masks/a.jpg.png", mask)
    cv2.imwrite("masks/sub/c d.jpg.png", mask[:, ::-1])
    assert extract("photos", "--masks", "masks", "--nms-radius", 2) == 0
    features = stored()
    assert features["a.jpg"].keypoints[:, 0].round().min() >= 64
    assert features["sub/c d.jpg"].keypoints[:, 0].round().max() < 64
    assert features["b.png"].keypoints[:, 0].min() < 64 < features["b.png"].keypoints[:, 0].max()
    cv2.imwrite("masks/a.jpg.png", mask[:, :1])
    assert extract("photos", "--masks", "masks", "--nms-radius", 2) == 5, "the mask changed"
    assert extract("photos", "--masks", "masks", "--nms-radius", 2, "--update") == 1, "and has the wrong size"


def test_shards_together_are_the_whole(extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract("photos", "-o", "all.h5")
    parts: dict[str, StoredFeatures] = {}
    for number in (1, 2, 3, 4):
        assert extract("photos", "-o", f"{number}.h5", "--shard", f"{number}/4") == 0, "the fourth has nothing to do"
        parts |= stored(f"{number}.h5")
    assert_same(parts, stored("all.h5"))
    assert extract("photos", "-o", "1.h5", "--shard", "2/4") == 5
    assert "shard 1/4 there, 2/4 now" in capsys.readouterr().err


def test_processes_of_torchrun_write_files_of_their_own(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "1"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sekd_cli.commands.extract_run.wait_for_other_ranks", lambda: None)  # there are none
    assert extract("photos") == 0
    assert capsys.readouterr().out == "feats.2-of-3.h5\n"
    assert sorted(stored("feats.2-of-3.h5")) == ["b.png"]


def test_a_batch_has_as_many_images_as_the_settings_let_and_only_equal_ones() -> None:
    small, other, large = ((64, 64), (32, 32)), ((64, 96), (32, 64)), ((640, 640), (320, 320))
    order = [*[small] * 5, other, *[large] * 2, *[small] * 2]
    sized = [_Sized(cast(Job, sizes), sizes, large=False, huge=False) for sizes in order]

    def batches(**options: Any) -> list[list[Any]]:
        return [cast(Any, batch).jobs for batch in _batches(sized, PipelineSettings(**options))]

    assert batches() == [[sizes] for sizes in order]
    assert batches(batch_size=4) == [[small] * 4, [small] * 3, [other], [large] * 2]
    few = batches(batch_size=4, batch_pixels=12_000)
    assert few == [[small] * 2, [small] * 2, [other], [large], [large], [small] * 2, [small]]


def test_four_batches_wait_to_become_full_and_then_the_fullest_is_done() -> None:
    def sized(name: str) -> _Sized:
        return _Sized(cast(Job, name), ((64, ord(name)),), large=name in "XY", huge=False)

    waiting = _batches(map(sized, "abbcdefghijXkY"), PipelineSettings(batch_size=3))
    assert ["".join(cast(Any, batch).jobs) for batch in waiting] == ["X", "bb", "Y", "a", *"cdefghijk"]


def test_what_is_extracted_does_not_depend_on_the_batch(extract: Extract, photos: Path) -> None:
    for number in range(8):  # of one size, and lying differently
        (photos / f"more{number}.png").write_bytes(encoded(drawn(64, 96, seed=number), "PNG", orientation=1 + number))
    assert extract("photos", "-o", "default.h5") == 0
    assert extract("photos", "-o", "one.h5", "--batch-size", 1) == 0
    default, one = stored("default.h5"), stored("one.h5")
    assert default.keys() == one.keys()
    for name, features in one.items():
        np.testing.assert_allclose(default[name].keypoints, features.keypoints, atol=1e-3)
        np.testing.assert_allclose(default[name].descriptors, features.descriptors, atol=1e-4)


def test_batches_and_half_precision(extract: Extract, photos: Path) -> None:
    (photos / "small.png").write_bytes(encoded(drawn(40, 40), "PNG"))
    assert extract("photos", "-o", "one.h5") == 0
    assert extract("photos", "-o", "batch.h5", "--batch-size", 2, "--descriptor-dtype", "float16") == 0
    one, batch = stored("one.h5"), stored("batch.h5")
    assert one.keys() == batch.keys()
    for name in one:
        np.testing.assert_allclose(batch[name].keypoints, one[name].keypoints, atol=1e-2)
        np.testing.assert_allclose(batch[name].descriptors, one[name].descriptors, atol=2e-3)


def test_every_option_counts(extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(*options: str | int) -> StoredFeatures:
        assert extract("photos/a.jpg", "--scales", 1, "--threads", 1, "--overwrite", *options) == 0
        return stored()["a.jpg"]

    assert set(features("--max-size", 64).scales) == {2}
    few = features("--nms-radius", 10).keypoints
    apart = np.abs(few[:, None] - few).max(axis=-1)
    assert len(few) > 1
    assert apart[~np.eye(len(few), dtype=bool)].min() > 8  # each was moved by a pixel at most
    features("--descriptor-dtype", "float16")
    with h5py.File("feats.h5") as file:
        assert (file["a.jpg/descriptors"].dtype, file["a.jpg/keypoints"].dtype) == (np.float16, np.float32)
    tiles = []
    monkeypatch.setattr("sekd_cli.extraction.windows", lambda *given: tiles.append(given[2]) or windows(*given))
    write_files(Path("wide"), {"a.png": encoded(drawn(32, 1200), "PNG")})
    assert extract("wide", "-o", "wide.h5", "--scales", 1, "--max-size", 0, "--tile", 1024, "--threads", 1) == 0
    assert tiles == [1024]


@pytest.mark.parametrize(
    "option", [("--descriptor-dtype", "float16"), ("--masks", "photos"), ("--nms-radius", 3), ("--max-size", 99)]
)
def test_what_decides_the_numbers_stays_as_it_was(
    option: tuple[str, str | int], extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("photos/a.jpg") == 0
    assert extract("photos/a.jpg", *option) == 5
    assert "made with other settings" in capsys.readouterr().err


def test_a_file_with_keypoints_on_the_outermost_pixels_is_not_gone_on_with(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("photos/a.jpg") == 0
    with h5py.File("feats.h5", "r+") as file:
        settings = json.loads(file.attrs["settings"])
        assert settings.pop("edge") == 1
        file.attrs["settings"] = np.bytes_(json.dumps(settings, sort_keys=True).encode())  # as before 122
    assert extract("photos/a.jpg") == 5
    assert "edge None there, 1 now" in capsys.readouterr().err


def test_a_file_names_the_precision_that_auto_was_and_another_does_not_go_on_with_it(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for has in ("has_fast_bytes", "has_fast_bfloat16"):
        monkeypatch.setattr(f"sekd_cli.networks.precision.{has}", lambda device: False)
    assert extract("photos/a.jpg", "--root", "photos") == 0
    with FeatureReader(Path("feats.h5")) as reader:
        assert json.loads(str(reader.attributes["settings"]))["precision"] == "float32"
    assert extract("photos", "--precision", "float32") == 0
    assert extract("photos", "--precision", "bfloat16") == 5
    assert "precision float32 there, bfloat16 now" in capsys.readouterr().err
    assert extract("photos", "--precision", "bf16") == 2
    assert "--precision bf16: give auto" in capsys.readouterr().err


def test_images_too_large_for_several_at_once_are_done_as_well(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this process, one after the other, though they be small for the network."""
    extract("photos", "-o", "ahead.h5", "--threads", 1)
    here, read = [], images.read_image
    monkeypatch.setattr("sekd_cli.batch_extraction.read_image", lambda *a, **b: here.append(a) or read(*a, **b))
    monkeypatch.setattr("sekd_cli.extraction_pipeline.PREFETCH_PIXELS", 10)
    extract("photos", "-o", "late.h5", "--threads", 2)
    assert len(here) == 3
    assert_same(stored("late.h5"), stored("ahead.h5"))


@pytest.mark.parametrize("limit", ["LARGE_PIXELS", "PREFETCH_PIXELS"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_image_is_computed_while_no_process_is_forked_and_in_its_turn(
    threads: int, limit: str, extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork would wait for threads that it doesn't have; a GPU may lack memory for a batch beside it."""
    extractions: list[Any] = []
    begin, features, watched = _Extraction.begin, BatchExtractor.features, []

    def noted(self: _Extraction, batch: Any) -> None:
        extractions.append(self)
        begin(self, batch)

    def watch(*given: Any) -> Any:
        watched.append((extractions[0].crew.forking.locked(), extractions[0]._turns._value))
        return features(*given)

    monkeypatch.setattr(_Extraction, "begin", noted)
    monkeypatch.setattr(BatchExtractor, "features", watch)
    monkeypatch.setattr(f"sekd_cli.extraction_pipeline.{limit}", 10)
    assert extract("photos", "--threads", threads) == 0
    assert watched == [(True, threads - 1)] * 3


def test_the_limit_of_pixels_can_be_moved(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("photos", "--max-pixels", 1000) == 3
    assert capsys.readouterr().err.count("raise --max-pixels") == 3
    given = []
    for where in ("extraction_pipeline.read_image_size", "batch_extraction.read_image"):
        read = getattr(images, where.rpartition(".")[2])

        def limited(path: Path, read: Callable[..., Any] = read, **options: Any) -> Any:
            given.append(options["max_pixels"])
            return read(path, **options)

        monkeypatch.setattr(f"sekd_cli.{where}", limited)
    assert extract("photos", "--max-pixels", 0, "--threads", 1) == 0
    assert given == [0] * 6


def test_names_that_no_file_can_hold_fail_alone(extract: Extract, photos: Path) -> None:
    (photos / os.fsdecode(b"\xff.jpg")).write_bytes((photos / "a.jpg").read_bytes())
    assert extract("photos", "--failures", "failures.jsonl") == 1
    assert sorted(stored()) == NAMES
    assert "UTF-8" in json.loads(Path("failures.jsonl").read_text())["reason"]


def test_a_corpus_of_two_hundred_hostile_files(extract: Extract, capfd: pytest.CaptureFixture[str]) -> None:
    """No crash, no hang, one line for each bad one and nothing else on stderr; every good one done."""
    whole, broken = whole_files(), broken_files()
    write_files(Path("corpus/good"), whole)
    write_files(Path("corpus/bad"), broken)
    (Path("corpus") / "good" / "circle").symlink_to(Path("corpus").absolute())
    (Path("corpus") / "bad" / "dangling.jpg").symlink_to("nowhere.jpg")
    Path("corpus/bad/folder.jpg").mkdir()
    assert len(whole) + len(broken) + 1 >= 200
    assert extract("corpus", "--max-keypoints", 20, "--failures", "failures.jsonl") == 1
    lines = capfd.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(errors) == len(broken) + 1
    for name in (*broken, "dangling.jpg"):
        assert sum(f"corpus/bad/{name}: " in line for line in errors) == 1, name
    no_keypoints = {"even", "small_1x1", "small_2x1", "small_1x40", "small_3x3"}  # the small ones are nearly all edge
    assert {line.split(": ")[1] for line in warnings} == {f"corpus/good/{name}.png" for name in no_keypoints}
    assert len(errors) + len(warnings) + 1 == len(lines), "the summary is the only other line"
    assert lines[-1].startswith(f"{len(whole)} images done, {len(errors)} failed; ")
    assert sorted(stored()) == sorted(f"good/{name}" for name in whole)
    assert len(Path("failures.jsonl").read_text().splitlines()) == len(errors)


def test_all_orientations_of_one_photograph_agree_in_the_file(extract: Extract) -> None:
    for orientation in range(1, 9):
        write_files(Path("turned"), {f"{orientation}.png": encoded(drawn(), "PNG", orientation=orientation)})
    assert extract("turned") == 0
    features = stored()
    upright, (width, height) = features["1.png"].keypoints, (128, 96)
    x, y = upright.T
    right, bottom = width - 1 - x, height - 1 - y
    expected = {
        2: (right, y),
        3: (right, bottom),
        4: (x, bottom),
        5: (y, x),
        6: (y, right),
        7: (bottom, right),
        8: (bottom, x),
    }
    for orientation, columns in expected.items():
        found = features[f"{orientation}.png"]
        np.testing.assert_allclose(found.keypoints, np.stack(columns, axis=1), atol=0.01)
        np.testing.assert_array_equal(found.scores, features["1.png"].scores)
        assert found.image_size == ((width, height) if orientation < 5 else (height, width))


def test_scales_and_rotations_are_stored_and_noticed_when_they_change(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("photos/a.jpg", "-o", "usual.h5") == 0
    with FeatureReader(Path("usual.h5")) as reader:
        assert json.loads(str(reader.attributes["settings"]))["scales"] == [1, 0.5], "the network's own"
    chosen = ["photos/a.jpg", "--scales", "1.5,1", "--rotations"]
    assert extract(*chosen) == 0
    features = stored()["a.jpg"]
    assert sorted({round(float(scale), 2) for scale in features.scales}) == [0.67, 1]
    with FeatureReader(Path("feats.h5")) as reader:
        turned = reader.read("a.jpg", turned=True).turned
        settings = json.loads(str(reader.attributes["settings"]))
    assert turned is not None
    assert turned.shape == (3, *features.descriptors.shape)
    assert (settings["scales"], settings["rotations"]) == ([1.5, 1], True)
    capsys.readouterr()
    assert extract(*chosen) == 0
    assert "0 images done, 1 done before" in capsys.readouterr().err
    assert extract("photos/a.jpg", "--scales", "auto", "--rotations") == 5
    assert "scales [1.5, 1.0] there, auto now" in capsys.readouterr().err
    assert extract("photos/a.jpg", "--scales", "1.5,1") == 5
    assert "rotations True there, False now" in capsys.readouterr().err
    assert extract("photos", "--scales", "none") == 2
    assert "--scales none: give auto" in capsys.readouterr().err


def test_images_done_at_once_and_alone_give_the_same(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time, and each alone on two threads as if it were large."""
    assert extract("photos", "-o", "one.h5", "--threads", 1) == 0
    assert extract("photos", "-o", "two.h5", "--threads", 2) == 0
    assert_same(stored("two.h5"), stored("one.h5"))
    monkeypatch.setattr("sekd_cli.extraction_pipeline.LARGE_PIXELS", 10)
    assert extract("photos", "-o", "alone.h5", "--threads", 2) == 0
    for name, features in stored("alone.h5").items():
        np.testing.assert_allclose(features.keypoints, stored("one.h5")[name].keypoints, atol=1e-2)


@pytest.mark.parametrize("missing", ["fork", "processes"])
def test_where_no_process_can_be_forked_threads_do_the_same(
    missing: str, extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extract("photos", "-o", "processes.h5", "--threads", 2) == 0
    if missing == "fork":
        monkeypatch.setattr("sekd_cli.workers.CAN_FORK", False)
    else:
        monkeypatch.setattr("sekd_cli.workers.Worker.__init__", lambda *_: refuse())
    assert extract("photos", "-o", "threads.h5", "--threads", 2) == 0
    assert_same(stored("threads.h5"), stored("processes.h5"))


def test_few_images_are_done_as_many_are(extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    monkeypatch.setattr("sekd_cli.networks.inference.traced", lambda network: used.append(traced(network)) or used[-1])
    assert extract("photos", "-o", "few.h5") == 0
    assert not used
    monkeypatch.setattr("sekd_cli.networks.inference.RECORDING_PAYS", 2)
    assert extract("photos", "-o", "many.h5") == 0
    assert used
    assert_same(stored("few.h5"), stored("many.h5"))


def test_free_memory_is_given_back_every_so_many_batches(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = []
    for module in ("batch_extraction", "extraction_pipeline"):  # of a process that extracts, and of the one that writes
        monkeypatch.setattr(f"sekd_cli.{module}.GIVE_BACK_EVERY", 2)
        monkeypatch.setattr(f"sekd_cli.{module}.give_back_memory", lambda: given_back.append(True))
    of_process = BatchExtractor(cast(Extractor, None))
    for number in range(1, 5):
        of_process([])
        assert len(given_back) == number // 2
    given_back.clear()
    assert extract("photos", "--batch-size", 1) == 0
    assert len(given_back) == 1


def refuse() -> None:
    raise BlockingIOError(errno.EAGAIN, "no more processes")


@needs_fork
@pytest.mark.parametrize("more", [True, False], ids=["replaced", "no-more-processes"])
def test_images_that_kill_the_process_fail_alone(
    more: bool,
    extract: Extract,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a crash of a decoder does, or the system when memory runs out; large ones are done by this process before."""
    write_files(Path("photos"), {f"more{number}.png": encoded(drawn(seed=number), "PNG") for number in range(12)})
    write_files(Path("photos"), {f"killer{number}.png": encoded(drawn(), "PNG") for number in range(1 + 2 * more)})
    write_files(Path("photos"), {"0large.png": encoded(drawn(200, 300), "PNG")})
    assert extract("photos", "-o", "whole.h5", "--threads", 2) == 0
    parent, whole, read = os.getpid(), stored("whole.h5"), images.read_image

    def read_or_die(path: Path, **options: Any) -> images.Photograph:
        if path.name.startswith("killer") and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, **options)

    monkeypatch.setattr("sekd_cli.batch_extraction.read_image", read_or_die)
    monkeypatch.setattr("sekd_cli.extraction_pipeline.LARGE_PIXELS", 60_000)
    possible = iter([True, True, *[more] * 100])
    monkeypatch.setattr("sekd_cli.workers.Worker", lambda work: Worker(work) if next(possible) else refuse())
    capsys.readouterr()
    exit_code = extract("photos", "--threads", 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    found, killers = stored(), {name for name in whole if name.startswith("killer")}
    missing = whole.keys() - found.keys()
    assert missing == killers if more else missing <= killers  # one may be done here, where it kills nobody
    assert exit_code == bool(missing)
    assert sorted(line.partition(" died (SIGKILL)")[0] for line in errors) == [
        f"error: photos/{name}: the process that extracted it" for name in sorted(missing)
    ]
    for name, features in found.items():
        np.testing.assert_allclose(features.keypoints, whole[name].keypoints, atol=1e-2)


@needs_fork
def test_images_behind_one_that_kills_the_process_are_done(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = images.read_image

    def read_or_die(path: Path, **options: Any) -> images.Photograph:
        if path.name == "b.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, **options)

    monkeypatch.setattr("sekd_cli.batch_extraction.read_image", read_or_die)
    assert extract("photos", "--threads", 2, "--batch-size", 3) == 1
    assert sorted(stored()) == ["a.jpg", "sub/c d.jpg"]


@needs_fork
def test_what_goes_wrong_in_a_process_is_told_by_this_one(
    extract: Extract, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in a process of its own")

    monkeypatch.setattr(Extractor, "extract", fail)
    with pytest.raises(ZeroDivisionError, match="of its own") as raised:
        extract("photos", "--threads", 2)
    assert "in _together" in raised.value.__notes__[0]


def test_ranks_of_torchrun_do_their_shards_and_none_is_killed_for_anothers_bad_image(
    extract: Extract, photos: Path, untrained_weights: Path
) -> None:
    (photos / "b.png").write_bytes(b"no image")  # the second rank's, and all that it has
    fixed = ["--weights", str(untrained_weights), "--threshold", "0", "--device", "cpu", "--threads", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sekd_cli", "extract"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([*launch, "photos", *fixed], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.split() == ["feats.1-of-2.h5"]
    assert "not an image that sekd reads" in done.stderr
    assert cli.main(["merge", "feats.1-of-2.h5", "feats.2-of-2.h5", "-o", "merged.h5"]) == 0
    assert extract("photos", "--threads", 1, "-o", "whole.h5") == 1
    merged, whole = stored("merged.h5"), stored("whole.h5")
    assert sorted(merged) == sorted(whole) == ["a.jpg", "sub/c d.jpg"]
    for name, features in merged.items():  # other tests' threads make this process round differently
        np.testing.assert_allclose(features.keypoints, whole[name].keypoints, atol=1e-3)
        np.testing.assert_allclose(features.descriptors, whole[name].descriptors, atol=1e-5)


def test_failures_never_go_where_the_features_do(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(photos, "-o", "f.h5", "--failures", "./f.h5") == 2
    assert "is the output" in capsys.readouterr().err


def test_a_match_file_is_no_place_for_features(
    extract: Extract, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(photos, "-o", "f.h5") == 0
    Path("pairs.txt").write_text("a.jpg b.png\n")
    assert cli.main(["match", "pairs.txt", "--features", "f.h5", "-o", "m.h5", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert extract(photos, "-o", "m.h5") == 5
    assert capsys.readouterr().err == "error: m.h5: holds matches, not features; give another output with -o\n"
