"""What a kill leaves of `sekd extract`, at many random moments."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hostile_images import drawn, encoded, write_files

from sekd_cli import cli
from sekd_cli.feature_file import FeatureReader

KILLS = 20
PHOTOGRAPHS = 24
LONGEST_DELAY = 0.8  # seconds; about what a run takes


def arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """Everything in a feature file, image by image, as any HDF5 reader finds it."""
    with h5py.File(path) as file:
        return {
            name: [values[()] for values in group.values()] for name, group in file.items() if group.attrs["complete"]
        }


def assert_among(some: dict[str, list[np.ndarray]], everything: dict[str, list[np.ndarray]]) -> None:
    for name, values in some.items():
        for one, other in zip(values, everything[name], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture
def command(tmp_path: Path, untrained_weights: Path) -> list[str]:
    """`sekd extract` of many small photographs, but for its output."""
    write_files(
        tmp_path / "photos", {f"{seed:02}.png": encoded(drawn(seed=seed), "PNG") for seed in range(PHOTOGRAPHS)}
    )
    options = ["--weights", str(untrained_weights), "--threshold", "0", "--device", "cpu", "--threads", "1"]
    return ["extract", str(tmp_path / "photos"), *options, "--output"]


def ready_processes() -> Any:
    """Processes that begin at once: torch is loaded before they are forked."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["sekd_cli.commands.extract_run"])
    return processes


def test_nothing_that_was_reported_is_lost_by_a_kill_at_any_moment(command: list[str], tmp_path: Path) -> None:
    assert cli.main([*command, str(tmp_path / "whole.h5")]) == 0
    whole = arrays(tmp_path / "whole.h5")
    assert len(whole) == PHOTOGRAPHS

    processes = ready_processes()
    moments = random.Random(0)
    path, log = tmp_path / "killed.h5", tmp_path / "log.txt"
    kills, before = 0, set[str]()
    while kills < KILLS:
        log.unlink(missing_ok=True)
        process = processes.Process(target=cli.main, args=([*command, str(path), "--quiet", "--log-file", str(log)],))
        process.start()
        while not log.exists() and process.is_alive():
            time.sleep(0.005)
        process.join(moments.uniform(0, LONGEST_DELAY))
        process.kill()
        process.join()
        kills += process.exitcode != 0
        if not path.exists():
            continue
        with FeatureReader(path) as reader:  # which finishes a change that the kill left in the journal
            names = reader.names()
        found = arrays(path)
        assert names == sorted(found)
        reported = {line.split()[3].rstrip(":") for line in log.read_text().splitlines() if line.endswith("keypoints")}
        assert found.keys() >= before | reported
        assert_among(found, whole)
        before = set(found)
        if len(found) == PHOTOGRAPHS:  # finished: once more from the start
            path.unlink()
            before = set()

    assert cli.main([*command, str(path)]) == 0
    assert arrays(path).keys() == whole.keys()
    assert_among(arrays(path), whole)


def exit_with(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is told to ignore it
    sys.exit(cli.main(arguments))


def test_an_interrupt_stops_cleanly_and_the_same_command_goes_on(command: list[str], tmp_path: Path) -> None:
    processes = ready_processes()
    path, log = tmp_path / "interrupted.h5", tmp_path / "log.txt"
    process = processes.Process(target=exit_with, args=([*command, str(path), "--quiet", "--log-file", str(log)],))
    process.start()
    while process.is_alive() and not (log.exists() and "keypoints" in log.read_text()):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert "Traceback" not in log.read_text()
    done = len(arrays(path))
    assert 0 < done < PHOTOGRAPHS
    assert cli.main([*command, str(path)]) == 0
    assert len(arrays(path)) == PHOTOGRAPHS
