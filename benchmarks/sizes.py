"""What more and finer sizes give for their time: `sekd extract --scales`.

    python benchmarks/sizes.py RUN [--scales 1 --scales 1,0.5 ...] [--keypoints 1000 ...] [--views mild,...] [--pairs 2]
        [--closeness 0.6,1.1]

RUN is a folder of `sekd train`. The shipped weights find keypoints in pairs of random views of 512x384 of each held-out
photograph. For each kind of views, each number of keypoints and each set of sizes: repeatability and localisation error
in pixels, matches a pair, what percentage of them is right to 1, 3 and 5 pixels, homography accuracy of all matches
(RANSAC), of `sekd match --verify homography` and of `--refine` with it, and how many times the processor time of the
first set extraction takes. `--closeness`: photograph pixels a pixel of a view; from 1 on views are as sharp as what
cameras give.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from guided import HEIGHT, WIDTH

from sekd_cli import Sekd
from sekd_cli.training import validation
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.run_folder import RunFolder
from sekd_cli.training.self_evolution import held_out_photographs
from sekd_cli.training.settings import TrainingSettings

SETS = ("1,0.5", "1", "1,0.71,0.5", "1.41,0.71", "1.41,1,0.71,0.5", "2,1,0.5")


class Pair(NamedTuple):
    """Two views, uint8 (H, W), where they show the photograph, bool (H, W), and the homography between them."""

    images: tuple[np.ndarray, np.ndarray]
    seen: tuple[np.ndarray, np.ndarray]
    second_from_first: torch.Tensor


def pairs_of(run: RunFolder, views: TrainingSettings) -> Iterator[Pair]:
    """Of every held-out photograph."""
    photographs = Photographs(Path(run.data()["cache"]))
    drawn = validation.HeldOutPairs(photographs, held_out_photographs(photographs, run.settings()), views)
    for row in range(len(drawn.chosen)):
        batch = drawn[row]
        images = (batch.images[:, 0] * 255).round().byte().numpy()
        seen = batch.seen.reshape(images.shape).numpy()
        for pair, there in enumerate(batch.correspondence.second_from_first):
            first, second = pair, views.batch_size + pair
            yield Pair((images[first], images[second]), (seen[first], seen[second]), there)


def figures(sekd: Sekd, pair: Pair) -> tuple[float, ...]:
    """`validation.FIGURES`, homography accuracy verified and refined, and milliseconds of processor time a view."""
    began = time.thread_time()
    first, second = (sekd.extract(image, mask=seen) for image, seen in zip(pair.images, pair.seen, strict=True))
    taken = time.thread_time() - began
    truth = pair.second_from_first.double().numpy()

    def accuracy(refine: tuple[np.ndarray, np.ndarray] | None = None) -> float:
        model = sekd.match(first, second, verify="homography", refine=refine).model
        return validation.corner_accuracy(None if model is None else model.numpy(), truth, (WIDTH, HEIGHT))

    return (
        *validation.pair_figures(first, second, pair.second_from_first),
        accuracy(),
        accuracy(pair.images),
        1e3 * taken / 2,
    )


def main() -> None:
    """Print a line a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scales", action="append", help=f"by default each of {' '.join(SETS)}")
    parser.add_argument("--keypoints", type=int, nargs="+", default=[1000])
    parser.add_argument("--views", default=",".join(validation.ALL_VIEWS))
    parser.add_argument("--pairs", type=int, default=2, help="of a photograph")
    usual_closeness = f"{validation.VALIDATION_VIEWS.closest},{validation.VALIDATION_VIEWS.farthest}"
    parser.add_argument("--closeness", default=usual_closeness)
    options = parser.parse_args()
    closest, farthest = map(float, options.closeness.split(","))
    torch.set_num_threads(1)
    ways = list(product(options.keypoints, options.scales or SETS))
    each = [
        Sekd.from_pretrained(
            max_keypoints=keypoints, threshold=0, max_size=0, scales=tuple(map(float, scales.split(",")))
        )
        for keypoints, scales in ways
    ]
    print("views, keypoints, sizes: repeatability, localisation   matches, right to 1 / 3 / 5 px   ", end="")
    print("homography accuracy, verified, refined   time")
    for kind in options.views.split(","):
        views = replace(validation.ALL_VIEWS[kind], batch_size=options.pairs, width=WIDTH, height=HEIGHT)
        views = replace(views, closest=closest, farthest=farthest)
        found = np.array([[figures(sekd, pair) for sekd in each] for pair in pairs_of(RunFolder(options.run), views)])
        means = np.nanmean(found, axis=0)
        for (keypoints, scales), row in zip(ways, means, strict=True):
            repeatable, localisation, *right, accurate, matches, verified, refined, taken = row
            shares = " / ".join(f"{100 * one:4.1f}" for one in right)
            accuracies = ", ".join(f"{100 * one:4.1f}" for one in (accurate, verified, refined))
            print(f"{kind:8} {keypoints:5} {scales:15} {100 * repeatable:4.1f} {localisation:5.2f}   ", end="")
            print(f"{matches:5.0f}  {shares}   {accuracies}   {taken / means[0, -1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
