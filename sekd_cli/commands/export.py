"""`sekd export`: a COLMAP database or an ONNX model."""

# ruff: noqa: PLC0415 - what is heavy is imported by the command that runs, so that --help is quick

import logging
import os
from pathlib import Path

import click

from sekd_cli.commands.options import FILE, FOLDER
from sekd_cli.counting import counted
from sekd_cli.errors import SOME_FAILED

logger = logging.getLogger(__name__)


@click.group()
def export() -> None:
    """Write a COLMAP database or an ONNX model.

    \b
    sekd export colmap --images photos --features feats.h5 --matches matches.h5 -o database.db
    sekd export onnx -o sekd.onnx
    """  # noqa: D301 - click's mark for lines that stay as they are


@export.command()
@click.option("--images", type=FOLDER, required=True, help="Folder of the photographs, as given to sekd extract.")
@click.option("--features", "-f", type=FILE, default="feats.h5", show_default=True, help="Feature file.")
@click.option("--matches", "-m", type=FILE, default="matches.h5", show_default=True, help="Match file.")
@click.option("--output", "-o", type=FILE, default="database.db", show_default=True, help="Database.")
@click.option(
    "--camera-mode",
    type=click.Choice(("auto", "single", "per-folder", "per-image")),
    default="auto",
    show_default=True,
    help="Which images share a camera; auto: by EXIF.",
)
@click.option("--camera-model", default="SIMPLE_RADIAL", show_default=True, help="COLMAP's name of the camera model.")
@click.option("--camera-params", default="", help="Its parameters, separated by commas; default: from EXIF.")
@click.option("--overwrite", is_flag=True, help="Replace a database that is there.")
def colmap(
    *,
    images: Path,
    features: Path,
    matches: Path,
    output: Path,
    camera_mode: str,
    camera_model: str,
    camera_params: str,
    overwrite: bool,
) -> int:
    """Write a COLMAP database: images, keypoints and verified matches, ready for the mapper.

    \b
    sekd export colmap --images photos --features feats.h5 --matches matches.h5 -o database.db
    mkdir -p model && colmap mapper --database_path database.db --image_path photos --output_path model

    Needs pip install 'sekd[colmap]'. Prints the path of the database.
    """  # noqa: D301
    from sekd_cli.commands.progress import progress_bar
    from sekd_cli.export.colmap import READABLE, CameraSettings, export_colmap
    from sekd_cli.feature_file import FeatureReader
    from sekd_cli.match_file import MatchReader

    camera = CameraSettings(mode=camera_mode, model=camera_model, parameters=camera_params)
    with (
        FeatureReader(features) as feature_reader,
        MatchReader(matches) as match_reader,
        progress_bar("read images", None) as bar,
    ):
        report = export_colmap(images, feature_reader, match_reader, output, camera, overwrite=overwrite, tell=bar.tell)
    for name in report.missing:
        logger.error("%s: not in %s, left out; give the folder that it was extracted from", name, images)
    for name in report.unreadable:
        logger.error("%s: COLMAP can't read it, left out; convert it to one of %s, and extract that", name, READABLE)
    for name in report.unlike:
        logger.error(
            "%s: left out, as it is not as large as the images whose camera it shares; "
            "give --camera-mode auto or per-image",
            name,
        )
    for name in report.resized:
        logger.error("%s: not as large as when it was extracted, left out; extract it again, or give that one", name)
    if report.skipped_pairs:
        left_out = counted(report.skipped_pairs, "pair")
        logger.warning("%s left out with images that are missing or can't be used", left_out)
    chance = f"; {report.pairs_of_chance} more no better than chance" if report.pairs_of_chance else ""
    logger.info(
        "%s, %s with %s, %s verified%s",
        counted(report.images, "image"),
        counted(report.pairs, "pair"),
        counted(report.matches, "match"),
        counted(report.verified_pairs, "pair"),
        chance,
    )
    click.echo(os.fsencode(output))
    return SOME_FAILED if report.missing or report.unreadable or report.unlike or report.resized else 0


@export.command()
@click.option("--output", "-o", type=FILE, default="sekd.onnx", show_default=True, help="Model.")
@click.option("--weights", type=FILE, help="A .safetensors of sekd train, or the authors' .pth; default: shipped.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
def onnx(output: Path, weights: Path | None, overwrite: bool) -> None:
    """Write a network as an ONNX model: score map and descriptor maps of images of any size.

    \b
    sekd export onnx -o sekd.onnx

    Needs pip install 'sekd[onnx]'. docs/EXPORT.md tells how to get keypoints from the maps. Prints the path.
    """  # noqa: D301
    from sekd_cli import __version__
    from sekd_cli.export.onnx import export_onnx
    from sekd_cli.networks.weights_file import load_network, packaged_weights, weights_digest
    from sekd_cli.new_file import spare_inputs

    path = weights or packaged_weights()
    spare_inputs([output], [path])
    network = load_network(path)
    facts = {"sekd_version": __version__, "weights_sha256": weights_digest(path)}
    export_onnx(network, output, facts, overwrite=overwrite)
    logger.info("%s network, %s parameters", network.name, f"{network.count_parameters():,}")
    click.echo(os.fsencode(output))
