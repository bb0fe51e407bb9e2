"""Where the patch around a keypoint lies in another photograph, to a small part of a pixel (beyond the paper).

Detectors find a point in each photograph apart from the others, half a pixel or so from where it is in these. Once two
keypoints are matched, the pixels around them tell more: the patch around the first, as the matches nearby say that it
is slanted, turned and resized in the second photograph, is moved there until it fits best (Lucas and Kanade 1981; by
the slopes of the first, Baker and Matthews 2004), whatever the light. docs/EXPERIMENTS.md, 130.
"""

from typing import NamedTuple

import cv2
import numpy as np

from sekd_cli.nearest import nearest

RADIUS, SIGMA = 10, 5.0  # pixels, of a patch and of the weights in it
STEPS, LONGEST_MOVE = 5, 1.5  # pixels of each at most
FIRST_SHARE = 0.85  # of the first step that is gone: what is finer than two pixels has smaller slopes than they tell
SHARES = (0.3, 1.2)  # of the others, at least and at most
CONVERGED = 0.1  # pixels that the last step was at most where there is a place that fits
FARTHEST = 3.0  # pixels from the keypoint: what lies beyond is another thing
LEAST_ALIKE = 0.7  # correlation of two patches of the same thing
NEIGHBOURS, REACH, REFITS = 16, 1.5, 3  # matches that tell how a patch looks; their sigma, in median distances
SMALLEST_SIZE = 1 / 16  # of a patch in the second photograph, by its size in the first: less is no patch
PATCHES_AT_ONCE = 64  # as fit into a core's cache
EVEN, MIDDLE = 0.3, 128  # grey levels: less contrast is none, nor exact; around the middle one squares are small


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
    first, second = (np.subtract(pixels, MIDDLE, dtype=np.float32) for pixels in (pixels0, pixels1))
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
    near = nearest(xy0, xy0, count)
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
    leading = nearest(xy, xy0, 1)[:, 0]
    maps = affines[leading]
    return xy1[leading] + (maps @ (xy - xy0[leading])[..., None])[..., 0], maps


SIDE = 2 * RADIUS + 3  # of a square of samples, one more around than a patch
SQUARE = (np.mgrid[:SIDE, :SIDE][::-1].reshape(2, -1) - RADIUS - 1).astype(np.float32)  # x and y of them
DISC = np.flatnonzero((SQUARE**2).sum(axis=0) <= (RADIUS + 0.5) ** 2)  # those of a patch
SAMPLES = SQUARE[:, DISC]  # (2, P)
WEIGHTS = np.exp(-0.5 * (SAMPLES**2).sum(axis=0) / SIGMA**2)
WEIGHTS /= WEIGHTS.sum()  # (P,)


def _aligned(
    first: np.ndarray, second: np.ndarray, xy0: np.ndarray, xy1: np.ndarray, affines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (M, 2) and correlations (M,) of some matches, of photographs (H, W) float32 around 0."""
    sizes = np.abs(np.linalg.det(affines))
    stride = np.maximum(np.maximum(sizes, SMALLEST_SIZE) ** -0.5, 1)[:, None]  # one sample a pixel of the coarser
    square = _sampled(first, *_places(xy0, stride * SQUARE[0], stride * SQUARE[1]))
    patch = square.take(DISC, axis=1)
    contrast = _contrast(patch)
    patch = (patch - (patch @ WEIGHTS)[:, None]) / contrast[:, None]
    slopes = np.empty((len(xy0), 2, len(WEIGHTS)), dtype=np.float32)
    for axis, next_one in enumerate((1, SIDE)):
        np.subtract(square.take(DISC + next_one, axis=1), square.take(DISC - next_one, axis=1), out=slopes[:, axis])
    slopes /= (2 * stride * contrast[:, None])[..., None]
    slopes -= (slopes @ WEIGHTS)[..., None]  # what more light, or more contrast, would explain is no move
    slopes -= np.einsum("mkp,mp->mk", slopes, patch * WEIGHTS)[..., None] * patch[:, None]
    weighted = slopes * WEIGHTS
    curvature = np.einsum("mip,mjp->mij", weighted, slopes) + 1e-6 * np.eye(2, dtype=np.float32)
    steps = affines @ np.linalg.inv(curvature) @ weighted  # (M, 2, P): pixels of the second a difference of a sample
    x, y = _places(xy1, *(stride * (affines.reshape(-1, 2) @ SAMPLES).reshape(-1, 2, len(WEIGHTS)).swapaxes(0, 1)))
    offsets = np.zeros((len(xy0), 2), dtype=np.float32)
    step = moved = offsets
    for turn in range(STEPS):
        other = _sampled(second, x, y)
        contrast = _contrast(other)
        before, step = step, np.einsum("mkp,mp->mk", steps, other) / contrast[:, None]
        moved = -step * (_share(moved, step - before) if turn else FIRST_SHARE)
        moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True) / LONGEST_MOVE, 1)
        offsets = offsets + moved
        x += moved[:, :1]
        y += moved[:, 1:]
    correlations = np.einsum("mp,mp->m", patch * WEIGHTS, other) / contrast
    fits = (correlations >= LEAST_ALIKE) & (np.linalg.norm(offsets, axis=1) <= FARTHEST)
    fits &= (np.linalg.norm(step, axis=1) <= CONVERGED) & (sizes > SMALLEST_SIZE)
    return np.where(fits[:, None], offsets, 0), np.where(fits, correlations, 0)


def _share(moved: np.ndarray, change: np.ndarray) -> np.ndarray:
    """How much of the next step to go, (M, 1), as the last move (M, 2) changed it (Barzilai and Borwein 1988)."""
    squares = np.maximum((change * change).sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(np.clip((moved * change).sum(axis=1, keepdims=True) / squares, *SHARES))


def _places(xy: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where samples x, y (M, P) around points (M, 2) lie, (M, P) each."""
    middle = xy.astype(np.float32)
    return x + middle[:, :1], y + middle[:, 1:]


def _sampled(pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples at places x, y (M, P), (M, P); beyond the edge its last pixels."""
    return np.asarray(cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _contrast(patches: np.ndarray) -> np.ndarray:
    """The weighted deviations of patches (M, P), (M,)."""
    variances = (patches * patches) @ WEIGHTS - (patches @ WEIGHTS) ** 2
    return np.asarray(np.sqrt(np.maximum(variances, EVEN**2)))
