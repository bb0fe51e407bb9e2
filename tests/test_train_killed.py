"""`sekd train` killed in the middle of labelling, of an update and anywhere, and resumed each time."""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from drawn import draw_photographs
from killed import ready_processes
from safetensors.torch import load_file

from sekd_cli import cli

SETTINGS = {
    "rounds": 2,
    "steps_per_update": 12,
    "last_steps": 12,
    "batch_size": 2,
    "height": 64,
    "width": 64,
    "labels_per_photograph": 40,
    "photographs_per_round": 1.0,
    "validation_share": 0.1,
    "adaptation_threshold": 0.01,
}
LABELS = "labels-2.json"  # of the second round, which the network makes


def train(arguments: list[str], save_seconds: float) -> None:
    from sekd_cli.training import labelling, self_evolution

    self_evolution.SAVE_SECONDS = save_seconds
    labelling.GROUP = 2
    torch.set_num_threads(1)
    sys.exit(cli.main(["train", *arguments, "--quiet", "--workers", "0", "--threads", "1", "--device", "cpu"]))


def lines(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def labelled(run: Path) -> int:
    return int(json.loads((run / LABELS).read_text())["done"]) if (run / LABELS).is_file() else 0


def test_a_run_killed_three_times_ends_with_the_parameters_of_a_whole_one(tmp_path: Path) -> None:
    processes = ready_processes("train_report")
    photographs = draw_photographs(tmp_path / "in", 10)
    changes = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begun = processes.Process(target=train, args=(["--data", str(photographs), "-o", str(whole), *changes], 60.0))
    begun.start()

    moments = random.Random(0)
    step, photograph = moments.randint(3, 10), moments.randint(2, 6)
    kills: list[Callable[[], bool]] = [
        lambda: lines(killed) > step,  # in the middle of the first update
        lambda: labelled(killed) >= photograph,  # of the second labelling
        lambda: lines(killed) > 20 and moments.random() < 0.1,  # anywhere from there to the end
    ]
    arguments = ["--data", str(photographs), "-o", str(killed), *changes]
    for now in kills:
        process = processes.Process(target=train, args=(arguments, 0.0))
        process.start()
        while process.is_alive() and not now():
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -9, "it ended before the kill"
        arguments = ["--resume", str(killed)]
    last = processes.Process(target=train, args=(arguments, 0.0))
    last.start()
    for process in (begun, last):
        process.join()
        assert process.exitcode == 0

    for name in ("model.safetensors", "best.safetensors"):
        expected, found = load_file(whole / name), load_file(killed / name)
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
    assert (killed / "report.md").is_file()
