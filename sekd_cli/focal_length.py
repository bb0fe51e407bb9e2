"""The focal length of a photograph in pixels, as its EXIF data tell it."""

import math
from pathlib import Path

from PIL import ExifTags

from sekd_cli.errors import ImageError
from sekd_cli.image_opening import check_file, open_unlimited, size_in_file

FILM_DIAGONAL = 43.267  # mm of a 36 x 24 mm frame, to which "35 mm equivalent" focal lengths refer (CIPA DCG-001)
UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of the resolution of the focal plane: inch, cm, mm, um


def read_focal_length(path: Path, size: tuple[int, int] | None = None) -> float | None:
    """Focal length in pixels of the image as stored; None if EXIF does not tell. Raises ImageError if unreadable.

    size: width, height of the copy of the image whose pixels are meant, where they are others.

    EXIF speaks of the photograph as it was taken. If its sides were the other way round, its pixels were turned since;
    if they had another proportion it was cropped, along one edge alone.
    """
    check_file(path)
    try:
        with open_unlimited(path) as image:
            width, height = size_in_file(image)
            exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception as error:  # Pillow raises a dozen kinds for damage; this is one file, and it is named
        raise ImageError(f"{path}: can't read its EXIF data; give the focal length with --camera") from error
    original_width, original_height = (
        _number(exif.get(tag)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
    )
    if not (original_width and original_height):
        before = original_width / width or original_height / height or 1.0
        original_width, original_height = before * width, before * height
    now, original = sorted(size or (width, height)), sorted((original_width, original_height))
    shrunk = max(edge / before for edge, before in zip(now, original, strict=True))
    equivalent = _number(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if equivalent:
        return equivalent / FILM_DIAGONAL * math.hypot(*original) * shrunk
    focal = _number(exif.get(ExifTags.Base.FocalLength))  # mm
    resolution = _number(exif.get(ExifTags.Base.FocalPlaneXResolution))  # pixels of the original per unit
    unit = UNIT_MM.get(int(_number(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))))
    if not focal or not resolution or unit is None:
        return None
    return focal * resolution / unit * shrunk


def _number(value: object) -> float:
    """A positive finite number, or 0: EXIF holds fractions with a denominator of zero, and worse."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
