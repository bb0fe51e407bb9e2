"""Mutual nearest neighbours: by hand, against brute force, and the laws they obey."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sekd_cli import matching
from sekd_cli.config import MatchingSettings
from sekd_cli.errors import UsageError
from sekd_cli.matching import _scan, _scan_on_cpu, match_among, match_batch, match_descriptors

PLAIN = MatchingSettings()


def angles(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((radians.cos(), radians.sin()), dim=1).float()


def random_units(count: int, seed: int, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute_force(one: np.ndarray, other: np.ndarray, ratio: float) -> list[int]:
    """The definition in the docstring, similarity by similarity."""
    similarity = one @ other.T
    wanted = [-1] * len(one)
    for j in range(len(other)):
        rows = [
            i for i in range(len(one)) if similarity[i].argmax() == j and similarity[i, j] == similarity[:, j].max()
        ]
        if not rows:
            continue
        i = rows[0]
        rivals = [*np.delete(similarity[i], j), *np.delete(similarity[:, j], i)]
        distance = (2 - 2 * similarity[i, j]).clip(0)
        if ratio == 1 or all(distance < ratio**2 * (2 - 2 * rival).clip(0) for rival in rivals):
            wanted[i] = j
    return wanted


def test_matches_are_nearest_both_ways() -> None:
    # 10 degrees is nearest to 0 and 0 to it; 20 is nearest to 0 too, but 0 prefers 10; 90 and 100 choose each other.
    matches, scores = match_descriptors(angles(10, 20, 100), angles(0, 90, 200), PLAIN)
    assert matches.tolist() == [0, -1, 1]
    assert matches.dtype == torch.int64
    assert scores.dtype == torch.float32
    assert scores.numpy() == pytest.approx([np.cos(np.pi / 18), 0, np.cos(np.pi / 18)], abs=1e-6)


def test_the_ratio_is_of_euclidean_distances_and_holds_both_ways() -> None:
    # Of 0 degrees, the best is 10 away and the second 20: chords 2 sin 5 and 2 sin 10 degrees, a ratio of 0.502.
    one, other = angles(0, 180), angles(10, -20)
    for first, second in ((one, other), (other, one)):
        assert match_descriptors(first, second, MatchingSettings(ratio=0.51))[0][0] == 0
        assert match_descriptors(first, second, MatchingSettings(ratio=0.50))[0][0] == -1


def test_the_smallest_similarity_is_a_cosine() -> None:
    one, other = angles(0), angles(60)
    assert match_descriptors(one, other, MatchingSettings(min_similarity=0.49))[0].tolist() == [0]
    assert match_descriptors(one, other, MatchingSettings(min_similarity=0.51))[0].tolist() == [-1]


@pytest.mark.parametrize("chosen", [PLAIN, MatchingSettings(ratio=0.9), MatchingSettings(temperature=0.1)])
def test_a_cpu_scans_as_other_devices_do(chosen: MatchingSettings) -> None:
    one, other = random_units(70, 0), random_units(50, 1)
    for found, expected in zip(_scan_on_cpu(one, other, 16, chosen), _scan(one, other, 32, chosen), strict=True):
        torch.testing.assert_close(found, expected)


def in_parts(may: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    """The candidates (N0, N1) bool, of so many rows at a time, in no order."""
    parts = [(may & (torch.arange(len(may)) // rows == part)[:, None]).nonzero() for part in range(len(may))]
    return [tuple(part[torch.randperm(len(part))].T) for part in parts]


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("settings", [MatchingSettings(ratio=0.98), MatchingSettings(temperature=0.1)])
def test_what_may_not_match_is_as_if_it_were_not_there(rows: int, settings: MatchingSettings) -> None:
    one, other = random_units(40, 0), random_units(30, 1)
    groups0, groups1 = torch.arange(40) % 3, torch.arange(30) % 3
    matches, scores = match_among(one, other, in_parts(groups0[:, None] == groups1, rows), settings)
    for group in range(3):
        own, columns = (groups0 == group).nonzero()[:, 0], (groups1 == group).nonzero()[:, 0]
        alone, alone_scores = match_descriptors(one[own], other[columns], settings)
        assert torch.equal(matches[own], torch.where(alone < 0, alone, columns[alone]))
        torch.testing.assert_close(scores[own], alone_scores)
        assert (alone >= 0).any()


def test_where_nothing_may_match_there_is_nothing() -> None:
    one, other = random_units(4, 0), random_units(3, 1)
    for chosen in (PLAIN, MatchingSettings(ratio=0.9, temperature=0.1)):
        for rows in (1, 4):
            matches, scores = match_among(one, other, in_parts(torch.zeros(4, 3) > 0, rows), chosen)
            assert matches.tolist() == [-1] * 4
            assert scores.tolist() == [0.0] * 4


def test_of_equal_candidates_the_first_matches() -> None:
    one, other = angles(0, 0, 90), angles(90, 0, 0)
    everything = torch.ones(3, 3) > 0
    for rows in (1, 2, 3):
        assert match_among(one, other, in_parts(everything, rows), PLAIN)[0].tolist() == [1, -1, 0]
    assert match_among(one, other, in_parts(everything, 3), MatchingSettings(ratio=0.9))[0].tolist() == [-1, -1, 0]


def test_dual_softmax_scores_are_the_product_of_both_softmaxes(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = random_units(7, 0), random_units(9, 1)
    temperature = 0.1
    similarity = one @ other.T / temperature
    probability = similarity.softmax(dim=0) * similarity.softmax(dim=1)
    monkeypatch.setattr(matching, "CPU_BLOCK_ROWS", 2)
    matches, scores = match_descriptors(one, other, MatchingSettings(temperature=temperature))
    monkeypatch.undo()
    found = matches >= 0
    assert found.any()
    assert torch.allclose(scores[found], probability[found, matches[found]], atol=1e-5)
    assert torch.equal(matches, match_descriptors(one, other, PLAIN)[0])
    middle = float(scores[found].median()) - 1e-4  # blocks differ in the last digit
    kept, _ = match_descriptors(one, other, MatchingSettings(temperature=temperature, min_probability=middle))
    assert torch.equal(kept >= 0, scores >= middle)


def test_dual_softmax_scores_are_finite_at_the_lowest_temperature_even_of_opposites() -> None:
    matches, scores = match_descriptors(angles(0), angles(180), MatchingSettings(temperature=0.03))
    assert matches.tolist() == [0]
    assert scores.tolist() == pytest.approx([1.0])  # there is nothing else to match


@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 3), (3, 0), (1, 0), (1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("settings", [PLAIN, MatchingSettings(ratio=0.9), MatchingSettings(temperature=0.1)])
def test_few_or_no_descriptors_are_no_error(count0: int, count1: int, settings: MatchingSettings) -> None:
    matches, scores = match_descriptors(random_units(count0, 0), random_units(count1, 1), settings)
    assert matches.shape == scores.shape == (count0,)
    if settings == PLAIN:
        assert int((matches >= 0).sum()) == (1 if 1 in (count0, count1) and min(count0, count1) else 0)


def test_a_match_without_a_rival_passes_the_ratio_test() -> None:
    assert match_descriptors(angles(0), angles(5), MatchingSettings(ratio=0.5))[0].tolist() == [0]


def test_a_match_with_an_equal_rival_is_the_first_and_fails_the_ratio_test() -> None:
    one, other = angles(0), angles(30, 30, 30)
    assert match_descriptors(one, other, PLAIN)[0].tolist() == [0]
    assert match_descriptors(other, one, PLAIN)[0].tolist() == [0, -1, -1]
    for first, second in ((one, other), (other, one)):
        assert match_descriptors(first, second, MatchingSettings(ratio=0.99))[0].max() == -1
    assert match_descriptors(one, one.repeat(2, 1), MatchingSettings(ratio=0.99))[0].tolist() == [
        -1
    ]  # both distances 0


def test_descriptors_that_are_all_equal_give_one_match() -> None:
    matches, _ = match_descriptors(angles(*[45] * 6), angles(*[45] * 4), PLAIN)
    assert matches.tolist() == [0, -1, -1, -1, -1, -1]


VECTORS = st.integers(1, 9).flatmap(
    lambda count: st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=count, max_size=count)
)


@given(VECTORS, VECTORS, st.sampled_from([1.0, 0.9, 0.6]), st.integers(1, 10))
def test_matches_are_those_of_the_definition_whatever_ties_there_are(
    monkeypatch: pytest.MonkeyPatch,
    one: list[tuple[int, ...]],
    other: list[tuple[int, ...]],
    ratio: float,
    block_rows: int,
) -> None:
    monkeypatch.setattr(matching, "CPU_BLOCK_ROWS", block_rows)
    # Quarters make every product exact, so that ties are ties.
    first, second = (np.array(vectors, dtype=np.float32) / 4 for vectors in (one, other))
    matches, _ = match_descriptors(torch.from_numpy(first), torch.from_numpy(second), MatchingSettings(ratio=ratio))
    assert matches.tolist() == brute_force(first, second, ratio)


@pytest.mark.parametrize("settings", [PLAIN, MatchingSettings(ratio=0.95, min_similarity=0.1)])
def test_blocks_and_sides_change_nothing(settings: MatchingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = random_units(300, 0), random_units(257, 1)
    matches, scores = match_descriptors(one, other, settings)
    assert int((matches >= 0).sum()) > 20
    for block_rows in (1, 7, 128, 299, 1000):
        monkeypatch.setattr(matching, "CPU_BLOCK_ROWS", block_rows)
        again, again_scores = match_descriptors(one, other, settings)
        assert torch.equal(matches, again)
        assert torch.allclose(scores, again_scores, atol=1e-6)
    back, _ = match_descriptors(other, one, settings)
    found = (matches >= 0).nonzero()[:, 0]
    assert torch.equal(back[matches[found]], found)
    assert int((back >= 0).sum()) == len(found)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(VECTORS | st.just([]), VECTORS | st.just([])), min_size=1, max_size=5),
    st.sampled_from([PLAIN, MatchingSettings(ratio=0.9), MatchingSettings(temperature=0.1, min_probability=0.05)]),
)
def test_a_batch_gives_what_each_pair_gives_alone_whatever_its_size(
    drawn: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]], chosen: MatchingSettings
) -> None:
    pairs = [
        (torch.tensor(one).float().reshape(-1, 3) / 4, torch.tensor(other).float().reshape(-1, 3) / 4)
        for one, other in drawn
    ]
    for (one, other), (matches, scores) in zip(pairs, match_batch(pairs, chosen), strict=True):
        expected, expected_scores = match_descriptors(one, other, chosen)
        assert matches.tolist() == expected.tolist()
        torch.testing.assert_close(scores, expected_scores)


@pytest.mark.parametrize("settings", [PLAIN, MatchingSettings(ratio=0.95, temperature=0.1)])
def test_padding_of_a_batch_matches_nothing(settings: MatchingSettings) -> None:
    """Similarities far below those of the zeros that pad."""
    far = angles(170, 175, 180), angles(0, 5)
    near = random_units(40, 0, 2), random_units(50, 1, 2)
    (matches, scores), _ = match_batch([far, near], settings)
    expected, expected_scores = match_descriptors(*far, settings)
    assert matches.tolist() == expected.tolist()
    torch.testing.assert_close(scores, expected_scores)
    assert float(match_descriptors(*far, PLAIN)[1].min()) < 0


def test_an_image_matches_itself_keypoint_by_keypoint() -> None:
    one = random_units(500, 0)
    matches, scores = match_descriptors(one, one, MatchingSettings(ratio=0.8))
    assert torch.equal(matches, torch.arange(500))
    assert torch.allclose(scores, torch.ones(500), atol=1e-5)


def test_half_precision_and_strided_descriptors_are_taken() -> None:
    one, other = random_units(40, 0), random_units(30, 1)
    expected, _ = match_descriptors(one, other, PLAIN)
    assert torch.equal(match_descriptors(one.T.contiguous().T, other, PLAIN)[0], expected)
    halves, _ = match_descriptors(one.half(), other.half(), PLAIN)
    assert (halves == expected).float().mean() > 0.9


def test_the_inputs_stay_as_they_were() -> None:
    one, other = random_units(40, 0), random_units(30, 1)
    kept = one.clone(), other.clone()
    match_descriptors(one, other, MatchingSettings(ratio=0.9, temperature=0.1))
    assert torch.equal(one, kept[0])
    assert torch.equal(other, kept[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", [PLAIN, MatchingSettings(ratio=0.95, temperature=0.1)])
def test_a_gpu_finds_the_same_matches(settings: MatchingSettings) -> None:
    one, other = random_units(3000, 0, 64), random_units(2500, 1, 64)
    expected, scores = match_descriptors(one, other, settings)
    found, found_scores = match_descriptors(one.cuda(), other.cuda(), settings)
    assert found.device.type == "cuda"
    assert (found.cpu() == expected).float().mean() > 0.999
    same = found.cpu() == expected
    assert torch.allclose(found_scores.cpu()[same], scores[same], atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 0.0},
        {"ratio": 1.5},
        {"ratio": float("nan")},
        {"min_similarity": 2.0},
        {"temperature": 0.001},
        {"temperature": -1.0},
        {"min_probability": 0.5},
        {"temperature": 0.1, "min_probability": 1.5},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        MatchingSettings(**wrong)
