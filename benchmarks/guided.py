"""What `sekd match --verify homography` gains by matching again where the homography leads.

    python benchmarks/guided.py RUN [WEIGHTS] [--keypoints 240] [--depth] [--views mild,usual,...]

RUN is a folder of `sekd train`; WEIGHTS are by default the shipped ones. Two pairs of random views of 512x384 of each
held-out photograph, at two sizes, in int8. For each kind of views: homography accuracy (corners within 1 to 10 pixels),
matches a pair, what percentage of these is right to 3 pixels, and milliseconds a pair beside matching by descriptors;
by verification alone, and guided. With --depth parts of the photograph move by their depth, up to an eighth of its
longer edge, so that no homography explains all and its accuracy has no meaning; then a match is right where the point
really went.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from validation import AtPrecision

from sekd_cli.config import DetectionSettings, MatchingSettings
from sekd_cli.features import Features
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.pair_matching import MatchableImage, match_images
from sekd_cli.training import validation
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.self_evolution import held_out_photographs
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.verification import verification_settings, verify

PAIRS, WIDTH, HEIGHT, OCTAVES = 2, 512, 384, 2
DEPTH = 0.12  # largest displacement, in longer edges
RIGHT = 3.0  # pixels
SETTINGS = verification_settings("homography")


class Pair(NamedTuple):
    """Two views, and where the first one's keypoints are in the second."""

    images: tuple[MatchableImage, MatchableImage]
    there: np.ndarray  # (N0, 2)
    second_from_first: np.ndarray  # (3, 3), but for what moves by its depth


class Figures(NamedTuple):
    """Of one pair."""

    accuracy: float
    matches: int
    right: int
    milliseconds: float


def matchable(features: Features) -> MatchableImage:
    """Features as `match_images` takes them."""
    return MatchableImage(
        name="", keypoints=features.keypoints.numpy(), descriptors=features.descriptors, fingerprint=0
    )


def pairs_of(run: RunFolder, weights: Path, detection: DetectionSettings, views: TrainingSettings) -> Iterator[Pair]:
    """Of every held-out photograph."""
    photographs = Photographs(Path(run.data()["cache"]))
    held_out = held_out_photographs(photographs, run.settings())
    network = AtPrecision(load_network(weights), "int8")
    for first, second, where in validation.held_out_correspondences(network, photographs, held_out, detection, views):
        there = where.in_second(first.keypoints[None])[0]
        truth = where.second_from_first[0].double().numpy()
        yield Pair((matchable(first), matchable(second)), there.numpy(), truth)


def figures(pair: Pair, indices: np.ndarray, model: np.ndarray | None, seconds: float) -> Figures:
    """Of matches (M, 2) and the homography that they were verified by."""
    apart = np.linalg.norm(pair.there[indices[:, 0]] - pair.images[1].keypoints[indices[:, 1]], axis=1)
    accuracy = validation.corner_accuracy(model, pair.second_from_first, (WIDTH, HEIGHT))
    return Figures(accuracy, len(indices), int((apart < RIGHT).sum()), 1e3 * seconds)


def both_ways(pair: Pair) -> tuple[Figures, Figures]:
    """By verification alone, and guided."""
    began = time.thread_time()
    tentative = match_images(*pair.images, MatchingSettings())
    matched = time.thread_time()
    indices = tentative.indices()
    xy0, xy1 = (image.keypoints[indices[:, side]] for side, image in enumerate(pair.images))
    inliers, model = verify(xy0, xy1, SETTINGS, scores=tentative.scores0[indices[:, 0]])
    alone = figures(pair, indices[inliers], model, time.thread_time() - matched)
    again = time.thread_time()
    guided = match_images(*pair.images, MatchingSettings(), SETTINGS)
    seconds = time.thread_time() - again - (matched - began)
    return alone, figures(pair, guided.indices(), guided.model, seconds)


def main() -> None:
    """Print a line a kind of views."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("weights", type=Path, nargs="?", default=packaged_weights())
    parser.add_argument("--keypoints", type=int, default=240)
    parser.add_argument("--depth", action="store_true")
    parser.add_argument("--views", default=",".join(validation.ALL_VIEWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    detection = DetectionSettings(max_keypoints=options.keypoints, threshold=0, nms_radius=2)
    print(f"{'views':9} verified alone: accuracy, matches, right, ms   guided")
    everything: list[np.ndarray] = []
    for kind in options.views.split(","):
        views = replace(validation.ALL_VIEWS[kind], batch_size=PAIRS, width=WIDTH, height=HEIGHT, octaves=OCTAVES)
        views = replace(views, shift=0.35, parallax_share=float(options.depth), parallax=DEPTH)
        found = np.array(
            [both_ways(pair) for pair in pairs_of(RunFolder(options.run), options.weights, detection, views)]
        )
        everything.append(found)
        show(kind, found, depth=options.depth)
    show("all", np.concatenate(everything), depth=options.depth)


def show(kind: str, found: np.ndarray, *, depth: bool) -> None:
    """One line, of (pairs, 2, 4)."""
    cells = []
    for accuracy, matches, right, milliseconds in found.mean(axis=0):
        told = "    -" if depth else f"{100 * accuracy:5.1f}"
        cells.append(f"{told} {matches:6.0f} {100 * right / max(matches, 1):5.1f} % {milliseconds:5.1f} ms")
    print(f"{kind:9} " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
