"""Where the two views of a pair look: what they share of a zoom, and how far the closer one enlarges."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sekd_cli.geometry import translation, warp_points
from sekd_cli.training.randomness import generator_of, log_uniform
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.views import footprints, random_affinities, random_pairs

FLAT = TrainingSettings(tilt=0.0, shear=0.0, stretch=1.0, closest=1.0, farthest=1.0, zoom=4.0)
"""Views at the photograph's own scale, changed by turns, shifts and zooms alone."""
STILL = replace(FLAT, zoom=1.0, rotation=0.0, any_rotation_share=0.0, shift=0.0)
"""Pairs of views that are the same."""


def scales(settings: TrainingSettings) -> tuple[Tensor, Tensor]:
    """Photograph pixels a view pixel, of the closer and of the farther view of 400 pairs."""
    sizes = torch.tensor([[640.0, 480.0]]).expand(400, 2)
    pairs = random_pairs(sizes, settings, torch.Generator().manual_seed(0))
    found = torch.stack([footprints(view, settings.height, settings.width).det().sqrt() for view in pairs])
    return found.amin(0), found.amax(0)


def test_a_zoom_is_shared_by_both_views() -> None:
    closer, farther = scales(FLAT)
    assert torch.allclose(closer * farther, torch.ones(400), atol=1e-4)
    assert (farther / closer).max() == pytest.approx(4.0, rel=0.05)
    assert closer.min() < 0.55


def test_with_sharp_zooms_both_views_step_back() -> None:
    closer, farther = scales(replace(FLAT, sharp_zoom=0.5))
    zoom = farther / closer
    back = (closer * farther).sqrt()
    assert zoom.max() == pytest.approx(4.0, rel=0.05)
    assert (back >= 1 - 1e-4).all()
    assert (back <= zoom**0.5 + 1e-4).all()
    assert (closer <= 1 + 1e-4).all()
    strong = zoom > 3
    assert closer[strong].max() > 0.9
    assert closer[strong].min() < 0.6


def maps_of(**changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The views of 1,000 pairs about their middles, and `second_from_first`; what isn't named stays as it is."""
    settings = replace(STILL, **changes)
    first, second = random_pairs(torch.tensor([[640.0, 480.0]]).expand(1000, 2), settings, generator_of(0))
    middle = translation(torch.tensor([(settings.width - 1) / 2]), torch.tensor([(settings.height - 1) / 2]))
    relative = torch.linalg.inv(middle) @ torch.linalg.inv(second) @ first @ middle
    return first @ middle, second @ middle, relative / relative[:, 2:, 2:]


def degrees(maps: Tensor) -> Tensor:
    return torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()


def test_one_view_lies_nearly_upright_and_the_other_is_turned_within_the_range() -> None:
    first, second, relative = maps_of(rotation=50.0)
    least = torch.minimum(degrees(first).abs(), degrees(second).abs())
    assert 10 < least.max() < 15.01
    assert 48 < degrees(relative).abs().max() < 50.01
    assert (degrees(first).abs() > 16).float().mean() > 0.2, "either may be the one that is changed more"
    assert (degrees(second).abs() > 16).float().mean() > 0.2


def test_a_share_of_the_pairs_is_turned_by_any_angle() -> None:
    turned = degrees(maps_of(rotation=50.0, any_rotation_share=0.25)[2]).abs()
    assert (turned > 50.01).float().mean() == pytest.approx(0.25 * 130 / 180, abs=0.05)
    assert turned.max() > 170


def test_views_are_as_close_as_the_settings_say() -> None:
    scale = maps_of(closest=0.6, farthest=1.1)[0][:, :2, :2].det().sqrt()
    assert (scale.min(), scale.max()) == (pytest.approx(0.6, rel=0.01), pytest.approx(1.1, rel=0.01))


def test_where_in_a_view_a_point_lies_does_not_tell_where_in_the_other() -> None:
    moved = maps_of(shift=0.4)[2][:, :2, 2]
    assert moved.abs().amax(dim=0).tolist() == pytest.approx([0.4 * STILL.width] * 2, rel=0.05)
    assert moved.mean(dim=0).abs().max() < 0.05 * STILL.width


@pytest.mark.parametrize(
    "change", [{"rotation": 50.0}, {"shear": 20.0}, {"stretch": 1.5}, {"tilt": 0.25}, {"zoom": 4.0}]
)
def test_graded_pairs_use_a_share_of_each_range(change: dict[str, float]) -> None:
    whole, share = (
        (maps_of(graded=graded, **change)[2] - torch.eye(3)).abs().amax(dim=(1, 2)) for graded in (False, True)
    )
    assert 0 < share.median() < 0.7 * whole.median()
    assert share.max() < 1.05 * whole.max()


def test_a_stretch_is_along_any_axis_and_turns_nothing() -> None:
    relative = maps_of(stretch=1.5)[2][:, :2, :2]
    torch.testing.assert_close(relative, relative.transpose(1, 2), atol=1e-4, rtol=0)
    assert relative[:, 0, 1].min() < -0.15
    assert relative[:, 0, 1].max() > 0.15


def test_a_tilt_changes_depth_in_any_direction_by_its_share_at_half_a_view() -> None:
    depth = maps_of(tilt=0.25)[2][:, 2, :2] * STILL.width / 2
    assert depth.norm(dim=1).max() == pytest.approx(0.25, rel=0.05)
    assert depth.abs().amax(dim=0).tolist() == pytest.approx([0.25, 0.25], rel=0.05)
    assert (depth[:, 0] * depth[:, 1] < 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_views_look_at_the_middle_of_a_photograph_within_three_tenths_of_it() -> None:
    places = maps_of()[0][:, :2, 2] / torch.tensor([640.0, 480.0])
    assert places.amin(dim=0).tolist() == pytest.approx([0.35, 0.35], abs=0.01)
    assert places.amax(dim=0).tolist() == pytest.approx([0.65, 0.65], abs=0.01)


def test_a_pixel_of_a_view_covers_what_its_corners_do() -> None:
    maps = torch.tensor([[[4.0, 0.5, 3], [0, 1, 5], [0, 0, 1]], [[1, 0.2, 0], [0.1, 1, 9], [0.01, -0.002, 1]]])
    middle = torch.tensor([[50.0, 31.5]]).expand(2, -1)
    step = 0.01
    aside = torch.stack([middle + torch.tensor(one) for one in ((0.0, 0.0), (step, 0.0), (0.0, step))], dim=1)
    there = warp_points(aside, maps)
    expected = (there[:, 1:] - there[:, :1]).transpose(1, 2) / step
    torch.testing.assert_close(footprints(maps, 64, 101), expected, atol=5e-3, rtol=1e-2)


def test_references_are_in_the_papers_range_about_the_middle() -> None:
    maps = random_affinities(101, 201, 2000, generator_of(0))
    middle = torch.tensor([[[100.0, 50.0]]]).expand(2000, 1, 2)
    shift = (warp_points(middle, maps) - middle)[:, 0].abs().amax(dim=0)
    assert shift.tolist() == pytest.approx([0.04 * 201, 0.04 * 101], rel=0.05)
    assert degrees(maps).abs().max() == pytest.approx(40, rel=0.02)
    scale = torch.linalg.det(maps).sqrt()
    assert (scale.min(), scale.max()) == (pytest.approx(0.7, rel=0.02), pytest.approx(1.4, rel=0.02))


def test_random_factors_stay_in_their_range_and_follow_their_generator() -> None:
    factors = log_uniform(0.5, 2.0, 4000, torch.Generator().manual_seed(3))
    assert 0.5 <= factors.min() < 0.51
    assert 1.99 < factors.max() < 2.0
    assert (factors < 1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    again = log_uniform(0.5, 2.0, 4000, torch.Generator().manual_seed(3))
    assert torch.equal(factors, again)
