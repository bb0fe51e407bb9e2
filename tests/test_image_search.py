import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from sekd_cli.errors import UsageError
from sekd_cli.image_opening import FORMATS, HEIC_SUFFIXES
from sekd_cli.image_search import SUFFIXES, ImageEntry, find_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images at three depths, and things that are none."""
    folder = tmp_path / "photos"
    for name in ("b.JPG", "a/c.png", "a/d/e.tif", "with space/ü.webp", "notes.txt", ".hidden.jpg", ".cache/f.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(*paths: Path | str, root: Path | None = None) -> list[str]:
    return [entry.name for entry in find_images(paths, root=root)]


EVERYTHING = ["a/c.png", "a/d/e.tif", "b.JPG", "with space/ü.webp"]


def test_a_folder_means_the_images_below_it_by_their_relative_paths(photos: Path) -> None:
    assert names(photos) == EVERYTHING
    assert names(f"{photos}/") == EVERYTHING
    assert find_images([photos])[0] == ImageEntry(photos / "a" / "c.png", "a/c.png")


def test_what_counts_as_an_image_in_a_folder_is_of_a_format_that_is_read() -> None:
    kinds = Image.registered_extensions()
    not_in_each_pillow = HEIC_SUFFIXES | {".avif"}
    assert {kinds[suffix] for suffix in SUFFIXES - not_in_each_pillow} <= set(FORMATS)
    assert HEIC_SUFFIXES <= SUFFIXES


def test_relative_folders_give_the_same_names(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos / "a")
    assert names(".") == ["c.png", "d/e.tif"]
    assert names("..") == EVERYTHING
    assert names("../a/c.png", "./d") == ["c.png", "e.tif"]


def test_a_file_is_taken_whatever_its_suffix_and_even_if_it_is_missing(photos: Path) -> None:
    assert names(photos / "notes.txt", photos / ".hidden.jpg", photos / "gone.jpg") == [
        ".hidden.jpg",
        "gone.jpg",
        "notes.txt",
    ]


def test_patterns_are_relative_to_what_stands_before_the_first_wildcard(photos: Path) -> None:
    assert names(f"{photos}/*.JPG") == ["b.JPG"]
    assert names(f"{photos}/**/*.*") == EVERYTHING
    assert names(f"{photos}/*.txt") == ["notes.txt"]
    assert names(f"{photos}/**") == EVERYTHING
    assert names(f"{photos}/a*") == ["a/c.png", "a/d/e.tif"]
    assert names(f"{photos}/a/?.png") == ["c.png"]


def test_a_pattern_for_folders_at_any_depth_means_the_images_below_them(photos: Path) -> None:
    assert names(f"{photos}/**/d") == ["a/d/e.tif"]
    assert names(f"{photos}/**/a/*") == ["a/c.png", "a/d/e.tif"]


def test_a_pattern_that_matches_nothing_stays_and_fails_when_it_is_read(photos: Path) -> None:
    assert names(f"{photos}/*.bmp") == ["*.bmp"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(photos: Path) -> None:
    (photos / "[1].jpg").touch()
    (photos / "1.jpg").touch()
    (photos / "a[b].jpg").symlink_to("gone.jpg")
    (photos / "ab.jpg").touch()
    assert names(photos / "[1].jpg", photos / "a[b].jpg") == ["[1].jpg", "a[b].jpg"]


def test_a_root_names_everything_relative_to_it(photos: Path) -> None:
    assert names(photos / "a", photos / "b.JPG", root=photos) == ["a/c.png", "a/d/e.tif", "b.JPG"]
    with pytest.raises(UsageError, match="not below"):
        names(photos / "b.JPG", root=photos / "a")


def test_a_root_may_be_reached_another_way_than_the_images_below_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a home is a link: the shell has its name, the system the real one."""
    home = tmp_path / "home"
    home.symlink_to(photos)
    (photos / "latest.jpg").symlink_to("b.JPG")
    monkeypatch.chdir(home)
    assert names(home / "a" / "c.png", home / "latest.jpg", root=Path()) == ["a/c.png", "latest.jpg"]
    assert names(photos / "a", root=home) == ["a/c.png", "a/d/e.tif"]
    with pytest.raises(UsageError, match="not below"):
        names(photos / "b.JPG", root=home / "a")


def test_two_images_of_one_name_are_an_error_that_names_both(photos: Path) -> None:
    (photos / "a" / "b.JPG").touch()
    with pytest.raises(
        UsageError, match=r"photos/b\.JPG and .*photos/a/b\.JPG would both be named b\.JPG; give --root"
    ):
        names(photos / "b.JPG", photos / "a" / "b.JPG")


def test_an_image_given_twice_is_done_once(photos: Path) -> None:
    assert names(photos, photos, photos / "b.JPG", f"{photos}/a/../b.JPG") == EVERYTHING
    assert names(photos / "gone.jpg", f"{photos}/a/../gone.jpg") == ["gone.jpg"]


def test_links_in_circles_end_and_real_folders_give_the_names(photos: Path) -> None:
    (photos / "a" / "up").symlink_to(photos)
    (photos / "0").symlink_to(photos / "a")
    (photos / "a" / "self").symlink_to("self")
    assert names(photos) == EVERYTHING


def test_linked_folders_and_files_elsewhere_are_followed(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.jpg").touch()
    for name in ("linked", "linked too"):  # of several links the first by name gives the names
        (photos / name).symlink_to(other)
    (photos / "link.jpg").symlink_to(other / "x.jpg")
    (photos / "dangling.jpg").symlink_to(other / "gone.jpg")
    assert set(names(photos)) == {*EVERYTHING, "linked/x.jpg", "link.jpg", "dangling.jpg"}


def test_strange_names_are_found_as_they_are(photos: Path) -> None:
    strange = ["line\nbreak.jpg", " .jpg", "-.jpg", os.fsdecode(b"\xff.jpg"), "*.jpg"]
    for name in strange:
        (photos / name).touch()
    assert set(names(photos)) == {*EVERYTHING, *strange}


def test_an_empty_folder_means_no_images(tmp_path: Path) -> None:
    assert find_images([tmp_path]) == []
    assert find_images([]) == []


@pytest.mark.parametrize("pattern", ["**/*.png", "**/*", "**"])
def test_patterns_end_where_links_form_a_circle(photos: Path, pattern: str) -> None:
    plain = names(photos / pattern)
    (photos / "loop").symlink_to(photos)
    assert names(photos / pattern) == plain


def test_a_pattern_without_a_suffix_takes_no_other_files(photos: Path) -> None:
    before = find_images([photos / "*"])
    (photos / "README").write_text("no photograph")
    assert find_images([photos / "*"]) == before


def test_a_link_to_where_nobody_may_look_is_left_out(photos: Path) -> None:
    """It may be a folder or not: pathlib raises, and the other images would not be done."""
    before = find_images([photos])
    (photos / "private.d").symlink_to(photos / ("z" * 300))
    assert find_images([photos]) == before


def test_a_folder_that_nobody_may_list_stays_and_fails_when_it_is_read(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(folder: Path) -> object:
        if Path(folder).name == "d":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(photos) == ["a/c.png", "a/d", "b.JPG", "with space/ü.webp"]


def test_what_cameras_put_beside_photographs_is_told(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "sekd_cli"):
        before = find_images([photos])
        for name in ("a.CR2", "b.cr2", "c.mov", "notes.txt"):
            (photos / name).write_bytes(b"")
        assert find_images([photos]) == before
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "left out 2 .cr2, 1 .mov, which sekd doesn't read; make JPEGs of those that you need"
    ]
