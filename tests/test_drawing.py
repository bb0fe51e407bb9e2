"""Pictures: marks lie where the keypoints are, in the colours that the legend tells."""

from typing import Any

import numpy as np
import pytest

from sekd_cli.drawing import (
    DIMMED,
    INLIER,
    OUTLIER,
    PAPER,
    Legend,
    View,
    colours_of,
    draw_keypoints,
    draw_matches,
    fitted,
    upright,
    with_footer,
)
from sekd_cli.images import Photograph, to_stored, turn_upright

NOTHING = np.zeros((0, 2))


def grey_view(width: int, height: int, xy: list[tuple[float, float]]) -> View:
    return View(pixels=np.full((height, width, 3), 100, np.uint8), keypoints=np.array(xy, dtype=float).reshape(-1, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_of_the_file_lie_where_the_photograph_is_looked_at(orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (5, 9, 3), dtype=np.uint8)
    photograph = Photograph(pixels=turn_upright(stored, orientation), orientation=orientation, stored_size=(9, 5))
    stored_xy = np.array([(0, 0), (7, 1), (3, 4)])
    view = upright(photograph, stored_xy)
    for (x, y), (upright_x, upright_y) in zip(stored_xy, view.keypoints.astype(int), strict=True):
        np.testing.assert_array_equal(view.pixels[upright_y, upright_x], stored[y, x])
    np.testing.assert_array_equal(to_stored(view.keypoints, orientation, (9, 5)), stored_xy)


def test_a_view_is_fitted_with_its_points() -> None:
    smaller = fitted(grey_view(400, 200, [(0, 0), (399, 199)]), 100)
    assert smaller.pixels.shape == (50, 100, 3)
    np.testing.assert_allclose(smaller.keypoints, [(-0.375, -0.375), (99.375, 49.375)])  # (x + 0.5) / 4 - 0.5
    assert fitted(grey_view(200, 400, []), 100).pixels.shape == (100, 50, 3)
    assert fitted(grey_view(40, 20, []), 1000).pixels.shape == (40, 80, 3)  # twice and no more
    assert fitted(grey_view(40, 20, []), 0).pixels.shape == (20, 40, 3)
    assert fitted(grey_view(4000, 1, []), 100).pixels.shape == (1, 100, 3)


def test_a_keypoint_is_a_dot_of_its_score_s_colour() -> None:
    scores = np.array([0.9, 0.5, 0.1])
    view = grey_view(300, 200, [(50, 60), (150, 100), (250, 140)])
    picture = draw_keypoints(view, scores, "a.jpg")
    colours, low, high = colours_of(scores)
    for (x, y), colour in zip(view.keypoints.astype(int), colours, strict=True):
        assert tuple(picture[y, x]) == colour
    assert (low, high) == (pytest.approx(0.116), pytest.approx(0.884))
    assert tuple(picture[20, 20]) == (round(100 * DIMMED),) * 3
    best, worst = np.array(colours[0]), np.array(colours[2])
    assert best[0] > best[2]  # red
    assert worst[2] > worst[0]  # blue


def test_the_best_lies_on_top() -> None:
    for scores in ([0.9, 0.1], [0.1, 0.9]):
        picture = draw_keypoints(grey_view(300, 200, [(50, 60), (50, 60)]), np.array(scores), "")
        assert tuple(picture[60, 50]) == colours_of(np.array(scores))[0][int(np.argmax(scores))]


def test_a_match_is_a_line_from_one_photograph_to_the_other() -> None:
    first, second = grey_view(200, 160, [(20, 40), (20, 120)]), grey_view(200, 160, [(180, 40), (180, 120)])
    picture = draw_matches(first, second, [INLIER, OUTLIER], Legend("", ""))
    gap = picture.shape[1] - 400
    assert gap > 0
    for y, colour in ((40, INLIER), (120, OUTLIER)):
        assert tuple(picture[y, 20]) == tuple(picture[y, 200 + gap + 180]) == colour
        line = 0.75 * np.array(colour) + 0.25 * 100 * DIMMED  # few lines hide little, so they may be strong
        np.testing.assert_allclose(picture[y, (60, 150, 300)], [line] * 3, atol=15)
    assert tuple(picture[80, 100]) == (72, 72, 72)
    assert tuple(picture[80, 202]) == PAPER  # between the photographs


def test_the_first_lines_may_be_faint() -> None:
    first, second = grey_view(200, 160, [(20, 40), (20, 120)]), grey_view(200, 160, [(180, 40), (180, 120)])
    picture = draw_matches(first, second, [OUTLIER, OUTLIER], Legend("", ""), faint=1).astype(int)
    assert picture[120, 100, 0] > picture[40, 100, 0] > 100 * DIMMED


def test_the_more_lines_the_fainter_so_that_the_photographs_stay_visible() -> None:
    def brightness(count: int) -> int:
        lines = [(20.0, 40.0)] * count
        return int(draw_matches(*(grey_view(200, 160, lines),) * 2, [OUTLIER] * count, Legend("", ""))[40, 100, 0])

    assert brightness(200) > brightness(400) > brightness(2200) == brightness(1800) > 100 * DIMMED


def test_dots_on_a_large_photograph_are_larger() -> None:
    small, large = (draw_keypoints(grey_view(width, 40, [(20, 20)]), np.ones(1), "") for width in (400, 4000))
    colour = colours_of(np.ones(1))[0][0]
    assert (large[:40] == colour).all(axis=2).sum() > 4 * (small[:40] == colour).all(axis=2).sum()


def test_photographs_of_different_heights_are_brought_to_the_larger() -> None:
    first, second = grey_view(100, 100, [(49.5, 49.5)]), grey_view(60, 50, [(29.5, 24.5)])
    picture = draw_matches(first, second, [INLIER], Legend("", ""))
    gap = picture.shape[1] - 220
    assert tuple(picture[50, 100 + gap + 60]) == INLIER  # the middle of 120 x 100


def test_nothing_to_draw_is_a_picture_too() -> None:
    empty = View(pixels=np.full((30, 40, 3), 100, np.uint8), keypoints=NOTHING)
    assert draw_keypoints(empty, np.zeros(0), "a.jpg").shape[1] == 40
    assert draw_matches(empty, empty, [], Legend("a | b", "0 matches")).shape[1] > 80
    assert colours_of(np.zeros(0)) == ([], 0.0, 0.0)
    assert len(set(colours_of(np.full(5, 0.3))[0])) == 1  # equal scores, one colour


@pytest.mark.parametrize("title", ["", "a.jpg", "x" * 5000, "zwei\nZeilen.jpg", "ünï 日本 \udcff.jpg"])
@pytest.mark.parametrize("width", [1, 40, 900])
def test_any_title_fits_below_any_picture(title: str, width: int) -> None:
    marks = ((INLIER, "12 inliers of a homography"), (OUTLIER, "3 outliers"))
    for legend in (Legend(title, "12 matches", marks=marks), Legend(title, "7 keypoints", (0.1, 0.9))):
        picture = np.full((20, width, 3), 200, np.uint8)
        whole = with_footer(picture, legend)
        assert whole.shape[1] == width
        np.testing.assert_array_equal(whole[:20], picture)
        if width == 900:
            assert whole[20:].std() > 0  # something is written


def columns(footer: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where in a footer this colour is, in pixels from its left."""
    return np.flatnonzero((footer == colour).all(axis=2).any(axis=0))


def test_the_footer_has_the_title_the_note_and_from_the_right_what_the_colours_mean() -> None:
    def footer(note: str = "", **more: Any) -> np.ndarray:
        return with_footer(np.zeros((20, 900, 3), np.uint8), Legend("a.jpg", note, **more))[20:]

    def written(footer: np.ndarray) -> np.ndarray:
        return np.flatnonzero((footer != PAPER).any(axis=(0, 2)))

    title, noted = footer(), footer("12 matches")
    end = written(title).max() + 1
    np.testing.assert_array_equal(noted[:, :end], title[:, :end])
    assert end < written(noted).max() < 200  # beside the title
    marked = footer("12 matches", marks=((INLIER, "12 inliers"), (OUTLIER, "3 outliers")))
    assert 500 < columns(marked, INLIER).max() < columns(marked, OUTLIER).min()
    assert columns(marked, OUTLIER).max() < written(marked).max() - 40  # what it means is to its right
    np.testing.assert_array_equal(marked[:, :200], noted[:, :200])
    scaled = footer("12 matches", scale=(0.1, 0.9))
    red, blue = (scaled[..., channel].astype(int) for channel in (0, 2))
    low, high = (np.flatnonzero((difference > 100).any(axis=0)) for difference in (blue - red, red - blue))
    assert written(scaled[:, 200:]).min() + 200 < low.min() - 10  # a number before the lowest
    assert low.max() < high.min()
    assert high.max() < written(scaled).max() - 10  # and one behind the highest


def test_of_a_long_title_the_end_is_kept() -> None:
    picture = np.full((20, 300, 3), 200, np.uint8)
    long, short = (with_footer(picture, Legend(title, ""))[20:] for title in ("folder/" * 50 + "a.jpg", "a.jpg"))
    assert (long[:, 150:] != PAPER).any()  # it fills the line
    assert not (short[:, 150:] != PAPER).any()
    other = with_footer(picture, Legend("folder/" * 70 + "a.jpg", ""))[20:]
    np.testing.assert_array_equal(long, other)


def test_points_far_outside_or_not_finite_are_no_crash() -> None:
    xy = [(1e9, -1e9), (np.nan, 5.0), (np.inf, np.inf)]
    draw_keypoints(grey_view(50, 40, xy), np.ones(3), "")
    draw_matches(grey_view(50, 40, xy), grey_view(50, 40, xy), [INLIER] * 3, Legend("", ""))


def test_scores_that_are_no_numbers_leave_the_others_their_colours() -> None:
    scores = np.array([np.nan, 0.9, 0.1, np.inf, -np.inf], np.float32)
    assert colours_of(scores)[0][1:3] == colours_of(scores[1:3])[0]
    draw_keypoints(grey_view(50, 40, [(5, 5)] * 5), scores, "")
    draw_keypoints(grey_view(50, 40, [(5, 5)]), scores[:1], "")
