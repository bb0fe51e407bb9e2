"""Keypoints from a score map: suppression, top-k, sub-pixel refinement (paper Sec. 3.4). Shapes as in `features`.

Everything here works on candidates, never in a Python loop over keypoints.
"""

import math
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.config import DetectionSettings

Array = TypeVar("Array", Tensor, np.ndarray)

EDGE = 1  # pixels along a map's border, where none can be told from what rises beyond it
OCTAVE_COST = 0.5  # logits that a keypoint loses for each time the image was halved (docs/EXPERIMENTS.md, 85)
MOST_LOST = 32  # of the best local maxima, as others of their plateau are kept
MOST_OF_A_KIND = 8  # local maxima of one value in a row, beyond which they are compared in the map


def local_maxima(score_logits: Tensor, radius: int) -> Tensor:
    """Pixels that are the largest of the (2 radius + 1)^2 window around them: (..., H, W) -> (..., H, W) bool.

    On a CPU OpenCV's dilation and numpy's comparison do it, in a fiftieth of the time of torch's max pooling and with
    the same result.
    """
    if score_logits.device.type != "cpu":
        return score_logits == max_pool(score_logits, radius)
    if score_logits.ndim > 2:
        return torch.stack([local_maxima(one, radius) for one in score_logits])
    values = score_logits.numpy()
    return torch.from_numpy(np.equal(values, dilate(values, radius)))


def maxima_within(score_logits: Tensor, radius: int, mask: Tensor | None) -> Tensor:
    """The local maxima (..., H, W) of maps where their masks are true, but for those on the outermost pixels.

    There most are slopes that rise towards the outside, and one in twenty of their matches is right
    (docs/EXPERIMENTS.md, 122).
    """
    within = torch.zeros_like(score_logits, dtype=torch.bool)
    within[..., EDGE:-EDGE, EDGE:-EDGE] = True
    if mask is not None:
        within &= mask
    return within & local_maxima(score_logits, radius)


def dilate(values: np.ndarray, radius: int) -> np.ndarray:
    """Largest value of the (2 radius + 1)^2 window around each pixel of a map (H, W)."""
    window = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(values, window))


def max_pool(values: Tensor, radius: int) -> Tensor:
    """What `dilate` gives, of maps (..., H, W) on any device."""
    size = 2 * radius + 1
    maps = values.reshape(1, -1, *values.shape[-2:])
    rows = F.max_pool2d(maps, (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (size, 1), stride=1, padding=(radius, 0)).view_as(values)


def _one_of_each_plateau(flat: np.ndarray, logits: np.ndarray, shape: tuple[int, int], radius: int) -> np.ndarray:
    """Which local maxima have none before them in their window, (N,) bool.

    flat, logits: (N,), places in the flattened map of this shape and values, best first. Two maxima share a window only
    where they are equal, which takes a plateau: one point of it is enough.
    """
    alone = np.ones(len(flat), bool)
    for apart in range(1, MOST_OF_A_KIND):  # equals lie side by side, mostly two that chance made equal
        before = np.flatnonzero(logits[apart:] == logits[:-apart])
        if not len(before):
            return alone
        first, second = flat[before], flat[before + apart]
        across = np.abs(first % shape[1] - second % shape[1])
        down = np.abs(first // shape[1] - second // shape[1])
        alone[before + apart] &= (across > radius) | (down > radius)
    rank = np.zeros(shape, np.float32)
    rank.ravel()[flat] = np.arange(len(flat), 0, -1)
    kept: np.ndarray = np.equal(rank, dilate(rank, radius)).ravel()[flat]
    return kept


def octave_score(logits: Tensor, octaves: float | Tensor) -> Tensor:
    """Scores of keypoints found at a smaller size of an image, as logits, as they compete with those of its own size.

    octaves: how often that was halved. A keypoint of half the size is placed half as exactly, and takes a place of the
    budget from one that is, but photographs zoomed against each other have no others in common.
    """
    return logits - OCTAVE_COST * octaves


def refine(score_logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sub-pixel positions (..., N, 2) of local maxima at whole pixels x, y (..., N) of maps (..., H, W).

    A quadratic through the 3x3 logarithms of the scores, for which a Gaussian peak is exact, its top clamped to one
    pixel (paper Sec. 3.4: a quadratic fit). Beyond the image the border value repeats; no position leaves the image.
    """
    if score_logits.device.type == "cpu" and score_logits.ndim == x.ndim + 1 == 2 and not score_logits.requires_grad:
        return _refine_on_cpu(score_logits, x.numpy(), y.numpy())
    *maps, height, width = score_logits.shape
    around = torch.arange(-1, 2, device=x.device).reshape(3, *[1] * x.ndim)
    rows, columns = (y + around).clamp(0, height - 1), (x + around).clamp(0, width - 1)  # (3, ..., N)
    places = rows[:, None] * width + columns  # (3, 3, ..., N): of rows, of columns
    if maps:
        first = torch.arange(math.prod(maps), device=x.device) * (height * width)
        places += first.reshape(*maps, 1)
    z = F.logsigmoid(score_logits.flatten()[places])

    across, down, determinant, peaked = _top(z)
    safe = torch.where(peaked, determinant, torch.ones_like(determinant))
    offset = torch.stack((across / safe, down / safe), dim=-1) * peaked[..., None]
    refined_x, refined_y = (torch.stack((x, y), dim=-1) + offset.clamp(-1, 1)).unbind(dim=-1)
    return torch.stack((refined_x.clamp(0, width - 1), refined_y.clamp(0, height - 1)), dim=-1)


def _top(z: Array) -> tuple[Array, Array, Array, Array]:
    """Where a quadratic through 3x3 values (3, 3, ..., N) is level, in arrays of torch or of numpy.

    Returns x and y from the middle, both times the determinant, then this, and whether it is a peak.
    """
    gradient_x = (z[1, 2] - z[1, 0]) / 2
    gradient_y = (z[2, 1] - z[0, 1]) / 2
    curve_xx = z[1, 2] + z[1, 0] - 2 * z[1, 1]
    curve_yy = z[2, 1] + z[0, 1] - 2 * z[1, 1]
    curve_xy = (z[2, 2] + z[0, 0] - z[0, 2] - z[2, 0]) / 4
    determinant = curve_xx * curve_yy - curve_xy**2
    across = curve_xy * gradient_y - curve_yy * gradient_x
    down = curve_xy * gradient_x - curve_xx * gradient_y
    return across, down, determinant, (determinant > 1e-9) & (curve_xx < 0)


def _refine_on_cpu(score_logits: Tensor, x: np.ndarray, y: np.ndarray) -> Tensor:
    """`refine` of one map by numpy, whose two dozen small steps take half of torch's time, to the same numbers."""
    height, width = score_logits.shape
    columns = np.stack((np.maximum(x - 1, 0), x, np.minimum(x + 1, width - 1)))
    rows = np.stack((np.maximum(y - 1, 0), y, np.minimum(y + 1, height - 1)))
    around = score_logits.numpy().ravel().take(rows[:, None] * width + columns)
    z = F.logsigmoid(torch.from_numpy(around)).numpy()

    across, down, determinant, peaked = _top(z)
    safe = np.where(peaked, determinant, np.float32(1))
    offset_x, offset_y = across / safe * peaked, down / safe * peaked
    refined = np.empty((len(x), 2), np.float32)
    refined[:, 0] = (x + offset_x.clip(-1, 1)).clip(0, width - 1)
    refined[:, 1] = (y + offset_y.clip(-1, 1)).clip(0, height - 1)
    return torch.from_numpy(refined)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _best(
    flat: np.ndarray, logits: np.ndarray, shape: tuple[int, int], settings: DetectionSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The best `max_keypoints` of local maxima (N,), one of each plateau, best first; of equals the first in the map.

    Only those are sorted that can be among them, unless plateaus take more away than a few.
    """
    count = settings.max_keypoints or len(flat)
    for enough in (min(count + MOST_LOST, len(flat)), len(flat)):
        places, values = flat, logits
        if enough < len(flat):
            chosen = np.flatnonzero(logits >= np.partition(logits, -enough)[-enough])
            places, values = flat[chosen], logits[chosen]
        order = np.argsort(-values, kind="stable")
        places, values = places[order], values[order]
        if settings.nms_radius:
            kept = _one_of_each_plateau(places, values, shape, settings.nms_radius)
            places, values = places[kept], values[kept]
        if len(places) >= count or enough == len(flat):
            break
    return places[:count], values[:count]


def detect(
    score_logits: Tensor,
    settings: DetectionSettings,
    mask: Tensor | None = None,
    *,
    octaves: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The keypoints of one image: local maxima above a threshold, the best `max_keypoints`, refined (paper Sec. 3.4).

    score_logits: (H, W). mask: (H, W) bool, false where none may be.
    octaves: as in `octave_score`, which makes the scores.
    Returns keypoints (N, 2) in pixels and scores (N,), best first.
    """
    places, scores = detect_places(score_logits, settings, mask, octaves=octaves)
    return keypoints_at(places, score_logits, settings), scores


def detect_places(
    score_logits: Tensor, settings: DetectionSettings, mask: Tensor | None, *, octaves: float
) -> tuple[Tensor, Tensor]:
    """What `detect` finds before it is refined: places (N,) int64 in the flattened map, and scores (N,), best first."""
    score_logits = score_logits.detach().float().contiguous()
    if settings.nms_radius is None or settings.threshold is None:
        raise ValueError("settings without a threshold or a suppression radius: complete them with the network's own")
    candidate = maxima_within(score_logits, settings.nms_radius, mask)
    flat, logits = _candidates(candidate, score_logits)
    if settings.threshold:
        above = np.flatnonzero(logits > _logit(settings.threshold))
        flat, logits = flat[above], logits[above]
    height, width = score_logits.shape
    places, values = (
        torch.from_numpy(one).to(score_logits.device) for one in _best(flat, logits, (height, width), settings)
    )
    return places, octave_score(values, octaves).sigmoid()


def _candidates(candidate: Tensor, score_logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where a map (H, W) is true, (N,) in the flattened map, and the scores there.

    In numpy, as all that follows: for a few thousand numbers its steps take a third of torch's time.
    """
    if candidate.device.type == "cpu":
        flat = np.flatnonzero(candidate.numpy())
        return flat, score_logits.numpy().ravel()[flat]
    there = candidate.flatten().nonzero()[:, 0]
    return there.cpu().numpy(), score_logits.flatten()[there].cpu().numpy()


def keypoints_at(places: Tensor, score_logits: Tensor, settings: DetectionSettings) -> Tensor:
    """Keypoints (N, 2) in pixels: places (N,) of the flattened map (H, W), refined."""
    x, y = places % score_logits.shape[1], places // score_logits.shape[1]
    if not settings.subpixel:
        return torch.stack((x, y), dim=-1).float()
    return refine(score_logits.detach().float().contiguous(), x, y)


def detect_at_once(
    score_logits: Tensor, settings: DetectionSettings, mask: Tensor | None, *, octaves: Tensor
) -> tuple[Tensor, Tensor]:
    """What `detect` finds in each of many maps, for a device that waits for launches: (B, N, 2), scores (B, N).

    score_logits, mask: (B, H, W); octaves: (B,). N is the most that any has; where a map has fewer, scores are 0. The
    device is waited for twice: for how many there are, and for which maps have equal scores that may be one plateau,
    which `detect` then does again.
    """
    score_logits = score_logits.detach().float()
    radius = settings.nms_radius or 0
    candidate = maxima_within(score_logits, radius, mask)
    if settings.threshold:
        candidate &= score_logits > _logit(settings.threshold)
    most = int(candidate.flatten(1).sum(dim=1).max())
    count = min(most, settings.max_keypoints or most)
    strengths = score_logits.masked_fill(~candidate, -torch.inf).flatten(1)
    flat = strengths.topk(count + 1, dim=1).indices.sort(dim=1).values  # one beyond the cut
    values, order = strengths.gather(1, flat).sort(dim=1, descending=True, stable=True)
    flat = flat.gather(1, order)
    x, y = flat % score_logits.shape[2], flat // score_logits.shape[2]

    tied = (values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()
    doubtful = tied & (x.diff(dim=1).abs() <= radius) & (y.diff(dim=1).abs() <= radius)  # as in _one_of_each_plateau
    doubtful[:, 1:] |= tied[:, 1:] & tied[:, :-1]
    doubtful[:, count - 1 : count] |= tied[:, count - 1 : count]
    x, y, values = x[:, :count], y[:, :count], values[:, :count]
    keypoints = refine(score_logits, x, y) if settings.subpixel else torch.stack((x, y), dim=-1).float()
    of_each = octaves.to(values)
    scores = octave_score(values, of_each[:, None]).sigmoid()
    for index, again in enumerate(doubtful.any(dim=1).tolist()):
        if again:
            only = None if mask is None else mask[index]
            alone = detect(score_logits[index], settings, only, octaves=float(of_each[index]))
            found = len(alone[1])
            keypoints[index, :found], scores[index, :found] = alone
            scores[index, found:] = 0
    return keypoints, scores
