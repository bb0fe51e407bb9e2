"""`sekd evaluate pose`: the relative pose of two photographs by an essential matrix (paper Sec. 4.3)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.estimators import estimate_pose
from sekd_cli.evaluation.homography import area_under_curve, fractions_below
from sekd_cli.evaluation.images import read_evaluation_image
from sekd_cli.evaluation.methods import LocalFeatures, Method
from sekd_cli.evaluation.plots import Panel
from sekd_cli.evaluation.pose import mean_average_accuracy, pose_error
from sekd_cli.evaluation.refinement import matched_points
from sekd_cli.evaluation.scenes import PosePair, Scene
from sekd_cli.evaluation.tables import Row, Table, mark, number, percent, text
from sekd_cli.seen_pixels import SeenPixels

logger = logging.getLogger(__name__)

AUC_THRESHOLDS = (5, 10, 20)  # degrees
MAA_LIMIT = 10  # degrees; IMC's
FAILED = 20.0  # degrees; a pair that is further off counts in none of the figures


@dataclass(frozen=True, kw_only=True)
class PoseProtocol:
    """How poses are estimated; IMC's two-view task, with mutual nearest neighbours."""

    max_size: int = 1600  # pixels, longer edge, for the features; 0 for none
    threshold: float = 1.0  # pixels of the file at the mean focal length, an inlier's largest error
    seeds: int = 5  # runs of the robust estimator; the median counts
    refine: bool = False  # the matches of sekd match --verify fundamental --refine


@dataclass(frozen=True, kw_only=True)
class PoseResult:
    """What one pair gave."""

    scene: str
    name0: str
    name1: str
    keypoints: float  # mean of both images
    matches: int
    errors: NDArray[np.float64]  # (seeds,), degrees; inf where no pose was found


def scene_features(scene: Scene, method: Method, max_size: int) -> dict[str, LocalFeatures]:
    """The features of all images of a scene, keypoints in the pixels of the files.

    Raises InputFileError where an image hasn't the size that the ground truth speaks of.
    """
    found = {}
    for name, path in scene.paths.items():
        image = read_evaluation_image(path, max_size)
        size = scene.views[name].camera.image_size if name in scene.views else None
        if size not in {None, image.original_size}:
            theirs, ours = ("x".join(map(str, one)) for one in (size, image.original_size))
            raise InputFileError(f"{path}: {ours} pixels, but its camera is of {theirs}; give the images of that size")
        found[name] = method.features(image).moved(np.linalg.inv(image.evaluated_from_original))
    return found


def scene_pixels(scene: Scene, max_size: int) -> dict[str, SeenPixels]:
    """The pixels of all images of a scene, of which `scene_features` are."""
    return {name: read_evaluation_image(path, max_size).seen for name, path in scene.paths.items()}


def evaluate_scenes(
    scenes: list[Scene], methods: list[Method], protocol: PoseProtocol, advance: Callable[[str], None]
) -> dict[str, list[PoseResult]]:
    """All pairs of all scenes by every method: label -> results. `advance(text)` is called after each pair.

    Raises InputFileError where no scene has a pair.
    """
    if not any(scene.pairs for scene in scenes):
        names = ", ".join(scene.name for scene in scenes)
        raise InputFileError(f"{names}: no pairs to measure; give more --neighbours or a larger --max-angle")
    results: dict[str, list[PoseResult]] = {method.label: [] for method in methods}
    for scene in scenes:
        if not scene.pairs:
            logger.warning("%s: left out, as it has no pairs; try a larger --max-angle or --neighbours", scene.name)
            continue
        pixels = scene_pixels(scene, protocol.max_size) if protocol.refine else {}
        for method in methods:
            features = scene_features(scene, method, protocol.max_size)
            for pair in scene.pairs:
                results[method.label].append(
                    _evaluate_pair(scene.name, pair, method, features, protocol, pixels=pixels)
                )
                advance(f"{method.label} {pair.name0} {pair.name1}")
    return results


def _evaluate_pair(
    scene: str,
    pair: PosePair,
    method: Method,
    features: dict[str, LocalFeatures],
    protocol: PoseProtocol,
    *,
    pixels: dict[str, SeenPixels],
) -> PoseResult:
    first, second = features[pair.name0], features[pair.name1]
    both = (pixels[pair.name0], pixels[pair.name1]) if protocol.refine else None
    xy0, xy1 = matched_points(method, (first, second), both, "fundamental")
    cameras = (pair.camera0, pair.camera1)
    poses = [estimate_pose(xy0, xy1, cameras, threshold=protocol.threshold, seed=s) for s in range(protocol.seeds)]
    return PoseResult(
        scene=scene,
        name0=pair.name0,
        name1=pair.name1,
        keypoints=(len(first) + len(second)) / 2,
        matches=len(xy0),
        errors=np.array([pose_error(pose, pair.pose_1_from_0) for pose in poses]),
    )


def summarise(pairs: list[PoseResult]) -> Row:
    """The figures of one method in one scene, as fractions; each is the median over seeds."""
    by_seed = np.array([pair.errors for pair in pairs]).T  # (seeds, pairs)
    areas = np.median([area_under_curve(errors, AUC_THRESHOLDS) for errors in by_seed], axis=0)
    accuracies = [mean_average_accuracy(errors, MAA_LIMIT) for errors in by_seed]
    return {
        f"maa@{MAA_LIMIT}": float(np.median(accuracies)),
        f"maa@{MAA_LIMIT}_lowest": float(np.min(accuracies)),
        f"maa@{MAA_LIMIT}_highest": float(np.max(accuracies)),
        **{f"auc@{limit}": float(area) for limit, area in zip(AUC_THRESHOLDS, areas, strict=True)},
        "median_error": float(np.median(by_seed)),
        "keypoints": float(np.mean([pair.keypoints for pair in pairs])),
        "matches": float(np.mean([pair.matches for pair in pairs])),
    }


def summary_table(results: dict[str, list[PoseResult]]) -> Table:
    """One row a method: means over scenes of each scene's figures."""
    rows = []
    for label, pairs in results.items():
        scenes = dict.fromkeys(pair.scene for pair in pairs)
        each = [summarise([pair for pair in pairs if pair.scene == scene]) for scene in scenes]
        means = {name: float(np.mean([figures[name] for figures in each])) for name in each[0]}
        rows.append({"method": label, "scenes": len(scenes), "pairs": len(pairs), **means})
    columns = (
        text("method", "method"),
        percent(f"maa@{MAA_LIMIT}", f"mAA@{MAA_LIMIT}"),
        percent((f"maa@{MAA_LIMIT}_lowest", f"maa@{MAA_LIMIT}_highest"), "worst/best seed"),
        percent(tuple(f"auc@{limit}" for limit in AUC_THRESHOLDS), f"AUC@{'/'.join(map(str, AUC_THRESHOLDS))}"),
        number("median_error", "median deg", 2),
        number("pairs", "pairs"),
        number("keypoints", "keypoints"),
        number("matches", "matches"),
    )
    return Table(title="Pose", columns=columns, rows=rows)


def pair_table(results: dict[str, list[PoseResult]]) -> Table:
    """One row a pair and method; errors are medians over seeds."""
    rows: list[Row] = []
    for label, pairs in results.items():
        for pair in pairs:
            error = float(np.median(pair.errors))
            rows.append(
                {
                    "method": label,
                    "scene": pair.scene,
                    "image0": pair.name0,
                    "image1": pair.name1,
                    "error": error,
                    "failed": error > FAILED,
                    "keypoints": pair.keypoints,
                    "matches": pair.matches,
                }
            )
    columns = (
        text("method", "method"),
        text("scene", "scene"),
        text("image0", "image 0"),
        text("image1", "image 1"),
        number("error", "error deg", 2),
        number("matches", "matches"),
        mark("failed", "failed"),
    )
    return Table(title="Pairs", columns=columns, rows=rows)


def panels(results: dict[str, list[PoseResult]]) -> list[Panel]:
    """Share of pairs against the error, all seeds together."""
    limits = np.linspace(0, AUC_THRESHOLDS[-1], 101)
    curves = {
        label: (limits.tolist(), fractions_below(np.concatenate([pair.errors for pair in pairs]), limits).tolist())
        for label, pairs in results.items()
    }
    return [Panel(title="Relative pose", x_label="pose error, degrees", y_label="share of pairs", curves=curves)]
