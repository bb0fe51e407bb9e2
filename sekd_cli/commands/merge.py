"""`sekd merge`: the files of shards as one."""

import logging
import os
from pathlib import Path

import click

from sekd_cli.commands.options import FILE
from sekd_cli.counting import counted

logger = logging.getLogger(__name__)


@click.command()
@click.argument("shards", nargs=-1, required=True, type=FILE, metavar="SHARD...")
@click.option("--output", "-o", type=FILE, required=True, help="The whole; a new file.")
@click.option("--partial", is_flag=True, help="Join what is there although shards are missing.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def merge(shards: tuple[Path, ...], output: Path, partial: bool, overwrite: bool) -> None:
    """Join the feature files, or the match files, of runs with --shard I/N.

    \b
    sekd merge feats.1.h5 feats.2.h5 feats.3.h5 -o feats.h5

    Nothing is written if shards are missing, are there twice, or differ in weights or settings. Prints the path of the
    output; sekd extract and sekd match can go on with it.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli import merging  # noqa: PLC0415 - loads h5py, which --help needs not
    from sekd_cli.commands.progress import progress_bar  # noqa: PLC0415

    with progress_bar("merge", None, unit="groups") as bar:
        merged = merging.merge(list(shards), output, partial=partial, overwrite=overwrite, advance=bar.advance)
    what = "image" if merged.kind == "features" else "pair"
    if merged.doubles:
        logger.warning("%s in several files, the same; taken once", counted(merged.doubles, what))
    if merged.turned:
        logger.warning("%s came before the other way round, left out", counted(merged.turned, "pair"))
    if merged.incomplete:
        logger.warning("%s left out as incomplete; run the shard again", counted(merged.incomplete, what))
    logger.info("%s of %s", counted(merged.items, what), counted(len(shards), "file"))
    click.echo(os.fsencode(output))
