"""How far photographs may be turned or zoomed against each other: python benchmarks/turns.py [WEIGHTS].

Prints the share of matches that are right to 3 px between example photographs and themselves, turned in their plane by
some degrees or resized by some factor, on average.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from sekd_cli import Sekd
from sekd_cli.geometry import resize_matrix

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOGRAPHS = ("china.jpg", "coffee.jpg", "astronaut.jpg")
DEGREES = (15, 30, 45, 60, 75, 90, 135, 180)
FACTORS = (0.5, 0.6, 0.75, 1.5, 2.0)
RIGHT = 3.0  # pixels


def right_share(sekd: Sekd, image: np.ndarray, changed: np.ndarray, changed_from_image: np.ndarray) -> float:
    """Share of the matches between two images that obey the map (3, 3) between them."""
    matches = sekd.match(sekd.extract(image), sekd.extract(changed))
    expected = cv2.perspectiveTransform(matches.keypoints0.numpy()[None].astype(np.float64), changed_from_image)[0]
    return float((np.linalg.norm(expected - matches.keypoints1.numpy(), axis=1) < RIGHT).mean())


def turned(image: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """A square image turned about its centre, and the map there."""
    middle = (image.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1.0)
    result = cv2.warpAffine(image, matrix, image.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    return result, np.vstack((matrix, (0, 0, 1)))


def resized(image: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """An image resized, and the map there."""
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    result = cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)
    scale_x, scale_y = result.shape[1] / image.shape[1], result.shape[0] / image.shape[0]
    return result, resize_matrix(scale_x, scale_y)


def main() -> None:
    """Print both tables."""
    weights = sys.argv[1] if len(sys.argv) > 1 else None
    sekd = Sekd.from_pretrained(weights, device="cpu", max_keypoints=1000)
    images = [cv2.imread(str(EXAMPLES / name), cv2.IMREAD_GRAYSCALE) for name in PHOTOGRAPHS]
    for degrees in DEGREES:
        shares = []
        for image in images:
            height, width = image.shape
            edge = int(np.hypot(height, width)) + 2
            down, right = (edge - height) // 2, (edge - width) // 2
            square = cv2.copyMakeBorder(
                image, down, edge - height - down, right, edge - width - right, cv2.BORDER_REPLICATE
            )
            shares.append(right_share(sekd, square, *turned(square, degrees)))
        print(f"turned by {degrees:3d} degrees: {100 * np.mean(shares):.0f} %")
    for factor in FACTORS:
        shares = [right_share(sekd, image, *resized(image, factor)) for image in images]
        print(f"resized by {factor:4.2f}: {100 * np.mean(shares):.0f} %")


if __name__ == "__main__":
    main()
