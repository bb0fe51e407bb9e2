"""Matching beside the bare matrix product, and its memory.

    python benchmarks/matching.py [--threads 1] [--json]

Times are medians over rounds in which all methods take turns; the ratio is the median of the rounds' ratios. Memory is
what the process needs at its peak beyond the descriptors.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from measuring import CACHE_BYTES, WIDTH, cost, write_features
from torch import Tensor

from sekd_cli.config import MatchingSettings
from sekd_cli.feature_cache import plan
from sekd_cli.feature_file import FeatureReader
from sekd_cli.match_file import MatchWriter, match_attributes
from sekd_cli.match_pipeline import PairMatcher, PipelineSettings, match_all
from sekd_cli.matching import match_descriptors
from sekd_cli.pairs import exhaustive
from sekd_cli.workers import workers

KEYPOINTS, LARGE = 2048, 20_000
ROUNDS = 30
METHODS = {
    "sekd": MatchingSettings(),
    "sekd, ratio 0.9": MatchingSettings(ratio=0.9),
    "sekd, dual softmax": MatchingSettings(temperature=0.1),
}


def descriptors(count: int, seed: int) -> Tensor:
    """Random unit vectors (count, WIDTH)."""
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def plain(one: Tensor, other: Tensor) -> Tensor:
    """Mutual nearest neighbours the plain way: a maximum along each axis of the whole similarity matrix."""
    similarity = one @ other.T
    column, row = similarity.max(dim=1).indices, similarity.max(dim=0).indices
    return torch.where(row[column] == torch.arange(len(one)), column, -1)


def measure_speed(count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and ratio to the bare product, by method."""
    one, other = descriptors(count, 0), descriptors(count, 1)
    product = torch.empty(count, count)
    methods: dict[str, Callable[[], object]] = {
        "bare product": lambda: torch.mm(one, other.T, out=product),
        **{name: lambda chosen=chosen: match_descriptors(one, other, chosen) for name, chosen in METHODS.items()},
        "plain maxima": lambda: plain(one, other),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in range(rounds + 1):
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    bare = seconds["bare product"]
    return {
        name: {
            "milliseconds": 1e3 * median(taken),
            "ratio": median(one / other for one, other in zip(taken, bare, strict=True)),
        }
        for name, taken in seconds.items()
    }


def measure_memory() -> float:
    """Peak of LARGE x LARGE beyond the descriptors, MB."""
    one, other = descriptors(LARGE, 0), descriptors(LARGE, 1)
    settings = MatchingSettings(ratio=0.9)
    small = (one[:100], other[:100], settings)
    return cost(lambda: match_descriptors(one, other, settings), warm_up=lambda: match_descriptors(*small)).megabytes


def measure_pipeline(images: int, threads: int) -> dict[str, float]:
    """All pairs of a feature file to a match file, by as many processes, and once more, when all are there."""
    with tempfile.TemporaryDirectory() as folder:
        path, names = Path(folder) / "feats.h5", [f"{index:05}.jpg" for index in range(images)]
        write_features(path, names, KEYPOINTS)
        settings = PipelineSettings(device=torch.device("cpu"), threads=threads)
        matcher = PairMatcher(path, CACHE_BYTES // threads, MatchingSettings())
        rates = []
        for _ in range(2):
            start = time.perf_counter()
            with (
                FeatureReader(path) as reader,
                workers(threads, matcher) as others,
                MatchWriter(Path(folder) / "matches.h5", match_attributes(reader, {})) as matches,
            ):
                work = plan(exhaustive(names))
                outcomes = match_all(work, reader, matches, settings, matcher=matcher, workers=others)
                count = sum(1 for _ in outcomes)
            rates.append(count / (time.perf_counter() - start))
    return {"pairs": count, "pairs_per_second": rates[0], "pairs_per_second_again": rates[1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=142, help="of which all pairs are matched; 142 make 10,011")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = measure_pipeline(options.images, options.threads)  # these first: processes are forked before threads
    megabytes = measure_memory()  # compute
    torch.set_num_threads(options.threads)
    found = {
        "speed": measure_speed(KEYPOINTS, ROUNDS),
        "speed_large": measure_speed(LARGE, 3),
        "memory_large_megabytes": megabytes,
        "pipeline": pipeline,
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for title, key, count in (("", "speed", KEYPOINTS), ("\n", "speed_large", LARGE)):
        print(f"{title}{count} x {count} x {WIDTH}, {options.threads} threads")
        for name, values in found[key].items():
            print(f"  {name:20} {values['milliseconds']:9.2f} ms   {values['ratio']:5.2f} of the bare product")
    print(f"\nmemory of {LARGE} x {LARGE}: {found['memory_large_megabytes']:.0f} MB beyond the descriptors")
    alone = 1e3 / found["speed"]["sekd"]["milliseconds"]
    share = pipeline["pairs_per_second"] / alone
    print(
        f"{pipeline['pairs']} pairs from a feature file: {pipeline['pairs_per_second']:.1f} a second, "
        f"{share:.0%} of matching alone; of those that are there already {pipeline['pairs_per_second_again']:.0f}"
    )


if __name__ == "__main__":
    main()
