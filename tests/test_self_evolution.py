"""Whole small runs: every phase, both networks, stopped and resumed."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from drawn import draw_photographs

from sekd_cli.commands.train import train
from sekd_cli.errors import OutputError, SekdError
from sekd_cli.images import find_images
from sekd_cli.networks.weights_file import load_network
from sekd_cli.training.optimisation import MOST_SKIPPED, Learner
from sekd_cli.training.photographs import Photographs, cache_photographs
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.self_evolution import Phase, SelfEvolution, phases_of
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


class Silent:
    """A reporter that keeps what it is told, and can stop the run."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.phases: list[Phase] = []
        self.after = 10**9
        self.evolution: SelfEvolution | None = None

    def phase(self, phase: Phase, total: int, done: int) -> None:
        del total, done
        self.phases.append(phase)

    def labelled(self, done: int) -> None:
        del done

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        del step
        self.losses.append(figures)
        if len(self.losses) == self.after and self.evolution is not None:
            self.evolution.deadline = time.monotonic()

    def validated(self, phase: Phase, figures: dict[str, float]) -> None:
        del phase
        self.validations.append(figures)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = tmp_path_factory.mktemp("photographs")
    return cache_photographs(find_images([draw_photographs(folder / "in", 6)]), folder / "cache", 640)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # sums of other lengths round otherwise


def evolve(
    folder: Path, photographs: Photographs, settings: TrainingSettings, *, stop_after: int = 10**9, resume: bool = False
) -> tuple[SelfEvolution, Silent]:
    folder.mkdir(exist_ok=True)
    reporter = Silent()
    evolution = SelfEvolution(folder, photographs, settings, reporter, device=torch.device("cpu"), workers=0)
    reporter.evolution, reporter.after = evolution, stop_after
    if resume:
        evolution.resume()
    evolution.run()
    return evolution, reporter


def test_the_paper_alternates_and_the_default_updates_both() -> None:
    named = [(phase.action, phase.what) for phase in phases_of(PAPER)]
    first, descriptor = ("label", "reliability"), ("update", "descriptor")
    detector, adaptation = ("update", "detector"), ("label", "adaptation")
    assert named == [first, detector, adaptation, descriptor, first, detector]
    joint = [("label", "corners"), ("update", "both"), ("label", "adaptation-reliability"), ("update", "both")]
    assert [(phase.action, phase.what) for phase in phases_of(COMPACT)] == joint
    assert sum(phase.steps for phase in phases_of(PAPER)) == PAPER.total_steps
    assert sum(phase.steps for phase in phases_of(COMPACT)) == COMPACT.total_steps


def test_without_self_evolution_later_rounds_go_on_with_the_first_labels(
    photographs: Photographs, tmp_path: Path
) -> None:
    frozen = replace(COMPACT, self_evolving=False)
    evolution, told = evolve(tmp_path / "frozen", photographs, frozen)
    assert [phase.action for phase in told.phases] == ["label", "update", "update"]
    assert evolution.learner.step == COMPACT.total_steps
    assert len(list((tmp_path / "frozen").glob("labels-*.npy"))) == 1
    updates = [phase.what for phase in phases_of(replace(PAPER, self_evolving=False)) if phase.action == "update"]
    assert updates == ["detector", "descriptor", "detector"]


@pytest.mark.parametrize("settings", [COMPACT, PAPER], ids=["compact", "published"])
def test_every_phase_runs_with_finite_losses_and_a_stopped_run_ends_like_a_whole_one(
    settings: TrainingSettings, photographs: Photographs, tmp_path: Path
) -> None:
    whole, told = evolve(tmp_path / "whole", photographs, settings)
    assert [phase.action for phase in told.phases].count("label") >= 2
    assert len(told.losses) == settings.total_steps
    assert all(torch.isfinite(torch.tensor(value)) for losses in told.losses for value in losses.values())
    assert all(0 <= figures["repeatability"] <= 1 for figures in told.validations)

    stopped, _ = evolve(tmp_path / "parts", photographs, settings, stop_after=3)
    assert stopped.learner.step == 3
    assert load_network(tmp_path / "parts" / "model.safetensors").name == settings.network  # usable in between
    resumed, _ = evolve(tmp_path / "parts", photographs, settings, resume=True)
    for name, value in whole.learner.network.state_dict().items():
        assert torch.equal(value, resumed.learner.network.state_dict()[name]), name
    shipped = load_network(tmp_path / "parts" / "model.safetensors").state_dict()
    for name, value in whole.learner.average.state_dict().items():
        assert torch.equal(value, shipped[name]), name


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


def test_the_learning_rate_warms_up_and_falls_in_the_last_update() -> None:
    settings = settings_from({"warmup_steps": 10, "rounds": 2}, PRESETS["default"], "test")
    learner = Learner(settings, torch.device("cpu"))
    rates = []
    for step in (0, 4, 10, settings.total_steps - settings.last_steps, settings.total_steps - 1):
        learner.step = step
        rates.append(learner.learning_rate() / settings.learning_rate)
    assert rates[:4] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert 0 < rates[4] < 1e-4


def test_a_run_folder_refuses_other_settings(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(COMPACT, ["a"], tmp_path)
    run.begin(COMPACT, ["a"], tmp_path)
    assert run.settings() == COMPACT
    with pytest.raises(OutputError, match="other settings"):
        run.begin(COMPACT, ["b"], tmp_path)


def test_the_command_trains_and_the_same_command_again_goes_on(tmp_path: Path) -> None:
    folder = draw_photographs(tmp_path / "in", 4)
    run = tmp_path / "run"
    changes = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    command = ["--data", str(folder), "-o", str(run), "--rounds", "1", "--workers", "0", "--threads", "1", *changes]
    first = CliRunner().invoke(train, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(run / "model.safetensors")
    assert load_network(run / "model.safetensors").name == "compact"
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in entries] == ["update", "update", "validation"]
    again = CliRunner().invoke(train, command, catch_exceptions=False)
    assert again.exit_code == 0
    assert len((run / "log.jsonl").read_text().splitlines()) == 3  # nothing was left to do
