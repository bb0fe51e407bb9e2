"""Feature files that tests make up: views of one plane, whose points are known, with some that no other view has."""

from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np

from sekd_cli import cli
from sekd_cli.feature_file import FeatureWriter, file_attributes
from sekd_cli.pairs import exhaustive, format_pair
from sekd_cli.stored_features import StoredFeatures

TURNED_ATTRIBUTES = file_attributes(
    network="compact", weights_sha256="ab" * 32, settings={"max_keypoints": 2048, "rotations": True}
)
ATTRIBUTES = file_attributes(network="compact", weights_sha256="ab" * 32, settings={"max_keypoints": 2048})
SIZE = 400  # pixels, width and height
NAMES = ["a.jpg", "b/b 1.jpg", "c.jpg"]  # of the images in `in_a_folder_with_features`


def homography(view: int) -> np.ndarray:
    """`view_from_plane` (3, 3): each view is turned and moved a little further."""
    angle = 0.1 * view
    turn = np.array([[np.cos(angle), -np.sin(angle), 7 * view], [np.sin(angle), np.cos(angle), -3 * view], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [1e-4 * view, 0, 1]])
    return turn @ tilt


def drawn_features(view: int, common: int = 60, own: int = 20, width: int = 16, plane: int = 0) -> StoredFeatures:
    """`common` points of a plane as a view shows them, in the view's own order, and `own` points elsewhere."""
    shared = np.random.default_rng(1000 + plane)
    on_plane = shared.uniform(0, SIZE, (common, 2))
    descriptors = shared.normal(size=(common, width))
    random = np.random.default_rng(view)
    warped = np.column_stack((on_plane, np.ones(common))) @ homography(view).T
    keypoints = np.concatenate((warped[:, :2] / warped[:, 2:], random.uniform(0, SIZE, (own, 2))))
    noisy = np.concatenate(
        (descriptors + random.normal(scale=0.1, size=descriptors.shape), random.normal(size=(own, width)))
    )
    order = random.permutation(common + own)
    unit = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return StoredFeatures(
        keypoints=keypoints[order].astype(np.float32),
        scores=np.linspace(1, 0.5, common + own).astype(np.float32),
        descriptors=unit[order].astype(np.float32),
        image_size=(SIZE, SIZE),
    )


def write_views(path: Path, names: list[str], **options: int) -> Path:
    """A feature file with a view for each name."""
    with FeatureWriter(path, ATTRIBUTES, overwrite=True) as writer:
        for view, name in enumerate(names):
            writer.write(name, drawn_features(view, **options))
    return path


def write_views_and_matches(names: list[str]) -> None:
    """In the current folder `feats.h5`, a view for each name, and `matches.h5` of all their pairs."""
    write_views(Path("feats.h5"), names)
    Path("pairs.txt").write_text("".join(map(format_pair, exhaustive(names))), encoding="utf-8")
    assert cli.main(["match", "pairs.txt", "--quiet", "--device", "cpu"]) == 0


def write_photographs(names: list[str]) -> None:
    """In `photos/` a grey photograph for each name, as large as the views."""
    for name in names:
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((SIZE, SIZE), 128, np.uint8))


def datasets(path: Path) -> dict[str, np.ndarray]:
    """All datasets of a file, by place."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, value: found.update({name: value[()]}) if isinstance(value, h5py.Dataset) else None
        )
    return found


def turned_by(features: StoredFeatures, turn: int) -> StoredFeatures:
    """Features as of a photograph that lies turned: at so many quarters they look like `features`, else like noise."""
    random = np.random.default_rng(99)
    views = random.normal(size=(4, *features.descriptors.shape))
    views[turn] = features.descriptors
    views = (views / np.linalg.norm(views, axis=-1, keepdims=True)).astype(np.float32)
    return replace(features, descriptors=views[0], turned=views[1:])
