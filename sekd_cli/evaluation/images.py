"""The photographs as every method sees them: grey, at the same size, in the pixel grid of the file."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sekd_cli.config import ViewSettings
from sekd_cli.coordinates import resize_matrix
from sekd_cli.errors import ImageError, InputFileError
from sekd_cli.images import Photograph, read_image, turn_back
from sekd_cli.level_sizes import largest_size
from sekd_cli.pyramid import prepare
from sekd_cli.seen_pixels import SeenPixels


@dataclass(frozen=True, kw_only=True)
class EvaluationImage:
    """One image, shrunk to the protocol's size."""

    path: Path
    grey: NDArray[np.uint8]  # (H, W)
    original_size: tuple[int, int]  # width, height of the file

    @property
    def size(self) -> tuple[int, int]:
        """Width, height as evaluated."""
        return self.grey.shape[1], self.grey.shape[0]

    @property
    def seen(self) -> SeenPixels:
        """Its pixels, for places in those of the file."""
        return SeenPixels(self.grey, np.divide(self.size, self.original_size))

    @property
    def evaluated_from_original(self) -> NDArray[np.float64]:
        """(3, 3): pixels of the evaluated image from those of the file."""
        width, height = self.original_size
        return resize_matrix(self.size[0] / width, self.size[1] / height)


def folder_name(folder: Path) -> str:
    """A folder's own name, where it is given as `.` or `..` too; a link has its own, not that of what it leads to."""
    return os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119 - pathlib would follow links


def read_evaluation_image(path: Path, max_size: int) -> EvaluationImage:
    """Read an image as it lies in the file, its longer edge shrunk to `max_size` pixels (0: as it is).

    Never turned by EXIF, since ground truth speaks of the file's pixel grid. Raises InputFileError.
    """
    views = ViewSettings(max_size=max_size)
    try:
        photograph = read_image(path, enough=partial(largest_size, settings=views))
    except ImageError as error:
        raise InputFileError(f"{error}; the evaluation needs every image") from error
    stored = turn_back(photograph.pixels, photograph.orientation)
    unturned = Photograph(pixels=stored, orientation=1, stored_size=photograph.stored_size)
    level = prepare(unturned, views).levels[0]
    return EvaluationImage(path=path, grey=level.grey, original_size=photograph.stored_size)
