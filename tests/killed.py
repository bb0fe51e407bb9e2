"""What the tests of kills share."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from sekd_cli import cli

Arrays = dict[str, list[np.ndarray]]
"""The arrays of each group in a file, by the name of its image or its pair."""


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
