import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from sekd_cli import coordinates, geometry


def ramp(height: int, width: int, *, per_x: float, per_y: float) -> Tensor:
    """An image (1, 1, H, W) whose value at (x, y) is per_x * x + per_y * y."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return (per_x * x + per_y * y)[None, None]


def smooth_image(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).random((height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2)


HOMOGRAPHY = np.array([[0.9, 0.2, 5], [-0.1, 1.1, -3], [2e-3, -1e-3, 1]])


@pytest.mark.parametrize(("height", "width"), [(48, 80), (37, 95), (24, 81)])
def test_enlarging_agrees_with_opencv_to_the_half_pixel(height: int, width: int) -> None:
    image = smooth_image(24, 40)
    ours = geometry.resize_image(torch.from_numpy(image)[None, None], height, width)[0, 0].numpy()
    np.testing.assert_allclose(ours, cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), atol=2e-4)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (13, 17), (80, 120), (20, 120)])
def test_a_value_is_found_where_rescale_points_says_after_a_resize(height: int, width: int) -> None:
    positions = torch.cat((ramp(40, 60, per_x=1, per_y=0), ramp(40, 60, per_x=0, per_y=1)), dim=1)
    resized = geometry.resize_image(positions, height, width)[0].permute(1, 2, 0)
    xy = geometry.pixel_grid(height, width).reshape(height, width, 2)
    original_xy = coordinates.rescale_points(xy, torch.tensor([60 / width, 40 / height]))
    inner = (slice(4, -4), slice(4, -4))  # at the edges the image ends under the filter
    torch.testing.assert_close(resized[inner], original_xy[inner], rtol=0, atol=0.05)  # pixels of the original


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = torch.zeros(1, 1, 16, 16)
    stripes[..., ::4] = 1.0  # which no pixel beside the middle of four is
    for height in (4, 20):
        for shrunk in (geometry.resize_image(stripes, height, 4), geometry.resize_image(stripes.mT, 4, height).mT):
            torch.testing.assert_close(shrunk[..., 1:-1], torch.full((1, 1, height, 2), 0.25), rtol=0, atol=0.01)


def test_upsampling_keeps_the_places_that_sample_map_reads() -> None:
    coarse = ramp(6, 8, per_x=1.0, per_y=10.0)
    xy = torch.tensor([[[9.0, 7.0], [13.5, 11.25], [20.0, 4.0]]])
    from_coarse = geometry.sample_map(coarse, xy, map_scale=4)
    from_fine = geometry.sample_map(geometry.upsample(coarse, 4), xy)
    torch.testing.assert_close(from_fine, from_coarse)


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_map_is_enlarged_alike_in_any_order_of_memory(channels: int, factor: int) -> None:
    values = torch.randn(2, channels, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.interpolate(values, scale_factor=factor, mode="bilinear", align_corners=False)
    for order in (torch.contiguous_format, torch.channels_last):
        ordered = values.clone(memory_format=order).requires_grad_()
        found = geometry.upsample(ordered, factor)
        assert found.is_contiguous(memory_format=order)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        other = values.clone().requires_grad_()
        geometry.upsample(other, factor).square().sum().backward()
        torch.testing.assert_close(ordered.grad, other.grad)


def test_a_map_is_sampled_bilinearly_and_beyond_it_is_its_border() -> None:
    values = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    xy = torch.tensor([[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [1.0, 0.25], [-7.0, 0.0], [9.0, 9.0]]])
    expected = torch.tensor([[[0.0, 0.5, 1.5, 1.5, 0.0, 3.0]]])
    torch.testing.assert_close(geometry.sample_map(values, xy), expected)


def test_points_at_infinity_sample_a_finite_value() -> None:
    xy = torch.full((1, 3, 2), math.inf)
    assert geometry.sample_map(torch.rand(1, 2, 5, 5), xy).isfinite().all()


def test_an_identity_warp_changes_no_pixel() -> None:
    image = torch.from_numpy(smooth_image(20, 31))[None, None]
    torch.testing.assert_close(geometry.warp_image(image, torch.eye(3)[None], 20, 31), image, rtol=0, atol=1e-5)


def test_warping_an_image_agrees_with_opencv() -> None:
    image = smooth_image(60, 90)
    image_from_view = torch.from_numpy(HOMOGRAPHY).float()[None]
    ours = geometry.warp_image(torch.from_numpy(image)[None, None], image_from_view, 50, 70)[0, 0].numpy()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    theirs = cv2.warpPerspective(image, HOMOGRAPHY, (70, 50), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)  # OpenCV may round positions to 1/32 pixel


def test_points_warp_as_opencv_warps_them_and_back() -> None:
    xy = np.random.default_rng(1).uniform(0, 100, (1, 50, 2))
    target_from_source = torch.from_numpy(HOMOGRAPHY)[None]
    warped = geometry.warp_points(torch.from_numpy(xy), target_from_source)
    np.testing.assert_allclose(warped.numpy(), cv2.perspectiveTransform(xy, HOMOGRAPHY), atol=1e-9)
    back = geometry.warp_points(warped, torch.linalg.inv(target_from_source))
    np.testing.assert_allclose(back.numpy(), xy, atol=1e-9)


def test_a_view_sees_only_the_part_of_its_image_that_is_used_and_nothing_behind_the_horizon() -> None:
    image = torch.rand(2, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    maps = torch.eye(3).repeat(2, 1, 1)
    maps[0, :2] = torch.tensor([[0.9, 0.3, -4.0], [-0.2, 1.2, 1.0]])
    maps[1, 2] = torch.tensor([-0.05, 0.0, 1.0])  # the horizon at x = 20
    sizes = torch.tensor([[30.0, 20.0], [22.0, 11.0]])
    seen_image, seen = geometry.look_through(image, sizes, maps, 16, 26, border=1.97)
    xy = geometry.warp_points(geometry.pixel_grid(16, 26).expand(2, -1, -1), maps)
    for index, (width, height) in enumerate(sizes.int().tolist()):
        cropped = image[index : index + 1, :, :height, :width]
        inside = geometry.inside(xy[index], height, width, 1.97)
        assert torch.equal(seen[index].flatten(), inside)
        assert 0 < inside.sum() < 16 * 26
        expected = geometry.sample_map(cropped, xy[index : index + 1])[0, 0]
        front = xy[index].isfinite().all(dim=1)  # beyond what is used its border repeats
        torch.testing.assert_close(seen_image[index].flatten()[front], expected[front], atol=1e-4, rtol=0)
    assert not seen[1, :, 20:].any()
    behind = torch.diag(torch.tensor([1.0, 1.0, -1.0])).expand(2, 3, 3)
    assert not geometry.look_through(image, sizes, behind, 16, 26)[1].any()


def test_each_image_of_a_batch_is_warped_by_its_own_map() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    maps = geometry.translation(one, two)
    warped = geometry.warp_points(torch.zeros(2, 1, 2), maps)
    assert torch.equal(warped, torch.tensor([[[1.0, 10.0]], [[2.0, 20.0]]]))


def test_points_on_the_horizon_and_behind_it_are_at_infinity() -> None:
    tilted = geometry.tilt(torch.tensor([-0.1]), torch.tensor([0.0]))  # the horizon is the column x = 10
    warped = geometry.warp_points(torch.tensor([[[5.0, 1.0], [10.0, 1.0], [20.0, 1.0]]]), tilted)
    assert torch.equal(warped[0, 0], torch.tensor([10.0, 2.0]))
    assert warped[0, 1:].isinf().all()
    assert not geometry.inside(warped, 1000, 1000)[0, 1:].any()


def test_inside_means_between_the_outermost_pixel_centres() -> None:
    xy = torch.tensor([[0.0, 0.0], [9.0, 4.0], [9.01, 4.0], [-0.01, 0.0], [3.0, 4.5]])
    assert geometry.inside(xy, height=5, width=10).tolist() == [True, True, False, False, False]
    assert geometry.inside(torch.tensor([[2.0, 2.0], [1.9, 2.0]]), 5, 10, border=2).tolist() == [True, False]


def test_pixel_centres_are_listed_row_by_row_as_x_and_y() -> None:
    assert geometry.pixel_grid(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_an_affinity_turns_by_its_angle_and_scales_its_area() -> None:
    parameters = [torch.tensor([value]) for value in (math.pi / 2, 2.0, 0.0, 1.0)]
    turned = geometry.warp_points(torch.tensor([[[1.0, 0.0]]]), geometry.affinity(*parameters))
    torch.testing.assert_close(turned, torch.tensor([[[0.0, 2.0]]]), rtol=0, atol=1e-6)  # y points down: clockwise
    stretched = geometry.affinity(*(torch.tensor([value]) for value in (0.3, 1.5, 0.4, 1.7)))
    assert torch.linalg.det(stretched).item() == pytest.approx(1.5**2, rel=1e-5)


def test_an_affinity_stretches_then_shears_then_turns() -> None:
    parameters = [torch.tensor([value]) for value in (math.pi / 2, 1.0, math.pi / 4, 4.0)]
    found = geometry.warp_points(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), geometry.affinity(*parameters))
    # x twice, y half as long: (2, 0) and (0, 1); y added to x: (2, 0) and (1, 1); then a quarter turn
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2.0], [-1.0, 1.0]]]), rtol=0, atol=1e-6)


def test_sampling_a_map_has_the_right_gradient() -> None:
    values = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    xy = torch.tensor([[[1.3, 0.7], [3.1, 2.2]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, p: geometry.sample_map(v, p, map_scale=1.5), (values, xy))


def test_halving_takes_means_of_cells_and_agrees_with_rescaled_points() -> None:
    columns = ramp(8, 16, per_x=1, per_y=0)
    assert torch.equal(geometry.halved(columns, 0), columns)
    for octave in (1, 2):
        places = coordinates.rescale_points(torch.tensor([[3.0, 1.0]]), 2.0**octave)
        assert geometry.halved(columns, octave)[0, 0, 1, 3] == places[0, 0], "a ramp's value is its column"
    assert geometry.halved(columns[0].expand(5, 8, 16), 2).shape == (5, 2, 4)


def test_distances_are_exact_and_infinite_to_what_lies_beyond_the_horizon() -> None:
    points, others = torch.rand(2, 5, 2) * 600, torch.rand(2, 7, 2) * 600
    points[1, 3] = torch.inf
    expected = (points.double()[:, :, None] - others.double()[:, None]).square().sum(-1).sqrt()
    torch.testing.assert_close(geometry.distances(points, others), expected.float())


def test_a_point_that_is_no_number_is_the_middle_and_has_no_gradient() -> None:
    values, xy = torch.rand(1, 2, 4, 6, requires_grad=True), torch.tensor([[[torch.nan, 1.5], [2.5, torch.nan]]])
    xy.requires_grad_()
    sampled = geometry.sample_map(values, xy)
    middle = geometry.sample_map(values, torch.tensor([[[2.5, 1.5]]]))  # of 6 x 4 pixels
    torch.testing.assert_close(sampled, middle.expand_as(sampled))
    sampled.sum().backward()
    assert values.grad is not None
    assert xy.grad is not None
    assert values.grad.isfinite().all()
    assert xy.grad[0, 0, 0] == xy.grad[0, 1, 1] == 0
