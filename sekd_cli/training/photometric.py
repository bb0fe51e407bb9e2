"""Random changes of light, lens and sensor, batched, on whatever device the images are (paper Sec. 4.1, and beyond)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.geometry import log_uniform, resize_image, uniform

BLUR_SHARE = 0.3  # of the images; the paper blurs a fifth
MOTION_SHARE = 0.1
UNEVEN_SHARE = 0.3
NOISE_SHARE = 0.5
BLOCK_SHARE = 0.2
KERNEL = 9  # pixels: of the blurs
LUMA = (0.299, 0.587, 0.114)


def random_grey(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A grey image (1, H, W) in [0, 1] of a colour one (3, H, W) uint8, its channels mixed at random.

    To a grey network, changed hue and saturation are just other shares of red, green and blue.
    """
    mix = torch.tensor(LUMA) * log_uniform(0.5, 2.0, 3, generator)
    return (colour.float() * (mix / mix.sum() / 255.0)[:, None, None]).sum(dim=0, keepdim=True)


def change_light(image: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 1, H, W) in [0, 1] as another camera would have taken them at another hour."""
    image = _uneven(image, generator)
    image = _blur(image, generator)
    count = len(image)
    gamma = log_uniform(0.6, 1.7, count, generator)[:, None, None, None]
    contrast = log_uniform(0.5, 1.5, count, generator)[:, None, None, None]
    brightness = uniform(-0.2, 0.2, count, generator)[:, None, None, None]
    image = image.clamp(0, 1) ** gamma
    image = (image - 0.5) * contrast + 0.5 + brightness
    image = _blocks(image.clamp(0, 1), generator)
    return _noise(image, generator).clamp(0, 1)


def _chosen(share: float, count: int, generator: torch.Generator) -> Tensor:
    return (uniform(0.0, 1.0, count, generator) < share).nonzero()[:, 0]


def _uneven(image: Tensor, generator: torch.Generator) -> Tensor:
    """Light that changes smoothly over the image, from a half to twice."""
    which = _chosen(UNEVEN_SHARE, len(image), generator)
    if len(which):
        image = image.clone()
        coarse = (torch.rand(len(which), 1, 4, 4, generator=generator) * 2 - 1) * math.log(2.0)
        image[which] = image[which] * resize_image(coarse, *image.shape[-2:]).exp()
    return image


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    """Out of focus (a Gaussian) or shaken (a line), each image by a kernel of its own."""
    count = len(image)
    focus = uniform(0.3, 1.8, count, generator)[:, None, None]
    angle = uniform(0.0, math.pi, count, generator)[:, None, None]
    half_length = uniform(1.0, 3.5, count, generator)[:, None, None]
    draw = uniform(0.0, 1.0, count, generator)
    offsets = torch.arange(KERNEL, dtype=torch.float32) - KERNEL // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    out_of_focus = torch.exp(-(x**2 + y**2) / (2 * focus**2))
    shaken = torch.exp(-(across**2) / 0.5) * (along.abs() <= half_length)
    kernel = torch.where((draw < MOTION_SHARE)[:, None, None], shaken, out_of_focus)
    kernel = kernel / kernel.sum(dim=(1, 2), keepdim=True)
    which = (draw < MOTION_SHARE + BLUR_SHARE).nonzero()[:, 0]
    if len(which):
        padded = F.pad(image[which].transpose(0, 1), (KERNEL // 2,) * 4, mode="replicate")
        image = image.clone()
        image[which] = F.conv2d(padded, kernel[which][:, None], groups=len(which)).transpose(0, 1)
    return image


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    which = _chosen(NOISE_SHARE, len(image), generator)
    if len(which):
        deviation = uniform(0.0, 0.05, len(which), generator)[:, None, None, None]
        image = image.clone()
        image[which] += torch.randn(image[which].shape, generator=generator) * deviation
    return image


def _blocks(image: Tensor, generator: torch.Generator) -> Tensor:
    """What a strong JPEG compression does: the cosine transform of 8x8 blocks, rounded more coarsely where finer."""
    which = _chosen(BLOCK_SHARE, len(image), generator)
    if len(which):
        batch, _, height, width = image[which].shape
        k = torch.arange(8, dtype=torch.float32)
        basis = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / 8)  # (frequency, pixel)
        basis[0] = math.sqrt(1 / 8)
        blocks = image[which].reshape(batch, height // 8, 8, width // 8, 8).transpose(2, 3)
        step = (1 + k[None] + k[:, None]) * uniform(0.005, 0.05, batch, generator)[:, None, None, None, None]
        coded = (basis @ blocks @ basis.T / step).round() * step
        image = image.clone()
        image[which] = (basis.T @ coded @ basis).transpose(2, 3).reshape(batch, 1, height, width)
    return image
