"""Where points of an image are once it is resized or turned."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sekd_cli import coordinates, geometry
from sekd_cli.coordinates import nearest_pixels


def test_the_corner_of_an_image_stays_its_corner_when_it_is_resized() -> None:
    corner = torch.tensor([-0.5, -0.5])
    assert torch.equal(coordinates.rescale_points(corner, 0.25), corner)
    assert torch.equal(coordinates.rescale_points(torch.tensor([639.5, 479.5]), 0.5), torch.tensor([319.5, 239.5]))


def test_the_first_pixel_of_a_doubled_image_lies_a_quarter_pixel_in_the_original() -> None:
    assert torch.equal(coordinates.rescale_points(torch.tensor([0.0, 0.0]), 0.5), torch.tensor([-0.25, -0.25]))
    assert torch.equal(coordinates.rescale_points(torch.tensor([0.0, 0.0]), 2.0), torch.tensor([0.5, 0.5]))


@given(st.floats(-5000, 5000), st.floats(-5000, 5000), st.floats(0.05, 20), st.floats(0.05, 20))
def test_points_rescaled_there_and_back_are_the_same(x: float, y: float, scale_x: float, scale_y: float) -> None:
    xy, scale = torch.tensor([x, y], dtype=torch.float64), torch.tensor([scale_x, scale_y], dtype=torch.float64)
    back = coordinates.rescale_points(coordinates.rescale_points(xy, scale), 1 / scale)
    torch.testing.assert_close(back, xy, rtol=1e-9, atol=1e-9)


def test_the_resize_matrix_does_what_rescale_points_does() -> None:
    xy = torch.tensor([[[0.0, 0.0], [10.0, 4.0], [-0.5, 7.25]]])
    matrix = torch.from_numpy(coordinates.resize_matrix(0.5, 3.0)).float()[None]
    torch.testing.assert_close(
        geometry.warp_points(xy, matrix), coordinates.rescale_points(xy, torch.tensor([0.5, 3.0])), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
def test_a_quarter_turn_takes_points_where_numpy_takes_pixels(turns: int) -> None:
    upright = np.arange(12).reshape(3, 4)
    turned = np.rot90(upright, turns)
    matrix = torch.from_numpy(coordinates.quarter_turn(turns, 3, 4))
    turned_xy = geometry.warp_points(geometry.pixel_grid(3, 4).double()[None], matrix[None])[0].long()
    assert turned[turned_xy[:, 1], turned_xy[:, 0]].tolist() == upright.flatten().tolist()


@pytest.mark.parametrize(("new", "old"), [(1, 7), (3, 7), (7, 7), (320, 640), (213, 641), (300, 100)])
def test_the_nearest_pixel_is_the_one_that_opencv_takes(new: int, old: int) -> None:
    axis = np.arange(old, dtype=np.uint16)[None]
    expected = cv2.resize(axis, (new, 1), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(nearest_pixels(new, old), expected[0])
