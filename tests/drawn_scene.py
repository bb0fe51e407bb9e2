"""A scene in three dimensions that tests draw: the corner of a papered room, seen by cameras whose poses are known."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 480, 360
FOCAL = 420.0  # pixels
CENTRE = np.array(((WIDTH - 1) / 2, (HEIGHT - 1) / 2))  # the centre of the top-left pixel is (0, 0)
COLMAP_PARAMETERS = f"{FOCAL},{FOCAL},{WIDTH / 2},{HEIGHT / 2}"  # of PINHOLE
VIEWS = 5
WALL = 6.0  # edge of a wall
PAPER_PIXELS = 700  # of a wall's edge


def camera_from_world(view: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and translation (3,) of a view: on an arc around the corner, looking into it."""
    angle = np.radians(45 + 8 * (view - VIEWS // 2))
    centre = np.array([5 * np.cos(angle), 5 * np.sin(angle), 2.6 + 0.15 * view])
    forward = np.array([0.8, 0.8, 1.2]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    rotation = np.stack((right, np.cross(forward, right), forward))
    return rotation, -rotation @ centre


@cache
def draw_paper(seed: int) -> np.ndarray:
    """A wall, (PAPER_PIXELS, PAPER_PIXELS, 3) uint8, full of blocks and discs of all sizes."""
    random = np.random.default_rng(seed)
    paper = np.full((PAPER_PIXELS, PAPER_PIXELS, 3), 110, np.uint8)
    for size in np.linspace(90, 6, 900).astype(int).tolist():
        x, y = random.integers(-size, PAPER_PIXELS, 2).tolist()
        colour = random.integers(0, 255, 3).tolist()
        if random.random() < 0.6:
            cv2.rectangle(paper, (x, y), (x + size, y + random.integers(size // 2, 2 * size)), colour, -1)
        else:
            cv2.circle(paper, (x, y), size // 2, colour, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(paper, (0, 0), 1)


def draw_view(view: int) -> np.ndarray:
    """What a camera sees, (HEIGHT, WIDTH, 3) uint8: the nearest wall along each pixel's ray."""
    rotation, translation = camera_from_world(view)
    origin = -rotation.T @ translation
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack(((x - CENTRE[0]) / FOCAL, (y - CENTRE[1]) / FOCAL, np.ones(x.shape)), axis=-1) @ rotation
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    distances = np.where(rays < 0, -origin / np.minimum(rays, -1e-9), np.inf)  # to the planes x = 0, y = 0, z = 0
    for axis in range(3):
        nearest = distances.argmin(axis=-1) == axis
        hit = origin + np.where(nearest, distances[..., axis], 0)[..., None] * rays
        on_wall = (np.delete(hit, axis, axis=-1) * PAPER_PIXELS / WALL).astype(np.float32)
        seen = cv2.remap(draw_paper(axis), on_wall[..., 0], on_wall[..., 1], cv2.INTER_LINEAR, borderValue=(90, 90, 90))
        image[nearest] = seen[nearest]
    return image


def draw_scene(folder: Path) -> list[str]:
    """All views as PNG in a folder and one below it, one with a space in its name; their names."""
    names = [f"view {view}.png" if view == 1 else f"sub/view{view}.png" for view in range(VIEWS)]
    (folder / "sub").mkdir(parents=True)
    for view, name in enumerate(names):
        cv2.imwrite(str(folder / name), draw_view(view))
    return names


def direction_error(estimated: np.ndarray, true: np.ndarray) -> float:
    """Degrees between two vectors."""
    cosine = estimated @ true / np.linalg.norm(estimated) / np.linalg.norm(true)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
