"""How many matches of real photographs agree on one geometry: what can be told of weights where no truth is known.

    python benchmarks/agreement.py PHOTOGRAPHS WEIGHTS... [--precision auto ...] [--reach 5] [--keypoints 300]

PHOTOGRAPHS is a folder, or a pattern, in which those of one scene follow each other by name, or several, by commas. A
pair is any two of one up to `--reach` names apart and named alike but for the number; those count on which, with any of
the weights, in any precision, at least 22 matches, and three in ten, agree with one fundamental matrix to a pixel.
Prints, for each of them, the share of matches that agree and their number, mean over pairs. A wrong match agrees by
chance if it lies on its epipolar line, so shares compare, but are no accuracies.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from sekd_cli import Features, Sekd
from sekd_cli.config import VerificationSettings
from sekd_cli.image_search import find_images
from sekd_cli.networks.precision import PRECISIONS
from sekd_cli.verification import verify

FEWEST, LEAST = 22, 0.3  # matches of a pair that must agree, and their share
GEOMETRY = VerificationSettings(model="fundamental", threshold=1.0, min_inliers=8)


def agreement(sekd: Sekd, first: Features, second: Features) -> tuple[int, int]:
    """How many matches agree, and how many there are."""
    matches = sekd.match(first, second)
    agreeing, _ = verify(
        matches.keypoints0.numpy(), matches.keypoints1.numpy(), GEOMETRY, scores=matches.scores.numpy()
    )
    return int(agreeing.sum()), len(agreeing)


def pairs_of(folders: list[Path], reach: int) -> list[tuple[Path, Path]]:
    """Photographs of a folder that follow each other and have the same name but for its number."""
    pairs = []
    for folder in folders:
        paths = sorted(entry.path for entry in find_images([folder]))
        for place, first in enumerate(paths):
            for second in paths[place + 1 : place + 1 + reach]:
                if first.stem.rstrip("0123456789") == second.stem.rstrip("0123456789"):
                    pairs.append((first, second))
    return pairs


def main() -> None:
    """Print a line for each of the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="folder or pattern, or several, by commas")
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["auto"])
    parser.add_argument("--reach", type=int, default=5)
    parser.add_argument("--keypoints", type=int, default=300)
    options = parser.parse_args()
    pairs = pairs_of([Path(folder) for folder in options.photographs.split(",")], options.reach)
    ways = list(product(options.weights, options.precision))
    counts = np.zeros((len(ways), len(pairs), 2))
    for row, (weights, precision) in enumerate(ways):
        sekd = Sekd.from_pretrained(weights, max_keypoints=options.keypoints, threshold=0.0, precision=precision)
        features = {path: sekd.extract(path) for path in sorted({path for pair in pairs for path in pair})}
        counts[row] = [agreement(sekd, features[first], features[second]) for first, second in pairs]
    agree, matched = counts[..., 0], counts[..., 1].clip(1)
    counted = ((agree >= FEWEST) & (agree >= LEAST * matched)).any(axis=0)
    print(f"{counted.sum()} of {len(pairs)} pairs of one scene")
    for way, number, share in zip(ways, agree[:, counted], (agree / matched)[:, counted], strict=True):
        print(f"{way[0].stem + ', ' + way[1]:32} {100 * share.mean():5.1f} %   {number.mean():6.1f} agree")


if __name__ == "__main__":
    main()
