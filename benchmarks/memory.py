"""Peak memory of `sekd extract` and `sekd match`.

    python benchmarks/memory.py [--images 100 1000] [--skip-huge] [--json]

Each row is a process of its own, started as a user would, with those that it starts: the most that they had together
at one time, what they share counted once (Linux's proportional set size, looked at ten times a second). The photographs
are one, again and again under other names; so more of them may take more memory only where something is kept that
shouldn't be. The largest has 600 megapixels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "china.jpg"
HUGE = 30_000, 20_000  # width, height
PAIRS = 300, 3000
MATCHED_IMAGES = 80


class Row(NamedTuple):
    """One process."""

    what: str
    peak_megabytes: float
    seconds: float


def measure(what: str, arguments: Sequence[str | Path], stdin: str = "") -> Row:
    """Run `sekd` and see how much memory it had at its peak."""
    with tempfile.TemporaryFile("w+") as given:
        given.write(stdin)
        given.seek(0)
        start = os.times().elapsed
        command = [sys.executable, "-m", "sekd_cli", *map(str, arguments), "--quiet", "--device", "cpu"]
        process = subprocess.Popen(command, stdin=given, stdout=subprocess.DEVNULL)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, sum(map(megabytes, family(process.pid))))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Row(what, peak, os.times().elapsed - start)


def family(process: int) -> Iterator[int]:
    """A process and all that came from it."""
    yield process
    with suppress(OSError):
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text(encoding="ascii").split():
                yield from family(int(child))


def megabytes(process: int) -> float:
    """Its memory, of shared pages its part (Linux counts in kB); none if it is gone."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024
    return 0.0


def photographs(folder: Path, count: int) -> Path:
    """A folder of so many names for one photograph."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05}.jpg").symlink_to(EXAMPLE)
    return folder


def huge_photograph(path: Path) -> Path:
    """The example enlarged, with noise that gives every tile its keypoints."""
    width, height = HUGE
    pixels = cv2.resize(cv2.imread(str(EXAMPLE)), (width, height), interpolation=cv2.INTER_LINEAR)
    noise = np.random.default_rng(0).integers(0, 40, (1000, width, 3), dtype=np.uint8)
    for top in range(0, height, 1000):
        pixels[top : top + 1000] //= 2
        pixels[top : top + 1000] += noise
    cv2.imwrite(str(path), pixels)
    return path


def measured(folder: Path, images: Sequence[int], *, huge: bool) -> Iterator[Row]:
    """Every row, one after the other."""
    for count in images:
        arguments = ["extract", photographs(folder / f"images{count}", count), "-o", folder / f"{count}.h5"]
        yield measure(f"extract, {count} images", arguments)
    if huge:
        child = os.fork()  # so that what making it takes is given back
        if child == 0:
            huge_photograph(folder / "huge.jpg")
            os._exit(0)
        os.waitpid(child, 0)
        arguments = ["extract", folder / "huge.jpg", "-o", folder / "huge.h5", "--max-size", "0", "--max-pixels", "0"]
        yield measure("extract, one image of 30000x20000", arguments)
    features = folder / "matched.h5"
    measure("", ["extract", photographs(folder / "matched", MATCHED_IMAGES), "-o", features])
    pairs = list(combinations((f"{number:05}.jpg" for number in range(MATCHED_IMAGES)), 2))
    for count in PAIRS:
        listed = "".join(f"{one} {other}\n" for one, other in islice(pairs, count))
        arguments = ["match", "-", "--features", features, "-o", folder / f"matches{count}.h5", "--cache", "0.02"]
        yield measure(f"match, {count} pairs, --cache 0.02", arguments, listed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--skip-huge", action="store_true", help="leave out the image of 600 megapixels")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    if not options.json:
        print(f"{'':36}{'peak':>10}{'time':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(Path(folder), options.images, huge=not options.skip_huge):
            rows.append(row)
            if not options.json:
                print(f"{row.what:36}{row.peak_megabytes:7.0f} MB{row.seconds:8.0f} s", flush=True)
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))


if __name__ == "__main__":
    main()
