"""`sekd match`: pairs of images and their features to matches. What it does is in `match_run`."""

from pathlib import Path
from typing import Any

import click

from sekd_cli.commands import options
from sekd_cli.config import MODELS


@click.command()
@click.argument("pairs", type=click.Path(allow_dash=True, path_type=Path, readable=False))
@click.option(
    "--features",
    "-f",
    type=options.PATH,
    default=Path("feats.h5"),
    show_default=True,
    help="Feature file.",
)
@click.option("--output", "-o", type=options.PATH, default=Path("matches.h5"), show_default=True, help="Match file.")
@click.option("--ratio", default=1.0, show_default=True, help="Largest ratio, best to second best distance; 1: off.")
@click.option("--min-similarity", default=-1.0, show_default=True, help="Smallest cosine similarity; -1: off.")
@click.option(
    "--dual-softmax", type=float, metavar="T", help="Score by dual-softmax probabilities, of temperature T; 0: off."
)
@click.option("--min-probability", default=0.0, show_default=True, help="Smallest dual-softmax probability.")
@click.option(
    "--rotations/--upright",
    default=False,
    help="Try all quarter turns of the second image, keep the one with most matches; needs sekd extract --rotations.",
)
@click.option(
    "--verify", type=click.Choice(MODELS), help="Keep what agrees on one such model; a homography also finds more."
)
@click.option("--threshold", type=float, help="Largest error of an inlier in pixels; default: homography 3, others 1.")
@click.option("--min-inliers", type=int, help="A pair with fewer keeps no match; 0 keeps any; default: 15.")
@click.option(
    "--refine",
    is_flag=True,
    help="Align verified matches, and the model, by the pixels around them, and find more; needs --images.",
)
@click.option("--camera", metavar="F|FX,FY,CX,CY", help="In pixels, for essential; F alone if image sizes differ.")
@click.option(
    "--images",
    type=options.FOLDER,
    help="Folder of the images: pixels for --refine, focal lengths from EXIF for essential.",
)
@options.layout
@options.overwrite
@click.option("--update", is_flag=True, help="Match again the pairs whose features changed since.")
@options.shard
@click.option("--failures", type=options.FILE, help="List failed pairs here, as JSONL.")
@options.device
@click.option(
    "--threads",
    type=options.THREADS,
    help="Pairs matched at once; default: a core each, up to 16; on a GPU 4, unless --verify.",
)
@click.option(
    "--cache",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="GB of features, and pixels, in memory.",
)
def match(**given: Any) -> int:
    """Match the keypoints of pairs of images: mutual nearest neighbours of their descriptors.

    \b
    sekd match pairs.txt --features feats.h5 -o matches.h5
    sekd pairs feats.h5 --nearest 20 | sekd match - --verify fundamental --refine --images photos

    PAIRS is a text file with two names a line, as in the feature file, or - for stdin. Prints the path of the match
    file, or of the folder of --layout. Run again, the same command goes on where it stopped.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.commands.match_run import MatchOptions, run  # noqa: PLC0415 - loads torch, which --help needs not

    return run(MatchOptions(**given))
