"""Photographs that tests draw: blocks, discs and noise, the same for the same seed."""

from pathlib import Path

import cv2
import numpy as np

from sekd_cli.image_search import find_images
from sekd_cli.training.photographs import Photographs, cache_photographs


def drawn_photograph(seed: int, height: int = 160, width: int = 192) -> np.ndarray:
    """(height, width, 3) uint8 with corners, blobs and texture."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), 110, np.uint8)
    for _ in range(40):
        corner = (int(random.integers(0, width)), int(random.integers(0, height)))
        size = (int(random.integers(6, 40)), int(random.integers(6, 40)))
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        opposite = (corner[0] + size[0], corner[1] + size[1])
        if random.random() < 0.6:
            cv2.rectangle(image, corner, opposite, colour, -1)
        else:
            cv2.circle(image, corner, size[0] // 2, colour, -1, cv2.LINE_AA)
    noise = random.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def draw_photographs(folder: Path, count: int) -> Path:
    """`count` drawn photographs in `folder`, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        cv2.imwrite(str(folder / f"{seed:03d}.png"), drawn_photograph(seed))
    return folder


def cached_photographs(folder: Path, count: int) -> Photographs:
    """`count` drawn photographs in `folder/in`, decoded into `folder/cache`."""
    return cache_photographs(find_images([draw_photographs(folder / "in", count)]), folder / "cache", 640)
