"""Convolutions, and what stands between them, of maps in whole numbers of eight bits.

All values of a map lie on one `Grid`, the weights of each output channel on one of their own. There is no ReLU: on the
grid of what one leaves, byte 0 stands for 0, and what is less ends there. A sum is written over the map that is added
to.
"""

from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sekd_cli.networks.byte_convolutions import convolve, convolve_onto
from sekd_cli.networks.compact import MINIMUM_DEVIATION
from sekd_cli.networks.packing import pack, unpack
from sekd_cli.networks.precision import has_vnni, reads_weights_alike
from sekd_cli.networks.tracing import recordable

BYTES = 255  # steps from the least byte to the largest
WEIGHT_STEPS = 127  # to either side of 0
SMOOTHING = (1, 2, 1)  # quarters: of pixels that stand twice it makes bilinear enlargement by two


class Grid(NamedTuple):
    """Which real number each byte of a map stands for: `step * (byte - zero)`."""

    step: float
    zero: int

    @classmethod
    def spanning(cls, low: float, high: float) -> Self:
        """The finest grid that reaches from `low` to `high` and has 0 on it.

        Its step is rounded to three digits, lest it depend on the order in which a CPU adds up.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        step = float(f"{(high - low) / BYTES:.3g}") or 1.0
        return cls(step, round(-low / step))


def _largest_weights(weight: Tensor) -> Tensor:
    """The weight that WEIGHT_STEPS steps are to stand for, of each output channel: (O, I, kh, kw) -> (O,)."""
    if has_vnni():
        return weight.abs().amax((1, 2, 3))
    # elsewhere the products of two neighbouring channels are added up in 16 bits, which hold 255 times 128
    even = F.pad(weight, (0, 0, 0, 0, 0, weight.shape[1] % 2))
    one, other = even[:, ::2], even[:, 1::2]
    positive, negative = one.clamp(min=0) + other.clamp(min=0), one.clamp(max=0) + other.clamp(max=0)
    return torch.maximum(positive, -negative).amax((1, 2, 3))


def _laid_out(weight: Tensor, steps: Tensor, source: Grid, geometry: list[int]) -> Tensor:
    """Weights in the order in memory that oneDNN's kernels read; where it depends on the size of the maps, as they are.

    oneDNN then brings them into that order at each call.
    """
    if not reads_weights_alike():
        return weight.to_mkldnn()
    stride, padding, groups = geometry[:2], geometry[2:4], geometry[4]
    return cast(Tensor, torch.ops.onednn.qconv_prepack(weight, steps, *source, stride, padding, [1, 1], groups, None))


class _Quantised(nn.Module):
    """A convolution in whole numbers of maps on a grid: weights (O, I, kh, kw) int8, their steps (O,), and a bias."""

    weight: Tensor
    steps: Tensor
    zeros: Tensor

    def __init__(self, weight: Tensor, steps: Tensor, bias: Tensor, source: Grid, geometry: list[int]) -> None:
        super().__init__()
        self.source, self.geometry = source, geometry
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("weight", _laid_out(weight, steps, source, geometry), persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.long), persistent=False)

    def _weights(self) -> list[Tensor]:
        return [self.weight, self.steps, self.zeros, self.bias]


class _Rounded(_Quantised):
    """A convolution whose weights are rounded.

    mean: of each channel of its maps (C,). What rounded weights make of it is taken off the bias: maps after a ReLU are
    far from 0 on average, and so would be the error.
    """

    def __init__(self, convolution: nn.Conv2d, source: Grid, mean: Tensor | None = None) -> None:
        assert convolution.bias is not None, "fold the norms first"
        real, bias = convolution.weight.detach(), convolution.bias.detach().clone()
        steps = _largest_weights(real).clamp(min=torch.finfo(real.dtype).tiny) / WEIGHT_STEPS
        whole = (real / steps[:, None, None, None]).round()
        if mean is not None:
            bias += (real - steps[:, None, None, None] * whole).sum((2, 3)) @ mean
        geometry = [*convolution.stride, *cast(tuple[int, ...], convolution.padding), 1]
        super().__init__(whole.char(), steps, bias, source, geometry)


class QuantisedConvolution(_Rounded):
    """A convolution of maps on one grid to maps on another."""

    def __init__(self, convolution: nn.Conv2d, source: Grid, target: Grid, mean: Tensor | None = None) -> None:
        super().__init__(convolution, source, mean)
        self.target = target

    def forward(self, maps: Tensor, source: Grid | None = None) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C', H / stride, W / stride) uint8. source: another grid of the maps."""
        grids = [source or self.source, self.target]
        return recordable(convolve)(maps, self._weights(), grids, self.geometry)

    def onto(self, maps: Tensor, other: Tensor, others: Grid) -> Tensor:
        """The convolution plus another map, on the grid `others`, written over that."""
        grids = [self.source, others, self.target]
        return recordable(convolve_onto)([maps, other], self._weights(), grids, self.geometry)


class RealConvolution(_Rounded):
    """A convolution of maps on a grid to real numbers.

    Of whole sums, which are exact: what kernels make of steps and bias depends, by its last digit, on threads.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C', H / stride, W / stride) float32."""
        whole = [self.weight, torch.ones_like(self.steps), self.zeros]
        sums = recordable(convolve)(maps, whole, [Grid(1.0, self.source.zero)], self.geometry)
        batch, channels, height, width = sums.shape
        rows = sums.permute(0, 2, 3, 1).reshape(batch, height, width * channels)  # by whole rows in half of the time
        reals = rows.mul_((self.source.step * self.steps).repeat(width)).add_(self.bias.repeat(width))
        return reals.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class QuantisedFirst(nn.Module):
    """`NormaliseCells` and the first convolution: the pixels stay as they are, on a grid that normalises them."""

    def __init__(self, factor: int, convolution: QuantisedConvolution) -> None:
        super().__init__()
        self.factor, self.convolution = factor, convolution

    def forward(self, image: Tensor, statistics: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, 1, H, W) uint8, or fractions that are rounded to it -> (B, C, H / factor, W / factor)."""
        del dtype
        cells = pack(image if image.dtype == torch.uint8 else (255 * image).round_().byte(), self.factor)
        found = []
        for one, (mean, deviation) in zip(cells[:, None], statistics.tolist(), strict=True):
            grid = Grid(1 / (255 * max(deviation, MINIMUM_DEVIATION)), round(255 * mean))
            found.append(self.convolution(one, grid))
        return found[0] if len(found) == 1 else torch.cat(found)


class QuantisedPair(nn.Module):
    """A `ResidualPair`."""

    def __init__(self, first: QuantisedConvolution, second: QuantisedConvolution) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.second.onto(self.first(x), x, self.first.source)


def _bordered(maps: Tensor) -> Tensor:
    """A map whose border repeats once more: `BorderRepeated.padded`, which takes its time for few channels of bytes."""
    rows = torch.cat((maps[:, :, :1], maps, maps[:, :, -1:]), dim=2)
    return torch.cat((rows[..., :1], rows, rows[..., -1:]), dim=3)


class QuantisedBorderRepeated(nn.Module):
    """A `BorderRepeated`."""

    def __init__(self, convolution: QuantisedConvolution, finer: Grid) -> None:
        super().__init__()
        self.convolution, self.finer = convolution, finer

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C', h, w) -> (B, C', h, w)."""
        return self.convolution.onto(_bordered(maps), finer, self.finer)


class QuantisedEnlargeOnto(nn.Module):
    """A convolution by one and the `EnlargeOnto` of what it gives, as one convolution of cells of 2x2 pixels."""

    def __init__(self, convolution: QuantisedConvolution, finer: Grid) -> None:
        super().__init__()
        self.convolution, self.finer = convolution, finer

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C', 2h, 2w) -> (B, C', 2h, 2w)."""
        return unpack(self.convolution.onto(_bordered(maps), pack(finer, 2), self.finer), 2)


class QuantisedSmoothOnto(_Quantised):
    """An `EnlargeOnto`: every pixel four times, smoothed, in whole numbers without loss."""

    def __init__(self, channels: int, source: Grid, finer: Grid, target: Grid) -> None:
        line = torch.tensor(SMOOTHING, dtype=torch.int8)
        weight = torch.outer(line, line).expand(channels, 1, 3, 3).contiguous()
        steps = torch.full((channels,), sum(SMOOTHING) ** -2, dtype=torch.float32)
        super().__init__(weight, steps, torch.zeros_like(steps), source, [1, 1, 0, 0, channels])
        self.grids = [source, finer, target]

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, 2h, 2w) -> (B, C, 2h, 2w), written over `finer`."""
        return recordable(convolve_onto)([_twice(maps), finer], self._weights(), self.grids, self.geometry)


def _twice(maps: Tensor) -> Tensor:
    """Every pixel four times, and the border's once more: (B, C, h, w) -> (B, C, 2h + 2, 2w + 2)."""
    pixels = maps.permute(0, 2, 3, 1)
    for axis in (2, 1):
        extent = pixels.shape[axis]
        places = torch.arange(-1, 2 * extent + 1).div(2, rounding_mode="floor").clamp(0, extent - 1)
        pixels = pixels.index_select(axis, places)
    return pixels.permute(0, 3, 1, 2)
