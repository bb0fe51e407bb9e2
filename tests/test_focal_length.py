"""Focal lengths from EXIF data."""

from fractions import Fraction
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from sekd_cli.errors import ImageError
from sekd_cli.focal_length import read_focal_length

TAGS = ExifTags.Base


def photograph(path: Path, tags: dict[int, object], orientation: int = 1) -> Path:
    """A photograph of 360 x 240 pixels with these EXIF tags."""
    exif = Image.Exif()
    exif[TAGS.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    exif[ExifTags.IFD.Exif] = 0  # any number: a TIFF is saved without them otherwise
    Image.new("L", (360, 240)).save(path, exif=exif)
    return path


def test_a_35_mm_equivalent_is_of_the_diagonal(tmp_path: Path) -> None:
    # The frame of a film is 36 mm wide, so at 36 mm the image is as wide as the focal length.
    path = photograph(tmp_path / "a.jpg", {TAGS.FocalLengthIn35mmFilm: 36})
    assert read_focal_length(path) == pytest.approx(360, rel=1e-4)


@pytest.mark.parametrize(("unit", "resolution"), [(2, 254), (3, 100), (4, 10), (5, 0.01), (None, 254)])
def test_otherwise_the_resolution_of_the_sensor_tells(tmp_path: Path, unit: int | None, resolution: float) -> None:
    # 10 pixels a mm times 50 mm, in a photograph shrunk from 720 pixels to half. Without a unit it is inches.
    tags = {
        TAGS.FocalLength: Fraction(50),
        TAGS.FocalPlaneXResolution: Fraction(resolution),
        TAGS.ExifImageWidth: 720,
    }
    if unit is not None:
        tags[TAGS.FocalPlaneResolutionUnit] = unit
    exif = {tag: IFDRational(value) if isinstance(value, Fraction) else value for tag, value in tags.items()}
    assert read_focal_length(photograph(tmp_path / "a.jpg", exif)) == pytest.approx(250)


@pytest.mark.parametrize(
    ("taken", "shrunk", "diagonal"),
    [
        ((360, 240), 1, 432.67),
        ((240, 360), 1, 432.67),  # turned since, pixels and all
        ((720, 480), 0.5, 432.67),
        ((480, 720), 0.5, 432.67),
        ((480, 240), 1, 536.66),  # cropped to the left or right
        ((720, 600), 0.5, 468.62),  # shrunk, then cropped above or below
    ],
)
def test_focal_lengths_are_of_the_photograph_as_it_was_taken(
    tmp_path: Path, taken: tuple[int, int], shrunk: float, diagonal: float
) -> None:
    size = {TAGS.ExifImageWidth: taken[0], TAGS.ExifImageHeight: taken[1]}
    sensor = {TAGS.FocalLength: IFDRational(50), TAGS.FocalPlaneXResolution: 100, TAGS.FocalPlaneResolutionUnit: 3}
    assert read_focal_length(photograph(tmp_path / "a.jpg", sensor | size)) == pytest.approx(500 * shrunk)
    film = {TAGS.FocalLengthIn35mmFilm: 50}
    focal = read_focal_length(photograph(tmp_path / "b.jpg", film | size))
    assert focal == pytest.approx(50 / 43.267 * diagonal, rel=1e-4)
    of_a_copy = read_focal_length(photograph(tmp_path / "b.jpg", film | size), (90, 60))
    assert of_a_copy == pytest.approx(50 / 43.267 * diagonal / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("told", "focal"), [({}, 500), ({TAGS.ExifImageWidth: 720}, 250), ({TAGS.ExifImageHeight: 480}, 250)]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_edge_that_is_not_told_is_in_proportion_as_stored(
    tmp_path: Path, told: dict[int, object], focal: float, orientation: int
) -> None:
    tags = {TAGS.FocalLength: IFDRational(50), TAGS.FocalPlaneXResolution: 100, TAGS.FocalPlaneResolutionUnit: 3}
    assert read_focal_length(photograph(tmp_path / "a.tif", tags | told, orientation)) == pytest.approx(focal)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {TAGS.FocalLengthIn35mmFilm: 0},
        {TAGS.FocalLength: IFDRational(50)},
        {TAGS.FocalLength: IFDRational(1, 0), TAGS.FocalPlaneXResolution: IFDRational(1, 0)},
        {TAGS.FocalLength: "long", TAGS.FocalPlaneXResolution: "many"},
        {TAGS.FocalLength: "inf", TAGS.FocalPlaneXResolution: "10"},
        {TAGS.FocalLength: "-50", TAGS.FocalPlaneXResolution: "10"},
        {TAGS.FocalLength: IFDRational(50), TAGS.FocalPlaneXResolution: 10, TAGS.FocalPlaneResolutionUnit: 9},
    ],
)
def test_data_that_tell_nothing_give_none(tmp_path: Path, tags: dict[int, object]) -> None:
    assert read_focal_length(photograph(tmp_path / "a.tif", tags)) is None


def test_a_photograph_of_more_pixels_than_pillow_opens_has_its_focal_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photograph(tmp_path / "a.jpg", {TAGS.FocalLengthIn35mmFilm: 36})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_focal_length(path) == pytest.approx(360, rel=1e-4)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for name, complaint in (("a.jpg", "can't read its EXIF data"), ("missing.jpg", "no such file; check the path")):
        with pytest.raises(ImageError, match=f"{name}: {complaint}"):
            read_focal_length(tmp_path / name)
