"""How many of the pairs that show the same thing `sekd pairs --nearest` lists.

    python benchmarks/retrieval.py RUN [--photographs 300] [--others 800] [--nearest 1,5,20] [--json]
    python benchmarks/retrieval.py --features FEATS --together PREFIX... [--nearest 1,5,20] [--json]

RUN is a folder of `sekd train`. Of each kind of validation's views `--photographs` are seen in a pair of views of
384x320 pixels, other photographs for each kind, `--others` more in one, all in one feature file; a line a kind tells
what share of the pairs is listed for so many neighbours an image. With --features it is told of the images of a feature
file whose names begin with the same PREFIX, as those of a folder, the rest being there to be left out. Figures are in
percent; seconds are of the processor, of listing alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
from validation import CPU, AtPrecision

from sekd_cli.config import DetectionSettings
from sekd_cli.feature_file import FeatureReader, FeatureWriter, file_attributes
from sekd_cli.features import Features
from sekd_cli.networks.precision import resolve_precision
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.pairs import natural_order
from sekd_cli.retrieval import nearest
from sekd_cli.stored_features import StoredFeatures
from sekd_cli.training import validation
from sekd_cli.training.photographs import Photographs
from sekd_cli.training.run_folder import RunFolder

KINDS = ("mild", "usual", "wide", "zoomed", "steep")
WIDTH, HEIGHT, KEYPOINTS = 384, 320, 1000
DETECTION = DetectionSettings(max_keypoints=KEYPOINTS, threshold=0.05, nms_radius=2)


def views(run: Path, photographs: int, others: int) -> Iterator[tuple[str, Features]]:
    """Features of both views of every photograph, by names that begin with the kind, then those of the others."""
    cached = Photographs(Path(RunFolder(run).data()["cache"]))
    network = load_network(packaged_weights())
    ready = AtPrecision(network, resolve_precision("auto", CPU, quantisable=network.quantisable))
    rows = np.random.default_rng(0).permutation(len(cached))
    if len(rows) < len(KINDS) * photographs + others:
        raise SystemExit(f"{run}: has {len(rows)} photographs; give fewer --photographs or --others")
    for kind in (*KINDS, "others"):
        own, rows = np.split(rows, [others if kind == "others" else photographs])
        settings = replace(
            validation.ALL_VIEWS.get(kind, validation.MILD_VIEWS), width=WIDTH, height=HEIGHT, batch_size=2
        )
        pairs = validation.held_out_features(ready, cached, own, DETECTION, settings)
        for index, (first, second, _) in enumerate(islice(pairs, 0, None, settings.batch_size)):  # one pair of each
            yield f"{kind}/{index}/0", first
            if kind != "others":
                yield f"{kind}/{index}/1", second


def write(path: Path, found: Iterator[tuple[str, Features]]) -> None:
    """Put features into a file."""
    with FeatureWriter(path, file_attributes(network="compact", weights_sha256="", settings={})) as writer:
        for name, one in found:
            stored = StoredFeatures(
                keypoints=one.keypoints.numpy(),
                scores=one.scores.numpy(),
                descriptors=one.descriptors.numpy(),
                image_size=one.image_size,
            )
            writer.write(name, stored)


def pairs_together(names: Sequence[str], prefixes: Sequence[str]) -> dict[str, set[frozenset[str]]]:
    """By prefix the pairs of names that begin with it."""
    return {
        prefix: {frozenset(pair) for pair in combinations([name for name in names if name.startswith(prefix)], 2)}
        for prefix in prefixes
    }


def shares(path: Path, wanted: dict[str, set[frozenset[str]]], counts: Sequence[int]) -> list[dict[str, float | str]]:
    """A row a count of neighbours: the share of each set of pairs that is listed, of all sets, and how long it took."""
    rows: list[dict[str, float | str]] = []
    with FeatureReader(path) as reader:
        names = natural_order(reader.names())
        for count in counts:
            start = time.process_time()
            listed = {frozenset(pair) for pair in nearest(reader, names, count, {})}
            taken = time.process_time() - start
            found = {kind: 100 * len(pairs & listed) / len(pairs) for kind, pairs in wanted.items()}
            rows.append({"nearest": count, **found, "mean": float(np.mean(list(found.values()))), "seconds": taken})
    return rows


def main() -> None:
    """Print a table, or --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--photographs", type=int, default=300)
    parser.add_argument("--others", type=int, default=800)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--together", nargs="+", default=[])
    parser.add_argument("--nearest", default="1,5,20")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = [int(count) for count in options.nearest.split(",")]
    torch.set_num_threads(1)
    if options.features is not None:
        with FeatureReader(options.features) as reader:
            wanted = pairs_together(reader.names(), options.together)
        rows = shares(options.features, wanted, counts)
    elif options.run is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "feats.h5"
            write(path, views(options.run, options.photographs, options.others))
            wanted = {
                kind: {frozenset((f"{kind}/{index}/0", f"{kind}/{index}/1")) for index in range(options.photographs)}
                for kind in KINDS
            }
            rows = shares(path, wanted, counts)
    else:
        parser.error("give a RUN, or --features and --together")
    if options.json:
        print(json.dumps(rows))
        return
    print("".join(f"{key:>{max(9, len(key) + 1)}}" for key in rows[0]))
    for row in rows:
        print("".join(f"{value:>{max(9, len(key) + 1)}.{0 if key == 'nearest' else 1}f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
