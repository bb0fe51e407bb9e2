"""Options, and types of options, that several subcommands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sekd_cli.config import DEFAULT_MAX_PIXELS

Command = Callable[..., None]

PATH = click.Path(path_type=Path, readable=False)  # what can't be read is told where it is read, with its exit code
FILE = click.Path(dir_okay=False, path_type=Path, readable=False)
THREADS = click.IntRange(1, 1024)  # more than any machine has; beyond, OpenMP ends the process
COUNT = click.IntRange(0, 1_000_000_000)  # OpenCV counts to twice that
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class FloatRange(click.FloatRange):
    """Numbers in a range; nan is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


layout = click.option(
    "--layout",
    type=click.Choice(("hloc", "imc", "kaggle")),
    default="hloc",
    show_default=True,
    help="imc, kaggle: once all is done, also write a folder of that name beside the output.",
)
overwrite = click.option("--overwrite", is_flag=True, help="Start afresh; without it, go on where the file ends.")
shard = click.option("--shard", metavar="I/N", help="Do the I-th of N parts, counted from 1.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
max_pixels = click.option(
    "--max-pixels",
    type=click.IntRange(0),
    default=DEFAULT_MAX_PIXELS,
    show_default=True,
    help="Refuse larger images; 0 for no limit.",
)
