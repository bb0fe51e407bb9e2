"""Which methods `sekd evaluate` measures: the options that choose them, and what these make."""

# ruff: noqa: PLC0415 - what is heavy is imported by the command that runs, so that --help is quick

from collections.abc import Callable, Sequence
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sekd_cli.commands.options import COUNT, FILE, Command, together
from sekd_cli.errors import UsageError

if TYPE_CHECKING:
    from sekd_cli.evaluation.methods import ComputedMethod, Method


def method_options(max_keypoints: int) -> Callable[[Command], Command]:
    """What is computed here, with so many keypoints an image by default."""
    names = click.Choice(("sekd", "sift", "rootsift", "orb"))
    return together(
        click.option(
            "-m",
            "--method",
            "methods",
            multiple=True,
            type=names,
            help="Features to compute here; repeat.  [default: sekd, unless features are given]",
        ),
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


features_option = click.option(
    "-f", "--features", multiple=True, type=FILE, help="Feature file of any tool, hloc's layout; a row for each."
)


def chosen_methods(
    images: Sequence[Path], features: tuple[Path, ...], max_keypoints: int, **which: Any
) -> "list[Method]":
    """All methods, those that are files checked to have these images."""
    from sekd_cli.evaluation.stored import Stored

    chosen: list[Method] = list(computed_methods(max_keypoints=max_keypoints, alone=not features, **which))
    chosen += [Stored(path, max_keypoints) for path in features]
    tell_apart(chosen)
    for method in chosen:
        method.check(images)
    return chosen


def computed_methods(
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


def tell_apart(methods: "Sequence[Method]") -> None:
    """Number labels that occur more than once, in the order of the command line: model, model-2."""
    taken, seen = {method.label for method in methods}, set[str]()
    for method in methods:
        numbered = (f"{method.label}-{number}" for number in count(2))
        if method.label in seen:
            method.label = next(label for label in numbered if label not in taken)
            taken.add(method.label)
        seen.add(method.label)
