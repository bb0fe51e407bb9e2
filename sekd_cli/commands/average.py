"""`sekd average`: the mean of several weights."""

import math
import os
from pathlib import Path

import click

from sekd_cli.commands.options import FILE, PATH
from sekd_cli.counting import counted
from sekd_cli.errors import UsageError


@click.command()
@click.argument("weights", nargs=-1, required=True, type=PATH, metavar="WEIGHTS...")
@click.option("--output", "-o", type=FILE, required=True, help="A new file.")
@click.option("--share", "shares", type=click.FloatRange(min=0), multiple=True, help="Share of each; default: equal.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def average(weights: tuple[Path, ...], output: Path, shares: tuple[float, ...], overwrite: bool) -> None:
    """Average the weights of networks that were trained from the same starting weights.

    The result keeps most of what each has learned, and is as fast as one.

    \b
    sekd average upright.safetensors turned.safetensors -o both.safetensors
    sekd average old.safetensors new.safetensors --share 1 --share 3 -o mostly-new.safetensors

    Prints the path of the output.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.networks.averaging import average_networks  # noqa: PLC0415 - loads torch, which --help needs not
    from sekd_cli.networks.weights_file import load_network, save_network, weights_digest  # noqa: PLC0415
    from sekd_cli.new_file import new_file  # noqa: PLC0415

    shares = shares or (1.0,) * len(weights)
    if len(shares) != len(weights) or not 0 < sum(shares) < math.inf:
        count = f"{counted(len(weights), 'file')} and {len(shares)} --share"
        raise UsageError(f"{count}; give one for each, all of them finite, not all of them 0")
    parts = [share / sum(shares) for share in shares]
    mean = average_networks([load_network(path) for path in weights], parts)
    made_of = ", ".join(f"{part:.3g} of {weights_digest(path)}" for path, part in zip(weights, parts, strict=True))
    with new_file(output, overwrite=overwrite) as new:
        save_network(new, mean, {"mean_of": made_of})
    click.echo(os.fsencode(output))
