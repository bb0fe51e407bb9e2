"""Models fitted to all matches that agree, the closer the more."""

import cv2
import numpy as np
import pytest

from sekd_cli.model_fitting import (
    _costs,
    _line_gradients,
    _lines_of_samples,
    line_errors,
    refit_essential,
    refit_fundamental,
    refit_homography,
)

PLANE = np.array([[1.1, 0.1, 20], [-0.05, 0.9, 10], [1e-4, 2e-5, 1]])
STEEP = np.array([[0.6, 0.1, 20], [-0.1, 0.8, 30], [-8e-4, 1e-4, 1]])
MIRROR = np.array([[-1.0, 0, 639], [0, 1, 0], [0, 0, 1]])
CORNERS = np.array([[0.0, 0], [639, 0], [639, 479], [0, 479]])


def moved(homography: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Where a homography takes points (N, 2)."""
    return np.asarray(cv2.perspectiveTransform(xy[None], homography)[0])


def points(count: int, seed: int = 0) -> np.ndarray:
    """Anywhere in 640x480 pixels, (N, 2)."""
    return np.random.default_rng(seed).uniform(0, (640, 480), (count, 2))


def error(homography: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of the corners, pixels."""
    return float(np.linalg.norm(moved(homography, CORNERS) - moved(truth, CORNERS), axis=1).mean())


@pytest.mark.parametrize("truth", [PLANE, STEEP, MIRROR @ PLANE])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_exact_matches_give_the_exact_homography(truth: np.ndarray, dtype: type) -> None:
    xy0 = points(60)
    start = truth + np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 0]])
    fitted, near = refit_homography(start, xy0.astype(dtype), moved(truth, xy0).astype(dtype), 3.0)
    assert near.all()
    assert error(fitted, truth) < (1e-6 if dtype == np.float64 else 1e-3)
    assert fitted[2, 2] == pytest.approx(1)


def test_errors_of_which_some_are_large_are_told_from_those_that_are_small() -> None:
    ours, least_squares = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        xy0 = points(100, seed)
        scale = np.where(np.arange(100) % 4, 0.3, 1.5)[:, None]
        xy1 = moved(PLANE, xy0) + random.normal(scale=scale, size=(100, 2))
        ours.append(error(refit_homography(PLANE, xy0, xy1, 5.0)[0], PLANE))
        least_squares.append(error(cv2.findHomography(xy0, xy1, 0)[0], PLANE))
    assert np.mean(ours) < 0.7 * np.mean(least_squares)


def test_errors_are_counted_in_pixels_wherever_the_depth_is_small() -> None:
    truth = np.array([[0.3, 0, 0], [0, 0.3, 0], [-1.45e-3, 0, 1]])  # the right edge is seen 13 times as large
    ours, least_squares = [], []
    for seed in range(20):
        xy0 = points(200, seed)
        xy1 = moved(truth, xy0) + np.random.default_rng(seed).normal(size=(200, 2))
        ours.append(error(refit_homography(truth, xy0, xy1, 50.0)[0], truth))
        least_squares.append(error(cv2.findHomography(xy0, xy1, 0)[0], truth))
    assert np.mean(ours) < 1.2 * np.mean(least_squares)


def test_what_is_beyond_the_threshold_has_no_say() -> None:
    xy0 = points(60)
    xy1 = moved(PLANE, xy0) + np.random.default_rng(0).normal(scale=0.3, size=(60, 2))
    xy1[50:] += 4
    fitted, near = refit_homography(PLANE, xy0, xy1, 3.0)
    assert near.tolist() == [True] * 50 + [False] * 10
    np.testing.assert_allclose(fitted, refit_homography(PLANE, xy0[:50], xy1[:50], 3.0)[0], atol=1e-9)


def test_the_unit_of_length_and_the_origin_do_not_matter() -> None:
    xy0 = points(60)
    xy1 = moved(PLANE, xy0) + np.random.default_rng(0).normal(scale=0.5, size=(60, 2))
    fitted, _ = refit_homography(PLANE, xy0, xy1, 3.0)
    larger = np.array([[100.0, 0, 5e4], [0, 100, -3e4], [0, 0, 1]])
    there = larger @ PLANE @ np.linalg.inv(larger)
    again, _ = refit_homography(there, moved(larger, xy0), moved(larger, xy1), 300.0)
    assert error(np.linalg.inv(larger) @ again @ larger, fitted) < 1e-4


@pytest.mark.parametrize(
    "xy0", [points(7), np.full((20, 2), 100.0), np.stack((np.arange(20.0), 3 * np.arange(20.0)), axis=1)]
)
def test_points_that_determine_nothing_leave_a_homography(xy0: np.ndarray) -> None:
    fitted, near = refit_homography(PLANE, xy0, moved(PLANE, xy0) if len(xy0) else xy0, 3.0)
    assert np.isfinite(fitted).all()
    assert near.all()
    assert near.shape == (len(xy0),)


@pytest.mark.parametrize(("count", "fits"), [(7, False), (8, True)])
def test_a_homography_is_fitted_to_twice_as_many_matches_as_decide_on_it(count: int, fits: bool) -> None:
    xy0 = points(count)
    xy1 = moved(PLANE, xy0) + np.random.default_rng(0).normal(scale=0.3, size=(count, 2))
    assert np.array_equal(refit_homography(PLANE, xy0, xy1, 3.0)[0], PLANE) != fits


CAMERA = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
TURN, STEP = cv2.Rodrigues(np.array([0.03, 0.15, -0.05]))[0], np.array([0.5, 0.1, -0.2])
ESSENTIAL = np.cross(np.eye(3), STEP) @ TURN / np.linalg.norm(STEP)
FUNDAMENTAL = np.linalg.inv(CAMERA).T @ ESSENTIAL @ np.linalg.inv(CAMERA)
START = ESSENTIAL @ cv2.Rodrigues(np.array([0.002, -0.001, 0.002]))[0]
KINDS = pytest.mark.parametrize("kind", ["fundamental", "essential"])


def scene(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points in depth as a camera sees them from two places, (N, 2) pixels each."""
    xy0 = points(count, seed)
    depths = np.random.default_rng(seed).uniform(4, 10, (count, 1))
    seen = (np.column_stack((xy0, np.ones(count))) @ np.linalg.inv(CAMERA).T * depths) @ TURN.T + STEP
    projected = seen @ CAMERA.T
    return xy0, projected[:, :2] / projected[:, 2:]


def directions(xy: np.ndarray) -> np.ndarray:
    """Of pixels (N, 2)."""
    return (xy - CAMERA[:2, 2]) / CAMERA[0, 0]


def refit(kind: str, start: np.ndarray, xy0: np.ndarray, xy1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An essential or fundamental matrix of pixels, as an essential one of norm 1, and which agree to 1 px."""
    if kind == "essential":
        matrix, near = refit_essential(start, directions(xy0), directions(xy1), 1 / CAMERA[0, 0])
    else:
        matrix, near = refit_fundamental(np.linalg.inv(CAMERA).T @ start @ np.linalg.inv(CAMERA), xy0, xy1, 1.0)
        matrix = CAMERA.T @ matrix @ CAMERA
    return matrix / np.linalg.norm(matrix, 2), near


def apart(matrix: np.ndarray, other: np.ndarray) -> float:
    """Of two of norm 1, of either sign."""
    return float(min(np.abs(matrix - other).max(), np.abs(matrix + other).max()))


@KINDS
def test_exact_matches_give_the_exact_lines(kind: str) -> None:
    xy0, xy1 = scene(60)
    fitted, near = refit(kind, START, xy0, xy1)
    assert near.all()
    assert apart(fitted, ESSENTIAL) < 1e-7 < apart(START, ESSENTIAL)


@KINDS
def test_lines_are_fitted_to_small_errors_more_than_to_large_ones(kind: str) -> None:
    ours, least_squares = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        xy0, xy1 = scene(200, seed)
        xy1 += random.normal(scale=np.where(np.arange(200) % 4, 0.1, 0.5)[:, None], size=(200, 2))
        ours.append(apart(refit(kind, ESSENTIAL, xy0, xy1)[0], ESSENTIAL))
        fundamental = CAMERA.T @ cv2.findFundamentalMat(xy0, xy1, cv2.FM_8POINT)[0] @ CAMERA
        least_squares.append(apart(fundamental / np.linalg.norm(fundamental, 2), ESSENTIAL))
    assert np.mean(ours) < (0.7 if kind == "fundamental" else 0.3) * np.mean(least_squares)


@KINDS
def test_matrices_of_lines_are_of_their_kind(kind: str) -> None:
    xy0, xy1 = scene(60)
    xy1 += np.random.default_rng(0).normal(scale=0.3, size=(60, 2))
    first, second, third = np.linalg.svd(refit(kind, START, xy0, xy1)[0])[1]
    assert third < 1e-9
    assert (first - second < 1e-9) == (kind == "essential")


@KINDS
def test_what_is_beyond_the_threshold_has_no_say_in_lines(kind: str) -> None:
    xy0, xy1 = scene(60)
    xy1 += np.random.default_rng(0).normal(scale=0.2, size=(60, 2))
    xy1[50:, 1] += [6, -6] * 5
    fitted, near = refit(kind, ESSENTIAL, xy0, xy1)
    assert near.tolist() == [True] * 50 + [False] * 10
    assert apart(fitted, refit(kind, ESSENTIAL, xy0[:50], xy1[:50])[0]) < 1e-4


def test_the_unit_of_length_and_the_origin_do_not_matter_to_a_fundamental_matrix() -> None:
    xy0, xy1 = scene(60)
    xy1 += np.random.default_rng(0).normal(scale=0.3, size=(60, 2))
    fitted, near = refit_fundamental(FUNDAMENTAL, xy0, xy1, 1.0)
    larger0, larger1 = (np.array([[100.0, 0, x], [0, 100, -3e4], [0, 0, 1]]) for x in (5e4, -2e4))
    there = np.linalg.inv(larger1).T @ FUNDAMENTAL @ np.linalg.inv(larger0)
    again, same = refit_fundamental(1e3 * there, moved(larger0, xy0), moved(larger1, xy1), 100.0)
    back = larger1.T @ again @ larger0
    assert near.tolist() == same.tolist()
    assert apart(back / np.linalg.norm(back, 2), fitted / np.linalg.norm(fitted, 2)) < 1e-9


@KINDS
def test_as_many_matches_as_a_sample_has_are_fitted(kind: str) -> None:
    xy0, xy1 = scene(14)
    fitted, near = refit(kind, ESSENTIAL, xy0, xy1)
    assert near.all()
    assert apart(fitted, ESSENTIAL) < 1e-7


def test_the_cost_of_each_matrix_is_the_sum_of_its_errors_none_larger_than_the_threshold() -> None:
    xy0, xy1 = scene(30)
    one, other = (np.column_stack((directions(xy), np.ones(30))).T for xy in (xy0, xy1))
    matrices = np.stack((ESSENTIAL, START))
    errors = [np.abs(line_errors(matrix, one, other)) for matrix in matrices]
    threshold = float(np.median(errors[1]))
    assert _costs(matrices, one, other, threshold).shape == (2,)
    expected = sum(min(error, threshold) for error in errors[1])
    np.testing.assert_allclose(_costs(matrices, one, other, threshold), [0, expected], atol=1e-9)


@KINDS
def test_samples_give_matrices_of_the_kind(kind: str) -> None:
    xy0, xy1 = scene(40)
    one, other = (np.column_stack((directions(xy), np.ones(40))).reshape(2, 20, 3) for xy in (xy0, xy1))
    exact = _lines_of_samples(one, other, essential=kind == "essential")
    assert max(apart(matrix, ESSENTIAL) for matrix in exact) < 1e-6
    other[..., :2] += np.random.default_rng(0).normal(scale=0.002, size=(2, 20, 2))
    sizes = np.linalg.svd(_lines_of_samples(one, other, essential=kind == "essential"))[1]
    np.testing.assert_allclose(sizes[:, [0, 2]], [[1, 0], [1, 0]], atol=1e-9)
    assert (sizes[:, 1] > 1 - 1e-9).tolist() == [kind == "essential"] * 2


def test_gradients_are_those_of_the_errors() -> None:
    random = np.random.default_rng(0)
    xy0, xy1 = scene(5)
    one, other = (np.column_stack((directions(xy), np.ones(5))).T for xy in (xy0, xy1))
    other[:2] += random.normal(scale=0.1, size=(2, 5))  # so large that the slopes' change counts
    step = 1e-6 * random.normal(size=(3, 3))
    more, less = line_errors(np.stack((ESSENTIAL + step, ESSENTIAL - step)), one, other)
    np.testing.assert_allclose((more - less) / 2, step.ravel() @ _line_gradients(ESSENTIAL, one, other), rtol=1e-4)


def test_errors_of_lines_are_those_of_points_moved_the_least() -> None:
    xy0, xy1 = scene(5)
    xy1 += np.random.default_rng(0).normal(scale=0.5, size=(5, 2))
    one, other = (np.column_stack((xy, np.ones(5))).T for xy in (xy0, xy1))
    errors = line_errors(FUNDAMENTAL, one, other)
    there0, there1 = cv2.correctMatches(FUNDAMENTAL, xy0[None], xy1[None])
    moved_by = np.hypot(np.linalg.norm(there0[0] - xy0, axis=1), np.linalg.norm(there1[0] - xy1, axis=1))
    np.testing.assert_allclose(np.abs(errors), moved_by, rtol=1e-2)


@KINDS
@pytest.mark.parametrize("count", [5, 9])
def test_few_matches_leave_lines_as_they_are(kind: str, count: int) -> None:
    fitted, near = refit(kind, START, *scene(count))
    assert apart(fitted, START) < 1e-9
    assert near.tolist() == refit(kind, 1e-9 * START, *scene(count))[1].tolist()


@KINDS
@pytest.mark.parametrize("place", [np.array([100.0, 50]), CAMERA[:2, 2]])
def test_matches_all_in_one_place_leave_finite_lines(kind: str, place: np.ndarray) -> None:
    xy = np.tile(place, (20, 1))
    fitted, near = refit(kind, START, xy, xy)
    assert np.isfinite(fitted).all()
    assert near.shape == (20,)


@KINDS
def test_a_fit_in_the_wrong_hollow_is_left_for_a_better_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(seed: int) -> float:
        random = np.random.default_rng(seed)
        xy0, xy1 = scene(600, seed)
        xy1 += random.normal(scale=random.lognormal(np.log(0.25), 0.9, (600, 1)), size=(600, 2))
        xy1[200:] = random.uniform(0, (640, 480), (400, 2))
        start = ESSENTIAL @ cv2.Rodrigues(random.normal(scale=0.006, size=3))[0]
        return apart(refit(kind, start, xy0, xy1)[0], ESSENTIAL)

    ours = [error(seed) for seed in range(20)]
    monkeypatch.setattr("sekd_cli.model_fitting.RESAMPLINGS", 0)
    assert np.mean(ours) < 0.8 * np.mean([error(seed) for seed in range(20)])


def test_a_match_at_both_epipoles_does_no_harm() -> None:
    forward = np.cross(np.eye(3), (0.0, 0, 1))
    xy0 = np.concatenate((points(40), CAMERA[None, :2, 2]))
    depths = np.random.default_rng(0).uniform(4, 10, (41, 1))
    xy1 = (xy0 - CAMERA[:2, 2]) * depths / (depths + 1) + CAMERA[:2, 2]
    fitted, near = refit("essential", forward, xy0, xy1)
    assert near.all()
    assert apart(fitted, forward) < 1e-6
