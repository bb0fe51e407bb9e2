"""`sekd evaluate speed`: milliseconds for each step, methods interleaved, so that a busy spell touches all."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import torch

from sekd_cli.device import set_threads
from sekd_cli.evaluation.images import read_evaluation_image
from sekd_cli.evaluation.methods import ComputedMethod, LocalFeatures
from sekd_cli.evaluation.plots import Panel
from sekd_cli.evaluation.tables import Row, Table, number, text

READ, NETWORK, POST, EXTRACT, MATCH = STEPS = ("read", "network", "post-processing", "extract", "match")
"""What is timed; extract is network and post-processing together."""
DRAWN_SIZE = (640, 480)  # width, height of the image that is drawn where none is given


@dataclass(frozen=True, kw_only=True)
class SpeedProtocol:
    """How time is taken."""

    max_size: int = 0  # pixels, longer edge; 0 for none
    rounds: int = 20  # after one that isn't counted
    threads: int = 1


def draw_image(folder: Path) -> Path:
    """A PNG of DRAWN_SIZE with texture at all scales, always the same: what is timed where no photograph is given."""
    width, height = DRAWN_SIZE
    generator = np.random.default_rng(0)
    layers = [
        cv2.resize(generator.normal(size=(height // cell, width // cell)).astype(np.float32), DRAWN_SIZE) * cell**0.5
        for cell in (4, 8, 16, 32, 80)
    ]
    texture = np.sum(layers, axis=0)
    pixels = np.rint((texture - texture.min()) / np.ptp(texture) * 255).astype(np.uint8)
    path = folder / "drawn.png"
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def measure(
    paths: list[Path], methods: list[ComputedMethod], protocol: SpeedProtocol, advance: Callable[[str], None]
) -> list[Row]:
    """One row a method: medians over rounds and images. `advance(text)` is called after each method's round.

    In each round every method takes every image, and its matches with the next image; the method that begins changes
    from round to round.
    """
    times: dict[str, dict[str, list[float]]] = {method.label: defaultdict(list) for method in methods}
    counts: dict[str, list[int]] = defaultdict(list)
    with _threads(protocol.threads):
        for turn in range(protocol.rounds + 1):
            first = turn % len(methods)
            for method in methods[first:] + methods[:first]:
                found = _round(paths, method, protocol.max_size)
                if turn:  # the first round warms caches up
                    for step, values in found.items():
                        times[method.label][step].extend(values)
                    counts[method.label].extend(int(value) for value in found["keypoints"])
                advance(method.label)
    return [_row(method.label, times[method.label], counts[method.label], protocol) for method in methods]


def _round(paths: list[Path], method: ComputedMethod, max_size: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in (*STEPS, "keypoints")}
    features: list[LocalFeatures] = []
    for path in paths:
        start = perf_counter()
        image = read_evaluation_image(path, max_size)
        found[READ].append(perf_counter() - start)
        start = perf_counter()
        features.append(method.compute(image.grey))
        found[EXTRACT].append(perf_counter() - start - method.discarded_seconds)
        found[NETWORK].append(method.network_seconds)
        found[POST].append(found[EXTRACT][-1] - method.network_seconds)
        found["keypoints"].append(len(features[-1]))
    for index, one in enumerate(features):
        start = perf_counter()
        method.match(one, features[(index + 1) % len(features)])
        found[MATCH].append(perf_counter() - start)
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """OpenCV and torch on so many threads, as before afterwards."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _row(label: str, times: dict[str, list[float]], keypoints: list[int], protocol: SpeedProtocol) -> Row:
    medians = {f"{step}_ms": float(np.median(times[step])) * 1000 for step in STEPS}
    count = float(np.mean(keypoints))
    return {
        "method": label,
        **medians,
        "keypoints": count,
        "keypoints_per_second": count / (medians[f"{EXTRACT}_ms"] / 1000),
        "threads": protocol.threads,
        "rounds": protocol.rounds,
    }


def summary_table(rows: list[Row]) -> Table:
    """The rows of `measure`, with the ratio of the time for extraction to the first method's."""
    rows = [{**row, "ratio": row["extract_ms"] / rows[0]["extract_ms"]} for row in rows]
    columns = (
        text("method", "method"),
        *(number(f"{step}_ms", f"{step} ms", 1) for step in STEPS),
        number("ratio", "ratio", 2),
        number("keypoints", "keypoints"),
        number("keypoints_per_second", "keypoints / s"),
        number("threads", "threads"),
    )
    return Table(title="Speed", columns=columns, rows=rows)


def panels(rows: list[Row]) -> list[Panel]:
    """Bars of the time for extraction and for matching."""
    return [
        Panel(title=f"{name}, ms", bars={row["method"]: row[key] for row in rows})
        for name, key in (("Extraction", "extract_ms"), ("Matching", f"{MATCH}_ms"))
    ]
