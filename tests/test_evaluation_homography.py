"""Metrics of homographies, by hand, and the benchmark on sequences whose features are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import HOMOGRAPHIES, SIZE, Exact, half_from_whole, nothing, write_grey, write_sequences

from sekd_cli.errors import InputFileError
from sekd_cli.evaluation import homography_benchmark
from sekd_cli.evaluation.estimators import ESTIMATORS, estimate_homography
from sekd_cli.evaluation.homography import (
    THRESHOLDS,
    area_under_curve,
    corner_error,
    fractions_below,
    matching_accuracy,
    repeatability,
    transfer_errors,
    warp,
)
from sekd_cli.evaluation.homography_benchmark import (
    HomographyProtocol,
    PairResult,
    evaluate_sequences,
    groups_of,
    read_sequences,
    summarise,
)
from sekd_cli.evaluation.homography_tables import pair_table, panels, summary_table

IDENTITY = np.eye(3)
SHIFT = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1]], dtype=float)
GRID = np.stack(np.meshgrid(np.arange(20, 400, 40), np.arange(20, 300, 40)), axis=-1).reshape(-1, 2).astype(float)
GRID_SIZE = (400, 300)


def test_a_shift_by_3_and_4_is_5_pixels_off_at_every_corner() -> None:
    assert corner_error(SHIFT, IDENTITY, 640, 480) == pytest.approx(5)


def test_the_corner_error_is_the_mean_over_the_outermost_pixel_centres() -> None:
    # of a 4 x 5 image the corners (0, 0), (3, 0), (3, 4), (0, 4) move by nothing, (3, 0), (3, 8) and (0, 8)
    assert corner_error(np.diag([2.0, 3.0, 1.0]), IDENTITY, 4, 5) == pytest.approx((3 + np.hypot(3, 8) + 8) / 4)


@pytest.mark.parametrize("factor", [-1.0, 1e-6, 1e6])
def test_a_homography_is_the_same_whatever_its_factor(factor: float) -> None:
    truth = HOMOGRAPHIES[3]
    assert corner_error(truth * factor, truth, *SIZE) == pytest.approx(0, abs=1e-6)
    assert corner_error(SHIFT, SHIFT * factor, *SIZE) == pytest.approx(0, abs=1e-6)


def test_no_estimate_is_infinitely_far_off() -> None:
    assert corner_error(None, IDENTITY, 640, 480) == np.inf
    assert corner_error(np.full((3, 3), np.nan), IDENTITY, 640, 480) == np.inf


def test_a_homography_that_sends_a_corner_behind_is_infinitely_far_off() -> None:
    flipping = np.array([[1, 0, 0], [0, 1, 0], [-0.004, 0, 1]], dtype=float)  # the horizon is at x = 250
    assert corner_error(flipping, IDENTITY, 320, 240) == np.inf


def test_warping_there_and_back_ends_where_it_began() -> None:
    there = warp(GRID, HOMOGRAPHIES[2])
    np.testing.assert_allclose(warp(there, np.linalg.inv(HOMOGRAPHIES[2])), GRID, atol=1e-9)


def test_exact_matches_are_right_at_every_threshold() -> None:
    accuracy = matching_accuracy(GRID, warp(GRID, HOMOGRAPHIES[3]), HOMOGRAPHIES[3])
    np.testing.assert_array_equal(accuracy, np.ones(10))


def test_matches_off_by_half_2_and_20_pixels_are_counted_from_their_threshold_on() -> None:
    xy0 = np.zeros((4, 2))
    xy1 = np.array([(0.5, 0), (0, 2), (20, 0), (0, 0)])
    np.testing.assert_allclose(matching_accuracy(xy0, xy1, IDENTITY, (0.4, 1, 2, 19)), (0.25, 0.5, 0.75, 0.75))


def test_noise_of_1_pixel_gives_the_accuracy_of_a_rayleigh_distribution() -> None:
    xy0 = np.random.default_rng(0).uniform(0, 500, (40_000, 2))
    xy1 = warp(xy0, SHIFT) + np.random.default_rng(1).normal(size=xy0.shape)
    expected = [1 - np.exp(-(threshold**2) / 2) for threshold in (1, 2, 3)]
    np.testing.assert_allclose(matching_accuracy(xy0, xy1, SHIFT, (1, 2, 3)), expected, atol=0.01)


def test_no_matches_have_no_accuracy() -> None:
    none = np.zeros((0, 2))
    np.testing.assert_array_equal(matching_accuracy(none, none, IDENTITY, (1, 3)), (0, 0))


def test_homography_accuracy_counts_the_pairs_below_each_threshold() -> None:
    accuracy = fractions_below([0.5, 2.5, np.inf], THRESHOLDS)
    np.testing.assert_allclose(accuracy, [1 / 3] * 2 + [2 / 3] * 8)
    np.testing.assert_array_equal(fractions_below([], THRESHOLDS), np.zeros(10))


def test_the_area_under_one_error_of_half_the_threshold_is_three_quarters() -> None:
    # recall rises from 0 at 0 to 1 at 0.5 and stays: a triangle of 0.25 and a square of 0.5
    np.testing.assert_allclose(area_under_curve([0.5], (1, 2)), [0.75, 0.875])
    np.testing.assert_allclose(area_under_curve([np.inf, 0.5], (1,)), [0.375])
    np.testing.assert_array_equal(area_under_curve([np.inf, 7.0], (1, 5)), [0, 0])
    np.testing.assert_array_equal(area_under_curve([], (1, 5)), [0, 0])
    np.testing.assert_array_equal(area_under_curve([0.0, 0.0], (1,)), [1])


def test_the_same_keypoints_repeat_with_no_error() -> None:
    share, error = repeatability(GRID, warp(GRID, SHIFT), SHIFT, GRID_SIZE, (500, 400), 3)
    assert share == 1
    assert error == pytest.approx(0, abs=1e-6)


def test_every_second_keypoint_missing_leaves_two_thirds() -> None:
    # image 0 has n, of which n / 2 are found; image 1 has n / 2, all found: n of 1.5 n
    share, _ = repeatability(GRID, GRID[::2], IDENTITY, GRID_SIZE, GRID_SIZE, 3)
    assert share == pytest.approx(2 / 3)


def test_keypoints_beyond_the_common_part_are_not_counted() -> None:
    outside = np.array([(1.0, 150.0), (2.0, 10.0)])  # shifted left by 10, image 1 doesn't show them
    left = np.array([[1, 0, -10], [0, 1, 0], [0, 0, 1]], dtype=float)
    share, _ = repeatability(np.vstack((GRID, outside)), warp(GRID, left), left, GRID_SIZE, GRID_SIZE, 3)
    assert share == 1


def test_only_what_both_images_show_counts_and_is_found() -> None:
    """Of 40 x 30 and 60 x 20 pixels: image 1 shows the rows 5 to 24 of image 0, and that the columns 10 to 49 of it."""
    moved = np.array([[1, 0, 10], [0, 1, -5], [0, 0, 1]], dtype=float)
    both = [[(0, 5), (10, 0)], [(39, 24), (49, 19)], [(20, 12), (30, 10)]]  # the last 3 pixels off
    hidden0, hidden1 = [(20, 4), (20, 25)], [(9, 10), (50, 10)]  # not in the other image, but a pixel beside its points
    alone0, alone1 = [(0, 15), (39, 15)], [(30, 0), (30, 19)]
    xy0 = np.array([*(one for one, _ in both), *hidden0, *alone0], dtype=float)
    xy1 = np.array([*(other for _, other in both), *hidden1, *alone1], dtype=float)
    for factor in (1, -2):
        assert repeatability(xy0, xy1, factor * moved, (40, 30), (60, 20), 3) == pytest.approx((6 / 10, 1.0))


def test_repeatability_is_the_same_in_either_direction() -> None:
    other = warp(GRID, HOMOGRAPHIES[2]) + np.random.default_rng(0).normal(size=GRID.shape)
    forward = repeatability(GRID, other, HOMOGRAPHIES[2], GRID_SIZE, SIZE, 3)
    backward = repeatability(other, GRID, np.linalg.inv(HOMOGRAPHIES[2]), SIZE, GRID_SIZE, 3)
    assert forward == pytest.approx(backward)


def test_the_localisation_error_of_noise_is_the_mean_of_a_rayleigh_distribution() -> None:
    points = np.stack(np.meshgrid(np.arange(20, 4000, 40), np.arange(20, 4000, 40)), -1).reshape(-1, 2)[:3000]
    noisy = points + 0.5 * np.random.default_rng(0).normal(size=points.shape)
    share, error = repeatability(points, noisy, IDENTITY, (4000, 4000), (4000, 4000), 3)
    assert share == 1
    assert error == pytest.approx(0.5 * np.sqrt(np.pi / 2), abs=0.01)


def test_without_keypoints_nothing_repeats() -> None:
    none = np.zeros((0, 2))
    for first, second in ((none, none), (none, GRID), (GRID, none)):
        share, error = repeatability(first, second, IDENTITY, GRID_SIZE, GRID_SIZE, 3)
        assert share == 0
        assert np.isnan(error)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exact_matches_among_a_third_of_wrong_ones_give_the_homography(estimator: str) -> None:
    wrong = np.random.default_rng(0).uniform(0, 400, (len(GRID) // 2, 2))
    xy0 = np.vstack((GRID, wrong))
    xy1 = np.vstack((warp(GRID, HOMOGRAPHIES[3]), wrong[::-1]))
    for seed in range(3):
        assert corner_error(estimate_homography(xy0, xy1, estimator, seed=seed), HOMOGRAPHIES[3], *GRID_SIZE) < 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_too_few_or_equal_points_give_no_homography_or_a_wrong_one_but_no_crash(estimator: str) -> None:
    assert estimate_homography(GRID[:3], GRID[:3], estimator) is None
    same = np.zeros((20, 2))
    assert corner_error(estimate_homography(same, same, estimator), IDENTITY, 640, 480) > 10


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_only_what_agrees_within_the_threshold_decides_on_a_homography(estimator: str) -> None:
    xy1 = warp(GRID, IDENTITY)
    xy1[::3] += 10
    near, far = (estimate_homography(GRID, xy1, estimator, threshold=threshold) for threshold in (0.5, 20.0))
    assert corner_error(near, IDENTITY, *GRID_SIZE) < 0.01
    assert corner_error(far, IDENTITY, *GRID_SIZE) > 0.1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_same_seed_gives_the_same_homography(estimator: str) -> None:
    noisy = warp(GRID, HOMOGRAPHIES[2]) + 2 * np.random.default_rng(0).normal(size=GRID.shape)
    first, second, other = (estimate_homography(GRID, noisy, estimator, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert corner_error(first, other, *GRID_SIZE) > 0  # type: ignore[arg-type]


def test_exact_features_give_perfect_figures(tmp_path: Path) -> None:
    method = Exact(write_sequences(tmp_path))
    results = evaluate_sequences(read_sequences(tmp_path), [method], HomographyProtocol(seeds=2), nothing)
    for group in groups_of(results["exact"]).values():
        figures = summarise(group)
        for name in ("ha", "ha_ransac", "ha_magsac", "ha_ransac@1", "ha_magsac@1", "mma@1", "mma", "repeatability"):
            assert figures[name] == 1, name
        assert figures["auc_magsac@1"] > 0.98
        assert figures["localisation"] < 0.001
        assert figures["keypoints"] == figures["matches"] == 200


def test_an_odd_size_is_rescaled_by_both_its_factors(tmp_path: Path) -> None:
    # 999 x 333 becomes 640 x 213, which is 0.64064 along x and 0.63964 along y
    np.savetxt(tmp_path / "H_1_2", IDENTITY)
    points = {write_grey(tmp_path / f"{k}.png", 999, 333): GRID * (2, 1) for k in (1, 2)}
    [result] = evaluate_sequences(read_sequences(tmp_path), [Exact(points)], HomographyProtocol(seeds=1), nothing)[
        "exact"
    ]
    assert max(result.corner_errors["magsac"]) < 0.001


def test_noise_gives_the_expected_matching_accuracy(tmp_path: Path) -> None:
    method = Exact(write_sequences(tmp_path, count=2000), noise=1.0)
    results = evaluate_sequences(read_sequences(tmp_path), [method], HomographyProtocol(max_size=0, seeds=1), nothing)
    # both keypoints have noise of 1 pixel along each axis, and these homographies hardly change the scale
    expected = [1 - np.exp(-(threshold**2) / 4) for threshold in (1, 3)]
    figures = summarise(results["exact"])
    assert [figures["mma@1"], figures["mma@3"]] == pytest.approx(expected, abs=0.03)


def test_a_pair_of_an_image_and_its_half_needs_the_half_pixel(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "H_1_2", half_from_whole())
    whole = {write_grey(tmp_path / "1.png", 1200, 800): GRID * 2.5}
    half = {write_grey(tmp_path / "2.png", 600, 400): (GRID * 2.5 + 0.5) / 2 - 0.5}
    for max_size in (0, 640):
        protocol = HomographyProtocol(max_size=max_size, seeds=1)
        [result] = evaluate_sequences(read_sequences(tmp_path), [Exact(whole | half)], protocol, nothing)["exact"]
        assert result.localisation < 0.001
        assert max(result.corner_errors["magsac"]) < 0.001


def pair(sequence: str, ransac: list[float], magsac: list[float]) -> PairResult:
    return PairResult(
        sequence=sequence,
        image="2.png",
        keypoints=10,
        matches=5,
        matching_accuracy=np.linspace(0.1, 1, 10),
        repeatability=0.5,
        localisation=float("nan"),
        corner_errors={"ransac": np.array(ransac), "magsac": np.array(magsac)},
    )


def test_each_figure_is_the_median_over_seeds_and_ha_the_mean_of_both_estimators() -> None:
    figures = summarise([pair("v_a", [0.5, 20, 20], [0.5, 0.5, 0.5]), pair("v_b", [0.5, 0.5, 20], [20, 20, 20])])
    assert figures["ha_ransac"] == 0.5  # by seed 1, 0.5 and 0
    assert figures["ha_magsac"] == 0.5
    assert figures["ha"] == 0.5
    assert figures["mma@1"] == pytest.approx(0.1)
    assert figures["mma"] == pytest.approx(0.55)


def test_pairs_that_failed_are_marked() -> None:
    results = {"m": [pair("v_a", [np.inf], [11.0]), pair("i_b", [np.inf], [9.0])]}
    assert [row["failed"] for row in pair_table(results).rows] == [True, False]
    assert [cells[-1] for cells in pair_table(results).cells()] == ["yes", ""]


def test_groups_without_sequences_are_a_dash() -> None:
    table = summary_table({"m": [pair("v_a", [1.0], [1.0])]})
    light = [column.header for column in table.columns].index("HA light")
    assert table.cells()[0][light] == "-"
    assert table.cells()[0][light + 1] == "100.0"
    assert len(panels(table)[0].curves["m"][1]) == 10


def test_a_folder_without_sequences_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="HPatches"):
        read_sequences(tmp_path)


ZEROS, NAN = "\n".join(["0 0 0"] * 3), "1 0 nan\n0 1 0\n0 0 1"
FLAT = "0.1 0.2 0.3\n0.4 0.5 0.6\n0.7 0.8 0.9"  # its determinant is nothing but for rounding


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c", "1 0 0\n0 1 0", ZEROS, NAN, FLAT])
def test_a_homography_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    write_sequences(tmp_path, count=4)
    (tmp_path / "i_drawn" / "H_1_3").write_text(text)
    with pytest.raises(InputFileError, match="H_1_3"):
        read_sequences(tmp_path)


def test_a_folder_in_place_of_a_homography_is_named(tmp_path: Path) -> None:
    write_sequences(tmp_path, count=4)
    (tmp_path / "i_drawn" / "H_1_4").mkdir()
    with pytest.raises(InputFileError, match="H_1_4"):
        read_sequences(tmp_path)


def test_a_copy_of_an_editor_is_no_homography_and_no_sequence_needs_the_second_image(tmp_path: Path) -> None:
    write_sequences(tmp_path, count=4)
    (tmp_path / "v_drawn" / "H_1_2~").write_text("1 2 3")
    (tmp_path / "i_drawn" / "H_1_2").unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "H_1_2.txt").touch()
    assert [(one.name, len(one.homographies)) for one in read_sequences(tmp_path)] == [("i_drawn", 1), ("v_drawn", 2)]


def test_an_image_that_is_missing_or_double_is_named(tmp_path: Path) -> None:
    write_sequences(tmp_path, count=4)
    write_grey(tmp_path / "v_drawn" / "2.jpg", 8, 8)
    with pytest.raises(InputFileError, match=r"v_drawn: 2 images named 2\.\*"):
        read_sequences(tmp_path)
    for path in (tmp_path / "v_drawn").glob("2.*"):
        path.unlink()
    with pytest.raises(InputFileError, match=r"v_drawn: 0 images named 2\.\*"):
        read_sequences(tmp_path)


def test_a_homography_is_known_up_to_a_factor() -> None:
    random = np.random.default_rng(0)
    homography = np.array([[1.1, 0.1, 20], [-0.05, 0.9, 10], [1e-4, 2e-5, 1]])
    xy0 = random.uniform(0, 600, (20, 2))
    xy1 = warp(xy0, homography)
    for factor in (1, 3, -3):
        np.testing.assert_allclose(transfer_errors(xy0, xy1, factor * homography), 0, atol=1e-9)
    tipped = np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1]])  # only the first point lies behind
    xy0 = np.array([[150.0, 0], [10, 0], [20, 0], [30, 0]])
    for factor in (1, -1):
        errors = transfer_errors(xy0, np.nan_to_num(warp(xy0, tipped), posinf=0), factor * tipped)
        np.testing.assert_allclose(errors, [np.inf, 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize("factor", [1e-14, -1e9])
def test_a_file_may_give_a_homography_by_any_factor(tmp_path: Path, factor: float) -> None:
    exact = Exact(write_sequences(tmp_path))
    for file in tmp_path.glob("*/H_1_*"):
        np.savetxt(file, factor * np.loadtxt(file))
    protocol = HomographyProtocol(max_size=0, seeds=1)
    results = evaluate_sequences(read_sequences(tmp_path), [exact], protocol, nothing)
    assert summarise(results["exact"])["mma@1"] == 1
    assert summarise(results["exact"])["repeatability"] == 1


def test_files_beside_the_images_are_no_images_and_a_mark_of_utf8_is_none(tmp_path: Path) -> None:
    write_sequences(tmp_path, count=4)
    (tmp_path / "v_drawn" / "1.png.d2-net").touch()
    (tmp_path / "v_drawn" / "1.txt").touch()
    file = tmp_path / "v_drawn" / "H_1_2"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_sequences(tmp_path)) == 2


def test_what_has_no_homography_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_sequences(tmp_path, count=4)
    (tmp_path / "v_drawn" / "H_1_3").unlink()
    (tmp_path / "v_drawn" / "3.png").rename(tmp_path / "v_drawn" / "3.PNG")
    for name in ("v_drawn/0.txt", "v_drawn/4.png", "x/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for file in (tmp_path / "i_drawn").glob("H_1_*"):
        file.unlink()
    assert [len(sequence.homographies) for sequence in read_sequences(tmp_path)] == [1]
    assert "v_drawn: image 3 left out, of which there is no homography" in caplog.text
    assert "i_drawn: left out, as it has images, but no homographies" in caplog.text
    assert len(caplog.records) == 2


def test_a_sequence_that_is_here_has_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sequences(tmp_path, count=4)
    monkeypatch.chdir(tmp_path / "v_drawn")
    assert [sequence.name for sequence in read_sequences(Path())] == ["v_drawn"]


def test_each_run_of_an_estimator_has_its_own_seed_and_the_protocols_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def estimate(*_: object, threshold: float, seed: int) -> None:
        asked.append((threshold, seed))

    monkeypatch.setattr(homography_benchmark, "estimate_homography", estimate)
    points = write_sequences(tmp_path, count=4)
    points |= {path: xy[:2] for path, xy in points.items() if path.name == "1.png"}
    protocol, told = HomographyProtocol(max_size=0, threshold=2.0, seeds=3), []
    results = evaluate_sequences(read_sequences(tmp_path), [Exact(points)], protocol, told.append)["exact"]
    assert set(asked) == {(2.0, 0), (2.0, 1), (2.0, 2)}
    assert {(result.keypoints, result.matches) for result in results} == {(3, 2)}  # of 2 and 4
    assert told == [f"exact {name}_drawn/{image}.png" for name in "iv" for image in (2, 3)]


def test_the_protocol_is_the_papers() -> None:
    assert HomographyProtocol() == HomographyProtocol(max_size=640, threshold=3.0, seeds=5)


def test_a_pair_that_repeats_nothing_leaves_the_localisation_to_the_others() -> None:
    some = replace(pair("v_a", [1.0], [1.0]), localisation=0.5)
    assert summarise([some, pair("v_b", [1.0], [1.0])])["localisation"] == 0.5


def test_accuracies_and_areas_at_a_threshold_are_medians_over_seeds() -> None:
    figures = summarise([pair("v_a", [0.5, 20, 20], [0.5, 20, 20])])
    assert figures["ha_ransac@1"] == figures["auc_magsac@5"] == 0


def test_errors_at_a_threshold_are_within_it_for_the_accuracy_and_beyond_it_for_the_area() -> None:
    assert fractions_below([3.0], [3.0]) == [1]
    assert area_under_curve([3.0], [3.0]) == [0]


def test_ten_images_are_in_the_order_of_their_numbers_and_suffixes_in_capitals_are_images(tmp_path: Path) -> None:
    for index in (1, 2, 10):
        write_grey(tmp_path / f"{index}.png", 8, 8).rename(tmp_path / f"{index}.PNG")
        if index > 1:
            np.savetxt(tmp_path / f"H_1_{index}", half_from_whole() * index)
    [sequence] = read_sequences(tmp_path)
    assert [path.name for path in sequence.images] == ["1.PNG", "2.PNG", "10.PNG"]


def test_a_pair_has_the_name_of_its_second_image_and_medians_over_seeds(tmp_path: Path) -> None:
    exact = Exact(write_sequences(tmp_path, count=4))
    results = evaluate_sequences(read_sequences(tmp_path), [exact], HomographyProtocol(max_size=0, seeds=1), nothing)
    assert [row["pair"] for row in pair_table(results).rows][:2] == ["i_drawn 1-2.png", "i_drawn 1-3.png"]
    [row] = pair_table({"m": [pair("v_a", [0.0, 1.0, 5.0], [2.0, 2.0, 8.0])]}).rows
    assert (row["error_ransac"], row["error_magsac"]) == (1.0, 2.0)
    assert row["mma@3"] == pytest.approx(0.3)
    assert row["localisation"] is None
