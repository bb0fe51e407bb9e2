"""What each precision finds on pages with little on them: python benchmarks/sparse.py [WEIGHTS] [--json].

Strokes, words, stars and a lamp in the dark lie many deviations from the mean, where bytes have the coarsest steps or
none. Pages of 640x480 pixels are drawn, and seen again turned by 10 degrees and shrunk by a tenth. For each: how many
keypoints, what share of float32's best 500 is there to a pixel, how alike the descriptors of these are (mean cosine),
and how many matches with the page seen again are right to 3 pixels, and what share of all.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from turns import right_matches

from sekd_cli import Features, Sekd
from sekd_cli.geometry import distances
from sekd_cli.networks.precision import possible_precisions
from sekd_cli.networks.weights_file import packaged_weights

WIDTH, HEIGHT = 640, 480
BEST = 500  # keypoints
WORDS = ("keypoints and descriptors", "a few words on white", "structure from motion")
AGAIN = np.vstack((cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 10.0, 0.9), (0, 0, 1)))


def strokes(page: np.ndarray, random: np.random.Generator) -> None:
    """A line drawing."""
    for x0, y0, x1, y1 in random.integers([0] * 4, [WIDTH, HEIGHT] * 2, (14, 4)).tolist():
        cv2.line(page, (x0, y0), (x1, y1), 0, 2, cv2.LINE_AA)
    for x, y, radius in random.integers((60, 60, 15), (WIDTH - 60, HEIGHT - 60, 60), (6, 3)).tolist():
        cv2.circle(page, (x, y), radius, 0, 2, cv2.LINE_AA)


def words(page: np.ndarray, _random: np.random.Generator) -> None:
    """Three lines of text."""
    for line, text in enumerate(WORDS):
        cv2.putText(page, text, (60, 120 + 110 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 0, 2, cv2.LINE_AA)


def stars(page: np.ndarray, random: np.random.Generator) -> None:
    """Points of all brightnesses on black."""
    page[:] = 8
    for x, y, grey in random.integers((5, 5, 80), (WIDTH - 5, HEIGHT - 5, 256), (300, 3)).tolist():
        cv2.circle(page, (x, y), 1, grey, -1, cv2.LINE_AA)
    page[:] = cv2.GaussianBlur(page, (3, 3), 0.7)


def lamp(page: np.ndarray, random: np.random.Generator) -> None:
    """A noisy dark, and one light."""
    page[:] = (12 + random.normal(0, 1.5, page.shape)).clip(0, 255)
    cv2.circle(page, (WIDTH // 2, 200), 14, 255, -1, cv2.LINE_AA)


PAGES = {"strokes": strokes, "words": words, "stars": stars, "lamp": lamp}


def page_of(name: str) -> np.ndarray:
    """A page (HEIGHT, WIDTH) uint8."""
    page = np.full((HEIGHT, WIDTH), 255, np.uint8)
    PAGES[name](page, np.random.default_rng(0))
    return page


def likeness(exact: Features, found: Features) -> tuple[float, float]:
    """Of the best exact keypoints: the share that is found to a pixel, and the mean cosine of their descriptors."""
    distance, nearest = distances(exact.keypoints[None, :BEST], found.keypoints[None])[0].min(dim=1)
    there = distance < 1
    cosines = (exact.descriptors[:BEST] * found.descriptors[nearest]).sum(dim=1)[there]
    return there.float().mean().item(), cosines.mean().item()


def seen_again(page: np.ndarray) -> np.ndarray:
    """A page turned and shrunk, as `AGAIN` says, on its own ground."""
    border = int(page[0, 0])
    return cv2.warpPerspective(page, AGAIN, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderValue=(border,))


def main() -> None:
    """Print a line for each page and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", default=packaged_weights())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sekds = {
        precision: Sekd.from_pretrained(options.weights, device="cpu", precision=precision)
        for precision in possible_precisions(torch.device("cpu"), quantisable=True)
    }
    rows = []
    for name in PAGES:
        page = page_of(name)
        again = seen_again(page)
        exact = sekds["float32"].extract(page)
        for precision, sekd in sekds.items():
            found = sekd.extract(page)
            same, alike = likeness(exact, found)
            share, right = right_matches(sekd, (found, sekd.extract(again)), AGAIN)
            row = {"page": name, "precision": precision, "keypoints": len(found), "same": same, "alike": alike}
            rows.append(row | {"right": right, "share": share})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['page']:8} {row['precision']:9} {row['keypoints']:6,} keypoints   ", end="")
        print(f"{row['same']:4.0%} of float32's, alike to {row['alike']:.3f}   ", end="")
        print(f"{row['right']:5,} matches right, {row['share']:4.0%}")


if __name__ == "__main__":
    main()
