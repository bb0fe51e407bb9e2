"""Photographs from disk: decoding any that a camera, scanner or program writes, turning them upright.

The network sees a photograph upright, as its EXIF orientation says; keypoints are stored in the pixel grid of the file
as it is, so they go back through `to_stored`. Grey is the same for every format: 8 bits a channel, then OpenCV's 0.299
R + 0.587 G + 0.114 B, rounded; a JPEG's is stored in it and taken from there. Where an image is transparent it is laid
on mid-grey, which neither black nor white content vanishes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sekd_cli.config import DEFAULT_MAX_PIXELS
from sekd_cli.errors import ImageError
from sekd_cli.image_opening import opened, size_in_file

LARGEST_FRACTION = 64.0  # of an image of fractions: brighter than white, or depth in metres; beyond, they are of 255
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
BACKGROUND = 128  # grey under transparent pixels
STRIP_PIXELS = 2**24  # converted at a time, so that a huge image is never there twice in colour
JPEGS = {"JPEG", "MPO"}  # formats
ORIENTATION_TAG, BITS_TAG = 0x0112, 0x0102  # of EXIF and TIFF: how it lies, bits of each channel
PLANES_TAG, EXTRA_TAG, NUMBERS_TAG = 0x011C, 0x0152, 0x0153  # of TIFF: how channels lie, what the fourth is, their kind
IN_PLANES, ALPHA, UNSIGNED = 2, {1, 2}, 1  # values of these
JPEG2000_HEAD, JPEG2000_START, JPEG2000_BITS_AT = 2**16, b"\xff\x4f\xff\x51", 38  # bytes; of its code, and after them
# EXIF orientation: how upright pixels come from stored ones: (transpose first?, then mirror x?, then mirror y?)
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """An image as the network sees it, upright, and how it lies in its file."""

    pixels: np.ndarray  # (H, W) uint8 grey, or (H, W, 3) uint8 RGB; upright; fewer than in the file if fewer will do
    orientation: int  # EXIF, 1 to 8
    stored_size: tuple[int, int]  # width, height in the file

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width, height of the file's pixels turned upright."""
        transpose, _, _ = ORIENTATIONS[self.orientation]
        return self.stored_size[::-1] if transpose else self.stored_size


def read_image(
    path: Path,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    colour: bool = False,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
) -> Photograph:
    """Read one photograph, grey unless `colour`. max_pixels: largest width x height to decode; 0 for no limit.

    enough: of a width and height in the file those that will do; a JPEG is then decoded no larger than it must.
    Raises ImageError, one line that names the file and the remedy, whatever is wrong with it.
    """
    with opened(path, max_pixels) as image:
        cell = 1 if enough is None else _cell_decoded(image, enough, colour=colour)
        pixels, orientation = _decode(image, path, colour=colour)
    height, width = pixels.shape[:2]
    stored_size = (cell * width, cell * height)
    return Photograph(pixels=turn_upright(pixels, orientation), orientation=orientation, stored_size=stored_size)


def read_image_size(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Width and height in the file, from its header alone. Raises ImageError."""
    with opened(path, max_pixels) as image:
        return size_in_file(image)


def read_mask(path: Path, photograph: Photograph) -> np.ndarray:
    """Where keypoints may be, (H, W) bool of the photograph's `upright_size`: false where the mask is black.

    As in COLMAP it is the colour that tells, of transparent pixels too: what was cut out is mostly see-through black.
    Raises ImageError if it can't be read or isn't as large as the photograph.
    """
    with opened(path, max_pixels=0) as image:
        if (size := size_in_file(image)) != photograph.stored_size:
            there, here = ("x".join(map(str, each)) for each in (size, photograph.stored_size))
            raise ImageError(
                f"{path}: mask of {there}, but its image has {here} pixels; "
                "give one of the image as it is stored, before its EXIF orientation"
            )
        if _has_numbers(image):
            orientation = _orientation(image)
            lit = np.asarray(np.asarray(image) != 0)  # not scaled, which makes the least of labels black
            lit = turn_back(lit, orientation) if image.format == "TIFF" else lit
        else:
            pixels, _ = _decode(image, path, colour=image.mode not in {"1", "L"}, opaque=True)
            lit = np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels > 0)
    return turn_upright(lit, photograph.orientation)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, ...) as the EXIF orientation says they are looked at; a view."""
    transpose, mirror_x, mirror_y = ORIENTATIONS[orientation]
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `turn_upright`: decoders of TIFF turn it on their own."""
    transpose, mirror_x, mirror_y = ORIENTATIONS[orientation]
    pixels = pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return pixels.swapaxes(0, 1) if transpose else pixels


def to_stored(xy: np.ndarray, orientation: int, stored_size: tuple[int, int]) -> np.ndarray:
    """Points (N, 2) of the upright image in the grid of the file, which is `stored_size` (width, height) large."""
    transpose, mirror_x, mirror_y = ORIENTATIONS[orientation]
    width, height = stored_size[::-1] if transpose else stored_size
    x = width - 1 - xy[:, 0] if mirror_x else xy[:, 0]
    y = height - 1 - xy[:, 1] if mirror_y else xy[:, 1]
    return np.stack((y, x) if transpose else (x, y), axis=1)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it makes no sense; before decoding, as Pillow turns TIFFs itself."""
    if image.format == "PNG":
        image.load()  # to read EXIF, Pillow does it too, and doesn't complain of damage when it is told to do it again
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF of a sound image: Pillow raises half a dozen kinds
        return 1
    return orientation if orientation in ORIENTATIONS else 1


def _cell_decoded(image: Image.Image, enough: Callable[[int, int], tuple[int, int]], *, colour: bool) -> int:
    """Edge of the cells (1, 2, 4 or 8 pixels) that a JPEG's decoder gives one pixel for: what will do, and faster.

    Cells fill the image, so that places stay exact; cameras' sizes can be halved.
    """
    width, height = image.size
    if image.format in JPEGS and image.mode in {"L", "RGB"}:
        least = enough(width, height)
        for cell in (8, 4, 2):
            if width % cell == height % cell == 0 and width >= cell * least[0] and height >= cell * least[1]:
                image.draft("RGB" if colour else "L", (width // cell, height // cell))
                break
    return width // image.width


def _decode(image: Image.Image, path: Path, *, colour: bool, opaque: bool = False) -> tuple[np.ndarray, int]:
    """All pixels that the decoder gives, as they lie in the file, (H, W) or (H, W, 3) uint8, and EXIF's orientation.

    opaque: as if nothing were transparent.
    """
    deep_bits = _deep_colour_bits(image)  # asked first, as the next: reading EXIF may decode, and forget it
    see_through = _transparent_grey(image)
    orientation = _orientation(image)
    if image.format in JPEGS and image.mode == "RGB" and not colour:
        image.draft("L", None)  # its own luma, as OpenCV reads it: a third of the time and of the memory
    image.load()
    if deep_bits:
        deep = _read_deep_colour(path, image, deep_bits)
        pixels = _finish(deep[..., :3] if opaque and deep.ndim == 3 else deep, colour=colour)
    elif _has_numbers(image):
        values = _numbers(image)
        grey = to_eight_bits(values)
        if see_through is not None:
            grey[values == see_through] = BACKGROUND
        pixels = _finish(grey, colour=colour)
    else:
        if see_through is not None:
            image.info["transparency"] = see_through
        plain = image.convert("LA") if image.mode == "La" else image  # all that Pillow makes of it
        pixels = _read_strips(_without_alpha(plain) if opaque else plain, colour=colour)
    return (turn_back(pixels, orientation) if image.format == "TIFF" else pixels), orientation


def _has_numbers(image: Image.Image) -> bool:
    """Whether its pixels are whole numbers of more than 8 bits, or fractions, in one channel."""
    return image.mode == "F" or image.mode.startswith("I")


def _numbers(image: Image.Image) -> np.ndarray:
    """The pixels of such an image; Pillow takes whole numbers of 32 bits for signed ones."""
    values = np.asarray(image)
    if values.dtype == np.int32 and image.format == "TIFF" and _tags(image).get(NUMBERS_TAG, (1,)) == (UNSIGNED,):
        return values.view(np.uint32)
    return values


def _tags(image: Image.Image) -> Any:
    """A TIFF's, by number; of other images none."""
    return getattr(image, "tag_v2", {})


def _transparent_grey(image: Image.Image) -> int | None:
    """The value of the pixels that are transparent in a grey PNG, which Pillow doesn't scale as it does pixels."""
    key = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(key, int) or image.mode not in {"L", "I;16", "I"}:
        return None
    tiles: Any = getattr(image, "tile", ())
    largest = {"L;2": 3, "L;4": 15}.get(str(tiles[0][3]), 255)  # of so many bits a pixel
    return key * 255 // largest


def _read_strips(image: Image.Image, *, colour: bool) -> np.ndarray:
    """All pixels of an image with 8 bits a channel or less, (H, W) or (H, W, 3) uint8."""
    if "transparency" in image.info:
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    rows = max(1, STRIP_PIXELS // image.width)
    shape = (image.height, image.width, 3) if colour else (image.height, image.width)
    pixels = np.empty(shape, dtype=np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image if rows >= image.height else image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = _finish(_plain_channels(strip), colour=colour)
    return pixels


def _without_alpha(image: Image.Image) -> Image.Image:
    """The image with the colours that its transparent pixels have beneath."""
    image.info.pop("transparency", None)
    opaque = {"LA": "L", "PA": "P", "RGBA": "RGB"}.get(image.mode)
    return image if opaque is None else image.convert(opaque)


def _plain_channels(image: Image.Image) -> np.ndarray:
    """(H, W), (H, W, 2), (H, W, 3) or (H, W, 4) uint8: grey or RGB, perhaps with alpha last."""
    if image.mode in {"L", "LA", "RGB", "RGBA"}:
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.mode == "PA" else "RGB"))


def _finish(pixels: np.ndarray, *, colour: bool) -> np.ndarray:
    """Plain channels laid on the background, then made grey (H, W) or RGB (H, W, 3)."""
    if pixels.ndim == 3 and pixels.shape[2] in {2, 4}:
        alpha = pixels[..., -1:].astype(np.float32) / 255
        over = pixels[..., :-1] * alpha + BACKGROUND * (1 - alpha)
        pixels = np.rint(over).astype(np.uint8)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if colour:
        return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _deep_colour_bits(image: Image.Image) -> int:
    """Bits a channel of 16-bit colour, of which Pillow keeps the upper byte: black for a camera's 12 bits; else 0.

    Of a JPEG 2000 more than 8 bits, which it rounds up to 256 and so to black, or transparent, where they are most.
    """
    if image.mode not in {"RGB", "RGBA", "LA"}:
        return 0
    tiles: Any = getattr(image, "tile", ())
    if image.format == "PNG":
        return 16 * any("16" in str(tile[3]) for tile in tiles)
    if image.format == "PPM":
        return 16 * any("65535" in str(tile[3]) for tile in tiles)
    if image.format == "JPEG2000":
        bits = _jpeg2000_bits(image)
        return bits if bits > 8 and image.mode != "LA" else 0
    return 16 * (16 in tuple(_tags(image).get(BITS_TAG, ())))


def _jpeg2000_bits(image: Image.Image) -> int:
    """Of the first channel, as the beginning of the code tells, which is near that of the file; 0 if it isn't."""
    stream: Any = getattr(image, "fp")  # noqa: B009 - until it is decoded
    stream.seek(0)
    _, start, code = stream.read(JPEG2000_HEAD).partition(JPEG2000_START)
    return (code[JPEG2000_BITS_AT] & 127) + 1 if start and len(code) > JPEG2000_BITS_AT else 0


def _read_deep_colour(path: Path, image: Image.Image, bits: int) -> np.ndarray:
    """(H, W, 3 or 4) uint8 of an image with so many bits a channel; called when Pillow found it sound.

    A fourth channel that isn't said to be alpha, such as infrared, is left out.
    """
    tags, pixels = _tags(image), None
    if tags.get(PLANES_TAG, 1) != IN_PLANES:  # these OpenCV leaves as memory happened to be
        pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(f"{path}: 16-bit colour of an unusual kind; convert it to PNG")
    if pixels.ndim == 2 or pixels.shape[2] not in {3, 4}:
        return to_eight_bits(pixels if pixels.ndim == 2 else pixels[..., 0])
    colour = to_eight_bits(cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB))
    if pixels.shape[2] == 3 or (image.format == "TIFF" and not ALPHA.intersection(tags.get(EXTRA_TAG, ())[:1])):
        return colour
    return np.concatenate((colour, (pixels[..., 3:] // ((2**bits - 1) // 255)).astype(np.uint8)), axis=2)


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Pixels of any number type as uint8 of the same shape.

    Whole numbers are scaled by the smallest usual depth (8, 10, 12, 14 or 16 bits) that holds the largest, so that a
    camera's 12 bits in a 16-bit file aren't black; where they use less than an eighth of it and still have more than
    255 steps (thermal, depth), from their smallest to their largest, as are larger and negative ones. Fractions are
    scaled from 0 to 1, to their largest where that is a little more (up to `LARGEST_FRACTION`), or to 255; negative and
    larger ones from smallest to largest. What is no number becomes the smallest.
    """
    if not (finite := np.isfinite(values)).all():
        values = np.where(finite, values, values[finite].min() if finite.any() else 0)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if low >= 0 and high <= 255:
            of_bytes = high > LARGEST_FRACTION or (high > 1 and bool((values == np.rint(values)).all()))
            low, high = 0.0, 255.0 if of_bytes else max(1.0, high)
    elif low >= 0 and high < 2**16:
        full = next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        if not 255 < high - low < full / 8:
            low, high = 0.0, full
    scale = 255 / (high - low) if high > low else 0.0
    narrow = values.dtype.itemsize <= 2 or values.dtype == np.float32
    exact = np.dtype(np.float32 if narrow and high - low < LARGEST_FLOAT32 else np.float64)
    scaled = (values.astype(exact) - low) * scale
    eight_bits: np.ndarray = np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
    return eight_bits
