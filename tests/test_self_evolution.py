"""Whole small runs: every phase, both networks, stopped and resumed."""

import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from drawn import cached_photographs, draw_photographs

from sekd_cli import cli
from sekd_cli.commands.train import train
from sekd_cli.commands.train_report import photographs_at
from sekd_cli.errors import InputFileError, OutputError, SekdError, UsageError
from sekd_cli.file_info import file_info
from sekd_cli.networks import CompactNetwork
from sekd_cli.networks.weights_file import load_network, save_network
from sekd_cli.training import data_processes, labelling, losses, self_evolution
from sekd_cli.training.checkpoint import load_checkpoint, save_checkpoint
from sekd_cli.training.dataset import PairBatch, PairDataset
from sekd_cli.training.losses import losses_of
from sekd_cli.training.optimisation import MOST_SKIPPED, Learner
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.schedule import Phase, affordable, phases_of, share_of_time
from sekd_cli.training.self_evolution import Reporter, SelfEvolution, held_out_photographs
from sekd_cli.training.settings import PRESETS, TrainingSettings, settings_from

TINY = {
    "steps_per_update": 2,
    "last_steps": 2,
    "batch_size": 2,
    "height": 64,
    "width": 64,
    "labels_per_photograph": 40,
    "detected_points": 24,
    "adaptation_references": 2,
    "reliability_references": 2,
    "validation_share": 0.2,
    "photographs_per_round": 0.5,
    "warmup_steps": 1,
}
COMPACT = settings_from(TINY | {"rounds": 2, "random_points": 8}, PRESETS["default"], "test")
PAPER = settings_from(TINY | {"rounds": 2, "adaptation_threshold": 0.01}, PRESETS["paper"], "test")


class StoppedError(Exception):
    pass


class Told(Reporter):
    """A reporter that keeps what it is told, and can stop the run."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.phases: list[Phase] = []
        self.labellings: list[tuple[int, int, int]] = []
        self.rounds: int | None = None
        self.after = 10**9

    def phase(self, phase: Phase, total: int, done: int) -> None:
        del total, done
        self.phases.append(phase)

    def planned(self, rounds: int, step_seconds: float) -> None:
        del step_seconds
        self.rounds = rounds

    def label_ended(self, phase: Phase, done: int, total: int, labels: int) -> None:
        del labels
        self.labellings.append((phase.round, done, total))

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        del step
        self.losses.append(figures)
        if len(self.losses) == self.after + 1:  # the step before was saved
            raise StoppedError

    def validated(self, phase: Phase, figures: dict[str, float], evolution: SelfEvolution) -> None:
        del phase, evolution
        self.validations.append(figures)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    return cached_photographs(tmp_path_factory.mktemp("photographs"), 6)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # sums of other lengths round otherwise


def evolve(
    folder: Path, photographs: Photographs, settings: TrainingSettings, *, stop_after: int = 10**9, resume: bool = False
) -> tuple[SelfEvolution, Told]:
    folder.mkdir(exist_ok=True)
    reporter = Told()
    evolution = SelfEvolution(folder, photographs, settings, reporter, device=torch.device("cpu"), workers=0)
    reporter.after = stop_after
    if resume:
        evolution.resume()
    with suppress(StoppedError):
        evolution.run()
    return evolution, reporter


def command(photos: Path, run: Path, *more: str) -> list[str]:
    changes = [f"--set={name}={value}" for name, value in TINY.items()]
    return ["--data", str(photos), "-o", str(run), "--rounds=1", "--workers=0", "--threads=1", *changes, *more]


def test_the_paper_alternates_and_the_default_updates_both() -> None:
    named = [(phase.action, phase.what) for phase in phases_of(PAPER)]
    first, descriptor = ("label", "reliability"), ("update", "descriptor")
    detector, adaptation = ("update", "detector"), ("label", "adaptation")
    assert named == [first, detector, adaptation, descriptor, first, detector]
    once = replace(PAPER, self_evolving=False, first_labels="corners")
    labelled_once = [("label", "corners"), detector, descriptor, detector]
    assert [(phase.action, phase.what) for phase in phases_of(once)] == labelled_once
    joint = [("label", "corners"), ("update", "both"), ("label", "adaptation-reliability"), ("update", "both")]
    assert [(phase.action, phase.what) for phase in phases_of(COMPACT)] == joint
    assert sum(phase.steps for phase in phases_of(PAPER)) == PAPER.total_steps
    assert sum(phase.steps for phase in phases_of(COMPACT)) == COMPACT.total_steps


def test_a_paused_run_goes_on_to_the_same_end(photographs: Photographs, tmp_path: Path) -> None:
    whole, _ = evolve(tmp_path / "whole", photographs, COMPACT)
    folder = tmp_path / "paused"
    folder.mkdir()
    told = Told()
    paused = SelfEvolution(folder, photographs, COMPACT, told, device=torch.device("cpu"), workers=0, pause=0.0)
    assert not paused.run()  # in the first labelling
    assert paused.learner.step == 0
    assert load_network(folder / "model.safetensors").name == "compact"
    resumed, _ = evolve(folder, photographs, COMPACT, resume=True)
    assert resumed.learner.step == COMPACT.total_steps
    for name, value in whole.learner.network.state_dict().items():
        assert torch.equal(value, resumed.learner.network.state_dict()[name]), name


def test_a_run_that_pauses_by_the_minute_is_resumed_by_the_minute(tmp_path: Path) -> None:
    photos, run = draw_photographs(tmp_path / "photos", 4), tmp_path / "run"
    started = command(photos, run, "--pause-after=1e-9")
    assert CliRunner().invoke(train, started).exit_code == 0
    assert not (run / "log.jsonl").exists() or '"update"' not in (run / "log.jsonl").read_text(encoding="utf-8")
    assert CliRunner().invoke(train, ["--resume", str(run), "--workers=0", "--threads=1", "--minutes=5"]).exit_code == 0
    assert '"validation"' in (run / "log.jsonl").read_text(encoding="utf-8")


def test_without_self_evolution_later_rounds_go_on_with_the_first_labels(
    photographs: Photographs, tmp_path: Path
) -> None:
    frozen = replace(COMPACT, self_evolving=False)
    evolution, told = evolve(tmp_path / "frozen", photographs, frozen)
    assert [phase.action for phase in told.phases] == ["label", "update", "update"]
    assert evolution.learner.step == COMPACT.total_steps
    assert len(list((tmp_path / "frozen").glob("labels-*.npy"))) == 1


@pytest.mark.parametrize("settings", [COMPACT, PAPER], ids=["compact", "published"])
def test_every_phase_runs_with_finite_losses_and_a_stopped_run_ends_like_a_whole_one(
    settings: TrainingSettings, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, told = evolve(tmp_path / "whole", photographs, settings)
    assert [phase.action for phase in told.phases].count("label") >= 2
    assert len(told.losses) == settings.total_steps
    assert all(torch.isfinite(torch.tensor(value)) for losses in told.losses for value in losses.values())
    assert all(0 <= figures["repeatability"] <= 1 for figures in told.validations)

    monkeypatch.setattr("sekd_cli.training.self_evolution.SAVE_SECONDS", 0.0)
    evolve(tmp_path / "parts", photographs, settings, stop_after=3)  # in the middle of an update
    assert load_network(tmp_path / "parts" / "model.safetensors").name == settings.network  # usable in between
    resumed, told = evolve(tmp_path / "parts", photographs, settings, resume=True)
    assert len(told.losses) == settings.total_steps - 3
    for name, value in whole.learner.network.state_dict().items():
        assert torch.equal(value, resumed.learner.network.state_dict()[name]), name
    shipped = load_network(tmp_path / "parts" / "model.safetensors").state_dict()
    for name, value in whole.learner.average.state_dict().items():
        assert torch.equal(value, shipped[name]), name


def test_a_run_with_little_time_ends_in_time_with_the_learning_rate_down(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekd_cli.training.self_evolution.MEASURED_STEPS", 2)
    endless = replace(COMPACT, minutes=0.1, steps_per_update=10**6, last_steps=10**6, rounds=5)
    evolution, told = evolve(tmp_path / "run", photographs, endless)
    assert told.rounds == 1  # hundreds of steps a round don't fit in six seconds
    assert {phase.round for phase in told.phases} == {0}
    assert 2 < len(told.losses) < 10**5
    rates = [figures["learning_rate"] for figures in told.losses]
    assert rates[-1] < 0.2 * max(rates)
    assert evolution.seconds < 60
    resumed, told = evolve(tmp_path / "run", photographs, endless, resume=True)
    assert told.losses == []  # it has ended
    assert resumed.rounds == 1


@pytest.mark.parametrize(("decoding", "labelled"), [(20.0, 5), (59.999, 1)])
def test_the_first_labelling_has_its_share_of_what_decoding_left_of_the_time(
    decoding: float, labelled: int, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekd_cli.training.labelling.GROUP", 1)
    settings, told = replace(COMPACT, minutes=1.0, rounds=5, photographs_per_round=1.0), Told()
    begun = time.monotonic() - decoding
    evolution = SelfEvolution(
        tmp_path, photographs, settings, told, device=torch.device("cpu"), workers=0, started=begun
    )
    told.after = 0
    with suppress(StoppedError):
        evolution.run()
    assert told.labellings == [(0, labelled, 5)]
    assert told.rounds == (1 if labelled < 5 else None), "no time left after a step: there won't be another round"


def test_a_first_update_of_few_steps_is_enough_to_plan_the_rounds(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekd_cli.training.self_evolution.MEASURED_STEPS", 4)
    short = replace(COMPACT, minutes=0.03, steps_per_update=1, last_steps=10**6, rounds=3)
    _, told = evolve(tmp_path / "run", photographs, short)
    assert told.rounds == 1  # so the first update becomes the last, and goes on
    assert {phase.round for phase in told.phases} == {0}
    assert len(told.losses) > 2


def test_a_round_that_has_begun_is_in_the_plan(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekd_cli.training.self_evolution.MEASURED_STEPS", 1)
    (tmp_path / "run").mkdir()
    told, long = Told(), replace(COMPACT, minutes=0.03, last_steps=10**6, rounds=3)
    evolution = SelfEvolution(tmp_path / "run", photographs, long, told, device=torch.device("cpu"), workers=0)
    evolution.phase_index = 2  # the labels of the second round
    assert evolution.run()
    assert told.rounds == 2
    assert {phase.round for phase in told.phases} == {1}


def test_time_is_shared_by_steps_and_little_time_means_fewer_rounds() -> None:
    settings = replace(COMPACT, rounds=3, steps_per_update=1000, last_steps=2000)
    for chosen, seconds, expected in (
        (settings, 400.0, [20, 100, 120, 200, 240, 400]),
        (replace(PAPER, rounds=2), 60.0, [4, 20, 24, 40, 44, 60]),
        (replace(settings, rounds=2, self_evolving=False), 300.0, [20, 100, 300]),
    ):
        ends = [0.0]
        for index in range(len(phases_of(chosen))):
            ends.append(ends[-1] + share_of_time(phases_of(chosen), index) * (seconds - ends[-1]))
        assert ends[1:] == pytest.approx(expected)
    assert affordable(settings, 5000.0, 1.0).rounds == 3  # all 4,000 steps, and labelling
    assert affordable(settings, 2250.0, 1.0).rounds == 3  # 1,800 steps: three rounds of 600
    assert affordable(settings, 2240.0, 1.0).rounds == affordable(settings, 1120.0, 0.5).rounds == 2
    assert affordable(settings, 10.0, 1.0).rounds == 1
    assert affordable(replace(settings, steps_per_update=10, last_steps=20), 50.0, 1.0).rounds == 3  # all 40 steps


def test_without_affine_adaptation_the_labels_come_from_the_image_alone(
    photographs: Photographs, tmp_path: Path
) -> None:
    _, told = evolve(tmp_path / "run", photographs, COMPACT.without("affine-adaptation", "detector-repeatability"))
    assert "repeatability" not in told.losses[0]


def test_a_loss_that_is_not_finite_is_skipped_and_many_end_the_run() -> None:
    learner = Learner(COMPACT, torch.device("cpu"))
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    parameter = next(learner.network.parameters())
    for _ in range(MOST_SKIPPED):
        learner.update(parameter.sum() * float("nan"))
    assert all(torch.equal(value, before[name]) for name, value in learner.network.state_dict().items())
    with pytest.raises(SekdError, match="diverged"):
        learner.update(parameter.sum() * float("nan"))


def test_statistics_of_batch_norms_that_are_not_finite_end_the_run() -> None:
    learner = Learner(COMPACT, torch.device("cpu"))
    learner.network.train()
    maps = learner.network(torch.full((2, 1, 64, 64), torch.nan))
    with pytest.raises(SekdError, match="diverged at step 0"):
        learner.update(maps.score_logits.sum())


def test_steps_of_a_wild_learning_rate_end_in_a_line_not_in_a_crash(photographs: Photographs, tmp_path: Path) -> None:
    wild = replace(COMPACT, learning_rate=1e3, warmup_steps=0, steps_per_update=50)
    with pytest.raises(SekdError, match=r"training diverged at step .*; lower learning_rate"):
        evolve(tmp_path / "run", photographs, wild)


def test_the_learning_rate_warms_up_and_falls_in_the_last_update() -> None:
    settings = settings_from({"warmup_steps": 10, "rounds": 2}, PRESETS["default"], "test")
    learner = Learner(settings, torch.device("cpu"))
    rates = []
    for step, annealed in ((0, 0.0), (4, 0.0), (10, 0.0), (900, 0.0), (900, 0.5), (900, 0.999), (900, 1.1)):
        learner.step, learner.annealed = step, annealed
        rates.append(learner.learning_rate() / settings.learning_rate)
    assert rates[:5] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5])
    assert 0 < rates[5] < 1e-4
    assert rates[6] == 0


def test_the_command_trains_and_the_same_command_again_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = command(draw_photographs(tmp_path / "in", 4), run)
    first = CliRunner().invoke(train, started, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(run / "model.safetensors")
    assert load_network(run / "model.safetensors").name == "compact"
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in entries] == ["data", "begin", "label", "update", "update", "validation"]
    again = CliRunner().invoke(train, started, catch_exceptions=False)
    assert again.exit_code == 0
    assert len((run / "log.jsonl").read_text().splitlines()) == 8  # data, begin; nothing was left to do


def test_a_run_whose_checkpoint_was_deleted_keeps_its_weights_and_only_the_first_rank_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = command(draw_photographs(tmp_path / "in", 4), tmp_path / "run")
    assert CliRunner().invoke(train, started).stdout
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        left: list[bool] = []
        patch.setattr("sekd_cli.training.ranks.rank", lambda: 0 if left else 1)
        patch.setattr("sekd_cli.training.ranks.leave", lambda: left.append(True))
        assert CliRunner().invoke(train, started).stdout == ""
    (tmp_path / "run" / "checkpoint.pt").unlink()
    for again in (started, ["--resume", str(tmp_path / "run")]):
        with pytest.raises(OutputError, match="no checkpoint to go on from"):
            CliRunner().invoke(train, again, catch_exceptions=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_command_that_failed_at_once_leaves_its_folder_to_the_right_one(tmp_path: Path) -> None:
    photos, run = draw_photographs(tmp_path / "photos", 4), tmp_path / "run"
    for wrong in (command(tmp_path / "none", run), command(photos, run, "--set=start=none.safetensors")):
        assert isinstance(CliRunner().invoke(train, wrong).exception, SekdError)
    wrong = ["--data", str(photos), "-o", str(run), "--steps=2"]
    for option in ("--seed=-1", "--last-steps=0"):
        assert isinstance(CliRunner().invoke(train, [*wrong, option]).exception, UsageError)
    assert CliRunner().invoke(train, command(photos, run, "--pause-after=0.0001")).exit_code == 0


def test_a_photograph_counts_once_and_pictures_of_runs_are_none(tmp_path: Path) -> None:
    photos = draw_photographs(tmp_path / "photos", 3)
    (tmp_path / "link.png").symlink_to(photos / "001.png")
    draw_photographs(tmp_path / "runs" / "one" / "pictures", 2)
    draw_photographs(tmp_path / "no-run", 1)
    for name in ("runs/one/config.toml", "runs/one/data.json", "no-run/data.json"):
        (tmp_path / name).touch()
    found = photographs_at((str(photos / "002.png"), str(tmp_path), str(photos)))
    places = sorted(entry.path.resolve().relative_to(tmp_path).as_posix() for entry in found)
    assert places == ["no-run/000.png", *(f"photos/00{number}.png" for number in range(3))]


def test_too_few_photographs_to_hold_one_out_are_told_and_none_of_the_weights_is_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._utils.cpu_count", lambda: 1, raising=False)  # fewer than the workers: newer torch warns
    photos, run = draw_photographs(tmp_path / "photos", 4), tmp_path / "run"
    few = command(photos, run, "--set=validation_share=0.03", "--workers=2")
    assert CliRunner().invoke(train, few, catch_exceptions=False).exit_code == 0
    assert caplog.text.count("too few photographs to hold one out (4)") == 1
    assert (run / "model.safetensors").is_file()
    assert not (run / "best.safetensors").exists()


def test_what_is_wrong_with_a_start_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    photos = draw_photographs(tmp_path / "photos", 4)
    with pytest.raises(InputFileError, match=r"none\.safetensors: no such weights file; give a \.safetensors"):
        CliRunner().invoke(
            train, command(photos, tmp_path / "run", "--set=start=none.safetensors"), catch_exceptions=False
        )
    assert not (tmp_path / "run").exists()


def test_a_run_whose_photographs_changed_is_not_taken_up(tmp_path: Path) -> None:
    photos, run = draw_photographs(tmp_path / "photos", 4), tmp_path / "run"
    paused = command(photos, run, "--pause-after=0.0001")
    assert CliRunner().invoke(train, paused).exit_code == 0
    (photos / "000.png").unlink()
    for again in (paused, ["--resume", str(run), "--workers=0"]):
        with pytest.raises(OutputError, match="photographs have changed"):
            CliRunner().invoke(train, again, catch_exceptions=False)
    draw_photographs(photos, 4)
    assert CliRunner().invoke(train, paused).exit_code == 0


def test_a_run_is_taken_up_elsewhere_without_the_start_that_its_checkpoint_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_photographs(tmp_path / "photos", 4)
    save_network(tmp_path / "start.safetensors", CompactNetwork(), {})
    monkeypatch.chdir(tmp_path)
    started = command(Path("photos"), Path("run"), "--set=start=start.safetensors", "--cache=cache")
    assert CliRunner().invoke(train, [*started, "--pause-after=0.0001"], catch_exceptions=False).exit_code == 0
    (tmp_path / "start.safetensors").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = ["--resume", "../run", "--workers=0", "--threads=1", "--pause-after=0.0001"]
    assert CliRunner().invoke(train, resumed, catch_exceptions=False).exit_code == 0
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_cache_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    photos = draw_photographs(tmp_path / "photos", 4)
    with pytest.raises(OutputError, match=r"000\.png"):
        CliRunner().invoke(
            train, command(photos, tmp_path / "run", f"--cache={photos}/000.png/cache"), catch_exceptions=False
        )


def test_labels_that_were_cut_off_are_named(photographs: Photographs, tmp_path: Path) -> None:
    evolution, _ = evolve(tmp_path / "run", photographs, replace(COMPACT, rounds=1))
    file = tmp_path / "run" / "labels-0.npy"
    np.save(file, np.load(file)[:, 1:])
    with pytest.raises(InputFileError, match=r"labels-0\.npy: missing or damaged"):
        evolution.labels()
    os.truncate(file, 200)
    with pytest.raises(InputFileError, match=r"labels-0\.npy: missing or damaged"):
        evolution.labels()


def test_a_checkpoint_that_holds_something_else_is_named(photographs: Photographs, tmp_path: Path) -> None:
    evolve(tmp_path / "run", photographs, COMPACT, stop_after=1)
    path = tmp_path / "run" / "checkpoint.pt"
    whole = load_checkpoint(path)
    for damage in (
        {"learner": None},
        {"learner": {}},
        {"learner": whole["learner"] | {"optimiser": {}}},
        {"learner": whole["learner"] | {"step": "none"}},
        {"phase_index": "none"},
        {"phase_index": 99},
        {"phase_step": -1},
        {"rounds": 10**23},
        {"budget": None},
    ):
        save_checkpoint(path, whole | damage)
        with pytest.raises(InputFileError, match=r"checkpoint\.pt: damaged checkpoint.*; start a new run"):
            evolve(tmp_path / "run", photographs, COMPACT, resume=True)
    save_checkpoint(path, whole)
    evolve(tmp_path / "run", photographs, COMPACT, resume=True, stop_after=1)


def test_a_checkpoint_of_another_network_than_the_settings_ask_for_is_told(
    photographs: Photographs, tmp_path: Path
) -> None:
    evolve(tmp_path / "run", photographs, COMPACT, stop_after=1)
    for other in (replace(COMPACT, shallow=True), replace(COMPACT, network="published")):
        with pytest.raises(InputFileError, match=r"another network than config\.toml's"):
            evolve(tmp_path / "run", photographs, other, resume=True)


def test_no_run_trains_on_what_another_one_held_out(photographs: Photographs) -> None:
    first, other = (TrainingSettings(seed=seed, validation_share=0.4) for seed in (0, 1))
    held_out = held_out_photographs(photographs, first)
    assert len(held_out) == round(0.4 * len(photographs))
    assert np.array_equal(held_out, held_out_photographs(photographs, other))


WEIGHTS = {
    "descriptor": 0.3,
    "detector": 3.0,
    "repeatability": 0.1,
    "ranking": 1.0,
    "position": 2.0,
    "matching": 1.0,
    "selection": 6.0,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_weight_is_that_of_its_own_loss(name: str, photographs: Photographs) -> None:
    weights = {f"{loss}_weight": weight for loss, weight in WEIGHTS.items()}
    once = replace(COMPACT, own_keypoints=20, **weights)
    twice = replace(once, **{f"{name}_weight": 2 * WEIGHTS[name]})
    labels = np.random.default_rng(0).uniform(20, 100, (6, 30, 3)).astype(np.float32)
    batch = PairDataset(photographs, np.arange(6), labels, once, (0,))[0]
    network = Learner(once, torch.device("cpu")).network
    before, after = (losses_of(network, None, batch, "both", chosen) for chosen in (once, twice))
    assert before.keys() == after.keys() == WEIGHTS.keys()
    for loss, value in before.items():
        assert value.detach().abs() > 0
        torch.testing.assert_close(after[loss], 2 * value if loss == name else value)


def test_repeatability_is_of_the_first_view_in_the_second_without_what_hides_the_photograph_in_either(
    photographs: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def repeatability(*views: Any) -> torch.Tensor:
        given.append(views)
        return views[0].sum()  # type: ignore[no-any-return]

    monkeypatch.setattr("sekd_cli.training.losses.detector_repeatability", repeatability)
    labels = np.random.default_rng(0).uniform(20, 100, (6, 30, 3)).astype(np.float32)
    network = Learner(COMPACT, torch.device("cpu")).network
    for hidden_share in (0.0, 1.0):
        settings = replace(COMPACT, hidden_share=hidden_share)
        batch = PairDataset(photographs, np.arange(6), labels, settings, (0,))[0]
        losses_of(network, None, batch, "both", settings)
    assert given[0][4] is None
    first, second, there, second_seen, first_seen = given[1]
    with torch.no_grad():
        logits = network(batch.images).score_logits
    torch.testing.assert_close(torch.cat((first, second)), logits, atol=1e-4, rtol=0)
    assert torch.equal(torch.cat((first_seen, second_seen)), batch.seen)
    assert torch.equal(there.second_from_first, batch.second_from_first)
    assert not torch.equal(*batch.seen.chunk(2))


def test_a_shallow_start_gets_the_pairs_that_a_deep_network_has(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_network(start, CompactNetwork(shallow=True), {})
    for shallow in (False, True):
        learner = Learner(replace(COMPACT, start=str(start), shallow=shallow), torch.device("cpu"))
        assert learner.network.state_dict().keys() == CompactNetwork(shallow=shallow).state_dict().keys()


def test_a_start_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_network(start, CompactNetwork(), {})
    with pytest.raises(UsageError, match="deeper than the network"):
        Learner(replace(COMPACT, start=str(start), shallow=True), torch.device("cpu"))


def labelled_batch(photographs: Photographs) -> PairBatch:
    """The first batch of all photographs, each with labels at one place."""
    labels = np.full((6, 4, 3), 60, np.float32)
    return PairDataset(photographs, np.arange(6), labels, COMPACT, (3,))[0]


def test_every_setting_reaches_its_loss(photographs: Photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def noting(name: str) -> Any:
        function = getattr(losses, name)

        def noted(*positional: Any, **named: Any) -> Any:
            told[name] = (positional, named)
            return function(*positional, **named)

        return noted

    names = ("dual_softmax_loss", "draw_targets", "focal_loss", "own_keypoints", "matching_losses")
    for name in (*names, "hardest_in_batch_loss"):
        monkeypatch.setattr(losses, name, noting(name))
    settings = replace(
        COMPACT,
        own_keypoints=20,
        octaves=2,
        similarity_scale=17.0,
        safe_radius=4.0,
        matching_scale=33.0,
        target_sigma=0.9,
        focal_gamma=1.5,
        label_nms_radius=5,
        triplet_ratio=0.7,
    )
    batch = labelled_batch(photographs)
    network = Learner(settings, torch.device("cpu")).network
    losses_of(network, None, batch, "both", settings)
    _, named = told["dual_softmax_loss"]
    assert (named["scale"], named["safe_radius"]) == (17.0, 4.0)
    assert named["own"] is not None
    assert told["draw_targets"][0][-1] == 0.9
    assert (told["focal_loss"][0][-1], told["focal_loss"][1]) == (1.5, {"balance": False})
    octaves, _, count, radius = told["own_keypoints"][0]
    assert (len(octaves), count, radius) == (2, 20, 5)
    assert told["matching_losses"][0][-1] == 33.0
    paper = replace(settings, detector_target="pixel", descriptor_loss="hardest-in-batch")
    losses_of(network, None, batch, "both", paper)
    assert told["hardest_in_batch_loss"][0][-1] == 0.7
    assert told["draw_targets"][0][-1] == 0
    assert told["focal_loss"][1] == {"balance": True}


@pytest.mark.parametrize(("part", "weight"), [("descriptor", "frozen_detector"), ("detector", "frozen_descriptor")])
def test_an_update_of_one_part_holds_the_other(part: str, weight: str, photographs: Photographs) -> None:
    once = replace(COMPACT, frozen_detector_weight=1.0, frozen_descriptor_weight=1.0)
    twice = replace(once, **{f"{weight}_weight": 2.0})
    batch = labelled_batch(photographs)
    network = Learner(once, torch.device("cpu")).network.eval()
    frozen = Learner(replace(once, seed=5), torch.device("cpu")).frozen_copy()
    held = [losses_of(network, frozen, batch, part, settings)["held"].item() for settings in (once, twice)]
    assert held[0] > 0
    assert held[1] == pytest.approx(2 * held[0])


def test_the_last_update_alone_has_the_last_steps() -> None:
    settings = replace(COMPACT, rounds=3, steps_per_update=5, last_steps=9)
    assert [phase.steps for phase in phases_of(settings) if phase.action == "update"] == [5, 5, 9]
    alternating = replace(PRESETS["paper"], rounds=2, steps_per_update=5, last_steps=9)
    assert [phase.steps for phase in phases_of(alternating) if phase.action == "update"] == [5, 5, 9]


def test_the_best_weights_are_those_of_the_best_validation_of_the_running_mean(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.5, 0.9, 0.3))
    seen: list[object] = []
    labelled: list[object] = []

    def validate(network: object, photographs: object, held_out: object) -> dict[str, float]:
        seen.append(network)
        return {"score": next(scores)}

    def label(kind: str, network: object, *positional: Any, **named: Any) -> int:
        labelled.append(network)
        return labelling.label_photographs(kind, network, *positional, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(self_evolution, "validate", validate)
    monkeypatch.setattr(self_evolution, "label_photographs", label)
    short = replace(COMPACT, rounds=3, steps_per_update=1, last_steps=1)
    evolution, _ = evolve(tmp_path / "run", photographs, short)
    assert all(network is evolution.learner.average for network in (*seen, *labelled))
    assert evolution.learner.network.training
    assert file_info(tmp_path / "run" / "best.safetensors")["training"]["note"] == "after round 1"
    assert evolution.best == 0.9
    facts = file_info(tmp_path / "run" / "model.safetensors")["training"]
    assert facts["note"] == "finished"
    assert (facts["steps"], facts["pairs"], facts["photographs"]) == (3, 6, 5)


def test_rounds_take_other_photographs_and_none_that_is_held_out(photographs: Photographs, tmp_path: Path) -> None:
    settings = replace(COMPACT, rounds=8, validation_share=0.34)
    evolution = SelfEvolution(tmp_path, photographs, settings, Reporter(), device=torch.device("cpu"), workers=0)
    assert not set(evolution.training) & set(evolution.held_out)
    assert len(evolution.training) + len(evolution.held_out) == 6
    chosen = [tuple(evolution._chosen(phase)) for phase in phases_of(settings) if phase.action == "label"]
    assert len(set(chosen)) > 3


def test_seconds_count_once_however_often_they_are_saved(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(self_evolution.time, "monotonic", lambda: now[0])
    evolution = SelfEvolution(tmp_path, photographs, COMPACT, Reporter(), device=torch.device("cpu"), workers=0)
    for moment in (160.0, 220.0, 280.0):
        now[0] = moment
        evolution._save("now")
    assert evolution.seconds == 180
    assert file_info(tmp_path / "model.safetensors")["training"]["minutes"] == 3


def test_a_skipped_step_is_told(photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(network: torch.nn.Module, *_: object) -> dict[str, torch.Tensor]:
        return {"descriptor": next(network.parameters()).sum() * float("nan")}

    monkeypatch.setattr(self_evolution, "losses_of", lost)
    _, told = evolve(tmp_path / "run", photographs, replace(COMPACT, rounds=1))
    assert [figures["skipped"] for figures in told.losses] == [1.0, 1.0]


def test_data_processes_say_nothing_of_who_took_their_batches_and_went_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    threads = torch.get_num_threads()
    try:
        data_processes._begin_data_process(0)
        for error in (EOFError(), ConnectionResetError(104, "reset"), ValueError("a fault")):
            sys.excepthook(type(error), error, None)
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().err.strip() == "ValueError: a fault"


def begun(worker: int) -> None:
    raise StoppedError(f"process {worker}")


def test_data_processes_begin_as_they_should(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_processes, "_begin_data_process", begun)
    once = replace(COMPACT, rounds=1)
    run = SelfEvolution(tmp_path, photographs, once, Told(), device=torch.device("cpu"), workers=1)
    with pytest.raises(StoppedError, match="process 0"):
        run.run()


class Refused:
    """What can't be sent to another process."""

    def __reduce__(self) -> str:
        raise RuntimeError("unable to allocate shared memory(shm)")


def send_what_is_refused() -> None:
    data_processes._begin_data_process(0)
    queue: Any = multiprocessing.get_context("fork").Queue()
    queue.put(Refused())
    queue.close()
    queue.join_thread()


def test_a_data_process_ends_with_a_batch_that_it_cannot_send() -> None:
    """Python tells of it and goes on, and who waits for the batch waits for ever."""
    process = multiprocessing.get_context("fork").Process(target=send_what_is_refused)
    process.start()
    process.join()
    assert process.exitcode == 1


def test_a_data_process_that_dies_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the system runs out of memory and kills it."""

    def without_it(*_: object) -> None:
        multiprocessing.active_children()[0].kill()
        time.sleep(60)  # until that is noticed

    monkeypatch.setattr(self_evolution, "losses_of", without_it)
    photographs = draw_photographs(tmp_path / "in", 6)
    changes = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    options = ["--device", "cpu", "--threads", "1", "--workers", "1", "--quiet", *changes]
    assert cli.main(["train", "--data", str(photographs), "-o", str(tmp_path / "run"), *options]) == 7
    error = capsys.readouterr().err
    assert error.startswith("error: a data process died, for lack of memory")
    assert error.count("\n") == 1


def test_data_processes_never_see_an_interrupt(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that isn't forked loads torch first, for seconds, and would end with a traceback."""
    start, handlers = BaseProcess.start, []

    def watched(process: BaseProcess) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))
        start(process)

    monkeypatch.setattr(BaseProcess, "start", watched)
    once = replace(COMPACT, rounds=1)
    run = SelfEvolution(tmp_path, photographs, once, Told(), device=torch.device("cpu"), workers=2)
    assert run.run()
    assert handlers == [signal.SIG_IGN] * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_an_updates_data_processes_end_ends_the_run(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, ended = BaseProcess.join, []

    def interrupted(process: BaseProcess, timeout: float | None = None) -> None:
        join(process, timeout)
        if not ended:
            ended.append(process)
            raise KeyboardInterrupt

    monkeypatch.setattr(BaseProcess, "join", interrupted)
    once = replace(COMPACT, rounds=1)
    run = SelfEvolution(tmp_path, photographs, once, Told(), device=torch.device("cpu"), workers=1)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert ended
    assert run.phase_step == once.last_steps
