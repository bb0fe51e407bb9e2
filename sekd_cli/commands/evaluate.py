"""`sekd evaluate`: the paper's tasks on any features, side by side."""

# ruff: noqa: PLC0415 - what is heavy is imported by the command that runs, so that --help is quick

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sekd_cli.commands.evaluate_methods import (
    chosen_methods,
    computed_methods,
    features_option,
    method_options,
    tell_apart,
)
from sekd_cli.commands.evaluate_output import show
from sekd_cli.commands.options import COUNT, FILE, FOLDER, THREADS, Command, FloatRange, together
from sekd_cli.commands.progress import Bar, progress_bar
from sekd_cli.evaluation.plots import Panel, check_plot, draw
from sekd_cli.evaluation.tables import Table

ANGLE = FloatRange(0, 180)
POSITIVE = click.IntRange(min=1)
PROTOCOL = ("max_size", "seeds", "refine")


_output_options = together(
    click.option("--json", "output", flag_value="json", help="Every figure, as JSON."),
    click.option("--csv", "output", flag_value="csv", help="Every figure, as CSV."),
    click.option("--markdown", "output", flag_value="markdown", help="The table, as Markdown."),
    click.option("--plot", type=FILE, help="Draw curves or bars: png, pdf, svg."),
)
_per_pair_option = click.option(
    "--per-pair", is_flag=True, help="List every pair, mark those that failed; --csv then has these alone."
)


def _size_option(default: int) -> Callable[[Command], Command]:
    text = "Longer edge in pixels; 0 for no limit."
    return click.option("--max-size", type=COUNT, default=default, show_default=True, help=text)


def _protocol_options(max_size: int, seeds: int) -> Callable[[Command], Command]:
    """What the protocols of all tasks but speed have: PROTOCOL."""
    text = "Runs of each robust estimator; the median counts."
    return together(
        _size_option(max_size),
        click.option("--seeds", type=POSITIVE, default=seeds, show_default=True, help=text),
        click.option(
            "--refine", is_flag=True, help="Take the matches of sekd match --verify --refine, aligned by their pixels."
        ),
    )


_scene_options = together(
    click.option(
        "--neighbours",
        type=POSITIVE,
        default=8,
        show_default=True,
        help="Most places apart by name, in scenes without 3D points.",
    ),
    click.option(
        "--max-angle", type=ANGLE, default=60.0, show_default=True, help="Between viewing directions, degrees."
    ),
    click.option("--max-pairs", type=POSITIVE, default=1000, show_default=True, help="Of a scene; thinned evenly."),
)


@click.group()
def evaluate() -> None:
    """Measure features: homographies, relative pose, structure from motion, speed.

    Several methods, weights or feature files in one call make one table.
    """


@evaluate.command(epilog="Example:  sekd evaluate homography hpatches -m sekd -m sift -f disk.h5")
@click.argument("root", type=FOLDER)
@method_options(max_keypoints=500)
@features_option
@_protocol_options(max_size=640, seeds=5)
@_per_pair_option
@_output_options
def homography(*, root: Path, per_pair: bool, output: str | None, plot: Path | None, **rest: Any) -> None:
    """Homography and matching accuracy on folders in HPatches form.

    ROOT holds folders with images 1.* to 6.* and homographies H_1_2 to H_1_6, or is one. HA is the accuracy averaged
    over 1 to 10 px, the mean of RANSAC and MAGSAC; MMA the share of right matches; rep. the keypoints' repeatability.
    """
    from sekd_cli.evaluation import homography_benchmark as benchmark
    from sekd_cli.evaluation import homography_tables as tables

    _check_plot(plot)
    sequences = benchmark.read_sequences(root)
    protocol = benchmark.HomographyProtocol(**_taken(rest, *PROTOCOL))
    methods = chosen_methods([path for sequence in sequences for path in sequence.images], **rest)
    total = len(methods) * sum(len(sequence.homographies) for sequence in sequences)
    with progress_bar("evaluating", total, "pairs") as bar:
        results = benchmark.evaluate_sequences(sequences, methods, protocol, _advance(bar))
    summary = tables.summary_table(results)
    _report([summary, tables.pair_table(results)] if per_pair else [summary], output, tables.panels(summary), plot)


@evaluate.command(epilog="Example:  sekd evaluate pose strecha -m sekd -m sift --max-keypoints 2048 --plot pose.png")
@click.argument("root", type=FOLDER)
@method_options(max_keypoints=2048)
@features_option
@_scene_options
@_protocol_options(max_size=1600, seeds=5)
@_per_pair_option
@_output_options
def pose(*, root: Path, per_pair: bool, output: str | None, plot: Path | None, **rest: Any) -> None:
    """Relative pose of calibrated photographs, by an essential matrix (MAGSAC).

    ROOT is a scene or a folder of scenes, each with cameras/NAME.camera and images/NAME (Strecha), with images/ and a
    COLMAP model in sparse/, or with a pairs.txt of names, turns, K0, K1 and T_0to1 (SuperGlue).
    """
    from sekd_cli.evaluation import pose_benchmark as benchmark
    from sekd_cli.evaluation.scenes import PairSelection, find_scenes

    _check_plot(plot)
    scenes = find_scenes(root, PairSelection(**_taken(rest, "neighbours", "max_angle", "max_pairs")))
    protocol = benchmark.PoseProtocol(**_taken(rest, *PROTOCOL))
    methods = chosen_methods([path for scene in scenes for path in scene.paths.values()], **rest)
    with progress_bar("evaluating", len(methods) * sum(len(scene.pairs) for scene in scenes), "pairs") as bar:
        results = benchmark.evaluate_scenes(scenes, methods, protocol, _advance(bar))
    summary = benchmark.summary_table(results)
    tables = [summary, benchmark.pair_table(results)] if per_pair else [summary]
    _report(tables, output, benchmark.panels(results), plot)


@evaluate.command(epilog="Example:  sekd evaluate sfm strecha -m sekd -m sift")
@click.argument("root", type=FOLDER)
@method_options(max_keypoints=2048)
@features_option
@_protocol_options(max_size=1600, seeds=3)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="For COLMAP; with 1, runs repeat exactly.")
@_per_pair_option
@_output_options
def sfm(*, root: Path, per_pair: bool, output: str | None, plot: Path | None, **rest: Any) -> None:
    """Structure from motion with pycolmap (extra colmap) from all pairs of each scene.

    ROOT as for pose, except pairs.txt. The cameras' calibration is given; the poses found are compared with the truth.
    """
    from sekd_cli.evaluation import sfm as benchmark
    from sekd_cli.evaluation.scenes import PairSelection, find_scenes
    from sekd_cli.pycolmap_extra import require_pycolmap

    _check_plot(plot)
    require_pycolmap()
    scenes = find_scenes(root, PairSelection())
    protocol = benchmark.SfmProtocol(**_taken(rest, *PROTOCOL, "threads"))
    methods = chosen_methods([path for scene in scenes for path in scene.paths.values()], **rest)
    with progress_bar("evaluating", len(methods) * len(scenes) * protocol.seeds, "models") as bar:
        results = benchmark.evaluate_scenes(scenes, methods, protocol, _advance(bar))
    summary = benchmark.summary_table(results)
    tables = [summary, benchmark.pair_table(results)] if per_pair else [summary]
    _report(tables, output, benchmark.panels(summary), plot)


@evaluate.command(epilog="Example:  sekd evaluate speed photo.jpg -m sekd -m sift --threads 1")
@click.argument("images", nargs=-1, type=FILE)
@method_options(max_keypoints=2048)
@_size_option(0)
@click.option("--rounds", type=POSITIVE, default=20, show_default=True, help="Rounds, after one to warm up.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of torch and OpenCV.")
@_output_options
def speed(
    *,
    images: tuple[Path, ...],
    max_size: int,
    rounds: int,
    threads: int,
    output: str | None,
    plot: Path | None,
    **which: Any,
) -> None:
    """Milliseconds for each step, methods interleaved in rounds; medians, and ratios to the first method.

    IMAGES are files; without any, one of 640x480 is drawn. OpenCV's features do all their work in one step, shown as
    network, with the threshold that fills the budget; tries with others aren't counted.
    """
    from sekd_cli.evaluation import speed as benchmark

    _check_plot(plot)
    methods = computed_methods(**which)
    tell_apart(methods)
    protocol = benchmark.SpeedProtocol(max_size=max_size, rounds=rounds, threads=threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar("evaluating", len(methods) * (rounds + 1), "rounds") as bar,
    ):
        paths = list(images) or [benchmark.draw_image(Path(folder))]
        rows = benchmark.measure(paths, methods, protocol, _advance(bar))
    _report([benchmark.summary_table(rows)], output, benchmark.panels(rows), plot)


def _taken(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of the options given, which then no longer has them."""
    return {name: given.pop(name) for name in names}


def _advance(bar: Bar) -> Callable[[str], None]:
    """What moves a bar by one and shows what was done."""
    return lambda what: bar.advance(note=what)


def _check_plot(path: Path | None) -> None:
    """Before the work: what draws must be there, and the folder to write to."""
    if path is not None:
        check_plot(path)


def _report(tables: list[Table], output: str | None, panels: list[Panel], plot: Path | None) -> None:
    show(tables, output)
    if plot is not None:
        draw(panels, plot)
