"""Many pairs: what is matched, what is read, and that neither order nor memory nor threads change a number."""

import dataclasses
import itertools
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from drawn_features import ATTRIBUTES, TURNED_ATTRIBUTES, drawn_features, turned_by, write_views
from hypothesis import given
from hypothesis import strategies as st
from test_verification import CAMERA, HALF, scene

from sekd_cli import match_pipeline, match_writing
from sekd_cli.config import MatchingSettings, VerificationSettings
from sekd_cli.errors import DeviceError, ImageError, OutputError
from sekd_cli.feature_cache import FeatureCache, Loader, order_in_blocks, plan
from sekd_cli.feature_file import FeatureReader, FeatureWriter
from sekd_cli.match_file import MatchReader, MatchWriter, match_attributes
from sekd_cli.match_pipeline import PairMatcher, PipelineSettings, match_all
from sekd_cli.match_writing import Outcome, is_done
from sekd_cli.pair_matching import comparable, match_images, match_together, matchable_image
from sekd_cli.pairs import Pair, exhaustive
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.stored_matches import StoredMatches
from sekd_cli.verification import Camera
from sekd_cli.workers import interrupts_later, workers

CPU = torch.device("cpu")
ONE_IMAGE = 80 * (2 + 16) * 4  # bytes of one drawn image's features
ONE_POINT = drawn_features(0, common=1, own=0, width=2)
NAMES = [f"view{index}.jpg" for index in range(8)]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return write_views(tmp_path / "feats.h5", NAMES)


def run(features: Path, output: Path, pairs: list[Pair], processes: int = 0, **options: Any) -> list[Outcome]:
    """Match pairs into a file, in so many processes; options of `PairMatcher` and of the settings of `match_all`."""
    chosen = {name: options.pop(name) for name in ("threads", "update", "batch_values") if name in options}
    options.setdefault("matching", MatchingSettings())
    settings = PipelineSettings(device=CPU, **chosen)
    matcher = PairMatcher(features, options.pop("cache_bytes", 10**9) // max(1, processes), **options)
    with (
        FeatureReader(features) as reader,
        workers(processes, matcher) as others,
        MatchWriter(output, match_attributes(reader, {})) as writer,
    ):
        return list(match_all(plan(pairs), reader, writer, settings, matcher=matcher, workers=others))


both_ways = pytest.mark.parametrize(
    "processes",
    [
        pytest.param(0, id="threads"),
        pytest.param(2, id="processes", marks=pytest.mark.skipif(sys.platform != "linux", reason="can't fork")),
    ],
)


def contents(path: Path) -> dict[str, list[np.ndarray]]:
    """Every group of a pair in the file, and its arrays."""
    with h5py.File(path) as file:
        return {
            f"{first}/{second}": [values[()] for values in file[first][second].values()]
            for first in file
            for second in file[first]
        }


def test_each_pair_is_planned_once_and_none_with_itself() -> None:
    work = plan([("b", "a"), ("a", "a"), ("a", "b"), ("b", "a"), ("c", "b")])
    assert work.names == ["b", "a", "c"]
    assert work.pairs.tolist() == [[0, 1], [2, 0]]
    assert (work.repeated, work.with_itself) == (2, 1)
    assert plan([]).pairs.shape == (0, 2)
    lower = plan([("A", "b"), ("B", "a"), ("b", "B"), ("C", "a")], str.lower)
    assert (lower.names, lower.pairs.tolist()) == (["a", "b", "c"], [[0, 1], [2, 0]])
    assert (lower.repeated, lower.with_itself) == (1, 1)


def test_pairs_of_very_many_images_are_told_apart() -> None:
    """61356 x 70000 + 67296 is 2^32 more than 0 x 70000 + 20000."""
    names = [f"{index:05}" for index in range(70_000)]
    pairs = [*zip(names[::2], names[1::2], strict=True), (names[0], names[20_000]), (names[61_356], names[67_296])]
    work = plan(pairs)
    assert (len(work.pairs), work.repeated) == (len(pairs), 0)


@both_ways
def test_true_matches_are_found(features: Path, tmp_path: Path, processes: int) -> None:
    outcomes = run(features, tmp_path / "m.h5", [("view0.jpg", "view3.jpg")], processes=processes)
    assert [outcome.pair for outcome in outcomes] == [("view0.jpg", "view3.jpg")]
    assert outcomes[0].matches >= 60  # of the 60 points that both show, and a few of the others
    first, second = drawn_features(0), drawn_features(3)
    with MatchReader(tmp_path / "m.h5") as reader:
        matches = reader.read(("view0.jpg", "view3.jpg"))
    similarity = first.descriptors @ second.descriptors.T
    for one, other in matches.indices():
        assert similarity[one].argmax() == other
        assert matches.scores0[one] == pytest.approx(similarity[one, other], abs=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cache_bytes", [0, 4 * ONE_IMAGE, 10**9])
@both_ways
def test_order_memory_and_threads_change_nothing(
    features: Path, tmp_path: Path, threads: int, cache_bytes: int, processes: int
) -> None:
    pairs = list(exhaustive(NAMES))
    shuffled = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))]
    outcomes = run(
        features, tmp_path / "other.h5", shuffled, threads=threads, cache_bytes=cache_bytes, processes=processes
    )
    assert sorted(outcome.pair for outcome in outcomes) == sorted(pairs)
    run(features, tmp_path / "plain.h5", pairs)  # by threads, so last: one may end, in MKL's lock, as a process forks
    np.testing.assert_equal(contents(tmp_path / "other.h5"), contents(tmp_path / "plain.h5"))


@pytest.mark.parametrize("verification", [None, VerificationSettings(model="homography", threshold=1, min_inliers=5)])
@pytest.mark.parametrize("batch_values", [1, 3 * 80 * 80, 10**9])
def test_pairs_in_batches_have_the_matches_they_have_alone(
    tmp_path: Path, batch_values: int, verification: VerificationSettings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; images of different numbers of keypoints, one of none and one of another width among them."""
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, drawn_features(view, common=60, own=5 * view))
        writer.write("empty.jpg", drawn_features(0, common=0, own=0, width=8))
        writer.write("wide.jpg", drawn_features(0, width=32))
    pairs = list(exhaustive([*NAMES, "empty.jpg", "wide.jpg"]))
    alone = run(tmp_path / "feats.h5", tmp_path / "alone.h5", pairs, verification=verification)

    def together(batch: Any, *settings: Any) -> Any:
        most0, most1 = (max(len(images[side].keypoints) for images in batch) for side in (0, 1))
        assert len(batch) * most0 * most1 <= batch_values
        return match_together(batch, *settings)

    monkeypatch.setattr(match_pipeline, "match_together", together)
    found = run(
        tmp_path / "feats.h5", tmp_path / "batches.h5", pairs, verification=verification, batch_values=batch_values
    )
    assert sorted(found) == sorted(alone)
    assert sum(outcome.failure is not None for outcome in found) == len(NAMES)
    together, expected = contents(tmp_path / "batches.h5"), contents(tmp_path / "alone.h5")
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-7)


@pytest.mark.parametrize(("rotations", "expected"), [(False, [8, 10, 10]), (True, [2] * 14)])
def test_batches_are_as_large_as_their_room_and_cost_one_call_each(
    rotations: bool, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rotations a pair has four times the similarities."""
    with FeatureWriter(tmp_path / "feats.h5", TURNED_ATTRIBUTES) as writer:
        for view, name in enumerate(NAMES):
            writer.write(name, turned_by(drawn_features(view), 0))
    sizes = []

    def together(batch: Any, *settings: Any) -> Any:
        sizes.append(len(batch))
        return match_together(batch, *settings)

    monkeypatch.setattr(match_pipeline, "match_together", together)
    matching, pairs = MatchingSettings(rotations=rotations), list(exhaustive(NAMES))
    run(tmp_path / "feats.h5", tmp_path / "m.h5", pairs, matching=matching, batch_values=10 * 80 * 80)
    assert sorted(sizes) == expected

    sizes.clear()
    monkeypatch.setattr(match_pipeline, "COMMIT_PAIRS", 5)
    run(tmp_path / "feats.h5", tmp_path / "few.h5", pairs, matching=matching, batch_values=10**9)
    assert sorted(sizes) == [3, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("batch_values", [0, 10**9])
@pytest.mark.parametrize("verification", [None, VerificationSettings(model="homography", threshold=1, min_inliers=0)])
@pytest.mark.parametrize("turn", range(4))
def test_the_turn_with_the_most_matches_is_found_and_told(
    tmp_path: Path, turn: int, verification: VerificationSettings | None, batch_values: int
) -> None:
    with FeatureWriter(tmp_path / "feats.h5", TURNED_ATTRIBUTES) as writer:
        writer.write("a.jpg", turned_by(drawn_features(0), 0))
        writer.write("b.jpg", turned_by(drawn_features(1), turn))
        writer.write("c.jpg", drawn_features(2))
    outcomes = run(
        tmp_path / "feats.h5",
        tmp_path / "m.h5",
        [("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")],
        matching=MatchingSettings(rotations=True),
        verification=verification,
        batch_values=batch_values,
    )
    found = {outcome.pair[1]: outcome for outcome in outcomes}
    assert found["b.jpg"].matches >= 55
    assert "c.jpg: no descriptors of it turned" in str(found["c.jpg"].failure)
    plain = match_images(
        *(matchable_image(name, drawn_features(view)) for view, name in enumerate("ab")), MatchingSettings()
    )
    with MatchReader(tmp_path / "m.h5") as reader:
        matches = reader.read(("a.jpg", "b.jpg"))
        back = reader.read(("b.jpg", "a.jpg"), count0=80)
    assert (matches.turn, back.turn) == (turn, -turn % 4)
    kept = matches.matches0 >= 0
    np.testing.assert_array_equal(matches.matches0[kept], plain.matches0[kept])


def test_of_turns_with_equally_many_matches_the_more_alike_is_taken() -> None:
    plain = drawn_features(0)
    noise = np.random.default_rng(0).normal(scale=0.05, size=plain.descriptors.shape)
    noisy = (plain.descriptors + noise).astype(np.float32)
    turned = dataclasses.replace(plain, descriptors=noisy, turned=np.stack([noisy, plain.descriptors, noisy]))
    images = matchable_image("a", plain), matchable_image("b", turned)
    found = match_images(*images, MatchingSettings(rotations=True))
    assert (found.turn, len(found.indices())) == (2, 80)


def test_each_image_of_a_pair_has_its_own_camera() -> None:
    xy0, xy1, _ = scene(100, 0)
    descriptors = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    one, other = (
        StoredFeatures(keypoints=xy, scores=np.ones(100, np.float32), descriptors=descriptors, image_size=(640, 480))
        for xy in (xy0, (xy1 + 0.5) / 2 - 0.5)
    )
    images = matchable_image("a", one, camera=CAMERA), matchable_image("b", other, camera=HALF)
    found = match_images(*images, MatchingSettings(), VerificationSettings(model="essential", threshold=1))
    assert len(found.indices()) > 95


def some_turned(pairs: Iterable[Pair]) -> list[Pair]:
    """Every second pair the other way round."""
    return [pair[::-1] if index % 2 else pair for index, pair in enumerate(pairs)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are read, one after the other."""
    names: list[str] = []
    as_ever = FeatureReader.read

    def noted(reader: FeatureReader, name: str, *, turned: bool = False) -> StoredFeatures:
        names.append(name)
        return as_ever(reader, name, turned=turned)

    monkeypatch.setattr(FeatureReader, "read", noted)
    return names


@pytest.mark.parametrize(("room", "reads"), [(100, 40), (50, 40), (20, 64), (10, 109)])
def test_every_image_is_read_a_few_times_only(tmp_path: Path, read: list[str], room: int, reads: int) -> None:
    """Fewer times than these would need more memory than there is."""
    names = [f"{index:02}.jpg" for index in range(40)]
    write_views(tmp_path / "feats.h5", names, common=2, own=2, width=2)
    size = 4 * (2 + 2) * 4
    with FeatureReader(tmp_path / "feats.h5") as reader:
        cache = FeatureCache(Loader(reader, CPU), room * size)
        walked = [pair for pair, _, _ in cache.walk(plan(some_turned(exhaustive(names))))]
    assert sorted(walked) == sorted(some_turned(exhaustive(names)))
    assert len(read) == reads


@pytest.mark.parametrize(("room", "reads"), [(40, 40), (20, 90), (10, 174)])
def test_a_process_reads_every_image_a_few_times_only(tmp_path: Path, read: list[str], room: int, reads: int) -> None:
    names = [f"{index:02}.jpg" for index in range(40)]
    write_views(tmp_path / "feats.h5", names, common=2, own=2, width=2)
    size = 4 * (2 + 2) * 4
    work = plan(some_turned(exhaustive(names)))
    matcher = PairMatcher(tmp_path / "feats.h5", room * size, MatchingSettings())
    for index in order_in_blocks(work, room // 2):
        matcher([(names[work.pairs[index, 0]], names[work.pairs[index, 1]])])
    assert len(read) == reads


def test_half_of_the_memory_is_for_pixels_where_matches_are_aligned(features: Path, tmp_path: Path) -> None:
    plain, aligned = (PairMatcher(features, 100, MatchingSettings(), folder=folder) for folder in (None, tmp_path))
    assert (plain.cache_bytes, aligned.cache_bytes) == (100, 50)


def test_free_memory_is_given_back_every_so_many_tasks(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = []
    monkeypatch.setattr(match_pipeline, "give_back_memory", lambda: given_back.append(True))
    matcher = PairMatcher(features, 0, MatchingSettings())
    for _ in range(2 * match_pipeline.GIVE_BACK_EVERY):
        matcher([])
    assert len(given_back) == 2


@pytest.mark.parametrize(("share", "most"), [(1.1, 1), (0.5, 3), (0.25, 4)])
def test_all_pairs_of_many_images_read_each_a_few_times_only(share: float, most: int) -> None:
    """share: of all features, what the memory holds."""
    names = [f"{index:03}.jpg" for index in range(500)]
    reads: Counter[str] = Counter()

    class Reader:
        def read(self, name: str, *, turned: bool) -> StoredFeatures:
            assert not turned
            reads[name] += 1
            return ONE_POINT

    size = 2 * 4 + 2 * 4
    room = int(share * size * len(names) * 8 / 7)
    cache = FeatureCache(Loader(Reader(), CPU), room)  # type: ignore[arg-type]
    walked = sum(1 for _ in cache.walk(plan(exhaustive(names))))
    assert walked == 124_750
    assert max(reads.values()) <= most


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30), st.integers(0, 12))
def test_every_pair_is_walked_once_with_its_own_images(pairs: list[tuple[int, int]], room: int) -> None:
    class Reader:
        def read(self, name: str, *, turned: bool) -> StoredFeatures:
            return dataclasses.replace(drawn_features(0, common=2, own=0, width=2), image_size=(int(name), 0))

    work = plan([(str(one), str(other)) for one, other in pairs])
    camera = lambda name, of: Camera(focal=(float(name) + 1, of.image_size[0] + 1), centre=(0, 0))  # noqa: E731
    cache = FeatureCache(Loader(Reader(), CPU, camera), room * 2 * 4 * 4)  # type: ignore[arg-type]
    walked = []
    for pair, image0, image1 in cache.walk(work):
        walked.append(pair)
        assert not isinstance(image0, str)
        assert not isinstance(image1, str)
        assert (image0.name, image1.name) == pair
        assert image0.camera == Camera(focal=(float(pair[0]) + 1, int(pair[0]) + 1), centre=(0, 0))
    expected = {frozenset(map(str, pair)) for pair in pairs if pair[0] != pair[1]}
    assert {frozenset(pair) for pair in walked} == expected
    assert len(walked) == len(expected)


def test_a_second_run_matches_only_what_is_new(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = list(exhaustive(NAMES[:5]))
    run(features, tmp_path / "m.h5", pairs[:6])
    matched = []

    def matching(image0: Any, image1: Any, *settings: Any) -> StoredMatches:
        matched.append((image0.name, image1.name))
        return match_images(image0, image1, *settings)

    monkeypatch.setattr(match_pipeline, "match_images", matching)
    outcomes = run(features, tmp_path / "m.h5", [pair[::-1] for pair in pairs[:3]] + pairs[3:])
    assert sorted(matched) == sorted(pairs[6:])
    assert sum(outcome.skipped for outcome in outcomes) == 6


@both_ways
def test_an_interrupt_does_not_wait_for_the_pairs_that_are_done(
    features: Path, tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, asked = list(exhaustive(NAMES)), []
    run(features, tmp_path / "m.h5", pairs, processes=processes)

    def interrupted(writer: MatchWriter, pair: Pair, *given: Any) -> bool:
        asked.append(pair)
        if len(asked) == 1:
            signal.raise_signal(signal.SIGINT)
        return is_done(writer, pair, *given)

    monkeypatch.setattr(match_pipeline, "is_done", interrupted)
    with pytest.raises(KeyboardInterrupt), interrupts_later():
        run(features, tmp_path / "m.h5", pairs, processes=processes)
    assert len(asked) == 1


@both_ways
def test_changed_features_stop_it_or_are_matched_again(features: Path, tmp_path: Path, processes: int) -> None:
    pairs = list(exhaustive(NAMES[:3]))
    run(features, tmp_path / "m.h5", pairs, processes=processes)
    write_views(features, [NAMES[1], NAMES[0], *NAMES[2:]])  # the first two have changed places
    with pytest.raises(OutputError, match="changed since"):
        run(features, tmp_path / "m.h5", pairs, processes=processes)
    outcomes = run(features, tmp_path / "m.h5", pairs, update=True, processes=processes)
    assert not any(outcome.skipped for outcome in outcomes)
    run(features, tmp_path / "fresh.h5", pairs, processes=processes)
    np.testing.assert_equal(contents(tmp_path / "m.h5"), contents(tmp_path / "fresh.h5"))


@both_ways
def test_pairs_that_fail_are_told_and_the_others_done(features: Path, tmp_path: Path, processes: int) -> None:
    with FeatureWriter(features, ATTRIBUTES) as writer:
        writer.write("wide.jpg", drawn_features(0, width=32))
        writer.write("damaged.jpg", drawn_features(0))
        writer.write("empty.jpg", drawn_features(0, common=0, own=0, width=8))
    with h5py.File(features, "r+") as file:
        del file["damaged.jpg/keypoints"]
    bad = ["missing.jpg", "wide.jpg", "damaged.jpg", "../x", "a\udcff.jpg"]
    pairs = [(name, "view0.jpg") for name in bad] + [("view0.jpg", "view1.jpg"), ("empty.jpg", "view0.jpg")]
    outcomes = {outcome.pair: outcome for outcome in run(features, tmp_path / "m.h5", pairs, processes=processes)}
    assert outcomes["view0.jpg", "view1.jpg"].matches > 50
    assert outcomes["empty.jpg", "view0.jpg"] == Outcome(("empty.jpg", "view0.jpg"), matches=0)
    for name, reason in zip(
        bad, ["no features of missing", "32 and of 16", "damaged", "no features", "no f"], strict=True
    ):
        failure = outcomes[name, "view0.jpg"].failure
        assert failure is not None
        assert reason in failure
    assert len(contents(tmp_path / "m.h5")) == 2


def test_unnormalised_and_broken_descriptors_are_made_comparable() -> None:
    plain, scaled = drawn_features(0), drawn_features(1)
    factors = np.linspace(0.5, 300, len(scaled), dtype=np.float32)[:, None]
    broken = (scaled.descriptors * factors).copy()
    broken[3] = np.nan
    broken[4] = 0
    image0 = matchable_image("a", plain)
    expected = match_images(image0, matchable_image("b", scaled), MatchingSettings())
    found = match_images(
        image0, matchable_image("b", dataclasses.replace(scaled, descriptors=broken)), MatchingSettings()
    )
    others = ~np.isin(expected.matches0, [3, 4]) & ~np.isin(found.matches0, [3, 4])
    assert others.sum() > 70
    assert (found.matches0 == expected.matches0)[others].mean() > 0.95
    np.testing.assert_allclose(found.scores0[others & (found.matches0 == expected.matches0)].max(), 1, atol=0.1)


def test_numbers_that_are_none_count_as_0_in_descriptors() -> None:
    nan, inf = float("nan"), float("inf")
    found = comparable(torch.tensor([[nan, 3, 4], [inf, 3, -4], [-inf, 0, 2], [nan, 0, 0]], dtype=torch.float16))
    torch.testing.assert_close(found, torch.tensor([[0, 0.6, 0.8], [0, 0.6, -0.8], [0, 0, 1], [0, 0, 0]]))


@both_ways
def test_verified_pairs_keep_inliers_and_their_model(features: Path, tmp_path: Path, processes: int) -> None:
    settings = VerificationSettings(model="homography", threshold=1)
    run(features, tmp_path / "m.h5", [("view1.jpg", "view4.jpg")], verification=settings, processes=processes)
    run(features, tmp_path / "plain.h5", [("view1.jpg", "view4.jpg")], processes=processes)
    with MatchReader(tmp_path / "m.h5") as reader, MatchReader(tmp_path / "plain.h5") as unverified:
        found, plain = reader.read(("view1.jpg", "view4.jpg")), unverified.read(("view1.jpg", "view4.jpg"))
    assert found.model_name == "homography"
    assert 55 <= len(found.indices()) < len(plain.indices())
    kept = found.matches0 >= 0
    assert (found.matches0[kept] == plain.matches0[kept]).all()
    assert (found.scores0[~kept] == 0).all()
    xy0 = drawn_features(1).keypoints[found.indices()[:, 0]]
    xy1 = drawn_features(4).keypoints[found.indices()[:, 1]]
    assert found.model is not None
    mapped = np.column_stack((xy0, np.ones(len(xy0)))) @ found.model.T
    assert np.abs(mapped[:, :2] / mapped[:, 2:] - xy1).max() < 1.5


def test_a_pair_that_nothing_explains_keeps_no_match_and_no_model(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "feats.h5", ATTRIBUTES) as writer:
        for name, plane in (("a.jpg", 0), ("b.jpg", 1)):
            writer.write(name, drawn_features(plane, plane=plane))
    for model in ("homography", "fundamental"):
        settings = VerificationSettings(model=model, threshold=1)
        outcomes = run(tmp_path / "feats.h5", tmp_path / f"{model}.h5", [("a.jpg", "b.jpg")], verification=settings)
        assert outcomes == [Outcome(("a.jpg", "b.jpg"), matches=0)]
        with MatchReader(tmp_path / f"{model}.h5") as reader:
            assert reader.read(("a.jpg", "b.jpg")).model is None


@both_ways
def test_a_camera_that_is_gone_costs_no_pair_that_is_done(features: Path, tmp_path: Path, processes: int) -> None:
    def camera_of(name: str, features: StoredFeatures) -> Camera:
        raise ImageError(f"{name}: no such file")

    first, second = list(exhaustive(NAMES[:3]))[:2]
    run(features, tmp_path / "m.h5", [first])
    told = {
        outcome.pair: outcome
        for outcome in run(features, tmp_path / "m.h5", [first, second], camera_of=camera_of, processes=processes)
    }
    assert told[first].skipped
    assert told[second].failure == "no such file"


@both_ways
def test_pairs_that_are_done_fail_where_the_features_of_either_image_are_gone(
    features: Path, tmp_path: Path, processes: int
) -> None:
    pairs = list(exhaustive(NAMES[:3]))
    run(features, tmp_path / "m.h5", pairs, processes=processes)
    with h5py.File(features, "r+") as file:
        del file[NAMES[1]]
    for outcome in run(features, tmp_path / "m.h5", pairs, processes=processes):
        assert outcome.skipped == (NAMES[1] not in outcome.pair)
        assert ("no features of view1.jpg" in str(outcome.failure)) == (NAMES[1] in outcome.pair)


@both_ways
def test_an_image_without_a_camera_fails_in_its_pairs_only(features: Path, tmp_path: Path, processes: int) -> None:
    def camera_of(name: str, features: StoredFeatures) -> Camera:
        if name in {"view1.jpg", "view3.jpg"}:
            raise ImageError(f"{name}: no focal length")
        return Camera(focal=(400, 400), centre=(features.image_size[0] / 2, features.image_size[1] / 2))

    outcomes = run(
        features,
        tmp_path / "m.h5",
        list(exhaustive(NAMES[:4])),
        verification=VerificationSettings(model="essential", threshold=1),
        camera_of=camera_of,
        processes=processes,
    )
    first, third = (f"view{index}.jpg: no focal length" for index in (1, 3))
    assert {outcome.pair: outcome.failure for outcome in outcomes if outcome.failure} == {
        ("view0.jpg", "view1.jpg"): first,
        ("view0.jpg", "view3.jpg"): third,
        ("view1.jpg", "view2.jpg"): first,
        ("view1.jpg", "view3.jpg"): "no focal length",  # of both, said once
        ("view2.jpg", "view3.jpg"): third,
    }


def test_outcomes_are_told_when_they_are_durable(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(match_writing, "COMMIT_PAIRS", 5)
    pairs = list(exhaustive(NAMES))
    matcher = PairMatcher(features, 0, MatchingSettings())
    with FeatureReader(features) as reader, MatchWriter(tmp_path / "m.h5", match_attributes(reader, {})) as writer:
        outcomes = match_all(plan(pairs), reader, writer, PipelineSettings(device=CPU), matcher=matcher)
        told = [outcome.pair for outcome in itertools.islice(outcomes, 12)]
        (tmp_path / "killed.h5").write_bytes((tmp_path / "m.h5").read_bytes())  # what a kill would leave now
        outcomes.close()  # type: ignore[attr-defined]
    with MatchReader(tmp_path / "killed.h5") as reader:
        assert set(reader.pairs()) >= set(told)


def test_a_device_without_memory_is_told(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("sekd_cli.pair_matching.match_descriptors", exhausted)
    with pytest.raises(DeviceError, match="memory"):
        run(features, tmp_path / "m.h5", [("view0.jpg", "view1.jpg")])


@pytest.mark.skipif(sys.platform != "linux", reason="can't fork")
def test_processes_do_the_rest_of_a_file(features: Path, tmp_path: Path) -> None:
    pairs = list(exhaustive(NAMES))
    run(features, tmp_path / "m.h5", pairs[:6], processes=1)  # no threads, see above
    outcomes = run(features, tmp_path / "m.h5", [pair[::-1] for pair in pairs], processes=2, cache_bytes=2 * ONE_IMAGE)
    assert sum(outcome.skipped for outcome in outcomes) == 6
    assert {frozenset(outcome.pair) for outcome in outcomes} == set(map(frozenset, pairs))
    assert len(contents(tmp_path / "m.h5")) == len(pairs)


@pytest.mark.skipif(sys.platform != "linux", reason="can't fork")
def test_a_pair_that_kills_the_process_fails_alone(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, killer = os.getpid(), ("view2.jpg", "view5.jpg")

    def match_or_die(image0: Any, image1: Any, *settings: Any) -> StoredMatches:
        if (image0.name, image1.name) == killer and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return match_images(image0, image1, *settings)

    monkeypatch.setattr(match_pipeline, "match_images", match_or_die)
    outcomes = run(features, tmp_path / "m.h5", list(exhaustive(NAMES)), processes=2)
    failed = {outcome.pair: outcome.failure for outcome in outcomes if outcome.failure}
    assert failed.keys() == {killer}
    assert "died (SIGKILL); give a smaller --cache" in str(failed[killer])
    assert len(contents(tmp_path / "m.h5")) == len(outcomes) - 1 == len(list(exhaustive(NAMES))) - 1
