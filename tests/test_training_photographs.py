"""Photographs made ready for training: shrunk, upright, kept in a cache that is used again."""

import os
import pickle
from pathlib import Path

import cv2
import pytest
import torch
from drawn import draw_photographs, drawn_photograph
from hostile_images import encoded

from sekd_cli.errors import NothingToDoError
from sekd_cli.image_search import find_images
from sekd_cli.training.photographs import Photographs, cache_photographs


def test_the_cache_keeps_the_photographs_and_is_used_again(photographs: Photographs, tmp_path: Path) -> None:
    pixels = torch.from_numpy(drawn_photograph(2)).permute(2, 0, 1).flip(0)  # OpenCV wrote BGR
    assert torch.equal(photographs[2], pixels)
    folder = draw_photographs(tmp_path / "in", 2)
    first = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    written = (tmp_path / "cache" / "photographs.bin").stat().st_mtime_ns
    again = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    assert (tmp_path / "cache" / "photographs.bin").stat().st_mtime_ns == written
    assert len(first) == len(again) == 2


def test_a_cache_made_anew_leaves_a_run_that_uses_it_what_it_had(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 2)
    used = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
    before = used[1]
    assert cache_photographs(find_images([folder]), tmp_path / "cache", 120)[1].shape[2] == 120
    assert torch.equal(used[1], before)


def test_a_process_that_is_not_forked_opens_the_cache_for_itself(photographs: Photographs) -> None:
    sent = pickle.dumps(photographs)
    assert len(sent) < 1000, "no pixels are sent"
    assert torch.equal(pickle.loads(sent)[2], photographs[2])


def test_broken_and_tiny_photographs_are_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 1)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    assert len(cache_photographs(find_images([folder]), tmp_path / "cache", 640)) == 1
    (folder / "000.png").unlink()
    with pytest.raises(NothingToDoError, match="the reasons are above"):
        cache_photographs(find_images([folder]), tmp_path / "cache2", 640)


def test_a_jpeg_of_twice_the_size_is_shrunk_like_any(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = cv2.GaussianBlur(drawn_photograph(0, 480, 640), (0, 0), 3)
    cv2.imwrite(str(tmp_path / "in" / "a.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 98])
    cv2.imwrite(str(tmp_path / "in" / "b.png"), pixels)
    jpeg, png = iter(cache_photographs(find_images([tmp_path / "in"]), tmp_path / "cache", 250))
    assert jpeg.shape == png.shape == (3, 188, 250)
    assert (jpeg.int() - png.int()).abs().max() <= 8


def test_a_jpeg_on_its_side_is_shrunk_upright(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(drawn_photograph(0, 640, 480), "JPEG", orientation=6))
    (tmp_path / "in" / "b.jpg").write_bytes(encoded(drawn_photograph(0, 80, 1280), "JPEG"))
    only = cache_photographs(find_images([tmp_path / "in"]), tmp_path / "cache", 250)
    assert [one.shape for one in iter(only)] == [(3, 250, 188)]
    assert "b.jpg: 1280x80 pixels, shrunk to 250x16, are too few" in caplog.text


def test_a_photograph_that_is_too_narrow_once_shrunk_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = draw_photographs(tmp_path / "in", 1)
    cv2.imwrite(str(folder / "panorama.png"), drawn_photograph(1, 120, 900))
    assert len(cache_photographs(find_images([folder]), tmp_path / "cache", 640)) == 1
    assert "panorama.png: 900x120 pixels, shrunk to 640x85, are too few; cut it into parts" in caplog.text
    cv2.imwrite(str(folder / "strip.png"), drawn_photograph(1, 90, 900))
    cache_photographs(find_images([folder]), tmp_path / "again", 640)
    assert "strip.png: 900x90 pixels, shrunk to 640x64, are too few; give at least 96 along each side" in caplog.text


def test_a_photograph_that_was_changed_but_not_in_size_is_decoded_again(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in (0, 1):
        cv2.imwrite(str(folder / "one.bmp"), drawn_photograph(seed))
        os.utime(folder / "one.bmp", (seed, seed))
        cached = cache_photographs(find_images([folder]), tmp_path / "cache", 640)
        assert torch.equal(cached[0], torch.from_numpy(drawn_photograph(seed)).permute(2, 0, 1).flip(0))


@pytest.mark.parametrize("part", ["photographs.bin", "photographs.npz", "photographs.json"])
@pytest.mark.parametrize("left", [None, b"", b"no text \xff"], ids=["gone", "empty", "damaged"])
def test_a_cache_of_which_a_part_was_deleted_or_cut_off_is_made_anew(
    part: str, left: bytes | None, tmp_path: Path
) -> None:
    folder = draw_photographs(tmp_path / "in", 2)
    before = cache_photographs(find_images([folder]), tmp_path / "cache", 640)[1]
    (tmp_path / "cache" / part).unlink()
    if left is not None:
        (tmp_path / "cache" / part).write_bytes(left)
    assert torch.equal(cache_photographs(find_images([folder]), tmp_path / "cache", 640)[1], before)
