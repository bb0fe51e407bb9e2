"""Geometric verification: the matches of a pair that one homography, fundamental or essential matrix explains.

OpenCV's USAC framework, then `model_fitting`: for a homography MAGSAC (Barath et al., CVPR 2020), for a fundamental or
essential matrix PROSAC (Chum and Matas, CVPR 2005), which draws its first samples from the best matches. Its sampling
starts from the same state each time, so equal matches give equal results.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from sekd_cli.config import VerificationSettings
from sekd_cli.errors import UsageError
from sekd_cli.model_fitting import (
    homogeneous,
    line_errors,
    refit_essential,
    refit_fundamental,
    refit_homography,
)

FEWEST_MATCHES = {"homography": 4, "fundamental": 8, "essential": 6}
SAMPLE = {"homography": 4, "fundamental": 7, "essential": 5}  # matches that determine a model
DEFAULT_THRESHOLDS = {"homography": 3.0, "fundamental": 1.0, "essential": 1.0}  # pixels
NEIGHBOURS, MOST_EXCHANGED = 4, 200  # one match in so many is near another; how many matches are looked at
MOST_GAINED = 1.3  # times as many agree once the model is fitted to all of them, but in one hard pair of a hundred
MIRROR = (-1.0, 1.0)  # of x and y
CONFIDENCE = 0.9999
ITERATIONS = 10_000  # with OpenCV's 1000 the mAA of one set of matches moves by 4 points from seed to seed


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera in pixels; the centre of the top-left pixel is (0, 0)."""

    focal: tuple[float, float]  # along x and y
    centre: tuple[float, float]

    def __post_init__(self) -> None:
        if not (all(map(math.isfinite, (*self.focal, *self.centre))) and min(self.focal) > 0):
            raise UsageError(f"camera: focal {self.focal}, centre {self.centre}; focal lengths are positive")

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3): from directions to pixels."""
        return np.array([[self.focal[0], 0, self.centre[0]], [0, self.focal[1], self.centre[1]], [0, 0, 1]])

    def directions(self, xy: np.ndarray) -> np.ndarray:
        """Points (M, 2) in pixels as x / z, y / z, (M, 2) float64."""
        return np.asarray((xy.astype(np.float64) - self.centre) / self.focal)


def verification_settings(
    model: str,
    threshold: float | None = None,
    min_inliers: int | None = None,
    camera: tuple[float, ...] | None = None,
) -> VerificationSettings:
    """How to verify by a model (one of MODELS), with the defaults for what isn't given. Raises UsageError."""
    return VerificationSettings(
        model=model,
        threshold=DEFAULT_THRESHOLDS[model] if threshold is None else threshold,
        min_inliers=VerificationSettings.min_inliers if min_inliers is None else min_inliers,
        camera=camera,
    )


def camera_of(values: tuple[float, ...], image_size: tuple[int, int]) -> Camera:
    """The camera that `VerificationSettings.camera` means for an image (width, height)."""
    if len(values) == 4:
        return Camera(focal=(values[0], values[1]), centre=(values[2], values[3]))
    width, height = image_size
    return Camera(focal=(values[0], values[0]), centre=((width - 1) / 2, (height - 1) / 2))


def verify(
    xy0: np.ndarray,
    xy1: np.ndarray,
    settings: VerificationSettings,
    cameras: tuple[Camera, Camera] | None = None,
    scores: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which of the matches xy0, xy1 (M, 2), in pixels, agree on the model, and the model.

    cameras: of the two images, needed for the essential matrix. scores: of the matches, (M,), by which they are tried;
    None where they come best first. Returns inliers (M,) bool and the model (3, 3) float64, or no inliers and None
    where fewer than `min_inliers` agree, or no more than chance has (`is_chance`; any will do if `min_inliers` is 0).
    Homography H: x1 ~ H x0. Fundamental matrix F: x1^T F x0 = 0. Essential matrix E: d1^T E d0 = 0 for directions
    d = (x - cx) / fx, (y - cy) / fy, 1. The largest singular value of the latter two is 1.
    """
    if scores is not None:
        order = np.argsort(-scores, kind="stable")
        inliers = np.zeros(len(xy0), dtype=bool)
        inliers[order], model = verify(xy0[order], xy1[order], settings, cameras)
        return inliers, model
    nothing = np.zeros(len(xy0), dtype=bool), None
    if len(xy0) < max(FEWEST_MATCHES[settings.model], settings.min_inliers):
        return nothing
    inliers, model = _agreed(xy0, xy1, settings, cameras)
    if model is None and settings.model == "homography":  # USAC refuses one that mirrors, as an EXIF orientation may
        inliers, model = _agreed(xy0, xy1 * MIRROR, settings, cameras)
        model = None if model is None else np.diag((*MIRROR, 1.0)) @ model
    return inliers, model


def _agreed(
    xy0: np.ndarray, xy1: np.ndarray, settings: VerificationSettings, cameras: tuple[Camera, Camera] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which matches agree on a model, and the model; none, and None, where they are too few."""
    xy0, xy1 = xy0.astype(np.float64), xy1.astype(np.float64)
    try:
        model, mask = _estimate(xy0, xy1, settings, cameras)
    except cv2.error:  # points that determine nothing (all in one place, on one line): some versions raise
        model, mask = None, None
    if model is None or mask is None or np.shape(model) != (3, 3) or not np.isfinite(model).all() or not model.any():
        return np.zeros(len(xy0), dtype=bool), None
    as_estimated = model, np.asarray(mask).ravel() > 0  # for where so few agree that one or two are too many to lose
    most = min(int(MOST_GAINED * as_estimated[1].sum()), len(xy0))
    if most < settings.min_inliers or (settings.min_inliers and is_chance(most, xy0, xy1, settings)):
        return np.zeros(len(xy0), dtype=bool), None
    for fitted, inliers in (refit(model, xy0, xy1, settings, cameras), as_estimated):
        agreeing = int(inliers.sum())
        lines = _line_matrix(fitted, settings, cameras)
        if agreeing < settings.min_inliers:
            continue
        if settings.min_inliers and is_chance(agreeing, xy0, xy1, settings, lines):
            continue
        return inliers, np.asarray(fitted if lines is None else fitted / np.linalg.norm(fitted, 2), dtype=np.float64)
    return np.zeros(len(xy0), dtype=bool), None


def refit(
    model: np.ndarray,
    xy0: np.ndarray,
    xy1: np.ndarray,
    settings: VerificationSettings,
    cameras: tuple[Camera, Camera] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A model (3, 3) fitted to all of the matches (M > 0, 2) that agree with it, and which do then, (M,) bool."""
    if settings.model == "homography":
        return refit_homography(model, xy0, xy1, settings.threshold)
    if settings.model == "fundamental":
        fitted, inliers = refit_fundamental(model, xy0, xy1, settings.threshold)
    else:
        directions, focal = _directions(xy0, xy1, cameras)
        fitted, inliers = refit_essential(model, *directions, settings.threshold / focal)
    return fitted / np.linalg.norm(fitted, 2), inliers


def is_chance(
    agreeing: int,
    xy0: np.ndarray,
    xy1: np.ndarray,
    settings: VerificationSettings,
    fundamental: np.ndarray | None = None,
) -> bool:
    """Whether so many of the matches (M, 2) may agree on some model though all are wrong.

    A number of false alarms (Moisan and Stival 2004) of one or more: of all models that samples of the matches give,
    how many are expected to have so many more matches within the threshold, if points lie anywhere; of a model of
    lines, whose `fundamental` matrix (3, 3) is given, also if each match had the second point of one nearby.
    """
    count, sample = len(xy0), SAMPLE[settings.model]
    if agreeing <= sample:
        return True
    within = max(_share_within(xy, settings) for xy in (xy0, xy1))
    if fundamental is not None:
        within = max(within, _share_exchanged(xy0, xy1, fundamental, settings.threshold))
    ways = math.log(count - sample) + _log_choices(count, agreeing) + _log_choices(agreeing, sample)
    return ways + (agreeing - sample) * math.log(within) >= 0


def _share_within(xy: np.ndarray, settings: VerificationSettings) -> float:
    """Of the box around points (M, 2) the largest share that is within the threshold of a place, or of a line."""
    width, height = np.ptp(xy, axis=0) + 1.0
    if settings.model == "homography":
        near = math.pi * settings.threshold**2
    else:
        near = 2 * settings.threshold * math.hypot(width, height)
    return float(min(1.0, near / (width * height)))


def _share_exchanged(xy0: np.ndarray, xy1: np.ndarray, fundamental: np.ndarray, threshold: float) -> float:
    """The share of matches (M, 2) that agree with a fundamental matrix, had each the second point of another one.

    Of one whose first point is among the nearest: photographs that have nothing in common have their sky above and
    their ground below, and there points lie together.
    """
    some = np.linspace(0, len(xy0) - 1, min(len(xy0), MOST_EXCHANGED)).round().astype(int)
    xy0, xy1 = xy0[some], xy1[some]
    apart = np.linalg.norm(xy0[:, None] - xy0, axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = len(xy0) // NEIGHBOURS
    near = apart <= np.partition(apart, nearest - 1, axis=1)[:, nearest - 1, None]
    first, second = np.nonzero(near)
    matrix, one, other = fundamental / np.linalg.norm(fundamental, 2), homogeneous(xy0), homogeneous(xy1)
    agreeing = np.abs(line_errors(matrix, one[:, first], other[:, second])) < threshold
    return float(max(agreeing.sum(), 1) / len(agreeing))


def _line_matrix(
    model: np.ndarray, settings: VerificationSettings, cameras: tuple[Camera, Camera] | None
) -> np.ndarray | None:
    """The fundamental matrix that a model is, or stands for; None if it has no lines."""
    if settings.model == "essential" and cameras is not None:
        first, second = (np.linalg.inv(camera.matrix) for camera in cameras)
        return np.asarray(second.T @ model @ first)
    return model if settings.model == "fundamental" else None


def _log_choices(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _estimate(
    xy0: np.ndarray, xy1: np.ndarray, settings: VerificationSettings, cameras: tuple[Camera, Camera] | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """By samples of the matches: the model, and which agree with it, (M, 1)."""
    if settings.model == "homography":
        return cv2.findHomography(
            xy0, xy1, cv2.USAC_MAGSAC, settings.threshold, maxIters=ITERATIONS, confidence=CONFIDENCE
        )
    if settings.model == "fundamental":
        return cv2.findFundamentalMat(xy0, xy1, cv2.USAC_PROSAC, settings.threshold, CONFIDENCE, ITERATIONS)
    directions, focal = _directions(xy0, xy1, cameras)
    return fit_essential(
        *directions, focal, method=cv2.USAC_PROSAC, threshold=settings.threshold, confidence=CONFIDENCE
    )


def _directions(
    xy0: np.ndarray, xy1: np.ndarray, cameras: tuple[Camera, Camera] | None
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """What both cameras make of points, and their mean focal length."""
    if cameras is None:
        raise ValueError("the essential matrix needs both cameras")
    focal = float(np.mean([camera.focal for camera in cameras]))
    return (cameras[0].directions(xy0), cameras[1].directions(xy1)), focal


def fit_essential(
    directions0: np.ndarray, directions1: np.ndarray, focal: float, *, method: int, threshold: float, confidence: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Essential matrices (3 K, 3), one below the other, of directions (M, 2), and which of these agree, (M, 1).

    method: OpenCV's. threshold: largest error of an inlier, pixels of a camera of this focal length, in whose pixels
    the points are: of directions alone, with errors of 1e-3, USAC refines nothing (docs/EXPERIMENTS.md, 111).
    """
    model, mask = cv2.findEssentialMat(
        directions0 * focal,
        directions1 * focal,
        np.diag((focal, focal, 1.0)),
        method=method,
        prob=confidence,
        threshold=threshold,
        maxIters=ITERATIONS,
    )
    return model, mask
