"""`sekd train`: a local feature from nothing but photographs."""

import logging
import os
import time
import warnings
from collections.abc import Container
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sekd_cli.commands.options import THREADS, FloatRange
from sekd_cli.cores import available_cores
from sekd_cli.counting import counted
from sekd_cli.errors import UsageError
from sekd_cli.training.settings import ABLATIONS, PRESETS, TrainingSettings, read_settings, settings_from

if TYPE_CHECKING:
    import torch

    from sekd_cli.training.run_folder import RunFolder
    from sekd_cli.training.self_evolution import SelfEvolution

logger = logging.getLogger(__name__)

OF_A_NEW_RUN = ("config", "network", "rounds", "steps", "last_steps", "seed", "without", "changes", "minutes", "cache")


@click.command(epilog="Example:  sekd train --data photos/ -o runs/mine --minutes 60")
@click.option("--data", multiple=True, metavar="PATH", help="Folder, file or glob of photographs; repeat for more.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), metavar="RUN", help="Run folder.")
@click.option("--resume", type=click.Path(path_type=Path, file_okay=False), metavar="RUN", help="Go on with a run.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), metavar="RUN", help="Write its report.md.")
@click.option("--config", metavar="FILE|PRESET", default="default", show_default=True, help="TOML, default or paper.")
@click.option("--network", type=click.Choice(["compact", "published"]), help="Which network learns.")
@click.option("--rounds", type=int, help="Rounds of labelling and updating.")
@click.option("--steps", type=int, help="Steps of each update.")
@click.option("--last-steps", type=int, help="Steps of the last update, in which the learning rate falls.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--without", type=click.Choice(ABLATIONS), multiple=True, help="Switch a part of the method off.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change any setting of config.toml.")
@click.option("--minutes", type=FloatRange(min=0, min_open=True), help="End by then, with fewer, shorter rounds.")
@click.option(
    "--pause-after", type=FloatRange(min=0, min_open=True), metavar="MINUTES", help="Stop then; --resume goes on."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option(
    "--workers",
    type=click.IntRange(0, 1024),
    default=None,
    help="Processes that prepare data.  [default: one for 4 cores; with a GPU, all cores]",
)
@click.option("--threads", type=THREADS, default=None, help="CPU threads of the network.  [default: spare cores]")
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Decoded photographs.  [default: RUN]")
def train(data: tuple[str, ...], output: Path | None, resume: Path | None, report: Path | None, **options: Any) -> None:
    """Learn a network from a folder of photographs, without labels.

    Writes RUN/model.safetensors, which extract --weights takes, and prints its path. The same command again, or
    --resume RUN, goes on where it stopped. RUN/report.md tells how it went. For several GPUs or machines:
    torchrun --nproc-per-node 4 -m sekd_cli train ...
    """
    from sekd_cli.commands.train_report import RunReport  # noqa: PLC0415 - heavy, as all below
    from sekd_cli.device import resolve_device  # noqa: PLC0415
    from sekd_cli.training.optimisation import first_network  # noqa: PLC0415
    from sekd_cli.training.photographs import Photographs  # noqa: PLC0415
    from sekd_cli.training.ranks import join, leave, rank, wait  # noqa: PLC0415
    from sekd_cli.training.report import write_report  # noqa: PLC0415
    from sekd_cli.training.run_folder import RunFolder  # noqa: PLC0415
    from sekd_cli.training.self_evolution import Reporter, SelfEvolution  # noqa: PLC0415

    started = time.monotonic()
    if [report is not None, resume is not None, bool(data)].count(True) != 1 or (output is None) == bool(data):
        raise UsageError("give --data PATH -o RUN to start, --resume RUN alone to go on, or --report RUN")
    run = RunFolder(report or resume or output or Path())
    if report is not None:
        _refuse(options, "--report tells of a run as it is")
        run.data()  # or there is no run
        click.echo(os.fsencode(write_report(run)))
        return
    device = resolve_device(options["device"])
    join(device)
    first = rank() == 0
    try:
        if resume is not None:
            data, cache, settings = _resumed(run, options)
        else:
            cache, settings = options["cache"] or run.path, _settings(options)
        workers = _share_cores(device, options["workers"], options["threads"])
        if settings.start and not run.has_checkpoint:
            first_network(settings)  # what is wrong with it is told before hours of decoding
        with RunReport(run, settings) as told, run.locked() if first else nullcontext():
            if first:
                run.check_what_is_left()
                if resume is None:
                    run.begin(settings, [str(Path(path).resolve()) for path in data], cache)
                run.check_photographs(told.decode(data, cache, settings.photograph_size).digest())
            wait()  # for the first rank to have decoded
            reporter = told if first else Reporter()
            evolution = SelfEvolution(
                run.path,
                Photographs(cache),
                replace(settings, start="") if run.has_checkpoint else settings,  # it holds what became of the start
                reporter,
                device=device,
                workers=workers,
                started=started,
                pause=started + 60 * options["pause_after"] if options["pause_after"] else float("inf"),
            )
            if run.has_checkpoint:
                evolution.resume()
            told.open_events(evolution.learner.step)
            finished = evolution.run()
            wait()  # for the first rank to have written
    finally:
        leave()
    if first:
        _tell_end(run, evolution, settings, finished=finished)
        click.echo(os.fsencode(run.path / "model.safetensors"))


def _tell_end(run: "RunFolder", evolution: "SelfEvolution", settings: TrainingSettings, *, finished: bool) -> None:
    done = "finished" if finished else f"paused; sekd train --resume {run.path} goes on"
    steps = evolution.learner.step
    logger.info("%s: %s in %.0f min", done, counted(steps, "step"), evolution.seconds / 60)
    if finished and not settings.start and steps < settings.warmup_steps:
        logger.warning("the network hardly began to learn, and may find nothing; give more --minutes or --steps")


def _resumed(run: "RunFolder", options: dict[str, Any]) -> tuple[tuple[str, ...], Path, TrainingSettings]:
    """The photographs, cache folder and settings of a run that goes on.

    Raises UsageError if an option was given that would change them.
    """
    fixed = set(OF_A_NEW_RUN)
    if options["minutes"] and not run.settings().minutes:  # a run without an end in time: so many minutes more of it
        options["pause_after"] = options["minutes"]
        fixed.remove("minutes")
    _refuse(fixed, "--resume goes on with the run's own settings")
    facts = run.data()
    return tuple(facts["data"]), run.path / facts["cache"], run.settings()


def _refuse(names: Container[str], why: str) -> None:
    """Raise UsageError if one of these options was given."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{why}: leave out {option.opts[0]}")


def _share_cores(device: "torch.device", workers: int | None, threads: int | None) -> int:
    """Set the threads of this process, and return the number of its data processes."""
    from sekd_cli.device import keep_freed_memory, set_threads  # noqa: PLC0415

    cores = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # of those that torchrun started
    if workers is None:  # on a CPU the network needs the cores: one process prepares data for about four
        workers = max(1, cores // 4) if device.type == "cpu" else cores
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than there are cores: as asked for
    set_threads(threads or max(1, cores - workers))
    keep_freed_memory()
    return workers


def _settings(options: dict[str, Any]) -> TrainingSettings:
    config = options["config"]
    start = PRESETS[config] if config in PRESETS else read_settings(Path(config))
    named = {
        "network": options["network"],
        "rounds": options["rounds"],
        "steps_per_update": options["steps"],
        "last_steps": options["steps"] if options["last_steps"] is None else options["last_steps"],
        "seed": options["seed"],
        "minutes": options["minutes"],
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
