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
    """A uint16 or float picture, RGB(A) or grey, as a .png or .tiff."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    done, content = cv2.imencode(suffix, pixels if pixels.ndim == 2 else pixels[..., order[pixels.shape[2]]])
    assert done
    return content.tobytes()


def deep_turned_tiff(pixels: np.ndarray, orientation: int) -> bytes:
    """An uncompressed TIFF of upright 16-bit RGB (H, W, 3), stored as `orientation` says: no encoder here makes one."""
    channels = [np.asarray(Image.fromarray(channel.astype(np.int32))) for channel in np.moveaxis(pixels, 2, 0)]
    if orientation != 1:
        turn = STORED_FROM_UPRIGHT[orientation]
        channels = [np.asarray(Image.fromarray(channel).transpose(turn)) for channel in channels]
    stored = np.stack(channels, axis=2).astype("<u2")
    height, width, count = stored.shape
    entries = 10
    bits_at = 8 + 2 + 12 * entries + 4
    data_at = bits_at + 2 * count
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    for tag, kind, number, value in (
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, count, bits_at),
        (259, 3, 1, 1),  # uncompressed
        (262, 3, 1, 2),  # RGB
        (273, 4, 1, data_at),
        (274, 3, 1, orientation),
        (277, 3, 1, count),
        (278, 4, 1, height),
        (279, 4, 1, stored.nbytes),
    ):
        head += struct.pack("<HHII", tag, kind, number, value)
    return head + struct.pack("<I", 0) + struct.pack(f"<{count}H", *[16] * count) + stored.tobytes()


def bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of a few bytes whose header claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


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
