"""The shipped weights on the example photographs: what a newcomer sees first, held to what is known of the scenes."""

import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from sekd_cli import Sekd
from sekd_cli.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sekd() -> Sekd:
    return Sekd.from_pretrained(device="cpu")


def test_matches_of_a_rectified_pair_lie_in_the_same_row(sekd: Sekd, examples: Path) -> None:
    left, right = sekd.extract(examples / "motorcycle_left.jpg"), sekd.extract(examples / "motorcycle_right.jpg")
    matches = sekd.match(left, right)
    shift = (matches.keypoints0 - matches.keypoints1).numpy()
    right_ones = (np.abs(shift[:, 1]) < 1.5) & (shift[:, 0] > 5) & (shift[:, 0] < 62)  # see examples/README.md
    assert right_ones.sum() >= 600
    assert right_ones.mean() >= 0.7


def test_the_box_is_found_in_its_scene(sekd: Sekd, examples: Path) -> None:
    matches = sekd.match(sekd.extract(examples / "box.png"), sekd.extract(examples / "box_in_scene.png"))
    scene_from_box, _ = cv2.findHomography(matches.keypoints0.numpy(), matches.keypoints1.numpy(), cv2.USAC_MAGSAC, 3.0)
    corners = np.array([[[0, 0], [323, 0], [323, 222], [0, 222]]], dtype=np.float64)
    seen = np.array([[118, 161], [284, 175], [268, 297], [90, 272]])  # read off the scene by eye
    assert np.abs(cv2.perspectiveTransform(corners, scene_from_box)[0] - seen).max() < 10


def test_the_commands_of_readme_extract_and_match_the_examples(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["extract", str(examples), "-o", "feats.h5"]) == 0
    assert main(["match", str(examples / "pairs.txt"), "-o", "matches.h5"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "feats.h5\nmatches.h5\n"
    assert "7 images done, 0 failed" in printed.err
    assert "2 pairs done, 0 failed" in printed.err
    with h5py.File("feats.h5") as feats, h5py.File("matches.h5") as matches:
        assert len(feats) == 7
        keypoints, descriptors = (feats["china.jpg"][name][()] for name in ("keypoints", "descriptors"))
        assert len(keypoints) > 500
        assert descriptors.shape == (64, len(keypoints))
        assert (keypoints >= 0).all()
        assert (keypoints <= feats["china.jpg"]["image_size"][()] - 1).all()
        assert (matches["box.png"]["box_in_scene.png"]["matches0"][()] >= 0).any()


def test_the_python_of_readme_and_recipes_runs(
    sekd: Sekd, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Sekd, "from_pretrained", lambda: sekd)
    Path("photos").mkdir()
    for side in ("left.jpg", "right.jpg"):
        for folder in (".", "photos"):
            shutil.copy(examples / f"motorcycle_{side}", Path(folder) / side)
    Path("pairs.txt").write_text("left.jpg right.jpg\n", encoding="utf-8")
    assert main(["extract", "photos"]) == 0
    assert main(["match", "pairs.txt", "--verify", "fundamental", "--refine", "--images", "photos"]) == 0
    sections = [
        (ROOT / page).read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
        for page, heading in (("README.md", "From Python"), ("docs/RECIPES.md", "Python and OpenCV"))
    ]
    programs = re.findall(r"```python\n(.*?)```", "".join(sections), flags=re.DOTALL)
    assert len(programs) == 3
    known: dict[str, Any] = {}
    for program in programs:
        exec(program, known)
    assert np.abs(known["points0"] - known["points1"])[:, 1].mean() < 0.5  # the pair is rectified
    assert known["inliers"].mean() > 0.9
    assert known["fundamental"].shape == (3, 3)
    assert known["descriptors"].shape == (len(known["keypoints"]), 64)


def test_the_recipe_of_stitching_puts_a_photograph_together(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = cv2.imread(str(examples / "china.jpg"))
    cv2.imwrite("left.jpg", whole[:, :400])
    cv2.imwrite("right.jpg", whole[:, 240:])
    Path("pairs.txt").write_text("left.jpg right.jpg\n", encoding="utf-8")
    assert main(["extract", "left.jpg", "right.jpg"]) == 0
    assert main(["match", "pairs.txt", "--verify", "homography", "--refine", "--images", "."]) == 0
    recipe = (ROOT / "docs" / "RECIPES.md").read_text(encoding="utf-8").split("## Stitching")[1]
    exec(recipe.split("```python\n")[1].split("```")[0], known := {})
    panorama = known["panorama"]
    assert np.abs(np.subtract(panorama.shape, whole.shape)).max() <= 2
    y, x = -known["y"], -known["x"]
    height, width = min(panorama.shape[0] - y, whole.shape[0]), min(panorama.shape[1] - x, whole.shape[1])
    apart = cv2.absdiff(panorama[y : y + height, x : x + width], whole[:height, :width])
    assert apart[:-2, :-2].mean() < 3  # of JPEG, and of what is resampled
