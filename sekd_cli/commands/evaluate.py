"""`sekd evaluate`: the paper's tasks on any features, side by side."""

# ruff: noqa: PLC0415 - what is heavy is imported by the command that runs, so that --help is quick

import tempfile
from collections.abc import Callable, Sequence
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sekd_cli.commands.evaluate_output import show
from sekd_cli.commands.options import FILE, FOLDER, THREADS, FloatRange
from sekd_cli.commands.progress import Bar, progress_bar
from sekd_cli.errors import UsageError
from sekd_cli.evaluation.plots import Panel, check_plot, draw
from sekd_cli.evaluation.tables import Table

if TYPE_CHECKING:
    from sekd_cli.evaluation.methods import ComputedMethod, Method

Command = Callable[..., None]

COUNT = click.IntRange(0, 1_000_000_000)  # OpenCV counts to twice that
ANGLE = FloatRange(0, 180)
POSITIVE = click.IntRange(min=1)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _method_options(max_keypoints: int) -> Callable[[Command], Command]:
    names = click.Choice(("sekd", "sift", "rootsift", "orb"))
    return _together(
        click.option("-m", "--method", "methods", multiple=True, type=names, help="Features to compute here; repeat."),
        click.option("-w", "--weights", multiple=True, type=FILE, help="Weights of sekd; a row for each file."),
        click.option("--max-keypoints", type=COUNT, default=max_keypoints, show_default=True, help="0 for all."),
        click.option(
            "--threshold", type=float, help="sekd's smallest keypoint probability.  [default: the network's own]"
        ),
        click.option("--device", default="auto", show_default=True, help="Of sekd: auto, cpu, cuda, cuda:1 or mps."),
        click.option(
            "--precision", "precisions", multiple=True, help="Of sekd: auto (default), float32, bfloat16, int8; repeat."
        ),
        click.option(
            "--scales", multiple=True, help="Of sekd, as for sekd extract; repeat.  [default: the network's own]"
        ),
    )


_features_option = click.option(
    "-f", "--features", multiple=True, type=FILE, help="Feature file of any tool, hloc's layout; a row for each."
)
_output_options = _together(
    click.option("--json", "output", flag_value="json", help="Every figure, as JSON."),
    click.option("--csv", "output", flag_value="csv", help="Every figure, as CSV."),
    click.option("--markdown", "output", flag_value="markdown", help="The table, as Markdown."),
    click.option("--plot", type=FILE, help="Draw curves or bars: png, pdf, svg."),
)
_per_pair_option = click.option(
    "--per-pair", is_flag=True, help="List every pair, mark those that failed; --csv then has these alone."
)


_refine_option = click.option(
    "--refine", is_flag=True, help="Align matches by the pixels around them, as sekd match --refine does."
)


def _seeds_option(default: int) -> Callable[[Command], Command]:
    text = "Runs of each robust estimator; the median counts."
    return click.option("--seeds", type=POSITIVE, default=default, show_default=True, help=text)


def _size_option(default: int) -> Callable[[Command], Command]:
    text = "Longer edge in pixels; 0 for no limit."
    return click.option("--max-size", type=COUNT, default=default, show_default=True, help=text)


_scene_options = _together(
    click.option("--neighbours", type=POSITIVE, default=8, show_default=True, help="Most places apart by name."),
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
@_method_options(max_keypoints=500)
@_features_option
@_size_option(640)
@_seeds_option(5)
@_refine_option
@_per_pair_option
@_output_options
def homography(
    *,
    root: Path,
    max_size: int,
    seeds: int,
    refine: bool,
    per_pair: bool,
    output: str | None,
    plot: Path | None,
    **which: Any,
) -> None:
    """Homography and matching accuracy on folders in HPatches form.

    ROOT holds folders with images 1.* to 6.* and homographies H_1_2 to H_1_6, or is one. HA is the accuracy averaged
    over 1 to 10 px, the mean of RANSAC and MAGSAC; MMA the share of right matches; rep. the keypoints' repeatability.
    """
    from sekd_cli.evaluation import homography_benchmark as benchmark
    from sekd_cli.evaluation import homography_tables as tables

    _check_plot(plot)
    sequences = benchmark.read_sequences(root)
    methods = _methods([path for sequence in sequences for path in sequence.images], **which)
    protocol = benchmark.HomographyProtocol(max_size=max_size, seeds=seeds, refine=refine)
    total = len(methods) * sum(len(sequence.homographies) for sequence in sequences)
    with progress_bar("evaluating", total, "pairs") as bar:
        results = benchmark.evaluate_sequences(sequences, methods, protocol, _advance(bar))
    summary = tables.summary_table(results)
    _report([summary, tables.pair_table(results)] if per_pair else [summary], output, tables.panels(summary), plot)


@evaluate.command(epilog="Example:  sekd evaluate pose strecha -m sekd -m sift --max-keypoints 2048 --plot pose.png")
@click.argument("root", type=FOLDER)
@_method_options(max_keypoints=2048)
@_features_option
@_scene_options
@_size_option(1600)
@_seeds_option(5)
@_refine_option
@_per_pair_option
@_output_options
def pose(
    *,
    root: Path,
    max_size: int,
    seeds: int,
    refine: bool,
    per_pair: bool,
    output: str | None,
    plot: Path | None,
    **rest: Any,
) -> None:
    """Relative pose of calibrated photographs, by an essential matrix (MAGSAC).

    ROOT is a scene or a folder of scenes, each with cameras/NAME.camera and images/NAME (Strecha), with images/ and a
    COLMAP model in sparse/, or with a pairs.txt of names, turns, K0, K1 and T_0to1 (SuperGlue).
    """
    from sekd_cli.evaluation import pose_benchmark as benchmark
    from sekd_cli.evaluation.scenes import PairSelection, find_scenes

    _check_plot(plot)
    selection = PairSelection(**{name: rest.pop(name) for name in ("neighbours", "max_angle", "max_pairs")})
    scenes = find_scenes(root, selection)
    methods = _methods([path for scene in scenes for path in scene.paths.values()], **rest)
    protocol = benchmark.PoseProtocol(max_size=max_size, seeds=seeds, refine=refine)
    with progress_bar("evaluating", len(methods) * sum(len(scene.pairs) for scene in scenes), "pairs") as bar:
        results = benchmark.evaluate_scenes(scenes, methods, protocol, _advance(bar))
    summary = benchmark.summary_table(results)
    tables = [summary, benchmark.pair_table(results)] if per_pair else [summary]
    _report(tables, output, benchmark.panels(results), plot)


@evaluate.command(epilog="Example:  sekd evaluate sfm strecha -m sekd -m sift")
@click.argument("root", type=FOLDER)
@_method_options(max_keypoints=2048)
@_features_option
@_size_option(1600)
@_seeds_option(3)
@_refine_option
@click.option("--threads", type=THREADS, default=1, show_default=True, help="For COLMAP; with 1, runs repeat exactly.")
@_per_pair_option
@_output_options
def sfm(
    *,
    root: Path,
    max_size: int,
    seeds: int,
    refine: bool,
    threads: int,
    per_pair: bool,
    output: str | None,
    plot: Path | None,
    **which: Any,
) -> None:
    """Structure from motion with pycolmap (extra colmap) from all pairs of each scene.

    ROOT as for pose, except pairs.txt. The cameras' calibration is given; the poses found are compared with the truth.
    """
    from sekd_cli.evaluation import sfm as benchmark
    from sekd_cli.evaluation.scenes import PairSelection, find_scenes
    from sekd_cli.pycolmap_extra import require_pycolmap

    _check_plot(plot)
    require_pycolmap()
    scenes = find_scenes(root, PairSelection())
    methods = _methods([path for scene in scenes for path in scene.paths.values()], **which)
    protocol = benchmark.SfmProtocol(max_size=max_size, seeds=seeds, refine=refine, threads=threads)
    with progress_bar("evaluating", len(methods) * len(scenes) * seeds, "models") as bar:
        results = benchmark.evaluate_scenes(scenes, methods, protocol, _advance(bar))
    summary = benchmark.summary_table(results)
    tables = [summary, benchmark.pair_table(results)] if per_pair else [summary]
    _report(tables, output, benchmark.panels(summary), plot)


@evaluate.command(epilog="Example:  sekd evaluate speed photo.jpg -m sekd -m sift --threads 1")
@click.argument("images", nargs=-1, type=FILE)
@_method_options(max_keypoints=2048)
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
    methods = _computed(**which)
    _tell_apart(methods)
    protocol = benchmark.SpeedProtocol(max_size=max_size, rounds=rounds, threads=threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar("evaluating", len(methods) * (rounds + 1), "rounds") as bar,
    ):
        paths = list(images) or [benchmark.draw_image(Path(folder))]
        rows = benchmark.measure(paths, methods, protocol, _advance(bar))
    _report([benchmark.summary_table(rows)], output, benchmark.panels(rows), plot)


def _methods(images: Sequence[Path], features: tuple[Path, ...], max_keypoints: int, **which: Any) -> "list[Method]":
    """All methods, those that are files checked to have these images."""
    from sekd_cli.evaluation.stored import Stored

    chosen: list[Method] = list(_computed(max_keypoints=max_keypoints, alone=not features, **which))
    chosen += [Stored(path, max_keypoints) for path in features]
    _tell_apart(chosen)
    for method in chosen:
        method.check(images)
    return chosen


def _computed(
    methods: tuple[str, ...],
    weights: tuple[Path, ...],
    *,
    max_keypoints: int,
    threshold: float | None,
    device: str,
    precisions: tuple[str, ...],
    scales: tuple[str, ...],
    alone: bool = True,
) -> "list[ComputedMethod]":
    """The methods that compute features here; sekd with the packaged weights if nothing was asked for and `alone`."""
    from sekd_cli.config import DetectionSettings, ViewSettings, parse_scales
    from sekd_cli.device import keep_freed_memory, resolve_device
    from sekd_cli.evaluation.baselines import Orb, Sift
    from sekd_cli.evaluation.own import Sekd
    from sekd_cli.networks.weights_file import load_network, packaged_weights

    keep_freed_memory()  # as extract does
    chosen: list[ComputedMethod] = []
    if "sekd" not in methods and (weights or (alone and not methods)):
        methods = ("sekd", *methods)
    if "sekd" not in methods and (precisions or scales or threshold is not None):
        raise UsageError("--threshold, --precision and --scales are sekd's; add --method sekd")
    for name in dict.fromkeys(methods):
        if name == "sekd":
            settings = DetectionSettings(max_keypoints=max_keypoints, threshold=threshold)
            each = product(weights or (packaged_weights(),), precisions or ("auto",), scales or (None,))
            for path, precision, sizes in each:
                label = path.stem
                if len(precisions) > 1:
                    label += f" {precision}"
                if len(scales) > 1:
                    label += f" at {sizes}"
                network, views = load_network(path), ViewSettings(max_size=0, scales=parse_scales(sizes))
                chosen.append(Sekd(network, label, settings, resolve_device(device), precision=precision, views=views))
        else:
            chosen.append(Orb(max_keypoints) if name == "orb" else Sift(max_keypoints, root=name == "rootsift"))
    return chosen


def _advance(bar: Bar) -> Callable[[str], None]:
    """What moves a bar by one and shows what was done."""
    return lambda what: bar.advance(note=what)


def _tell_apart(methods: "Sequence[Method]") -> None:
    """Number labels that occur more than once, in the order of the command line: model, model-2."""
    taken, seen = {method.label for method in methods}, set[str]()
    for method in methods:
        numbered = (f"{method.label}-{number}" for number in count(2))
        if method.label in seen:
            method.label = next(label for label in numbered if label not in taken)
            taken.add(method.label)
        seen.add(method.label)


def _check_plot(path: Path | None) -> None:
    """Before the work: what draws must be there, and the folder to write to."""
    if path is not None:
        check_plot(path)


def _report(tables: list[Table], output: str | None, panels: list[Panel], plot: Path | None) -> None:
    show(tables, output)
    if plot is not None:
        draw(panels, plot)
