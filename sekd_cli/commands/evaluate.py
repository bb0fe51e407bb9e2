"""`sekd evaluate`: the paper's tasks on any features, side by side."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sekd_cli.evaluation.methods import Method
    from sekd_cli.evaluation.tables import Table

EXISTING = click.Path(exists=True, path_type=Path)
FORMATS = ("table", "json", "csv", "markdown")


@click.group()
def evaluate() -> None:
    """Measure features: homographies, relative pose, structure from motion, speed.

    Several methods, weights or feature files in one call give one table.
    """


def method_options(max_keypoints: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that say which features are evaluated and how the figures are printed."""
    options = (
        click.option(
            "--method", "-m", "methods", multiple=True, type=click.Choice(("sekd", "sift", "rootsift", "orb"))
        ),
        click.option("--weights", "-w", multiple=True, type=EXISTING, help="Weights for sekd; a row for each file."),
        click.option("--features", "-f", multiple=True, type=EXISTING, help="Feature file; a row for each."),
        click.option("--max-keypoints", default=max_keypoints, show_default=True, help="Best by score; 0 for all."),
        click.option("--threshold", type=float, help="sekd's keypoint probability; default: the network's own."),
        click.option("--device", default="cpu", show_default=True, help="For sekd: cpu, cuda, cuda:1, mps."),
        click.option("--json", "output", flag_value="json", help="Every figure, as JSON."),
        click.option("--csv", "output", flag_value="csv", help="Every figure, as CSV."),
        click.option("--markdown", "output", flag_value="markdown", help="The table, as Markdown."),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@evaluate.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@method_options(max_keypoints=500)
@click.option("--max-size", default=640, show_default=True, help="Longer edge in pixels; 0 for none.")
@click.option("--seeds", default=5, show_default=True, help="Runs of each robust estimator; the median counts.")
@click.option("--per-pair", is_flag=True, help="List every pair, those that failed marked.")
def homography(root: Path, max_size: int, seeds: int, per_pair: bool, output: str | None, **which: Any) -> None:
    """Homography accuracy on folders in HPatches form (images 1 to 6, H_1_2 to H_1_6).

    \b
    Example: sekd evaluate homography hpatches --method sekd --method sift
    """
    from sekd_cli.evaluation import homography_benchmark as benchmark
    from sekd_cli.evaluation.homography_tables import pair_table, summary_table

    sequences = benchmark.read_sequences(root)
    methods = _methods(**which)
    protocol = benchmark.HomographyProtocol(max_size=max_size, seeds=seeds)
    results = benchmark.evaluate_sequences(sequences, methods, protocol, lambda _: None)
    _report([summary_table(results)] + [pair_table(results)] * per_pair, output or "table")


def _methods(
    methods: tuple[str, ...],
    weights: tuple[Path, ...],
    features: tuple[Path, ...],
    max_keypoints: int,
    threshold: float | None,
    device: str,
) -> "list[Method]":
    from sekd_cli.config import DetectionSettings
    from sekd_cli.evaluation.baselines import Orb, Sift
    from sekd_cli.evaluation.own import Sekd
    from sekd_cli.networks.weights_file import load_network, packaged_weights

    settings = DetectionSettings(max_keypoints=max_keypoints, threshold=threshold)
    chosen: list[Method] = []
    if "sekd" in methods or weights or not (methods or features):
        for path in weights or (packaged_weights(),):
            chosen.append(Sekd(load_network(path), path.stem, settings, device))
    for name in methods:
        if name == "orb":
            chosen.append(Orb(max_keypoints))
        elif name != "sekd":
            chosen.append(Sift(max_keypoints, root=name == "rootsift"))
    return chosen


def _report(tables: "list[Table]", output: str) -> None:
    """Print the tables on stdout, in one of FORMATS."""
    from sekd_cli.evaluation.tables import plain

    if output == "json":
        click.echo(json.dumps(plain({table.title.lower(): table.rows for table in tables}), indent=1))
    elif output == "csv":
        click.echo(tables[-1].csv(), nl=False)
    elif output == "markdown":
        click.echo("\n".join(table.markdown() for table in tables), nl=False)
    else:
        _draw(tables)


def _draw(tables: "list[Table]") -> None:
    import rich.box
    import rich.console
    import rich.table

    console = rich.console.Console(file=sys.stdout)
    for table in tables:
        drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        for index, column in enumerate(table.columns):
            drawn.add_column(column.header, justify="right" if index else "left")
        for cells in table.cells():
            drawn.add_row(*cells)
        console.print(drawn)


if __name__ == "__main__":
    evaluate()
