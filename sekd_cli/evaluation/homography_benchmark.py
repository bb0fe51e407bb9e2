"""`sekd evaluate homography`: folders in HPatches form, every pair measured, the figures of the paper (Sec. 4.2)."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation import homography as metrics
from sekd_cli.evaluation.estimators import ESTIMATORS, estimate_homography
from sekd_cli.evaluation.images import EvaluationImage, folder_name, read_evaluation_image
from sekd_cli.evaluation.methods import Method
from sekd_cli.evaluation.refinement import matched_points
from sekd_cli.image_search import SUFFIXES
from sekd_cli.seen_pixels import SeenPixels

logger = logging.getLogger(__name__)

AUC_THRESHOLDS = (1, 3, 5)  # pixels
GROUPS = {"all": "", "illumination": "i_", "viewpoint": "v_"}  # name and the prefix of its sequences


@dataclass(frozen=True, kw_only=True)
class HomographyProtocol:
    """The paper's, by default."""

    max_size: int = 640  # pixels, longer edge; images and homographies are rescaled; 0 for none
    threshold: float = 3.0  # pixels, an inlier's largest error; also repeatability's
    seeds: int = 5  # runs of each robust estimator; the median counts
    refine: bool = False  # the matches of sekd match --verify homography --refine


@dataclass(frozen=True, kw_only=True)
class ImageSequence:
    """One folder: image 1 and the others, each with its homography in the pixels of the files."""

    name: str
    images: tuple[Path, ...]  # image 1 first
    homographies: tuple[NDArray[np.float64], ...]  # to image k from image 1, k = 2, 3, ...


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """What one pair gave."""

    sequence: str
    image: str  # the second image's file name
    keypoints: float  # mean of both images
    matches: int
    matching_accuracy: NDArray[np.float64]  # (10,), at 1 to 10 px
    repeatability: float
    localisation: float  # pixels; nan where nothing repeats
    corner_errors: dict[str, NDArray[np.float64]]  # estimator -> (seeds,), pixels; inf where it failed


def read_sequences(root: Path) -> list[ImageSequence]:
    """The sequences below a folder, or the folder itself if it is one; sorted by name.

    Raises InputFileError where there are none, or one lacks an image or has a homography that isn't three rows of three
    finite numbers with an inverse.
    """
    every = [root] if _homographies(root) else sorted(root.glob("*/"))
    folders = [folder for folder in every if _homographies(folder)]
    if not folders:
        raise InputFileError(f"{root}: no folders in HPatches form (images 1.* to 6.* and H_1_2 to H_1_6)")
    sequences = [_read_sequence(folder) for folder in folders]
    for folder, sequence in zip(folders, sequences, strict=True):
        if more := _numbered_images(folder) - {int(path.stem) for path in sequence.images}:
            logger.warning("%s: image %s left out, of which there is no homography", folder, min(more))
    for folder in every:
        if folder not in folders and _numbered_images(folder):
            logger.warning("%s: left out, as it has images, but no homographies H_1_2, ...", folder)
    return sequences


def _numbered_images(folder: Path) -> set[int]:
    """The k of its images k.png."""
    return {int(path.stem) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.stem.isdecimal()}


def _homographies(folder: Path) -> list[Path]:
    """H_1_2, H_1_3, ... in the order of their numbers; an editor's copy H_1_2~ is none."""
    files = [path for path in folder.glob("H_1_*") if re.fullmatch("H_1_[0-9]+", path.name)]
    return sorted(files, key=lambda path: int(path.name.removeprefix("H_1_")))


def _read_sequence(folder: Path) -> ImageSequence:
    images = [_image(folder, "1")]
    homographies = []
    for file in _homographies(folder):
        try:
            matrix = np.array(
                [
                    [float(value) for value in line.split()]
                    for line in file.read_text(encoding="utf-8-sig").strip().split("\n")
                ]
            )
        except (OSError, ValueError) as error:
            raise InputFileError(f"{file}: not three rows of three numbers ({error})") from error
        if matrix.shape != (3, 3):
            raise InputFileError(f"{file}: {matrix.shape} numbers, not three rows of three")
        if not metrics.invertible(matrix):
            raise InputFileError(f"{file}: a matrix without an inverse is no homography; fetch it again")
        homographies.append(matrix / np.copysign(np.abs(matrix).max(), matrix[2, 2]))  # any factor means the same
        images.append(_image(folder, file.name.removeprefix("H_1_")))
    return ImageSequence(name=folder_name(folder), images=tuple(images), homographies=tuple(homographies))


def _image(folder: Path, stem: str) -> Path:
    found = sorted(path for path in folder.glob(f"{stem}.*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(found) != 1:
        raise InputFileError(f"{folder}: {len(found)} images named {stem}.*, where one is needed")
    return found[0]


def evaluate_sequences(
    sequences: list[ImageSequence], methods: list[Method], protocol: HomographyProtocol, advance: Callable[[str], None]
) -> dict[str, list[PairResult]]:
    """All pairs of all sequences by every method: label -> results. `advance(text)` is called after each pair."""
    results: dict[str, list[PairResult]] = {method.label: [] for method in methods}
    for sequence in sequences:
        images = [read_evaluation_image(path, protocol.max_size) for path in sequence.images]
        for method in methods:
            for result in _evaluate_sequence(sequence, images, method, protocol):
                results[method.label].append(result)
                advance(f"{method.label} {result.sequence}/{result.image}")
    return results


def _evaluate_sequence(
    sequence: ImageSequence, images: list[EvaluationImage], method: Method, protocol: HomographyProtocol
) -> Iterator[PairResult]:
    """Match and measure each pair, in pixels of the evaluated images."""
    size, threshold, first = images[0].size, protocol.threshold, method.features(images[0])
    for image, original in zip(images[1:], sequence.homographies, strict=True):
        truth = image.evaluated_from_original @ original @ np.linalg.inv(images[0].evaluated_from_original)
        second = method.features(image)
        pixels = (_as_evaluated(images[0]), _as_evaluated(image)) if protocol.refine else None
        xy0, xy1 = matched_points(method, (first, second), pixels, "homography")
        share, localisation = metrics.repeatability(
            first.keypoints, second.keypoints, truth, size, image.size, threshold
        )
        errors = {}
        for name in ESTIMATORS:
            fits = (estimate_homography(xy0, xy1, name, threshold=threshold, seed=s) for s in range(protocol.seeds))
            errors[name] = np.array([metrics.corner_error(fit, truth, *size) for fit in fits])
        yield PairResult(
            sequence=sequence.name,
            image=image.path.name,
            keypoints=(len(first) + len(second)) / 2,
            matches=len(xy0),
            matching_accuracy=metrics.matching_accuracy(xy0, xy1, truth),
            repeatability=share,
            localisation=localisation,
            corner_errors=errors,
        )


def _as_evaluated(image: EvaluationImage) -> SeenPixels:
    return SeenPixels(image.grey, np.ones(2))


def summarise(pairs: list[PairResult]) -> dict[str, Any]:
    """The figures of one method over pairs, as fractions and pixels; each robust figure is the median over seeds."""
    figures: dict[str, Any] = {
        "pairs": len(pairs),
        "keypoints": _mean([pair.keypoints for pair in pairs]),
        "matches": _mean([pair.matches for pair in pairs]),
        "repeatability": _mean([pair.repeatability for pair in pairs]),
        "localisation": _mean([pair.localisation for pair in pairs if np.isfinite(pair.localisation)]),
    }
    accuracies = {}
    for estimator in ESTIMATORS:
        errors = np.array([pair.corner_errors[estimator] for pair in pairs]).T  # (seeds, pairs)
        accuracy = np.array([metrics.fractions_below(one, metrics.THRESHOLDS) for one in errors])  # (seeds, 10)
        area = np.array([metrics.area_under_curve(one, AUC_THRESHOLDS) for one in errors])
        accuracies[estimator] = float(np.median(accuracy.mean(axis=1)))
        figures[f"ha_{estimator}"] = accuracies[estimator]
        figures |= _spread(f"ha_{estimator}", metrics.THRESHOLDS, np.median(accuracy, axis=0))
        figures |= _spread(f"auc_{estimator}", AUC_THRESHOLDS, np.median(area, axis=0))
    figures["ha"] = float(np.mean(list(accuracies.values())))
    matching = np.mean([pair.matching_accuracy for pair in pairs], axis=0)
    figures |= _spread("mma", metrics.THRESHOLDS, matching)
    figures["mma"] = float(matching.mean())
    return figures


def groups_of(pairs: list[PairResult]) -> dict[str, list[PairResult]]:
    """All pairs, and those of illumination and of viewpoint sequences where there are any."""
    groups = {name: [p for p in pairs if p.sequence.startswith(prefix)] for name, prefix in GROUPS.items()}
    return {name: members for name, members in groups.items() if members}


def _spread(name: str, thresholds: tuple[int, ...], values: NDArray[np.float64]) -> dict[str, float]:
    return {f"{name}@{threshold}": float(value) for threshold, value in zip(thresholds, values, strict=True)}


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")
