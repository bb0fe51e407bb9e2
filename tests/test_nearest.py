"""The nearest points of a plane."""

import numpy as np
import pytest

from sekd_cli.nearest import nearest


@pytest.mark.parametrize(("count", "points"), [(1, 1), (3, 3), (1, 500), (16, 500)])
def test_they_are_those_of_least_distance(count: int, points: int) -> None:
    rng = np.random.default_rng(0)
    places, xy = rng.uniform(-50, 4000, (200, 2)), rng.uniform(-50, 4000, (points, 2))
    distances = np.linalg.norm(places[:, None] - xy, axis=2)
    np.testing.assert_array_equal(nearest(places, xy, count), np.argsort(distances, axis=1)[:, :count])


def test_points_of_one_place_are_all_told() -> None:
    xy = np.repeat([[5.0, 5.0], [1e8, -1e8]], 50, axis=0)
    rows = nearest(xy, xy, 50)
    np.testing.assert_array_equal(np.sort(rows[:50], axis=1), np.tile(np.arange(50), (50, 1)))
    np.testing.assert_array_equal(np.sort(rows[50:], axis=1), np.tile(np.arange(50, 100), (50, 1)))


def test_of_no_place_there_are_none() -> None:
    assert nearest(np.empty((0, 2)), np.ones((3, 2)), 2).shape == (0, 2)
