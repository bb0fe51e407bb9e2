"""Batches of image pairs: a photograph's two random views, with its keypoint labels in both.

A batch is a function of (seed, phase, step) alone, so a run that was killed goes on as if it had not been.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sekd_cli.geometry import inside, pixel_grid, sample_map, warp_points
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.photometric import change_light, random_grey
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.views import random_pairs

VIEW_BORDER = 2.0  # pixels of a photograph; interpolation at its very edge is no evidence


class PairBatch(NamedTuple):
    """B pairs; the first view of all, then the second view of all, where both are in one tensor."""

    images: Tensor  # (2 B, 1, H, W) grey in [0, 1]
    seen: Tensor  # (2 B, H, W) bool: inside the photograph
    keypoints: Tensor  # (2 B, K, 2) the labels in pixels of the view; far outside where there is none
    second_from_first: Tensor  # (B, 3, 3)
    points: Tensor  # (2 B, P, 2) the same points in both views, for the descriptor
    matched: Tensor  # (B, P) bool: which of them are seen in both

    def to(self, device: torch.device) -> "PairBatch":
        """The batch on another device."""
        return PairBatch(*(part.to(device, non_blocking=True) for part in self))


def generator_of(*key: int) -> torch.Generator:
    """Randomness that depends on the key alone."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & 0x7FFF_FFFF_FFFF_FFFF)


def view_of(photograph: Tensor, photograph_from_view: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What a view (3, 3) shows of a grey photograph (1, h, w): image (1, H, W) and which pixels it sees (H, W)."""
    xy = warp_points(pixel_grid(height, width)[None], photograph_from_view[None])
    image = sample_map(photograph[None], xy)[0].reshape(1, height, width)
    seen = inside(xy[0], photograph.shape[-2], photograph.shape[-1], VIEW_BORDER)
    return image, seen.reshape(height, width)


class PairDataset(Dataset[PairBatch]):
    """Item `step` is that step's batch.

    chosen: indices of the photographs of this phase; labels: (len(chosen), K, 3) float32, x, y and score in pixels of
    the photograph, nan where there are fewer. key: (seed, phase).
    """

    def __init__(
        self,
        photographs: Photographs,
        chosen: np.ndarray,
        labels: np.ndarray,
        settings: TrainingSettings,
        key: tuple[int, ...],
    ) -> None:
        self.photographs, self.chosen, self.labels = photographs, chosen, labels
        self.settings, self.key = settings, key

    def __getitem__(self, step: int) -> PairBatch:
        settings = self.settings
        generator = generator_of(*self.key, step)
        rows = torch.randint(len(self.chosen), (settings.batch_size,), generator=generator).numpy()
        sizes = torch.from_numpy(self.photographs.sizes[self.chosen[rows]]).float()
        both_views = torch.stack(random_pairs(sizes, settings, generator))  # (2, B, 3, 3) photograph_from_view
        images, seen = [], []
        for views in both_views:
            for row, view in zip(rows, views, strict=True):
                grey = random_grey(self.photographs[self.chosen[row]], generator)
                image, sees = view_of(grey, view, settings.height, settings.width)
                images.append(image)
                seen.append(sees)
        labels = torch.from_numpy(self.labels[rows, :, :2]).nan_to_num(nan=-1e4)  # (B, K, 2)
        view_from_photograph = torch.linalg.inv(both_views)
        keypoints = torch.stack([warp_points(labels, change) for change in view_from_photograph])
        keypoints = keypoints.nan_to_num(posinf=-1e4)
        points, matched = self._points(both_views, keypoints, sizes, generator)
        return PairBatch(
            images=change_light(torch.stack(images), generator),
            seen=torch.stack(seen),
            keypoints=keypoints.flatten(0, 1),
            second_from_first=view_from_photograph[1] @ both_views[0],
            points=points.flatten(0, 1),
            matched=matched,
        )

    def _points(
        self, both_views: Tensor, keypoints: Tensor, sizes: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The same points in both views (2, B, P, 2): labels first, the rest at random, and which are seen in both."""
        settings = self.settings
        height, width = settings.height, settings.width
        count = len(sizes)
        extent = torch.tensor([width - 1.0, height - 1.0])
        wanted = settings.random_points + settings.detected_points
        anywhere = torch.rand(count, 4 * wanted, 2, generator=generator) * extent  # in the first view
        on_photograph = warp_points(anywhere, both_views[0])
        within = (on_photograph >= VIEW_BORDER) & (on_photograph <= sizes[:, None] - 1 - VIEW_BORDER)
        in_second = warp_points(on_photograph, torch.linalg.inv(both_views[1]))
        random_pairs = torch.stack((anywhere, in_second))
        seen = within.all(-1) & inside(in_second, height, width)
        labelled = inside(keypoints, height, width).all(0)

        lucky = labelled * (1 + torch.rand(labelled.shape, generator=generator))
        best, order = lucky.topk(min(settings.detected_points, lucky.shape[1]), dim=1)
        detected = keypoints.gather(2, order[None, :, :, None].expand(2, -1, -1, 2))
        candidates = torch.cat((detected, random_pairs), dim=2)
        good = torch.cat((best > 0, seen), dim=1)
        # the seen ones first, in their order, so that random points stand in for labels that are missing
        first = good.byte().argsort(dim=1, descending=True, stable=True)[:, :wanted]
        if settings.random_points == 0:  # the paper: labels only
            first = torch.arange(best.shape[1]).expand(count, -1)
        points = candidates.gather(2, first[None, :, :, None].expand(2, -1, -1, 2))
        matched = good.gather(1, first)
        return points.where(matched[None, :, :, None], torch.zeros(())), matched
