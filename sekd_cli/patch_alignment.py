"""Where the patch around a keypoint lies in another photograph, to a small part of a pixel (beyond the paper).

Detectors find a point in each photograph apart from the others, half a pixel or so from where it is in these. Once two
keypoints are matched, the pixels around them tell more: the patch around the first, as the matches nearby say that it
is slanted, turned and resized in the second photograph, is moved there until it fits best (Lucas and Kanade 1981; by
the slopes of the first, Baker and Matthews 2004), whatever the light. docs/EXPERIMENTS.md, 130.
"""

from typing import NamedTuple

import cv2
import numpy as np

RADIUS, SIGMA = 10, 5.0  # pixels, of a patch and of the weights in it
STEPS, LONGEST_STEP = 8, 1.5  # moves, and pixels of each at most
DAMPING = 0.7  # of each: what is finer than two pixels has smaller slopes than they tell, and would swing
CONVERGED = 0.1  # pixels that the last move was at most where there is a place that fits
FARTHEST = 3.0  # pixels from the keypoint: what lies beyond is another thing
LEAST_ALIKE = 0.7  # correlation of two patches of the same thing
NEIGHBOURS, REACH, REFITS = 16, 1.5, 3  # matches that tell how a patch looks; their sigma, in median distances
SMALLEST_SIZE = 1 / 16  # of a patch in the second photograph, by its size in the first: less is no patch
PATCHES_AT_ONCE = 64  # as fit into a core's cache
EVEN = 1e-3  # grey levels: less contrast is none


class Alignment(NamedTuple):
    """What the pixels say of matches."""

    offsets: np.ndarray  # (M, 2) float32 pixels, from the second's keypoints to where the first's points are; or 0
    affines: np.ndarray  # (M, 2, 2) float32: what is around the first keypoint, around the second
    correlations: np.ndarray  # (M,) float32, of both patches then; 0 where they don't fit, and nothing is moved

    def kept(self) -> np.ndarray:
        """Which of the matches to keep, (M,) bool: where most fit those that do, or else all.

        Where most do, of the others about half are wrong; else what they show has changed, and no fit means little.
        """
        fits = self.correlations > 0
        return np.asarray(fits | (2 * fits.sum() < len(fits)))

    def reversed(self) -> "Alignment":
        """As seen from the second photograph."""
        back = np.linalg.pinv(self.affines)
        return Alignment(-(back @ self.offsets[..., None])[..., 0], back, self.correlations)

    def joined(self, other: "Alignment") -> "Alignment":
        """With that of more matches after them."""
        return Alignment(*(np.concatenate(both) for both in zip(self, other, strict=True)))

    def only(self, rows: np.ndarray) -> "Alignment":
        """That of some matches, by mask (M,) or in the order of indices."""
        return Alignment(*(values[rows] for values in self))


def align(
    pixels0: np.ndarray, pixels1: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, affines: np.ndarray | None = None
) -> Alignment:
    """Align matches xy0, xy1 (M, 2) of two grey photographs (H, W) uint8.

    affines: (M, 2, 2), of what is around them; of matches most of which are right these tell it themselves.
    """
    if not len(xy0):
        return Alignment(np.empty((0, 2), np.float32), np.empty((0, 2, 2), np.float32), np.empty(0, np.float32))
    affines = local_affines(xy0, xy1) if affines is None else affines.astype(np.float32)
    first, second = pixels0.astype(np.float32), pixels1.astype(np.float32)
    parts = [slice(start, start + PATCHES_AT_ONCE) for start in range(0, len(xy0), PATCHES_AT_ONCE)]
    found = [_aligned(first, second, xy0[part], xy1[part], affines[part]) for part in parts]
    offsets, correlations = (np.concatenate(one) for one in zip(*found, strict=True))
    return Alignment(offsets, affines, correlations)


def local_affines(xy0: np.ndarray, xy1: np.ndarray) -> np.ndarray:
    """How the surroundings of each match xy0, xy1 (M > 0, 2) are mapped, (M, 2, 2) float32: by the matches nearby.

    A least-squares fit, the nearer the more, and the less the worse a match fits: some may be wrong, or lie deeper.
    """
    xy0, xy1 = xy0.astype(np.float64), xy1.astype(np.float64)
    count = min(NEIGHBOURS, len(xy0))
    near = _nearest(xy0, xy0, count)
    before, after = (xy[near] - xy[:, None] for xy in (xy0, xy1))  # (M, K, 2)
    apart = np.linalg.norm(before, axis=2)
    typical = np.maximum(np.median(apart, axis=1, keepdims=True), 1.0)
    closeness = np.exp(-0.5 * (apart / (REACH * typical)) ** 2)
    known = np.concatenate((before, np.ones((*apart.shape, 1))), axis=2)  # the match itself is as inexact as others
    weights = closeness
    for _ in range(REFITS):
        weighted = (known * weights[..., None]).swapaxes(1, 2)
        fitted = np.linalg.solve(weighted @ known + 1e-3 * np.eye(3), weighted @ after)
        errors = np.linalg.norm(after - known @ fitted, axis=2)
        usual = np.maximum(1.5 * np.median(errors, axis=1, keepdims=True), 0.5)
        weights = closeness / (1 + (errors / usual) ** 2) ** 2
    return np.asarray(fitted[:, :2].swapaxes(1, 2), dtype=np.float32)


def led(xy: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, affines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the nearest of aligned matches xy0, xy1 (M > 0, 2) takes points (N, 2), (N, 2); and its affine map."""
    nearest = _nearest(xy, xy0, 1)[:, 0]
    maps = affines[nearest]
    return xy1[nearest] + (maps @ (xy - xy0[nearest])[..., None])[..., 0], maps


def _nearest(places: np.ndarray, xy: np.ndarray, count: int) -> np.ndarray:
    """Rows of the points (M, 2) nearest to each place (n, 2), (n, count)."""
    of, among = places.astype(np.float32), xy.astype(np.float32)
    return np.asarray(cv2.batchDistance(of, among, cv2.CV_32F, normType=cv2.NORM_L2SQR, K=count)[1])


def _disc() -> tuple[np.ndarray, np.ndarray]:
    """The samples of a patch, (2, P), and their weights (P,)."""
    axis = np.arange(-RADIUS, RADIUS + 1)
    grid = np.stack(np.meshgrid(axis, axis)).reshape(2, -1)
    squares = (grid**2).sum(axis=0)
    inside = squares <= (RADIUS + 0.5) ** 2
    weights = np.exp(-0.5 * squares[inside] / SIGMA**2)
    return grid[:, inside].astype(np.float32), (weights / weights.sum()).astype(np.float32)


SAMPLES, WEIGHTS = _disc()


def _aligned(
    first: np.ndarray, second: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, affines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (M, 2) and correlations (M,) of some matches, of photographs (H, W) float32."""
    sizes = np.abs(np.linalg.det(affines))
    stride = np.maximum(np.maximum(sizes, SMALLEST_SIZE) ** -0.5, 1)[:, None]  # one sample a pixel of the coarser
    x, y = (xy0[:, axis, None].astype(np.float32) + stride * SAMPLES[axis] for axis in (0, 1))
    patch, contrast = _in_even_light(_sampled(first, x, y))
    slopes = np.empty((len(xy0), 2, len(WEIGHTS)), dtype=np.float32)
    np.subtract(_sampled(first, x + stride, y), _sampled(first, x - stride, y), out=slopes[:, 0])
    np.subtract(_sampled(first, x, y + stride), _sampled(first, x, y - stride), out=slopes[:, 1])
    slopes /= (2 * stride * contrast[:, None])[..., None]
    slopes -= (slopes @ WEIGHTS)[..., None]  # what more light, or more contrast, would explain is no move
    slopes -= np.einsum("mkp,mp->mk", slopes, patch * WEIGHTS)[..., None] * patch[:, None]
    weighted = slopes * WEIGHTS
    curvature = weighted @ slopes.swapaxes(1, 2) + 1e-6 * np.eye(2, dtype=np.float32)
    moves = affines @ np.linalg.inv(curvature) @ weighted  # (M, 2, P): pixels of the second a difference of a sample
    at_rest = np.einsum("mkp,mp->mk", moves, patch)
    around = affines @ SAMPLES * stride[..., None]  # (M, 2, P), of the second
    offsets = np.zeros((len(xy0), 2), dtype=np.float32)
    for _ in range(STEPS):
        other, _ = _in_even_light(_sampled(second, *_around(xy1 + offsets, around)))
        step = np.einsum("mkp,mp->mk", moves, other) - at_rest
        length = np.linalg.norm(step, axis=1)
        offsets = offsets - DAMPING * step * np.minimum(1, LONGEST_STEP / np.maximum(length, LONGEST_STEP))[:, None]
    other, _ = _in_even_light(_sampled(second, *_around(xy1 + offsets, around)))
    correlations = np.einsum("mp,mp->m", patch * WEIGHTS, other)
    fits = (correlations >= LEAST_ALIKE) & (length <= CONVERGED) & (np.linalg.norm(offsets, axis=1) <= FARTHEST)
    fits &= sizes > SMALLEST_SIZE
    return np.where(fits[:, None], offsets, 0), np.where(fits, correlations, 0)


def _around(xy: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where samples (M, 2, P) lie that are around points (M, 2): x and y, (M, P) each."""
    middle = xy.astype(np.float32)
    return samples[:, 0] + middle[:, :1], samples[:, 1] + middle[:, 1:]


def _sampled(pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples at places x, y (M, P), (M, P); beyond the edge its last pixels."""
    return np.asarray(cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _in_even_light(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches (M, P) of mean 0 and deviation 1, weighted; and what the deviations were, (M,)."""
    patches -= (patches @ WEIGHTS)[:, None]
    contrast = np.maximum(np.sqrt((patches * patches) @ WEIGHTS), EVEN)
    patches /= contrast[:, None]
    return patches, contrast
