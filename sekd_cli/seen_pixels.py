"""A photograph's pixels as its keypoints were found in them, and matches aligned by those of two photographs.

The finest size at which the network saw a photograph is what its keypoints are exact to: more pixels cost time, and
fewer lose what there is. They lie as the file does, whatever its EXIF orientation, as keypoints do.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sekd_cli.config import DEFAULT_MAX_PIXELS
from sekd_cli.coordinates import rescale_points
from sekd_cli.errors import ImageError
from sekd_cli.image_opening import check_file
from sekd_cli.images import Photograph, read_image, turn_back
from sekd_cli.level_sizes import finest_of, largest_size, views_as_seen
from sekd_cli.patch_alignment import Alignment, align
from sekd_cli.pyramid import prepare
from sekd_cli.stored_features import StoredFeatures


class SeenPixels(NamedTuple):
    """Grey pixels of a photograph at one size."""

    grey: np.ndarray  # (h, w) uint8
    scale: np.ndarray  # (2,): pixels of it a pixel of the file, along x and y

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.grey.nbytes


class SeenPhotograph(NamedTuple):
    """Which photograph was seen, and how."""

    path: Path
    image_size: tuple[int, int] | None  # width, height, as its features tell, if they do
    finest: float | None  # see `finest_of`
    max_pixels: int = DEFAULT_MAX_PIXELS
    file_size: int | None = None  # bytes of the file that was seen, if they are known; a copy has as many

    @classmethod
    def of(
        cls, path: Path, features: StoredFeatures, *, max_pixels: int, file_size: int | None = None
    ) -> "SeenPhotograph":
        """That of these features, at a path."""
        return cls(path, features.stated_size, finest_of(features.scales), max_pixels, file_size)

    def read(self) -> SeenPixels:
        """`seen_pixels` of the file. Raises ImageError if it can't be read, has another size, or is another file."""

        def enough(width: int, height: int) -> tuple[int, int]:
            return largest_size(width, height, views_as_seen((width, height), self.finest))

        photograph = read_image(self.path, max_pixels=self.max_pixels, enough=enough)
        try:
            seen = seen_pixels(photograph, self.image_size, self.finest)
        except ImageError as error:
            raise ImageError(f"{self.path}: {error}") from error
        here = check_file(self.path).st_size
        if self.file_size not in {None, here}:
            told = f"{here:,} bytes, but its features are of a file of {self.file_size:,}"
            raise ImageError(f"{self.path}: {told}; give that one, or run sekd extract --update")
        return seen


def seen_pixels(photograph: Photograph, image_size: tuple[int, int] | None, finest: float | None) -> SeenPixels:
    """The pixels in which the keypoints of a photograph were found.

    image_size: width, height, as its features tell, if they do. Raises ImageError if it has another size.
    """
    size = photograph.stored_size
    if image_size not in {None, size}:
        here, there = ("x".join(map(str, one)) for one in (size, image_size))
        raise ImageError(f"{here} pixels, but its features are of {there}; give the photograph that they are of")
    level = prepare(photograph, views_as_seen(size, finest)).levels[0]
    grey = np.ascontiguousarray(turn_back(level.grey, photograph.orientation))
    return SeenPixels(grey, np.divide(grey.shape[::-1], size))


def align_matches(
    pixels: tuple[SeenPixels, SeenPixels], xy0: np.ndarray, xy1: np.ndarray, affines: np.ndarray | None = None
) -> Alignment:
    """`align` matches xy0, xy1 (M, 2), and affine maps of their surroundings, in pixels of both files."""
    scale0, scale1 = (one.scale.astype(np.float32) for one in pixels)
    resized = scale0 / scale1[:, None]  # of the file's affine maps those of the pixels
    seen = None if affines is None else affines / resized
    found = align(pixels[0].grey, pixels[1].grey, rescale_points(xy0, scale0), rescale_points(xy1, scale1), seen)
    return found._replace(offsets=found.offsets / scale1, affines=found.affines * resized)
