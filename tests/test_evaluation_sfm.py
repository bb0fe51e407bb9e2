"""Structure from motion on features that are exact: COLMAP must find the poses again."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import Exact, Orbit, change_line, nothing

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation import sfm
from sekd_cli.evaluation.cameras import CalibratedCamera
from sekd_cli.evaluation.scenes import PairSelection, find_scenes


def test_exact_features_are_mapped_exactly(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    method = Exact(Orbit().write_strecha(tmp_path))
    scenes = find_scenes(tmp_path, PairSelection())
    told: list[str] = []
    results = sfm.evaluate_scenes(scenes, [method], sfm.SfmProtocol(max_size=500, seeds=1), told.append)
    assert told == [f"exact {tmp_path.name}"]
    [result] = results["exact"][tmp_path.name]
    assert (result.images, result.registered) == (5, 5)
    assert result.points == 300
    assert result.track_length == pytest.approx(5, abs=0.1)
    assert result.reprojection_error < 0.01
    assert max(result.errors.values()) < 0.01  # degrees; half a pixel would be 0.05
    [row] = sfm.summary_table(results).rows
    assert row["maa@10"] == row["maa@1"] == 1
    assert row["keypoints"] == 300


def test_features_without_matches_register_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    points = Orbit().write_strecha(tmp_path)
    none = Exact({path: np.zeros((0, 2)) for path in points})
    results = sfm.evaluate_scenes(find_scenes(tmp_path, PairSelection()), [none], sfm.SfmProtocol(seeds=1), nothing)
    [result] = results["exact"][tmp_path.name]
    assert (result.images, result.registered, result.points) == (5, 0, 0)
    [row] = sfm.summary_table(results).rows
    assert row["maa@10"] == 0
    assert all(pair["failed"] for pair in sfm.pair_table(results).rows)


def test_two_images_are_a_scene(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    method = Exact(Orbit().write_strecha(tmp_path))
    for camera in sorted((tmp_path / "cameras").iterdir())[2:]:
        camera.unlink()
    results = sfm.evaluate_scenes(find_scenes(tmp_path, PairSelection()), [method], sfm.SfmProtocol(seeds=1), nothing)
    [result] = results["exact"][tmp_path.name]
    assert (result.images, result.registered, result.points) == (2, 2, 300)
    assert max(result.errors.values()) < 0.01


def test_pairs_of_an_image_that_is_not_registered_are_infinitely_far_off(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    points = Orbit().write_strecha(tmp_path)
    method = Exact(points | {tmp_path / "images" / "02.png": np.zeros((0, 2))})
    results = sfm.evaluate_scenes(find_scenes(tmp_path, PairSelection()), [method], sfm.SfmProtocol(seeds=1), nothing)
    [result] = results["exact"][tmp_path.name]
    assert result.registered == 4
    for pair, error in result.errors.items():
        assert error == np.inf if "02.png" in pair else error < 0.01


def test_the_calibration_is_kept_as_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    method = Exact(Orbit().write_strecha(tmp_path))
    for index in range(5):
        camera = tmp_path / "cameras" / f"{index:02d}.png.camera"
        change_line(camera, 0, "650 0 319.5")  # in truth 600
    results = sfm.evaluate_scenes(find_scenes(tmp_path, PairSelection()), [method], sfm.SfmProtocol(seeds=1), nothing)
    [result] = results["exact"][tmp_path.name]
    assert result.registered == 5
    assert result.reprojection_error > 0.1


def test_a_pairs_file_can_not_be_mapped(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    method = Exact(Orbit().write_pairs(tmp_path))
    with pytest.raises(InputFileError, match="pairs file"):
        sfm.evaluate_scenes(find_scenes(tmp_path, PairSelection()), [method], sfm.SfmProtocol(), nothing)


def test_one_image_is_no_scene(tmp_path: Path) -> None:
    points = Orbit().write_strecha(tmp_path)
    for camera in sorted((tmp_path / "cameras").iterdir())[1:]:
        camera.unlink()
    with pytest.raises(InputFileError, match="one image is no scene to map"):
        sfm.evaluate_scenes(find_scenes(tmp_path, PairSelection()), [Exact(points)], sfm.SfmProtocol(), nothing)


def test_cameras_reach_colmap_half_a_pixel_on() -> None:
    assert sfm.colmap_camera(CalibratedCamera(matrix=Orbit.matrix)) == ("PINHOLE", "600.0,590.0,320.0,240.0")
    model, parameters = sfm.colmap_camera(CalibratedCamera(matrix=Orbit.matrix, distortion=(-0.1,)))
    assert (model, parameters) == ("OPENCV", "600.0,590.0,320.0,240.0,-0.1,0.0,0.0,0.0")
    for count, name in ((4, "OPENCV"), (5, "FULL_OPENCV"), (8, "FULL_OPENCV")):
        assert sfm.colmap_camera(CalibratedCamera(matrix=Orbit.matrix, distortion=(0.1,) * count))[0] == name


def result(registered: int, points: int, *errors: float) -> sfm.SfmResult:
    return sfm.SfmResult(
        images=4,
        registered=registered,
        keypoints=100,
        points=points,
        track_length=3.0,
        reprojection_error=0.5,
        errors={("a", str(index)): error for index, error in enumerate(errors)},
    )


def test_figures_are_medians_over_seeds_summed_or_averaged_over_scenes() -> None:
    scenes = {"x": [result(4, 10, 0.05), result(4, 30, 0.05), result(2, 20, np.inf)], "y": [result(2, 5, np.inf)] * 3}
    table = sfm.summary_table({"m": scenes})
    [row] = table.rows
    assert (row["registered"], row["images"], row["points"]) == (6, 8, 25)
    assert row["maa@1"] == row["maa@10"] == 0.5
    assert table.cells()[0][1] == "6/8"
    assert [panel.bars["m"] for panel in sfm.panels(table)] == [25, 3, 0.5, 0.5]


def test_pairs_farther_off_than_ten_degrees_failed() -> None:
    runs = [result(4, 10, *errors) for errors in ((5.0, 11.0), (50.0, 11.0), (5.0, 0.1))]
    rows = sfm.pair_table({"m": {"x": runs}}).rows
    assert [row["failed"] for row in rows] == [False, True]
