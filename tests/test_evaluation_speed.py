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


def test_threads_are_as_before_afterwards(tmp_path: Path) -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    measure([draw_image(tmp_path)], [Noted("a", [])], SpeedProtocol(rounds=1, threads=1), lambda _: None)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


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
