"""Calibrated image sets with ground truth, in three layouts; `find_scenes` tells them apart.

- Strecha: `images/NAME` and `cameras/NAME.camera`, text: three rows of K, one of distortion (zeros), three of R (camera
  to world), one of the camera's centre, one of width and height (not read). K is of the image as it lies there, the
  centre of its top-left pixel at (0, 0).
- COLMAP: a model `cameras.txt` and `images.txt` (or `.bin`, with pycolmap) in the folder, `sparse/` or `sparse/0/`, and
  the images in `images/`. Distorted points are undistorted.
- Pairs file `pairs.txt`, as SuperGlue's evaluation has it: a line `name0 name1 turn0 turn1 K0 K1 T_0to1` (9 + 9 + 16
  numbers, row by row), names relative to the folder. The quarter turns are not applied: every method sees the files as
  they lie there.
"""

import logging
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.cameras import CalibratedCamera, Pose, View
from sekd_cli.evaluation.colmap_model import holds_colmap_model, read_colmap_model
from sekd_cli.evaluation.homography import invertible
from sekd_cli.evaluation.images import folder_name
from sekd_cli.evaluation.pose import relative_pose, viewing_angle

logger = logging.getLogger(__name__)

PAIR_FIELDS = 38  # of a line of a pairs file
MINIMUM_OVERLAP = 0.1  # IMC's: of the points of the view that shows fewer, the other shows at least this share


@dataclass(frozen=True, kw_only=True)
class PosePair:
    """Two photographs and the true pose between them."""

    name0: str
    name1: str
    camera0: CalibratedCamera
    camera1: CalibratedCamera
    pose_1_from_0: Pose


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A set of photographs with their paths, by the names that the ground truth gives them."""

    name: str
    image_root: Path
    paths: dict[str, Path]  # image_root / name
    pairs: tuple[PosePair, ...]
    views: dict[str, View]  # empty where only pairs are known


@dataclass(frozen=True, kw_only=True)
class PairSelection:
    """Which pairs of a scene are measured; a pairs file says it itself."""

    neighbours: int = 8  # at most so far apart in the order of names; where the model has points, overlap says it
    max_angle: float = 60.0  # degrees between the viewing directions
    max_pairs: int = 1000  # in a scene; more are thinned evenly


def find_scenes(root: Path, selection: PairSelection) -> list[Scene]:
    """The scene in a folder, or those in its subfolders, sorted by name.

    Raises InputFileError where there are none, or ground truth is wrong or an image missing.
    """
    every = [root] if _layout(root) else sorted(root.iterdir())
    folders = [folder for folder in every if _layout(folder)]
    if not folders:
        raise InputFileError(f"{root}: no scenes; give a folder with cameras/, a COLMAP model, or pairs.txt")
    for folder in every:
        if folder not in folders and (folder / "images").is_dir():
            logger.warning("%s: left out, as it has images/, but no cameras/, COLMAP model or pairs.txt", folder)
    return [_read_scene(folder, selection) for folder in folders]


def _layout(folder: Path) -> str:
    if (folder / "cameras").is_dir():
        return "strecha"
    if _model_folder(folder):
        return "colmap"
    return "pairs" if (folder / "pairs.txt").is_file() else ""


def _model_folder(folder: Path) -> Path | None:
    candidates = (folder, folder / "sparse", folder / "sparse" / "0")
    return next((candidate for candidate in candidates if holds_colmap_model(candidate)), None)


def _read_scene(folder: Path, selection: PairSelection) -> Scene:
    layout = _layout(folder)
    if layout == "pairs":
        return _read_pairs(folder / "pairs.txt")
    if layout == "strecha":
        files = sorted((folder / "cameras").glob("*.camera"))
        views = {file.name.removesuffix(".camera"): _read_camera(file) for file in files}
    else:
        views = dict(sorted(read_colmap_model(_model_folder(folder) or folder).items()))
    if not views:
        raise InputFileError(f"{folder}: ground truth of no images; give cameras/NAME.camera or a model with images")
    image_root = folder / "images"
    return Scene(
        name=folder_name(folder),
        image_root=image_root,
        paths={name: _existing(image_root / name) for name in views},
        pairs=select_pairs(views, selection),
        views=views,
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputFileError(f"{path}: no such image, though the ground truth names it")
    return path


def _read_camera(file: Path) -> View:
    try:
        rows = [[float(value) for value in line.split()] for line in file.read_text().splitlines() if line.strip()]
        matrix, rotation, centre = np.array(rows[:3]), np.array(rows[4:7]), np.array(rows[7])
        if matrix.shape != (3, 3) or rotation.shape != (3, 3) or centre.shape != (3,):
            raise ValueError("rows of other lengths")
        if not (invertible(matrix) and invertible(rotation) and np.isfinite(centre).all()):
            raise ValueError("K or R without an inverse, or numbers that aren't finite")
    except (OSError, ValueError, IndexError) as error:
        raise InputFileError(f"{file}: not K, distortion, R, centre and size, a row a line ({error})") from error
    if any(rows[3]):
        raise InputFileError(f"{file}: distorted images; undistort them first")
    return View(camera=CalibratedCamera(matrix=matrix), camera_from_world=(rotation.T, -rotation.T @ centre))


def select_pairs(views: dict[str, View], selection: PairSelection) -> tuple[PosePair, ...]:
    """The pairs of views to measure, in the order of their names."""
    names = list(views)
    found = [
        (names[i], names[j])
        for i, j in combinations(range(len(names)), 2)
        if _overlap(views[names[i]], views[names[j]], j - i, selection)
    ]
    if len(found) > selection.max_pairs:
        found = [found[index] for index in np.linspace(0, len(found) - 1, selection.max_pairs).astype(int)]
    return tuple(
        PosePair(
            name0=first,
            name1=second,
            camera0=views[first].camera,
            camera1=views[second].camera,
            pose_1_from_0=relative_pose(views[first].camera_from_world, views[second].camera_from_world),
        )
        for first, second in found
    )


def _overlap(first: View, second: View, apart: int, selection: PairSelection) -> bool:
    if viewing_angle(first.camera_from_world[0], second.camera_from_world[0]) > selection.max_angle:
        return False
    if first.points and second.points:
        shared = len(first.points & second.points)
        return shared >= MINIMUM_OVERLAP * min(len(first.points), len(second.points))
    return apart <= selection.neighbours


def _read_pairs(file: Path) -> Scene:
    pairs = []
    paths: dict[str, Path] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{file}: not readable as UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != PAIR_FIELDS:
            raise InputFileError(f"{file}: line {number} has {len(fields)} fields, not {PAIR_FIELDS}: two names, ...")
        try:
            values = np.array([float(value) for value in fields[4:]])
        except ValueError as error:
            raise InputFileError(f"{file}: line {number}: {error}") from error
        for name in fields[:2]:
            paths.setdefault(name, _existing(file.parent / name))
        matrices, pose = values[:18].reshape(2, 3, 3), values[18:].reshape(4, 4)
        if not (np.isfinite(pose).all() and all(invertible(matrix) for matrix in (*matrices, pose[:3, :3]))):
            raise InputFileError(f"{file}: line {number}: K or R without an inverse, or numbers that aren't finite")
        pairs.append(
            PosePair(
                name0=fields[0],
                name1=fields[1],
                camera0=CalibratedCamera(matrix=matrices[0]),
                camera1=CalibratedCamera(matrix=matrices[1]),
                pose_1_from_0=(pose[:3, :3], pose[:3, 3]),
            )
        )
    if not pairs:
        raise InputFileError(f"{file}: no pairs in it")
    return Scene(name=folder_name(file.parent), image_root=file.parent, paths=paths, pairs=tuple(pairs), views={})
