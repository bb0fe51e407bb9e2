"""What the network says of a window of an image, as the image lies and as it looks turned by quarters.

Scores are the mean of all turns; a keypoint is described once at each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sekd_cli.coordinates import quarter_turn
from sekd_cli.features import sample_descriptors
from sekd_cli.geometry import warp_points
from sekd_cli.networks import DenseMaps
from sekd_cli.tiles import Window


class View(NamedTuple):
    """What the network says of a window as it looks at one turn."""

    score_logits: Tensor  # (h, w), turned back
    descriptor_maps: tuple[Tensor, ...]  # each (B, D_i, h_i, w_i), as turned
    width: int  # pixels of what went through the network
    turned_from_window: Tensor | None  # (1, 3, 3); None if it isn't turned

    @classmethod
    def of(cls, maps: DenseMaps, index: int, turns: int, height: int, width: int) -> "View":
        """Image `index` of a batch, a window (height, width) turned so often counter-clockwise and then padded."""
        turned = (width, height) if turns % 2 else (height, width)
        logits = maps.score_logits[index, : turned[0], : turned[1]]
        descriptor_maps = tuple(one[index : index + 1] for one in maps.descriptor_maps)
        if not turns:
            return cls(logits, descriptor_maps, maps.score_logits.shape[-1], None)
        turned_from_window = torch.from_numpy(quarter_turn(turns, height, width)).to(logits.device, torch.float32)
        return cls(torch.rot90(logits, -turns), descriptor_maps, maps.score_logits.shape[-1], turned_from_window[None])

    def describe(self, keypoints: Tensor) -> Tensor:
        """Descriptors (B, N, D) of keypoints (B, N, 2) of the window, as it looks at this turn."""
        if self.turned_from_window is not None:
            keypoints = warp_points(keypoints, self.turned_from_window)
        return sample_descriptors(self.descriptor_maps, keypoints, self.width)


class Patch(NamedTuple):
    """What the network says of a window at every turn."""

    window: Window
    views: list[View]

    def score_logits(self) -> Tensor:
        """(h, w), the mean of all turns."""
        height, width = self.window.bottom - self.window.top, self.window.right - self.window.left
        logits = [view.score_logits[:height, :width] for view in self.views]
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)

    def describe(self, keypoints: Tensor) -> Tensor:
        """Descriptors (T, ..., N, D) of keypoints (..., N, 2) of the window, or of B windows, at every turn."""
        points = keypoints if keypoints.ndim > 2 else keypoints[None]
        described = torch.stack([view.describe(points) for view in self.views])
        return described if keypoints.ndim > 2 else described[:, 0]


def joined_views(views: Sequence[list[View]]) -> list[View]:
    """The views of B windows of one size, at every turn, as one of a batch of B."""
    return [
        same[0]._replace(
            descriptor_maps=tuple(torch.cat(maps) for maps in zip(*(one.descriptor_maps for one in same), strict=True))
        )
        for same in zip(*views, strict=True)
    ]
