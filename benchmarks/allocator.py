"""What it is worth how freed memory is kept (docs/EXPERIMENTS.md, 18, 80, 94 and 96), in processes by turns.

    python benchmarks/allocator.py [--rounds 3] [--images 120] [--threads 2] [--json]

Ways: as `sekd` tells glibc, and as glibc has it when nobody tells it anything. Of each: milliseconds of `Sekd.extract`
for an example photograph at 640x480 on one thread (processor time); and images a second of `sekd extract`'s pipeline,
of extraction and of the network alone on `--threads`, as in `benchmarks/extract.py --edge 640`. Medians over rounds,
and of the rounds' ratios to the first way.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import cv2
import torch
from extract import EXAMPLES, enlarged, measure
from measuring import median_ms

from sekd_cli import Sekd
from sekd_cli.batch_extraction import Job
from sekd_cli.config import DetectionSettings
from sekd_cli.device import keep_freed_memory
from sekd_cli.extraction import Extractor
from sekd_cli.image_search import ImageEntry, find_images
from sekd_cli.networks.weights_file import load_network, packaged_weights

WAYS = {  # variables of glibc's, any of which rules out what `sekd` would tell it
    "as sekd has it": {},
    "as glibc has it": {"MALLOC_ARENA_TEST": "8"},  # its default: tells it nothing
}
CPU = torch.device("cpu")


def from_python() -> dict[str, float]:
    """Milliseconds of `Sekd.extract`."""
    sekd = Sekd.from_pretrained(device="cpu")
    pixels = cv2.resize(cv2.imread(str(EXAMPLES / "china.jpg"), cv2.IMREAD_GRAYSCALE), (640, 480))
    return {"Sekd.extract, ms": median_ms(lambda: sekd.extract(pixels), 60, CPU)}


def from_shell(images: int, threads: int) -> dict[str, float]:
    """Images a second of the pipeline and of its parts."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        photographs = islice(cycle(find_images([enlarged(Path(folder), 640)])), images)
        jobs = [Job(ImageEntry(one.path, f"{number}/{one.name}")) for number, one in enumerate(photographs)]
        extractor = Extractor(load_network(packaged_weights()), DetectionSettings(), device=CPU, precision="auto")
        found = measure(jobs, extractor, threads, rounds=1)
    return {f"{name}, images/s": value for name, value in found["images_per_second"].items()}


def in_a_process(way: str, arguments: list[str]) -> dict[str, float]:
    """The figures of one way."""
    figures: dict[str, float] = {}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for part in ("python", "shell"):
        command = [sys.executable, __file__, "--part", part, *arguments]
        figures |= json.loads(subprocess.run(command, env=plain | WAYS[way], check=True, capture_output=True).stdout)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["python", "shell"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        torch.set_num_threads(1)
        print(json.dumps(from_python() if options.part == "python" else from_shell(options.images, options.threads)))
        return
    arguments = ["--images", str(options.images), "--threads", str(options.threads)]
    rounds = [{way: in_a_process(way, arguments) for way in WAYS} for _ in range(options.rounds)]
    first, *_ = WAYS
    rows = [
        {
            "way": way,
            "figure": figure,
            "value": median(one[way][figure] for one in rounds),
            "ratio": median(one[way][figure] / one[first][figure] for one in rounds),
        }
        for figure in rounds[0][first]
        for way in WAYS
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['figure']:22} {row['way']:16} {row['value']:7.1f}   {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
