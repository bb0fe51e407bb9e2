"""Changes of light, lens and sensor: each by its numbers, and how often and how far each is drawn."""

import math

import numpy as np
import pytest
import torch

from sekd_cli.training.labelling import grey_of
from sekd_cli.training.photometric import Light, blur_where_shrunk, change_light, convolve, draw_light, draw_mix
from sekd_cli.training.randomness import generator_of


def test_the_grey_of_a_colour_is_that_of_television() -> None:
    colours = torch.eye(3, dtype=torch.uint8)[:, :, None] * 255  # (3, 3, 1): a row each of red, green and blue
    assert grey_of(colours).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    mix = draw_mix(3000, generator_of(0)) * 255
    assert mix.sum(dim=1).tolist() == pytest.approx([1] * 3000)
    assert mix.mean(dim=0).tolist() == pytest.approx([0.3, 0.58, 0.12], abs=0.02)
    assert mix.std(dim=0).min() > 0.02


def light(count: int, **changes: torch.Tensor) -> Light:
    nothing = Light(
        uneven=torch.zeros(count, 1, 4, 4),
        kernel=torch.zeros(count, 9, 9),
        tone=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1),
        block_step=torch.zeros(count),
        noise=torch.zeros(count),
        noise_seed=torch.zeros(count, dtype=torch.int64),
    )
    return nothing._replace(**changes)


def test_each_change_of_light_is_what_its_numbers_say() -> None:
    image = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(change_light(image, light(2)), image)
    toned = change_light(image, light(2, tone=torch.tensor([[1.5, 2.0, 0.8, 0.1], [1.0, 1.0, 1.0, 0.0]])))
    by_hand = ((image[0] * 1.5).clamp(max=1) ** 2 - 0.5) * 0.8 + 0.6
    torch.testing.assert_close(toned[0], by_hand.clamp(0, 1))
    torch.testing.assert_close(toned[1], image[1])
    brighter = change_light(image / 4, light(2, uneven=torch.full((2, 1, 4, 4), np.log(2.0))))
    torch.testing.assert_close(brighter, image / 2)
    noisy = change_light(image * 0 + 0.5, light(2, noise=torch.tensor([0.0, 0.1]), noise_seed=torch.tensor([1, 2])))
    assert torch.equal(noisy[0], image[0] * 0 + 0.5)
    assert float(noisy[1].std()) == pytest.approx(0.1, rel=0.2)
    even = change_light(image * 0 + 0.5, light(2, block_step=torch.full((2,), 0.01)))
    assert float((even - 0.5).abs().max()) < 0.01  # an even block keeps its mean
    assert (change_light(image, light(2, block_step=torch.full((2,), 0.05))) - image).abs().mean() > 0.01


def test_each_change_of_light_comes_in_its_share_of_the_images_and_range() -> None:
    drawn = draw_light(4000, generator_of(0), exposed_share=0.3)
    for name, share, least, most in (
        ("uneven", 0.3, 0.0, math.log(2)),
        ("kernel", 0.4, 0.0, 1.0),
        ("block_step", 0.2, 0.005, 0.05),
        ("noise", 0.5, 0.0, 0.05),
    ):
        values = getattr(drawn, name).flatten(1) if name in ("uneven", "kernel") else getattr(drawn, name)[:, None]
        some = values.abs().amax(dim=1)
        assert (some > 0).float().mean() == pytest.approx(share, abs=0.03), name
        assert least <= some[some > 0].min() <= some.max() <= most + 1e-6, name
        assert some.max() > 0.9 * most or name == "kernel", name
    for column, least, most in ((1, 0.6, 1.7), (2, 0.5, 1.5), (3, -0.2, 0.2)):
        values = drawn.tone[:, column]
        assert (values.min(), values.max()) == (pytest.approx(least, rel=0.02), pytest.approx(most, rel=0.02))
    exposure = drawn.tone[:, 0]
    assert (exposure != 1).float().mean() == pytest.approx(0.3, abs=0.03)
    assert (exposure.min(), exposure.max()) == (
        pytest.approx(math.exp(-0.7), rel=0.05),
        pytest.approx(math.exp(0.7), rel=0.05),
    )


def test_most_blurs_are_out_of_focus_and_a_quarter_is_a_line_through_the_middle() -> None:
    kernels = draw_light(4000, generator_of(0)).kernel
    kernels = kernels[kernels.any(dim=2).any(dim=1)]
    assert torch.equal(kernels.amax(dim=(1, 2)), kernels[:, 4, 4])
    round_ones = (kernels - kernels.rot90(dims=(1, 2))).abs().amax(dim=(1, 2)) < 1e-6
    assert round_ones.float().mean() == pytest.approx(0.75, abs=0.03)
    spread = (kernels.sum(dim=1) * (torch.arange(9) - 4) ** 2).sum(dim=1).sqrt()  # along x
    assert (spread[round_ones].min() < 0.2, spread[round_ones].max()) == (True, pytest.approx(1.7, abs=0.1))
    assert spread[~round_ones].max() == pytest.approx(2.0, abs=0.1), "seven pixels in a row"


def test_compression_takes_images_of_any_size() -> None:
    image = torch.rand(2, 1, 22, 12, generator=torch.Generator().manual_seed(0))  # as labelled
    coded = change_light(image, light(2, block_step=torch.full((2,), 0.05)))
    assert coded.shape == image.shape
    whole = change_light(image[..., :16, :8], light(2, block_step=torch.full((2,), 0.05)))
    assert coded[..., :16, :8].allclose(whole, atol=1e-6)
    assert (coded[..., 16:, 8:] - image[..., 16:, 8:]).abs().mean() < 0.2


def test_compression_loses_what_is_finest_first() -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    finest = 0.5 + 0.02 * (-1.0) ** (x + y)[None, None]
    coded = change_light(finest, light(1, block_step=torch.tensor([0.05])))
    torch.testing.assert_close(coded, torch.full_like(coded, float(coded.mean())), atol=1e-3, rtol=0)


def test_every_image_has_noise_of_its_own() -> None:
    grey = torch.full((2, 1, 8, 8), 0.5)
    noisy = change_light(grey, light(2, noise=torch.full((2,), 0.05), noise_seed=torch.tensor([1, 2])))
    assert not torch.allclose(noisy[0], noisy[1])


def test_what_is_shrunk_is_blurred_first_and_nothing_else() -> None:
    stripes = (torch.arange(64) % 2).float().expand(4, 1, 64, 64).clone()
    blurred = stripes.clone()
    across, along = torch.tensor([[0.0, 3], [1, 0]]), torch.tensor([[1.0, 0], [0, 3]])  # the first seen turned
    blur_where_shrunk(blurred, torch.stack((torch.eye(2) / 2, across, along, torch.eye(2) * 1.5)))
    assert torch.equal(blurred[0], stripes[0])
    assert blurred[1, :, 8:-8, 8:-8].std() < 0.01  # away from the border, which repeats
    assert abs(float(blurred[1].mean()) - 0.5) < 0.01
    torch.testing.assert_close(blurred[2], stripes[2])  # the same from row to row
    assert 0.05 < blurred[3].std() < 0.25


def test_a_blur_on_a_gpu_is_that_on_a_cpu() -> None:
    image = torch.rand(5, 1, 32, 40, generator=torch.Generator().manual_seed(0))
    kernels = draw_light(40, generator_of(0)).kernel
    kernel = kernels[kernels.any(dim=2).any(dim=1)][:5]
    torch.testing.assert_close(convolve(image, kernel), change_light(image, light(5, kernel=kernel)))
    assert kernel.sum((1, 2)).tolist() == pytest.approx([1] * 5, abs=1e-5)


def test_light_changes_pixels_but_never_leaves_the_range() -> None:
    images = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = change_light(images, draw_light(8, generator_of(3)))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).abs().mean() > 0.01
