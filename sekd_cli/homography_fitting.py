"""A homography fitted to all matches that agree with it, the closer the more.

A robust estimator ends with the best of its samples, so a few matches decide alone (docs/EXPERIMENTS.md, 72 and 128).
"""

import cv2
import numpy as np

REFITS, FEWEST_REFITTED = 8, 8  # the latter is twice as many matches as decide on a homography
SOFT = 1.5  # medians of the errors, at which a match has half the weight of an exact one


def refit_homography(
    homography: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """A homography (3, 3) that fits the matches xy0, xy1 (M, 2) better, and which agree with it, (M,) bool.

    threshold: pixels. Least squares, again and again, with Cauchy's weights: errors of keypoints are mostly small, some
    are not, and wrong matches may lie near.
    """
    xy0, xy1 = xy0.astype(np.float64), xy1.astype(np.float64)
    for _ in range(REFITS):
        errors = _errors(homography, xy0, xy1)
        near = errors < threshold
        if near.sum() < FEWEST_REFITTED:
            break
        soft = max(SOFT * float(np.median(errors[near])), np.finfo(np.float32).eps)
        fitted = _fitted(homography, xy0[near], xy1[near], 1 / np.hypot(1, errors[near] / soft))
        if not np.isfinite(fitted).all():
            break
        homography = fitted
    return homography, _errors(homography, xy0, xy1) < threshold


def _errors(homography: np.ndarray, xy0: np.ndarray, xy1: np.ndarray) -> np.ndarray:
    """How far from its match each point of the first image lands, (M,) pixels."""
    return np.asarray(np.linalg.norm(cv2.perspectiveTransform(xy0[None], homography)[0] - xy1, axis=1))


def _fitted(homography: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The homography with the least sum of squares of errors times weights (M,), where it is near the one given.

    The direct linear transform in units of the points' spread (Hartley 1997), each match's two equations divided by
    its depth, so that they are in pixels. Not finite where the points determine nothing.
    """
    unit0, unit1 = _unit(xy0), _unit(xy1)
    points, targets = (cv2.perspectiveTransform(xy[None], unit)[0] for xy, unit in ((xy0, unit0), (xy1, unit1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = weights / (np.column_stack((xy0, np.ones(len(xy0)))) @ homography[2])
        points = np.column_stack((points, np.ones(len(points)))) * scales[:, None]
        nothing = np.zeros_like(points)
        of_x = np.column_stack((points, nothing, -targets[:, :1] * points))
        of_y = np.column_stack((nothing, points, -targets[:, 1:] * points))
        squares = of_x.T @ of_x + of_y.T @ of_y
        if not np.isfinite(squares).all():
            return np.asarray(squares)
        fitted = np.linalg.inv(unit1) @ np.linalg.eigh(squares)[1][:, 0].reshape(3, 3) @ unit0
        return np.asarray(fitted / fitted[2, 2])


def _unit(xy: np.ndarray) -> np.ndarray:
    """(3, 3): from points (M, 2) to points around (0, 0), on average at a distance of 1 along each axis."""
    centre = xy.mean(axis=0)
    scale = 1 / max(float(np.abs(xy - centre).mean()), 1e-6)
    return np.array([[scale, 0, -centre[0] * scale], [0, scale, -centre[1] * scale], [0, 0, 1]])
