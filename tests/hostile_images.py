"""Image files of every kind, whole and broken, drawn here; shared by the tests of reading and of extracting."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

ORIENTATION_TAG = 0x0112
STORED_FROM_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera lays an upright picture into its file, for each EXIF orientation but 1."""


def drawn(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """A colourful picture with corners and texture, (H, W, 3) uint8 RGB that uses the whole range."""
    random = np.random.default_rng(seed)
    pixels = cv2.resize(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), (width, height))
    for _ in range(12):
        x, y = random.integers(0, width), random.integers(0, height)
        colour = [int(value) for value in random.integers(0, 256, 3)]
        cv2.rectangle(pixels, (int(x), int(y)), (int(x) + 14, int(y) + 11), colour, -1)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


def encoded(pixels: np.ndarray, kind: str, *, mode: str | None = None, orientation: int = 1) -> bytes:
    """A picture (H, W[, C]) as a file of this kind, stored as `orientation` says, losslessly where the kind can."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    if orientation != 1:
        image = image.transpose(STORED_FROM_UPRIGHT[orientation])
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    turned = {"exif": exif} if kind in {"PNG", "TIFF", "WEBP", "JPEG"} else {}
    stream = io.BytesIO()
    image.save(stream, kind, **lossless, **turned)
    return stream.getvalue()


def encoded_with(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """A picture as a file of this kind, written with an encoder's own options."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def deep(pixels: np.ndarray, suffix: str) -> bytes:
    """A uint16 or float picture, RGB(A) or grey, as a .png, .tiff, .ppm or .jp2."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    bgr = pixels if pixels.ndim == 2 else pixels[..., order[pixels.shape[2]]]
    done, content = cv2.imencode(suffix, bgr)
    assert done
    return content.tobytes()


def deep_turned_tiff(pixels: np.ndarray, orientation: int) -> bytes:
    """An uncompressed TIFF of upright 16-bit RGB (H, W, 3), stored as `orientation` says: no encoder here makes one."""
    channels = [np.asarray(Image.fromarray(channel.astype(np.int32))) for channel in np.moveaxis(pixels, 2, 0)]
    if orientation != 1:
        turn = STORED_FROM_UPRIGHT[orientation]
        channels = [np.asarray(Image.fromarray(channel).transpose(turn)) for channel in channels]
    return raw_tiff(np.stack(channels, axis=2).astype(np.uint16), {ORIENTATION_TAG: orientation})


def raw_tiff(stored: np.ndarray, tags: dict[int, int]) -> bytes:
    """An uncompressed TIFF of whole numbers (H, W, C), with further tags; its channels in planes if tag 284 says so."""
    height, width, count = stored.shape
    in_planes = tags.get(284) == 2
    planes = list(np.moveaxis(stored, 2, 0)) if in_planes else [stored]
    places = np.cumsum([0, *(plane.nbytes for plane in planes)])
    lists = {258: (3, [8 * stored.itemsize] * count), 279: (4, [plane.nbytes for plane in planes]), 273: (4, [])}
    single = {256: width, 257: height, 259: 1, 262: 2 if count > 1 else 1, 277: count, 278: height} | tags
    entries = {tag: (3 if value < 2**16 else 4, [value]) for tag, value in single.items()} | lists
    after = 8 + 2 + 12 * len(entries) + 4
    data_at = after + sum(len(values) * (2 if kind == 3 else 4) for kind, values in entries.values()) + 8 * count
    entries[273] = 4, [data_at + int(place) for place in places[:-1]]
    head, beyond = b"II*\0" + struct.pack("<IH", 8, len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        head += struct.pack("<HHI", tag, kind, len(values))
        head += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", after + len(beyond))
        beyond += packed if len(packed) > 4 else b""
    content = (head + struct.pack("<I", 0) + beyond).ljust(data_at, b"\0")
    return content + b"".join(plane.astype(plane.dtype.newbyteorder("<")).tobytes() for plane in planes)


def raw_png(width: int, height: int, bits: int, data: bytes, **chunks: bytes) -> bytes:
    """A grey PNG of bits as they lie in its rows, each of which begins with the number of its filter."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in {"IHDR": header, **chunks, "IDAT": zlib.compress(data), "IEND": b""}.items():
        kind = name.encode()
        content += struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
    return content


def bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of a few bytes whose header claims this size."""
    return raw_png(width, height, 8, bytes(1000))


def whole_files() -> dict[str, bytes]:
    """Sound files by name: formats, colour modes, depths, orientations, sizes, strange names, wrong suffixes."""
    picture = drawn()
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    files = {f"format.{kind.lower()}": encoded(picture, kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "PPM")}
    files |= {f"other.{kind.lower()}": encoded(picture, kind) for kind in ("BMP", "GIF", "TGA")}
    for mode in ("L", "LA", "RGBA", "P", "1"):
        files[f"mode_{mode}.png"] = encoded(picture, "PNG", mode=mode)
    files["mode_CMYK.jpg"] = encoded(picture, "JPEG", mode="CMYK")
    files["mode_L.jpg"] = encoded(picture, "JPEG", mode="L")
    files["mode_CMYK.tif"] = encoded(picture, "TIFF", mode="CMYK")
    files["mode_L.pgm"] = encoded(picture, "PPM", mode="L")
    for suffix in (".png", ".tiff"):
        for name, factor in (("16", 257), ("12", 16)):
            files[f"colour_{name}{suffix}"] = deep(picture.astype(np.uint16) * factor, suffix)
            files[f"grey_{name}{suffix}"] = deep(grey.astype(np.uint16) * factor, suffix)
    files["float.tiff"] = deep(grey.astype(np.float32) / 255, ".tiff")
    for orientation in range(1, 9):
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            files[f"turned_{orientation}.{kind.lower()}"] = encoded(picture, kind, orientation=orientation)
        files[f"turned_deep_{orientation}.tif"] = deep_turned_tiff(picture.astype(np.uint16) * 257, orientation)
    for width, height in ((1, 1), (2, 1), (1, 40), (3, 3), (31, 33), (7, 300)):
        files[f"small_{width}x{height}.png"] = encoded(drawn(304, 64)[:height, :width], "PNG")
    for name in (
        "with space.png",
        "ünïcödé 写真.png",
        "line\nbreak.png",
        "tab\t.png",
        "'quotes\".png",
        "100%.png",
        "-o.png",
    ):
        files[name] = encoded(picture, "PNG")
    files |= {
        "is_png.jpg": encoded(picture, "PNG"),
        "is_jpeg.png": encoded(picture, "JPEG"),
        "UPPER.JPG": files["format.jpeg"],
    }
    files |= {
        "progressive.jpg": encoded_with(picture, "JPEG", progressive=True),
        "lzw.tif": encoded_with(picture, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded_with(picture, "TIFF", compression="jpeg"),
        "pages.tif": encoded_with(picture, "TIFF", save_all=True, append_images=[Image.fromarray(grey)]),
        "animated.gif": encoded_with(picture, "GIF", save_all=True, append_images=[Image.fromarray(picture[::-1])]),
        "animated.webp": encoded_with(picture, "WEBP", save_all=True, append_images=[Image.fromarray(picture[::-1])]),
        "stereo.mpo": encoded_with(picture, "MPO", save_all=True, append_images=[Image.fromarray(picture[::-1])]),
        "trailing.jpg": encoded(picture, "JPEG") + bytes(999),
    }
    files["even.png"] = encoded(np.full((64, 64), 77, dtype=np.uint8), "PNG")
    return files


def broken_files() -> dict[str, bytes]:
    """Files that hold no picture, or a damaged one, by name."""
    picture, random = drawn(), np.random.default_rng(0)
    files = {"empty.jpg": b"", "text.png": b"not an image\n", "zeros.jpg": bytes(5000)}
    files |= {"bomb.png": bomb(), "long_bomb.png": bomb(2**31 - 1, 1), "even_larger_bomb.jpg": bomb(2**30, 2**30)}
    files["bomb.gif"] = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9)
    files["bomb.bmp"] = b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
    files["bomb.ppm"] = b"P6 1000000 1000000 255\n" + bytes(100)
    files |= {"pdf.png": b"%PDF-1.7\n", "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}
    files |= {"svg.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "zip.jpg": b"PK\x03\x04"}
    files["heic.heic"] = struct.pack(">I", 24) + b"ftypheic" + bytes(12)
    files["hdf5.tif"] = b"\x89HDF\r\n\x1a\n" + bytes(200)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "PPM", "BMP", "GIF"):
        content = encoded(picture, kind)
        for tenth in range(1, 10):
            files[f"cut_{tenth}.{kind.lower()}"] = content[: len(content) * tenth // 10]
        files[f"head_only.{kind.lower()}"] = content[:24]
    whole = bytearray(encoded(picture, "PNG"))
    whole[len(whole) // 2] ^= 255
    files["flipped_bit.png"] = bytes(whole)
    plain = bytearray(encoded_with(picture, "PNG"))  # without EXIF, which Pillow decodes it to look for
    for tenth in range(2, 9):
        plain[len(plain) * tenth // 10] ^= 4
        files[f"plain_flipped_{tenth}.png"] = bytes(plain)
        plain[len(plain) * tenth // 10] ^= 4
    files["planes.tif"] = raw_tiff(picture.astype(np.uint16) * 257, {284: 2})
    for size in (1, 8, 100, 5000):
        files[f"random_{size}.jpg"] = random.bytes(size)
        for magic in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF", b"P6 ", b"GIF89a", b"BM"):
            files[f"random_{magic[:3].hex()}_{size}.png"] = magic + random.bytes(size)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by name into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
