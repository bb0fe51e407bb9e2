"""`sekd evaluate sfm`: structure from motion through pycolmap, from any features (paper Sec. 4.3, multi-view task).

All images of a scene are matched with each other; the cameras' calibration is given and kept, the poses are found and
compared with the truth. COLMAP's settings are its own but for the smallest model, which here may have two images: of a
scene of two, points that only two see count, too.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sekd_cli.coordinates import COLMAP_OFFSET
from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.cameras import CalibratedCamera, Pose
from sekd_cli.evaluation.methods import LocalFeatures, Method
from sekd_cli.evaluation.plots import Panel
from sekd_cli.evaluation.pose import mean_average_accuracy, pose_error, relative_pose
from sekd_cli.evaluation.pose_benchmark import scene_features, scene_pixels
from sekd_cli.evaluation.refinement import refine_scene
from sekd_cli.evaluation.scenes import Scene
from sekd_cli.evaluation.tables import Column, Row, Table, mark, number, percent, text
from sekd_cli.pycolmap_extra import require_pycolmap

MAA_LIMITS = (10, 1)  # degrees
SUMMED = ("images", "registered", "points")  # over scenes; the other figures are averaged


@dataclass(frozen=True, kw_only=True)
class SfmProtocol:
    """How scenes are mapped."""

    max_size: int = 1600  # pixels, longer edge, for the features; 0 for none
    seeds: int = 3  # runs of verification and mapping; the median counts
    refine: bool = False  # move keypoints so that aligned matches agree
    threads: int = 1  # more is faster, and no longer the same from run to run


@dataclass(frozen=True, kw_only=True)
class SfmResult:
    """What one mapping of one scene gave."""

    images: int
    registered: int
    keypoints: float  # mean of all images
    points: int
    track_length: float  # images a point, mean; 0 without points
    reprojection_error: float  # pixels, mean; 0 without points
    errors: dict[tuple[str, str], float]  # degrees, of every pair of images; inf where one isn't registered


def evaluate_scenes(
    scenes: list[Scene], methods: list[Method], protocol: SfmProtocol, advance: Callable[[str], None]
) -> dict[str, dict[str, list[SfmResult]]]:
    """Map every scene by every method: label -> scene -> one result a seed. `advance(text)` is called after each.

    Raises InputFileError for a scene that has only pairs, MissingExtraError without pycolmap.
    """
    pycolmap = require_pycolmap()
    results: dict[str, dict[str, list[SfmResult]]] = {method.label: {} for method in methods}
    for scene in scenes:
        if not scene.views:
            raise InputFileError(f"{scene.name}: a pairs file has no poses to map; give cameras/ or a COLMAP model")
        if len(scene.views) == 1:
            raise InputFileError(f"{scene.name}: one image is no scene to map; leave it out")
        for method in methods:
            features = scene_features(scene, method, protocol.max_size)
            keypoints = float(np.mean([len(found) for found in features.values()]))
            if protocol.refine:
                pixels = scene_pixels(scene, protocol.max_size)
                places, matches = refine_scene(features, pixels, label=method.label)
                features = {name: replace(found, keypoints=places[name]) for name, found in features.items()}
            else:
                matches = {
                    (one, other): method.match(features[one], features[other])
                    for one, other in combinations(features, 2)
                }
            results[method.label][scene.name] = []
            for seed in range(protocol.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    database = Path(folder) / "database.db"
                    _write_database(pycolmap, database, scene, features, matches)
                    model = _map(pycolmap, database, scene, seed, protocol.threads)
                results[method.label][scene.name].append(_measure(scene, model, keypoints))
                advance(f"{method.label} {scene.name}")
    return results


def _map(pycolmap: Any, database: Path, scene: Scene, seed: int, threads: int) -> Any:
    """The largest model of a scene (a pycolmap.Reconstruction), None where there is none."""
    geometry, verifier = pycolmap.TwoViewGeometryOptions(), pycolmap.GeometricVerifierOptions()
    geometry.ransac.random_seed, verifier.num_threads = seed, threads
    pycolmap.geometric_verification(database, verifier, two_view_geometry_options=geometry)

    pipeline = pycolmap.IncrementalPipelineOptions()
    pipeline.random_seed, pipeline.num_threads, pipeline.min_model_size = seed, threads, 2
    pipeline.triangulation.ignore_two_view_tracks = len(scene.views) > 2
    pipeline.extract_colors = False
    pipeline.ba_refine_focal_length = pipeline.ba_refine_extra_params = False
    pipeline.mapper.abs_pose_refine_focal_length = pipeline.mapper.abs_pose_refine_extra_params = False
    models = pycolmap.incremental_mapping(database, scene.image_root, database.parent, pipeline)
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _write_database(
    pycolmap: Any,
    path: Path,
    scene: Scene,
    features: dict[str, LocalFeatures],
    matches: dict[tuple[str, str], NDArray[np.int64]],
) -> None:
    pycolmap.Database.open(path).close()
    for name in features:
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model, reader.camera_params = colmap_camera(scene.views[name].camera)
        pycolmap.import_images(path, scene.image_root, pycolmap.CameraMode.PER_IMAGE, [name], reader)
    with pycolmap.Database.open(path) as database:
        numbers = {name: database.read_image_with_name(name).image_id for name in features}
        for name, found in features.items():
            database.write_keypoints(numbers[name], found.keypoints + np.float32(COLMAP_OFFSET))
        for (name0, name1), pairs in matches.items():
            database.write_matches(numbers[name0], numbers[name1], pairs.astype(np.uint32))


def colmap_camera(camera: CalibratedCamera) -> tuple[str, str]:
    """COLMAP's name of a camera model and its parameters."""
    k = camera.matrix
    pinhole = [k[0, 0], k[1, 1], k[0, 2] + COLMAP_OFFSET, k[1, 2] + COLMAP_OFFSET]
    count = next(count for count in (0, 4, 8) if count >= len(camera.distortion))
    distortion = (*camera.distortion, *[0.0] * (count - len(camera.distortion)))
    model = {0: "PINHOLE", 4: "OPENCV", 8: "FULL_OPENCV"}[count]
    return model, ",".join(repr(float(value)) for value in (*pinhole, *distortion))


def _measure(scene: Scene, model: Any, keypoints: float) -> SfmResult:
    poses: dict[str, Pose] = {}
    if model is not None:
        for image in model.images.values():
            if image.has_pose:
                pose = image.cam_from_world()
                poses[image.name] = (pose.rotation.matrix(), np.asarray(pose.translation))
    errors = {}
    for name0, name1 in combinations(scene.views, 2):
        truth = relative_pose(scene.views[name0].camera_from_world, scene.views[name1].camera_from_world)
        both = name0 in poses and name1 in poses
        errors[name0, name1] = pose_error(relative_pose(poses[name0], poses[name1]) if both else None, truth)
    return SfmResult(
        images=len(scene.views),
        registered=len(poses),
        keypoints=keypoints,
        points=model.num_points3D() if model else 0,
        track_length=model.compute_mean_track_length() if model else 0.0,
        reprojection_error=model.compute_mean_reprojection_error() if model else 0.0,
        errors=errors,
    )


def summary_table(results: dict[str, dict[str, list[SfmResult]]]) -> Table:
    """One row a method: medians over seeds, then sums (images, points) or means over scenes."""
    rows: list[Row] = []
    for label, scenes in results.items():
        each = [[_figures(result) for result in runs] for runs in scenes.values()]
        medians = [{name: float(np.median([run[name] for run in runs])) for name in runs[0]} for runs in each]
        row: Row = {"method": label, "scenes": len(scenes)}
        for name in medians[0]:
            total = sum(scene[name] for scene in medians)
            row[name] = total if name in SUMMED else total / len(medians)
        rows.append(row)
    columns = (
        text("method", "method"),
        Column("registered", lambda row: f"{row['registered']:.0f}/{row['images']:.0f}"),
        number("points", "points"),
        number("track_length", "track length", 2),
        number("reprojection_error", "reprojection px", 2),
        *(percent(f"maa@{limit}", f"mAA@{limit}") for limit in MAA_LIMITS),
        number("keypoints", "keypoints"),
    )
    return Table(title="Structure from motion", columns=columns, rows=rows)


def panels(table: Table) -> list[Panel]:
    """Bars of a `summary_table`."""
    titles = {"points": "Points", "track_length": "Track length", "maa@10": "mAA@10", "maa@1": "mAA@1"}
    return [Panel(title=title, bars={row["method"]: row[name] for row in table.rows}) for name, title in titles.items()]


def pair_table(results: dict[str, dict[str, list[SfmResult]]]) -> Table:
    """One row a pair of images and method; errors are medians over seeds, inf where an image isn't registered."""
    rows: list[Row] = []
    for label, scenes in results.items():
        for scene, runs in scenes.items():
            for name0, name1 in runs[0].errors:
                error = float(np.median([run.errors[name0, name1] for run in runs]))
                row = {"method": label, "scene": scene, "image0": name0, "image1": name1, "error": error}
                rows.append({**row, "failed": error > MAA_LIMITS[0]})
    columns = (
        text("method", "method"),
        text("scene", "scene"),
        text("image0", "image 0"),
        text("image1", "image 1"),
        number("error", "error deg", 3),
        mark("failed", "failed"),
    )
    return Table(title="Pairs", columns=columns, rows=rows)


def _figures(result: SfmResult) -> dict[str, float]:
    errors = list(result.errors.values())
    return {
        "images": result.images,
        "registered": result.registered,
        "points": result.points,
        "track_length": result.track_length,
        "reprojection_error": result.reprojection_error,
        "keypoints": result.keypoints,
        **{f"maa@{limit}": mean_average_accuracy(errors, limit) for limit in MAA_LIMITS},
    }
