"""How a photograph is shrunk to what the network sees: what that takes, and how exactly keypoints are placed after it.

    python benchmarks/shrinking.py [PHOTOGRAPHS] [--count 150] [--factors 1.2 1.5 2 2.5 3] [--rounds 9] [--json]

With PHOTOGRAPHS, a folder: each one and a view of it through a random homography, both with noise and as JPEGs, are
shrunk by every factor, as `sekd extract` does (`sekd`), by the same from all pixels (`pixels`, as of other formats),
and by means of areas (`means`, as before docs/EXPERIMENTS.md, 116). Printed are the share of matches right to 1 and 3
px of the shrunk image, how many these are, and the median error of the latter. Then milliseconds, of an example
enlarged to the sizes of cameras: to decode, and to shrink to 1600 pixels and half of it, by turns, each after an
extraction, which takes the caches.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from measuring import EXAMPLES

from sekd_cli import Sekd
from sekd_cli.config import ViewSettings
from sekd_cli.coordinates import resize_matrix
from sekd_cli.device import set_threads
from sekd_cli.image_search import find_images
from sekd_cli.images import read_image
from sekd_cli.level_sizes import largest_size
from sekd_cli.pyramid import prepare

CAMERAS = ((1920, 1080), (2400, 1600), (4000, 3000), (4032, 3024), (6000, 4000), (8064, 6048))
WAYS = ("sekd", "pixels", "means")
KEYPOINTS = 240
NOISE = 2.0  # grey levels
QUALITY = 92  # of JPEGs


class Shrunk(NamedTuple):
    """The two largest sizes of a photograph, and the seconds that they took."""

    levels: list[np.ndarray]
    decoding: float
    shrinking: float


def shrunk(path: Path, longest: int, way: str) -> Shrunk:
    """A photograph's longer edge brought to so many pixels, and half of it."""
    views = ViewSettings(max_size=longest, scales=(1.0, 0.5))
    start = time.perf_counter()
    photograph = read_image(path, enough=partial(largest_size, settings=views) if way == "sekd" else None)
    decoded = time.perf_counter()
    if way == "means":
        width, height = largest_size(*photograph.upright_size, views)
        sizes = ((width, height), (round(width / 2), round(height / 2)))
        levels = [cv2.resize(photograph.pixels, size, interpolation=cv2.INTER_AREA) for size in sizes]
    else:
        levels = [level.grey for level in prepare(photograph, views).levels]
    return Shrunk(levels, decoded - start, time.perf_counter() - decoded)


def view(grey: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A photograph seen from elsewhere, and the map (3, 3) there."""
    height, width = grey.shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + random.uniform(-0.12, 0.12, (4, 2)) * (width, height) - (width / 2, height / 2)
    angle, zoom = random.uniform(-0.4, 0.4), random.uniform(0.8, 1.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    there = (zoom * moved @ turn + (width / 2, height / 2)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, there)
    seen = cv2.warpPerspective(grey, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return seen, matrix


def save(path: Path, grey: np.ndarray, random: np.random.Generator) -> Path:
    """A photograph with noise, as a JPEG."""
    noisy = np.clip(grey + random.normal(0, NOISE, grey.shape), 0, 255).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    return path


def errors(sekd: Sekd, images: list[np.ndarray], matrix: np.ndarray) -> np.ndarray:
    """How far the matches of two images lie from where they should, (M,) pixels."""
    first, second = (sekd.extract(image) for image in images)
    found = sekd.match(first, second)
    if not len(found):
        return np.zeros(0)
    expected = cv2.perspectiveTransform(found.keypoints0[None].double().numpy(), matrix)[0]
    return np.asarray(np.linalg.norm(expected - found.keypoints1.numpy(), axis=1))


def accuracy(folder: Path, count: int, factors: list[float]) -> list[dict[str, float | str]]:
    """A row for every factor and way, means over photographs; one without a right match has no error, but counts."""
    sekd = Sekd.from_pretrained(device="cpu", max_keypoints=KEYPOINTS, max_size=0)
    paths = [one.path for one in find_images([folder])]
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    found: dict[tuple[float, str], list[list[float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary) / name for name in ("first.jpg", "second.jpg")]
        for index in chosen:
            random, grey = np.random.default_rng(index), read_image(paths[index]).pixels
            seen, matrix = view(grey, random)
            for file, pixels in zip(files, (grey, seen), strict=True):
                save(file, pixels, random)
            for factor in factors:
                for way in WAYS:
                    both = [shrunk(file, round(max(grey.shape) / factor), way).levels[0] for file in files]
                    scale = [new / old for new, old in zip(both[0].shape[::-1], grey.shape[::-1], strict=True)]
                    smaller = resize_matrix(*scale)
                    off = errors(sekd, both, smaller @ matrix @ np.linalg.inv(smaller))
                    right = off[off < 3]
                    shares = [(off < 1).mean(), (off < 3).mean()] if len(off) else [0.0, 0.0]
                    found[factor, way].append([*shares, len(right), np.median(right) if len(right) else np.nan])
    names = ("right_1px", "right_3px", "matches_right", "error_px")
    return [
        {"factor": factor, "way": way, "photographs": len(rows), **dict(zip(names, np.nanmean(rows, 0), strict=True))}
        for (factor, way), rows in found.items()
    ]


def times(rounds: int) -> list[dict[str, float | str]]:
    """A row for every camera and way, medians in milliseconds."""
    sekd, example = Sekd.from_pretrained(device="cpu"), read_image(EXAMPLES / "china.jpg").pixels
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in CAMERAS:
            enlarged = cv2.resize(example, size, interpolation=cv2.INTER_CUBIC)
            file = save(Path(temporary) / "camera.jpg", enlarged, np.random.default_rng(0))
            taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for _ in range(rounds + 1):
                for way in WAYS:
                    sekd.extract(example)
                    taken[way].append(shrunk(file, 1600, way)[1:])
            for way, seconds in taken.items():
                decoding, shrinking = 1000 * np.median(seconds[1:], axis=0)
                rows.append(
                    {"camera": "{}x{}".format(*size), "way": way, "decode_ms": decoding, "shrink_ms": shrinking}
                )
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.2, 1.5, 2, 2.5, 3])
    parser.add_argument("--rounds", type=int, default=9, help="of times; 0 for none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    set_threads(1)
    rows = accuracy(options.photographs, options.count, options.factors) if options.photographs else []
    taken = times(options.rounds) if options.rounds else []
    if options.json:
        print(json.dumps({"accuracy": rows, "times": taken}, indent=2))
        return
    for row in rows:
        print(f"by {row['factor']:<4} {row['way']:7} {row['right_1px']:6.1%} {row['right_3px']:6.1%}", end="")
        print(f" right to 1 and 3 px, {row['matches_right']:6.1f} of them, off by {row['error_px']:.3f} px")
    for row in taken:
        print(f"{row['camera']:>10} {row['way']:7} decode {row['decode_ms']:6.1f} shrink {row['shrink_ms']:6.1f} ms")


if __name__ == "__main__":
    main()
