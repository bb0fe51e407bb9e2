"""COLMAP's models as ground truth: `cameras.txt` and `images.txt`, or the binary ones through pycolmap."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sekd_cli.coordinates import COLMAP_OFFSET
from sekd_cli.errors import InputFileError
from sekd_cli.evaluation.cameras import CalibratedCamera, View
from sekd_cli.evaluation.homography import invertible
from sekd_cli.pycolmap_extra import require_pycolmap

# Where each model's parameters are: focal lengths fx, fy; principal point cx, cy; then OpenCV's distortion.
SINGLE_FOCAL = {"SIMPLE_PINHOLE": 0, "SIMPLE_RADIAL": 1, "RADIAL": 2}
TWO_FOCALS = {"PINHOLE": 0, "OPENCV": 4, "FULL_OPENCV": 8}
"""Each: number of distortion parameters."""


def holds_colmap_model(folder: Path) -> bool:
    """Whether a folder holds a model, text or binary."""
    return any((folder / f"cameras{suffix}").is_file() for suffix in (".txt", ".bin"))


def read_colmap_model(folder: Path) -> dict[str, View]:
    """The views of a model by image name.

    Raises InputFileError for a file that is no model or a camera model that isn't known here, MissingExtraError for a
    binary model without pycolmap.
    """
    if (folder / "cameras.txt").is_file():
        return _read_text(folder)
    pycolmap = require_pycolmap()
    with tempfile.TemporaryDirectory() as copy:
        try:
            pycolmap.Reconstruction(str(folder)).write_text(copy)
        except (ValueError, RuntimeError) as error:
            raise InputFileError(f"{folder}: not a COLMAP model ({error})") from error
        return _read_text(Path(copy))


def _read_text(folder: Path) -> dict[str, View]:
    file = folder / "cameras.txt"
    try:
        cameras = dict(_camera(line) for line in _lines(file) if line)
        file = folder / "images.txt"
        lines = list(_lines(file))
        return dict(
            _view(head, points, cameras) for head, points in zip(lines[::2], [*lines[1::2], ""], strict=False) if head
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputFileError(f"{file}: not a COLMAP model as text ({error})") from error


def _lines(file: Path) -> Iterator[str]:
    """Stripped lines without comments; an image without points has an empty one, so these are kept."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield line.strip()


def _camera(line: str) -> tuple[int, CalibratedCamera]:
    identity, model, width, height, *rest = line.split()
    values = [float(value) for value in rest]
    if model in SINGLE_FOCAL:
        values.insert(1, values[0])
    elif model not in TWO_FOCALS:
        known = ", ".join((*SINGLE_FOCAL, *TWO_FOCALS))
        raise ValueError(f"camera model {model}, not one of {known}")
    if len(values) != 4 + (SINGLE_FOCAL | TWO_FOCALS)[model]:
        raise ValueError(f"camera {identity}: {len(rest)} parameters are not {model}'s")
    fx, fy, cx, cy, *distortion = values
    matrix = np.array([[fx, 0, cx - COLMAP_OFFSET], [0, fy, cy - COLMAP_OFFSET], [0, 0, 1]])
    if not (invertible(matrix) and np.isfinite(distortion).all()):
        raise ValueError(f"camera {identity}: no focal length, or numbers that aren't finite")
    size = int(width), int(height)
    return int(identity), CalibratedCamera(matrix=matrix, distortion=tuple(distortion), image_size=size)


def _view(head: str, points: str, cameras: dict[int, CalibratedCamera]) -> tuple[str, View]:
    _, *pose, camera, name = head.split(maxsplit=9)
    values = np.array([float(value) for value in pose])
    if not (np.isfinite(values).all() and values[:4].any()):
        raise ValueError(f"{name}: a quaternion of zeros, or numbers that aren't finite")
    seen = frozenset(int(identity) for identity in points.split()[2::3] if identity != "-1")
    view = View(
        camera=cameras[int(camera)], camera_from_world=(rotation_of_quaternion(values[:4]), values[4:]), points=seen
    )
    return name, view


def rotation_of_quaternion(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation (3, 3) of a quaternion (w, x, y, z) of any length but zero."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
