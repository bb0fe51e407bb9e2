"""`sekd convert`: feature and match files in other layouts."""

import logging
import os
from pathlib import Path

import click

from sekd_cli.commands.options import FOLDER, PATH
from sekd_cli.counting import counted

logger = logging.getLogger(__name__)


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=PATH, metavar="IN...")
@click.option("--to", "layout", type=click.Choice(("imc", "kaggle", "hloc")), required=True, help="The new layout.")
@click.option("--output", "-o", type=PATH, required=True, help="Folder; for hloc also a file.")
@click.option(
    "--images",
    type=FOLDER,
    help="Photographs, for the names and sizes that imc and kaggle don't keep.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def convert(inputs: tuple[Path, ...], layout: str, output: Path, images: Path | None, overwrite: bool) -> None:
    """Turn feature and match files into other layouts: hloc's, the IMC benchmark's, Kaggle's.

    IN is a feature file, a match file or both, or a folder of imc or kaggle files.

    \b
    sekd convert feats.h5 matches.h5 --to imc -o scene
    sekd convert scene --to hloc --images photos -o converted

    Prints the path of the output. docs/EXPORT.md has the layouts.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.export import conversion  # noqa: PLC0415 - loads h5py, which --help needs not

    done = conversion.convert(inputs, layout, output, images=images, overwrite=overwrite)
    if done.images is not None:
        logger.info("features of %s", counted(done.images, "image"))
    if done.pairs is not None:
        logger.info("matches of %s", counted(done.pairs, "pair"))
    click.echo(os.fsencode(output))
