"""The photographs as every method sees them: grey, at the same size."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sekd_cli.errors import InputFileError
from sekd_cli.geometry import resize_matrix


@dataclass(frozen=True, kw_only=True)
class EvaluationImage:
    """One image, shrunk to the protocol's size."""

    path: Path
    name: str  # relative to the evaluated folder, with forward slashes: what feature files are asked for
    grey: NDArray[np.uint8]  # (H, W)
    original_size: tuple[int, int]  # width, height of the file

    @property
    def size(self) -> tuple[int, int]:
        """Width, height as evaluated."""
        return self.grey.shape[1], self.grey.shape[0]

    @property
    def evaluated_from_original(self) -> NDArray[np.float64]:
        """(3, 3): pixels of the evaluated image from those of the file."""
        width, height = self.original_size
        return resize_matrix(self.size[0] / width, self.size[1] / height)


def read_evaluation_image(path: Path, name: str, max_size: int) -> EvaluationImage:
    """Read an image as it lies in the file, its longer edge shrunk to `max_size` pixels (0: as it is).

    Never turned by EXIF, since ground truth speaks of the file's pixel grid. Raises InputFileError.
    """
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        grey = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION) if len(content) else None
    except (OSError, cv2.error) as error:
        raise InputFileError(f"{path}: can't be read ({error}); the evaluation needs every image") from error
    if grey is None:
        raise InputFileError(f"{path}: not an image; the evaluation needs every image")
    height, width = grey.shape
    longer = max(height, width)
    if max_size and longer > max_size:
        shrunk = (max(1, round(width * max_size / longer)), max(1, round(height * max_size / longer)))
        resized = cv2.resize(grey, shrunk, interpolation=cv2.INTER_AREA)
    else:
        resized = grey
    return EvaluationImage(path=path, name=name, grey=np.asarray(resized, np.uint8), original_size=(width, height))
