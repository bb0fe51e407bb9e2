"""Batches of image pairs: a photograph's two random views, with its keypoint labels in both.

A batch is a function of (seed, phase, step) alone, so a run that was killed goes on as if it had not been.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sekd_cli.geometry import inside, look_through, warp_points
from sekd_cli.training.occlusion import draw_hidden, hidden_at
from sekd_cli.training.parallax import Correspondence, bent, displacement, draw_parallax
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.photometric import Light, blur_where_shrunk, change_light, draw_light, draw_mix
from sekd_cli.training.randomness import generator_of, uniform
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.views import footprints, random_pairs

VIEW_BORDER = 2.0  # pixels of a photograph; interpolation at its very edge is no evidence


class PairBatch(NamedTuple):
    """B pairs; the first view of all, then the second view of all, where both are in one tensor."""

    images: Tensor  # (2 B, 1, H, W) grey in [0, 1]
    seen: Tensor  # (2 B, H, W) bool: the photograph itself, not what lies beyond its edge or in front
    keypoints: Tensor  # (2 B, K, 2) the labels in pixels of the view; far outside where there is none
    second_from_first: Tensor  # this and the next three as in Correspondence
    photograph_from_view: Tensor
    sizes: Tensor
    parallax: Tensor
    points: Tensor  # (2 B, P, 2) the same points in both views, for the descriptor
    matched: Tensor  # (B, P) bool: which of them are seen in both

    @property
    def correspondence(self) -> Correspondence:
        """Where points of the first views are in the second."""
        return Correspondence(self.second_from_first, self.photograph_from_view, self.sizes, self.parallax)

    def to(self, device: torch.device) -> "PairBatch":
        """The batch on another device."""
        return PairBatch(*(part.to(device, non_blocking=True) for part in self))


class PairPlan(NamedTuple):
    """All that a batch is made of, drawn and read on the CPU; `render` makes the batch of it on any device."""

    photographs: Tensor  # (B, 3, h, w) uint8, their last pixels drawn out to the size of the largest
    sizes: Tensor  # (B, 2) their widths and heights
    mix: Tensor  # (2, B, 3) shares of the colours in the grey views
    photograph_from_view: Tensor  # (2, B, 3, 3)
    light: Light  # of 2 B images
    others: Tensor  # (B, 3, h, w) as `photographs`, one for the surroundings of each; (0, 3, 0, 0): none
    other_sizes: Tensor  # (B, 2)
    hidden: Tensor  # (2, B, height, width) bool: where another photograph lies in front; (2, B, 0, 0): nowhere
    parallax: Tensor  # this and the next four as in PairBatch
    keypoints: Tensor
    second_from_first: Tensor
    points: Tensor
    matched: Tensor


def look(
    photographs: Tensor,
    sizes: Tensor,
    mix: Tensor,
    photograph_from_view: Tensor,
    *,
    height: int,
    width: int,
    parallax: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Grey views of photographs, not yet changed in light, and which of their pixels see the photograph.

    photographs: (B, 3, h, w) uint8, of which `sizes` (B, 2) are used; mix: (V, B, 3); photograph_from_view:
    (V, B, 3, 3); parallax: (B, 2, n, n), of the last view. Returns (V, B, height, width) in [0, 1] and such bool.
    """
    views, batch = mix.shape[:2]
    flat = photographs.flatten(2).to(mix.dtype)  # (B, 3, h w); grey first: then one channel is sampled, not three
    grey = (mix.transpose(0, 1) @ flat).transpose(0, 1).reshape(views * batch, 1, *photographs.shape[2:])
    maps = photograph_from_view.flatten(0, 1)
    blur_where_shrunk(grey, footprints(maps, height, width))
    all_sizes = sizes.repeat(views, 1)
    moved = None
    if parallax is not None and parallax.any():
        nodes = torch.cat((parallax.new_zeros((views - 1) * batch, *parallax.shape[1:]), parallax))
        moved = partial(displacement, nodes, all_sizes)
    image, seen = look_through(grey, all_sizes, maps, height, width, border=VIEW_BORDER, displacement=moved)
    return image.reshape(views, batch, height, width), seen.reshape(views, batch, height, width)


def surround(image: Tensor, seen: Tensor, others: Tensor, sizes: Tensor, mix: Tensor) -> None:
    """Put another photograph, in place, where a view doesn't see its own: stretched to the view, mirrored in the last.

    Else the edge of a photograph would tell where on it a point is. image, seen: (V, B, height, width); the rest as in
    `look`.
    """
    height, width = image.shape[-2:]
    scale = sizes / sizes.new_tensor([width, height])
    filling = torch.diag_embed(F.pad(scale, (0, 1), value=1.0))  # `resize_matrix` of each
    filling[:, :2, 2] = (scale - 1) / 2
    beyond, _ = look(others, sizes, mix, filling.expand(len(mix), -1, -1, -1), height=height, width=width)
    beyond[-1] = beyond[-1].flip(-1)
    torch.where(seen, image, beyond, out=image)


def _without_padding(photographs: Tensor, sizes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Photographs (B, 3, h, w) and sizes (B, 2) on a device, without padding that none of these needs."""
    right, below = (int(edge) for edge in sizes.amax(dim=0))
    cut = photographs[:, :, :below, :right]
    return cut.to(device, non_blocking=True), sizes.to(device, non_blocking=True)


def render(plan: PairPlan, height: int, width: int, device: torch.device, *, at_once: bool = False) -> PairBatch:
    """The batch of a plan: pair by pair on a CPU, whose cache holds one; all at once elsewhere. The same comes out."""
    count = len(plan.photographs)
    step = count if at_once or device.type != "cpu" else 1
    images, seen = [], []
    for start in range(0, count, step):
        rows = slice(start, start + step)
        mix, maps = (part[:, rows].to(device, non_blocking=True) for part in (plan.mix, plan.photograph_from_view))
        own = _without_padding(plan.photographs[rows], plan.sizes[rows], device)
        parallax = plan.parallax[rows].to(device, non_blocking=True)
        image, sees = look(*own, mix, maps, height=height, width=width, parallax=parallax)
        if plan.hidden.numel():
            sees &= ~plan.hidden[:, rows].to(device, non_blocking=True)
        if len(plan.others):
            others = _without_padding(plan.others[rows], plan.other_sizes[rows], device)
            surround(image, sees, *others, mix)
        images.append(image)
        seen.append(sees)
    grey = torch.cat(images, dim=1).reshape(2 * count, 1, height, width)
    return PairBatch(
        images=change_light(grey, plan.light),
        seen=torch.cat(seen, dim=1).flatten(0, 1),
        keypoints=plan.keypoints,
        second_from_first=plan.second_from_first,
        photograph_from_view=plan.photograph_from_view,
        sizes=plan.sizes,
        parallax=plan.parallax,
        points=plan.points,
        matched=plan.matched,
    ).to(device)


class PairDataset(Dataset[PairBatch]):
    """Item `step` is that step's batch, on the CPU.

    chosen: indices of the photographs of this phase; labels: (len(chosen), K, 3) float32, x, y and score in pixels of
    the photograph, nan where there are fewer. key: (seed, phase). share: (rank, ranks), which part of each batch.
    """

    def __init__(
        self,
        photographs: Photographs,
        chosen: np.ndarray,
        labels: np.ndarray,
        settings: TrainingSettings,
        key: tuple[int, ...],
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.photographs, self.chosen, self.labels = photographs, chosen, labels
        self.settings, self.key, self.share = settings, key, share

    def __getitem__(self, step: int) -> PairBatch:
        return render(self.plan(step), self.settings.height, self.settings.width, torch.device("cpu"))

    def rows(self, step: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Which of the chosen photographs a batch is made of, and which lie beyond their edges."""
        rows = torch.randint(len(self.chosen), (self.settings.batch_size,), generator=generator).numpy()
        return rows, np.roll(rows, 1)

    def plan(self, step: int) -> PairPlan:
        """What the batch of a step is made of."""
        settings, count = self.settings, self.settings.batch_size
        generator = generator_of(*self.key, step)
        rows, others = self.rows(step, generator)
        sizes = torch.from_numpy(self.photographs.sizes[self.chosen[rows]]).float()
        both_views = torch.stack(random_pairs(sizes, settings, generator))  # (2, B, 3, 3) photograph_from_view
        labels = torch.from_numpy(self.labels[rows, :, :2])  # (B, K, 2)
        view_from_photograph = torch.linalg.inv(both_views)
        parallax = self._parallax(step, sizes)
        places = bent(parallax, sizes, labels) if parallax.numel() else labels
        keypoints = torch.stack(
            [warp_points(xy, change) for xy, change in zip((labels, places), view_from_photograph, strict=True)]
        )
        keypoints = keypoints.nan_to_num(nan=-1e4, posinf=-1e4)
        hidden = self._hidden(step)
        keypoints[hidden_at(hidden, keypoints)] = -1e4
        there = Correspondence(view_from_photograph[1] @ both_views[0], both_views, sizes, parallax)
        points, matched = self._points(there, keypoints, hidden, generator)
        mix = draw_mix(2 * count, generator)
        light = draw_light(2 * count, generator, exposed_share=settings.exposed_share)
        plain = uniform(0.0, 1.0, count, generator) < settings.plain_share

        rank, ranks = self.share  # all is drawn for the whole batch, so that it is the same for any number of ranks
        own = torch.arange(count).chunk(ranks)[rank]
        others = others[own.numpy()] if settings.other_surroundings else others[:0]
        return PairPlan(
            photographs=self._stacked(rows[own.numpy()]),
            sizes=sizes[own],
            others=self._stacked(others),
            other_sizes=torch.from_numpy(self.photographs.sizes[self.chosen[others]]).float(),
            hidden=hidden[:, own],
            mix=mix.reshape(2, count, 3)[:, own],
            photograph_from_view=both_views[:, own],
            light=light.plain(plain.repeat(2)).of(torch.cat((own, count + own))),
            keypoints=keypoints[:, own].flatten(0, 1),
            parallax=parallax[own],
            second_from_first=there.second_from_first[own],
            points=points[:, own].flatten(0, 1),
            matched=matched[own],
        )

    def _stacked(self, rows: np.ndarray) -> Tensor:
        """Photographs (B, 3, h, w), their last pixels drawn out to the size of the largest."""
        photographs = [self.photographs[self.chosen[row]] for row in rows]
        height, width = (max((photograph.shape[axis] for photograph in photographs), default=0) for axis in (1, 2))
        stacked = torch.zeros(len(photographs), 3, height, width, dtype=torch.uint8)
        for into, photograph in zip(stacked, photographs, strict=True):
            below, right = photograph.shape[1:]
            into[:, :below, :right] = photograph
            into[:, :below, right:] = photograph[:, :, -1:]
            into[:, below:] = into[:, below - 1 : below]
        return stacked

    def _hidden(self, step: int) -> Tensor:
        """Which pixels of both views something hides, (2, B, H, W); drawn apart, so that all else is as without."""
        settings, count = self.settings, self.settings.batch_size
        if settings.hidden_share == 0:
            return torch.zeros(2, count, 0, 0, dtype=torch.bool)
        size = (settings.height, settings.width)
        hidden = draw_hidden(2 * count, settings.hidden_share, *size, generator_of(*self.key, step, 1))
        return hidden.reshape(2, count, *size)

    def _parallax(self, step: int, sizes: Tensor) -> Tensor:
        """See `draw_parallax`; drawn apart, as what is hidden."""
        settings = self.settings
        if settings.parallax_share == 0:
            return torch.zeros(len(sizes), 2, 0, 0)
        return draw_parallax(sizes, settings.parallax_share, settings.parallax, generator_of(*self.key, step, 2))

    def _points(
        self, views: Correspondence, keypoints: Tensor, hidden: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The same points in both views (2, B, P, 2): labels first, the rest at random, and which are seen in both."""
        settings = self.settings
        height, width = settings.height, settings.width
        count = len(views.sizes)
        extent = torch.tensor([width - 1.0, height - 1.0])
        wanted = settings.random_points + settings.detected_points
        anywhere = torch.rand(count, 4 * wanted, 2, generator=generator) * extent  # in the first view
        on_photograph = warp_points(anywhere, views.photograph_from_view[0])
        within = (on_photograph >= VIEW_BORDER) & (on_photograph <= views.sizes[:, None] - 1 - VIEW_BORDER)
        in_second = views.in_second(anywhere)
        in_both = torch.stack((anywhere, in_second))
        seen = within.all(-1) & inside(in_second, height, width) & ~hidden_at(hidden, in_both).any(dim=0)
        labelled = inside(keypoints, height, width).all(0)

        lucky = labelled * (1 + torch.rand(labelled.shape, generator=generator))
        best, order = lucky.topk(min(settings.detected_points, lucky.shape[1]), dim=1)
        detected = keypoints.gather(2, order[None, :, :, None].expand(2, -1, -1, 2))
        candidates = torch.cat((detected, in_both), dim=2)
        good = torch.cat((best > 0, seen), dim=1)
        # the seen ones first, in their order, so that random points stand in for labels that are missing
        first = good.byte().argsort(dim=1, descending=True, stable=True)[:, :wanted]
        if settings.random_points == 0:  # the paper: labels only
            first = torch.arange(best.shape[1]).expand(count, -1)
        points = candidates.gather(2, first[None, :, :, None].expand(2, -1, -1, 2))
        matched = good.gather(1, first)
        return points.where(matched[None, :, :, None], torch.zeros(())), matched


class PlanDataset(Dataset[PairPlan]):
    """The plans of a dataset's batches, for a device that renders them itself."""

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs

    def __getitem__(self, step: int) -> PairPlan:
        return self.pairs.plan(step)
