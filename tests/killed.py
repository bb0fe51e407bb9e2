"""What the tests of kills share."""

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sekd_cli import cli

KILLS = 20

Arrays = dict[str, list[np.ndarray]]
"""The arrays of each group in a file, by the name of its image or its pair."""


def ready_processes(command: str) -> Any:
    """Processes that begin at once: a module of `sekd_cli.commands`, and torch with it, is loaded before the fork."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([f"sekd_cli.commands.{command}"])
    return processes


def assert_among(some: Arrays, everything: Arrays) -> None:
    """What is in the one file is in the other, the same to the bit."""
    for name, values in some.items():
        for one, other in zip(values, everything[name], strict=True):
            np.testing.assert_array_equal(one, other)


def run_and_kill(processes: Any, command: list[str], log: Path, seconds: float) -> bool:
    """Run a command of `sekd` and kill it so long after its log began; whether it was still at work."""
    log.unlink(missing_ok=True)
    process = processes.Process(target=cli.main, args=([*command, "--quiet", "--log-file", str(log)],))
    process.start()
    while not log.exists() and process.is_alive():
        time.sleep(0.005)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode != 0


def assert_nothing_reported_is_lost(
    processes: Any, command: list[str], folder: Path, arrays: Callable[[Path], Arrays], *, unit: str
) -> None:
    """Kill a command, which lacks only its output, again and again at random moments until `KILLS` of them hit it.

    arrays: reads what it wrote. unit: what ends the lines of its log that report an image or a pair.
    """
    start = time.monotonic()
    assert cli.main([*command, str(folder / "whole.h5")]) == 0
    longest_delay = time.monotonic() - start
    whole = arrays(folder / "whole.h5")

    moments = random.Random(0)
    path, log = folder / "killed.h5", folder / "log.txt"
    kills, told, before = 0, 0, set[str]()
    while kills < KILLS:
        kills += run_and_kill(processes, [*command, str(path)], log, moments.uniform(0, longest_delay))
        if not path.exists():
            continue
        found = arrays(path)
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith(unit)]
        reported = {line.split(" DEBUG ")[1].rpartition(":")[0].replace(" and ", "\t") for line in lines}
        told += 0 < len(reported) < len(whole) - len(before)  # killed in the midst of it
        assert found.keys() >= before | reported
        assert_among(found, whole)
        before = set(found)
        if len(found) == len(whole):  # finished: once more from the start
            path.unlink()
            before = set()
            longest_delay *= 0.8

    assert told
    assert cli.main([*command, str(path)]) == 0
    assert arrays(path).keys() == whole.keys()
    assert_among(arrays(path), whole)
