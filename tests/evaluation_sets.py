"""Small sets with ground truth that tests draw, and features that are exact because they know it."""

from pathlib import Path

import cv2
import numpy as np

from sekd_cli.coordinates import resize_matrix
from sekd_cli.evaluation.homography import warp
from sekd_cli.evaluation.images import EvaluationImage
from sekd_cli.evaluation.methods import LocalFeatures, Method

HOMOGRAPHIES = {  # to image k from image 1, in pixels of 800 x 600
    2: np.array([[0.9, 0.1, 20.0], [-0.05, 0.95, 30.0], [1e-5, -2e-5, 1.0]]),
    3: np.array([[1.1, -0.2, 15.0], [0.2, 1.05, -40.0], [5e-5, 3e-5, 1.0]]),
}
SEQUENCES = ("i_drawn", "v_drawn")
SIZE = (800, 600)


def nothing(_: str) -> None:
    """To be called as each pair or scene is done, where nobody watches."""


def unit_rows(count: int) -> np.ndarray:
    """Descriptors (count, 32), all different, always the same."""
    rows = np.random.default_rng(7).normal(size=(count, 32)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Exact(Method):
    """Keypoints where they are told to be, (N, 2) in the pixels of each file, each with a descriptor of its own."""

    label = "exact"

    def __init__(self, points: dict[Path, np.ndarray], *, noise: float = 0.0) -> None:
        self.points = {path.resolve(): xy for path, xy in points.items()}
        self.noise = noise

    def features(self, image: EvaluationImage) -> LocalFeatures:
        exact = warp(self.points[image.path.resolve()], image.evaluated_from_original)
        random = np.random.default_rng(list(image.path.name.encode()))  # other noise in every image
        noisy = exact + self.noise * random.normal(size=exact.shape)
        return LocalFeatures(
            keypoints=noisy.astype(np.float32),
            scores=np.ones(len(exact), dtype=np.float32),
            descriptors=unit_rows(len(exact)),
        )


def write_grey(path: Path, width: int, height: int) -> Path:
    """A middle-grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width), 128, dtype=np.uint8))
    return path


def change_line(file: Path, index: int, text: str) -> None:
    """Put another text in place of one line of a file."""
    lines = file.read_text().splitlines()
    lines[index] = text
    file.write_text("\n".join(lines) + "\n")


def write_sequences(root: Path, count: int = 200) -> dict[Path, np.ndarray]:
    """Two folders in HPatches form; returns `count` points of each image that correspond, by path."""
    points = {}
    for name in SEQUENCES:
        first = np.random.default_rng(1).uniform((150, 150), (600, 450), (count, 2))
        points[write_grey(root / name / "1.png", *SIZE)] = first
        for k, homography in HOMOGRAPHIES.items():
            np.savetxt(root / name / f"H_1_{k}", homography)
            points[write_grey(root / name / f"{k}.png", *SIZE)] = warp(first, homography)
    return points


def half_from_whole() -> np.ndarray:
    """The map to an image of half the size."""
    return resize_matrix(0.5, 0.5)


class Orbit:
    """Five cameras around a cloud of points, with their images, as any layout of ground truth can tell it."""

    size = (640, 480)
    matrix = np.array([[600.0, 0, 319.5], [0, 590.0, 239.5], [0, 0, 1]])

    def __init__(self, count: int = 300) -> None:
        random = np.random.default_rng(3)
        self.points = random.uniform(-1, 1, (count, 3))
        self.names = [f"{index:02d}.png" for index in range(5)]
        self.rotations, self.translations = [], []  # camera from world
        for index in range(5):
            rotation = cv2.Rodrigues(np.array([0.03 * index, np.radians(12 * index), 0.02 * index]))[0]
            self.rotations.append(rotation)
            self.translations.append(np.array([0.05 * index, 0.02, 5.0]))

    def seen(self, index: int) -> np.ndarray:
        """The points in an image, (N, 2) pixels."""
        camera = self.points @ self.rotations[index].T + self.translations[index]
        return (camera @ self.matrix.T)[:, :2] / camera[:, 2:]

    def write_images(self, folder: Path) -> dict[Path, np.ndarray]:
        """The images, and where the points are in each."""
        return {write_grey(folder / name, *self.size): self.seen(index) for index, name in enumerate(self.names)}

    def write_strecha(self, root: Path) -> dict[Path, np.ndarray]:
        """`images/` and `cameras/`."""
        (root / "cameras").mkdir(parents=True)
        for index, name in enumerate(self.names):
            turn = self.rotations[index].T
            rows = [*self.matrix, np.zeros(3), *turn, -turn @ self.translations[index], np.array(self.size)]
            text = "\n".join(" ".join(repr(float(value)) for value in row) for row in rows)
            (root / "cameras" / f"{name}.camera").write_text(text)
        return self.write_images(root / "images")

    def write_colmap(self, root: Path) -> dict[Path, np.ndarray]:
        """`images/` and a text model in `sparse/`, in COLMAP's pixels."""
        (root / "sparse").mkdir(parents=True)
        fx, fy, cx, cy = (self.matrix[i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        width, height = self.size
        camera = f"1 PINHOLE {width} {height} {fx} {fy} {cx + 0.5} {cy + 0.5}\n"
        (root / "sparse" / "cameras.txt").write_text("# cameras\n" + camera)
        lines = ["# images"]
        for index, name in enumerate(self.names):
            rotation = cv2.Rodrigues(self.rotations[index])[0][:, 0]
            angle = np.linalg.norm(rotation)
            axis = rotation / angle if angle else rotation
            quaternion = np.concatenate(([np.cos(angle / 2)], np.sin(angle / 2) * axis))
            pose = " ".join(repr(float(value)) for value in (*quaternion, *self.translations[index]))
            lines += [f"{index + 1} {pose} 1 {name}", ""]
        (root / "sparse" / "images.txt").write_text("\n".join(lines) + "\n")
        (root / "sparse" / "points3D.txt").write_text("# points\n")
        return self.write_images(root / "images")

    def write_pairs(self, root: Path) -> dict[Path, np.ndarray]:
        """The images and a `pairs.txt` of the first with each other."""
        points = self.write_images(root)
        lines = []
        for index, name in list(enumerate(self.names))[1:]:
            turn = self.rotations[index] @ self.rotations[0].T
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = turn, self.translations[index] - turn @ self.translations[0]
            numbers = np.concatenate((self.matrix.ravel(), self.matrix.ravel(), pose.ravel()))
            lines.append(f"{self.names[0]} {name} 0 0 " + " ".join(repr(float(value)) for value in numbers))
        (root / "pairs.txt").write_text("# first second\n\n" + "\n".join(lines) + "\n")
        return points
