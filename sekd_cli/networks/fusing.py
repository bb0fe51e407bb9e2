"""Convolutions with what follows them, a sum and a ReLU, in one pass over memory: oneDNN has it, if asked for it.

Adding to a map at 1/4 and clipping it take as long in bfloat16 as the convolution that made it. Torch's compiler asks
for the same, but takes a C++ compiler and 40 s a size. The numbers are the same, but for sums in bfloat16, which are
rounded once instead of twice.
"""

import copy
import platform
from typing import cast

import torch
from torch import Tensor, nn

from sekd_cli.geometry import upsample
from sekd_cli.networks.base import Float32Convolution
from sekd_cli.networks.compact import CompactNetwork, ResidualPair
from sekd_cli.networks.packing import BorderRepeated, convolution_of
from sekd_cli.networks.precision import has_matrix_units
from sekd_cli.networks.tracing import recordable


def can_fuse(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have such convolutions of a type, and they were found to be faster."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _convolve(maps: Tensor, weight: Tensor, bias: Tensor, geometry: list[int], then: str) -> Tensor:
    fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
        maps, weight, bias, geometry[:2], geometry[2:], [1, 1], 1, then, [], ""
    )
    return fused


def _convolve_onto(maps: Tensor, finer: Tensor, weight: Tensor, bias: Tensor, geometry: list[int]) -> Tensor:
    if finer.size(2) * finer.size(3) == 1:  # torch 2.11 fails to add a map of one pixel
        return torch.relu(finer + _convolve(maps, weight, bias, geometry, "none"))
    fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
        maps, finer, weight, bias, geometry[:2], geometry[2:], [1, 1], 1, "add", 1.0, "relu", [], ""
    )
    return fused


def _convolve_less(maps: Tensor, other: Tensor, weight: Tensor, bias: Tensor, geometry: list[int]) -> Tensor:
    fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
        maps, other, weight, bias, geometry[:2], geometry[2:], [1, 1], 1, "sub", 1.0, None, [], None
    )
    return fused


class FusedConvolution(nn.Module):
    """A convolution and, if `active`, the ReLU of it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d, *, active: bool) -> None:
        super().__init__()
        self.convolution = convolution  # says what the network computes in
        padding, stride = list(cast(tuple[int, ...], convolution.padding)), list(convolution.stride)
        self.geometry = [*padding, *stride]
        self.then = "relu" if active else "none"
        assert convolution.bias is not None, "fold the norms first"
        weight = convolution.weight.detach()
        if weight.dtype == torch.bfloat16 and has_matrix_units():  # as those kernels read it; others read it otherwise
            weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), padding, stride, [1, 1], 1)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", convolution.bias.detach(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return recordable(_convolve)(maps, self.weight, self.bias, self.geometry, self.then)

    def onto(self, maps: Tensor, finer: Tensor) -> Tensor:
        """The ReLU of the convolution plus `finer`."""
        return recordable(_convolve_onto)(maps, finer, self.weight, self.bias, self.geometry)

    def less(self, maps: Tensor, other: Tensor) -> Tensor:
        """The convolution minus another map, rounded once, after the subtraction."""
        return recordable(_convolve_less)(maps, other, self.weight, self.bias, self.geometry)


class FusedPair(nn.Module):
    """A `ResidualPair`."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = FusedConvolution(first, active=True), FusedConvolution(second, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.second.onto(self.first(x), x)


class FusedEnlargeOnto(nn.Module):
    """An `EnlargeOnto`: the finer map through a convolution by one, for the sake of the sum and ReLU in one pass."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        same = nn.Conv2d(channels, channels, 1)
        nn.init.dirac_(same.weight)
        nn.init.zeros_(cast(Tensor, same.bias))
        self.same = FusedConvolution(same.to(dtype), active=False)

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, 2h, 2w) -> (B, C, 2h, 2w)."""
        return self.same.onto(finer, upsample(maps, 2))


class FusedBorderRepeated(nn.Module):
    """A `BorderRepeated`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = FusedConvolution(convolution, active=False)

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C', h, w) -> (B, C', h, w)."""
        return self.convolution.onto(BorderRepeated.padded(maps), finer)


class FusedFloat32(nn.Module):
    """A `Float32Convolution`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = FusedConvolution(convolution, active=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return cast(Tensor, self.convolution(maps.float()))


class FusedInTwoParts(nn.Module):
    """A convolution of bfloat16 maps by bfloat16 weights, exact to 1e-5 of its largest sums, on matrix units.

    These add up in float32, but give what is rounded to eight bits. So they do it twice, and the second time take away
    what was given the first: what is left is what rounding lost, and with it half of the time of float32.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        rounded = cast(nn.Conv2d, copy.deepcopy(convolution).bfloat16())
        self.convolution = FusedConvolution(rounded, active=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) bfloat16 -> (B, C', H, W) float32."""
        rounded = cast(Tensor, self.convolution(maps))
        lost = self.convolution.less(maps, rounded)
        return rounded.float().add_(lost.float())  # of two types the sum takes thrice as long


def fuse(network: CompactNetwork) -> CompactNetwork:
    """A network whose norms are folded, all of whose convolutions are fused, in place."""
    detector, channels = network.detector, network.detail.in_channels
    for name, child in network.named_children():
        setattr(network, name, _fused(child))
    if network.dtype == torch.bfloat16 and has_matrix_units():
        network.detector = FusedInTwoParts(detector)
        network.onto4 = FusedEnlargeOnto(channels, network.dtype)
    return network


def _fused(module: nn.Module) -> nn.Module:
    if isinstance(module, ResidualPair):
        return FusedPair(*(convolution_of(part) for part in module.body))
    if isinstance(module, BorderRepeated):
        return FusedBorderRepeated(module.convolution)
    if isinstance(module, Float32Convolution):
        return FusedFloat32(module)
    if isinstance(module, nn.Conv2d):
        return FusedConvolution(module, active=False)
    if not isinstance(module, nn.Sequential):
        return module
    layers: list[nn.Module] = []
    for layer in module:
        if isinstance(layer, nn.ReLU) and layers and isinstance(before := layers[-1], FusedConvolution):
            before.then = "relu"
        elif not isinstance(layer, nn.Identity):
            layers.append(_fused(layer))
    return nn.Sequential(*layers)
