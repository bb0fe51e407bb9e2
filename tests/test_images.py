import contextlib
import errno
import os
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from hostile_images import (
    bomb,
    broken_files,
    deep,
    deep_turned_tiff,
    drawn,
    encoded,
    encoded_with,
    raw_png,
    raw_tiff,
    whole_files,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sekd_cli import image_opening, images
from sekd_cli.errors import ImageError
from sekd_cli.images import read_image, read_image_size, read_mask, to_eight_bits, to_stored, turn_back, turn_upright
from sekd_cli.workers import CAN_FORK, Worker

PICTURE = drawn()
GREY = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY)
WHOLE, BROKEN = whole_files(), broken_files()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


def read(path: Path, content: bytes) -> np.ndarray:
    """Grey pixels of a file with this content."""
    path.write_bytes(content)
    return read_image(path).pixels


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "PPM", "BMP", "TGA", "JPEG2000"])
def test_grey_is_the_same_for_every_format(path: Path, kind: str) -> None:
    np.testing.assert_array_equal(read(path, encoded(PICTURE, kind)), GREY)
    np.testing.assert_array_equal(read_image(path, colour=True).pixels, PICTURE)


def test_grey_is_the_usual_weighting(path: Path) -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]], dtype=np.uint8)
    np.testing.assert_array_equal(read(path, encoded(pixels, "PNG")), [[76, 150, 29, 255, 18]])


@pytest.mark.parametrize("mode", [None, "L", "CMYK"])
def test_jpeg_is_read_but_for_its_own_losses(path: Path, mode: str | None) -> None:
    smooth = cv2.GaussianBlur(PICTURE, (0, 0), 2)
    grey = cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY)
    assert np.abs(read(path, encoded(smooth, "JPEG", mode=mode)).astype(int) - grey).max() <= 6


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "I;16"), ("TIFF", "L"), ("TIFF", "I"), ("TIFF", "I;16"), ("TIFF", "F")]
)
def test_grey_images_of_any_depth_keep_their_values(path: Path, kind: str, mode: str) -> None:
    assert np.abs(read(path, encoded(GREY, kind, mode=mode)).astype(int) - GREY).max() <= 1


def test_fractions_are_scaled_not_blacked_out(path: Path) -> None:
    Image.fromarray((GREY / 255).astype(np.float32)).save(path, "TIFF")
    np.testing.assert_array_equal(read_image(path).pixels, GREY)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("factor", [16, 64, 257], ids=["12 bits", "14 bits", "16 bits"])
def test_more_than_eight_bits_are_scaled_not_blacked_out(path: Path, suffix: str, factor: int) -> None:
    """Twelve bits in a 16-bit file are what cameras give; taking the upper byte would leave 15 grey levels."""
    opaque = np.full((*GREY.shape, 1), 65535, dtype=np.uint16)
    colour = PICTURE.astype(np.uint16) * factor
    for pixels in (GREY.astype(np.uint16) * factor, colour, np.concatenate((colour, opaque), axis=2)):
        assert np.abs(read(path, deep(pixels, suffix)).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(("suffix", "channels"), [(".ppm", 3), (".jp2", 3), (".jp2", 4), (".j2k", 3)])
@pytest.mark.parametrize("factor", [16, 64, 257], ids=["12 bits", "14 bits", "16 bits"])
def test_deep_colour_is_scaled_in_the_formats_of_scanners_and_satellites_too(
    path: Path, suffix: str, channels: int, factor: int
) -> None:
    opaque = np.full((*GREY.shape, 1), 65535, dtype=np.uint16)
    colour = np.concatenate((PICTURE.astype(np.uint16) * factor, opaque), axis=2)[..., :channels]
    content = deep(colour, ".jp2" if suffix == ".j2k" else suffix)
    if suffix == ".j2k":
        content = content[content.index(b"\xff\x4f\xff\x51") :]  # the code alone
    assert np.abs(read(path, content).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_white_in_a_jpeg_2000_of_fewer_bits_stays_white_and_what_is_opaque_opaque(
    path: Path, bits: int, channels: int
) -> None:
    """Pillow makes it black, or clear. No encoder here writes one: a file of 16 bits is said to be of fewer, its
    middle moved.
    """
    largest = 2**bits - 1
    opaque = np.full((*GREY.shape, 1), largest)
    values = np.concatenate((np.rint(PICTURE * (largest / 255)), opaque), axis=2)[..., :channels].astype(np.uint16)
    content = bytearray(deep(values + 2**15 - 2 ** (bits - 1), ".jp2"))
    first, header = content.index(b"\xff\x4f\xff\x51") + 42, content.index(b"ihdr")
    for place in (*range(first, first + 3 * channels, 3), header + 14):
        assert content[place] == 16 - 1
        content[place] = bits - 1
    assert np.abs(read(path, bytes(content)).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(("largest", "told"), [(4095, 4095), (65535, 65535), (4095, 65535)])
def test_ppm_of_numbers_in_text_or_of_fewer_bits_is_read(path: Path, largest: int, told: int) -> None:
    values = np.rint(PICTURE.astype(float) * (largest / 255)).astype(">u2")
    size = f"{GREY.shape[1]} {GREY.shape[0]} {told}\n"
    text = " ".join(map(str, values.ravel()))
    for content in (f"P6 {size}".encode() + values.tobytes(), f"P3 {size}{text}\n".encode()):
        assert np.abs(read(path, content).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 7, 255], dtype=np.uint16), [0, 7, 255]),
        (np.array([0, 1023], dtype=np.uint16), [0, 255]),
        (np.array([0, 2048, 4095], dtype=np.uint16), [0, 128, 255]),
        (np.array([0, 32768, 65535], dtype=np.int32), [0, 128, 255]),
        (np.array([20000, 20500, 21000], dtype=np.uint16), [0, 128, 255]),  # thermal: a small part of the range
        (np.array([20000, 20100], dtype=np.uint16), [78, 78]),  # but noise is not blown up
        (np.array([20000, 28000], dtype=np.uint16), [0, 255]),
        (np.array([20000, 28400], dtype=np.uint16), [78, 111]),  # more than an eighth
        (np.array([0, 256], dtype=np.uint16), [0, 64]),
        (np.array([-100, 100], dtype=np.int32), [0, 255]),
        (np.array([0, 2**16], dtype=np.int32), [0, 255]),
        (np.array([0, 2**20], dtype=np.int32), [0, 255]),
        (np.array([0, 0.5, 1], dtype=np.float32), [0, 128, 255]),
        (np.array([0, 0.25, 0.5], dtype=np.float32), [0, 64, 128]),
        (np.array([10, 99.6, 255], dtype=np.float32), [10, 100, 255]),
        (np.array([0, 7.4, 70.4], dtype=np.float32), [0, 7, 70]),
        (np.array([0, 30.1, 60.2], dtype=np.float32), [0, 128, 255]),  # metres
        (np.array([-1, 0, 3], dtype=np.float32), [0, 64, 255]),
        (np.array([np.nan, 0, 1, np.inf], dtype=np.float32), [0, 0, 255, 0]),
        (np.array([5, 5], dtype=np.float32), [5, 5]),
        (np.array([1e6, 1e6], dtype=np.float32), [0, 0]),
        (np.array([0, 0.5, 1.0000001]), [0, 127, 255]),
        (np.array([0, 1.5, 3], dtype=np.float32), [0, 128, 255]),
        (np.array([0, 7, 60], dtype=np.float32), [0, 7, 60]),  # whole numbers are bytes
        (np.array([-3e38, 0, 3e38], dtype=np.float32), [0, 128, 255]),
        (np.array([1000, np.nan, 1050]), [0, 0, 255]),
        (np.array([np.nan, np.inf]), [0, 0]),
        (2**40 + np.array([0, 4, 8]), [0, 128, 255]),
        (np.array([0, 5e299, 1e300]), [0, 128, 255]),
        (np.array([4_000_000_000, 4_000_000_500, 4_000_001_000], dtype=np.uint32), [0, 128, 255]),
    ],
)
def test_the_scale_of_other_number_types(values: np.ndarray, expected: list[int]) -> None:
    np.testing.assert_array_equal(to_eight_bits(values), expected)


def test_deep_colour_that_nothing_reads_is_told(path: Path) -> None:
    with pytest.raises(ImageError, match="16-bit colour of an unusual kind; convert it to PNG"):
        read(path, raw_tiff(PICTURE.astype(np.uint16) * 257, {284: 2}))  # in planes


@pytest.mark.parametrize(("mode", "colour"), [(None, False), ("L", False), (None, True)])
@pytest.mark.parametrize(("least", "cell"), [(160, 1), (80, 2), (41, 2), (40, 4), (20, 8), (3, 8)])
def test_a_jpeg_is_decoded_no_larger_than_it_must(
    path: Path, mode: str | None, colour: bool, least: int, cell: int
) -> None:
    smooth = cv2.GaussianBlur(cv2.resize(PICTURE, (160, 120)), (0, 0), 4)
    path.write_bytes(encoded(smooth, "JPEG", mode=mode, orientation=6))
    photograph = read_image(
        path, colour=colour, enough=lambda width, height: (width * least // 160, height * least // 160)
    )
    assert photograph.stored_size == (120, 160)
    assert photograph.upright_size == (160, 120)
    expected = smooth if colour else cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY)
    means = cv2.resize(expected, (160 // cell, 120 // cell), interpolation=cv2.INTER_AREA)
    assert photograph.pixels.shape == means.shape
    assert np.abs(photograph.pixels.astype(int) - means).max() <= 8


@pytest.mark.parametrize("more", [(1, 0), (0, 1)])
def test_a_jpeg_is_decoded_no_smaller_than_either_edge_needs(path: Path, more: tuple[int, int]) -> None:
    path.write_bytes(encoded(PICTURE, "JPEG"))
    photograph = read_image(path, enough=lambda width, height: (width // 2 + more[0], height // 2 + more[1]))
    assert photograph.pixels.shape == GREY.shape


def test_a_mask_of_the_files_size_fits_a_jpeg_decoded_smaller(path: Path, tmp_path: Path) -> None:
    picture = cv2.resize(PICTURE, (160, 120))
    path.write_bytes(encoded_with(picture, "MPO", save_all=True, append_images=[Image.fromarray(picture)]))
    mask = np.zeros((120, 160), np.uint8)
    mask[:, :50] = 255
    (tmp_path / "mask.png").write_bytes(encoded(mask, "PNG"))
    photograph = read_image(path, enough=lambda width, height: (width // 4, height // 4))
    assert photograph.pixels.shape == (30, 40)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", photograph), mask > 0)


@pytest.mark.parametrize(
    ("kind", "mode", "size", "colour"),
    [
        ("JPEG", None, (161, 120), False),  # cells would reach beyond the image
        ("JPEG", None, (160, 121), False),
        ("JPEG", "CMYK", (160, 120), False),
        ("JPEG", "CMYK", (160, 120), True),
        ("PNG", None, (160, 120), False),
    ],
)
def test_what_can_not_be_decoded_smaller_is_whole(
    path: Path, kind: str, mode: str | None, size: tuple[int, int], colour: bool
) -> None:
    path.write_bytes(encoded(cv2.resize(PICTURE, size), kind, mode=mode))
    photograph = read_image(path, colour=colour, enough=lambda width, height: (width // 10, height // 10))
    np.testing.assert_array_equal(photograph.pixels, read_image(path, colour=colour).pixels)
    assert photograph.stored_size == size


def test_transparent_pixels_are_mid_grey(path: Path) -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, :3] = 200
    pixels[0, :, 3] = 0, 255, 51  # a fifth
    np.testing.assert_array_equal(read(path, encoded(pixels, "PNG")), [[128, 200, 142]])
    np.testing.assert_array_equal(read_image(path, colour=True).pixels[0, :, 0], [128, 200, 142])
    grey = encoded(pixels[..., [0, 3]], "PNG")
    np.testing.assert_array_equal(read(path, grey), [[128, 200, 142]])
    np.testing.assert_array_equal(read(path, deep(pixels.astype(np.uint16) * 257, ".png")), [[128, 200, 142]])


def test_transparency_by_colour_and_palette_is_seen(path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 10, 10, 240, 240, 240])
    image.save(path, "PNG", transparency=0)
    np.testing.assert_array_equal(read_image(path).pixels, [[128, 240, 240]])
    Image.fromarray(np.array([[7, 9]], dtype=np.uint8)).save(path, "PNG", transparency=7)
    np.testing.assert_array_equal(read_image(path).pixels, [[128, 9]])


def test_transparency_of_palette_tiffs_is_seen(path: Path) -> None:
    image = Image.frombytes("PA", (3, 1), bytes([1, 0, 0, 255, 0, 51]))  # some Pillows convert to it without alpha
    image.putpalette([200] * 3 + [0] * 3)
    image.save(path, "TIFF")
    np.testing.assert_array_equal(read_image(path).pixels, [[128, 200, 142]])
    assert read_mask(path, read_image(path)).tolist() == [[False, True, True]]


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="needs a Pillow that reads them")
def test_transparency_of_grey_tiffs_multiplied_by_their_alpha_is_seen(path: Path) -> None:
    content = raw_tiff(np.array([[[0, 0], [200, 255], [40, 51]]], np.uint8), {338: 1, 262: 1})
    np.testing.assert_array_equal(read(path, content), [[128, 200, 142]])
    assert read_mask(path, read_image(path)).tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (2, [0b00_01_10_11], 1, [0, 128, 170, 255]),
        (4, [0x0F, 0xF7], 15, [0, 128, 128, 119]),
        (8, [0, 9, 200, 255], 200, [0, 9, 128, 255]),
        (16, [0, 0, 0, 9, 200, 0, 255, 255], 65535, [0, 0, 199, 128]),
    ],
)
def test_the_transparent_value_of_a_grey_png_is_seen(
    path: Path, bits: int, row: list[int], key: int, expected: list[int]
) -> None:
    content = raw_png(4, 1, bits, bytes([0, *row]), tRNS=key.to_bytes(2, "big"))
    np.testing.assert_array_equal(read(path, content), [expected])


@pytest.mark.parametrize(("tags", "is_alpha"), [({}, False), ({338: 0}, False), ({338: 1}, True), ({338: 2}, True)])
def test_the_fourth_channel_of_a_deep_tiff_is_alpha_where_it_says_so(
    path: Path, tags: dict[int, int], is_alpha: bool
) -> None:
    infrared = (257 * (255 - GREY.astype(np.uint16)))[..., None]
    found = read(path, raw_tiff(np.concatenate((257 * PICTURE.astype(np.uint16), infrared), axis=2), tags))
    over = 128 + (GREY.astype(float) - 128) * (255 - GREY) / 255
    assert np.abs(found - (over if is_alpha else GREY)).max() <= 2


@pytest.mark.parametrize("tags", [{}, {339: 1}, {339: 2}])
def test_whole_numbers_of_32_bits_are_signed_where_the_file_says_so(path: Path, tags: dict[int, int]) -> None:
    pixels = np.array([[[0], [2**30], [3 * 2**30], [2**32 - 1]]], np.uint32)
    expected = [128, 255, 0, 127] if tags.get(339) == 2 else [0, 64, 191, 255]
    assert np.abs(read(path, raw_tiff(pixels, tags)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_photographs_are_turned_upright_and_points_turned_back(path: Path, kind: str, orientation: int) -> None:
    path.write_bytes(encoded(PICTURE, kind, orientation=orientation))
    photograph = read_image(path)
    np.testing.assert_array_equal(photograph.pixels, GREY)
    height, width = GREY.shape
    assert photograph.orientation == orientation
    assert photograph.stored_size == ((width, height) if orientation < 5 else (height, width))

    stored = turn_back(photograph.pixels, orientation)
    xy = np.array([[0, 0], [width - 1, 0], [5, 17], [width - 1, height - 1]])
    stored_xy = to_stored(xy, photograph.orientation, photograph.stored_size)
    np.testing.assert_array_equal(stored[stored_xy[:, 1], stored_xy[:, 0]], GREY[xy[:, 1], xy[:, 0]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_are_turned_once(path: Path, orientation: int) -> None:
    content = deep_turned_tiff(PICTURE.astype(np.uint16) * 257, orientation)
    np.testing.assert_array_equal(read(path, content), GREY)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
def test_turning_and_turning_back_are_inverse(orientation: int, height: int, width: int) -> None:
    stored = np.arange(height * width).reshape(height, width)
    upright = turn_upright(stored, orientation)
    np.testing.assert_array_equal(turn_back(upright, orientation), stored)
    y, x = np.mgrid[: upright.shape[0], : upright.shape[1]].reshape(2, -1)
    back = to_stored(np.stack((x, y), axis=1), orientation, (width, height))
    np.testing.assert_array_equal(stored[back[:, 1], back[:, 0]], upright.ravel())


def test_an_orientation_that_means_nothing_is_ignored(path: Path) -> None:
    for strange in (0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = strange
        Image.fromarray(PICTURE).save(path, "PNG", exif=exif)
        assert read_image(path).orientation == 1


@pytest.mark.parametrize("exif", [b"II*\0\x08", b"neither II nor MM"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_of_a_sound_image_is_ignored(path: Path, kind: str, exif: bytes) -> None:
    Image.fromarray(PICTURE).save(path, kind, exif=b"Exif\0\0" + exif)
    found = read_image(path)
    assert (found.orientation, found.pixels.shape) == (1, PICTURE.shape[:2])


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_every_sound_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    photograph = read_image(path)
    assert photograph.pixels.dtype == np.uint8
    width, height = read_image_size(path)
    assert {width, height} == set(photograph.pixels.shape)
    assert read_image(path, colour=True).pixels.shape == (*photograph.pixels.shape, 3)


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_every_broken_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(ImageError) as raised:
        read_image(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "; " in message, "a remedy"
    assert "\n" not in message


@given(st.binary(max_size=200), st.sampled_from(sorted(name for name in WHOLE if name.startswith("format"))))
def test_damage_anywhere_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes, name: str) -> None:
    content = bytearray(WHOLE[name])
    for index in range(0, len(junk) - 1, 2):
        content[junk[index] * len(content) // 256] = junk[index + 1]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        assert read_image(path, max_pixels=10**6).pixels.size


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "TIFF"])
def test_half_a_file_is_told_as_truncated_without_counts_of_a_decoders_buffer(path: Path, kind: str) -> None:
    content = encoded(drawn(), kind)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"truncated \(image file is truncated\); copy it again") as caught:
        read_image(path)
    assert "bytes" not in str(caught.value)


def test_what_is_no_file_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        (tmp_path / "missing.jpg", "no such file"),
        (tmp_path / "pipe" / "a.jpg", "no such file"),
    ):
        with pytest.raises(ImageError, match=words):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.heic", b"", "an empty file; copy it again"),
        ("a.jpg", b"text", "not an image that sekd reads; convert it to JPEG or PNG"),
        ("a.HEIC", b"text", r"HEIC takes a package: pip install 'sekd\[heic\]'; or convert it to JPEG"),
        ("a.HIF", b"text", r"HEIC takes a package: pip install 'sekd\[heic\]'; or convert it to JPEG"),
    ],
)
def test_what_is_no_image_gets_the_remedy_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, words: str
) -> None:
    monkeypatch.setattr(image_opening, "_readable_formats", lambda: ["JPEG"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f": {words}$"):
        read_image(tmp_path / name)


def test_a_folder_that_nobody_may_list_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ImageError, match=r": permission denied; make it readable$"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), r"can't be read \(Input/output error\); copy it again"),
        (MemoryError(), "too large for the memory; make it smaller"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many files are open; raise ulimit -n"),
        (OSError("broken data"), r"damaged or truncated \(broken data\); copy it again, or convert it to PNG"),
        (ValueError("of Pillow's inside"), "damaged or truncated; copy it again, or convert it to PNG"),
    ],
)
def test_links_that_lead_in_a_circle_failing_disks_little_memory_and_damage_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    circle = tmp_path / "circle.jpg"
    circle.symlink_to(circle)
    with pytest.raises(ImageError, match=r"^\S*circle\.jpg: a link that leads in a circle; remove it$"):
        read_image(circle)
    whole = tmp_path / "whole.png"
    whole.write_bytes(encoded(GREY, "PNG"))

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(images, "_decode", failing)
    with pytest.raises(ImageError, match=rf"^\S*whole\.png: {words}$"):
        read_image(whole)


def test_more_text_than_is_read_is_told_as_that(path: Path) -> None:
    text = b"note\0\0" + zlib.compress(bytes(3_000_000))
    path.write_bytes(raw_png(2, 1, 8, bytes(3), zTXt=text))
    with pytest.raises(ImageError, match=r"more text in its metadata than is read; save it without"):
        read_image(path)


def test_bombs_are_refused_before_decoding_and_the_limit_can_be_raised(path: Path) -> None:
    path.write_bytes(bomb())
    with pytest.raises(ImageError, match="100000x100000 is more than 250 million pixels; raise --max-pixels"):
        read_image(path)
    assert read_image_size(path, max_pixels=0) == (100_000, 100_000)
    path.write_bytes(encoded(PICTURE, "PNG"))
    with pytest.raises(ImageError, match="128x96 is more than"):
        read_image(path, max_pixels=128 * 96 - 1)
    assert read_image(path, max_pixels=128 * 96).pixels.shape == (96, 128)


def test_pillows_own_limit_neither_matters_nor_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(read(path, encoded(PICTURE, "PNG")), GREY)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_large_images_are_converted_in_strips_with_the_same_result(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekd_cli.images.STRIP_PIXELS", 128 * 7)
    np.testing.assert_array_equal(read(path, encoded(PICTURE, "PNG")), GREY)
    np.testing.assert_array_equal(read(path, encoded(PICTURE, "TIFF", mode="CMYK")), GREY)


def test_a_process_that_wrote_no_image_reads_all_formats(path: Path) -> None:
    """Pillow loads what reads a format when it writes one."""
    path.write_bytes(encoded(PICTURE, "WEBP"))
    code = f"from pathlib import Path; from sekd_cli.images import read_image; read_image(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not CAN_FORK, reason="forks on Linux alone")
def test_a_process_forked_while_a_thread_opens_an_image_opens_others(path: Path) -> None:
    path.write_bytes(encoded(PICTURE, "PNG"))
    with image_opening._opening:
        worker = Worker(read_image_size)
    assert worker(path, patience=60) == PICTURE.shape[1::-1]
    worker.stop()


def test_masks_are_black_where_nothing_may_be_in_the_grid_of_the_file(path: Path, tmp_path: Path) -> None:
    stored = np.full((128, 96), 255, dtype=np.uint8)  # the picture stored on its side
    stored[:10] = 0
    mask = tmp_path / "mask.png"
    mask.write_bytes(encoded(stored, "PNG"))
    path.write_bytes(encoded(PICTURE, "JPEG", orientation=6))
    photograph = read_image(path)
    allowed = read_mask(mask, photograph)
    assert allowed.shape == photograph.pixels.shape == (96, 128)
    np.testing.assert_array_equal(turn_back(allowed, 6), stored > 0)

    mask.write_bytes(encoded(stored[:50], "PNG"))
    with pytest.raises(ImageError, match="mask of 96x50, but its image has 96x128 pixels; give one"):
        read_mask(mask, photograph)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_tiffs_are_turned_once_whatever_their_pixels_are(path: Path, mode: str, orientation: int) -> None:
    """Pillow maps raw pixels of a path into memory in the shape that the turned image has."""
    picture = GREY if mode in {"L", "I;16", "F"} else PICTURE
    upright = read(path, encoded(picture, "TIFF", mode=mode))
    np.testing.assert_array_equal(read(path, encoded(picture, "TIFF", mode=mode, orientation=orientation)), upright)
    size = GREY.shape if orientation >= 5 else GREY.shape[::-1]
    assert read_image(path).stored_size == read_image_size(path) == size


@pytest.mark.parametrize(
    "pixels",
    [
        np.array([[0, 1, 5000]], np.uint16),
        np.array([[0, 10000, 10300]], np.uint16),
        np.array([[0, 1, 5]], np.uint8),
        np.array([[[0, 0, 0], [0, 0, 4], [255, 0, 0]]], np.uint8),
    ],
)
def test_what_a_mask_has_that_is_not_black_lets_keypoints_be(path: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(encoded(np.zeros((1, 3, 3), np.uint8), "PNG"))
    mask = tmp_path / "mask.png"
    Image.fromarray(pixels).save(mask)
    assert read_mask(mask, read_image(path)).tolist() == [[False, True, True]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "deep"])
def test_what_is_black_in_a_mask_is_black_though_it_be_transparent(
    path: Path, tmp_path: Path, mode: str, suffix: str
) -> None:
    path.write_bytes(encoded(PICTURE, "PNG"))
    mask, lit = tmp_path / f"mask.{suffix}", np.zeros(GREY.shape, np.uint8)
    lit[:10, :30] = 255
    if mode == "deep":
        mask.write_bytes(cv2.imencode(f".{suffix}", np.dstack([lit.astype(np.uint16) * 257] * 4))[1].tobytes())
    elif mode == "P":
        Image.fromarray(lit).convert("P").save(mask, **({"transparency": 0} if suffix == "png" else {}))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.dstack([lit] * len(mode))).save(mask, exif=exif)
    np.testing.assert_array_equal(read_mask(mask, read_image(path)), lit > 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_masks_that_are_tiffs_are_in_the_grid_of_the_file(path: Path, tmp_path: Path, orientation: int) -> None:
    """Pillow turns a TIFF upright when it decodes, and takes its orientation away."""
    path.write_bytes(encoded(PICTURE, "PNG"))
    labels = np.zeros(GREY.shape, np.uint16)
    labels[:10, :30] = 7
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(labels).save(tmp_path / "mask.tiff", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tiff", read_image(path)), labels > 0)


def test_a_mask_may_be_as_large_as_its_photograph(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(encoded(PICTURE, "PNG"))
    photograph = read_image(path)
    monkeypatch.setattr(images, "opened", lambda path, max_pixels: image_opening.opened(path, max_pixels and 100))
    assert read_mask(path, photograph).any()


def test_a_name_too_long_for_any_file_is_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / ("z" * 300))


def test_a_phones_heic_is_read_where_its_package_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = cv2.GaussianBlur(PICTURE, (0, 0), 2)
    photo = path.with_suffix(".heic")
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(photo, quality=95)
    found = read_image(photo)
    assert found.pixels.shape == GREY.shape
    assert np.abs(found.pixels.astype(int) - cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY)).mean() < 3
    monkeypatch.setattr(image_opening, "_readable_formats", lambda: ["JPEG"])
    with pytest.raises(ImageError, match=r"sekd\[heic\]"):
        read_image(photo)
