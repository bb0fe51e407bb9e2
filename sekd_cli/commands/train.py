"""`sekd train`: a local feature from nothing but photographs."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sekd_cli.commands.progress import Bar, progress_bar
from sekd_cli.errors import UsageError

if TYPE_CHECKING:
    from sekd_cli.training.photographs import Photographs
    from sekd_cli.training.run_folder import RunFolder
    from sekd_cli.training.self_evolution import Phase
    from sekd_cli.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

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
    "--workers", type=click.IntRange(0), default=None, help="Processes that prepare data.  [default: 1 to 4 cores]"
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
    from sekd_cli.device import available_cores, keep_freed_memory, resolve_device, set_threads  # noqa: PLC0415 - heavy, as all below
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
        settings, cache = _settings(options), options["cache"] or run.path
        run.begin(settings, [str(Path(path).resolve()) for path in data], cache)
    device = resolve_device(options["device"])
    cores = available_cores()
    workers = options["workers"]
    if workers is None:  # on a CPU the network needs the cores: one process prepares data for about four
        workers = max(1, cores // 4) if device.type == "cpu" else cores
    set_threads(options["threads"] or max(1, cores - workers))
    keep_freed_memory()
    deadline = start + 60 * options["minutes"] if options["minutes"] else float("inf")
    with RunReport(run, settings) as report:
        photographs = report.decode(data, cache, settings.photograph_size)
        evolution = SelfEvolution(
            run.path, photographs, settings, report, device=device, workers=workers, deadline=deadline
        )
        if run.has_checkpoint:
            evolution.resume()
        finished = evolution.run()
    steps = f"{evolution.learner.step} of {settings.total_steps} steps"
    logger.info("%s", f"finished: {steps}" if finished else f"{steps} in time; go on: sekd train --resume {run.path}")
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


class RunReport:
    """Tells people on stderr and the run's log how it goes."""

    def __init__(self, run: "RunFolder", settings: "TrainingSettings") -> None:
        self.run, self.settings = run, settings
        self.bars = ExitStack()
        self.bar: Bar | None = None
        self.done = 0
        self.now: Phase | None = None

    def __enter__(self) -> "RunReport":
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.close()

    def _begin(self, name: str, total: int, done: int, unit: str) -> None:
        self.bars.close()
        self.bar = self.bars.enter_context(progress_bar(name, total, unit))
        self.done = 0
        self._reach(done)

    def _reach(self, done: int, note: str | None = None) -> None:
        if self.bar is not None:
            self.bar.advance(done - self.done, note)
        self.done = done

    def decode(self, data: tuple[str, ...], cache: Path, size: int) -> "Photographs":
        """The photographs, decoded once, with a bar while that lasts."""
        from sekd_cli.images import find_images  # noqa: PLC0415
        from sekd_cli.training.photographs import cache_photographs  # noqa: PLC0415

        entries = [entry for path in data for entry in find_images([path])]  # names may meet: only pixels count
        self._begin("decoding", len(entries), 0, "photographs")
        advance: Callable[[], None] = lambda: self._reach(self.done + 1)  # noqa: E731
        photographs = cache_photographs(entries, cache, size, advance)
        logger.info("%d photographs, decoded in %s (%.0f MB)", len(photographs), cache, photographs.megabytes)
        return photographs

    def phase(self, phase: "Phase", total: int, done: int) -> None:
        """A phase begins."""
        self.now = phase
        unit = "photographs" if phase.action == "label" else "steps"
        self._begin(f"round {phase.round}: {phase.action} {phase.what}", total, done, unit)

    def labelled(self, done: int) -> None:
        """So many photographs are labelled."""
        self._reach(done)

    def stepped(self, step: int, figures: dict[str, float]) -> None:
        """A step is done."""
        losses = (f"{name} {figures[name]:.3f}" for name in ("descriptor", "detector") if name in figures)
        self._reach(step, ", ".join(losses))
        if self.now is not None:
            entry = {"action": "update", "round": self.now.round, "what": self.now.what, "step": step}
            self.run.log(entry | {name: round(value, 6) for name, value in figures.items()})

    def validated(self, phase: "Phase", figures: dict[str, float]) -> None:
        """The held-out photographs were measured."""
        self.run.log({"action": "validation", "round": phase.round, "what": phase.what} | figures)
        if figures:
            percent = {name: f"{100 * value:.1f}" for name, value in figures.items()}
            logger.info(
                "round %d, %s: repeatability %s %%, matches right to 1/3/5 px %s/%s/%s %%, homography accuracy %s %%",
                phase.round,
                phase.what,
                *(percent[name] for name in ("repeatability", "mma_1", "mma_3", "mma_5", "homography_accuracy")),
            )
