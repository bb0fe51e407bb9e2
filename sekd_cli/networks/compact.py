"""The compact network: the default. Nothing wide at high resolution, everything a CPU does well."""

from collections.abc import Collection
from typing import ClassVar, Self, cast

import cv2
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sekd_cli.geometry import upsample
from sekd_cli.networks.base import DenseMaps, DenseNetwork, Float32Convolution, as_fractions

DETAIL_DIM = 16  # descriptor dimensions read at 1/4, where neighbouring keypoints differ; the rest is context at 1/8
FIRST_LOGIT = -4.0  # few pixels are keypoints: an untrained detector says so
MINIMUM_DEVIATION = 0.01  # an even image stays even: noise is not blown up to contrast


def image_statistics(image: Tensor) -> Tensor:
    """Mean and standard deviation of each image of (B, 1, H, W), (B, 2)."""
    pixels = image.flatten(1).float()
    mean = pixels.mean(dim=1)
    deviation = (pixels - mean[:, None]).square_().mean(dim=1).sqrt()  # torch's std takes ten times as long on a CPU
    return torch.stack((mean, deviation), dim=1)


def normalised(pixels: Tensor, statistics: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels (B, C, H, W), bytes or fractions, minus their image's mean, divided by its standard deviation.

    statistics: (B, 2), both as fractions, of which the deviation counts as MINIMUM_DEVIATION at least.
    """
    if pixels.dtype == torch.uint8 and pixels.device.type == "cpu":
        values = torch.arange(256).expand(len(pixels), 1, 1, 256)
        return _looked_up(pixels, _standardised(values, 255.0, statistics).to(dtype)[:, 0, 0])
    return _standardised(pixels, 255.0 if pixels.dtype == torch.uint8 else 1.0, statistics).to(dtype)


def _standardised(pixels: Tensor, white: float, statistics: Tensor) -> Tensor:
    mean, deviation = (white * statistics)[..., None, None].unbind(1)  # (B, 1, 1)
    return (pixels - mean[:, None]).mul_(deviation[:, None].clamp(min=white * MINIMUM_DEVIATION).reciprocal())


def _looked_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """For each byte of an image what its table (256,) has there, in channels-last memory; OpenCV has no bfloat16."""
    images = pixels.permute(0, 2, 3, 1).contiguous()
    found = torch.empty_like(images, dtype=tables.dtype)
    as_moved = torch.int16 if tables.itemsize == 2 else torch.int32
    for image, table, place in zip(images, tables.view(as_moved), found.view(as_moved), strict=True):
        cv2.LUT(image.numpy().reshape(1, -1), table.numpy(), place.numpy().reshape(1, -1))
    return found.permute(0, 3, 1, 2)


class Normalise(nn.Module):
    """`normalised` as a layer, so that `packing` and `quantising` can put another one in its place."""

    def forward(self, image: Tensor, statistics: Tensor, dtype: torch.dtype) -> Tensor:
        """As `normalised`."""
        return normalised(image, statistics, dtype)


def _convolution(
    in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and (if `active`) ReLU; the norm folds into the convolution for inference."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if active else nn.Sequential(*layers)


class EnlargeOnto(nn.Module):
    """A map enlarged by two plus a finer one, and, if `active`, the ReLU of that; inference puts faster layers here."""

    def __init__(self, *, active: bool = True) -> None:
        super().__init__()
        self.active = active

    def forward(self, maps: Tensor, finer: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, 2h, 2w) -> (B, C, 2h, 2w)."""
        both = finer + upsample(maps, 2)
        return F.relu(both, inplace=True) if self.active else both


class Interleave(nn.Module):
    """Four values a cell to pixels: `F.pixel_shuffle(cells, 2)[:, 0]` where channels lie together in memory."""

    def forward(self, cells: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 2h, 2w)."""
        batch, _, height, width = cells.shape
        pixels = cells.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2)
        return pixels.transpose(2, 3).reshape(batch, 2 * height, 2 * width)


class ResidualPair(nn.Module):
    """Two 3x3 convolutions added to their input; nothing is added until something is learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels, active=False))
        self.silence()

    def silence(self) -> None:
        """Let it add nothing, whatever its convolutions compute."""
        norm = cast(nn.BatchNorm2d, cast(nn.Sequential, self.body[1])[1])
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(x + self.body(x), inplace=True)


class AddedContext(nn.Conv2d):
    """A 1x1 convolution of coarse maps that is added to a finer one; nothing is added until something is learned."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.silence()

    def silence(self) -> None:
        """Let it add nothing."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(cast(Tensor, self.bias))


def _level(in_channels: int, out_channels: int) -> nn.Sequential:
    """Half the resolution, then a residual pair."""
    return nn.Sequential(_convolution(in_channels, out_channels, stride=2), ResidualPair(out_channels))


class CompactNetwork(DenseNetwork):
    """Scores from 1/2 resolution by pixel shuffle; descriptors 48-d at 1/8 (from levels to 1/32) and 16-d at 1/4.

    At 1/4 all levels are mixed before detail and scores are read off it. What costs a CPU time is bytes at high
    resolution, so 1/2 has 8 channels and nothing is at full resolution.
    """

    name: ClassVar[str] = "compact"
    stride: ClassVar[int] = 32
    descriptor_dim: ClassVar[int] = 64
    default_nms_radius: ClassVar[int] = 2
    default_threshold: ClassVar[float] = 0.05
    default_scales: ClassVar[tuple[float, ...]] = (1.0, 0.5)
    quantisable: ClassVar[bool] = True

    def __init__(self, *, shallow: bool = False) -> None:
        """`shallow`: 1/4 as the encoder has it, for descriptors and scores, without its surroundings."""
        super().__init__()
        self.normalise: nn.Module = Normalise()
        # encoder: 8 channels at 1/2, 32 at 1/4, 64 at 1/8, 96 at 1/16 and 1/32
        self.level2 = nn.Sequential(_convolution(1, 8, kernel=4, stride=2), _convolution(8, 8))
        self.level4 = nn.Sequential(_convolution(8, 32, stride=2), _convolution(32, 32))
        self.level8 = _level(32, 64)
        self.level16 = _level(64, 96)
        self.level32 = _level(96, 96)
        # levels 32 and 16 brought to 1/8 and mixed, then to 1/4
        self.context16 = nn.Conv2d(96, 96, 1)
        self.onto16: nn.Module = EnlargeOnto()
        self.context8 = nn.Conv2d(96, 64, 1)
        self.onto8: nn.Module = EnlargeOnto()
        self.context_detail = None if shallow else AddedContext(64, 32)
        self.onto4: nn.Module = EnlargeOnto()
        self.blend = nn.Sequential() if shallow else nn.Sequential(ResidualPair(32))
        # descriptor: of 1/8, beside the detail of 1/4
        self.semantic = nn.Sequential(_convolution(64, 64), nn.Conv2d(64, self.descriptor_dim - DETAIL_DIM, 1))
        self.detail = nn.Conv2d(32, DETAIL_DIM, 1)
        # scores: levels 8 and 4 brought to 1/2, then four scores a cell of 2x2 pixels
        self.context4 = nn.Conv2d(64, 8, 1)
        self.context2 = nn.Conv2d(32, 8, 1)
        self.joined4: nn.Module = EnlargeOnto(active=False)
        self.onto2: nn.Module = EnlargeOnto()
        self.surroundings = _convolution(8, 8)
        detector = Float32Convolution(8, 4, 3, padding=1)
        self.detector: nn.Module = detector
        self.interleave: nn.Module = Interleave()
        nn.init.constant_(cast(Tensor, detector.bias), FIRST_LOGIT)

    @classmethod
    def holding(cls, names: Collection[str]) -> Self:
        """Shallow, if the weights with these names are."""
        return cls(shallow="context_detail.weight" not in names)

    def prepared(self, image: Tensor, statistics: Tensor | None) -> Tensor:
        """The image normalised by `statistics`, by default those of each image."""
        if statistics is None:
            statistics = image_statistics(as_fractions(image))
        return cast(Tensor, self.normalise(image, statistics, self.dtype))

    def layers(self, pixels: Tensor) -> DenseMaps:
        """See `DenseNetwork.layers`; scores are left in cells of 2x2 pixels, (B, 4, H/2, W/2)."""
        level2 = self.level2(pixels)  # (B, 8, H/2, W/2)
        level4 = self.level4(level2)  # (B, 32, H/4, W/4)
        level8 = self.level8(level4)  # (B, 64, H/8, W/8)
        level16 = self.level16(level8)  # (B, 96, H/16, W/16)
        level32 = self.level32(level16)  # (B, 96, H/32, W/32)

        context4 = self.context4(level8)  # read before a sum may be written over it
        context16 = self.onto16(self.context16(level32), level16)
        mixed = self.onto8(self.context8(context16), level8)
        semantic = self.semantic(mixed)  # (B, 48, H/8, W/8)
        fine = level4 if self.context_detail is None else self.onto4(self.context_detail(mixed), level4)
        fine = self.blend(fine)  # (B, 32, H/4, W/4)
        detail = self.detail(fine)  # (B, 16, H/4, W/4)

        context2 = self.joined4(context4, self.context2(fine))  # (B, 8, H/4, W/4)
        surroundings = self.surroundings(self.onto2(context2, level2))  # (B, 8, H/2, W/2)
        return DenseMaps(self.detector(surroundings), (semantic, detail), level2)

    def finished(self, maps: DenseMaps) -> DenseMaps:
        """Cells of scores taken apart, (B, H, W)."""
        return maps._replace(score_logits=self.interleave(maps.score_logits))
