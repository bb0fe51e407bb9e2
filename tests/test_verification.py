"""Geometric verification on scenes whose geometry is known."""

import math
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from sekd_cli import verification
from sekd_cli.config import VerificationSettings
from sekd_cli.errors import UsageError
from sekd_cli.verification import Camera, _share_exchanged, camera_of, is_chance, verification_settings, verify

CAMERA = Camera(focal=(800.0, 820.0), centre=(320.0, 240.0))
HALF = Camera(focal=(400.0, 410.0), centre=(159.75, 119.75))  # of the same photograph at half the size
MATRIX = np.array([[800.0, 0, 320], [0, 820, 240], [0, 0, 1]])
TRUE_HOMOGRAPHY = np.array([[1.1, 0.1, 20], [-0.05, 0.9, 10], [1e-4, 2e-5, 1]])


def plane(inliers: int = 60, outliers: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Matches of a plane, the wrong ones last."""
    random = np.random.default_rng(0)
    xy0 = random.uniform(0, 600, (inliers + outliers, 2))
    warped = np.column_stack((xy0, np.ones(len(xy0)))) @ TRUE_HOMOGRAPHY.T
    xy1 = warped[:, :2] / warped[:, 2:] + random.normal(scale=0.2, size=xy0.shape)
    xy1[inliers:] = random.uniform(0, 600, (outliers, 2))
    return xy0.astype(np.float32), xy1.astype(np.float32)


def scene(inliers: int = 100, outliers: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches of a scene in depth, the wrong ones last, and its true essential matrix."""
    random = np.random.default_rng(1)
    points = np.column_stack((random.uniform(-2, 2, (inliers + outliers, 2)), random.uniform(4, 9, inliers + outliers)))
    cos, sin = np.cos(0.2), np.sin(0.2)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    moved = np.array([1.0, 0.2, 0.1])
    seen0, seen1 = points @ MATRIX.T, (points @ rotation.T + moved) @ MATRIX.T
    xy0, xy1 = seen0[:, :2] / seen0[:, 2:], seen1[:, :2] / seen1[:, 2:]
    xy0, xy1 = (xy + random.normal(scale=0.1, size=xy.shape) for xy in (xy0, xy1))
    xy1[inliers:] = random.uniform(0, 600, (outliers, 2))
    cross = np.array([[0, -moved[2], moved[1]], [moved[2], 0, -moved[0]], [-moved[1], moved[0], 0]])
    return xy0.astype(np.float32), xy1.astype(np.float32), cross @ rotation


def test_a_homography_maps_the_first_image_to_the_second() -> None:
    inliers, model = verify(*plane(), VerificationSettings(model="homography", threshold=2))
    assert inliers[:60].all()
    assert inliers[60:].sum() <= 1
    assert model is not None
    corner = model @ [100, 100, 1]
    expected = TRUE_HOMOGRAPHY @ [100, 100, 1]
    assert corner[:2] / corner[2] == pytest.approx(expected[:2] / expected[2], abs=0.5)
    assert model[2, 2] == pytest.approx(1)


def test_a_homography_is_fitted_to_all_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(seed: int) -> float:
        random = np.random.default_rng(seed)
        xy0, xy1 = plane(80, 60)
        scale = np.where(np.arange(80) % 4, 0.2, 1.2)[:, None]  # as of keypoints: most are exact, some are not
        xy1[:80] += random.normal(scale=scale, size=(80, 2)).astype(np.float32)
        _, model = verify(xy0, xy1, VerificationSettings(model="homography", threshold=3))
        assert model is not None
        corners = np.array([[[0, 0], [600, 0], [0, 600], [600, 600]]], dtype=np.float64)
        found, true = (cv2.perspectiveTransform(corners, matrix) for matrix in (model, TRUE_HOMOGRAPHY))
        return float(np.linalg.norm(found - true, axis=-1).mean())

    refitted = np.mean([error(seed) for seed in range(20)])
    monkeypatch.setattr("sekd_cli.model_fitting.REFITS_POINTS", 0)
    assert refitted < 0.9 * np.mean([error(seed) for seed in range(20)])


@pytest.mark.parametrize("model", ["fundamental", "essential"])
def test_lines_are_fitted_to_all_that_agree(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(seed: int) -> float:
        random = np.random.default_rng(seed)
        xy0, xy1, truth = scene(200, 60)
        scale = np.where(np.arange(200) % 4, 0.2, 0.8)[:, None]
        xy1[:200] += random.normal(scale=scale, size=(200, 2)).astype(np.float32)
        inliers, found = verify(xy0, xy1, verification_settings(model), (CAMERA, CAMERA))
        assert found is not None
        assert inliers[:200].mean() > 0.85
        essential = found if model == "essential" else MATRIX.T @ found @ MATRIX
        one, other = (matrix / np.linalg.norm(matrix) for matrix in (essential, truth))
        return float(min(np.linalg.norm(one - other), np.linalg.norm(one + other)))

    fitted = [error(seed) for seed in range(10)]
    monkeypatch.setattr("sekd_cli.model_fitting.REFITS_LINES", 0)
    monkeypatch.setattr("sekd_cli.model_fitting.RESAMPLINGS", 0)
    assert np.mean(fitted) < 0.8 * np.mean([error(seed) for seed in range(10)])


@pytest.mark.parametrize(("model", "given"), [("homography", plane(60, 30)), ("fundamental", scene(60, 30)[:2])])
def test_where_the_fit_loses_too_many_the_estimate_stays(
    model: str, given: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, f"refit_{model}", lambda fit, xy0, *_: (fit, np.arange(len(xy0)) < 14))
    inliers, found = verify(*given, verification_settings(model))
    assert found is not None
    assert inliers.sum() >= 50


@pytest.mark.parametrize("least", [15, 0])
def test_what_is_hopeless_is_not_fitted(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    whole = verification.refit_fundamental
    monkeypatch.setattr(verification, "refit_fundamental", lambda *given: fits.append(given) or whole(*given))
    random = np.random.default_rng(0)
    settings = VerificationSettings(model="fundamental", threshold=1, min_inliers=least)
    _, found = verify(*random.uniform(0, 600, (2, 100, 2)), settings)
    assert (found is None, len(fits)) == ((True, 0) if least else (False, 1))


def test_a_fit_to_all_that_agree_is_waited_for_where_it_may_be_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    xy0, xy1, _ = scene(40, 60)
    whole = verification._estimate

    def worse(*given: object) -> tuple[np.ndarray | None, np.ndarray | None]:
        model, mask = whole(*given)  # type: ignore[arg-type]
        assert mask is not None
        return model, mask * (np.arange(len(mask))[:, None] < 22)

    monkeypatch.setattr(verification, "_estimate", worse)
    few, many = (VerificationSettings(model="fundamental", threshold=1, min_inliers=least) for least in (28, 29))
    assert verify(xy0, xy1, few)[1] is not None
    assert verify(xy0, xy1, many)[1] is None


def test_a_fundamental_matrix_has_the_second_image_on_its_left() -> None:
    xy0, xy1, essential = scene()
    inliers, model = verify(xy0, xy1, VerificationSettings(model="fundamental", threshold=1))
    assert inliers[:100].sum() > 95
    assert inliers[100:].sum() <= 5
    assert model is not None
    inverse = np.linalg.inv(MATRIX)
    true_model = inverse.T @ essential @ inverse
    line, true_line = ([*xy0[0], 1] @ matrix.T for matrix in (model, true_model))
    assert abs(line[:2] @ true_line[:2]) / np.linalg.norm(line[:2]) / np.linalg.norm(true_line[:2]) > 0.999


def test_an_essential_matrix_is_of_directions() -> None:
    xy0, xy1, essential = scene()
    settings = VerificationSettings(model="essential", threshold=1)
    inliers, model = verify(xy0, xy1, settings, (CAMERA, CAMERA))
    assert inliers[:100].sum() > 95
    assert inliers[100:].sum() <= 5
    assert model is not None
    assert abs((model * essential).sum()) / np.linalg.norm(model) / np.linalg.norm(essential) > 0.999
    with pytest.raises(ValueError, match="cameras"):
        verify(xy0, xy1, settings)


def test_an_essential_matrix_is_as_exact_as_many_matches_make_it() -> None:
    xy0, xy1, _ = scene(1000, 400)
    xy1 += np.random.default_rng(2).normal(scale=0.5, size=xy1.shape).astype(np.float32)
    settings = VerificationSettings(model="essential", threshold=1)
    inliers, model = verify(xy0, xy1, settings, (CAMERA, CAMERA))
    assert inliers[:1000].mean() > 0.93
    assert model is not None
    np.testing.assert_allclose(np.linalg.svd(model, compute_uv=False), [1, 1, 0], atol=1e-6)
    directions = [CAMERA.directions(xy[inliers]) for xy in (xy0, xy1)]
    _, rotation, translation, _ = cv2.recoverPose(model, *directions, np.eye(3))
    cos, sin = np.cos(0.2), np.sin(0.2)
    turned_back = cv2.Rodrigues(rotation @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]))[0]
    assert np.degrees(np.linalg.norm(turned_back)) < 0.1
    moved = np.array([1.0, 0.2, 0.1])
    assert np.degrees(np.arccos(translation[:, 0] @ moved / np.linalg.norm(moved))) < 0.2


def test_each_image_has_its_own_camera_and_the_threshold_is_in_pixels_of_both() -> None:
    xy0, xy1, _ = scene(400, 0)
    rough = xy1 + np.random.default_rng(0).normal(scale=2, size=xy1.shape)
    halved = ((rough + 0.5) / 2 - 0.5).astype(np.float32)
    settings = VerificationSettings(model="essential", threshold=1)
    there, _ = verify(xy0, halved, settings, (CAMERA, HALF))
    back, _ = verify(halved, xy0, settings, (HALF, CAMERA))
    assert 200 < there.sum() < 350
    assert abs(int(there.sum()) - int(back.sum())) <= 10


def test_the_threshold_is_in_pixels() -> None:
    xy0, xy1 = plane(outliers=0)
    random = np.random.default_rng(5)
    xy1 += random.normal(scale=2, size=xy1.shape).astype(np.float32)
    counts = [
        verify(xy0, xy1, VerificationSettings(model="homography", threshold=limit, min_inliers=0))[0].sum()
        for limit in (1, 3, 12)
    ]
    assert counts[0] < counts[1] < counts[2] == 60


@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
@pytest.mark.parametrize("count", [*range(9), 50])
def test_too_few_or_degenerate_matches_give_no_model_and_no_error(model: str, count: int) -> None:
    settings = VerificationSettings(model=model, threshold=1, min_inliers=0)
    same_place = np.zeros((count, 2), dtype=np.float32)
    line = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
    for xy in (same_place, line, np.full((count, 2), np.nan, dtype=np.float32)):
        inliers, found = verify(xy, xy, settings, (CAMERA, CAMERA))
        assert inliers.shape == (count,)
        assert found is None or found.shape == (3, 3)
        if count < 4:
            assert found is None
            assert not inliers.any()


def test_a_model_of_too_few_inliers_is_none() -> None:
    xy0, xy1 = plane()
    for least, found in ((60, True), (62, False)):
        inliers, model = verify(xy0, xy1, VerificationSettings(model="homography", threshold=2, min_inliers=least))
        assert (model is not None) == found
        assert inliers.any() == found


def test_equal_matches_give_equal_results() -> None:
    xy0, xy1, _ = scene()
    settings = VerificationSettings(model="fundamental", threshold=1)
    one = verify(xy0, xy1, settings)
    verify(*plane(), VerificationSettings(model="homography", threshold=1))
    other = verify(xy0, xy1, settings)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_a_focal_length_alone_has_the_centre_of_the_image() -> None:
    camera = camera_of((500.0,), (640, 480))
    assert camera == Camera(focal=(500.0, 500.0), centre=(319.5, 239.5))
    assert camera.directions(np.array([[819.5, 239.5]])).tolist() == [[1.0, 0.0]]
    assert CAMERA.matrix.tolist() == MATRIX.tolist()
    assert camera_of((500.0, 510.0, 300.0, 200.0), (640, 480)) == Camera(focal=(500.0, 510.0), centre=(300.0, 200.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"min_inliers": -1},
        {"camera": ()},
        {"camera": (1.0, 2.0)},
        {"camera": (-500.0,)},
        {"camera": (float("inf"),)},
        {"camera": (500.0, 500.0, float("nan"), 0.0)},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--"):
        VerificationSettings(**({"model": "homography", "threshold": 1.0} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("focal", [(500.0, -500.0), (0.0, 500.0), (float("inf"), 500.0)])
def test_a_camera_that_sees_nothing_is_refused(focal: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="focal lengths are positive"):
        Camera(focal=focal, centre=(320.0, 240.0))


@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
@pytest.mark.parametrize("count", [100, 400, 1600])
def test_matches_that_are_all_wrong_agree_on_nothing(model: str, count: int) -> None:
    """By number alone most of these pairs would keep a fundamental matrix: any has so many points near its lines."""
    random = np.random.default_rng(count)
    xy0, xy1 = random.uniform(0, 600, (2, count, 2)).astype(np.float32)
    inliers, found = verify(xy0, xy1, VerificationSettings(model=model, threshold=1), (CAMERA, CAMERA))
    assert found is None
    assert not inliers.any()
    anything = VerificationSettings(model=model, threshold=1, min_inliers=0)
    assert verify(xy0, xy1, anything, (CAMERA, CAMERA))[1] is not None


def test_what_chance_has_grows_with_the_matches_and_with_the_threshold() -> None:
    def enough(count: int, threshold: float) -> int:
        corners = np.array([[0, 0], [639, 479]])
        xy = np.concatenate((corners, np.full((count - 2, 2), 100)))
        settings = VerificationSettings(model="fundamental", threshold=threshold)
        return next(agreeing for agreeing in range(count) if not is_chance(agreeing, xy, xy, settings))

    assert enough(100, 1) < enough(400, 1) < enough(1600, 1) < 100
    assert enough(400, 1) < enough(400, 3)
    settings = VerificationSettings(model="homography", threshold=1)
    for few in range(5):
        assert is_chance(few, np.zeros((few, 2)), np.zeros((few, 2)), settings)


@pytest.mark.parametrize(
    ("shrunk0", "shrunk1", "box"), [(1, 1, (640, 480)), (1, 10, (64.9, 48.9)), (10, 1, (64.9, 48.9))]
)
def test_what_chance_has_is_a_number_of_false_alarms(shrunk0: int, shrunk1: int, box: tuple[float, float]) -> None:
    """Moisan and Stival 2004, in the image where a line takes the larger share."""
    xy = np.concatenate(([[0, 0], [639, 479]], np.full((98, 2), 100.0)))
    settings = VerificationSettings(model="fundamental", threshold=0.5)
    share = 2 * 0.5 * math.hypot(*box) / math.prod(box)
    for agreeing in range(8, 100):
        alarms = 93 * math.comb(100, agreeing) * math.comb(agreeing, 7) * share ** (agreeing - 7)
        assert is_chance(agreeing, xy / shrunk0, xy / shrunk1, settings) == (alarms >= 1)


def test_of_a_homography_chance_has_the_share_of_a_circle() -> None:
    xy = np.concatenate(([[0, 0], [639, 479]], np.full((98, 2), 100.0)))
    share = math.pi * 30**2 / (640 * 480)
    for agreeing in range(5, 100):
        alarms = 96 * math.comb(100, agreeing) * math.comb(agreeing, 4) * share ** (agreeing - 4)
        assert is_chance(agreeing, xy, xy, VerificationSettings(model="homography", threshold=30)) == (alarms >= 1)


def look_alikes(seed: int, count: int = 150) -> Iterator[np.ndarray]:
    """Wrong matches of photographs whose content lies in a strip, about as far left as what it looks like."""
    random = np.random.default_rng(seed)
    xy0, xy1 = (400 + random.normal(scale=8, size=(count, 2)) for _ in range(2))
    xy0[:, 0] = random.uniform(0, 640, count)
    xy1[:, 0] = xy0[:, 0] + random.normal(scale=100, size=count)
    corners = np.array([[0, 0], [639, 479]])
    yield from (np.concatenate((corners, xy)).astype(np.float32) for xy in (xy0, xy1))


@pytest.mark.parametrize("model", ["fundamental", "essential"])
def test_wrong_matches_of_photographs_that_look_alike_are_chance(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = verification_settings(model)
    pairs = [tuple(look_alikes(seed)) for seed in range(10)]
    assert not any(verify(*pair, settings, (CAMERA, CAMERA))[1] is not None for pair in pairs)
    monkeypatch.setattr("sekd_cli.verification._share_exchanged", lambda *_: 0.0)
    assert sum(verify(*pair, settings, (CAMERA, CAMERA))[1] is not None for pair in pairs) > 5


@pytest.mark.parametrize("model", ["fundamental", "essential"])
def test_a_scene_in_a_strip_is_no_chance(model: str) -> None:
    xy0, xy1, _ = scene(300, 60)
    strip = (abs(xy0[:, 1] - 240) < 60) | (np.arange(len(xy0)) >= 300)
    inliers, found = verify(xy0[strip], xy1[strip], verification_settings(model), (CAMERA, CAMERA))
    assert found is not None
    assert inliers.sum() >= 0.9 * (strip[:300].sum())


@pytest.mark.parametrize("count", [8, 33, 200])
def test_matches_are_exchanged_with_their_nearest(count: int) -> None:
    random = np.random.default_rng(count)
    xy0, xy1 = random.uniform(0, 100, (2, count, 2))
    matrix = random.normal(size=(3, 3))
    errors = []
    for one in range(count):
        nearest = sorted(set(range(count)) - {one}, key=lambda other: math.dist(xy0[one], xy0[other]))
        for other in nearest[: count // 4]:
            first, second = np.array([*xy0[one], 1]), np.array([*xy1[other], 1])
            slopes = [*(matrix @ first)[:2], *(matrix.T @ second)[:2]]
            errors.append(abs(second @ matrix @ first) / math.hypot(*slopes))
    for part in (0.2, 0.5, 0.9):
        threshold = float(np.quantile(errors, part)) + 1e-9
        assert _share_exchanged(xy0, xy1, matrix, threshold) == pytest.approx(np.mean(np.array(errors) < threshold))


def test_of_many_matches_some_are_exchanged_and_one_agrees_at_least() -> None:
    random = np.random.default_rng(0)
    xy0, xy1 = random.uniform(0, 100, (2, 5000, 2))
    sideways = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])  # what is in one row
    assert _share_exchanged(xy0, xy1, sideways, 5.0) == pytest.approx(0.135, abs=0.02)  # of differences of rows
    assert 0 < _share_exchanged(xy0, xy1, sideways, 1e-12) < 1e-3


@pytest.mark.parametrize(("model", "right", "wrong"), [("fundamental", 30, 170), ("essential", 40, 460)])
def test_matches_are_tried_by_their_scores(model: str, right: int, wrong: int) -> None:
    """Where few are right, samples of any matches have no chance (Chum and Matas 2005)."""
    xy0, xy1, _ = scene(right, wrong)
    random = np.random.default_rng(3)
    scores = random.normal(size=len(xy0)) + 2 * (np.arange(len(xy0)) < right)
    order = random.permutation(len(xy0))
    given, settings = (xy0[order], xy1[order]), verification_settings(model)
    inliers, found = verify(*given, settings, (CAMERA, CAMERA), scores[order])
    assert found is not None
    assert inliers[order < right].mean() > 0.9
    assert inliers.sum() < 1.2 * right
    assert verify(*given, settings, (CAMERA, CAMERA), -scores[order])[1] is None


@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
def test_without_scores_matches_come_best_first(model: str) -> None:
    xy0, xy1, _ = scene(120, 60)
    scores = np.random.default_rng(4).normal(size=len(xy0)).round(1)  # some are equal
    order = np.array(sorted(range(len(xy0)), key=lambda index: -scores[index]))
    settings = VerificationSettings(model=model, threshold=3, min_inliers=0)
    inliers, found = verify(xy0, xy1, settings, (CAMERA, CAMERA), scores)
    expected, as_given = verify(xy0[order], xy1[order], settings, (CAMERA, CAMERA))
    np.testing.assert_array_equal(found, as_given)
    np.testing.assert_array_equal(inliers[order], expected)
    assert 0 < inliers.sum() < len(inliers)


def test_the_usual_thresholds_in_pixels_and_number_of_inliers() -> None:
    usual = [verification_settings(model) for model in ("homography", "fundamental", "essential")]
    assert [settings.threshold for settings in usual] == [3, 1, 1]
    assert {settings.min_inliers for settings in usual} == {15}


def test_a_photograph_that_lies_mirrored_agrees_too() -> None:
    """EXIF has such orientations; OpenCV's USAC refuses homographies that mirror."""
    xy0, xy1 = plane()
    settings = VerificationSettings(model="homography", threshold=2)
    expected, _ = verify(xy0, xy1, settings)
    inliers, model = verify(xy0, [599, 0] + xy1 * [-1, 1], settings)
    np.testing.assert_array_equal(inliers, expected)
    assert model is not None
    found, true = (matrix @ [100, 100, 1] for matrix in (model, TRUE_HOMOGRAPHY))
    assert 599 - found[0] / found[2] == pytest.approx(true[0] / true[2], abs=0.5)
