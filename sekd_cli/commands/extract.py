"""`sekd extract`: photographs to a feature file. What it does is in `extract_run`."""

from pathlib import Path
from typing import Any

import click

from sekd_cli.commands import options


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--output", "-o", type=options.PATH, default=Path("feats.h5"), show_default=True, help="Feature file.")
@click.option("--max-keypoints", default=2048, show_default=True, help="Best by score of each image; 0 for all.")
@click.option("--threshold", type=float, help="Smallest keypoint probability; default: the network's own.")
@click.option("--nms-radius", type=int, help="A keypoint is the best within so many pixels; default: the network's.")
@click.option("--max-size", default=1600, show_default=True, help="Longer edge seen by the network; 0: no limit.")
@click.option(
    "--scales",
    metavar="S,S,...|auto",
    help="Sizes at which to look for keypoints, relative to what --max-size leaves; auto: halved down to 128 pixels."
    "  [default: the network's own; 1,0.5 for the shipped weights]",
)
@click.option(
    "--rotations/--upright",
    default=False,
    help="Describe keypoints at all quarter turns, for sekd match --rotations: 4 times the time and the size.",
)
@click.option("--weights", type=options.PATH, help="A .safetensors of sekd train, or the authors' .pth.")
@click.option(
    "--descriptor-dtype",
    type=click.Choice(("float32", "float16")),
    default="float32",
    show_default=True,
    help="In the file; float16 halves it.",
)
@click.option(
    "--masks",
    type=options.FOLDER,
    help="Folder of masks, named photo.jpg.png as for COLMAP; no keypoints where they are black.",
)
@click.option("--root", type=options.FOLDER, help="Folder that names are relative to.")
@options.layout
@options.overwrite
@click.option("--update", is_flag=True, help="Extract again the images that changed since.")
@options.shard
@click.option("--failures", type=options.FILE, help="List failed images here, as JSONL.")
@options.device
@click.option("--precision", default="auto", show_default=True, help="float32, bfloat16, int8, or auto: the fastest.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images at a time; default: 4 small ones, 8 on a GPU.")
@click.option("--threads", type=options.THREADS, help="CPU cores to use, at most 16; default: all.")
@options.max_pixels
@click.option(
    "--tile", type=int, help="Edge of tiles for larger images, 1024 or more; 0: never; default: 4096, published 2048."
)
def extract(**given: Any) -> int:
    """Find and describe keypoints in photographs: files, folders, patterns, or - for a list of paths on stdin.

    \b
    sekd extract photos -o feats.h5
    find photos -name '*.jpg' | sekd extract - --root photos -o feats.h5 --max-keypoints 4096

    Prints the path of the feature file, or of the folder of --layout. The same command, run again, goes on.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sekd_cli.commands.extract_run import ExtractOptions, run  # noqa: PLC0415 - loads torch, which --help needs not

    return run(ExtractOptions(**given))
