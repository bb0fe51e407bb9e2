"""`sekd refine`: keypoints moved so that matches agree."""

import logging
import os
from pathlib import Path

import click

from sekd_cli.commands.options import FILE
from sekd_cli.counting import counted

logger = logging.getLogger(__name__)


@click.command()
@click.argument("matches", type=FILE)
@click.option("--features", "-f", type=FILE, default=Path("feats.h5"), show_default=True, help="Feature file.")
@click.option("--output", "-o", type=FILE, default=Path("refined.h5"), show_default=True, help="A new feature file.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def refine(matches: Path, features: Path, output: Path, overwrite: bool) -> None:
    """Move keypoints so that those of one point of the scene agree in all photographs, for structure from motion.

    \b
    sekd match pairs.txt --verify fundamental --refine --images photos -o matches.h5
    sekd refine matches.h5 --features feats.h5 -o refined.h5
    sekd export colmap --images photos --features refined.h5 --matches matches.h5

    MATCHES were made of these features with --refine, which finds where each keypoint's point lies in the other
    photograph; a keypoint's new place is where most of its matches say. The matches stay as they are, and go with the
    new file, too. Prints its path.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli import refining  # noqa: PLC0415 - loads h5py, which --help needs not
    from sekd_cli.commands.progress import progress_bar  # noqa: PLC0415

    with progress_bar("read images", None) as bar:
        done = refining.refine(features, matches, output, overwrite=overwrite, tell=bar.tell)
    logger.info(
        "%s: %s of %s keypoints moved, by %.2f px in the median, by %s aligned matches",
        counted(done.images, "image"),
        f"{done.moved:,}",
        f"{done.keypoints:,}",
        done.median_move,
        f"{done.links:,}",
    )
    click.echo(os.fsencode(output))
