"""The pixels in which keypoints were found: as the file lies, as large as the network saw it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn import drawn_photograph
from PIL import Image

from sekd_cli.errors import ImageError
from sekd_cli.images import Photograph, read_image
from sekd_cli.level_sizes import finest_of, pixel_size
from sekd_cli.seen_pixels import SeenPhotograph, align_matches, seen_pixels

WIDTH, HEIGHT = 192, 160


@pytest.mark.parametrize("orientation", range(1, 9))
def test_they_lie_as_the_file_does(tmp_path: Path, orientation: int) -> None:
    stored = drawn_photograph(0)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    seen = SeenPhotograph(tmp_path / "turned.png", (WIDTH, HEIGHT), None).read()
    np.testing.assert_array_equal(seen.grey, stored)
    assert seen.scale.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("scales", "size"),
    [
        (None, (3200, 1000)),  # what extraction leaves of it by default
        (np.array([2.0, 4.0, 2.0]), (3200, 1000)),
        (np.array([3.2]), (2000, 625)),
        (np.array([0.5, 1.0]), (6400, 2000)),  # what was enlarged has no more in it
        (np.empty(0), (3200, 1000)),
        (np.array([0.0, 2.0, np.nan, -1.0]), (3200, 1000)),  # other tools' may be anything
    ],
)
def test_they_are_the_finest_that_the_network_saw(scales: np.ndarray | None, size: tuple[int, int]) -> None:
    photograph = Photograph(pixels=np.zeros((2000, 6400), np.uint8), orientation=1, stored_size=(6400, 2000))
    if scales is None or not len(scales):
        size = (1600, 500)
    seen = seen_pixels(photograph, (6400, 2000), finest_of(scales))
    assert seen.grey.shape == size[::-1]
    np.testing.assert_allclose(seen.scale, size[0] / 6400)
    assert pixel_size((6400, 2000), finest_of(scales)) == pytest.approx(6400 / size[0])


@pytest.mark.parametrize("scale", [0, np.nan, np.inf, -1, 1e30])
def test_scales_of_other_tools_that_are_none_tell_nothing(scale: float) -> None:
    photograph = Photograph(pixels=np.zeros((20, 3200), np.uint8), orientation=1, stored_size=(3200, 20))
    scales = np.full(3, scale, np.float32)
    assert seen_pixels(photograph, None, finest_of(scales)).grey.shape == (10, 1600)
    assert pixel_size((3200, 20), finest_of(scales)) == 2


@pytest.mark.parametrize("size", [(0, 0), (3, 0), (-3, 5)])
def test_an_image_of_no_size_has_pixels_as_seen(size: tuple[int, int]) -> None:
    """As of no keypoints from another tool, of which nothing tells the size."""
    assert pixel_size(size, None) == 1


def test_a_photograph_wider_than_opencv_samples_is_aligned_at_less() -> None:
    rng = np.random.default_rng(0)
    blurred = cv2.GaussianBlur(rng.integers(0, 256, (50, 40_000), np.uint8), None, 2)
    seen = seen_pixels(Photograph(pixels=blurred, orientation=1, stored_size=(40_000, 50)), None, 1.0)
    assert seen.grey.shape[1] < 2**15 - 1
    xy = np.column_stack((rng.uniform(100, 39_900, 30), np.full(30, 25))).astype(np.float32)
    found = align_matches((seen, seen), xy, xy + np.float32([1, 0.5]), np.tile(np.eye(2), (30, 1, 1)))
    assert (found.correlations > 0).mean() > 0.8
    np.testing.assert_allclose(np.median(found.offsets, axis=0), [-1, -0.5], atol=0.05)
    assert pixel_size((40_000, 50), 1.0) == pytest.approx(1 / seen.scale[0])


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    pixels = cv2.resize(drawn_photograph(0), (1600, 1280))
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    seen = SeenPhotograph(tmp_path / "large.jpg", (1600, 1280), 4.0).read()
    assert seen.grey.shape == (320, 400)
    assert seen.scale.tolist() == [0.25, 0.25]


def test_a_photograph_that_is_deleted_while_it_is_read_is_told_as_any_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gone.png"
    Image.fromarray(drawn_photograph(0)).save(path)

    def read_and_deleted(path: Path, **options: Any) -> Photograph:
        photograph = read_image(path, **options)
        path.unlink()
        return photograph

    monkeypatch.setattr("sekd_cli.seen_pixels.read_image", read_and_deleted)
    with pytest.raises(ImageError, match=f"{path}: no such file"):
        SeenPhotograph(path, None, None).read()


def test_another_photograph_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "other.png"
    Image.fromarray(drawn_photograph(0)).save(path)
    with pytest.raises(ImageError, match=f"{path}: 192x160 pixels, but its features are of 160x192"):
        SeenPhotograph(path, (HEIGHT, WIDTH), None).read()
    assert SeenPhotograph(path, None, None).read().grey.shape == (HEIGHT, WIDTH)  # where nothing tells the size


def test_alignments_are_in_pixels_of_the_files() -> None:
    """One photograph is stored at three times the size along x and twice along y."""
    grey = cv2.imread(str(Path(__file__).parents[1] / "examples" / "china.jpg"), cv2.IMREAD_GRAYSCALE)[:300, :400]
    first = seen_pixels(Photograph(pixels=grey, orientation=1, stored_size=(400, 300)), None, None)
    second = first._replace(scale=np.array([1 / 3, 1 / 2]))
    corners = cv2.goodFeaturesToTrack(grey[20:-20, 20:-20], 100, 0.01, 8)[:, 0] + 20
    size = np.float32([3, 2])
    there = (corners + 0.5) * size - 0.5
    off = np.random.default_rng(0).uniform(-1, 1, corners.shape).astype(np.float32) * size
    found = align_matches((first, second), corners, there + off)
    fits = found.correlations > 0
    assert fits.mean() > 0.8
    np.testing.assert_allclose(np.median(np.abs(found.offsets + off)[fits] / size, axis=0), 0, atol=0.08)
    np.testing.assert_allclose(np.median(found.affines[fits], axis=0), np.diag(size), atol=0.1)
    again = align_matches((first, second), corners, there + off, found.affines)
    np.testing.assert_allclose(again.offsets, found.offsets, atol=1e-3)
