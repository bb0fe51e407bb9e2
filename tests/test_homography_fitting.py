"""A homography fitted to all matches that agree, the closer the more."""

import cv2
import numpy as np
import pytest

from sekd_cli.homography_fitting import refit_homography

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
