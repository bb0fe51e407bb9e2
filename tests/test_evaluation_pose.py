"""Pose errors by hand, the three layouts of calibrated sets, and the benchmark on features that are exact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from evaluation_sets import Exact, Orbit, change_line, nothing, write_grey

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation import pose_benchmark
from sekd_cli.evaluation.cameras import CalibratedCamera
from sekd_cli.evaluation.colmap_model import read_colmap_model
from sekd_cli.evaluation.estimators import estimate_pose
from sekd_cli.evaluation.pose import (
    mean_average_accuracy,
    pose_error,
    relative_pose,
    rotation_error,
    translation_error,
    viewing_angle,
)
from sekd_cli.evaluation.pose_benchmark import (
    PoseProtocol,
    PoseResult,
    evaluate_scenes,
    pair_table,
    panels,
    scene_features,
    summarise,
    summary_table,
)
from sekd_cli.evaluation.scenes import PairSelection, Scene, find_scenes
from sekd_cli.verification import fit_essential

LAYOUTS = ("strecha", "colmap", "pairs")
EVERYTHING = PairSelection(neighbours=8, max_angle=180)


def turn(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    return cv2.Rodrigues(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis))[0]


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 3.0, 90.0, 179.0])
def test_the_rotation_error_is_the_angle_of_the_turn_between(degrees: float) -> None:
    first = turn((1, 2, 3), 40)
    assert rotation_error(turn((0, 1, -1), degrees) @ first, first) == pytest.approx(degrees, abs=1e-9)


def test_the_translation_error_is_the_angle_between_lines() -> None:
    forward = np.array([0.0, 0, 2])
    assert translation_error(np.array([0, 3.0, 3]), forward) == pytest.approx(45)
    assert translation_error(np.array([0, 0, -5.0]), forward) == pytest.approx(0)
    assert translation_error(np.array([0, 1e-8, 1.0]), forward) == pytest.approx(np.degrees(1e-8))
    assert translation_error(np.array([1.0, 0, 0]), np.zeros(3)) == 0


def test_the_pose_error_is_the_larger_of_both_angles() -> None:
    truth = np.eye(3), np.array([0.0, 0, 1])
    assert pose_error((turn((0, 1, 0), 3), np.array([0.0, 0, 1])), truth) == pytest.approx(3)
    assert pose_error((turn((0, 1, 0), 3), np.array([0.0, 1, 1])), truth) == pytest.approx(45)
    assert pose_error(None, truth) == np.inf


def test_the_maa_averages_the_accuracy_at_ten_limits() -> None:
    # an error of 0.5 counts at all of 1 to 10 degrees, 3.5 at the seven from 4 on, 20 at none
    assert mean_average_accuracy([0.5, 3.5, 20], 10) == pytest.approx(17 / 30)
    assert mean_average_accuracy([0.05, 0.35, 2], 1) == pytest.approx(17 / 30)
    assert mean_average_accuracy([np.inf], 10) == 0
    assert mean_average_accuracy([], 10) == 0


def test_a_relative_pose_takes_points_from_one_camera_to_the_other() -> None:
    first, second = (turn((1, 0, 2), 20), np.array([1.0, 2, 3])), (turn((0, 1, 1), -50), np.array([-1.0, 0, 4]))
    point = np.array([0.3, -0.2, 7])
    rotation, translation = relative_pose(first, second)
    in_first, in_second = (pose[0] @ point + pose[1] for pose in (first, second))
    np.testing.assert_allclose(rotation @ in_first + translation, in_second)


def test_the_viewing_angle_does_not_see_a_roll() -> None:
    assert viewing_angle(turn((0, 0, 1), 80), np.eye(3)) == pytest.approx(0, abs=1e-5)
    assert viewing_angle(turn((0, 1, 0), 25), np.eye(3)) == pytest.approx(25)


def test_normalising_takes_the_principal_point_to_the_origin_and_undoes_distortion() -> None:
    plain = CalibratedCamera(matrix=Orbit.matrix)
    np.testing.assert_allclose(plain.normalise(np.array([(319.5, 239.5), (919.5, 829.5)])), [(0, 0), (1, 1)])
    assert plain.normalise(np.zeros((0, 2))).shape == (0, 2)
    for distortion in ((-0.1,), (-0.1, 0.02, 0.001, -0.001), (-0.1, 0.02, 0, 0, 0.01, 0, 0, 0)):
        camera = CalibratedCamera(matrix=Orbit.matrix, distortion=distortion)
        directions = np.array([(0.1, 0.2), (-0.3, 0.05)])
        space = np.column_stack((directions, np.ones(2)))
        padded = np.pad(distortion, (0, 8 - len(distortion)))
        pixels = cv2.projectPoints(space, np.zeros(3), np.zeros(3), Orbit.matrix, padded)[0][:, 0]
        np.testing.assert_allclose(camera.normalise(pixels), directions, atol=1e-4)


def test_a_lens_that_none_has_gives_numbers_all_the_same() -> None:
    camera = CalibratedCamera(matrix=Orbit.matrix, distortion=(1e200,))
    edges = np.array([[0.0, 0.0], [1e4, 1e4], [-1e6, 3.0], [400.0, 300.0]])
    assert np.isfinite(camera.normalise(edges)).all()


@pytest.mark.parametrize(
    "distortion", [(0.5,), (-0.3, 0.1), (0.2, -0.3, 0.002, -0.001), (-0.2, 0.05, 0, 0, 0.01, 0.1, 0, 0)]
)
def test_distortion_is_undone_at_the_corners_of_a_wide_photograph_too(distortion: tuple[float, ...]) -> None:
    x, y = np.meshgrid(np.linspace(-0.8, 0.8, 9), np.linspace(-0.6, 0.6, 7))
    space = np.stack((x, y, np.ones_like(x)), axis=-1).reshape(-1, 3)
    padded = np.pad(distortion, (0, 8 - len(distortion)))
    pixels = cv2.projectPoints(space, np.zeros(3), np.zeros(3), Orbit.matrix, padded)[0][:, 0]
    camera = CalibratedCamera(matrix=Orbit.matrix, distortion=distortion)
    np.testing.assert_allclose(camera.normalise(pixels), space[:, :2], atol=1e-9)


def test_exact_matches_among_wrong_ones_give_the_pose_whatever_the_seed() -> None:
    orbit = Orbit()
    truth = relative_pose((orbit.rotations[0], orbit.translations[0]), (orbit.rotations[2], orbit.translations[2]))
    xy0, xy1 = orbit.seen(0), orbit.seen(2)
    xy1[::4] = xy1[::4][::-1]  # a quarter of them wrong
    camera = CalibratedCamera(matrix=orbit.matrix)
    half = CalibratedCamera(matrix=np.diag((0.5, 0.5, 1)) @ orbit.matrix)
    for seed in range(3):
        assert pose_error(estimate_pose(xy0, xy1, (camera, camera), seed=seed), truth) < 0.01
        assert pose_error(estimate_pose(xy0, xy1 / 2, (camera, half), seed=seed), truth) < 0.01
    assert (camera.focal_length, half.focal_length) == (595, 297.5), "of 600 along x and 590 along y"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_several_essential_matrices_the_one_with_most_points_in_front_gives_the_pose(
    monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    orbit = Orbit()
    truth = relative_pose((orbit.rotations[0], orbit.translations[0]), (orbit.rotations[2], orbit.translations[2]))

    def several(xy0: np.ndarray, xy1: np.ndarray, focal: float, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        assert (focal, options["threshold"], options["confidence"]) == ((595 + 297.5) / 2, 1, 0.99999)
        found, mask = fit_essential(xy0, xy1, focal, **options)
        assert found is not None
        assert mask is not None
        others = [np.cross(axis, np.eye(3)) for axis in np.eye(3)[:2]]  # of cameras moved alone, sideways or down
        return np.concatenate([*others[:place], found, *others[place:]]), mask

    monkeypatch.setattr("sekd_cli.evaluation.estimators.fit_essential", several)
    cameras = CalibratedCamera(matrix=orbit.matrix), CalibratedCamera(matrix=np.diag((0.5, 0.5, 1)) @ orbit.matrix)
    assert pose_error(estimate_pose(orbit.seen(0), orbit.seen(2) / 2, cameras), truth) < 0.01


def test_too_few_or_degenerate_matches_give_no_pose_or_a_wrong_one_but_no_crash() -> None:
    camera = CalibratedCamera(matrix=Orbit.matrix)
    assert estimate_pose(np.zeros((4, 2)), np.zeros((4, 2)), (camera, camera)) is None
    for count in (5, 20):
        same = np.full((count, 2), 100.0)
        found = estimate_pose(same, same, (camera, camera))
        assert found is None or np.shape(found[0]) == (3, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_features_give_pose_error_0_in_every_layout(tmp_path: Path, layout: str) -> None:
    points = getattr(Orbit(), f"write_{layout}")(tmp_path)
    [scene] = find_scenes(tmp_path, EVERYTHING)
    # a size that shrinks the images, so that keypoints go there and back; half a pixel would be 0.05 degrees
    results = evaluate_scenes([scene], [Exact(points)], PoseProtocol(max_size=500, seeds=2), nothing)["exact"]
    assert len(results) == len(scene.pairs) == (4 if layout == "pairs" else 10)
    assert max(max(result.errors) for result in results) < 0.01
    figures = summarise(results)
    assert figures["maa@10"] == 1
    assert figures["auc@5"] > 0.99


def test_the_layouts_tell_the_same_poses(tmp_path: Path) -> None:
    scenes: dict[str, Scene] = {}
    for layout in LAYOUTS:
        getattr(Orbit(), f"write_{layout}")(tmp_path / layout)
    for scene in find_scenes(tmp_path, EVERYTHING):
        scenes[scene.name] = scene
    assert set(scenes) == set(LAYOUTS)
    first = {layout: {(p.name0, p.name1): p for p in scene.pairs} for layout, scene in scenes.items()}
    for names, pair in first["pairs"].items():
        for layout in ("strecha", "colmap"):
            other = first[layout][names]
            for found, expected in zip(other.pose_1_from_0, pair.pose_1_from_0, strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-9)
            np.testing.assert_allclose(other.camera0.matrix, pair.camera0.matrix)


def test_a_binary_colmap_model_is_the_same_as_its_text(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    Orbit().write_colmap(tmp_path)
    (tmp_path / "binary").mkdir()
    pycolmap.Reconstruction(str(tmp_path / "sparse")).write_binary(str(tmp_path / "binary"))
    text, binary = read_colmap_model(tmp_path / "sparse"), read_colmap_model(tmp_path / "binary")
    assert text.keys() == binary.keys()
    for name, view in text.items():
        np.testing.assert_allclose(binary[name].camera_from_world[0], view.camera_from_world[0], atol=1e-12)
        np.testing.assert_allclose(binary[name].camera.matrix, view.camera.matrix)


def test_colmaps_camera_models_become_opencvs(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text(
        "1 SIMPLE_PINHOLE 640 480 600 320 240\n2 SIMPLE_RADIAL 640 480 600 320 240 -0.1\n"
        "3 OPENCV 640 480 600 610 320 240 -0.1 0.01 0.002 -0.003\n"
    )
    (tmp_path / "images.txt").write_text(
        "1 1 0 0 0 0 0 0 1 with space.jpg\n\n"
        "2 0.5 0.5 0.5 0.5 1 2 3 2 b.jpg\n10 10 7 20 20 -1 30 30 8\n3 1 0 0 0 0 0 0 3 c.jpg\n"
    )
    views = read_colmap_model(tmp_path)
    np.testing.assert_array_equal(views["with space.jpg"].camera.matrix, [(600, 0, 319.5), (0, 600, 239.5), (0, 0, 1)])
    assert [view.camera.distortion for view in views.values()] == [(), (-0.1,), (-0.1, 0.01, 0.002, -0.003)]
    # the quaternion (1, 1, 1, 1) / 2 sends x to y, y to z, z to x
    np.testing.assert_allclose(views["b.jpg"].camera_from_world[0], [(0, 0, 1), (1, 0, 0), (0, 1, 0)], atol=1e-12)
    assert views["b.jpg"].points == {7, 8}


@pytest.mark.parametrize(
    ("cameras", "images", "complaint"),
    [
        ("1 FISHEYE 640 480 600 320 240", "", "FISHEYE"),
        ("1 PINHOLE 640 480 600 320 240", "", "PINHOLE"),
        ("nonsense", "", "cameras.txt"),
        ("1 PINHOLE 640 480 600 600 320 240", "1 1 0 0 0 0 0 0 9 a.jpg", "images.txt"),
        ("1 PINHOLE 640 480 600 600 320 240", "1 1 0", "images.txt"),
        ("1 PINHOLE 640 480 0 600 320 240", "", "no focal length"),
        ("1 OPENCV 640 480 600 600 320 240 nan 0 0 0", "", "finite"),
        ("1 PINHOLE 640 480 600 600 320 240", "1 0 0 0 0 0 0 0 1 a.jpg", "a.jpg: a quaternion of zeros"),
    ],
)
def test_a_damaged_colmap_model_is_told(tmp_path: Path, cameras: str, images: str, complaint: str) -> None:
    (tmp_path / "cameras.txt").write_text(cameras)
    (tmp_path / "images.txt").write_text(images)
    with pytest.raises(InputFileError, match=complaint):
        read_colmap_model(tmp_path)


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(pair.name0[:2], pair.name1[:2]) for pair in scene.pairs}


def test_pairs_are_neighbours_that_look_the_same_way(tmp_path: Path) -> None:
    Orbit().write_strecha(tmp_path)  # 12 degrees from one to the next, and a bit of roll
    assert len(find_scenes(tmp_path, PairSelection(neighbours=1))[0].pairs) == 4
    [near] = find_scenes(tmp_path, PairSelection(max_angle=13))
    assert pairs_of(near) == {("00", "01"), ("01", "02"), ("02", "03"), ("03", "04")}


def write_points_seen(root: Path, *seen: range) -> None:
    """Let the first images of the model that `write_colmap` wrote see these points."""
    for index, points in enumerate(seen):
        change_line(root / "sparse" / "images.txt", 2 + 2 * index, " ".join(f"1 1 {one}" for one in points))


def test_pairs_of_a_model_with_points_are_those_that_share_some(tmp_path: Path) -> None:
    Orbit().write_colmap(tmp_path)
    write_points_seen(tmp_path, range(20), range(18, 40), range(19, 60), range(60, 70), range(70, 80))
    # 0 and 1 share 2 of 20 points, 1 and 2 21 of 22, 0 and 2 only 1 of 20
    assert pairs_of(find_scenes(tmp_path, EVERYTHING)[0]) == {("00", "01"), ("01", "02")}


def test_a_folder_without_scenes_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no scenes"):
        find_scenes(tmp_path, EVERYTHING)


@pytest.mark.parametrize("lines", [3, 7])
def test_a_camera_file_that_was_cut_is_named(tmp_path: Path, lines: int) -> None:
    Orbit().write_strecha(tmp_path)
    file = tmp_path / "cameras" / "02.png.camera"
    file.write_text("\n".join(file.read_text().splitlines()[:lines]))
    with pytest.raises(InputFileError, match=r"02\.png\.camera.*a row a line"):
        find_scenes(tmp_path, EVERYTHING)


NONE = ((0, "0 0 0"), (1, "0 nan 0"), (4, "0 0 0"), (7, "0 inf 0"))


@pytest.mark.parametrize(
    ("row", "text", "complaint"),
    [
        *((*one, "without an inverse") for one in NONE),
        (7, "1 2", "rows of other lengths"),
        *((3, one, "distorted") for one in ("1 0 0", "0 1 0", "0 0 1")),
    ],
)
def test_a_camera_that_is_none_or_distorted_is_named(tmp_path: Path, row: int, text: str, complaint: str) -> None:
    Orbit().write_strecha(tmp_path)
    change_line(tmp_path / "cameras" / "02.png.camera", row, text)
    with pytest.raises(InputFileError, match=rf"02\.png\.camera.*{complaint}"):
        find_scenes(tmp_path, EVERYTHING)


def test_a_scene_without_images_or_without_pairs_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty" / "cameras").mkdir(parents=True)
    with pytest.raises(InputFileError, match="no images"):
        find_scenes(tmp_path, EVERYTHING)
    points = Orbit().write_strecha(tmp_path / "far")
    scenes = find_scenes(tmp_path / "far", PairSelection(max_angle=5))
    with pytest.raises(InputFileError, match="far: no pairs"):
        evaluate_scenes(scenes, [Exact(points)], PoseProtocol(), nothing)


def test_scenes_that_are_left_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = Orbit().write_strecha(tmp_path / "whole")
    points |= Orbit().write_strecha(tmp_path / "far")
    for camera in sorted((tmp_path / "far" / "cameras").iterdir())[1:-1]:
        camera.unlink()
    Orbit().write_images(tmp_path / "untold" / "images")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    scenes = find_scenes(tmp_path, PairSelection(neighbours=1, max_angle=13))
    found = evaluate_scenes(scenes, [Exact(points)], PoseProtocol(seeds=1), nothing)["exact"]
    assert {result.scene for result in found} == {"whole"}
    assert f"{tmp_path / 'untold'}: left out, as it has images/, but no cameras/" in caplog.text
    assert "far: left out, as it has no pairs" in caplog.text
    assert len(caplog.records) == 2


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        getattr(Orbit(), f"write_{layout}")(tmp_path / layout)
        [path] = (tmp_path / layout).rglob("02.png")
        path.unlink()
        with pytest.raises(InputFileError, match=r"02\.png"):
            find_scenes(tmp_path / layout, EVERYTHING)


@pytest.mark.parametrize("text", ["# nothing\n", "a.png b.png 0 0 1 2 3\n", "a b " + "x " * 36])
def test_a_wrong_pairs_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputFileError, match=r"pairs\.txt"):
        find_scenes(tmp_path, EVERYTHING)


def change_field(pairs: Path, column: int, value: str) -> None:
    """Put another number in the first pair of the file that `write_pairs` wrote."""
    fields = pairs.read_text().splitlines()[2].split()
    fields[column] = value
    change_line(pairs, 2, " ".join(fields))


@pytest.mark.parametrize(
    ("columns", "value"), [([4], "0"), ([13], "nan"), ([22], "nan"), ([22, 23, 24], "0"), ([25], "inf")]
)  # of K0, K1, R, R, t
def test_numbers_of_a_pairs_file_that_mean_nothing_are_told(tmp_path: Path, columns: list[int], value: str) -> None:
    Orbit().write_pairs(tmp_path)
    for column in columns:
        change_field(tmp_path / "pairs.txt", column, value)
    with pytest.raises(InputFileError, match=r"pairs\.txt: line 3: K or R without an inverse"):
        find_scenes(tmp_path, EVERYTHING)


def test_a_pairs_file_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    Orbit().write_pairs(tmp_path)
    (tmp_path / "pairs.txt").write_bytes(b"# Z\xfcrich\n")
    with pytest.raises(InputFileError, match=r"pairs\.txt: not readable as UTF-8"):
        find_scenes(tmp_path, EVERYTHING)


def test_figures_are_medians_over_seeds_and_means_over_scenes() -> None:
    def result(scene: str, *errors: float) -> PoseResult:
        return PoseResult(scene=scene, name0="a", name1="b", keypoints=10, matches=5, errors=np.array(errors))

    results = {"m": [result("x", 0.5, 0.5, np.inf), result("x", np.inf, 0.5, np.inf), result("y", 30, 30, 30)]}
    [row] = summary_table(results).rows
    # scene x: by seed 0.5, 1 and 0; scene y: 0
    assert row["maa@10"] == pytest.approx((0.5 + 0) / 2)
    assert row["maa@10_lowest"] == 0
    assert row["maa@10_highest"] == pytest.approx(0.5)
    assert [pair["failed"] for pair in pair_table(results).rows] == [False, True, True]
    [panel] = panels(results)
    limits, shares = panel.curves["m"]
    assert (limits[-1], shares[-1]) == (20, pytest.approx(3 / 9))


def test_points_farther_than_50_baselines_give_the_pose_too() -> None:
    random = np.random.default_rng(0)
    space = np.column_stack((random.uniform(-20, 20, (300, 2)), random.uniform(60, 90, 300)))
    turn = cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0]
    camera = CalibratedCamera(matrix=Orbit.matrix)
    for seed, step in enumerate(np.array([[0.8, 0.1, 0.0], [-0.8, -0.1, 0.0], [0.0, 0.8, 0.1], [0.0, -0.8, -0.1]])):
        views = [space @ Orbit.matrix.T, (space @ turn.T + step) @ Orbit.matrix.T]
        xy0, xy1 = (view[:, :2] / view[:, 2:] for view in views)
        found = estimate_pose(xy0, xy1, (camera, camera), seed=seed)
        assert found is not None
        assert pose_error(found, (turn, step)) < 0.1
        assert found[1] @ step > 0


def test_images_of_another_size_than_the_models_are_told(tmp_path: Path) -> None:
    points = Orbit().write_colmap(tmp_path)
    write_grey(tmp_path / "images" / Orbit().names[1], 320, 240)
    with pytest.raises(InputFileError, match=r"01\.png: 320x240 pixels, but its camera is of 640x480"):
        scene_features(find_scenes(tmp_path, EVERYTHING)[0], Exact(points), 0)


def test_scenes_that_are_links_keep_their_own_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Orbit().write_strecha(tmp_path / "store" / name / "dense")
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / name).symlink_to(tmp_path / "store" / name / "dense")
    assert [scene.name for scene in find_scenes(tmp_path / "linked", EVERYTHING)] == ["one", "two"]


def test_each_run_of_a_pose_has_its_own_seed_and_the_protocols_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def estimate(*_: object, threshold: float, seed: int) -> None:
        asked.append((threshold, seed))

    monkeypatch.setattr(pose_benchmark, "estimate_pose", estimate)
    points = Orbit(10).write_pairs(tmp_path)
    points[tmp_path / "00.png"] = points[tmp_path / "00.png"][:4]
    assert PoseProtocol().threshold == 1.0, "the paper's"
    protocol, told = PoseProtocol(threshold=2.0, seeds=3), []
    results = evaluate_scenes(find_scenes(tmp_path, EVERYTHING), [Exact(points)], protocol, told.append)["exact"]
    assert set(asked) == {(2.0, 0), (2.0, 1), (2.0, 2)}
    assert {(result.keypoints, result.matches) for result in results} == {(7, 4)}  # of 4 and 10
    assert told == [f"exact 00.png 0{index}.png" for index in range(1, 5)]


def test_areas_are_medians_over_seeds_and_matches_means() -> None:
    one = PoseResult(scene="x", name0="a", name1="b", keypoints=10, matches=5, errors=np.array([0.0, 30, 30]))
    figures = summarise([one, replace(one, keypoints=20, matches=7)])
    assert figures["auc@5"] == figures["maa@10"] == 0
    assert (figures["median_error"], figures["keypoints"], figures["matches"]) == (30, 15, 6)


def test_every_pair_has_the_cameras_of_its_own_images(tmp_path: Path) -> None:
    Orbit(10).write_strecha(tmp_path / "strecha")
    file = tmp_path / "strecha" / "cameras" / "01.png.camera"
    file.write_text(file.read_text().replace("600.0", "700.0", 1))
    Orbit(10).write_pairs(tmp_path / "pairs")
    change_field(tmp_path / "pairs" / "pairs.txt", 13, "700.0")  # the focal length of the second
    for scene in find_scenes(tmp_path, EVERYTHING):
        first = scene.pairs[0]
        assert (first.name0, first.name1) == ("00.png", "01.png")
        assert (first.camera0.matrix[0, 0], first.camera1.matrix[0, 0]) == (600, 700)


def test_thinned_pairs_are_spread_over_all(tmp_path: Path) -> None:
    Orbit(10).write_strecha(tmp_path)
    [scene] = find_scenes(tmp_path, PairSelection(max_angle=180, max_pairs=3))
    assert pairs_of(scene) == {("00", "01"), ("01", "02"), ("03", "04")}


def test_a_model_may_lie_in_sparse_0_and_scenes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        Orbit(10).write_colmap(tmp_path / name)
        (tmp_path / name / "sparse").rename(tmp_path / name / "model")
        (tmp_path / name / "sparse").mkdir()
        (tmp_path / name / "model").rename(tmp_path / name / "sparse" / "0")
    assert [scene.name for scene in find_scenes(tmp_path, EVERYTHING)] == ["a", "b", "c"]


def test_images_of_a_model_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    Orbit(10).write_colmap(tmp_path)
    lines = (tmp_path / "sparse" / "images.txt").read_text().splitlines()
    (tmp_path / "sparse" / "images.txt").write_text("\n".join([*lines[7:9], *lines[1:7], *lines[9:]]) + "\n")
    [scene] = find_scenes(tmp_path, PairSelection(neighbours=1, max_angle=180))
    assert [one.name0[:2] + one.name1[:2] for one in scene.pairs] == ["0001", "0102", "0203", "0304"]


def test_a_mark_of_utf8_is_no_name(tmp_path: Path) -> None:
    Orbit(10).write_pairs(tmp_path)
    file = tmp_path / "pairs.txt"
    lines = file.read_text().splitlines()[2:]
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert len(find_scenes(tmp_path, EVERYTHING)[0].pairs) == 4


def test_views_that_share_exactly_the_least_overlap_are_a_pair_and_one_without_points_is_in_none(
    tmp_path: Path,
) -> None:
    Orbit(10).write_colmap(tmp_path)
    write_points_seen(tmp_path, range(0), range(20), range(18, 40))  # 2 of 20
    [scene] = find_scenes(tmp_path, PairSelection(neighbours=0, max_angle=180))
    assert pairs_of(scene) == {("01", "02")}
