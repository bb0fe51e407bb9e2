import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sekd_cli import detection
from sekd_cli.config import DetectionSettings
from sekd_cli.detection import OCTAVE_COST, detect, detect_at_once, dilate, local_maxima, max_pool, refine
from sekd_cli.errors import UsageError
from sekd_cli.features import features_of, sample_descriptors
from sekd_cli.geometry import pixel_grid
from sekd_cli.networks import DenseMaps
from sekd_cli.training.octaves import best_of_octaves

PIXELS = DetectionSettings(subpixel=False, nms_radius=2)


def random_map(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(height, width, generator=torch.Generator().manual_seed(seed))


def maxima_by_brute_force(values: np.ndarray, radius: int) -> np.ndarray:
    height, width = values.shape
    found = np.zeros_like(values, dtype=bool)
    for y in range(height):
        for x in range(width):
            window = values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            found[y, x] = values[y, x] >= window.max()
    return found


def logit(probability: Tensor) -> Tensor:
    return torch.log(probability / (1 - probability))


def gaussian_peak(x: float, y: float) -> Tensor:
    """Logits (16, 20) of a score map that is a slanted Gaussian with its top at (x, y)."""
    offset = pixel_grid(16, 20).double() - torch.tensor([x, y], dtype=torch.float64)
    inverse_covariance = torch.tensor([[0.30, 0.08], [0.08, 0.20]], dtype=torch.float64)
    exponent = -0.5 * torch.einsum("ni,ij,nj->n", offset, inverse_covariance, offset)
    return logit(0.9 * exponent.exp().clamp(min=1e-12)).reshape(16, 20).float()


@pytest.mark.parametrize("radius", [0, 1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 23), (3, 40)])
def test_local_maxima_are_those_a_brute_force_search_finds(shape: tuple[int, int], radius: int) -> None:
    values = random_map(*shape)
    assert np.array_equal(local_maxima(values, radius).numpy(), maxima_by_brute_force(values.numpy(), radius))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 6), st.integers(0, 1000))
def test_dilation_on_the_cpu_and_max_pooling_elsewhere_give_the_same(
    height: int, width: int, radius: int, seed: int
) -> None:
    values = random_map(height, width, seed)
    assert np.array_equal(dilate(values.numpy(), radius), max_pool(values, radius))


def test_maps_of_a_batch_have_the_maxima_and_the_refined_peaks_that_each_has_alone() -> None:
    maps = torch.stack([random_map(20, 31, seed) for seed in range(6)]).reshape(2, 3, 20, 31)
    together = local_maxima(maps, 2)
    x, y = torch.randint(31, (2, 3, 40)), torch.randint(20, (2, 3, 40))
    peaks = refine(maps, x, y)
    for row in range(2):
        for column in range(3):
            one = maps[row, column]
            assert torch.equal(together[row, column], local_maxima(one, 2))
            assert torch.equal(max_pool(maps, 2)[row, column], max_pool(one, 2))
            assert torch.equal(peaks[row, column], refine(one, x[row, column], y[row, column]))


@given(
    st.integers(0, 1000),
    st.integers(1, 4),
    st.sampled_from([2, 3, 30, 10**6]),
    st.sampled_from([0, 1, 5, 50]),
    st.sampled_from([(False, 0.0), (True, 0.0), (True, 0.5), (False, 0.999999)]),
)
def test_what_many_maps_have_at_once_is_what_each_has_alone(
    seed: int, radius: int, levels: int, most: int, limits: tuple[bool, float]
) -> None:
    masked, threshold = limits
    maps = torch.stack([(random_map(24, 31, seed + index) * levels).round() / levels for index in range(4)])
    maps[1] = 0.0  # one plateau
    mask = torch.rand(4, 24, 31, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[2] = False
    octaves = torch.tensor([0.0, 1.0, 0.0, 0.5])
    settings = DetectionSettings(max_keypoints=most, nms_radius=radius, threshold=threshold)
    keypoints, scores = detect_at_once(maps, settings, mask if masked else None, octaves=octaves)
    assert len(keypoints) == len(scores) == 4
    assert keypoints.shape[1] <= 22 * 29  # what the plateau has, and no other map more
    for index in range(4):
        only = mask[index] if masked else None
        alone, of_each = detect(maps[index], settings, only, octaves=float(octaves[index]))
        found = scores[index] > 0
        assert torch.equal(keypoints[index][found], alone)
        torch.testing.assert_close(scores[index][found], of_each, rtol=1e-6, atol=0)


def test_of_three_equal_peaks_the_first_and_the_last_may_be_one_plateau() -> None:
    values = torch.full((12, 24), -9.0)
    values[5, 5] = values[5, 20] = values[6, 5] = 1.0
    keypoints, scores = detect_at_once(values[None], replace(PIXELS, threshold=0.5), None, octaves=torch.zeros(1))
    assert keypoints[0][scores[0] > 0].tolist() == [[5, 5], [20, 5]]


def test_only_maps_with_equal_neighbours_are_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    again = []

    def noted(score_logits: Tensor, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        again.append(score_logits)
        return detect(score_logits, *given, **more)

    monkeypatch.setattr(detection, "detect", noted)
    maps = torch.full((4, 20, 30), -9.0)
    maps[0, [5, 5, 5, 5], [5, 11, 17, 23]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    maps[1, 5, [5, 20]] = maps[2, [5, 15], 5] = maps[3, 5, [5, 7]] = 1.0
    keypoints, scores = detect_at_once(maps, replace(PIXELS, threshold=0.5), None, octaves=torch.zeros(4))
    assert (scores > 0).sum(dim=1).tolist() == [4, 2, 2, 1]
    assert keypoints[1:, :1].tolist() == [[[5, 5]]] * 3
    assert len(again) == 1
    assert torch.equal(again[0], maps[3])


def test_of_equal_peaks_the_first_is_kept_whichever_a_device_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(values: Tensor, count: int, **_: int) -> torch.return_types.topk:
        order = values.flip(-1).argsort(descending=True, stable=True)[..., :count]
        indices = values.shape[-1] - 1 - order
        return torch.return_types.topk((values.gather(-1, indices), indices))

    monkeypatch.setattr(Tensor, "topk", last)
    values = torch.full((12, 40), -9.0)
    values[5, [5, 20, 35]] = 1.0
    settings = replace(PIXELS, threshold=0.5, max_keypoints=1)
    keypoints, _ = detect_at_once(values[None], settings, None, octaves=torch.zeros(1))
    assert keypoints[0].tolist() == [[5, 5]]


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 6))
def test_no_two_keypoints_are_nearer_than_the_radius_however_many_pixels_tie(
    seed: int, radius: int, levels: int
) -> None:
    few_values = (random_map(24, 31, seed) * levels).round() / levels
    keypoints, _ = detect(few_values, DetectionSettings(nms_radius=radius, subpixel=False, threshold=0))
    apart = (keypoints[:, None] - keypoints[None]).abs().amax(dim=-1)
    apart.fill_diagonal_(math.inf)
    assert apart.min() > radius


@given(st.integers(0, 1000))
def test_without_ties_every_local_maximum_is_a_keypoint_but_for_those_on_the_edge(seed: int) -> None:
    values = random_map(20, 30, seed)
    keypoints, _ = detect(values, replace(PIXELS, threshold=0))
    found = torch.zeros(20, 30, dtype=torch.bool)
    found[keypoints[:, 1].long(), keypoints[:, 0].long()] = True
    expected = local_maxima(values, 2)
    expected[[0, -1]] = expected[:, [0, -1]] = False
    assert torch.equal(found, expected)


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([2, 4, 8, 40, 200]))
def test_a_maximum_counts_where_none_before_it_in_its_window_is_equal(seed: int, radius: int, levels: int) -> None:
    few_values = (random_map(20, 27, seed) * levels).round() / levels
    keypoints, _ = detect(
        few_values, DetectionSettings(max_keypoints=0, nms_radius=radius, subpixel=False, threshold=0)
    )
    maxima = maxima_by_brute_force(few_values.numpy(), radius)
    maxima[[0, -1]] = maxima[:, [0, -1]] = False
    y, x = np.nonzero(maxima)
    near = np.maximum(abs(y[:, None] - y), abs(x[:, None] - x)) <= radius
    first = ~np.tril(near, -1).any(axis=1)  # row by row; what shares a window is equal
    assert set(map(tuple, keypoints.int().tolist())) == set(zip(x[first].tolist(), y[first].tolist(), strict=True))


def test_a_slope_that_rises_towards_the_edge_has_no_keypoint() -> None:
    rising = torch.arange(30.0).expand(20, 30)
    for values in (rising, rising.flip(1), rising[:, :20].T, rising[:, :20].T.flip(0)):
        settings = DetectionSettings(nms_radius=2, threshold=0)
        assert not len(detect(values.contiguous(), settings)[0])
        assert not detect_at_once(values.contiguous()[None], settings, None, octaves=torch.zeros(1))[1].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 9), (9, 2)])
def test_a_map_that_is_all_edge_has_no_keypoint(shape: tuple[int, int]) -> None:
    assert not len(detect(torch.ones(shape), DetectionSettings(nms_radius=2, threshold=0))[0])


def test_an_even_map_has_one_keypoint() -> None:
    keypoints, scores = detect(torch.zeros(40, 50), DetectionSettings(nms_radius=4, threshold=0.3))
    assert keypoints.tolist() == [[1.0, 1.0]]
    assert scores.tolist() == [0.5]


def test_equal_peaks_that_are_apart_are_all_keypoints() -> None:
    values = torch.full((20, 30), -9.0)
    values[5, 5] = values[5, 20] = values[15, 5] = 2.0
    keypoints, _ = detect(values, replace(PIXELS, threshold=0.5))
    assert keypoints.tolist() == [[5, 5], [20, 5], [5, 15]]  # row by row


def test_keypoints_are_x_and_y_with_the_best_score_first() -> None:
    values = torch.full((10, 30), -9.0)
    values[2, 25], values[7, 3] = logit(torch.tensor(0.6)), logit(torch.tensor(0.8))
    keypoints, scores = detect(values, replace(PIXELS, threshold=0.5))
    assert keypoints.tolist() == [[3, 7], [25, 2]]
    torch.testing.assert_close(scores, torch.tensor([0.8, 0.6]))


def test_only_scores_above_the_threshold_count() -> None:
    values = torch.full((10, 30), -9.0)
    values[5, 5], values[5, 20] = logit(torch.tensor(0.39)), logit(torch.tensor(0.41))
    keypoints, _ = detect(values, replace(PIXELS, threshold=0.4))
    assert keypoints.tolist() == [[20, 5]]


def test_the_best_are_kept_and_zero_keeps_all() -> None:
    values = random_map(40, 50)
    every_keypoint, every_score = detect(values, DetectionSettings(max_keypoints=0, nms_radius=4, threshold=0))
    best, best_scores = detect(values, DetectionSettings(max_keypoints=7, nms_radius=4, threshold=0))
    assert len(every_keypoint) > 7
    assert torch.equal(best, every_keypoint[:7])
    assert torch.equal(best_scores, every_score[:7])
    assert torch.equal(every_score, every_score.sort(descending=True)[0])


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([2, 3, 30]), st.sampled_from([1, 5, 40]))
def test_the_best_are_kept_where_plateaus_take_many_away(seed: int, radius: int, levels: int, most: int) -> None:
    values = (random_map(30, 40, seed) * levels).round() / levels
    values[:10] = 2.0  # four hundred maxima, few keypoints
    every_keypoint, every_score = detect(values, DetectionSettings(max_keypoints=0, nms_radius=radius, threshold=0))
    best, best_scores = detect(values, DetectionSettings(max_keypoints=most, nms_radius=radius, threshold=0))
    assert torch.equal(best, every_keypoint[:most])
    assert torch.equal(best_scores, every_score[:most])


def test_no_keypoint_lies_where_the_mask_is_false() -> None:
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[:, 25:] = True
    keypoints, _ = detect(random_map(40, 50), replace(PIXELS, threshold=0), mask=mask)
    unmasked, _ = detect(random_map(40, 50), replace(PIXELS, threshold=0))
    assert 0 < len(keypoints) < len(unmasked)
    assert (keypoints[:, 0] >= 25).all()


@pytest.mark.parametrize("subpixel", [True, False])
def test_a_map_below_the_threshold_has_no_keypoints(subpixel: bool) -> None:
    settings = DetectionSettings(subpixel=subpixel, nms_radius=4, threshold=0.5)
    keypoints, scores = detect(torch.full((20, 20), -5.0), settings)
    assert keypoints.shape == (0, 2)
    assert keypoints.dtype == torch.float32
    assert scores.shape == (0,)


@pytest.mark.parametrize(("x", "y"), [(10.0, 8.0), (10.4, 7.7), (9.51, 8.49), (10.25, 8.0)])
def test_the_top_of_a_gaussian_is_found_exactly(x: float, y: float) -> None:
    keypoints, _ = detect(gaussian_peak(x, y), DetectionSettings(nms_radius=4, threshold=0.4))
    torch.testing.assert_close(keypoints, torch.tensor([[x, y]]), rtol=0, atol=1e-3)


def test_a_peak_whose_top_lies_beyond_the_next_pixel_moves_one_pixel_at_most() -> None:
    values = gaussian_peak(12.7, 8.0)
    moved = refine(values, torch.tensor([10]), torch.tensor([8]))
    assert moved[0, 0] == 11.0


def test_a_flat_place_a_saddle_and_a_pit_stay_on_their_pixel() -> None:
    flat = torch.zeros(5, 5)
    saddle = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, -0.5], [0.0, 1.5, 0.0]])
    pit = torch.tensor([[2.0, 1.0, 2.0], [1.0, 0.0, 1.5], [2.0, 1.5, 2.0]])
    assert refine(flat, torch.tensor([2]), torch.tensor([2])).tolist() == [[2, 2]]
    for values in (saddle, saddle.T.contiguous(), pit):
        assert refine(values, torch.tensor([1]), torch.tensor([1])).tolist() == [[1, 1]]


@given(st.integers(0, 1000))
def test_refined_keypoints_stay_between_the_outermost_pixel_centres(seed: int) -> None:
    keypoints, _ = detect(random_map(6, 9, seed), DetectionSettings(nms_radius=1, threshold=0))
    assert (keypoints >= 0).all()
    assert (keypoints <= torch.tensor([8, 5])).all()


def test_keypoints_are_float32_from_a_half_precision_map_that_asks_for_gradients() -> None:
    values = gaussian_peak(10.0, 8.0).bfloat16().requires_grad_()
    keypoints, scores = detect(values, DetectionSettings(nms_radius=4, threshold=0.4))
    assert keypoints.dtype == scores.dtype == torch.float32
    assert keypoints.shape == (1, 2)
    assert not keypoints.requires_grad


def test_descriptors_have_unit_length_and_are_read_from_every_map_at_its_own_scale() -> None:
    xy = pixel_grid(8, 16).reshape(1, 8, 16, 2)
    coarse = torch.stack((torch.ones(1, 2, 4), torch.zeros(1, 2, 4)), dim=1)  # 1/4: always (1, 0)
    fine = xy[..., :1].permute(0, 3, 1, 2)  # 1/1: the column
    descriptors = sample_descriptors((coarse, fine), torch.tensor([[[0.0, 3.0], [1.0, 3.0], [7.0, 1.0]]]), width=16)
    expected = torch.tensor([[1, 0, 0], [1, 0, 1], [1, 0, 7]]) / torch.tensor([[1], [2], [50]]).sqrt()
    torch.testing.assert_close(descriptors, expected[None])


def test_a_descriptor_at_the_centre_of_a_cell_is_that_cell() -> None:
    cells = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    descriptors = sample_descriptors((cells,), torch.tensor([[[9.5, 5.5]]]), width=16)  # cell (2, 1) of 4 x 4 pixels
    expected = cells[0, :, 1, 2] / cells[0, :, 1, 2].norm()
    torch.testing.assert_close(descriptors[0, 0], expected)


def test_features_of_a_batch_are_those_of_each_image_alone() -> None:
    logits = torch.stack((random_map(32, 48, 1), random_map(32, 48, 2)))
    descriptors = torch.randn(2, 8, 8, 12, generator=torch.Generator().manual_seed(3))
    batch = DenseMaps(logits, (descriptors,), torch.zeros(2, 1, 1, 1))
    for index in range(2):
        alone = DenseMaps(logits[index : index + 1], (descriptors[index : index + 1],), torch.zeros(1, 1, 1, 1))
        ours = features_of(batch, index, DetectionSettings(nms_radius=4, threshold=0.5))
        theirs = features_of(alone, 0, DetectionSettings(nms_radius=4, threshold=0.5))
        assert len(ours) == len(theirs) > 5
        assert ours.image_size == (48, 32)
        assert torch.equal(ours.keypoints, theirs.keypoints)
        torch.testing.assert_close(ours.descriptors, theirs.descriptors)
        torch.testing.assert_close(ours.descriptors.norm(dim=1), torch.ones(len(ours)))


def test_an_image_without_keypoints_has_empty_features_of_the_right_width() -> None:
    maps = DenseMaps(torch.full((1, 32, 32), -9.0), (torch.rand(1, 8, 8, 8),), torch.zeros(1, 1, 1, 1))
    features = features_of(maps, 0, DetectionSettings(nms_radius=4, threshold=0.5))
    assert len(features) == 0
    assert features.descriptors.shape == (0, 8)


@pytest.mark.parametrize(
    "wrong", [{"max_keypoints": -1}, {"threshold": 1.0}, {"threshold": -0.1}, {"nms_radius": -1}, {"nms_radius": 101}]
)
def test_settings_that_make_no_sense_are_refused_by_the_name_of_their_option(wrong: dict[str, float]) -> None:
    option = "--" + next(iter(wrong)).replace("_", "-")
    with pytest.raises(UsageError, match=option):
        DetectionSettings(**wrong)  # type: ignore[arg-type]


def test_features_of_several_sizes_are_in_the_pixels_of_the_largest_and_the_best_of_all_are_kept() -> None:
    settings = DetectionSettings(nms_radius=2, threshold=0.5)
    octaves = []
    for octave, (size, place) in enumerate(((32, 9), (16, 5), (8, 3))):
        logits = torch.full((1, size, size), -9.0)
        logits[0, place, place] = 1.0 + octave
        own = torch.eye(3)[octave].reshape(1, 3, 1, 1).expand(1, 3, size // 4, size // 4)
        maps = DenseMaps(logits, (own, torch.ones(1, 1, size, size)), torch.zeros(1))
        octaves.append(features_of(maps, 0, settings, octave=octave))
    assert [one.image_size for one in octaves] == [(32, 32)] * 3
    found = best_of_octaves(octaves, 5)
    torch.testing.assert_close(found.keypoints, torch.tensor([[13.5, 13.5], [10.5, 10.5], [9.0, 9.0]]))
    torch.testing.assert_close(found.scores.logit(), 1 + (1 - OCTAVE_COST) * torch.tensor([2.0, 1.0, 0.0]))
    described = torch.cat((torch.eye(3).flip(0), torch.ones(3, 1)), dim=1) / 2**0.5
    torch.testing.assert_close(found.descriptors, described)
    assert len(best_of_octaves(octaves, 1)) == 1
