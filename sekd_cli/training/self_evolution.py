"""The rounds: detector and descriptor teach each other on unlabelled photographs (paper Sec. 3.1, Fig. 2).

A run is a list of phases. A phase labels photographs with keypoints, or updates the network on the labels that the last
phase made. Everything that a phase does follows from (settings, seed, phase, step) and the network, so a run that was
killed anywhere goes on to the same end.
"""

import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sekd_cli.errors import InputFileError, UsageError
from sekd_cli.networks import DenseNetwork
from sekd_cli.networks.weights_file import save_network
from sekd_cli.training.checkpoint import load_checkpoint, save_checkpoint
from sekd_cli.training.data_processes import batches_of
from sekd_cli.training.dataset import PairBatch, PairDataset
from sekd_cli.training.labelling import label_photographs
from sekd_cli.training.losses import losses_of
from sekd_cli.training.optimisation import Learner
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.ranks import agreed, check_shares, rank, ranks, total
from sekd_cli.training.schedule import MEASURED_STEPS, Phase, affordable, phases_of, share_of_time
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.training.validation import validate

MOST_HELD_OUT = 128  # photographs; two pairs of each say enough
SAVE_SECONDS = 60.0  # between checkpoints
RESERVE = 0.02  # of the time that a run is given, for pictures and files at its end
STATE = (  # what a checkpoint keeps beside the learner
    *("phase_index", "phase_step", "phase_began", "labelled"),
    *("best", "seconds", "budget", "rounds", "measured"),
)


class Reporter:
    """Who is told how a run goes. This one keeps silent; the command's draws and logs."""

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """A phase of `total` photographs or steps begins, `done` of them done before."""

    def labelled(self, done: int) -> None:
        """So many photographs of this phase are labelled."""

    def label_ended(self, phase: Phase, done: int, total: int, labels: int) -> None:
        """A labelling is over: `done` photographs got `labels`, fewer than `total` if its time was short."""

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        """A step of this phase is done, with its losses, learning rate, and seconds spent and waited."""

    def planned(self, rounds: int, step_seconds: float) -> None:
        """So many rounds will be done, since time is short."""

    def validated(self, phase: Phase, figures: dict[str, float], evolution: "SelfEvolution") -> None:
        """The network was measured on the held-out photographs after a phase."""


def held_out_photographs(photographs: Photographs, settings: TrainingSettings) -> np.ndarray:
    """Sorted indices of what no run trains on, whatever its seed: it may start from another's weights."""
    held = min(MOST_HELD_OUT, round(settings.validation_share * len(photographs)))
    return np.sort(np.random.default_rng([0, 1]).permutation(len(photographs))[:held])


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
        started: float | None = None,
        pause: float = float("inf"),
    ) -> None:
        """`started`, by default now, and `pause`: `time.monotonic()` from which time counts, and to stop at."""
        check_shares(settings.batch_size)
        self.folder, self.photographs, self.settings, self.reporter = folder, photographs, settings, reporter
        self.device, self.workers = device, workers
        self.learner = Learner(settings, device)
        self.phase_index = 0
        self.phase_step = 0
        self.phase_began = 0.0  # seconds of the run
        self.labelled = 0  # photographs
        self.best = -1.0
        self.seconds = 0.0  # spent training, over all resumptions
        self.started = time.monotonic() if started is None else started
        self.pause = pause
        self.budget = 60 * settings.minutes or float("inf")  # seconds of the run
        self.rounds = settings.rounds  # fewer where the time is short; chosen when a step's time is known
        self.measured = False
        self.held_out = held_out_photographs(photographs, settings)
        self.training = np.setdiff1d(np.arange(len(photographs)), self.held_out)

    def run(self) -> bool:
        """Go through the phases that are left; false if the time to pause came first."""
        while self.phase_index < len(self._phases()):
            phase = self._phase()
            if self.phase_step == 0:
                self.phase_began = self._elapsed()
            if phase.action == "label":
                self._label(phase)
            else:
                self._update()
                phase = self._phase()  # which may have become the last
            if self._pausing():  # the phase is taken up again, if only to find that nothing of it is left
                self._save(note=f"paused at step {self.learner.step}")
                return False
            if phase.action == "update":
                self._validate(phase)
            self.phase_index, self.phase_step = self.phase_index + 1, 0
            ended = self.phase_index == len(self._phases())
            self._save(note="finished" if ended else f"after round {phase.round}")
        return True

    def resume(self) -> None:
        """Take up the state of the folder's checkpoint. Raises InputFileError if it can't be."""
        path = self.folder / "checkpoint.pt"
        state = load_checkpoint(path)
        try:
            self.learner.restore(state["learner"])
            for name in STATE:
                setattr(self, name, type(getattr(self, name))(state[name]))
            whole = 0 <= self.phase_index <= len(self._phases()) and self.phase_step >= 0
        except (AttributeError, KeyError, OverflowError, TypeError, UsageError, ValueError) as error:
            raise InputFileError(f"{path}: damaged checkpoint ({type(error).__name__}); start a new run") from error
        if not whole:
            raise InputFileError(f"{path}: damaged checkpoint; start a new run")

    def _elapsed(self) -> float:
        """Seconds of the run until now; where they decide anything, the same on all ranks."""
        seconds = self.seconds + time.monotonic() - self.started
        return agreed(seconds) if self.settings.minutes else seconds

    def _pausing(self) -> bool:
        return self.pause < float("inf") and agreed(time.monotonic() - self.pause) >= 0

    def _phases(self) -> list[Phase]:
        return phases_of(replace(self.settings, rounds=self.rounds))

    def _phase(self) -> Phase:
        return self._phases()[self.phase_index]

    def _end(self) -> float:
        """When this phase must end, in seconds of the run; until rounds are planned, as if its round were the last."""
        rounds = self.rounds if self.measured else self._phase().round + 1
        share = share_of_time(phases_of(replace(self.settings, rounds=rounds)), self.phase_index)
        return self.phase_began + share * (self.budget - self.phase_began)

    def _chosen(self, phase: Phase) -> np.ndarray:
        """Indices of the photographs of a round, in any order: the first of them are as good as all."""
        count = max(1, round(self.settings.photographs_per_round * len(self.training)))
        generator = np.random.default_rng([self.settings.seed, 2, phase.round])
        return generator.permutation(self.training)[:count]

    def _label_file(self, index: int) -> Path:
        return self.folder / f"labels-{index}.npy"

    def _label(self, phase: Phase) -> None:
        chosen, end, file = self._chosen(phase), self._end(), self._label_file(self.phase_index)
        self.reporter.phase(phase, len(chosen), 0)
        self.labelled = label_photographs(
            phase.what,
            self.learner.average,
            self.photographs,
            chosen,
            self.settings,
            key=(self.settings.seed, self.phase_index),
            file=file,
            progress=self.reporter.labelled,
            stop=lambda: (self.settings.minutes > 0 and self._elapsed() >= end) or self._pausing(),
        )
        if not self._pausing() and rank() == 0:
            found = int(np.isfinite(np.load(file, mmap_mode="r")[: self.labelled, :, 0]).sum())
            self.reporter.label_ended(phase, self.labelled, len(chosen), found)

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The photographs (n,) that were labelled last, and their labels (n, K, 3). Raises InputFileError."""
        phases = self._phases()
        index = max(index for index in range(self.phase_index) if phases[index].action == "label")
        file = self._label_file(index)
        chosen = self._chosen(phases[index])
        damaged = f"{file}: missing or damaged; put it back, or start a new run"
        try:
            labels = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise InputFileError(damaged) from error
        if getattr(labels, "shape", None) != (len(chosen), self.settings.labels_per_photograph, 3):
            raise InputFileError(damaged)
        return chosen[: self.labelled], labels[: self.labelled]

    def _batches(self) -> Generator[PairBatch, None, None]:
        key = (self.settings.seed, self.phase_index)
        pairs = PairDataset(self.photographs, *self.labels(), self.settings, key, share=(rank(), ranks()))
        yield from batches_of(pairs, self.phase_step, self.workers, self.device)

    def _update(self) -> None:
        phase, end = self._phase(), self._end()
        self.reporter.phase(phase, phase.steps, self.phase_step)
        self.learner.network.train()
        frozen = self._frozen() if phase.what != "both" else None
        batches = self._batches()
        saved = time.monotonic()
        durations: list[float] = []
        while self.phase_step < phase.steps and not self._pausing():
            now = self._elapsed()
            if self.measured and now >= end:  # its share of the time counts once that is planned
                break
            start = time.monotonic()
            batch = next(batches)
            arrived = time.monotonic()
            self.learner.annealed = self._annealed(phase, now, end)
            losses = losses_of(self.learner.model, frozen, batch, phase.what, self.settings)
            self.learner.update(torch.stack(list(losses.values())).sum())
            self.phase_step += 1
            told = total(torch.stack([*losses.values(), batch.matched.sum()]).detach()).tolist()
            figures = dict(zip([*losses, "points"], told, strict=True))
            figures |= {"learning_rate": self.learner.learning_rate(), "waited": arrived - start}
            figures |= {"seconds": time.monotonic() - start, "run_step": self.learner.step}
            figures["skipped"] = float(self.learner.skipped > 0)
            durations.append(figures["seconds"])
            if not self.measured and (
                len(durations) == MEASURED_STEPS or self.phase_step == phase.steps or self._elapsed() >= self.budget
            ):
                self._choose_rounds(phase, durations)
                phase, end = self._phase(), self._end()
            self.reporter.stepped(self.phase_step, figures)
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save(note=f"step {self.learner.step}")
                saved = time.monotonic()
        batches.close()

    def _annealed(self, phase: Phase, now: float, end: float) -> float:
        """How far the last update has come, by its steps or by its time, whichever ends first; 0 before."""
        if self.phase_index < len(self._phases()) - 1:
            return 0.0
        by_time = (now - self.phase_began) / (end - self.phase_began)  # 0 where the end is never
        return max(self.phase_step / phase.steps, by_time)

    def _choose_rounds(self, phase: Phase, durations: list[float]) -> None:
        """Where the time is short: fewer rounds, `phase`'s the last at least, and a reserve for the last validation."""
        self.measured = True
        if not self.settings.minutes:
            return
        step_seconds = agreed(float(np.median(durations)))
        self.budget -= 2 * len(self.held_out) * step_seconds / self.settings.batch_size + RESERVE * self.budget
        left = self.budget - self.phase_began
        self.rounds = max(phase.round + 1, affordable(self.settings, left, step_seconds).rounds)
        self.reporter.planned(self.rounds, step_seconds)

    def _frozen(self) -> DenseNetwork:
        """The network as it was when the phase began; on disk, so that a resumed phase is held by the same."""
        file = self.folder / f"frozen-{self.phase_index}.pt"
        copy = self.learner.frozen_copy()
        if self.phase_step > 0 and file.is_file():
            try:
                copy.load_state_dict(load_checkpoint(file)["network"])
            except (KeyError, RuntimeError, TypeError) as error:
                raise InputFileError(f"{file}: damaged, or of another network; start a new run") from error
        elif rank() == 0:
            save_checkpoint(file, {"network": copy.state_dict()})
        return copy

    def _validate(self, phase: Phase) -> None:
        if rank() > 0:
            return
        figures = validate(self.learner.average, self.photographs, self.held_out)
        if figures and figures["score"] >= self.best:
            self.best = figures["score"]
            self._export("best.safetensors", f"after round {phase.round}")
        self.reporter.validated(phase, figures, self)

    def _save(self, note: str) -> None:
        now = time.monotonic()
        self.seconds, self.started = self.seconds + now - self.started, now
        if rank() == 0:
            state = {name: getattr(self, name) for name in STATE}
            save_checkpoint(self.folder / "checkpoint.pt", {"learner": self.learner.state(), **state})
            self._export("model.safetensors", note)

    def _export(self, name: str, note: str) -> None:
        facts = {"steps": self.learner.step, "pairs": self.learner.step * self.settings.batch_size, "note": note}
        facts |= {"seed": self.settings.seed, "photographs": len(self.training), "minutes": round(self.seconds / 60, 1)}
        save_network(self.folder / name, self.learner.average, facts)
