"""How `sekd train` tells how a run goes."""

import logging
import os
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from sekd_cli.commands.progress import Bar, progress_bar
from sekd_cli.counting import counted
from sekd_cli.image_search import ImageEntry, find_images
from sekd_cli.training.events import Events
from sekd_cli.training.photographs import Photographs, cache_photographs
from sekd_cli.training.pictures import label_picture, match_picture, save_picture
from sekd_cli.training.ranks import rank
from sekd_cli.training.report import write_report
from sekd_cli.training.run_folder import RunFolder, run_begun
from sekd_cli.training.schedule import Phase
from sekd_cli.training.self_evolution import Reporter, SelfEvolution, held_out_photographs
from sekd_cli.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

FEW_LABELS = 10  # a photograph: of plain walls, or by a network that has learned too little; usual are hundreds


def photographs_at(data: tuple[str, ...]) -> list[ImageEntry]:
    """The images that are meant, each file once; pictures in the folders of training runs are no photographs."""
    entries: dict[Path, ImageEntry] = {}
    for path in data:  # one by one: names may meet, as only pixels count
        for entry in find_images([path]):
            entries.setdefault(Path(os.path.realpath(entry.path)), entry)
    begun = cache(run_begun)
    kept = [entry for place, entry in entries.items() if not any(map(begun, place.parents))]
    if len(kept) < len(entries):
        logger.info("left out %s in folders of training runs", counted(len(entries) - len(kept), "picture"))
    return kept


class RunReport(Reporter):
    """Tells people on stderr, the run's log, TensorBoard and `report.md` how it goes."""

    def __init__(self, run: RunFolder, settings: TrainingSettings) -> None:
        self.run, self.settings = run, settings
        self.events: Events | None = None
        self.bars = ExitStack()
        self.bar: Bar | None = None
        self.done = 0
        self.now: Phase | None = None

    def __enter__(self) -> "RunReport":
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.close()
        if self.events is not None:
            self.events.close()

    def open_events(self, step: int) -> None:
        """Open TensorBoard's events, of steps after the `step` that were done before; the log notes that too."""
        if rank() == 0:
            self.run.log({"action": "begin", "run_step": step})
            self.events = Events(self.run.path, step + 1)

    def _start_bar(self, name: str, total: int, done: int, unit: str) -> None:
        self.bars.close()
        self.bar = self.bars.enter_context(progress_bar(name, total, unit))
        self.done = 0
        self._reach(done)

    def _reach(self, done: int, note: str | None = None) -> None:
        if self.bar is not None:
            self.bar.advance(done - self.done, note)
        self.done = done

    def decode(self, data: tuple[str, ...], folder: Path, size: int) -> Photographs:
        """The photographs, decoded once into `folder`, with a bar while that lasts."""
        entries = photographs_at(data)
        self._start_bar("decoding", len(entries), 0, "photographs")
        photographs = cache_photographs(entries, folder, size, lambda: self._reach(self.done + 1))
        many = counted(len(photographs), "photograph")
        logger.info("%s, decoded in %s (%.0f MB)", many, folder, photographs.megabytes)
        if self.settings.validation_share and not len(held_out_photographs(photographs, self.settings)):
            logger.warning(
                "too few photographs to hold one out (%d): nothing will tell how good the network is; "
                "give more, or --set validation_share=0.2",
                len(photographs),
            )
        self.run.log({"action": "data", "photographs": len(photographs), "megabytes": round(photographs.megabytes, 1)})
        return photographs

    def phase(self, phase: Phase, total: int, done: int) -> None:
        """A phase begins."""
        self.now = phase
        unit = "photographs" if phase.action == "label" else "steps"
        self._start_bar(f"round {phase.round}: {phase.action} {phase.what}", total, done, unit)

    def labelled(self, done: int) -> None:
        """So many photographs are labelled."""
        self._reach(done)

    def label_ended(self, phase: Phase, done: int, total: int, labels: int) -> None:
        """So many photographs have so many labels to learn from."""
        entry = {"action": "label", "round": phase.round, "what": phase.what, "photographs": done, "of": total}
        self.run.log(entry | {"labels": labels})
        if done < total:
            logger.warning(
                "round %d: its time was enough to label %d of %s, and it learns from these; "
                "give more --minutes for more",
                phase.round,
                done,
                counted(total, "photograph"),
            )
        if labels < FEW_LABELS * done:
            logger.warning(
                "round %d: %s on %s, from which a network learns to find next to nothing; "
                "look at the photographs, give the updates more steps, or set a lower adaptation_threshold",
                phase.round,
                counted(labels, "label"),
                counted(done, "photograph"),
            )

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        """A step is done."""
        losses = (f"{name} {figures[name]:.3f}" for name in ("descriptor", "detector") if name in figures)
        self._reach(step, ", ".join(losses))
        if self.now is not None:
            entry = {"action": "update", "round": self.now.round, "what": self.now.what, "step": step}
            self.run.log(entry | {name: round(value, 6) for name, value in figures.items()})
        if self.events is not None:
            self.events.add("step", figures, int(figures["run_step"]))

    def planned(self, rounds: int, step_seconds: float) -> None:
        """So many rounds will be done, since time is short."""
        many = counted(rounds, "round")
        logger.info("%.2f seconds a step: %s in %g min", step_seconds, many, self.settings.minutes)
        self.run.log({"action": "plan", "rounds": rounds, "step_seconds": round(step_seconds, 4)})

    def validated(self, phase: Phase, figures: dict[str, float], evolution: SelfEvolution) -> None:
        """The held-out photographs were measured; pictures are drawn and the report is written."""
        self.run.log({"action": "validation", "round": phase.round, "what": phase.what} | figures)
        name = f"round-{phase.round}-{phase.what}"
        if figures:
            percent = {name: f"{100 * value:.1f}" for name, value in figures.items()}
            logger.info(
                "round %d, %s: repeatability %s %%, matches right to 1/3/5 px %s/%s/%s %%, homography accuracy %s %%",
                phase.round,
                phase.what,
                *(percent[name] for name in ("repeatability", "mma_1", "mma_3", "mma_5", "homography_accuracy")),
            )
            if self.events is not None:
                self.events.add("validation", figures, evolution.learner.step)
            matches = match_picture(evolution.learner.average, evolution.photographs, evolution.held_out)
            save_picture(self.run.path / "pictures" / f"{name}-matches.jpg", matches)
        labels = label_picture(evolution.photographs, *evolution.labels())
        save_picture(self.run.path / "pictures" / f"{name}-labels.jpg", labels)
        write_report(self.run)
