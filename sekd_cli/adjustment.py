"""All photographs' keypoints moved together, so that those of one point are of one point (beyond the paper).

Aligned matches tell where the point of one keypoint lies beside another (`patch_alignment`). In structure from motion a
keypoint has one place for all its matches. Those sought here agree with as many as they can, and lie near to where the
keypoints were found: a sparse least-squares problem, as that by which Lindenberger et al. (2021) adjust keypoints to
maps of features before mapping, but in offsets that are known, so that it is linear. docs/EXPERIMENTS.md, 130.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sekd_cli.patch_alignment import FARTHEST, Alignment

PRIOR = 0.02  # of |move|^2 beside |error|^2: alignments are so much more exact than detection
ROUNDS, ITERATIONS = 2, 10  # what isn't solved by then is where a point lies in all of its photographs, not its matches
SMALLEST_ERROR = 0.1  # pixels, within which all links count alike
LINKS_AT_ONCE = 1 << 20  # so that what is computed of them takes little memory
LARGEST = 16.0  # of a link's affine map: no patch that is so much larger is alike


class Links(NamedTuple):
    """Aligned matches between keypoints, which are numbered through all images; lengths are in pixels as seen."""

    first: np.ndarray  # (E,) int32, keypoints
    second: np.ndarray  # (E,) int32
    offsets: np.ndarray  # (E, 2) float32, from the second to where the first's point is
    affines: np.ndarray  # (E, 2, 2) float32, what is around the first, around the second


def links_of(alignment: Alignment, indices: np.ndarray, starts: tuple[int, int], pixels: tuple[float, float]) -> Links:
    """The matches of a pair of images, rows (M, 2) of their keypoints, that could be aligned.

    starts: the numbers of both images' first keypoints. pixels: how many of each file's a seen one has along an edge;
    the alignment is in those of the files.
    """
    fits = alignment.correlations > 0
    first, second = indices[fits].T
    return Links(
        (starts[0] + first).astype(np.int32),
        (starts[1] + second).astype(np.int32),
        alignment.offsets[fits] / np.float32(pixels[1]),
        alignment.affines[fits] * np.float32(pixels[0] / pixels[1]),
    )


def in_parts(links: Iterable[Links]) -> Iterator[Links]:
    """Those of all pairs, some at a time; they may hold anything, and what can't be is left out."""
    waiting: list[Links] = []
    count = 0
    for one in links:
        waiting.append(_possible(one))
        count += len(waiting[-1].first)
        if count >= LINKS_AT_ONCE:
            yield _joined(waiting)
            waiting, count = [], 0
    if count:
        yield _joined(waiting)


def _possible(links: Links) -> Links:
    within = np.abs(links.offsets).max(axis=1, initial=0) <= FARTHEST
    within &= np.abs(links.affines).max(axis=(1, 2), initial=0) <= LARGEST
    return links if within.all() else Links(*(values[within] for values in links))


def _joined(links: Sequence[Links]) -> Links:
    return Links(*(np.concatenate(columns) for columns in zip(*links, strict=True)))


def adjust(parts: Sequence[Links], count: int, tell: Callable[[int, int], None] = lambda done, of: None) -> np.ndarray:
    """How `count` keypoints should move by the parts of all links, (count, 2) float32; those without not at all.

    Of moves s the sum of |s1 - A s0 - offset|^2 over links, in the second round the less of a link the worse it fitted,
    and of PRIOR |s|^2 over keypoints is nearly the least. One that would move more than FARTHEST stays, as a longer
    offset is none. tell: called with how many of how many rounds are done.
    """
    linked = np.zeros(count, dtype=bool)
    for part in parts:
        linked[part.first] = linked[part.second] = True
    numbers = np.cumsum(linked, dtype=np.int32) - 1  # most keypoints have no links, and need no memory
    parts = [part._replace(first=numbers[part.first], second=numbers[part.second]) for part in parts]
    moves = np.zeros((int(linked.sum()), 2), dtype=np.float32)
    weights = [np.ones(len(part.first), dtype=np.float32) for part in parts]
    for done in range(ROUNDS):
        if done and parts:
            errors = [np.linalg.norm(_apart(part, moves, part.offsets), axis=1) for part in parts]
            usual = max(SMALLEST_ERROR, 1.5 * float(np.median(np.concatenate(errors))))
            weights = [((1 + (one / usual) ** 2) ** -2).astype(np.float32) for one in errors]
        moves = _solved(parts, weights, moves)
        tell(done + 1, ROUNDS)
    moves[np.linalg.norm(moves, axis=1) > FARTHEST] = 0
    everywhere = np.zeros((count, 2), dtype=np.float32)
    everywhere[linked] = moves
    return everywhere


def _apart(links: Links, moves: np.ndarray, offsets: np.ndarray | float) -> np.ndarray:
    """By how much moves (N, 2) take each link's second keypoint farther than its first's, less offsets, (E, 2)."""
    first, second = (moves.take(keypoints, axis=0) for keypoints in (links.first, links.second))
    return np.asarray(second - np.einsum("eij,ej->ei", links.affines, first) - offsets)


def _slope(parts: Sequence[Links], weights: Sequence[np.ndarray], moves: np.ndarray, *, offsets: bool) -> np.ndarray:
    """Half of how the sum that is to be the least changes with the moves, (N, 2); `offsets` false: were there none."""
    slope = PRIOR * moves
    for part, weight in zip(parts, weights, strict=True):
        apart = _apart(part, moves, part.offsets if offsets else 0.0) * weight[:, None]
        back = np.einsum("eji,ej->ei", part.affines, apart)
        for axis in (0, 1):
            np.add.at(slope[:, axis], part.second, apart[:, axis])
            np.subtract.at(slope[:, axis], part.first, back[:, axis])
    return slope


def _solved(parts: Sequence[Links], weights: Sequence[np.ndarray], start: np.ndarray) -> np.ndarray:
    """Moves (N, 2) nearer to those of weighted least squares, by conjugate gradients scaled by the diagonal."""
    diagonal = np.full(len(start), PRIOR, dtype=np.float32)
    for part, weight in zip(parts, weights, strict=True):
        np.add.at(diagonal, part.second, weight)
        np.add.at(diagonal, part.first, weight * np.einsum("eij,eij->e", part.affines, part.affines) / 2)
    scale = 1 / diagonal[:, None]
    moves = start
    residual = -_slope(parts, weights, moves, offsets=True)
    direction = scale * residual
    energy = float(np.vdot(residual, direction))
    for _ in range(ITERATIONS):
        changed = _slope(parts, weights, direction, offsets=False)
        if not (curvature := float(np.vdot(direction, changed))):
            break
        moves = moves + energy / curvature * direction
        residual = residual - energy / curvature * changed
        before, energy = energy, float(np.vdot(residual, scale * residual))
        direction = scale * residual + energy / before * direction
    return moves
