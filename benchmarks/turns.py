"""How far photographs may be turned, zoomed or moved against each other, and what --scales and --rotations do for it.

    python benchmarks/turns.py [WEIGHTS]

Prints, for example photographs and themselves turned in their plane, resized, or seen upright at a slant in another
light, for a corner of them and the whole resized, and for two parts of them as of a panorama, the share of matches that
are right to 3 px and their number; then the time of extraction as a ratio, the median over photographs.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from sekd_cli import Features, Sekd
from sekd_cli.coordinates import resize_matrix

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOGRAPHS = ("china.jpg", "coffee.jpg", "astronaut.jpg")
DEGREES = (15, 30, 45, 60, 75, 90, 135, 180)
FACTORS = (0.5, 0.7, 1.5, 2.0)
SLANTS = range(4)  # seeds
APART = (0.15, 0.3)  # of the width
CORNER = 0.6  # of the width and height
RIGHT = 3.0  # pixels
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scales 1": {"scales": (1,)},
    "scales auto": {"scales": "auto"},
    "half octaves": {"scales": (1, 0.71, 0.5, 0.35, 0.25)},
    "rotations": {"rotations": True},
}

Change = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""What was done, the image (H, W), the changed one, and the map (3, 3) from the first to the second."""


def turned(image: np.ndarray, degrees: float) -> Change:
    """An image on a square, turned about its centre."""
    height, width = image.shape
    edge = int(np.hypot(height, width)) + 2
    down, right = (edge - height) // 2, (edge - width) // 2
    square = cv2.copyMakeBorder(image, down, edge - height - down, right, edge - width - right, cv2.BORDER_REPLICATE)
    middle = (edge - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1.0)
    result = cv2.warpAffine(square, matrix, (edge, edge), borderMode=cv2.BORDER_REPLICATE)
    return f"turned by {degrees} degrees", square, result, np.vstack((matrix, (0, 0, 1)))


def resized(image: np.ndarray, factor: float) -> Change:
    """An image resized."""
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    result = cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)
    scale_x, scale_y = result.shape[1] / image.shape[1], result.shape[0] / image.shape[0]
    return f"resized by {factor}", image, result, resize_matrix(scale_x, scale_y)


def corner(image: np.ndarray, factor: float) -> Change:
    """The upper left part of an image, and the whole resized: other than in `resized`, they have no frame in common."""
    _, _, result, matrix = resized(image, factor)
    height, width = (round(CORNER * edge) for edge in image.shape)
    return f"corner, whole by {factor}", image[:height, :width].copy(), result, matrix


def slanted(image: np.ndarray, seed: int) -> Change:
    """An image whose corners moved by up to 12 % of its sides, in another light and with noise."""
    random = np.random.default_rng(seed)
    height, width = image.shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    moved = corners + random.uniform(-0.12, 0.12, (4, 2)) * (width, height)
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    result = cv2.warpPerspective(image, matrix, (width, height)) * random.uniform(0.7, 1.2)
    noisy = result + random.uniform(-20, 20) + random.normal(0, 4, image.shape)
    return "upright, slanted", image, noisy.clip(0, 255).astype(np.uint8), matrix


def apart(image: np.ndarray, share: float) -> Change:
    """The left and the right part of an image, a share of its width apart: the same pixels elsewhere."""
    step = round(share * image.shape[1])
    matrix = np.array([[1.0, 0, -step], [0, 1, 0], [0, 0, 1]])
    left, right = image[:, : image.shape[1] - step].copy(), image[:, step:].copy()
    return f"apart by {share:.0%} of width", left, right, matrix


def changes(image: np.ndarray) -> Iterator[Change]:
    """All that is done to a photograph."""
    yield from (turned(image, degrees) for degrees in DEGREES)
    yield from (resized(image, factor) for factor in FACTORS)
    yield from (corner(image, factor) for factor in FACTORS[:2])
    yield from (slanted(image, seed) for seed in SLANTS)
    yield from (apart(image, share) for share in APART)


def right_matches(sekd: Sekd, features: tuple[Features, Features], matrix: np.ndarray) -> tuple[float, int]:
    """Share and number of the matches that obey the map (3, 3)."""
    matches = sekd.match(*features, rotations=features[1].turned is not None)
    expected = cv2.perspectiveTransform(matches.keypoints0.numpy()[None].astype(np.float64), matrix)[0]
    right = np.linalg.norm(expected - matches.keypoints1.numpy(), axis=1) < RIGHT
    return float(right.mean()), int(right.sum())


def measure(weights: Path | None) -> tuple[dict[str, dict[str, list[tuple[float, int]]]], dict[str, list[float]]]:
    """Right matches by change and way, and seconds of extraction by way."""
    ways = {
        name: Sekd.from_pretrained(weights, device="cpu", max_keypoints=1000, **options)
        for name, options in WAYS.items()
    }
    found: dict[str, dict[str, list[tuple[float, int]]]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for photograph in PHOTOGRAPHS:
        image = cv2.imread(str(EXAMPLES / photograph), cv2.IMREAD_GRAYSCALE)
        for what, one, other, matrix in changes(image):
            for name, sekd in ways.items():
                first = sekd.extract(one)
                start = time.perf_counter()
                second = sekd.extract(other)
                seconds[name].append(time.perf_counter() - start)
                found.setdefault(what, {}).setdefault(name, []).append(right_matches(sekd, (first, second), matrix))
    return found, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="?", type=Path)
    found, seconds = measure(parser.parse_args().weights)
    print(f"{'right to 3 px (number)':24}" + "".join(f"{name:>18}" for name in WAYS))
    for what, by_way in found.items():
        cells = [
            f"{100 * np.mean([share for share, _ in values]):.0f} % ({np.mean([number for _, number in values]):.0f})"
            for values in by_way.values()
        ]
        print(f"{what:24}" + "".join(f"{cell:>18}" for cell in cells))
    ratios = [median(one / plain for one, plain in zip(seconds[name], seconds["plain"], strict=True)) for name in WAYS]
    print(f"{'time, ratio':24}" + "".join(f"{ratio:>18.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
