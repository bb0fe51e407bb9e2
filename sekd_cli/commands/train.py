"""`sekd train`: a local feature from nothing but photographs."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sekd_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

    from sekd_cli.training.self_evolution import Phase
    from sekd_cli.training.settings import TrainingSettings

PARTS = ("descriptor-repeatability", "descriptor-distinctness", "detector-repeatability", "affine-adaptation")


@click.command(epilog="Example:  sekd train --data photos/ -o runs/mine --minutes 60")
@click.option("--data", multiple=True, metavar="PATH", help="Folder, file or glob of photographs; repeat for more.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), metavar="RUN", help="Run folder.")
@click.option("--resume", type=click.Path(path_type=Path, file_okay=False), metavar="RUN", help="Go on with a run.")
@click.option("--config", metavar="FILE|PRESET", default="default", show_default=True, help="TOML, default or paper.")
@click.option("--network", type=click.Choice(["compact", "published"]), help="Which network learns.")
@click.option("--rounds", type=int, help="Rounds of labelling and updating.")
@click.option("--steps", type=int, help="Steps of each update.")
@click.option("--last-steps", type=int, help="Steps of the last update, in which the learning rate falls.")
@click.option("--seed", type=int, help="Of everything that is random.")
@click.option("--without", type=click.Choice(PARTS), multiple=True, help="Switch a part of the method off.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change any setting of config.toml.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop by then, with a usable model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers", type=click.IntRange(0), default=None, help="Processes that prepare data.  [default: 1 a core]"
)
@click.option(
    "--threads", type=click.IntRange(1), default=None, help="CPU threads of the network.  [default: spare cores]"
)
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Decoded photographs.  [default: RUN]")
def train(data: tuple[str, ...], output: Path | None, resume: Path | None, **options: Any) -> None:
    """Learn a network from a folder of photographs, without labels.

    Writes RUN/model.safetensors, which extract --weights takes, and prints its path. The same command again, or
    --resume RUN, goes on where it stopped.
    """
    import torch  # noqa: PLC0415 - heavy; --help needs none of it

    from sekd_cli.training.run_folder import RunFolder  # noqa: PLC0415
    from sekd_cli.training.self_evolution import SelfEvolution  # noqa: PLC0415

    start = time.monotonic()
    if (resume is None) == (output is None) or (resume is None) != bool(data):
        raise UsageError("give --data PATH -o RUN to start, or --resume RUN alone to go on")
    run = RunFolder(resume or output or Path())
    if resume is not None:
        settings, facts = run.settings(), run.data()
        data, cache = tuple(facts["data"]), Path(facts["cache"])
    else:
        settings = _settings(options)
        cache = options["cache"] or run.path
        run.begin(settings, [str(Path(path).resolve()) for path in data], cache)
    device = _device(options["device"])
    threads, workers = _processors(device, options["threads"], options["workers"])
    torch.set_num_threads(threads)
    minutes = options["minutes"]
    with RunReport(run, settings) as report:
        photographs = report.cached(data, cache, settings.photograph_size)
        evolution = SelfEvolution(
            run.path,
            photographs,
            settings,
            report,
            device=device,
            workers=workers,
            deadline=start + 60 * minutes if minutes else float("inf"),
        )
        if run.has_checkpoint:
            evolution.resume()
        finished = evolution.run()
    steps = f"{evolution.learner.step} of {settings.total_steps} steps"
    report.say(f"finished: {steps}" if finished else f"{steps} in time; go on with: sekd train --resume {run.path}")
    click.echo(run.path / "model.safetensors")


def _settings(options: dict[str, Any]) -> "TrainingSettings":
    from sekd_cli.training.settings import PRESETS, read_settings, settings_from  # noqa: PLC0415

    config = options["config"]
    start = PRESETS[config] if config in PRESETS else read_settings(Path(config))
    named = {
        "network": options["network"],
        "rounds": options["rounds"],
        "steps_per_update": options["steps"],
        "last_steps": options["last_steps"] or options["steps"],
        "seed": options["seed"],
    }
    changes: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for change in options["changes"]:
        name, _, text = change.partition("=")
        changes[name.strip().replace("-", "_")] = _value(text.strip())
    return settings_from(changes, start, "command line").without(*options["without"])


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _device(name: str) -> "torch.device":
    import torch  # noqa: PLC0415

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"--device {name}: not available here; give cpu or auto") from error
    return device


def _processors(device: "torch.device", threads: int | None, workers: int | None) -> tuple[int, int]:
    """Threads of the network and processes for the data: on a CPU they share the cores, one thread a process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        workers = max(1, cores // 4) if device.type == "cpu" else cores
    return threads or max(1, cores - workers), workers


class RunReport:
    """Tells people on stderr and the run's log how it goes."""

    def __init__(self, run: Any, settings: "TrainingSettings") -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.run, self.settings = run, settings
        self.console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, *times, console=self.console, disable=not self.console.is_terminal)
        self.task: Any = None
        self.began, self.before = time.monotonic(), 0
        self.now: Phase | None = None

    def __enter__(self) -> "RunReport":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.print(text, highlight=False)

    def _new_task(self, name: str, total: int, done: int) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(name, total=total, completed=done, rate="")
        self.began, self.before = time.monotonic(), done

    def cached(self, data: tuple[str, ...], cache: Path, size: int) -> Any:
        """The photographs, decoded once, with a bar while that lasts."""
        from sekd_cli.images import find_images  # noqa: PLC0415
        from sekd_cli.training.photographs import cache_photographs  # noqa: PLC0415

        entries = [entry for path in data for entry in find_images([path])]  # names may meet: only pixels count
        self._new_task("decoding photographs", len(entries), 0)
        photographs = cache_photographs(entries, cache, size, lambda: self.bar.advance(self.task))
        self.say(f"{len(photographs)} photographs, {photographs.megabytes:.0f} MB decoded in {cache}")
        return photographs

    def phase(self, phase: "Phase", total: int, done: int) -> None:
        """A phase begins."""
        self.now = phase
        self._new_task(f"round {phase.round}: {phase.action} {phase.what}", total, done)

    def labelled(self, done: int) -> None:
        """So many photographs are labelled."""
        self._advance(done, "")

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        """A step is done."""
        assert self.now is not None
        losses = {name: figures[name] for name in ("descriptor", "detector") if name in figures}
        pairs = self.settings.batch_size * (step - self.before) / max(time.monotonic() - self.began, 1e-9)
        text = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self._advance(step, f"{text}, {pairs:.1f} pairs/s")
        entry = {"action": "update", "round": self.now.round, "what": self.now.what, "step": step}
        self.run.log(entry | {name: round(value, 6) for name, value in figures.items()})

    def validated(self, phase: "Phase", figures: dict[str, float]) -> None:
        """The held-out photographs were measured."""
        self.run.log({"action": "validation", "round": phase.round, "what": phase.what} | figures)
        if figures:
            text = (
                f"round {phase.round}, {phase.what}: repeatability {100 * figures['repeatability']:.1f} %, "
                f"matching accuracy at 1/3/5 px {100 * figures['mma_1']:.1f}/{100 * figures['mma_3']:.1f}/"
                f"{100 * figures['mma_5']:.1f} %, homography accuracy {100 * figures['homography_accuracy']:.1f} %"
            )
            self.say(text)

    def _advance(self, done: int, rate: str) -> None:
        self.bar.update(self.task, completed=done, rate=rate)
