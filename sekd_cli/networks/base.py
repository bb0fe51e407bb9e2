"""What every network here is: grey image batch -> score map and descriptor map."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from sekd_cli.geometry import resize_image


class DenseMaps(NamedTuple):
    """What a network says of a batch of images (B, 1, H, W)."""

    score_logits: Tensor  # (B, H, W); the keypoint probability is their sigmoid
    descriptor_maps: tuple[Tensor, ...]  # each (B, D_i, H / stride_i, W / stride_i), coarse to fine, not normalised
    low_level_map: Tensor  # (B, C, h, w), for reliability in training

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """The maps of several batches of images of one size as of one batch, but without the low-level map."""
        logits, maps, low_level = zip(*batches, strict=True)
        return cls(torch.cat(logits), tuple(map(torch.cat, zip(*maps, strict=True))), low_level[0].new_empty(0))

    @property
    def score_map(self) -> Tensor:
        """Keypoint probability of every pixel, (B, H, W) in [0, 1]."""
        return self.score_logits.sigmoid()

    @property
    def descriptor_map(self) -> Tensor:
        """All descriptor maps brought to the finest one's resolution, (B, D, h, w), not normalised."""
        finest = self.descriptor_maps[-1]
        return torch.cat([resize_image(maps, *finest.shape[-2:]) for maps in self.descriptor_maps], dim=1)


def as_fractions(image: Tensor) -> Tensor:
    """Pixels in [0, 1]: of bytes (uint8) their 255ths."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image


class Float32Convolution(nn.Conv2d):
    """A convolution that is computed in float32, whatever the rest is: rounded scores tie, and lose the peak."""

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Self:
        """A 3x3 convolution with padding 1 and a bias, in float32."""
        made = cls(convolution.in_channels, convolution.out_channels, 3, padding=1, dtype=torch.float32)
        made.load_state_dict(convolution.state_dict())
        return made

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """(B, C, H, W) -> (B, C', H, W)."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class DenseNetwork(nn.Module, ABC):
    """The one interface behind which the networks stand.

    `forward` takes grey images (B, 1, H, W) in [0, 1], or bytes, H and W multiples of `stride`.
    """

    name: ClassVar[str]
    stride: ClassVar[int]
    descriptor_dim: ClassVar[int]
    default_nms_radius: ClassVar[int]  # pixels
    default_threshold: ClassVar[float]  # keypoint probability below which its keypoints seldom match
    default_scales: ClassVar[tuple[float, ...]]  # of an image, at which it is to see it

    quantisable: ClassVar[bool] = False  # whether it can compute in bytes, see `quantising`

    def forward(self, image: Tensor, statistics: Tensor | None = None) -> DenseMaps:
        """The maps of a batch (B, 1, H, W).

        statistics: (B, 2), mean and standard deviation of the whole photograph, where the batch holds tiles of it;
        networks that don't normalise their input ignore them.
        """
        return self.finished(self.layers(self.prepared(image, statistics)))

    def prepared(self, image: Tensor, statistics: Tensor | None) -> Tensor:
        """What the layers take; arguments as in `forward`."""
        del statistics
        return as_fractions(image).to(self.dtype)

    @abstractmethod
    def layers(self, pixels: Tensor) -> DenseMaps:
        """All that is learned: the part that can be recorded as a graph (see `tracing`)."""

    def finished(self, maps: DenseMaps) -> DenseMaps:
        """The maps as `forward` gives them."""
        return maps

    @classmethod
    def holding(cls, names: Collection[str]) -> Self:
        """A network for weights with these names, where there are several shapes of it."""
        del names
        return cls()

    @property
    def dtype(self) -> torch.dtype:
        """What its first layer computes in."""
        return next(self.parameters()).dtype

    def count_parameters(self) -> int:
        """Number of learned values."""
        return sum(parameter.numel() for parameter in self.parameters())
