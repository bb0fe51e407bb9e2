"""Aligned matches: a warped photograph, keypoints that are off in it, and where they should be."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sekd_cli import patch_alignment
from sekd_cli.coordinates import resize_matrix
from sekd_cli.patch_alignment import FARTHEST, Alignment, align, led, local_affines

HEIGHT, WIDTH = 320, 448
SLANTED = np.array([[0.95, 0.06, 8.0], [-0.08, 1.04, 12.0], [1e-4, -5e-5, 1.0]])
TURNED = np.array([[0.0, -1.0, HEIGHT - 1], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.fixture
def first(photograph: torch.Tensor) -> NDArray[np.uint8]:
    return (photograph[0, 0] * 255).round().byte().numpy()


def warped(first: NDArray[np.uint8], second_from_first: NDArray[np.float64]) -> NDArray[np.uint8]:
    """What a camera makes of it: areas where it is smaller."""
    size = np.abs(cv2.perspectiveTransform(np.array([[[0.0, 0], [WIDTH, HEIGHT]]]), second_from_first)[0])
    width, height = np.ceil(size.max(axis=0)).astype(int) + 20
    shrunk = np.sqrt(np.abs(np.linalg.det(second_from_first[:2, :2])))
    blurred = cv2.GaussianBlur(first, (0, 0), 0.4 / shrunk) if shrunk < 0.8 else first
    return np.asarray(cv2.warpPerspective(blurred, second_from_first, (int(width), int(height)), flags=cv2.INTER_CUBIC))


def places(first: NDArray[np.uint8], count: int = 150) -> NDArray[np.float32]:
    """Corners, not quite."""
    corners = cv2.goodFeaturesToTrack(first[20:-20, 20:-20], count, 0.01, 6)[:, 0]
    return np.asarray(corners + 20 + np.random.default_rng(1).uniform(-1, 1, corners.shape), dtype=np.float32)


def there(xy: NDArray[np.float32], second_from_first: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.perspectiveTransform(xy[None].astype(np.float64), second_from_first)[0])


def off(xy: NDArray[np.float64], most: float = 1.5) -> NDArray[np.float32]:
    """As a detector finds them."""
    return np.asarray(xy + np.random.default_rng(2).uniform(-most, most, xy.shape) / np.sqrt(2), dtype=np.float32)


@pytest.mark.parametrize(
    ("second_from_first", "error"),
    [
        pytest.param(np.eye(3), 0.05, id="the same"),
        pytest.param(np.array([[1, 0, 0.5], [0, 1, 0.25], [0, 0, 1]]), 0.1, id="half a pixel"),
        pytest.param(SLANTED, 0.08, id="slanted"),
        pytest.param(TURNED, 0.05, id="a quarter turn"),
        pytest.param(np.array([[-1.0, 0, WIDTH - 1], [0, 1, 0], [0, 0, 1]]), 0.05, id="mirrored"),
        pytest.param(resize_matrix(0.5, 0.5), 0.15, id="half the size"),
        pytest.param(resize_matrix(2, 2), 0.16, id="twice the size"),
    ],
)
def test_places_come_to_a_small_part_of_a_pixel(
    first: NDArray[np.uint8], second_from_first: NDArray[np.float64], error: float
) -> None:
    xy0 = places(first)
    truth = there(xy0, second_from_first)
    xy1 = off(truth)
    found = align(first, warped(first, second_from_first), xy0, xy1)
    fits = found.correlations > 0
    before, after = (np.linalg.norm(xy - truth, axis=1) for xy in (xy1, xy1 + found.offsets))
    assert fits.mean() > 0.9
    assert found.correlations[fits].min() >= patch_alignment.LEAST_ALIKE
    assert np.median(after[fits]) < error < 0.3 * np.median(before)
    np.testing.assert_array_equal(found.offsets[~fits], 0)


def test_light_changes_nothing(first: NDArray[np.uint8]) -> None:
    second = warped(first, SLANTED)
    darker = np.rint(30 + 0.4 * second.astype(np.float64)).astype(np.uint8)
    xy0 = places(first)
    xy1 = off(there(xy0, SLANTED))
    one, other = (align(first, pixels, xy0, xy1) for pixels in (second, darker))
    both = (one.correlations > 0) & (other.correlations > 0)
    assert both.mean() > 0.9
    assert np.median(np.linalg.norm(one.offsets - other.offsets, axis=1)[both]) < 0.02


def test_what_shows_something_else_isnt_moved(first: NDArray[np.uint8]) -> None:
    xy0 = places(first)
    wrong = np.random.default_rng(3).permutation(len(xy0))[: len(xy0) // 5]
    xy1 = xy0.copy()
    xy1[wrong] = xy0[np.roll(wrong, 1)]
    found = align(first, first, xy0, xy1)
    right = np.setdiff1d(np.arange(len(xy0)), wrong)
    assert (found.correlations[right] > 0.9).mean() > 0.9
    assert (found.correlations[wrong] > 0).mean() < 0.1


def test_no_place_moves_further_than_another_keypoint_would_lie(first: NDArray[np.uint8]) -> None:
    xy0 = places(first)
    found = align(first, first, xy0, xy0 + np.float32((FARTHEST + 3, 0)))
    assert np.linalg.norm(found.offsets, axis=1).max() <= FARTHEST
    assert (found.correlations == 0).mean() > 0.7


@pytest.mark.parametrize(("distance", "aligned"), [(FARTHEST - 0.5, True), (FARTHEST + 0.5, False)])
def test_where_a_place_is_found_from_afar_it_may_be_too_far(
    first: NDArray[np.uint8], distance: float, aligned: bool
) -> None:
    blurred = cv2.GaussianBlur(first, (0, 0), 3)
    xy0 = places(first)
    found = align(blurred, blurred, xy0, xy0 + np.float32((distance, 0)))
    assert ((found.correlations > 0).mean() > 0.7) == aligned
    assert ((found.correlations > 0).mean() < 0.1) != aligned


def test_what_has_not_come_to_rest_has_no_place(first: NDArray[np.uint8]) -> None:
    xy0 = places(first, 400)
    xy1, straight = off(xy0.astype(np.float64), most=6), np.eye(2)[None].repeat(len(xy0), axis=0)
    found = align(first, first, xy0, xy1, straight)
    errors = np.linalg.norm(xy1 + found.offsets - xy0, axis=1)[found.correlations > 0]
    assert len(errors) > 50
    assert ((errors > 0.1) & (errors < 1.5)).mean() < 0.01  # another thing that looks alike is farther away


@pytest.mark.parametrize("grey", [0, 1, 64, 100, 128, 255])
def test_where_nothing_is_to_be_seen_nothing_moves(grey: int) -> None:
    even = np.full((60, 60), grey, np.uint8)
    xy = np.random.default_rng(0).uniform(0, 60, (30, 2)).astype(np.float32)
    found = align(even, even, xy, xy)
    assert not found.offsets.any()
    assert not found.correlations.any()


@pytest.mark.parametrize("share", [0.001, 0.005, 0.5])
def test_specks_in_the_dark_are_not_alike(share: float) -> None:
    rng = np.random.default_rng(0)
    one, other = ((rng.random((300, 300)) < share).astype(np.uint8) for _ in range(2))
    xy = rng.uniform(20, 280, (200, 2)).astype(np.float32)
    assert not align(one, other, xy, xy, np.tile(np.eye(2), (200, 1, 1))).correlations.any()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_matches_are_enough(first: NDArray[np.uint8], count: int) -> None:
    xy = places(first)[:count]
    found = align(first, first, xy, xy)
    assert [one.shape for one in found] == [(count, 2), (count, 2, 2), (count,)]
    assert np.isfinite(np.concatenate([one.ravel() for one in found])).all()


def test_places_at_the_edge_and_beyond_are_no_trouble(first: NDArray[np.uint8]) -> None:
    xy = np.float32([[0, 0], [WIDTH - 1, HEIGHT - 1], [-3, 5], [WIDTH + 50, 1e6], [200, 0]])
    found = align(first, first, xy, xy)
    assert np.isfinite(found.offsets).all()


def test_all_matches_in_one_place_are_no_trouble(first: NDArray[np.uint8]) -> None:
    xy0, xy1 = places(first, 40), np.full((40, 2), 50, np.float32)
    for one, other in ((xy0, xy1[: len(xy0)]), (xy1[: len(xy0)], xy0)):
        found = align(first, first, one, other)
        assert np.isfinite(np.concatenate([values.ravel() for values in found])).all()


def jacobians(xy: NDArray[np.float32], homography: NDArray[np.float64]) -> NDArray[np.float64]:
    """How a homography maps what is around points (M, 2), (M, 2, 2)."""
    steps = [
        (there(xy + np.float32(step), homography) - there(xy - np.float32(step), homography)) / 2 for step in np.eye(2)
    ]
    return np.stack(steps, axis=2)


def test_neighbours_tell_what_is_around_a_match() -> None:
    rng = np.random.default_rng(4)
    xy0 = rng.uniform(0, 300, (300, 2)).astype(np.float32)
    xy1 = (there(xy0, SLANTED) + rng.normal(0, 0.5, xy0.shape)).astype(np.float32)
    xy1[:60] = rng.uniform(0, 300, (60, 2))  # wrong ones
    errors = np.linalg.norm(local_affines(xy0, xy1)[60:] - jacobians(xy0[60:], SLANTED), axis=(1, 2))
    assert np.median(errors) < 0.06
    assert np.quantile(errors, 0.95) < 0.25


def test_the_nearest_match_leads() -> None:
    xy0, xy1 = np.float32([[0, 0], [100, 0]]), np.float32([[10, 10], [50, 0]])
    affines = np.float32([[[1, 0], [0, 1]], [[0, -2], [2, 0]]])
    there, maps = led(np.float32([[3, 4], [99, 1]]), xy0, xy1, affines)
    np.testing.assert_allclose(there, [[13, 14], [48, -2]])
    np.testing.assert_array_equal(maps, affines)


def test_an_alignment_seen_from_the_other_photograph() -> None:
    affines = np.float32([[[0, -2], [2, 0]], [[1, 0.5], [0, 1]]])
    offsets = np.float32([[2, 0], [1, 1]])
    back = Alignment(offsets, affines, np.float32([0.9, 0.8])).reversed()
    np.testing.assert_allclose(back.affines @ affines, np.eye(2)[None].repeat(2, axis=0), atol=1e-6)
    np.testing.assert_allclose(back.offsets, [[0, 1], [-0.5, -1]], atol=1e-6)
    np.testing.assert_array_equal(back.correlations, np.float32([0.9, 0.8]))
    np.testing.assert_allclose(back.reversed().offsets, offsets, atol=1e-6)
