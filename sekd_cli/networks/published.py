"""The network of the paper (Sec. 3.2 and the authors' published settings): 661,762 parameters."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sekd_cli.networks.base import DenseMaps, DenseNetwork, Float32Convolution
from sekd_cli.networks.packing import unpack

WIDE_ENOUGH = 64  # output channels from which oneDNN's own transposed convolution is fast


class PreActivation(nn.Sequential):
    """BN, ReLU, then the layer given."""

    def __init__(self, channels: int, layer: nn.Module) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), layer)


class ResidualBlock(nn.Module):
    """Pre-activated 3x3 convolution added to its input, through a 1x1 convolution where stride or width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.body = PreActivation(in_channels, convolution)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        output: Tensor = self.body(x) + self.shortcut(x)
        return output


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, out_channels, stride),
        ResidualBlock(out_channels, out_channels),
        ResidualBlock(out_channels, out_channels),
    )


class Enlargement(nn.ConvTranspose2d):
    """A 3x3 transposed convolution with stride 2, its four pixels a cell computed by one 2x2 convolution.

    For narrow groups oneDNN is slow in bfloat16: this multiplies the zeros between groups as well, and takes a
    twentieth of the time.
    """

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        if torch.onnx.is_in_onnx_export():
            return super().forward(maps, output_size)  # torch 2.4 can't export a kernel that is computed
        bias = self.bias.repeat(4) if self.bias is not None else None
        cells = F.conv2d(maps, self.cell_weight(), bias, padding=1)[:, :, 1:, 1:]  # each from itself and the next
        return unpack(cells, 2)

    def cell_weight(self) -> Tensor:
        """(4 C', C, 2, 2): row and column in the cell, then channel; from the cell itself, and from the next."""
        per_group = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])  # (G, C / G, C' / G, 3, 3)
        apart = torch.eye(self.groups, dtype=self.weight.dtype, device=self.weight.device)
        dense = torch.einsum("gioyx,gh->gihoyx", per_group, apart).flatten(2, 3).flatten(0, 1)  # (C, C', 3, 3)
        # an even pixel sees its cell through the kernel's middle; an odd one, its cell and the next through the ends
        taps = self.weight.new_tensor([[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]])  # (pixel, cell, kernel)
        return torch.einsum("ioyx,pay,qbx->pqoiab", dense, taps, taps).flatten(0, 2)


def _up(in_channels: int, out_channels: int) -> PreActivation:
    kind = Enlargement if out_channels < WIDE_ENOUGH else nn.ConvTranspose2d
    layer = kind(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, groups=8)
    return PreActivation(in_channels, layer)


class PublishedNetwork(DenseNetwork):
    """Scores at full resolution, 128-d descriptors at 1/4; 53.1 GFLOP at 640x480."""

    name: ClassVar[str] = "published"
    stride: ClassVar[int] = 4
    descriptor_dim: ClassVar[int] = 128
    default_nms_radius: ClassVar[int] = 4
    default_threshold: ClassVar[float] = 0.4
    default_scales: ClassVar[tuple[float, ...]] = (1.0,)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 5, padding=2)
        self.stage0 = _stage(32, 32, stride=1)
        self.stage1 = _stage(32, 64, stride=2)
        self.stage2 = _stage(64, 128, stride=2)
        self.up1 = _up(128, 64)
        self.up0 = _up(64, 32)
        self.detector = Float32Convolution(32, 2, 3, padding=1)
        self.descriptor = ResidualBlock(128, 128)

    def layers(self, pixels: Tensor) -> DenseMaps:
        """See `DenseNetwork.layers`; the input is not normalised."""
        full = self.stage0(self.stem(pixels))  # (B, 32, H, W)
        half = self.stage1(full)  # (B, 64, H/2, W/2)
        quarter = self.stage2(half)  # (B, 128, H/4, W/4)
        low_level_map = self.up0(self.up1(quarter) + half) + full  # (B, 32, H, W)
        logits = self.detector(low_level_map)  # (B, 2, H, W); softmax's channel 1 is their difference's sigmoid
        return DenseMaps(logits[:, 1] - logits[:, 0], (self.descriptor(quarter),), low_level_map)
