"""What one photograph costs: our networks in every precision, SIFT and ORB, interleaved in one run.

    python benchmarks/speed.py [--image FILE] [--threads 1 2] [--networks compact published] [--rounds 20] [--json]
                               [--xfeat [WEIGHTS]]

Without an image one of 640x480 is drawn. Milliseconds are medians over rounds in which all methods take turns; `cpu`
counts CPU time, which other processes disturb least; ratios are medians of the rounds' ratios of CPU time to the first
method's, and between numbers of threads of wall time. Networks see the image at their own sizes, and at one; GFLOP are
of one pass over the whole. Memory is the peak beyond the loaded model, of a process of its own. The published network
has random weights here: they cost the same, but may find another number of keypoints.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from measuring import cost
from peers import XFeat
from torch.utils.flop_counter import FlopCounterMode

from sekd_cli.config import DetectionSettings
from sekd_cli.device import keep_freed_memory, set_threads
from sekd_cli.evaluation.baselines import Orb, Sift
from sekd_cli.evaluation.methods import ComputedMethod
from sekd_cli.evaluation.own import WHOLE, Sekd
from sekd_cli.evaluation.speed import draw_image
from sekd_cli.networks import NETWORKS, DenseNetwork
from sekd_cli.networks.precision import possible_precisions
from sekd_cli.networks.weights_file import load_network, packaged_weights

KEYPOINTS = 2048
CPU = torch.device("cpu")
COLUMNS = ("network_ms", "post_ms", "extract_ms", "cpu_ms", "ratio", "keypoints", "memory_mb", "parameters", "gflop")


def network_of(name: str) -> DenseNetwork:
    """A network by name, with the packaged weights if it is theirs."""
    packaged = load_network(packaged_weights())
    return packaged if packaged.name == name else NETWORKS[name]().eval()


def facts_of(network: torch.nn.Module, stride: int, grey: np.ndarray) -> dict[str, Any]:
    """Its parameters, and billions of multiplications and additions for an image (H, W)."""
    height, width = (-(-extent // stride) * stride for extent in grey.shape)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, height, width))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "gflop": counter.get_total_flops() / 1e9}


def methods_of(options: argparse.Namespace, grey: np.ndarray) -> dict[str, tuple[ComputedMethod, dict[str, Any]]]:
    """By label: a method and what is known of its network."""
    chosen: dict[str, tuple[ComputedMethod, dict[str, Any]]] = {}
    if options.xfeat is not None:
        xfeat = XFeat(KEYPOINTS, options.xfeat)
        chosen["xfeat"] = xfeat, facts_of(xfeat.whole.net, 32, grey)
    for name in options.networks:
        network = network_of(name)
        facts = facts_of(network, network.stride, grey)
        for precision in possible_precisions(CPU, quantisable=network.quantisable):
            settings = DetectionSettings(max_keypoints=KEYPOINTS)
            for label, views in (
                (f"{name} {precision}", WHOLE),
                (f"{name} {precision}, 1 size", replace(WHOLE, scales=(1.0,))),
            ):
                method = Sekd(network, label, settings, CPU, precision=precision, views=views)
                chosen[label] = method, facts
    return chosen | {"sift": (Sift(KEYPOINTS), {}), "orb": (Orb(KEYPOINTS), {})}


def one_round(method: ComputedMethod, grey: np.ndarray) -> dict[str, float]:
    """Milliseconds of one extraction; tries with other thresholds don't count."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = method.compute(grey)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    own = 1 - method.discarded_seconds / wall
    return {
        "network_ms": 1e3 * method.network_seconds,
        "post_ms": 1e3 * (wall - method.discarded_seconds - method.network_seconds),
        "extract_ms": 1e3 * wall * own,
        "cpu_ms": 1e3 * cpu * own,
        "keypoints": len(found),
    }


def measure(options: argparse.Namespace, grey: np.ndarray) -> list[dict[str, Any]]:
    """A row for each method and number of threads."""
    methods = methods_of(options, grey)
    peaks = {label: cost(lambda one=one: one.compute(grey), repeats=3).megabytes for label, (one, _) in methods.items()}
    taken: dict[tuple[str, int], list[dict[str, float]]] = {
        (label, threads): [] for threads in options.threads for label in methods
    }
    for turn in range(options.rounds + 1):
        for (label, threads), rounds in taken.items():
            set_threads(threads)
            found = one_round(methods[label][0], grey)
            if turn:  # the first warms up
                rounds.append(found)
    rows = []
    for (label, threads), rounds in taken.items():
        first = taken[next(iter(methods)), threads]
        alone = taken[label, options.threads[0]]
        rows.append(
            {
                "method": label,
                "threads": threads,
                **{key: median(one[key] for one in rounds) for key in rounds[0]},
                "ratio": median(one["cpu_ms"] / other["cpu_ms"] for one, other in zip(rounds, first, strict=True)),
                "gain": median(
                    one["extract_ms"] / other["extract_ms"] for one, other in zip(alone, rounds, strict=True)
                ),
                "memory_mb": peaks[label],
                **methods[label][1],
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    titles = [column.removesuffix("_ms").removesuffix("_mb") for column in COLUMNS]
    print(f"{'method':27} threads" + "".join(f"{title:>11}" for title in titles) + "  gain by threads")
    for row in rows:
        cells = (f"{row[column]:11,.{2 if column == 'ratio' else 0 if column in COLUMNS[5:8] else 1}f}"
                 if column in row else f"{'':11}" for column in COLUMNS)  # fmt: skip
        print(f"{row['method']:27} {row['threads']:7}" + "".join(cells) + f"{row['gain']:11.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["compact"])
    parser.add_argument("--xfeat", nargs="?", const="", metavar="WEIGHTS")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    set_threads(1)  # a process forked after several threads have computed would wait for them
    with tempfile.TemporaryDirectory() as folder:
        path = options.image or draw_image(Path(folder))
        grey = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    rows = measure(options, grey)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
