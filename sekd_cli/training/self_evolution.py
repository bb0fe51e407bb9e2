"""The rounds: detector and descriptor teach each other on unlabelled photographs (paper Sec. 3.1, Fig. 2).

A run is a list of phases. A phase labels photographs with keypoints, or updates the network on the labels that the last
phase made. Everything that a phase does follows from (settings, seed, phase, step) and the network, so a run that was
killed anywhere goes on to the same end.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from sekd_cli.networks import DenseNetwork
from sekd_cli.networks.weights_file import save_network
from sekd_cli.training.checkpoint import load_checkpoint, save_checkpoint
from sekd_cli.training.dataset import PairBatch, PairDataset, PairPlan, PlanDataset, render
from sekd_cli.training.labelling import label_photographs
from sekd_cli.training.losses import losses_of
from sekd_cli.training.optimisation import Learner
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.validation import validate

log = logging.getLogger(__name__)

MOST_HELD_OUT = 128  # photographs; two pairs of each say enough
SAVE_SECONDS = 60.0  # between checkpoints


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One step of a round: "label" (what: how the labels are made) or "update" (what: which part learns)."""

    round: int
    action: str
    what: str
    steps: int = 0


def phases_of(settings: TrainingSettings) -> list[Phase]:
    """The whole run: in each round, steps A to D of the paper, or one labelling and one joint update."""
    phases: list[Phase] = []
    for index in range(settings.rounds):
        steps = settings.last_steps if index == settings.rounds - 1 else settings.steps_per_update
        relabels = index == 0 or settings.self_evolving
        if settings.alternate:
            if index > 0 and relabels:
                phases.append(Phase(round=index, action="label", what="adaptation"))
            if index > 0:
                phases.append(Phase(round=index, action="update", what="descriptor", steps=settings.steps_per_update))
            labels: str = settings.first_labels if index == 0 else "reliability"
            if relabels:
                phases.append(Phase(round=index, action="label", what=labels))
            phases.append(Phase(round=index, action="update", what="detector", steps=steps))
        else:
            labels = settings.first_labels if index == 0 else "adaptation-reliability"
            if relabels:
                phases.append(Phase(round=index, action="label", what=labels))
            phases.append(Phase(round=index, action="update", what="both", steps=steps))
    return phases


class Reporter(Protocol):
    """Who is told how a run goes; the command draws it, a test ignores it."""

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """A phase of `total` photographs or steps begins, `done` of them done before."""

    def labelled(self, done: int) -> None:
        """So many photographs of this phase are labelled."""

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        """A step of this phase is done, with its losses, learning rate, and seconds spent and waited."""

    def validated(self, phase: Phase, figures: dict[str, float]) -> None:
        """The network was measured on the held-out photographs after a phase."""


def held_out_photographs(photographs: Photographs, settings: TrainingSettings) -> np.ndarray:
    """Sorted indices of the photographs that a run never trains on."""
    held = min(MOST_HELD_OUT, round(settings.validation_share * len(photographs)))
    return np.sort(np.random.default_rng([settings.seed, 1]).permutation(len(photographs))[:held])


class SelfEvolution:
    """A run in a folder: `checkpoint.pt`, `labels-*.npy`, `model.safetensors` and, by the reporter, its log."""

    def __init__(
        self,
        folder: Path,
        photographs: Photographs,
        settings: TrainingSettings,
        reporter: Reporter,
        *,
        device: torch.device,
        workers: int = 1,
        deadline: float = float("inf"),
    ) -> None:
        """`deadline` is a `time.monotonic()` by which the run stops, leaving a usable model and a checkpoint."""
        self.folder, self.photographs, self.settings, self.reporter = folder, photographs, settings, reporter
        self.device, self.workers, self.deadline = device, workers, deadline
        self.learner = Learner(settings, device)
        self.phase_index = 0
        self.phase_step = 0
        self.best = -1.0
        self.seconds = 0.0  # spent training, over all resumptions
        self.started = time.monotonic()
        self.held_out = held_out_photographs(photographs, settings)
        self.training = np.setdiff1d(np.arange(len(photographs)), self.held_out)

    def run(self) -> bool:
        """Go through the phases that are left; false if the deadline came first."""
        phases = phases_of(self.settings)
        while self.phase_index < len(phases):
            phase = phases[self.phase_index]
            finished = self._label(phase) if phase.action == "label" else self._update(phase)
            if not finished:
                self._save(note=f"stopped at step {self.learner.step} of {self.settings.total_steps}")
                return False
            self.phase_index, self.phase_step = self.phase_index + 1, 0
            if phase.action == "update":
                self._validate(phase)
            self._save(note="finished" if self.phase_index == len(phases) else f"after round {phase.round}")
        return True

    def resume(self) -> None:
        """Take up the state of the folder's checkpoint."""
        state = load_checkpoint(self.folder / "checkpoint.pt")
        self.learner.restore(state["learner"])
        self.phase_index, self.phase_step = state["phase_index"], state["phase_step"]
        self.best, self.seconds = state["best"], state["seconds"]

    def _late(self) -> bool:
        return time.monotonic() >= self.deadline

    def _chosen(self, phase: Phase) -> np.ndarray:
        """Indices of the photographs of a round."""
        count = max(1, round(self.settings.photographs_per_round * len(self.training)))
        generator = np.random.default_rng([self.settings.seed, 2, phase.round])
        return np.sort(generator.permutation(self.training)[:count])

    def _label_file(self, index: int) -> Path:
        return self.folder / f"labels-{index}.npy"

    def _label(self, phase: Phase) -> bool:
        chosen = self._chosen(phase)
        self.reporter.phase(phase, len(chosen), 0)
        labels = label_photographs(
            phase.what,
            self.learner.average,
            self.photographs,
            chosen,
            self.settings,
            key=(self.settings.seed, self.phase_index),
            file=self._label_file(self.phase_index),
            progress=self.reporter.labelled,
            stop=self._late,
        )
        return labels is not None

    def _batches(self, phase: Phase) -> Iterator[PairBatch]:
        phases = phases_of(self.settings)
        labelling = max(index for index in range(self.phase_index) if phases[index].action == "label")
        labels = np.load(self._label_file(labelling), mmap_mode="r")
        key = (self.settings.seed, self.phase_index)
        pairs = PairDataset(self.photographs, self._chosen(phases[labelling]), labels, self.settings, key)
        itself = self.device.type == "cpu"  # or data processes send what to render, and the device renders it
        loader: DataLoader[PairBatch | PairPlan] = DataLoader(
            pairs if itself else PlanDataset(pairs),
            batch_size=None,
            sampler=range(self.phase_step, phase.steps),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_one_thread,
        )
        for part in loader:
            if isinstance(part, PairPlan):
                yield render(part, self.settings.height, self.settings.width, self.device)
            else:
                yield part

    def _update(self, phase: Phase) -> bool:
        self.reporter.phase(phase, phase.steps, self.phase_step)
        self.learner.network.train()
        frozen = self._frozen() if phase.what != "both" else None
        batches = self._batches(phase)
        saved = time.monotonic()
        while self.phase_step < phase.steps:
            start = time.monotonic()
            if start >= self.deadline:
                return False
            batch = next(batches)
            arrived = time.monotonic()
            losses = losses_of(self.learner.network, frozen, batch, phase.what, self.settings)
            self.learner.update(torch.stack(list(losses.values())).sum())
            self.phase_step += 1
            figures = {name: float(loss.detach()) for name, loss in losses.items()}
            figures |= {"learning_rate": self.learner.learning_rate(), "waited": arrived - start}
            figures |= {"seconds": time.monotonic() - start, "points": float(batch.matched.sum())}
            self.reporter.stepped(self.phase_step, figures)
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save(note=f"step {self.learner.step} of {self.settings.total_steps}")
                saved = time.monotonic()
        return True

    def _frozen(self) -> DenseNetwork:
        """The network as it was when the phase began; on disk, so that a resumed phase is held by the same."""
        file = self.folder / f"frozen-{self.phase_index}.pt"
        copy = self.learner.frozen_copy()
        if self.phase_step > 0 and file.is_file():
            copy.load_state_dict(load_checkpoint(file)["network"])
        else:
            save_checkpoint(file, {"network": copy.state_dict()})
        return copy

    def _validate(self, phase: Phase) -> None:
        figures = validate(self.learner.average, self.photographs, self.held_out)
        self.reporter.validated(phase, figures)
        if figures.get("score", 0.0) >= self.best:
            self.best = figures.get("score", 0.0)
            self._export("best.safetensors", f"after round {phase.round}")

    def _save(self, note: str) -> None:
        now = time.monotonic()
        self.seconds, self.started = self.seconds + now - self.started, now
        state: dict[str, Any] = {"learner": self.learner.state()}
        state |= {"phase_index": self.phase_index, "phase_step": self.phase_step}
        state |= {"best": self.best, "seconds": self.seconds}
        save_checkpoint(self.folder / "checkpoint.pt", state)
        self._export("model.safetensors", note)

    def _export(self, name: str, note: str) -> None:
        facts = {"steps": self.learner.step, "pairs": self.learner.step * self.settings.batch_size, "note": note}
        facts |= {"seed": self.settings.seed, "photographs": len(self.training), "minutes": round(self.seconds / 60, 1)}
        save_network(self.folder / name, self.learner.average, facts)


def _one_thread(worker: int) -> None:
    """Data processes use one thread each: two busy processes waiting for each other's threads cost ten times."""
    del worker
    torch.set_num_threads(1)
