"""Random changes of light, lens and sensor (paper Sec. 4.1, and beyond), batched, on whatever device the images are.

What is random is drawn first, small and on the CPU (`draw_light`); `change_light` then does the same on any device, and
to an image the same whatever the others of its batch are. Only noise is drawn where it is added, by the image's seed.
"""

import math
from typing import NamedTuple

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.geometry import resize_image
from sekd_cli.training.randomness import log_uniform, uniform

BLUR_SHARE = 0.3  # of the images; the paper blurs a fifth
MOTION_SHARE = 0.1
UNEVEN_SHARE = 0.3
NOISE_SHARE = 0.5
BLOCK_SHARE = 0.2
KERNEL = 9  # pixels: of the blurs
SHRUNK = 1.2  # factor from which an image that is shrunk is blurred before
LUMA = (0.299, 0.587, 0.114)


class Light(NamedTuple):
    """What is done to each of B images; on the CPU. A change that an image doesn't get is 0."""

    uneven: Tensor  # (B, 1, 4, 4) logarithm of a light that changes smoothly over the image
    kernel: Tensor  # (B, KERNEL, KERNEL) of a blur
    tone: Tensor  # (B, 4): exposure (a factor; what gets brighter than 1 is lost), gamma, contrast, brightness
    block_step: Tensor  # (B,) of the coarser and coarser rounding of 8x8 blocks
    noise: Tensor  # (B,) standard deviation
    noise_seed: Tensor  # (B,) int64

    def of(self, rows: Tensor) -> "Light":
        """That of some of the images."""
        return Light(*(part[rows] for part in self))

    def plain(self, rows: Tensor) -> "Light":
        """As this, but a good camera's where `rows` (B,) bool: no blur, no compression, no noise."""
        kept = (~rows).float()
        kernel = self.kernel * kept[:, None, None]
        return self._replace(kernel=kernel, block_step=self.block_step * kept, noise=self.noise * kept)


def draw_mix(count: int, generator: torch.Generator) -> Tensor:
    """Shares of red, green and blue in a grey image of values up to 1 from a colour one up to 255, (count, 3).

    To a grey network, changed hue and saturation are just other shares.
    """
    mix = torch.tensor(LUMA) * log_uniform(0.5, 2.0, 3 * count, generator).reshape(count, 3)
    return mix / mix.sum(dim=1, keepdim=True) / 255.0


def draw_light(count: int, generator: torch.Generator, *, exposed_share: float = 0.0) -> Light:
    """Light as of another hour, and the lens, sensor and file of another camera.

    exposed_share: of the images, those that are exposed anew, up to twice or half, and lose what gets too bright.
    """

    def only(share: float, values: Tensor) -> Tensor:
        chosen = uniform(0.0, 1.0, count, generator) < share
        return values * chosen.reshape(-1, *[1] * (values.ndim - 1))

    uneven = (torch.rand(count, 1, 4, 4, generator=generator) * 2 - 1) * math.log(2.0)
    tone = (
        only(exposed_share, uniform(-0.7, 0.7, count, generator)).exp(),
        log_uniform(0.6, 1.7, count, generator),
        log_uniform(0.5, 1.5, count, generator),
        uniform(-0.2, 0.2, count, generator),
    )
    return Light(
        uneven=only(UNEVEN_SHARE, uneven),
        kernel=_draw_kernels(count, generator),
        tone=torch.stack(tone, dim=1),
        block_step=only(BLOCK_SHARE, uniform(0.005, 0.05, count, generator)),
        noise=only(NOISE_SHARE, uniform(0.0, 0.05, count, generator)),
        noise_seed=torch.randint(2**62, (count,), generator=generator),
    )


def _draw_kernels(count: int, generator: torch.Generator) -> Tensor:
    """Out of focus (a Gaussian) or shaken (a line), each image by a kernel of its own."""
    focus = uniform(0.3, 1.8, count, generator)[:, None, None]
    angle = uniform(0.0, math.pi, count, generator)[:, None, None]
    half_length = uniform(1.0, 3.5, count, generator)[:, None, None]
    draw = uniform(0.0, 1.0, count, generator)[:, None, None]
    offsets = torch.arange(KERNEL, dtype=torch.float32) - KERNEL // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    out_of_focus = torch.exp(-(x**2 + y**2) / (2 * focus**2))
    shaken = torch.exp(-(across**2) / 0.5) * (along.abs() <= half_length)
    kernel = torch.where(draw < MOTION_SHARE, shaken, out_of_focus)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True) * (draw < MOTION_SHARE + BLUR_SHARE)


def change_light(image: Tensor, light: Light) -> Tensor:
    """Images (B, 1, H, W) in [0, 1], H and W multiples of 8, as another camera would have taken them."""
    image = image.clone()
    for change in (_uneven, _blur, _tone, _blocks, _noise):
        change(image, light)
    return image.clamp_(0, 1)


def _chosen(amount: Tensor) -> list[int]:
    """Images that get a change; known on the CPU, so that no GPU is waited for."""
    return [row for row, changed in enumerate(amount.flatten(1).any(dim=1).tolist()) if changed]


def _uneven(image: Tensor, light: Light) -> None:
    rows = _chosen(light.uneven)
    if rows:
        coarse = light.uneven[rows].to(image.device, non_blocking=True)
        image[rows] = image[rows] * resize_image(coarse, *image.shape[-2:]).exp_()


def _blur(image: Tensor, light: Light) -> None:
    _convolve_some(image, light.kernel)


def blur_where_shrunk(image: Tensor, footprints: Tensor) -> None:
    """Blur, in place, those of images (B, 1, H, W) that are about to be shrunk, so that nothing aliases.

    footprints: (B, 2, 2), what a pixel will cover, as `views.footprints` has them: each image is blurred along the
    directions in which it shrinks, by what is covered beyond one pixel, which is blurred that much already.
    """
    axes, covers, _ = torch.linalg.svd(footprints.cpu())  # covers: (B, 2) pixels along the axes
    variance = 0.25 * (covers**2 - 1).clamp(min=1e-3)
    offsets = torch.arange(KERNEL, dtype=torch.float32) - KERNEL // 2
    place = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), dim=-1)  # (KERNEL, KERNEL, 2): x, y
    along = place @ axes[:, None]  # (B, KERNEL, KERNEL, 2)
    kernel = torch.exp(-(along**2 / (2 * variance[:, None, None])).sum(dim=-1))
    kernel /= kernel.sum(dim=(1, 2), keepdim=True)
    _convolve_some(image, kernel * (covers.amax(dim=1) > SHRUNK)[:, None, None])


def _convolve_some(image: Tensor, kernel: Tensor) -> None:
    """Images, in place, by their kernels on the CPU (B, KERNEL, KERNEL), but for those whose kernel is 0."""
    rows = _chosen(kernel)
    if image.device.type == "cpu":  # OpenCV takes half of torch's time
        for row in rows:
            pixels = image[row, 0].numpy()
            pixels[:] = cv2.filter2D(pixels, -1, kernel[row].numpy(), borderType=cv2.BORDER_REPLICATE)
    elif rows:
        image[rows] = convolve(image[rows], kernel[rows].to(image.device, non_blocking=True))


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Each image of (B, 1, H, W) by its kernel of (B, KERNEL, KERNEL), borders repeated."""
    half = KERNEL // 2
    padded = F.pad(image.transpose(0, 1), (half, half, half, half), mode="replicate")
    return F.conv2d(padded, kernel[:, None], groups=len(image)).transpose(0, 1)


def _tone(image: Tensor, light: Light) -> None:
    tone = light.tone.to(image.device, non_blocking=True)
    exposure, gamma, contrast, brightness = tone[:, :, None, None, None].unbind(1)
    image.mul_(exposure).clamp_(0, 1).pow_(gamma)
    image.sub_(0.5).mul_(contrast).add_(0.5 + brightness).clamp_(0, 1)


def _blocks(image: Tensor, light: Light) -> None:
    """What a strong JPEG compression does: the cosine transform of 8x8 blocks, rounded more coarsely where finer."""
    rows = _chosen(light.block_step[:, None])
    if rows:
        whole = F.pad(image[rows], (0, -image.shape[3] % 8, 0, -image.shape[2] % 8), mode="replicate")
        batch, _, height, width = whole.shape
        k = torch.arange(8, dtype=torch.float32)
        basis = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / 8)  # (frequency, pixel)
        basis[0] = math.sqrt(1 / 8)
        step = (1 + k[None] + k[:, None]) * light.block_step[rows][:, None, None, None, None]
        basis, step = (part.to(image.device, non_blocking=True) for part in (basis, step))
        blocks = whole.reshape(batch, height // 8, 8, width // 8, 8).transpose(2, 3)
        coded = (basis @ blocks @ basis.T / step).round_() * step
        decoded = (basis.T @ coded @ basis).transpose(2, 3).reshape(batch, 1, height, width)
        image[rows] = decoded[..., : image.shape[2], : image.shape[3]]


def _noise(image: Tensor, light: Light) -> None:
    generator = torch.Generator(image.device)
    for row in _chosen(light.noise[:, None]):
        generator.manual_seed(int(light.noise_seed[row]))
        noise = torch.randn(image[row].shape, generator=generator, device=image.device)
        image[row].add_(noise, alpha=float(light.noise[row]))
