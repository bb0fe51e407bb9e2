"""Opening an image file of a stranger's: the formats that are read, no harm by its size, one line for what is wrong."""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from sekd_cli.errors import ImageError

FORMATS = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "PPM", "BMP", "DIB", "GIF", "JPEG2000", "AVIF", "TGA", "HEIF")
"""What Pillow may decode here; its other formats are no photographs, and some start other programs."""
HEIC_SUFFIXES = {".heic", ".heif", ".hif"}  # of phones' and cameras' photographs, which take the extra `heic`

WIDTH_TAG, HEIGHT_TAG = 0x0100, 0x0101  # of TIFF
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)  # what an error has where there can be no such file
COMPLAINTS = {
    **dict.fromkeys(NOWHERE, "no such file; check the path"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission denied; make it readable"),
    errno.ELOOP: "a link that leads in a circle; remove it",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "too many files are open; raise ulimit -n"),
}

_opening = threading.Lock()


def _nobody_is_opening() -> None:
    global _opening  # noqa: PLW0603 - a fork leaves behind the thread that may hold it
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_nobody_is_opening)


def check_file(path: Path) -> os.stat_result:
    """The status of a file, whatever it holds. Raises ImageError if there is none."""
    try:
        status = path.stat()
        mode = status.st_mode
        if stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ImageError(f"{path}: {_complaint(path, error)}") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a folder"
        raise ImageError(f"{path}: {what}, not an image; leave it out")
    return status


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The image at `path`, its header read and its size accepted; turns all that goes wrong into an ImageError."""
    try:
        check_file(path)
        with open_unlimited(path) as image:
            width, height = image.size
            if max_pixels and width * height > max_pixels:
                limit = f"more than {max_pixels / 1e6:g} million pixels"
                raise ImageError(f"{path}: {width}x{height} is {limit}; raise --max-pixels if you trust it")
            yield image
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: too large for the memory; make it smaller") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damage; this is one file, and it is named
        raise ImageError(f"{path}: {_complaint(path, error)}") from error


@contextmanager
def open_unlimited(path: Path) -> Iterator[Image.Image]:
    """Pillow's `open` without its own limit on pixels, which is a global of the whole process; raises what it does.

    By a stream: a path's raw pixels it may map into memory, which scrambles those of a TIFF that is to be turned.
    """
    with path.open("rb") as stream:
        with _opening:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(stream, formats=_readable_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with image:
            yield image


@cache
def _readable_formats() -> list[str]:
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # noqa: PLC0415 - an extra

        register_heif_opener(thumbnails=False)
    return [name for name in FORMATS if name in Image.OPEN]


def size_in_file(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file; Pillow tells those of a TIFF as they are when it is upright, since 11.3."""
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2")  # noqa: B009 - a TIFF has it, other images don't
        return int(tags[WIDTH_TAG]), int(tags[HEIGHT_TAG])
    return image.size


def _complaint(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return COMPLAINTS.get(error.errno, f"can't be read ({error.strerror}); copy it again")
    if path.is_file() and path.stat().st_size == 0:
        return "an empty file; copy it again"
    if isinstance(error, UnidentifiedImageError):
        if path.suffix.lower() in HEIC_SUFFIXES and "HEIF" not in _readable_formats():
            return "HEIC takes a package: pip install 'sekd[heic]'; or convert it to JPEG"
        return "not an image that sekd reads; convert it to JPEG or PNG"
    if "MAX_TEXT" in str(error):  # what Pillow says of compressed text that would fill the memory
        return "more text in its metadata than is read; save it without"
    told = re.sub(r" \(-?\d+ bytes not processed\)$", "", str(error))  # of Pillow's buffer, not of the file
    reason = f" ({told})" if isinstance(error, OSError) else ""  # other errors speak of Pillow's inside
    return f"damaged or truncated{reason}; copy it again, or convert it to PNG"
