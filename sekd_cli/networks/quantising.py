"""The compact network in whole numbers of eight bits, which CPUs with VNNI multiply four at a time.

All values of a map lie on one `Grid`, from the least to the largest that it holds (see `calibration`), the weights of
each output channel on one of their own. Of what a ReLU leaves 0 is the least, and bytes end there: none is asked for. A
sum is written over the map that is added to, of which a pair needs no more, `onto2` takes the low-level map, and the
others a packed copy. Scores come out in float32: rounded ones tie, and lose the peak.
"""

import copy
from functools import cache
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from sekd_cli.geometry import upsample
from sekd_cli.networks.calibration import maps_of, range_of
from sekd_cli.networks.compact import MINIMUM_DEVIATION, CompactNetwork
from sekd_cli.networks.packing import (
    BorderRepeated,
    NormaliseCells,
    convolution_of,
    pack,
    packed_convolution,
    unpack,
)
from sekd_cli.networks.tracing import recordable
from sekd_cli.precision import has_matrix_units

BYTES = 255  # steps from the least byte to the largest
WEIGHT_STEPS = 127  # to either side of 0


class Grid(NamedTuple):
    """The values that bytes stand for: `step * (byte - zero)`."""

    step: float
    zero: int

    @classmethod
    def spanning(cls, low: float, high: float) -> Self:
        """The finest from `low` to `high`, with 0 on it; of three digits, lest it depend on how a CPU adds up."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = float(f"{(high - low) / BYTES:.3g}") or 1.0
        return cls(step, round(-low / step))


def _convolve(maps: Tensor, weights: list[Tensor], grids: list[tuple[float, int]], geometry: list[int]) -> Tensor:
    """`weights`: themselves, their steps and zeros, the bias. `grids`: of the maps and of what is given, or float32."""
    target, kind = (1.0, 0), torch.float32
    if len(grids) > 1:
        target, kind = grids[1], torch.uint8
    found: Tensor = torch.ops.onednn.qconv2d_pointwise(
        maps,
        x_scale=grids[0][0],
        x_zero_point=grids[0][1],
        qw=weights[0],
        w_scale=weights[1],
        w_zero_point=weights[2],
        bias=weights[3] if len(weights) > 3 else None,
        stride=geometry[:2],
        padding=geometry[2:],
        dilation=[1, 1],
        groups=1,
        output_scale=target[0],
        output_zero_point=target[1],
        output_dtype=kind,
        attr="none",
        scalars=[],
        algorithm="",
    )
    return found


def _convolve_onto(
    both: list[Tensor], weights: list[Tensor], grids: list[tuple[float, int]], geometry: list[int]
) -> Tensor:
    """`both`: maps and what is added. `grids`: theirs and that of what is given. The rest as in `_convolve`."""
    found: Tensor = torch.ops.onednn.qconv2d_pointwise(
        both[0],
        x_scale=grids[0][0],
        x_zero_point=grids[0][1],
        qw=weights[0],
        w_scale=weights[1],
        w_zero_point=weights[2],
        qaccum=both[1],
        bias=weights[3],
        stride=geometry[:2],
        padding=geometry[2:],
        dilation=[1, 1],
        groups=1,
        output_scale=grids[2][0],
        output_zero_point=grids[2][1],
        output_dtype=torch.uint8,
        accum_scale=grids[1][0],
        accum_zero_point=grids[1][1],
        binary_attr="sum",
        alpha=1.0,
        unary_attr="none",
        unary_scalars=[],
        unary_algorithm="",
    )
    return found


class QuantisedConvolution(nn.Module):
    """A convolution, of maps on one grid, to maps on another or to real numbers."""

    weight: Tensor
    steps: Tensor
    zeros: Tensor

    def __init__(self, convolution: nn.Conv2d, source: Grid, target: Grid | None) -> None:
        super().__init__()
        self.source, self.target = source, target
        stride, padding = list(convolution.stride), list(cast(tuple[int, ...], convolution.padding))
        self.geometry = [*stride, *padding]
        assert convolution.bias is not None, "fold the norms first"
        self.bias = nn.Parameter(convolution.bias.detach().clone(), requires_grad=False)
        weight = convolution.weight.detach()
        steps = weight.abs().amax((1, 2, 3)).clamp(min=torch.finfo(weight.dtype).tiny) / WEIGHT_STEPS
        weight = (weight / steps[:, None, None, None]).round().char()
        if has_matrix_units():  # as those kernels read it; others read it by the size of the maps, so at each call
            weight = torch.ops.onednn.qconv_prepack(weight, steps, *source, stride, padding, [1, 1], 1, None)
        else:
            weight = weight.to_mkldnn()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.long), persistent=False)

    def forward(self, maps: Tensor, source: Grid | None = None) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C', H / stride, W / stride) uint8 or float32. source: another grid of the maps."""
        source = source or self.source
        if self.target is not None:
            return recordable(_convolve)(maps, self._weights(), [source, self.target], self.geometry)
        # whole sums, which are exact: what kernels make of steps and bias depends, by its last digit, on threads
        whole = [self.weight, torch.ones_like(self.steps), self.zeros]
        sums = recordable(_convolve)(maps, whole, [Grid(1.0, source.zero)], self.geometry)
        batch, channels, height, width = sums.shape
        rows = sums.permute(0, 2, 3, 1).reshape(batch, height, width * channels)  # by whole rows in half of the time
        reals = rows.mul_((source.step * self.steps).repeat(width)).add_(self.bias.repeat(width))
        return reals.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def onto(self, maps: Tensor, other: Tensor, others: Grid) -> Tensor:
        """The convolution plus another map, on the grid `others`, written over that."""
        assert self.target is not None, "only bytes are added to bytes"
        grids = [self.source, others, self.target]
        return recordable(_convolve_onto)([maps, other], self._weights(), grids, self.geometry)

    def _weights(self) -> list[Tensor]:
        return [self.weight, self.steps, self.zeros, self.bias]


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


def quantise(network: CompactNetwork) -> CompactNetwork:
    """A copy, in bytes, of a network whose norms are folded and whose fine levels are packed."""
    maps = maps_of(network)
    made = copy.deepcopy(network)

    @cache
    def grid(name: str) -> Grid:
        return Grid.spanning(*range_of(maps[name]))

    def convolution(name: str, source: str, *, real: bool = False) -> QuantisedConvolution:
        part = network.get_submodule(name)
        itself = part if isinstance(part, nn.Conv2d) else convolution_of(part)
        return QuantisedConvolution(itself, grid(source), None if real else grid(name))

    def pair(name: str, source: str) -> QuantisedPair:
        second = convolution_of(network.get_submodule(f"{name}.body.1"))
        return QuantisedPair(
            convolution(f"{name}.body.0", source), QuantisedConvolution(second, grid(f"{name}.body.0"), grid(name))
        )

    def level(name: str, source: str) -> nn.Sequential:
        return nn.Sequential(convolution(f"{name}.0", source), pair(f"{name}.1", f"{name}.0"))

    def enlarged(context: str, source: str, onto: str, finer: str) -> None:
        alone = cast(nn.Conv2d, network.get_submodule(context))
        whole = packed_convolution(lambda values: upsample(alone(values), 2), alone.in_channels, 1, 2, padding=0)
        both = QuantisedConvolution(whole, grid(source), grid(onto))
        setattr(made, onto, QuantisedEnlargeOnto(both, grid(finer)))
        setattr(made, context, nn.Identity())

    first = convolution("level2.0", "normalise")
    made.normalise = QuantisedFirst(cast(NormaliseCells, network.normalise).factor, first)
    made.level2 = nn.Sequential(convolution("level2.1", "level2.0"))
    made.level4 = nn.Sequential(convolution("level4.0", "level2.1"), convolution("level4.1", "level4.0"))
    made.level8 = level("level8", "level4.1")
    made.level16 = level("level16", "level8.1")
    made.level32 = level("level32", "level16.1")
    enlarged("context16", "level32.1", "onto16", "level16.1")
    enlarged("context8", "onto16", "onto8", "level8.1")
    if network.context_detail is not None:
        enlarged("context_detail", "onto8", "onto4", "level4.1")
        made.blend = nn.Sequential(pair("blend.0", "onto4"))
    made.semantic = nn.Sequential(
        convolution("semantic.0", "onto8"), convolution("semantic.1", "semantic.0", real=True)
    )
    made.detail = convolution("detail", "blend", real=True)  # type: ignore[assignment]
    made.context2 = convolution("context2", "blend")  # type: ignore[assignment]
    enlarged("context4", "level8.1", "joined4", "context2")
    enlarge = cast(BorderRepeated, network.onto2).convolution
    made.onto2 = QuantisedBorderRepeated(
        QuantisedConvolution(enlarge, grid("joined4"), grid("onto2")), grid("level2.1")
    )
    made.surroundings = nn.Sequential(convolution("surroundings", "onto2"))
    made.detector = convolution("detector", "surroundings", real=True)
    return made
