"""`sekd info`: figures counted by hand, for files whole and half, ours and other tools'."""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from drawn_features import ATTRIBUTES, drawn_features, write_views
from safetensors.torch import save_file

from sekd_cli import cli
from sekd_cli.errors import InputFileError
from sekd_cli.feature_file import FeatureWriter, file_attributes
from sekd_cli.file_info import distribution
from sekd_cli.networks import CompactNetwork, DenseNetwork, PublishedNetwork
from sekd_cli.networks.weights_file import save_network

BAD_INPUT = 4  # exit code


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def facts(capsys: pytest.CaptureFixture[str]) -> Any:
    """What `sekd info --json` says of a file."""

    def ask(path: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["info", str(path), "--json"]) == 0
        out, err = capsys.readouterr()
        assert not err
        return dict(json.loads(out))

    return ask


def write_features() -> None:
    """Four images with 10, 20, 40 and no keypoints, one half-written."""
    settings = {"max_keypoints": 40, "shard": "2/3"}
    attributes = file_attributes(network="compact", weights_sha256="ab" * 32, settings=settings)
    with FeatureWriter(Path("feats.h5"), attributes) as writer:
        for name, count in (("a.jpg", 10), ("b/c 1.jpg", 20), ("b/d.jpg", 40), ("e.jpg", 0), ("half.jpg", 5)):
            writer.write(name, drawn_features(1, common=count, own=0))
    with h5py.File("feats.h5", "r+") as file:
        del file["half.jpg"].attrs["complete"]


def test_a_feature_file(facts: Any) -> None:
    write_features()
    found = facts("feats.h5")
    assert found.pop("bytes") == Path("feats.h5").stat().st_size
    assert found.pop("sekd_version")
    spread = found.pop("keypoints_per_image")
    assert {name: spread[name] for name in ("min", "max", "mean")} == {"min": 0, "max": 40, "mean": 17.5}
    assert sum(spread["histogram"]) == 4
    assert found == {
        "file": "feats.h5",
        "kind": "features",
        "images": 4,
        "incomplete": ["half.jpg"],
        "keypoints": 70,
        "without_keypoints": ["e.jpg"],
        "descriptors": [{"dim": 16, "dtype": "float32", "images": 4}],
        "network": "compact",
        "weights_sha256": "ab" * 32,
        "shard": "2/3",
        "settings": {"max_keypoints": 40},
    }


def test_it_is_told_in_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    write_features()
    assert cli.main(["info", "feats.h5"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["feats.h5", "kind features"]
    for line in ("images 4", "incomplete 1: half.jpg", "keypoints 70", "descriptors 16 x float32", "shard 2/3"):
        assert line in lines
    assert "keypoints per image min 0 p10 0 median 20 p90 40 max 40 mean 17.5" in lines
    assert "settings max keypoints 40" in lines


def test_names_of_any_kind_stay_on_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES) as writer:
        for name in ("two\nlines.jpg", "ünï.jpg", *(f"{number}.jpg" for number in range(9))):
            writer.write(name, drawn_features(1, common=0, own=0))
    assert cli.main(["info", "feats.h5"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "without keypoints" in line]
    assert "11: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 6 more" in line
    with FeatureWriter(Path("two.h5"), ATTRIBUTES) as writer:
        for name in ("two\nlines.jpg", "ünï.jpg"):
            writer.write(name, drawn_features(1, common=0, own=0))
    assert cli.main(["info", "two.h5"]) == 0
    assert r"2: two\nlines.jpg, ünï.jpg" in capsys.readouterr().out


def test_a_match_file(facts: Any) -> None:
    names = ["a.jpg", "b/c.jpg", "d.jpg"]
    write_views(Path("feats.h5"), names)
    Path("pairs.txt").write_text("a.jpg b/c.jpg\na.jpg d.jpg\n")
    assert cli.main(["match", "pairs.txt", "--verify", "homography", "--quiet", "--device", "cpu"]) == 0
    with h5py.File("matches.h5", "r+") as file:
        counts = [int((file[f"a.jpg/{name}"]["matches0"][()] >= 0).sum()) for name in ("b-c.jpg", "d.jpg")]
        file["a.jpg/d.jpg"]["matches0"][()] = -1
    found = facts("matches.h5")
    assert min(counts) >= 50
    assert (found["kind"], found["images"], found["pairs"], found["incomplete"]) == ("matches", 3, 2, [])
    assert (found["matches"], found["pairs_without_matches"]) == (counts[0], 1)
    assert found["matches_per_pair"]["max"] == counts[0]
    assert found["pairs_verified"] == {"homography": 2}
    assert (found["network"], found["weights_sha256"]) == ("compact", "ab" * 32)  # of the features
    assert found["settings"]["model"] == "homography"


def test_files_of_other_tools(facts: Any) -> None:
    with h5py.File("hloc.h5", "w") as file:
        file["x/a.jpg/keypoints"], file["x/a.jpg/descriptors"] = np.zeros((7, 2)), np.zeros((256, 7), np.float16)
        file["x/half.jpg/keypoints"] = np.zeros((7, 2))
    found = facts("hloc.h5")
    assert (found["images"], found["incomplete"], found["keypoints"]) == (1, ["x/half.jpg"], 7)
    assert found["descriptors"] == [{"dim": 256, "dtype": "float16", "images": 1}]
    assert "network" not in found
    with h5py.File("keypoints.h5", "w") as file:
        file["a"], file["b"] = np.zeros((4, 2)), np.zeros((6, 2))
    found = facts("keypoints.h5")
    assert (found["kind"], found["datasets"], found["rows_per_dataset"]["mean"]) == ("flat", 2, 5)


def test_weights(facts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    network = PublishedNetwork()
    save_network(Path("mine.safetensors"), network, {"steps": 1200, "note": "finished", "photographs": 31})
    found = facts("mine.safetensors")
    assert (found["kind"], found["network"], found["parameters"]) == ("weights", "published", 661_762)
    assert (found["descriptor_dim"], found["stride"], found["threshold"]) == (128, 4, 0.4)
    assert found["training"] == {"steps": 1200, "note": "finished", "photographs": 31}
    assert len(found["sha256"]) == 64
    cli.main(["info", "mine.safetensors"])
    assert "steps 1,200" in capsys.readouterr().out
    torch.save({"state_dict": network.state_dict()}, "checkpoint.pth")
    assert facts("checkpoint.pth")["training"] == {}


def test_an_empty_file_holds_nothing(facts: Any) -> None:
    with FeatureWriter(Path("feats.h5"), ATTRIBUTES):
        pass
    found = facts("feats.h5")
    assert (found["images"], found["keypoints"], found["keypoints_per_image"]) == (0, 0, None)


def test_a_circle_of_links_ends(facts: Any) -> None:
    write_features()
    with h5py.File("feats.h5", "r+") as file:
        file["b/again"] = file["/"]
        file["dangling"] = h5py.SoftLink("/nowhere")
    assert facts("feats.h5")["images"] >= 4


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n", b"\x10\0\0\0\0\0\0\0{...", bytes(5000)])
def test_other_files_are_refused_in_one_line(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_bytes(content)
    assert cli.main(["info", "file"]) == BAD_INPUT
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: file: ")
    assert len(err.splitlines()) == 1
    if content == b"text":
        assert "give a feature file, a match file or weights" in err
    assert cli.main(["info", "gone"]) == BAD_INPUT
    assert "gone: no such file; give a feature file" in capsys.readouterr().err
    assert cli.main(["info", "z" * 300]) == BAD_INPUT


def test_damage_anywhere_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_features()
    content = Path("feats.h5").read_bytes()
    codes = set()
    for start in range(50, len(content) - 400, len(content) // 20):
        damaged = bytearray(content)
        damaged[start : start + 300] = b"\xff" * 300
        Path("damaged.h5").write_bytes(damaged)
        codes.add(cli.main(["info", "damaged.h5"]))
        assert len(capsys.readouterr().err.splitlines()) <= 1
    assert codes == {0, BAD_INPUT}


def test_a_folder_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path)]) == InputFileError.exit_code
    assert "a folder; give a feature file" in capsys.readouterr().err


def test_a_pipe_is_not_said_to_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["info", str(tmp_path / "pipe")]) == InputFileError.exit_code
    assert "pipe: is not a file; give a feature file" in capsys.readouterr().err


def test_a_distribution_by_hand() -> None:
    assert distribution([]) is None
    assert distribution([3]) == {"min": 3, "p10": 3, "median": 3, "p90": 3, "max": 3, "mean": 3.0, "histogram": [1]}
    found = distribution(list(range(11)))
    assert found is not None
    assert (found["p10"], found["median"], found["p90"], found["mean"]) == (1, 5, 9, 5.0)
    assert found["histogram"] == [1] * 11
    found = distribution([0, 0, 0, 1600])
    assert found is not None
    assert found["histogram"] == [3, *[0] * 14, 1]


def test_a_match_with_the_first_keypoint_counts_and_every_model_is_told(facts: Any) -> None:
    with h5py.File("m.h5", "w") as file:
        for second, model in (("b.jpg", "fundamental"), ("c.jpg", "essential")):
            file[f"a.jpg/{second}/matches0"], file[f"a.jpg/{second}/{model}"] = np.array([0, 1, -1]), np.eye(3)
    found = facts("m.h5")
    assert found["matches"] == 4
    assert found["pairs_verified"] == {"fundamental": 1, "essential": 1}


@pytest.mark.parametrize("kind", [CompactNetwork, PublishedNetwork])
def test_what_a_network_extracts_with_is_told(kind: type[DenseNetwork], facts: Any) -> None:
    save_network(Path("mine.safetensors"), kind(), {})
    found = facts("mine.safetensors")
    assert found["nms_radius"] == kind.default_nms_radius
    assert found["scales"] == list(kind.default_scales)


@pytest.mark.parametrize("text", ["no JSON", "[1, 2]"])
def test_metadata_of_others_are_no_training(text: str, facts: Any) -> None:
    save_file(CompactNetwork().state_dict(), "mine.safetensors", {"network": "compact", "training": text})
    assert facts("mine.safetensors")["training"] == {}


def test_lines_for_people_of_a_whole_file(capsys: pytest.CaptureFixture[str]) -> None:
    attributes = {**ATTRIBUTES, "settings": json.dumps({"rotations": True, "subpixel": False})}
    with FeatureWriter(Path("feats.h5"), attributes) as writer:
        for number in range(5):
            writer.write(f"{number}.jpg", drawn_features(1, common=0, own=0))
        for number in range(5, 9):
            writer.write(f"{number}.jpg", drawn_features(1, common=16 * (1 + (number > 6)), own=0))
    assert cli.main(["info", "feats.h5"]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "incomplete 0" in lines
    assert "without keypoints 5: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg" in lines
    assert "settings rotations yes" in lines
    assert "subpixel no" in lines
    assert f"size {Path('feats.h5').stat().st_size / 1000:.3g} kB" in lines
    [bars] = [line.strip() for line in text.splitlines() if "█" in line or "▇" in line]
    assert len(bars) == 16
    assert bars.count(" ") == 13


def test_a_file_whose_name_is_no_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(b"m\xff.h5"))
    write_views(path, ["a.jpg"])
    assert cli.main(["info", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == r"m\xff.h5"
