"""What `sekd match --verify --refine` gains by aligning matches by the pixels around them.

    python benchmarks/refining.py RUN [WEIGHTS] [--verify fundamental] [--keypoints 1000] [--depth] [--views mild,...]

RUN is a folder of `sekd train`; WEIGHTS are by default the shipped ones. Two pairs of random views of 512x384 of each
held-out photograph, at two sizes, in int8. For each kind of views, verified alone, and aligned too: matches a pair,
what percentage of them is right to 3, 1 and 0.25 pixels, the median error of those right to 3 pixels, the homography's
accuracy (corners within 1 to 10 pixels), and how many milliseconds more a pair takes. With --depth parts of the
photograph move by their depth, as in `guided.py`, and no homography explains all.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from guided import DEPTH, HEIGHT, OCTAVES, PAIRS, WIDTH
from validation import AtPrecision

from sekd_cli.config import DetectionSettings, MatchingSettings, VerificationSettings
from sekd_cli.features import Features
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.pair_matching import MatchableImage, match_images
from sekd_cli.seen_pixels import SeenPixels
from sekd_cli.training import validation
from sekd_cli.training.dataset import Correspondence
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.self_evolution import held_out_photographs
from sekd_cli.training.settings import TrainingSettings
from sekd_cli.verification import verification_settings

RIGHT = (3.0, 1.0, 0.25)  # pixels


class Pair(NamedTuple):
    """Two views, and where points of the first are in the second."""

    images: tuple[MatchableImage, MatchableImage]
    where: Correspondence


def matchable(features: Features, view: torch.Tensor) -> MatchableImage:
    """The features of a view (H, W) in [0, 1], with its pixels."""
    pixels = SeenPixels((view * 255).round().byte().numpy(), np.ones(2))
    return MatchableImage(
        name="",
        keypoints=features.keypoints.numpy(),
        descriptors=features.descriptors,
        fingerprint=0,
        pixels=lambda: pixels,
    )


def pairs_of(run: RunFolder, weights: Path, detection: DetectionSettings, views: TrainingSettings) -> Iterator[Pair]:
    """Of every held-out photograph."""
    photographs = Photographs(Path(run.data()["cache"]))
    held_out = held_out_photographs(photographs, run.settings())
    network = AtPrecision(load_network(weights), "int8")
    drawn = validation.HeldOutPairs(photographs, held_out, views)
    found = validation.held_out_correspondences(network, photographs, held_out, detection, views)
    for index, (first, second, where) in enumerate(found):
        row, pair = divmod(index, PAIRS)
        images = drawn[row].images[:, 0]
        yield Pair((matchable(first, images[pair]), matchable(second, images[PAIRS + pair])), where)


def both_ways(pair: Pair, verification: VerificationSettings) -> list[tuple[float, ...]]:
    """Matches, how many are right, their median error, milliseconds and accuracy: verified alone, and aligned."""
    without = replace(pair.images[0], pixels=None), replace(pair.images[1], pixels=None)
    began = time.thread_time()
    verified = match_images(*without, MatchingSettings(), verification)
    between = time.thread_time()
    aligned = match_images(*pair.images, MatchingSettings(), verification)
    milliseconds = 1e3 * (time.thread_time() - between - (between - began))
    truth = pair.where.second_from_first[0].double().numpy()
    rows = []
    for found in (verified, aligned):
        indices = found.indices()
        places = pair.images[1].keypoints[indices[:, 1]]
        if found.alignment is not None:
            places = places + found.alignment.offsets
        there = pair.where.in_second(torch.from_numpy(pair.images[0].keypoints[None, indices[:, 0]]))[0].numpy()
        apart = np.linalg.norm(there - places, axis=1)
        right = [float((apart < pixels).sum()) for pixels in RIGHT]
        median = float(np.median(apart[apart < RIGHT[0]])) if right[0] else np.nan
        accuracy = validation.corner_accuracy(found.model, truth, (WIDTH, HEIGHT))
        rows.append((len(indices), *right, median, milliseconds if found is aligned else 0.0, accuracy))
    return rows


def main() -> None:
    """Print a line a kind of views."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("weights", type=Path, nargs="?", default=packaged_weights())
    parser.add_argument("--verify", default="fundamental", choices=("homography", "fundamental"))
    parser.add_argument("--keypoints", type=int, default=1000)
    parser.add_argument("--depth", action="store_true")
    parser.add_argument("--views", default=",".join(validation.ALL_VIEWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    detection = DetectionSettings(max_keypoints=options.keypoints, threshold=0, nms_radius=2)
    verification = verification_settings(options.verify)
    print(
        f"{'views':9} verified: matches, right to 3 / 1 / 0.25 px, median px, accuracy   aligned: the same, ms a pair"
    )
    for kind in options.views.split(","):
        views = replace(validation.ALL_VIEWS[kind], batch_size=PAIRS, width=WIDTH, height=HEIGHT, octaves=OCTAVES)
        views = replace(views, shift=0.35, parallax_share=float(options.depth), parallax=DEPTH)
        pairs = pairs_of(RunFolder(options.run), options.weights, detection, views)
        found = np.array([both_ways(pair, verification) for pair in pairs])
        show(kind, found, accurate=options.verify == "homography" and not options.depth)


def show(kind: str, found: np.ndarray, *, accurate: bool) -> None:
    """One line, of (pairs, 2, 7)."""
    cells = []
    for matches, *right, median, milliseconds, accuracy in np.nanmean(found, axis=0):
        shares = " / ".join(f"{100 * one / max(matches, 1):4.1f}" for one in right)
        told = f" {100 * accuracy:5.1f}" if accurate else ""
        cells.append(
            f"{matches:5.0f}  {shares} %  {median:.2f}{told}" + (f"  {milliseconds:4.1f} ms" if milliseconds else "")
        )
    print(f"{kind:9} " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
