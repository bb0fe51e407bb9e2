"""What the benchmarks share: photographs, random features, time, peak memory and growth."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sekd_cli.device import give_back_memory
from sekd_cli.feature_file import FeatureWriter, file_attributes
from sekd_cli.stored_features import StoredFeatures

EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH = 64  # values of a random descriptor
CACHE_BYTES = 1 << 30  # of features in memory


def write_features(path: Path, names: Sequence[str], keypoints: int) -> None:
    """A feature file of random unit vectors at random places."""
    with FeatureWriter(path, file_attributes(network="none", weights_sha256="", settings={})) as writer:
        for seed, name in enumerate(names):
            random = np.random.default_rng(seed)
            rows = random.normal(size=(keypoints, WIDTH)).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            xy, scores = random.random((keypoints, 2), dtype=np.float32) * 1000, np.ones(keypoints, dtype=np.float32)
            features = StoredFeatures(keypoints=xy, scores=scores, descriptors=rows, image_size=(1000, 1000))
            writer.write(name, features)


class Cost(NamedTuple):
    """What something took."""

    seconds: float  # of CPU time, all threads together: what other processes do doesn't count
    megabytes: float  # most memory beyond that at its start


def memory(field: str) -> float:
    """VmRSS (memory now) or VmHWM (the most since the last reset) of this process, MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def cost(work: Callable[[], object], *, warm_up: Callable[[], object] = lambda: None, repeats: int = 1) -> Cost:
    """What `work` takes in a process forked off for it, after `warm_up`: least time, most memory of `repeats`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def measure() -> None:
        warm_up()
        give_back_memory()  # what was freed before doesn't serve now
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, seconds = memory("VmRSS"), []
        for _ in range(repeats):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        sender.send(Cost(min(seconds), memory("VmHWM") - before))

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    sender.close()
    found: Cost = receiver.recv()  # EOFError if the process failed, which has then told why
    process.join()
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power of `sizes` that `values` grow with, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def median_ms(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Median milliseconds of a call, after one that doesn't count: on a CPU of its processor time."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent = []
    for _ in range(times + 1):
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(clock() - start)
    return float(np.median(spent[1:]) * 1e3)
