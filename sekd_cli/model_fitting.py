"""Models fitted to all matches that agree with them, the closer the more.

A robust estimator ends with the best of its samples, so a few matches decide alone. Errors of keypoints are mostly
small, some are not, and wrong matches may lie near: so least squares, again and again, with Cauchy's weights
(docs/EXPERIMENTS.md, 72, 128 and 129).
"""

import cv2
import numpy as np

REFITS_POINTS, REFITS_LINES = 8, 3
SOFT_POINTS, SOFT_LINES = 1.5, 3.0  # medians of the errors, at which a match has half the weight of an exact one
RESAMPLINGS, SAMPLES, SAMPLE = 2, 20, 14  # of matches that agree on lines; twice as many as decide on them
AROUND = 10  # thresholds: what is farther from the first fit says nothing about where there is a better one
SMALLEST = float(np.finfo(np.float32).eps)
TURNS = np.cross(np.eye(3), np.eye(3)[:, None])  # (3, 3, 3), about x, y, z: what turning a vector a little adds to it


def refit_homography(
    homography: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """A homography (3, 3) that fits the matches xy0, xy1 (M, 2) better, and which agree with it, (M,) bool.

    threshold: pixels between a point and where its match is taken. Where fewer agree than twice those that decide on a
    homography, or they determine nothing, it stays as it is.
    """
    xy0, xy1 = xy0.astype(np.float64), xy1.astype(np.float64)
    for _ in range(REFITS_POINTS):
        errors = _transfer_errors(homography, xy0, xy1)
        near = errors < threshold
        if near.sum() < 8:
            break
        fitted = _fitted_homography(homography, xy0[near], xy1[near], _weights(errors[near], SOFT_POINTS))
        if not np.isfinite(fitted).all():
            break
        homography = fitted
    return homography, _transfer_errors(homography, xy0, xy1) < threshold


def refit_fundamental(
    fundamental: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Likewise a fundamental matrix (3, 3); threshold: pixels between points and lines, Sampson's distance."""
    centres = xy0.mean(axis=0), xy1.mean(axis=0)
    spread = float(np.mean([np.abs(xy - centre).mean() for xy, centre in zip((xy0, xy1), centres, strict=True)]))
    unit0, unit1 = (_scaling(1 / max(spread, 1e-6), centre) for centre in centres)
    one, other = unit0 @ homogeneous(xy0), unit1 @ homogeneous(xy1)
    in_units = np.linalg.inv(unit1).T @ fundamental @ np.linalg.inv(unit0)
    fitted, near = _fitted_lines(in_units, one, other, threshold * unit0[0, 0], essential=False)
    return unit1.T @ fitted @ unit0, near


def refit_essential(
    essential: np.ndarray, directions0: np.ndarray, directions1: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Likewise an essential matrix (3, 3) of directions (M, 2) (x / z, y / z), in whose units the threshold is."""
    one, other = homogeneous(directions0), homogeneous(directions1)
    return _fitted_lines(essential, one, other, threshold, essential=True)


def _weights(errors: np.ndarray, soft: float) -> np.ndarray:
    """Cauchy's, of errors (M,), M not 0: half for one of so many medians (in squares; here their roots)."""
    return np.asarray(1 / np.hypot(1, errors / max(soft * float(np.median(np.abs(errors))), SMALLEST)))


def _transfer_errors(homography: np.ndarray, xy0: np.ndarray, xy1: np.ndarray) -> np.ndarray:
    """How far from its match each point of the first image lands, (M,) pixels."""
    return np.asarray(np.linalg.norm(cv2.perspectiveTransform(xy0[None], homography)[0] - xy1, axis=1))


def _fitted_homography(homography: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The homography with the least sum of squares of errors times weights (M,), where it is near the one given.

    The direct linear transform in units of the points' spread (Hartley 1997), each match's two equations divided by
    its depth, so that they are in pixels. Not finite where the points determine nothing.
    """
    unit0, unit1 = _unit(xy0), _unit(xy1)
    points, targets = (cv2.perspectiveTransform(xy[None], unit)[0] for xy, unit in ((xy0, unit0), (xy1, unit1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = weights / (homography[2] @ homogeneous(xy0))
        points = homogeneous(points).T * scales[:, None]
        nothing = np.zeros_like(points)
        of_x = np.column_stack((points, nothing, -targets[:, :1] * points))
        of_y = np.column_stack((nothing, points, -targets[:, 1:] * points))
        squares = of_x.T @ of_x + of_y.T @ of_y
        if not np.isfinite(squares).all():
            return np.asarray(squares)
        fitted = np.linalg.inv(unit1) @ np.linalg.eigh(squares)[1][:, 0].reshape(3, 3) @ unit0
        return np.asarray(fitted / fitted[2, 2])


def _fitted_lines(
    matrix: np.ndarray, one: np.ndarray, other: np.ndarray, threshold: float, *, essential: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`_refit_lines` from where it is, and from the best of a few samples of those that agree.

    one, other: (3, M), in units in which they are about one. Where the best fit lies has many hollows around it; the
    one with the smallest errors, none counted as more than the threshold, is taken (locally optimised RANSAC, Chum,
    Matas and Kittler 2003).
    """
    random = np.random.default_rng(0)
    best = _refit_lines(matrix / np.linalg.norm(matrix, 2), one, other, threshold, essential=essential)
    around = np.abs(line_errors(best, one, other)) < AROUND * threshold
    some, their = one[:, around], other[:, around]
    for _ in range(RESAMPLINGS):
        agreeing = np.flatnonzero(np.abs(line_errors(best, some, their)) < threshold)
        if len(agreeing) < SAMPLE:
            break
        rows = agreeing[random.random((SAMPLES, len(agreeing))).argpartition(SAMPLE - 1, axis=1)[:, :SAMPLE]]
        sampled = _lines_of_samples(some.T[rows], their.T[rows], essential=essential)
        start = sampled[np.argmin(_costs(sampled, some, their, threshold))]
        fitted = _refit_lines(start, some, their, threshold, essential=essential)
        best = min(best, fitted, key=lambda fit: float(_costs(fit, some, their, threshold)))
    return best, np.abs(line_errors(best, one, other)) < threshold


def _refit_lines(
    matrix: np.ndarray, one: np.ndarray, other: np.ndarray, threshold: float, *, essential: bool
) -> np.ndarray:
    """A matrix U diag(1, s, 0) V^T, s = 1 if essential, fitted by Gauss and Newton's steps: U and V turn, s changes."""
    for _ in range(REFITS_LINES):
        left, (largest, second, _), right = np.linalg.svd(matrix)
        middle = np.diag((1.0, 1.0 if essential else second / largest, 0.0))
        projected = left @ middle @ right
        errors = line_errors(projected, one, other)
        near = np.abs(errors) < threshold
        if near.sum() < (10 if essential else 14):
            break
        steps = [left @ turn @ middle @ right for turn in TURNS] + [left @ middle @ turn.T @ right for turn in TURNS]
        steps += [] if essential else [np.outer(left[:, 1], right[1])]
        weights = _weights(errors[near], SOFT_LINES)
        slopes = np.reshape(steps, (-1, 9)) @ _line_gradients(projected, one[:, near], other[:, near])
        step = np.linalg.lstsq((slopes * weights).T, -errors[near] * weights, rcond=None)[0]
        turned, turned_back = (cv2.Rodrigues(angles)[0] for angles in (step[:3], step[3:6]))
        middle[1, 1] += 0 if essential else step[6]
        matrix = left @ turned @ middle @ turned_back.T @ right
    return matrix


def _lines_of_samples(one: np.ndarray, other: np.ndarray, *, essential: bool) -> np.ndarray:
    """The matrices (S, 3, 3) that samples (S, K, 3) of matches give by the eight-point algorithm."""
    equations = (other[..., :, None] * one[..., None, :]).reshape(*one.shape[:-1], 9)
    matrices = np.linalg.eigh(equations.swapaxes(-1, -2) @ equations)[1][..., 0].reshape(-1, 3, 3)
    left, sizes, right = np.linalg.svd(matrices)
    second = np.ones(len(sizes)) if essential else sizes[:, 1] / sizes[:, 0]
    return np.asarray(left[..., :1] @ right[:, :1] + second[:, None, None] * (left[..., 1:2] @ right[:, 1:2]))


def _costs(matrices: np.ndarray, one: np.ndarray, other: np.ndarray, threshold: float) -> np.ndarray:
    """Sums of the errors of all matches, none counted as more than the threshold, of matrices (..., 3, 3)."""
    return np.asarray(np.minimum(np.abs(line_errors(matrices, one, other)), threshold).sum(axis=-1))


def line_errors(matrices: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sampson's distances, signed, of points (3, M) from each other's lines by matrices (..., 3, 3): (..., M)."""
    lines, back = matrices @ one, matrices.swapaxes(-1, -2) @ other
    slopes = np.sqrt((lines[..., :2, :] ** 2 + back[..., :2, :] ** 2).sum(axis=-2))
    return np.asarray((lines * other).sum(axis=-2) / np.maximum(slopes, SMALLEST))


def _line_gradients(matrix: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How `line_errors` of one matrix change with its elements, (9, M)."""
    lines, back = matrix @ one, matrix.T @ other
    products = (lines * other).sum(axis=0)
    lines[2] = back[2] = 0  # the slopes are those of the lines' normals
    squares = np.maximum((lines**2 + back**2).sum(axis=0), SMALLEST**2)
    share = products / squares
    gradients = (other - share * lines)[:, None] * one - other[:, None] * (share * back)
    return np.asarray(gradients.reshape(9, -1) / np.sqrt(squares))


def homogeneous(xy: np.ndarray) -> np.ndarray:
    """Points (M, 2) as (3, M)."""
    return np.stack((*xy.T, np.ones(len(xy))))


def _unit(xy: np.ndarray) -> np.ndarray:
    """(3, 3): from points (M, 2) to points around (0, 0), on average at a distance of 1 along each axis."""
    centre = xy.mean(axis=0)
    return _scaling(1 / max(float(np.abs(xy - centre).mean()), 1e-6), centre)


def _scaling(scale: float, centre: np.ndarray) -> np.ndarray:
    """(3, 3): to where the centre is (0, 0), in units of 1 / scale."""
    return np.array([[scale, 0, -centre[0] * scale], [0, scale, -centre[1] * scale], [0, 0, 1]])
