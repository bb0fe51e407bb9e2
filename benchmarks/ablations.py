"""What each part of the method gives: `python benchmarks/ablations.py PHOTOGRAPHS... -o FOLDER [--dev DATA]`.

Trains the whole method, the method without each part and the method with labels frozen at the first round, on equal
budgets with each seed, by `sekd train` (a killed call goes on where it stopped). Prints each run's validation, after
its last round, and with --dev its figures on folders in HPatches form, as Markdown. Further options go to
`sekd train`, after BUDGET and SHARES.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sekd_cli.training.settings import ABLATIONS

BUDGET = {"rounds": 3, "steps_per_update": 200, "last_steps": 300, "height": 160, "width": 224}
SHARES = {"photographs_per_round": 1.0, "validation_share": 0.3}
VALIDATION = ("repeatability", "mma_1", "mma_3", "mma_5", "homography_accuracy")
DEV = ("ha", "mma@1", "mma@3", "mma@5", "repeatability")


def variants() -> dict[str, list[str]]:
    """Name of each run and what it changes."""
    parts = {f"without {part.replace('-', ' ')}": ["--without", part] for part in ABLATIONS}
    return {"whole method": []} | parts | {"labels frozen at round 1": ["--set", "self_evolving=false"]}


def train(run: Path, arguments: list[str]) -> dict[str, float]:
    """Figures of the last validation of a run, which is trained as far as it isn't yet."""
    command = [sys.executable, "-m", "sekd_cli", "train", *arguments, "-o", str(run)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    figures: dict[str, float] = [line for line in lines if line.get("action") == "validation"][-1]
    return figures


def evaluate(weights: Path, data: Path) -> dict[str, float]:
    """Figures of weights on folders in HPatches form."""
    command = [sys.executable, "-m", "sekd_cli", "evaluate", "homography", str(data), "-w", str(weights), "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)["homography"][0]
    return figures


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--dev", type=Path)
    options, further = parser.parse_known_args()
    budget = [f"--set={name}={value}" for name, value in (BUDGET | SHARES).items()]
    data = [part for path in options.photographs for part in ("--data", path)]
    print("| seed | method | validation: rep. | MMA 1 / 3 / 5 px | HA | dev: HA | MMA 1 / 3 / 5 px | rep. |")
    print("| --- " * 8 + "|")
    for seed in options.seeds:
        for name, change in variants().items():
            run = options.output / f"{name.replace(' ', '-')}-{seed}"
            arguments = [*data, "--seed", str(seed), *budget, *further, *change]
            figures = train(run, arguments)
            cells = [figures[key] for key in VALIDATION]
            if options.dev:
                measured = evaluate(run / "model.safetensors", options.dev)
                cells += [measured[key] for key in DEV]
            shown = [f"{100 * value:.1f}" for value in cells]
            print(f"| {seed} | {name} | {shown[0]} | {' / '.join(shown[1:4])} | {shown[4]} |", end="")
            print(f" {shown[5]} | {' / '.join(shown[6:9])} | {shown[9]} |" if options.dev else "", flush=True)


if __name__ == "__main__":
    main()
