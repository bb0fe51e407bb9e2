import numpy as np
import pytest
import torch

from sekd_cli.tiles import REACH, cores, whole, windows


@pytest.mark.parametrize("extent", [1, 1024, 1025, 3000, 30000])
def test_cores_cover_everything_once_and_begin_on_every_stride(extent: int) -> None:
    parts = list(cores(extent, 1024))
    assert [end for _, end in parts[:-1]] == [start for start, _ in parts[1:]]
    assert (parts[0][0], parts[-1][1]) == (0, extent)
    assert all(start % 32 == 0 and start < end for start, end in parts)


def test_a_small_image_is_one_tile() -> None:
    assert list(windows(100, 1024, 1024)) == [whole(100, 1024)]


@pytest.mark.parametrize("turns", range(4))
def test_a_tile_of_a_turned_image_begins_on_the_networks_grid(turns: int) -> None:
    height, width = 1100, 1541
    rows = np.broadcast_to(np.arange(height)[:, None], (height, width))
    columns = np.broadcast_to(np.arange(width), (height, width))
    for window in windows(height, width, 1024):
        part = window.for_turn(turns, (height, width), 32)
        assert part.right == window.right or turns in {1, 2}
        assert part.bottom == window.bottom or turns in {2, 3}
        assert part[:3:2] == window[:3:2]
        assert (part.bottom - window.bottom) in range(32)
        assert (part.right - window.right) in range(32)
        first = [
            np.rot90(values[part.top : part.bottom, part.left : part.right], turns)[0, 0] for values in (rows, columns)
        ]
        place = np.argwhere((np.rot90(rows, turns) == first[0]) & (np.rot90(columns, turns) == first[1]))[0]
        assert (place % 32 == 0).all()


def test_tiles_reach_as_far_beyond_their_core_as_the_network_looks() -> None:
    tiles = list(windows(3000, 2000, 1024))
    for window in tiles:
        assert window.top in {0, window.core_top - REACH}
        assert window.bottom in {3000, window.core_bottom + REACH}
        assert window.left in {0, window.core_left - REACH}
        assert window.right in {2000, window.core_right + REACH}
    assert max(window.bottom - window.top for window in tiles) == 1024
    assert max(window.right - window.left for window in tiles) == 1024


def test_a_keypoint_belongs_to_the_tile_in_whose_core_its_pixel_lies() -> None:
    x, y = (values.flatten() for values in np.meshgrid([0, 511, 512, 1023, 1024, 1540], [0, 511, 512, 1099]))
    image = np.zeros((1100, 1541), int)
    for number, window in enumerate(windows(1100, 1541, 1024)):
        image[window.core_top : window.core_bottom, window.core_left : window.core_right] = number
        assert window.cut(image)[window.core_top - window.top, window.core_left - window.left] == number
    for number, window in enumerate(windows(1100, 1541, 1024)):
        for aside in (-0.4, 0, 0.4):
            keypoints = torch.from_numpy(np.stack((x, y), axis=1) + aside)
            seen = keypoints - torch.tensor((window.left, window.top))
            assert window.owns(seen).tolist() == (image[y, x] == number).tolist()
