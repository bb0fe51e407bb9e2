"""Keypoints of many photographs moved together: drawn tracks, whose links are known."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sekd_cli import adjustment
from sekd_cli.adjustment import Links, in_parts, links_of
from sekd_cli.patch_alignment import FARTHEST, Alignment

PHOTOGRAPHS, POINTS = 6, 40


def tracks(*, wrong: float = 0.0, error: float = 0.0) -> tuple[NDArray[np.float64], Links]:
    """How far each keypoint was found from its point, and links between all photographs of a point.

    Photographs are turned and of other sizes; keypoint `p * POINTS + i` is of point i in photograph p.
    """
    rng = np.random.default_rng(0)
    angles, sizes = rng.uniform(0, 6, PHOTOGRAPHS), rng.uniform(0.7, 1.5, PHOTOGRAPHS)
    maps = np.array(
        [
            size * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
            for a, size in zip(angles, sizes, strict=True)
        ]
    )
    off = rng.normal(0, 0.5, (PHOTOGRAPHS, POINTS, 2))
    first, second, offsets, affines = [], [], [], []
    for one in range(PHOTOGRAPHS):
        for other in range(one + 1, PHOTOGRAPHS):
            affine = maps[other] @ np.linalg.inv(maps[one])
            for point in range(POINTS):
                first.append(one * POINTS + point)
                second.append(other * POINTS + point)
                affines.append(affine)
                offset = affine @ off[one, point] - off[other, point] + rng.normal(0, error, 2)
                offsets.append(rng.uniform(-2, 2, 2) if rng.random() < wrong else offset)
    links = Links(np.array(first), np.array(second), np.array(offsets, np.float32), np.array(affines, np.float32))
    return off.reshape(-1, 2), links


def adjust(links: Links, count: int, tell: Callable[[int, int], None] = lambda done, of: None) -> NDArray[np.float32]:
    return adjustment.adjust(list(in_parts([links])), count, tell)


def apart(off: NDArray[np.float64], links: Links, moves: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far the two keypoints of each link are from being of one point, (E,), as it really is."""
    now = off + moves
    return np.asarray(
        np.linalg.norm(now[links.second] - np.einsum("eij,ej->ei", links.affines, now[links.first]), axis=1)
    )


def test_links_are_in_pixels_as_seen() -> None:
    """The first file has two pixels where one was seen, the second four; of two matches one could be aligned."""
    affine = np.float32([[2, 0], [0, 4]])
    alignment = Alignment(np.float32([[9, 9], [8, -4]]), np.stack((affine, affine)), np.float32([0, 0.9]))
    links = links_of(alignment, np.array([[1, 2], [3, 5]]), (10, 100), (2.0, 4.0))
    assert [values.tolist() for values in links] == [[13], [105], [[2, -1]], [[[1, 0], [0, 2]]]]


def test_keypoints_of_a_point_come_together() -> None:
    off, links = tracks()
    moves = adjust(links, len(off))
    assert np.median(apart(off, links, np.zeros_like(moves))) > 0.6
    assert apart(off, links, moves).max() < 0.03


def test_they_stay_near_to_where_they_were_found() -> None:
    off, links = tracks()
    moves = adjust(links, len(off))
    assert np.linalg.norm(moves, axis=1).mean() < 1.1 * np.linalg.norm(off, axis=1).mean()
    assert np.linalg.norm(moves.mean(axis=0)) < 0.1


def test_several_links_are_more_exact_than_one() -> None:
    off, links = tracks(error=0.2)
    alone = np.linalg.norm(np.random.default_rng(1).normal(0, 0.2, (1000, 2)), axis=1)
    assert np.median(apart(off, links, adjust(links, len(off)))) < 0.75 * np.median(alone)


def test_wrong_links_mean_little() -> None:
    off, links = tracks(wrong=0.1)
    assert np.median(apart(off, links, adjust(links, len(off)))) < 0.1


def test_who_has_no_links_stays() -> None:
    off, links = tracks()
    more = links._replace(first=links.first + 7, second=links.second + 7)
    moves = adjust(more, len(off) + 20)
    assert not moves[:7].any()
    assert not moves[-13:].any()
    np.testing.assert_allclose(moves[7:-13], adjust(links, len(off)), atol=1e-6)


def test_one_that_would_move_far_stays() -> None:
    far = Links(np.array([0]), np.array([1]), np.float32([[4 * FARTHEST, 0]]), np.eye(2, dtype=np.float32)[None])
    assert not adjust(far, 2).any()


def test_the_ends_of_a_chain_that_would_move_far_stay() -> None:
    chain = np.arange(5)
    straight = np.repeat(np.eye(2, dtype=np.float32)[None], 4, axis=0)
    links = Links(chain[:-1], chain[1:], np.tile(np.float32([0.9 * FARTHEST, 0]), (4, 1)), straight)
    moves = adjust(links, 5)[:, 0]
    assert moves[0] == moves[4] == 0
    np.testing.assert_allclose(moves[1:4], [-0.9 * FARTHEST, 0, 0.9 * FARTHEST], atol=0.5)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("field", ["offsets", "affines"])
def test_a_link_of_wild_numbers_is_none(field: str, number: float) -> None:
    off, links = tracks()
    wild = getattr(links, field).copy()
    wild[3] = number
    without = Links(*(np.delete(values, 3, axis=0) for values in links))
    with np.errstate(all="raise"):
        found = adjust(links._replace(**{field: wild}), len(off))
    np.testing.assert_array_equal(found, adjust(without, len(off)))


@pytest.mark.parametrize("count", [0, 5])
def test_without_links_nothing_moves(count: int) -> None:
    none = Links(np.empty(0, int), np.empty(0, int), np.empty((0, 2), np.float32), np.empty((0, 2, 2), np.float32))
    np.testing.assert_array_equal(adjust(none, count), np.zeros((count, 2)))


def test_parts_move_keypoints_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    off, links = tracks(wrong=0.1)
    monkeypatch.setattr(adjustment, "LINKS_AT_ONCE", 70)
    pairs = [Links(*(values[start : start + 40] for values in links)) for start in range(0, len(links.first), 40)]
    parts = list(in_parts(pairs))
    assert [len(part.first) for part in parts] == [80] * 7 + [40]
    whole = adjust(links, len(off))
    np.testing.assert_allclose(adjustment.adjust(parts, len(off)), whole, atol=1e-5)


def test_it_tells_how_far_it_is() -> None:
    off, links = tracks()
    told: list[tuple[int, int]] = []
    adjust(links, len(off), lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_links_that_are_all_wild_are_no_part() -> None:
    _, links = tracks()
    assert not list(in_parts([links._replace(offsets=np.full_like(links.offsets, np.nan))]))
