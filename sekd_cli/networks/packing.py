"""The compact network's fine levels packed into channels: the same sums, in shapes that matrix units are made for.

A map at 1/2 with 8 channels is held as one at 1/4 with 32, each cell of 2x2 pixels together, and a convolution of it
becomes one of 32 channels. Most of its weights are zero, but a matrix unit multiplies 32 channels in less time than 8
of four times as many pixels, and an enlargement becomes a convolution too. Where multiplications cost (float32) it
doesn't pay.
"""

import copy
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sekd_cli.geometry import upsample
from sekd_cli.networks.base import Float32Convolution
from sekd_cli.networks.compact import CompactNetwork, normalised

Operation = Callable[[Tensor], Tensor]

CELLS = 5  # of the probe along each axis: a response reaches one cell from the middle, and must not meet the border


def pack(maps: Tensor, factor: int) -> Tensor:
    """Cells of factor x factor pixels into channels: (B, C, H, W) -> (B, factor^2 C, H / factor, W / factor).

    Channels are ordered by the pixel's row, then column, then the channel that they were.
    """
    batch, channels, height, width = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(batch, height // factor, factor, width // factor, factor * channels)
    packed = _swapped(cells).reshape(batch, height // factor, width // factor, factor * factor * channels)
    return packed.permute(0, 3, 1, 2)


def unpack(maps: Tensor, factor: int) -> Tensor:
    """What `pack` packed: (B, factor^2 C, h, w) -> (B, C, factor h, factor w)."""
    batch, channels, height, width = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(batch, height, width, factor, channels // factor)
    pixels = _swapped(cells).reshape(batch, height * factor, width * factor, channels // factor**2)
    return pixels.permute(0, 3, 1, 2)


def _swapped(cells: Tensor) -> Tensor:
    """(B, h, i, j, K) -> (B, h, j, i, K), in memory too; K numbers are moved as one where a type has their size."""
    whole = {4: torch.int32, 8: torch.int64, 16: torch.complex128}.get(cells.shape[-1] * cells.element_size())
    if whole is None:
        return cells.transpose(2, 3).contiguous()
    return cells.contiguous().view(whole).transpose(2, 3).contiguous().view(cells.dtype)


@torch.no_grad()
def packed_convolution(
    operation: Operation, channels: int, in_factor: int, out_factor: int, *, padding: int = 1
) -> nn.Conv2d:
    """The 3x3 convolution that does to packed maps what an operation does to maps.

    Its bias is what the operation makes of zeros, each of its weights the response to one pixel: the operation may do
    anything that is affine, is the same in every cell, and reaches no further than the next. channels: of its input.
    """
    count, middle = in_factor**2 * channels, CELLS // 2
    probes = torch.zeros(1 + count, count, CELLS, CELLS, dtype=torch.float32)
    probes[range(1, 1 + count), range(count), middle, middle] = 1
    found = pack(operation(unpack(probes, in_factor)), out_factor)  # (1 + inputs, outputs, CELLS, CELLS)
    nothing, response = found[:1], found[1:] - found[:1]
    near = slice(middle - 1, middle + 2)
    convolution = nn.Conv2d(count, found.shape[1], 3, padding=padding, dtype=torch.float32)
    convolution.weight.copy_(response[:, :, near, near].flip(2, 3).transpose(0, 1))
    assert convolution.bias is not None
    convolution.bias.copy_(nothing[0, :, middle, middle])
    return convolution


class NormaliseCells(nn.Module):
    """`Normalise`, cells of pixels into channels: these are moved first, while they are bytes."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor, statistics: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, 1, H, W) -> (B, factor^2, H / factor, W / factor)."""
        return normalised(pack(image, self.factor), statistics, dtype)


class Unpack(nn.Module):
    """Channels of cells into pixels of a map with one channel."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, cells: Tensor) -> Tensor:
        """(B, factor^2, h, w) -> (B, factor h, factor w)."""
        return unpack(cells, self.factor)[:, 0]


class BorderRepeated(nn.Module):
    """A convolution without padding of a map whose border repeats, added to another map: what `EnlargeOnto` does."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    @staticmethod
    def padded(maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h + 2, w + 2)."""
        return F.pad(maps, (1, 1, 1, 1), mode="replicate")

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C', h, w) -> the ReLU of the sum, (B, C', h, w)."""
        return F.relu(finer + self.convolution(self.padded(maps)), inplace=True)


def convolution_of(part: nn.Module) -> nn.Conv2d:
    """The convolution that a part begins with, its norm folded into it."""
    convolution, norm, *_ = cast(nn.Sequential, part)
    assert isinstance(convolution, nn.Conv2d)
    assert not isinstance(norm, nn.BatchNorm2d), "fold the norms first"
    return convolution


def _active(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


def pack_fine_levels(network: CompactNetwork) -> CompactNetwork:
    """A copy of a network whose norms are folded, with everything at 1/2 and the full resolution packed to 1/4.

    Scores and descriptors are the same to rounding; the low-level map is left packed.
    """
    packed = copy.deepcopy(network)
    parts = (network.level2[0], network.level2[1], network.level4[0], network.surroundings)
    detector = cast(nn.Conv2d, network.detector)
    first, second, third, surroundings = (convolution_of(part) for part in parts)
    packed.normalise = NormaliseCells(4)
    packed.level2 = nn.Sequential(
        _active(packed_convolution(first, 1, 4, 2)),
        _active(packed_convolution(second, second.in_channels, 2, 2)),
    )
    cast(nn.Sequential, packed.level4[0])[0] = packed_convolution(third, third.in_channels, 2, 1)
    enlarge = packed_convolution(lambda maps: upsample(maps, 2), surroundings.in_channels, 1, 2, padding=0)
    packed.onto2 = BorderRepeated(enlarge)
    packed.surroundings[0] = packed_convolution(surroundings, surroundings.in_channels, 2, 2)
    packed.detector = Float32Convolution.of(
        packed_convolution(lambda maps: F.pixel_shuffle(detector(maps), 2), detector.in_channels, 2, 4)
    )
    packed.interleave = Unpack(4)
    return packed
