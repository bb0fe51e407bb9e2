"""The report of a run: its page, its curves, its TensorBoard events."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sekd_cli.commands.train import train
from sekd_cli.commands.train_report import RunReport
from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.training.curves import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Panel, draw_panels, smooth, ticks
from sekd_cli.training.events import Events
from sekd_cli.training.report import panels, write_report
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.schedule import Phase
from sekd_cli.training.settings import PRESETS, TrainingSettings

VALIDATION = {"repeatability": 0.5, "localisation_error": 1.25, "mma_1": 0.25, "mma_3": 0.5, "mma_5": 0.625}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of ten steps of half a second, a tenth of it waiting, and a validation."""
    run = RunFolder(tmp_path / "run")
    run.begin(TrainingSettings(rounds=1, minutes=2), ["photos"], tmp_path)
    run.log({"action": "data", "photographs": 1200, "megabytes": 480.0})
    for step in range(1, 11):
        losses = {"descriptor": 10 / step, "learning_rate": 0.002, "waited": 0.05, "seconds": 0.5, "points": 3000.0}
        losses["skipped"] = float(step == 4)
        run.log({"action": "update", "round": 0, "what": "both", "step": step, "run_step": step} | losses)
    scores = {"homography_accuracy": 0.75, "matches": 100.0, "score": 0.5}
    run.log({"action": "validation", "round": 0, "what": "both"} | VALIDATION | scores)
    return run


def test_the_report_tells_speed_waiting_validation_and_what_was_changed(run: RunFolder) -> None:
    done = CliRunner().invoke(train, ["--report", str(run.path)], catch_exceptions=False)
    assert done.stdout.strip() == str(run.path / "report.md")
    report = (run.path / "report.md").read_text()
    assert "| photographs | 1,200 (480 MB decoded) |" in report
    assert "| time in steps | 0.1 minutes, 10.0 % of it waiting for data |" in report
    assert "| speed | 16.0 image pairs a second |" in report  # 8 in half a second
    assert "| skipped | 1 step, whose gradient wasn't finite |" in report
    assert "| round 0, both | 50.0 | 1.25 | 25.0 / 50.0 / 62.5 | 75.0 |" in report
    assert "- `minutes = 2.0`" in report
    assert "![Curves of losses and other figures](curves.png)" in report
    curves = cv2.imread(str(run.path / "curves.png"))
    assert curves.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    for down in (0, 1):
        for right in (0, 1):
            panel = curves[down * HEIGHT : (down + 1) * HEIGHT, right * WIDTH : (right + 1) * WIDTH]
            assert np.ptp(panel.astype(int), axis=2).max() > 100  # something coloured is in each


def test_a_folder_without_a_run_has_no_report_and_a_begun_run_has_one(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="holds no run"):
        CliRunner().invoke(train, ["--report", str(tmp_path)], catch_exceptions=False)
    run = RunFolder(tmp_path / "run")
    run.begin(TrainingSettings(), ["photos"], tmp_path)
    CliRunner().invoke(train, ["--report", str(run.path)], catch_exceptions=False)
    assert "0 of 8 pairs" in (run.path / "report.md").read_text()


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b"\xff",
        b"3",
        b"{}",
        b'{"action": []}',
        b'{"action": "begin"}',
        b'{"action": "begin", "run_step": "7"}',
        b'{"action": "data", "step": 1}',
        b'{"action": "label", "labels": 7}',
        b'{"action": "label", "labels": 7, "photographs": 0}',
        b'{"action": "update", "step": 11}',
        b'{"action": "update", "step": 11, "seconds": 1, "waited": 0, "descriptor": "low"}',
        b'{"action": "update", "step": 11, "seconds": NaN, "waited": 0}',
        b'{"action": "update", "step": 11, "seconds": 1, "waited": 0, "run_step": Infinity}',
        b'{"action": "update", "step": 11, "seconds": 1' + 400 * b"0" + b', "waited": 0}',
        b'{"action": "validation", "score": 1}',
        b'{"action": "plan"}',
    ],
    ids=lambda line: line[:60],
)
def test_lines_that_are_no_entries_of_a_log_change_nothing(line: bytes, run: RunFolder) -> None:
    before = write_report(run).read_text()
    with (run.path / "log.jsonl").open("ab") as stream:
        stream.write(line + b"\n")
    assert write_report(run).read_text() == before


def test_a_labelling_cut_short_is_told_and_noted(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    told = RunReport(run, run.settings())
    for phase, done in enumerate((77, 8)):
        told.label_ended(Phase(round=phase, action="label", what="corners"), done, 77, 100 * done)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "round 1: its time was enough to label 8 of 77 photographs, and it learns from these; "
        "give more --minutes for more"
    ]
    assert [entry["photographs"] for entry in run.entries() if entry["action"] == "label"] == [77, 8]


def test_a_labelling_that_found_next_to_nothing_is_told_and_the_report_has_the_numbers(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    told = RunReport(run, run.settings())
    for index, labels in enumerate((3105, 99, 0)):
        told.label_ended(Phase(round=index, action="label", what="corners"), 10, 10, labels)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning.partition(",")[0] for warning in warnings] == [
        "round 1: 99 labels on 10 photographs",
        "round 2: 0 labels on 10 photographs",
    ]
    assert "| labels a photograph | 310.5, 9.9, 0.0 |" in write_report(run).read_text(encoding="utf-8")


def test_what_a_run_is_made_of_is_not_changed_when_it_goes_on(run: RunFolder) -> None:
    for change in (
        ["--minutes", "3"],
        ["--rounds", "3"],
        ["--seed", "0"],
        ["--set", "rounds=2"],
        ["--config", "paper"],
    ):
        for asked in ("--resume", "--report"):
            with pytest.raises(UsageError, match=f"leave out {change[0]}$"):
                CliRunner().invoke(train, [asked, str(run.path), *change], catch_exceptions=False)
    with pytest.raises(UsageError, match="--report RUN"):
        CliRunner().invoke(train, ["--resume", "a", "--report", "b"], catch_exceptions=False)


def test_axes_have_round_numbers_and_long_curves_are_averaged() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.52) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert ticks(3, 3) == [3]
    assert smooth([1, 2, 3], [4.0, float("nan"), 6.0]) == ([1, 3], [4, 6])
    x, y = smooth([float(i) for i in range(1000)], [float(i % 2) for i in range(1000)])
    assert len(x) == len(y) == 200
    assert sorted({round(value, 6) for value in y}) == [0.4, 0.6]


def test_a_curve_of_one_value_and_one_of_none_can_be_drawn() -> None:
    panels = [Panel(title="one", x_label="step", curves={"a": [([1.0], [2.0])], "b": []})]
    assert draw_panels(panels).shape == (HEIGHT, 2 * WIDTH, 3)


def near(drawn: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels (H, W) have a colour, but for what shrinking made of it."""
    return np.abs(drawn.astype(int) - colour).max(axis=2) < 45


def test_eight_curves_have_their_own_colours_and_a_legend_within_the_panel() -> None:
    losses = ("descriptor", "detector", "repeatability", "ranking", "position", "matching", "selection", "held")
    assert len(set(COLOURS)) >= len(losses)
    curves = {name: [([1.0, 2.0], [float(index)] * 2)] for index, name in enumerate(losses)}
    drawn = draw_panels([Panel(title="Losses", x_label="step", curves=curves)])[:TOP, :WIDTH]
    assert (drawn[:, WIDTH - RIGHT + 2 :] == 255).all()
    for colour in COLOURS[: len(losses)]:
        assert near(drawn, colour).any(), "each is named"


def test_a_loss_that_an_update_has_not_leaves_a_gap_and_an_alternating_run_counts_updates() -> None:
    steps = [
        {"run_step": step, "learning_rate": 0.1, "waited": 0.0, "seconds": 1.0}
        | ({"held": 5.0} if step % 6 < 3 else {})
        for step in range(12)
    ]
    validations = [VALIDATION | {"homography_accuracy": 0.75}]
    losses, validation, *_ = panels(steps, validations, PRESETS["paper"])
    assert losses.curves == {"held": [([0, 1, 2], [5, 5, 5]), ([6, 7, 8], [5, 5, 5])]}
    assert validation.x_label == "update"
    assert panels(steps, validations, PRESETS["default"])[1].x_label == "round"
    drawn = draw_panels([losses])[TOP : HEIGHT - BOTTOM, LEFT : WIDTH - RIGHT]
    columns = near(drawn, COLOURS[0]).any(axis=0)
    assert columns[: len(columns) // 5].any()
    assert columns[-len(columns) // 5 :].any()
    assert not columns[3 * len(columns) // 8 : 5 * len(columns) // 8].any()


def test_a_run_without_photographs_held_out_has_no_panel_of_their_figures() -> None:
    step = {"run_step": 1, "learning_rate": 0.1, "waited": 0.0, "seconds": 1.0, "held": 5.0}
    drawn = panels([step], [], PRESETS["default"])
    assert [panel.title for panel in drawn] == ["Losses", "Learning rate", "Speed"]
    assert (draw_panels(drawn)[HEIGHT:, WIDTH:] == 255).all()  # of four places the last stays white


def test_tensorboard_sees_each_step_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer.event_file_writer import AtomicCounter

    uid = "tensorboard.summary.writer.event_file_writer._global_uid"  # a file of the same second sorts by it, as text
    monkeypatch.setattr(uid, AtomicCounter(0))
    for first in (1, 3):  # steps 3 and 4 are done twice
        events = Events(tmp_path, first)
        for step in range(first, 5):
            events.add("step", {"descriptor": 10.0 * first + step}, step)
        events.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("step/descriptor")
    assert [(event.step, event.value) for event in found] == [(1, 11), (2, 12), (3, 33), (4, 34)]


def test_a_folder_whose_name_is_no_text_gets_a_report_but_no_events(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / os.fsdecode(b"\xff"))
    run.begin(TrainingSettings(), ["photos"], tmp_path)
    events = Events(run.path, 1)
    events.add("step", {"descriptor": 1.0}, 1)
    events.close()
    assert write_report(run).read_text(encoding="utf-8").startswith("# Training run `?`")
