"""`sekd evaluate --refine`: a drawn room seen from known places, and a plane, by features that are off."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_scene import CENTRE, FOCAL, HEIGHT, VIEWS, WIDTH, camera_from_world, draw_view
from evaluation_sets import Exact, nothing

from sekd_cli.cli import main
from sekd_cli.errors import InputFileError
from sekd_cli.evaluation import homography_benchmark, pose_benchmark, sfm
from sekd_cli.evaluation.homography import warp
from sekd_cli.evaluation.images import EvaluationImage, read_evaluation_image
from sekd_cli.evaluation.methods import LocalFeatures
from sekd_cli.evaluation.refinement import refine_scene, refined_matches
from sekd_cli.evaluation.scenes import PairSelection, find_scenes
from sekd_cli.seen_pixels import SeenPixels

SLANTED = np.array([[0.95, 0.06, 8.0], [-0.08, 1.04, 12.0], [1e-4, -5e-5, 1.0]])


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn room in Strecha's layout."""
    root = tmp_path_factory.mktemp("room")
    (root / "cameras").mkdir()
    (root / "images").mkdir()
    for view in range(VIEWS):
        cv2.imwrite(str(root / "images" / f"{view}.png"), draw_view(view))
        rotation, translation = camera_from_world(view)
        matrix = [[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]]
        rows = [*matrix, np.zeros(3), *rotation.T, -rotation.T @ translation, (WIDTH, HEIGHT)]
        text = "\n".join(" ".join(repr(float(value)) for value in row) for row in rows)
        (root / "cameras" / f"{view}.png.camera").write_text(text)
    return root


@pytest.fixture(scope="module")
def off(room: Path) -> Exact:
    """Points on its walls, each keypoint a pixel or so from where it is."""
    random = np.random.default_rng(5)
    walls = random.uniform(0.3, 3, (600, 3))
    walls[np.arange(600), random.integers(0, 3, 600)] = 0
    points = {}
    for view in range(VIEWS):
        rotation, translation = camera_from_world(view)
        seen = walls @ rotation.T + translation
        points[room / "images" / f"{view}.png"] = FOCAL * seen[:, :2] / seen[:, 2:] + CENTRE
    shown = np.all([((xy > 12) & (xy < (WIDTH - 13, HEIGHT - 13))).all(axis=1) for xy in points.values()], axis=0)
    return Exact({path: xy[shown] for path, xy in points.items()}, noise=0.4)


def test_poses_are_more_exact(room: Path, off: Exact) -> None:
    scenes = find_scenes(room, PairSelection())
    medians = []
    for refine in (False, True):
        protocol = pose_benchmark.PoseProtocol(seeds=1, refine=refine)
        results = pose_benchmark.evaluate_scenes(scenes, [off], protocol, nothing)["exact"]
        medians.append(np.median([result.errors for result in results]))
    assert medians[1] < 0.5 * medians[0]


def test_models_are_more_exact(room: Path, off: Exact) -> None:
    pytest.importorskip("pycolmap")
    scenes = find_scenes(room, PairSelection())
    plain, refined = (
        sfm.evaluate_scenes(scenes, [off], sfm.SfmProtocol(seeds=1, refine=refine), nothing)["exact"][room.name][0]
        for refine in (False, True)
    )
    assert refined.reprojection_error < 0.5 * plain.reprojection_error
    assert np.median(list(refined.errors.values())) < 0.7 * np.median(list(plain.errors.values()))


class Bits(Exact):
    """Those of another method, with descriptors of bits of which two in three are set alike in all images."""

    def features(self, image: EvaluationImage) -> LocalFeatures:
        found = super().features(image)
        own = np.random.default_rng(0).integers(0, 256, (len(found), 32), dtype=np.uint8)
        other = np.random.default_rng(list(image.path.name.encode())).integers(0, 256, (2, *own.shape), dtype=np.uint8)
        return replace(found, descriptors=own ^ (other[0] & other[1]))


def test_bits_match_and_are_refined_as_vectors_are(room: Path, off: Exact) -> None:
    folder = room / "images"
    images = {path.name: read_evaluation_image(path, 0) for path in sorted(folder.iterdir())}
    pixels = {name: image.seen for name, image in images.items()}
    found = {}
    for method in (off, Bits(off.points, noise=off.noise)):
        features = {name: method.features(image) for name, image in images.items()}
        found[type(method)] = refine_scene(features, pixels, label=method.label)
    for name in images:
        assert np.median(np.abs(found[Bits][0][name] - found[Exact][0][name])) < 0.05  # other samples come first
    for pair, matches in found[Exact][1].items():
        of_bits = found[Bits][1][pair]
        assert (of_bits[:, 0] == of_bits[:, 1]).all()
        assert len(of_bits) > 0.95 * len(matches) > 100


def test_where_nothing_can_be_aligned_keypoints_and_matches_are_as_found(room: Path, off: Exact) -> None:
    images = [read_evaluation_image(path, 0) for path in sorted((room / "images").iterdir())[:2]]
    features = {str(number): off.features(image) for number, image in enumerate(images)}
    grey = SeenPixels(np.full((HEIGHT, WIDTH), 128, dtype=np.uint8), np.ones(2))
    places, matches = refine_scene(features, dict.fromkeys(features, grey), label=off.label)
    for name, found in features.items():
        np.testing.assert_array_equal(places[name], found.keypoints)
    assert len(matches["0", "1"]) > 50


def test_a_pair_without_a_model_has_no_matches(room: Path, off: Exact) -> None:
    image = read_evaluation_image(next((room / "images").iterdir()), 0)
    found = off.features(image)
    elsewhere = np.random.default_rng(0).uniform(0, 200, found.keypoints.shape).astype(np.float32)
    features = {"here": found, "elsewhere": replace(found, keypoints=elsewhere)}
    places, matches = refine_scene(features, dict.fromkeys(features, image.seen), label=off.label)
    assert {pair: len(rows) for pair, rows in matches.items()} == {("here", "elsewhere"): 0}
    np.testing.assert_array_equal(places["elsewhere"], elsewhere)


@pytest.mark.parametrize("size", [640, 224])
def test_homographies_are_more_exact_at_any_size(tmp_path: Path, examples: Path, size: int) -> None:
    plane = cv2.imread(str(examples / "china.jpg"), cv2.IMREAD_GRAYSCALE)[:320, :448]
    folder = tmp_path / "v_plane"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), plane)
    cv2.imwrite(str(folder / "2.png"), cv2.warpPerspective(plane, SLANTED, (448, 320), flags=cv2.INTER_CUBIC))
    np.savetxt(folder / "H_1_2", SLANTED)
    xy = np.random.default_rng(1).uniform((30, 30), (380, 260), (250, 2))
    there = warp(xy, SLANTED)
    there[200:] = there[200:][::-1]  # matched to what is elsewhere
    off = Exact({folder / "1.png": xy, folder / "2.png": there}, noise=0.4)
    sequences = homography_benchmark.read_sequences(tmp_path)
    plain, refined = (
        homography_benchmark.evaluate_sequences(
            sequences, [off], homography_benchmark.HomographyProtocol(max_size=size, seeds=1, refine=refine), nothing
        )["exact"][0]
        for refine in (False, True)
    )
    assert refined.matching_accuracy[0] > plain.matching_accuracy[0] + 0.15
    assert plain.matching_accuracy[4] < 0.85
    assert refined.matching_accuracy[4] == 1  # what doesn't agree is no match
    assert refined.corner_errors["magsac"][0] < 0.6 * plain.corner_errors["magsac"][0]


@pytest.mark.parametrize("task", ["homography", "pose", "sfm"])
def test_it_is_asked_for_on_the_command_line(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main(["evaluate", task, "--help"]))
    assert "--refine" in capsys.readouterr().out


def test_a_pair_without_a_model_has_no_refined_matches(room: Path, off: Exact) -> None:
    image = read_evaluation_image(next((room / "images").iterdir()), 0)
    found = off.features(image)
    elsewhere = np.random.default_rng(0).uniform(0, 200, found.keypoints.shape).astype(np.float32)
    both = found, replace(found, keypoints=elsewhere)
    indices, places = refined_matches(both, (image.seen, image.seen), "fundamental", label=off.label)
    assert indices.shape == places.shape == (0, 2)


def test_refined_descriptors_that_cannot_be_compared_are_told(room: Path, off: Exact) -> None:
    image = read_evaluation_image(next((room / "images").iterdir()), 0)
    found = off.features(image)
    both = found, replace(found, descriptors=found.descriptors[:, :8])
    with pytest.raises(InputFileError, match="exact: descriptors of 32 and of 8 values"):
        refined_matches(both, (image.seen, image.seen), "fundamental", label=off.label)
    with pytest.raises(InputFileError, match="exact: descriptors of 32 and of 8 values"):
        refine_scene(dict(zip("ab", both, strict=True)), {"a": image.seen, "b": image.seen}, label=off.label)
