"""All pairs of many images: how often each image's features are read.

    python benchmarks/exhaustive.py [--images 1000] [--keypoints 32] [--cache 0.25] [--reads-only] [--json]

Writes a feature file of random features, matches all pairs of it to a match file as `sekd match` does by threads, and
counts the reads of each image. The memory for features is given as a share of all features, so few keypoints show what
thousands do. With --reads-only the features of all pairs are read in that order, but not matched.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from measuring import WIDTH, write_features

from sekd_cli.config import MatchingSettings
from sekd_cli.feature_cache import FeatureCache, Loader, plan
from sekd_cli.feature_file import FeatureReader
from sekd_cli.match_file import MatchWriter, match_attributes
from sekd_cli.match_pipeline import PairMatcher, PipelineSettings, match_all
from sekd_cli.pairs import exhaustive
from sekd_cli.stored_features import StoredFeatures


class CountingReader(FeatureReader):
    """A feature file that counts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: Counter[str] = Counter()

    def read(self, name: str, *, turned: bool = False) -> StoredFeatures:
        """See `FeatureReader.read`."""
        self.reads[name] += 1
        return super().read(name, turned=turned)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Match all pairs; what it took."""
    names = [f"{index:05}.jpg" for index in range(options.images)]
    write_features(folder / "feats.h5", names, options.keypoints)
    all_bytes = options.images * options.keypoints * (WIDTH + 2) * 4
    cache_bytes = int(options.cache * all_bytes)
    settings = PipelineSettings(device=torch.device("cpu"), threads=options.threads)
    work = plan(exhaustive(names))
    start = time.perf_counter()
    with CountingReader(folder / "feats.h5") as reader:
        if options.reads_only:
            done = sum(1 for _ in FeatureCache(Loader(reader, settings.device), cache_bytes).walk(work))
        else:
            with MatchWriter(folder / "matches.h5", match_attributes(reader, {})) as writer:
                matcher = PairMatcher(reader.path, cache_bytes, MatchingSettings())
                outcomes = match_all(work, reader, writer, settings, matcher=matcher)
                done = sum(outcome.failure is None for outcome in outcomes)
    return {
        "images": options.images,
        "pairs": done,
        "memory_share": options.cache,
        "reads_per_image": reader.reads.total() / options.images,
        "most_reads_of_an_image": max(reader.reads.values()),
        "pairs_per_second": done / (time.perf_counter() - start),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--keypoints", type=int, default=32)
    parser.add_argument("--cache", type=float, default=0.25, help="memory, as a share of all features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reads-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name.replace('_', ' '):24} {shown}")


if __name__ == "__main__":
    main()
