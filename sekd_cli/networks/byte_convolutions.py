"""OneDNN's convolutions of bytes, as torch has them on CPUs.

Functions of tensors, lists and numbers alone, which `tracing.recordable` can make a script of.
"""

from functools import cache

import torch
from torch import Tensor

BYTE, WEIGHT = 255, 64  # of which 16 bits hold two products


def convolve(maps: Tensor, weights: list[Tensor], grids: list[tuple[float, int]], geometry: list[int]) -> Tensor:
    """A convolution to bytes, or to float32: without a bias and in whole sums, or as `weights` say.

    maps: (B, C, H, W) uint8, channels last in memory. weights: themselves, int8 by oneDNN; their steps and zeros for
    each output channel; the bias, which may be missing. grids: steps and zeros of the maps and of what is given, which
    is float32 if none is. geometry: strides, paddings, and the number of groups.
    """
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
        padding=geometry[2:4],
        dilation=[1, 1],
        groups=geometry[4],
        output_scale=target[0],
        output_zero_point=target[1],
        output_dtype=kind,
        attr="none",
        scalars=[],
        algorithm="",
    )
    return found


def convolve_onto(
    both: list[Tensor], weights: list[Tensor], grids: list[tuple[float, int]], geometry: list[int]
) -> Tensor:
    """The sum of a convolution and another map, to bytes; it may be written over that.

    both: the maps and the other. grids: theirs, and that of what is given. The rest as in `convolve`.
    """
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
        padding=geometry[2:4],
        dilation=[1, 1],
        groups=geometry[4],
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


@cache
def can_convolve_bytes() -> bool:
    """Whether this torch has them, with these arguments, and adds up right on this CPU what 16 bits hold."""
    channels, pixel = 8, [1, 1, 0, 0, 1]
    maps = torch.full((1, channels, 3, 3), BYTE, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((channels, channels, 1, 1), WEIGHT, dtype=torch.int8)
    sums = channels * BYTE * WEIGHT
    try:
        weights = [
            weight.to_mkldnn(),
            torch.ones(channels, dtype=torch.float32),
            torch.zeros(channels, dtype=torch.long),
        ]
        alone = convolve(maps, weights, [(1.0, 0)], pixel)
        with_bias = [*weights, torch.zeros(channels, dtype=torch.float32)]
        both = convolve_onto([maps, maps.clone()], with_bias, [(1.0, 0), (1.0, 0), (sums / 100, 0)], pixel)
    except (AttributeError, RuntimeError):  # there is no such operator, it takes other arguments, or not this CPU
        return False
    return bool((alone == sums).all() and (both == 100).all())
