"""`sekd extract` end to end, beside extraction and the network alone, and where the rest goes.

    python benchmarks/extract.py [PHOTOGRAPHS] [--edge 1600] [--images 60] [--threads 1 2] [--rounds 5] [--json]

PHOTOGRAPHS is a folder; without it the example photographs are taken, again and again, as JPEGs that are enlarged to
the longer edge given. In each round the pipeline goes from files to a feature file, and then extraction alone (network
and post-processing), and the network alone, run on the same images one by one, decoded and shrunk, in as many
processes; beside it the pipeline with threads instead of processes. What is told is the median of the rounds and of
their ratios. Shares are of the processor time of the pipeline without processes of its own.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import cv2
import torch

from sekd_cli.batch_extraction import BatchExtractor, Job
from sekd_cli.commands.extract_run import CPU_BATCH, CPU_BATCH_PIXELS
from sekd_cli.config import DetectionSettings
from sekd_cli.cores import available_cores
from sekd_cli.device import keep_freed_memory, set_threads
from sekd_cli.extraction import Extractor, PreparedImage
from sekd_cli.extraction_pipeline import PipelineSettings, extract_all
from sekd_cli.feature_file import FeatureWriter, file_attributes
from sekd_cli.image_search import ImageEntry, find_images
from sekd_cli.images import read_image
from sekd_cli.networks.weights_file import load_network, packaged_weights
from sekd_cli.workers import workers

EXAMPLES = Path(__file__).parents[1] / "examples"


class Clock:
    """Processor time by step, summed over threads; steps within steps count once."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def timed(self, step: str, function: Callable[..., Any], within: str | None = None) -> Callable[..., Any]:
        """The function, its time added to `step` and taken off the step `within` which it is called."""

        def run(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                taken = time.thread_time() - start
                self.seconds[step] += taken
                if within is not None:
                    self.seconds[within] -= taken

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what the pipeline does in the block."""
        run = self.timed("network", Extractor._run, within="post-processing")
        extract = self.timed("post-processing", Extractor.extract)
        with (
            mock.patch.object(BatchExtractor, "load", self.timed("decoding", BatchExtractor.load)),
            mock.patch.object(Extractor, "_run", run),
            mock.patch.object(Extractor, "extract", extract),
            mock.patch.object(FeatureWriter, "write", self.timed("writing", FeatureWriter.write)),
        ):
            yield


def enlarged(folder: Path, edge: int) -> Path:
    """The example photographs as JPEGs whose longer edge is so long."""
    for one in find_images([EXAMPLES]):
        pixels = cv2.imread(str(one.path))
        factor = edge / max(pixels.shape)
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{one.path.stem}.jpg"), pixels)
    return folder


def pipeline(jobs: list[Job], extractor: Extractor, threads: int, *, processes: bool = True) -> float:
    """Seconds from files to a feature file."""
    settings = PipelineSettings(
        batch_size=CPU_BATCH, batch_pixels=CPU_BATCH_PIXELS, readers=max(2, threads), threads=threads
    )
    attributes = file_attributes(network="any", weights_sha256="any", settings={})
    batch_extractor = BatchExtractor(extractor)
    with (
        workers(threads if processes and threads > 1 else 0, batch_extractor) as others,
        tempfile.TemporaryDirectory() as folder,
        FeatureWriter(Path(folder) / "feats.h5", attributes) as writer,
    ):
        start = time.perf_counter()
        failed = [one for one in extract_all(jobs, batch_extractor, writer, settings, others) if one.failure]
        taken = time.perf_counter() - start
    if failed:
        raise SystemExit(f"{failed[0].failure}")
    return taken


def alone(work: Callable[[PreparedImage], None], images: list[PreparedImage], threads: int) -> float:
    """Seconds that a part of the pipeline takes for images that are in memory."""

    def share(number: int) -> None:
        for image in images[number::threads]:
            work(image)

    with workers(threads, share) as running, ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda number: running[number](number), range(threads)))
        return time.perf_counter() - start


def measure(jobs: list[Job], extractor: Extractor, threads: int, rounds: int) -> dict[str, Any]:
    """Pipeline, extraction and network in turns."""
    images = [extractor.prepare(read_image(job.entry.path)) for job in jobs]

    @torch.inference_mode()
    def network(image: PreparedImage) -> None:
        for level in image.levels:
            extractor._run([level.grey], [level.statistics])

    def extraction(image: PreparedImage) -> None:
        extractor.extract([image])

    seconds: dict[str, list[float]] = {"pipeline": [], "threads": [], "extraction": [], "network": []}
    for round_number in range(rounds + 1):
        if round_number == 1:  # the first warms up
            seconds = {name: [] for name in seconds}
        seconds["pipeline"].append(pipeline(jobs, extractor, threads))
        seconds["threads"].append(pipeline(jobs, extractor, threads, processes=False))
        seconds["extraction"].append(alone(extraction, images, threads))
        seconds["network"].append(alone(network, images, threads))
    return {
        "photographs": len(jobs),
        "threads": threads,
        "precision": extractor.precision,
        "images_per_second": {name: len(jobs) / median(taken) for name, taken in seconds.items()},
        "pipeline_of": {
            name: median(one / whole for one, whole in zip(seconds[name], seconds["pipeline"], strict=True))
            for name in ("threads", "extraction", "network")
        },
    }


def shares(jobs: list[Job], extractor: Extractor) -> dict[str, float]:
    """Where the pipeline's processor time goes."""
    clock = Clock()
    with clock.watching():
        pipeline(jobs, extractor, 1)
    total = sum(clock.seconds.values())
    return {step: taken / total for step, taken in clock.seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", type=Path)
    parser.add_argument("--edge", type=int, default=1600, help="of the example photographs")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, available_cores()}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    set_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photographs = options.photographs or enlarged(Path(folder), options.edge)
        found = islice(cycle(find_images([photographs])), options.images)
        jobs = [Job(ImageEntry(one.path, f"{number}/{one.name}")) for number, one in enumerate(found)]
        network = load_network(packaged_weights())
        device = torch.device("cpu")
        extractor = Extractor(network, DetectionSettings(), device=device, precision=options.precision)
        results = [measure(jobs, extractor, threads, options.rounds) for threads in options.threads]
        of_time = shares(jobs, extractor)
    if options.json:
        print(json.dumps({"threads": results, "shares_of_processor_time": of_time}, indent=2))
        return
    size = f"in {options.photographs}" if options.photographs else f"of {options.edge} pixels"
    print(f"{len(jobs)} photographs {size}, {extractor.precision}")
    for result in results:
        print(f"{result['threads']} threads")
        for name, speed in result["images_per_second"].items():
            share = result["pipeline_of"].get(name)
            told = "" if share is None else f"; the pipeline has {share:.0%} of it"
            print(f"  {name:10} {speed:6.1f} images/s{told}")
    print(f"processor time: {', '.join(f'{step} {share:.0%}' for step, share in of_time.items())}")


if __name__ == "__main__":
    main()
