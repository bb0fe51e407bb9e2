"""More matches, and a better homography, where a homography leads (beyond the paper)."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from sekd_cli import guided_matching
from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.guided_matching import match_guided
from sekd_cli.pair_matching import MatchableImage, comparable, match_images, match_together
from sekd_cli.verification import verify

HOMOGRAPHY = np.array([[1.1, 0.1, 20], [-0.05, 0.9, 10], [1e-4, 2e-5, 1]])
PLAIN = MatchingSettings()
VERIFY = VerificationSettings(model="homography", threshold=3)


def grid(step: int) -> np.ndarray:
    """Places (N, 2) in rows."""
    return np.stack(np.meshgrid(np.arange(20, 600, step), np.arange(20, 440, step)), axis=-1).reshape(-1, 2) * 1.0


def moved(xy: np.ndarray, homography: np.ndarray = HOMOGRAPHY) -> np.ndarray:
    """Where a homography takes places."""
    return np.asarray(cv2.perspectiveTransform(xy[None], homography)[0])


def image(xy: np.ndarray, descriptors: np.ndarray) -> MatchableImage:
    """An image with these features."""
    ready = comparable(torch.from_numpy(descriptors.astype(np.float32)))
    return MatchableImage(name="", keypoints=xy.astype(np.float32), descriptors=ready, fingerprint=0)


def repeated_texture(seed: int = 0) -> tuple[MatchableImage, MatchableImage, np.ndarray]:
    """A plane in two views, in which every second keypoint looks more like one far away than like itself.

    Also which those are (N,) bool; a keypoint's match has its own number.
    """
    random = np.random.default_rng(seed)
    xy0 = grid(30)
    xy1 = moved(xy0) + random.normal(scale=0.7, size=xy0.shape)
    own = random.normal(size=(len(xy0), 32))
    deceived = np.arange(len(xy0)) % 2 == 1
    seen = own + random.normal(scale=0.3, size=own.shape)
    far = np.roll(np.flatnonzero(deceived), deceived.sum() // 2)
    seen[deceived] = 0.75 * seen[far] + 0.65 * seen[deceived]
    return image(xy0, own), image(xy1, seen), deceived


def by_hand(one: MatchableImage, other: MatchableImage) -> tuple[np.ndarray, np.ndarray]:
    """The matches by descriptors alone, (M, 2), and which are right."""
    pairs = match_images(one, other, PLAIN).indices()
    return pairs, np.linalg.norm(moved(one.keypoints[pairs[:, 0]] * 1.0) - other.keypoints[pairs[:, 1]], axis=1) < 3


def test_what_looks_more_like_something_far_away_is_matched_where_the_homography_leads() -> None:
    one, other, deceived = repeated_texture()
    by_descriptors = match_images(one, other, PLAIN).indices()
    found = match_images(one, other, PLAIN, VERIFY)
    right = found.matches0 == np.arange(len(found.matches0))
    assert not (by_descriptors[:, 0] == by_descriptors[:, 1])[deceived[by_descriptors[:, 0]]].any()
    assert right[~deceived].mean() > 0.95
    assert right[deceived].mean() > 0.9
    assert np.isin(found.matches0[~right], -1).all()
    assert (found.scores0[found.matches0 >= 0] > 0).all()
    assert found.model_name == "homography"


def test_the_homography_is_fitted_to_the_new_matches_too() -> None:
    corners = np.array([[0.0, 0], [639, 0], [639, 479], [0, 479]])

    def error(model: np.ndarray | None) -> float:
        assert model is not None
        return float(np.linalg.norm(moved(corners, model) - moved(corners), axis=1).mean())

    before, now = [], []
    for seed in range(8):
        one, other, deceived = repeated_texture(seed)
        alone = [image(each.keypoints[~deceived], each.descriptors.numpy()[~deceived]) for each in (one, other)]
        before.append(error(match_images(*alone, PLAIN, VERIFY).model))
        now.append(error(match_images(one, other, PLAIN, VERIFY).model))
    assert np.mean(now) < 0.85 * np.mean(before)


def test_all_matches_agree_on_the_model_and_no_keypoint_has_two() -> None:
    one, other, _ = repeated_texture()
    found = match_images(one, other, PLAIN, VERIFY)
    pairs = found.indices()
    assert found.model is not None
    errors = np.linalg.norm(moved(one.keypoints[pairs[:, 0]] * 1.0, found.model) - other.keypoints[pairs[:, 1]], axis=1)
    assert errors.max() < VERIFY.threshold
    assert len(np.unique(pairs[:, 1])) == len(pairs)


def test_a_photograph_that_lies_turned_is_guided_by_its_descriptors_at_that_turn() -> None:
    one, other, deceived = repeated_texture()
    random = torch.randn(3, *other.descriptors.shape, generator=torch.Generator().manual_seed(0))
    turned = replace(other, descriptors=comparable(random[0]), turned=comparable(random).clone())
    assert turned.turned is not None
    turned.turned[1] = other.descriptors
    found = match_images(one, turned, MatchingSettings(rotations=True), VERIFY)
    assert found.turn == 2
    assert (found.matches0 == np.arange(len(found.matches0)))[deceived].mean() > 0.9


def test_several_pairs_at_once_are_guided_as_each_alone() -> None:
    pairs = [repeated_texture(seed)[:2] for seed in range(2)]
    for found, pair in zip(match_together(pairs, PLAIN, VERIFY), pairs, strict=True):
        np.testing.assert_array_equal(found.matches0, match_images(*pair, PLAIN, VERIFY).matches0)  # type: ignore[union-attr]


def test_beyond_the_plane_nearness_is_chance_and_makes_no_match() -> None:
    random = np.random.default_rng(0)
    on, beyond = grid(25), grid(12)
    on, beyond = on[on[:, 0] < 300], beyond[beyond[:, 0] > 330]
    own = random.normal(size=(len(on) + len(beyond), 32))
    apart = random.uniform(20, 60, beyond.shape)  # each is at a depth of its own
    xy0, xy1 = np.concatenate((on, beyond)), np.concatenate((moved(on), moved(beyond) + apart))
    one, other = image(xy0, own), image(xy1, own)
    keypoints, descriptors = (one.keypoints, other.keypoints), (one.descriptors, other.descriptors)
    pairs = match_images(one, other, PLAIN).indices()
    inliers = (pairs[:, 0] < len(on)) & (np.arange(len(pairs)) % 3 > 0)  # a third is left to be found
    found = match_guided(keypoints, descriptors, pairs, inliers, moved(keypoints[0]), threshold=6, settings=PLAIN)
    off = found.pairs[:, 0] >= len(on)
    led_to = moved(xy0[found.pairs[:, 0]])
    assert np.linalg.norm(led_to - xy1[found.pairs[:, 1]], axis=1).max() < 6.01
    assert off.sum() > 50
    assert not found.supported[off].any()
    assert found.supported[~off].mean() > 0.9
    kept = match_images(one, other, PLAIN, VERIFY).indices()
    assert (kept[:, 0] < len(on)).sum() > 0.95 * len(on)
    assert (kept[:, 0] >= len(on)).sum() <= 2


@pytest.mark.parametrize("side", [0, 1])
def test_a_new_match_needs_support_in_both_images(side: int) -> None:
    place, crowd = np.array([[300.0, 200]]), 300 + grid(40)[:30] * 0.1
    elsewhere = crowd + np.array([2000, 0])
    views = [np.concatenate((place, crowd, crowd + 1)), np.concatenate((place, crowd, elsewhere))]
    one, other = (image(views[side ^ view], np.eye(61)) for view in (0, 1))
    keypoints, descriptors = (one.keypoints, other.keypoints), (one.descriptors, other.descriptors)
    pairs = np.stack([np.arange(1, 61)] * 2, axis=1)
    for inliers, supported in ((pairs[:, 0] <= 30, True), (pairs[:, 0] > 30, False)):
        found = match_guided(keypoints, descriptors, pairs, inliers, keypoints[0], threshold=0.5, settings=PLAIN)
        new = (found.pairs == 0).all(axis=1)
        assert found.supported[new].tolist() == [supported]


@pytest.mark.parametrize(("agreeing", "supported"), [(3, False), (4, True)])
def test_four_of_the_ten_nearest_matches_are_support_enough(agreeing: int, supported: bool) -> None:
    xy = np.concatenate((np.zeros((1, 2)), np.stack((np.arange(1, 21), np.zeros(20)), axis=1))).astype(np.float32)
    own = torch.eye(21)
    pairs = np.stack([np.arange(1, 21)] * 2, axis=1)
    inliers = (pairs[:, 0] > 10 - agreeing) & (pairs[:, 0] <= 10)
    found = match_guided((xy, xy), (own, own), pairs, inliers, xy, threshold=0.5, settings=PLAIN)
    assert found.supported[found.pairs[:, 0] == 0].tolist() == [supported]


@pytest.mark.parametrize("settings", [MatchingSettings(min_similarity=0.99), MatchingSettings(ratio=0.01)])
def test_the_filters_hold_for_what_is_matched_again(settings: MatchingSettings) -> None:
    one, other, _ = repeated_texture()
    pairs, inliers = by_hand(one, other)
    keypoints, descriptors = (one.keypoints, other.keypoints), (one.descriptors, other.descriptors)
    there = moved(keypoints[0])
    assert len(match_guided(keypoints, descriptors, pairs, inliers, there, threshold=60, settings=PLAIN).pairs)
    found = match_guided(keypoints, descriptors, pairs, inliers, there, threshold=60, settings=settings)
    assert len(found.pairs) < 5
    assert len(found.pairs) == len(found.scores) == len(found.supported)


@pytest.mark.parametrize("at_once", [1, 50, 1 << 16])
def test_all_that_is_near_is_looked_at_however_much_at_once(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(guided_matching, "CANDIDATES_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    xy0, xy1 = (random.uniform(0, 100, (count, 2)).astype(np.float32) for count in (90, 70))
    xy0[:5], xy0[5] = xy1[:5], np.nan
    own0, own1 = (comparable(torch.from_numpy(random.normal(size=(len(xy), 8)))) for xy in (xy0, xy1))
    last, agrees = np.array([[89, 69]]), np.array([True])  # and so they aren't matched again
    found = match_guided((xy0, xy1), (own0, own1), last, agrees, xy0, threshold=9, settings=PLAIN)
    similarity = (own0 @ own1.T).numpy()
    similarity[~(np.linalg.norm(xy0[:, None] - xy1, axis=2) < 9)] = -np.inf
    similarity[89] = similarity[:, 69] = -np.inf
    largest = np.equal(similarity, similarity.max(axis=0)) & np.equal(similarity, similarity.max(axis=1)[:, None])
    np.testing.assert_array_equal(found.pairs, np.argwhere(largest & np.isfinite(similarity)))


@pytest.mark.parametrize(("gone0", "gone1"), [(0, 0), (3, 0), (0, 3)])
def test_where_every_keypoint_of_an_image_is_matched_nothing_is_left(gone0: int, gone1: int) -> None:
    xy0, own = grid(60), np.eye(len(grid(60)))
    count0, count1 = len(own) - gone0, len(own) - gone1
    one, other = image(xy0[:count0], own[:count0]), image(moved(xy0)[:count1], own[:count1])
    found = match_images(one, other, PLAIN, VERIFY)
    assert found.matches0.tolist() == [row if row < count1 else -1 for row in range(count0)]


def test_a_model_that_chance_could_have_leads_nowhere() -> None:
    random = np.random.default_rng(0)
    xy0, xy1 = (random.uniform(0, 600, (400, 2)) for _ in range(2))
    one, other = image(xy0, np.eye(400)), image(xy1, np.eye(400))
    any_model = VerificationSettings(model="homography", threshold=3, min_inliers=0)
    found = match_images(one, other, PLAIN, any_model)
    assert found.model is not None
    assert all(first == second for first, second in found.indices())


def test_where_no_match_agrees_nothing_is_led_to() -> None:
    random = np.random.default_rng(0)
    xy0 = random.uniform(0, 600, (9, 2))
    one, other = image(xy0, np.eye(9)), image(moved(xy0) + random.normal(scale=1, size=xy0.shape), np.eye(9))
    any_model = VerificationSettings(model="homography", threshold=1e-9, min_inliers=0)
    assert not len(match_images(one, other, PLAIN, any_model).indices())


def test_a_fit_to_what_is_near_by_chance_leaves_no_fewer_matches_than_were_asked_for() -> None:
    fewer = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        on, beyond = random.uniform(0, 600, (30, 2)), random.uniform(0, 600, (250, 2))
        own = random.normal(size=(280, 32))
        there = moved(on) + random.normal(scale=1.2, size=on.shape)
        one = image(np.concatenate((on, beyond)), own)
        other = image(np.concatenate((there, random.uniform(0, 600, beyond.shape))), own)
        tentative = match_images(one, other, PLAIN)
        pairs = tentative.indices()
        xy0, xy1 = one.keypoints[pairs[:, 0]], other.keypoints[pairs[:, 1]]
        alone = int(verify(xy0, xy1, VERIFY, scores=tentative.scores0[pairs[:, 0]])[0].sum())
        found = match_images(one, other, PLAIN, replace(VERIFY, min_inliers=alone))
        assert found.model is None or len(found.indices()) >= alone
        fewer += len(match_images(one, other, PLAIN, VERIFY).indices()) < alone
    assert fewer
