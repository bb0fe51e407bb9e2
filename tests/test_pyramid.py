"""Sizes at which the network sees a photograph, and how the keypoints of all sizes become one set."""

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sekd_cli.config import ViewSettings, parse_scales
from sekd_cli.errors import UsageError
from sekd_cli.images import Photograph, read_image
from sekd_cli.level_sizes import largest_size, level_sizes
from sekd_cli.pyramid import LevelFeatures, best_of_levels, join_levels, prepare


def level(*points: tuple[float, float, float], scale: float = 1.0) -> LevelFeatures:
    """Keypoints given as x, y in the photograph and score, the best first, described by their score."""
    values = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
    return LevelFeatures(
        keypoints=values[:, :2],
        scores=values[:, 2],
        descriptors=values[None, :, 2:].clone(),
        scales=torch.full((len(values),), scale, dtype=torch.float64),
    )


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def levels_of(pixels: np.ndarray, **options: Any) -> list[np.ndarray]:
    """The sizes of a photograph that the network sees."""
    height, width = pixels.shape
    whole = Photograph(pixels=pixels, orientation=1, stored_size=(width, height))
    return [one.grey for one in prepare(whole, ViewSettings(**options)).levels]


@pytest.mark.parametrize(
    ("size", "options", "sizes"),
    [
        ((40, 30), {}, [(40, 30)]),
        ((4000, 3000), {}, [(1600, 1200)]),
        ((4000, 3000), {"max_size": 0}, [(4000, 3000)]),
        ((4000, 2), {"max_size": 100}, [(100, 1)]),
        ((800, 600), {"scales": "auto"}, [(800, 600), (400, 300), (200, 150)]),
        ((512, 256), {"scales": "auto"}, [(512, 256), (256, 128)]),
        ((512, 255), {"scales": "auto"}, [(512, 255)]),
        ((40, 30), {"scales": "auto"}, [(40, 30)]),
        ((4000, 3000), {"scales": "auto"}, [(1600, 1200), (800, 600), (400, 300), (200, 150)]),
        ((800, 600), {"scales": (0.5, 1.0, 0.5)}, [(800, 600), (400, 300)]),
        ((800, 600), {"scales": (2.0, 1.0), "max_size": 1600}, [(1600, 1200), (800, 600)]),
        ((800, 600), {"scales": (4.0, 1.0), "max_size": 1000}, [(1000, 750), (800, 600)]),
        ((1600, 1200), {"scales": (2.0, 1.0)}, [(1600, 1200)]),
        ((3, 2), {"scales": (0.1,)}, [(1, 1)]),
    ],
)
def test_sizes_are_scales_of_what_the_limit_leaves_each_once(
    size: tuple[int, int], options: dict[str, object], sizes: list[tuple[int, int]]
) -> None:
    assert level_sizes(*size, ViewSettings(**options)) == sizes  # type: ignore[arg-type]
    assert [one.shape[::-1] for one in levels_of(np.zeros(size[::-1], np.uint8), **options)] == sizes


@pytest.mark.parametrize(("size", "grey"), [((34, 59), 96), ((405, 505), 216), ((299, 377), 168), ((8, 8), 90)])
def test_an_even_image_deviates_by_nothing_at_any_size(size: tuple[int, int], grey: int) -> None:
    """By a rounding error it would count as uneven."""
    even = Photograph(pixels=np.full(size, grey, np.uint8), orientation=1, stored_size=size[::-1])
    for one in prepare(even, ViewSettings(scales=(1.0, 0.5))).levels:
        assert one.statistics == pytest.approx((grey / 255, 0), abs=1e-9)
        assert one.statistics[1] == 0


def test_nothing_is_enlarged_beyond_the_pixels_that_an_image_may_have() -> None:
    sizes = level_sizes(20_000, 10_000, ViewSettings(max_size=0, scales=(4.0, 1.0)))
    assert sizes == [(22_361, 11_180), (20_000, 10_000)]  # 250 million pixels
    assert level_sizes(30_000, 20_000, ViewSettings(max_size=0, scales=(2.0, 1.0))) == [(30_000, 20_000)]


def test_scales_are_read_as_users_write_them() -> None:
    assert parse_scales("auto") == "auto"
    assert parse_scales("1, 0.5,0.25") == (1, 0.5, 0.25)
    for text in ("", "1,", "big", "1;2"):
        with pytest.raises(UsageError, match="--scales"):
            parse_scales(text)


def test_a_point_found_at_two_scales_is_kept_as_both_see_it() -> None:
    joined = join_levels([level((10, 10, 0.9), (50, 50, 0.3)), level((10, 10, 0.5), (50, 50, 0.4), scale=2)])
    assert joined.keypoints.tolist() == [[10, 10], [10, 10], [50, 50], [50, 50]]
    assert joined.scores.tolist() == [0.9, 0.5, 0.4, 0.3]
    assert joined.scales.tolist() == [1, 2, 2, 1]
    assert joined.descriptors[0, :, 0].tolist() == [0.9, 0.5, 0.4, 0.3]


def test_the_best_are_chosen_from_all_levels_and_levels_may_be_empty() -> None:
    scores = [torch.tensor([0.6, 0.2]), torch.zeros(0), torch.tensor([0.7, 0.2, 0.1])]
    assert best_of_levels(scores, 2) == [1, 0, 1]
    assert best_of_levels(scores, 3) == [2, 0, 1], "of equal ones the first level's"
    assert best_of_levels(scores, 0) == [2, 0, 3]
    assert best_of_levels(scores[:1], 1) == [2], "an only level was chosen from before"
    assert len(join_levels([level(), level(scale=2)])) == 0


class OnGpu(Tensor):
    """A tensor that is joined with others of its kind alone."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        if func is torch.cat and len(set(map(type, args[0]))) > 1:
            raise RuntimeError("tensors on one device expected")
        return super().__torch_function__(func, types, args, kwargs)


def test_on_a_gpu_one_level_may_be_done_in_tiles_and_another_not() -> None:
    tiled, whole = torch.tensor([0.9, 0.5]).as_subclass(OnGpu), torch.tensor([0.8, 0.6])
    assert best_of_levels([tiled, whole], 3) == [1, 2]


all_scores = st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=2, max_size=4)


@given(all_scores, st.integers(1, 12))
def test_what_is_chosen_is_what_sorting_everything_chooses(scores: list[list[int]], limit: int) -> None:
    levels = [torch.tensor(sorted(one, reverse=True), dtype=torch.float32) for one in scores]
    counts = best_of_levels(levels, limit)
    chosen = [value for one, count in zip(levels, counts, strict=True) for value in one[:count].tolist()]
    assert sorted(chosen, reverse=True) == sorted((value for one in scores for value in one), reverse=True)[:limit]


def test_a_level_is_as_many_octaves_down_as_it_was_halved() -> None:
    photograph = Photograph(pixels=noise(480, 640), orientation=1, stored_size=(640, 480))
    prepared = prepare(photograph, ViewSettings(scales=(1.0, 0.5, 0.25)))
    assert [one.octaves for one in prepared.levels] == [0, 1, 2]


def test_what_is_shrunk_is_averaged_not_skipped() -> None:
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255
    [small] = levels_of(stripes, max_size=32, scales=(1.0,))
    assert small.min() >= 127
    assert small.max() <= 128


def centre(grey: np.ndarray) -> np.ndarray:
    """Where the light of an image lies, (x, y) of its extent, from 0 to 1 between its outer edges."""
    light = grey.astype(np.float64)
    return np.array(
        [
            (light.sum(axis=axis) * (np.arange(light.shape[1 - axis]) + 0.5)).sum()
            / light.sum()
            / light.shape[1 - axis]
            for axis in (0, 1)
        ]
    )


@pytest.mark.parametrize("longest", [1000, 700, 640, 500, 375, 333, 250, 199, 120])
@pytest.mark.parametrize("size", [(1000, 600), (999, 601)])
def test_what_is_shrunk_keeps_its_place_at_every_size(size: tuple[int, int], longest: int) -> None:
    pixels = np.zeros(size[::-1], np.uint8)
    cv2.circle(pixels, (300, 420), 60, (255,), -1)
    shrunk = levels_of(pixels, max_size=longest, scales=(1.0, 0.7, 0.5, 0.25))
    assert len(shrunk) == 4
    for one in shrunk:
        off = (centre(one) - centre(pixels)) * size
        assert np.abs(off).max() * one.shape[1] / size[0] < 0.05, f"{off} pixels at {one.shape}"


def test_halves_are_means_and_more_is_kept_of_what_is_fine_than_means_keep() -> None:
    across = np.arange(800)
    waves = np.tile(127.5 + 100 * np.sin(across * 2 * np.pi / 4.4), (600, 1)).round().astype(np.uint8)
    half = levels_of(waves, max_size=400)[0]
    np.testing.assert_allclose(half, waves.reshape(300, 2, 400, 2).mean(axis=(1, 3)), atol=0.51)
    shrunk = levels_of(waves, max_size=500)[0]
    means = cv2.resize(waves, (500, 375), interpolation=cv2.INTER_AREA)
    assert shrunk[:, 20:-20].std() > 1.05 * means[:, 20:-20].std()


def test_the_half_of_a_photograph_that_is_shrunk_is_the_mean_of_what_was_shrunk() -> None:
    whole, half = levels_of(noise(700, 1000), max_size=640, scales=(1.0, 0.5))
    np.testing.assert_allclose(half, whole.reshape(224, 2, 320, 2).mean(axis=(1, 3)), atol=0.51)


@pytest.mark.parametrize("size", [(480, 640), (481, 643), (427, 640), (601, 999)])
def test_the_half_of_what_is_not_shrunk_is_its_mean_to_the_bit(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    whole, half = levels_of(pixels, scales=(1.0, 0.5))
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(half, cv2.resize(pixels, half.shape[::-1], interpolation=cv2.INTER_AREA))


def test_what_is_enlarged_is_smooth() -> None:
    slope = np.tile(np.arange(0, 200, 4, dtype=np.uint8), (30, 1))
    twice = levels_of(slope, max_size=0, scales=(2.0,))[0].astype(int)
    assert set(np.diff(twice[:, 1:-1]).ravel()) == {2}


def test_a_photograph_is_never_taken_from_its_own_enlargement() -> None:
    pixels = noise(120, 160)
    _, whole, half = levels_of(pixels, max_size=0, scales=(2.0, 1.0, 0.5))
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(half, levels_of(pixels, max_size=0, scales=(0.5,))[0])


def test_a_size_above_half_is_taken_from_all_pixels() -> None:
    pixels = noise(900, 1200)
    np.testing.assert_array_equal(
        levels_of(pixels, max_size=800, scales=(1.0, 0.7))[1], levels_of(pixels, max_size=560, scales=(1.0,))[0]
    )


def test_what_is_too_fine_for_a_smaller_size_does_not_come_back_as_something_else() -> None:
    waves = np.tile(127.5 + 100 * np.sin(np.arange(900) * 2 * np.pi / 2.2), (90, 1)).round().astype(np.uint8)
    assert levels_of(waves, max_size=500, scales=(1.0,))[0][:, 20:-20].std() < 8


@pytest.mark.filterwarnings("error")
def test_pixels_that_may_only_be_read_are_shrunk_too() -> None:
    pixels = noise(300, 400)
    pixels.flags.writeable = False
    assert levels_of(pixels, max_size=250)[0].shape == (188, 250)


def test_sizes_are_those_of_the_file_where_a_jpeg_was_decoded_smaller(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), noise(480, 640))
    views = ViewSettings(max_size=0, scales=(0.5, 0.25))
    photograph = read_image(tmp_path / "a.jpg", enough=partial(largest_size, settings=views))
    assert photograph.pixels.shape == (240, 320)
    assert [one.grey.shape for one in prepare(photograph, views).levels] == [(240, 320), (120, 160)]
