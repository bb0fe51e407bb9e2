"""`sekd show`: pictures of keypoints and matches. What it does is in `show_run`."""

from typing import Any

import click

from sekd_cli.commands import options


@click.command()
@click.argument("images", nargs=-1, required=True, type=options.PATH, metavar="IMAGE...")
@click.option("--features", "-f", type=options.FILE, help="Take keypoints from this file; default: extract them now.")
@click.option("--matches", "-m", type=options.FILE, help="Take matches from this file; default: match now.")
@click.option("--verify", type=click.Choice(("homography", "fundamental")), help="Show which matches fit this model.")
@click.option("--refine", is_flag=True, help="Align what fits by the pixels, as sekd match --refine does.")
@click.option("--keypoints", is_flag=True, help="Draw keypoints even if there are two images.")
@click.option("--output", "-o", type=options.PATH, help="A .png, or a folder; default: the current one.")
@click.option(
    "--open", "open_", is_flag=True, help="Open the pictures in a viewer; without -o they are in a temporary folder."
)
@click.option("--size", default=1200, show_default=True, help="Longer edge of each photograph drawn; 0 for its own.")
@click.option(
    "--max-keypoints",
    type=int,
    help="If they are extracted now: best by score of each image; 0 for all; default: 2048.",
)
@click.option("--weights", type=options.FILE, help="To extract with; default: the shipped weights.")
@options.max_pixels
def show(**given: Any) -> int:
    """Draw keypoints, coloured by score, or the matches of two images, as lines.

    \b
    sekd show photo.jpg --open
    sekd show left.jpg right.jpg --verify homography -o matches.png
    sekd show left.jpg right.jpg --verify fundamental --refine --open
    sekd show photos/a.jpg photos/b.jpg --features feats.h5 --matches matches.h5

    Prints the paths of the pictures.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.commands.show_run import ShowOptions, run  # noqa: PLC0415 - loads torch, which --help needs not

    return run(ShowOptions(**given))
