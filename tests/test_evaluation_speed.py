"""The steps that are timed, and that threads are given back. No test looks at how long anything took."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from drawn import drawn_photograph

from sekd_cli.evaluation.baselines import Orb, Sift
from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures
from sekd_cli.evaluation.speed import STEPS, SpeedProtocol, draw_image, measure, panels, summary_table


class Noted(ComputedMethod):
    """Notes its name, and the threads it runs on, each time it is asked."""

    def __init__(self, label: str, notes: list[str]) -> None:
        self.label = label
        self._notes = notes

    def compute(self, grey: np.ndarray) -> LocalFeatures:
        self._notes.append(self.label)
        assert torch.get_num_threads() == cv2.getNumThreads() == 1
        empty = np.zeros((0, 2), dtype=np.float32)
        return LocalFeatures(keypoints=empty, scores=empty[:, 0], descriptors=empty)


def test_the_drawn_image_is_always_the_same_and_has_something_in_it(tmp_path: Path) -> None:
    pixels = cv2.imread(str(draw_image(tmp_path)), cv2.IMREAD_GRAYSCALE)
    (tmp_path / "again").mkdir()
    np.testing.assert_array_equal(cv2.imread(str(draw_image(tmp_path / "again")), cv2.IMREAD_GRAYSCALE), pixels)
    assert pixels.shape == (480, 640)
    assert len(Orb(500).compute(pixels)) == 500


def test_methods_take_turns_and_the_first_changes_from_round_to_round(tmp_path: Path) -> None:
    notes: list[str] = []
    steps: list[str] = []
    methods: list[ComputedMethod] = [Noted(label, notes) for label in "abc"]
    measure([draw_image(tmp_path)], methods, SpeedProtocol(rounds=2), steps.append)
    assert notes == steps == list("abc" + "bca" + "cab")  # one round to warm up, then two


def test_every_step_has_a_figure_and_ratios_are_to_the_first_method(tmp_path: Path) -> None:
    path = draw_image(tmp_path)
    rows = measure([path, path], [Orb(100), Sift(100)], SpeedProtocol(max_size=160, rounds=2), lambda _: None)
    table = summary_table(rows)
    assert [row["method"] for row in table.rows] == ["orb", "sift"]
    assert all(row[f"{step}_ms"] > 0 for row in table.rows for step in STEPS)
    assert table.rows[0]["ratio"] == 1
    assert table.rows[1]["ratio"] == pytest.approx(rows[1]["extract_ms"] / rows[0]["extract_ms"])
    for row in rows:
        assert row["keypoints_per_second"] == pytest.approx(row["keypoints"] / row["extract_ms"] * 1000)
    assert [len(panel.bars) for panel in panels(table.rows)] == [2, 2]


def test_tries_that_did_not_fill_the_budget_are_told_apart() -> None:
    pixels = cv2.cvtColor(drawn_photograph(0), cv2.COLOR_RGB2GRAY)
    few, many = Sift(20), Sift(100)  # by its default threshold it has 90
    assert len(few.compute(pixels)) == 20
    assert few.discarded_seconds == 0
    assert len(many.compute(pixels)) == 100
    assert many.discarded_seconds > 0


class Timed(ComputedMethod):
    """Says how long its network took and what it threw away, and notes what it is given."""

    label = "timed"

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.threads = 0
        self.matched: list[bool] = []

    def compute(self, grey: np.ndarray) -> LocalFeatures:
        self.sizes.append(grey.shape)
        self.threads = torch.get_num_threads()
        self.network_seconds, self.discarded_seconds = 0.01, 0.03
        empty = np.zeros((0, 2), dtype=np.float32)
        return LocalFeatures(keypoints=empty, scores=empty[:, 0], descriptors=empty)

    def match(self, first: LocalFeatures, second: LocalFeatures) -> np.ndarray:
        self.matched.append(first is second)
        return np.zeros((0, 2), dtype=np.int64)


def test_what_is_thrown_away_counts_for_no_step_and_the_rest_is_after_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("sekd_cli.evaluation.speed.perf_counter", lambda: float(next(clock)))  # a second between two
    [row] = measure([draw_image(tmp_path)], [Timed()], SpeedProtocol(rounds=1), lambda _: None)
    assert row["extract_ms"] == pytest.approx(970)
    assert row["network_ms"] == pytest.approx(10)
    assert row["post-processing_ms"] == pytest.approx(960)
    assert row["read_ms"] == row["match_ms"] == pytest.approx(1000)


def test_images_are_shrunk_matched_with_each_other_and_both_libraries_have_the_threads_asked_for(
    tmp_path: Path,
) -> None:
    method, path = Timed(), draw_image(tmp_path)
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(1)
        cv2.setNumThreads(3)
        measure([path, path], [method], SpeedProtocol(max_size=160, rounds=1, threads=2), lambda _: None)
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 3)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert set(method.sizes) == {(120, 160)}
    assert method.threads == 2
    assert method.matched
    assert not any(method.matched)
