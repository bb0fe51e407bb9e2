"""`--refine` of the evaluations: matches aligned by the photographs' pixels, as `sekd match --refine` does it."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sekd_cli.adjustment import adjust, joined, links_of
from sekd_cli.patch_alignment import Alignment
from sekd_cli.seen_pixels import SeenPixels, align_matches
from sekd_cli.verification import verification_settings, verify

Pixels = tuple[SeenPixels, SeenPixels]
Rows = NDArray[np.int64]


def aligned(pixels: Pixels, xy0: NDArray[np.float32], xy1: NDArray[np.float32], model: str) -> tuple[Rows, Alignment]:
    """Which of the matches xy0, xy1 (M, 2) agree on a model, rows (K,), and how these are aligned."""
    inliers, _ = verify(xy0, xy1, verification_settings(model))
    rows = np.flatnonzero(inliers)
    return rows, align_matches(pixels, xy0[rows], xy1[rows])


def refined_places(
    pixels: Pixels, xy0: NDArray[np.float32], xy1: NDArray[np.float32], model: str
) -> NDArray[np.float32]:
    """The second places (M, 2) of matches, aligned where they agree on a model; the others as they are."""
    rows, alignment = aligned(pixels, xy0, xy1, model)
    places = xy1.copy()
    places[rows] += alignment.offsets
    return places


def refine_scene(
    keypoints: dict[str, NDArray[np.float32]], pixels: dict[str, SeenPixels], matches: dict[tuple[str, str], Rows]
) -> tuple[dict[str, NDArray[np.float32]], dict[tuple[str, str], Rows]]:
    """Keypoints (N, 2) of each image and matches (M, 2) of pairs as `match --refine` and `refine` leave them.

    Matches are those that agree on a fundamental matrix and are kept once aligned; keypoints are moved so that they
    agree.
    """
    starts = dict(zip(keypoints, np.cumsum([0, *map(len, keypoints.values())]), strict=False))
    units = {name: float(1 / one.scale.min()) for name, one in pixels.items()}  # pixels of the file a seen one
    links, kept = [], {}
    for (name0, name1), pairs in matches.items():
        both = pixels[name0], pixels[name1]
        rows, found = aligned(both, keypoints[name0][pairs[:, 0]], keypoints[name1][pairs[:, 1]], "fundamental")
        kept[name0, name1] = pairs[rows[found.kept()]]
        of_both = (starts[name0], starts[name1]), (units[name0], units[name1])
        links.append(links_of(found, pairs[rows], *of_both))
    moves = adjust(joined(links), sum(map(len, keypoints.values())))
    ends = pairwise((*starts.values(), len(moves)))
    places = {
        name: (found + moves[start:end] * units[name]).astype(np.float32)
        for (name, found), (start, end) in zip(keypoints.items(), ends, strict=True)
    }
    return places, kept
