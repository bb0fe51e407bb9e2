"""Seconds that commands take to start, and to end: whole processes of `--help`, and of one photograph or pair.

    python benchmarks/starting.py [--against CHECKOUT] [--rounds 7] [--json]

The photograph and the pair are among the examples. "first" is the time until the command says on stderr
that the photograph, or the pair, is done, "end" that until the process is gone, both as seen from outside; Python has
compiled everything before. With --against another checkout of sekd takes turns with this one, and the median of the
ratios is told, this one's time first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).parents[1]
EXAMPLES = HERE / "examples"
PHOTOGRAPH = "china.jpg"
PAIR = "motorcycle_left.jpg", "motorcycle_right.jpg"


class Seconds(NamedTuple):
    """Since a process was started."""

    first: float
    end: float


def run(checkout: Path, arguments: Sequence[str | Path], done: str) -> Seconds:
    """What a command takes until it says `done` on stderr, or without it writes anything, and until it has ended."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-P", "-m", "sekd_cli", *map(str, arguments)]
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, text=True, **together) as made:
        assert made.stdout is not None
        lines: list[str] = []
        first = None
        for line in made.stdout:
            lines.append(line)
            if first is None and done in line:
                first = time.perf_counter() - start
        code = made.wait()
    end = time.perf_counter() - start
    if code or first is None:
        raise SystemExit(f"{' '.join(command)}: exit code {code}\n{''.join(lines)}")
    return Seconds(first, end)


def commands(folder: Path) -> dict[str, tuple[list[str | Path], str]]:
    """By name what to run, and what it says when the first thing is done."""
    pairs = folder / "pairs.txt"
    pairs.write_text(" ".join(PAIR), encoding="utf-8")
    extract = ["extract", EXAMPLES / PHOTOGRAPH, "--overwrite", "--verbose", "-o", folder / "feats.h5"]
    both = ["--features", folder / "both.h5", "-o", folder / "matches.h5"]
    match = ["match", pairs, "--overwrite", "--verbose", *both]
    return {"--help": (["--help"], "Usage"), "extract": (extract, " keypoints"), "match": (match, " matches")}


def main() -> None:
    """Print a table, or --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a folder with another version of sekd_cli and weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    checkouts = {"this": HERE} | ({} if options.against is None else {"other": options.against.resolve()})
    with tempfile.TemporaryDirectory() as name:
        both = [EXAMPLES / photograph for photograph in PAIR]
        run(HERE, ["extract", *both, "--verbose", "-o", Path(name) / "both.h5"], " keypoints")
        found: dict[str, dict[str, list[Seconds]]] = {}
        for turn in range(options.rounds + 1):
            for command, (arguments, done) in commands(Path(name)).items():
                for which, checkout in checkouts.items():
                    took = run(checkout, arguments, done)
                    if turn:  # before that, bytecode is written and files are read into memory
                        found.setdefault(command, {}).setdefault(which, []).append(took)
    rows = {}
    for command, of_each in found.items():
        rows[command] = {
            which: {"first": median(one.first for one in all_), "end": median(one.end for one in all_)}
            for which, all_ in of_each.items()
        }
        if "other" in of_each:
            both = list(zip(of_each["this"], of_each["other"], strict=True))
            rows[command]["ratio"] = {
                "first": median(one.first / other.first for one, other in both),
                "end": median(one.end / other.end for one, other in both),
            }
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'':>8} {'':>6} {'first':>6} {'end':>6}")
    for command, of_each_row in rows.items():
        for which, row in of_each_row.items():
            print(f"{command:>8} {which:>6} {row['first']:>6.2f} {row['end']:>6.2f}")


if __name__ == "__main__":
    main()
