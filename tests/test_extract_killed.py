"""What a kill leaves of `sekd extract`, at many random moments."""

import os
import signal
import sys
import time
from pathlib import Path

import h5py
import pytest
from hostile_images import drawn, encoded, write_files
from killed import Arrays, assert_nothing_reported_is_lost, ready_processes

from sekd_cli import cli
from sekd_cli.feature_file import FeatureReader

PHOTOGRAPHS = 64  # become durable in several steps
MANY = 300  # not done before an interrupt comes


def arrays(path: Path) -> Arrays:
    """Everything in a feature file, image by image, as any HDF5 reader finds it."""
    with FeatureReader(path) as reader:  # which finishes a change that a kill left in the journal
        names = reader.names()
    with h5py.File(path) as file:
        complete = {name: group for name, group in file.items() if group.attrs["complete"]}
        assert names == sorted(complete)
        return {name: [values[()] for values in group.values()] for name, group in complete.items()}


def photographs(first: int, end: int) -> dict[str, bytes]:
    """Tiny ones, by their names."""
    return {f"{seed:03}.png": encoded(drawn(32, 48, seed), "PNG") for seed in range(first, end)}


@pytest.fixture
def command(tmp_path: Path, untrained_weights: Path) -> list[str]:
    """`sekd extract` of many tiny photographs, but for its output."""
    write_files(tmp_path / "photos", photographs(0, PHOTOGRAPHS))
    quick = ["--precision", "float32", "--device", "cpu", "--threads", "1"]  # in bytes it would take longer to be ready
    return ["extract", str(tmp_path / "photos"), "--weights", str(untrained_weights), "--threshold", "0", *quick, "-o"]


def test_nothing_that_was_reported_is_lost_by_a_kill_at_any_moment(command: list[str], tmp_path: Path) -> None:
    processes = ready_processes("extract_run")
    assert_nothing_reported_is_lost(processes, command, tmp_path, arrays, unit="keypoints")
    assert len(arrays(tmp_path / "whole.h5")) == PHOTOGRAPHS


def children(process: int) -> list[int]:
    """The processes that another began."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_a_kill_ends_the_processes_that_extract_as_well(command: list[str], tmp_path: Path) -> None:
    path, log = tmp_path / "killed.h5", tmp_path / "log.txt"
    several = [*command[:-1], "--threads", "2", "--output", str(path), "--quiet", "--log-file", str(log)]
    process = ready_processes("extract_run").Process(target=cli.main, args=(several,))
    process.start()
    while process.is_alive() and not (log.exists() and "keypoints" in log.read_text()):
        time.sleep(0.005)
    assert process.pid is not None
    others = children(process.pid)
    assert len(others) == 2
    process.kill()
    process.join()
    patience = time.monotonic() + 60
    while any(Path(f"/proc/{other}").exists() for other in others):
        assert time.monotonic() < patience, "processes are left over"
        time.sleep(0.01)
    assert cli.main([*several, "--threads", "1"]) == 0  # and nobody holds the file
    assert len(arrays(path)) == PHOTOGRAPHS


def exit_with(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is told to ignore it
    sys.exit(cli.main(arguments))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_stops_cleanly_and_the_same_command_goes_on(
    threads: int, command: list[str], tmp_path: Path
) -> None:
    write_files(tmp_path / "photos", photographs(PHOTOGRAPHS, MANY))
    path, log = tmp_path / "interrupted.h5", tmp_path / "log.txt"
    several = [*command[:-1], "--threads", str(threads), "--output", str(path)]
    logged = [*several, "--quiet", "--log-file", str(log)]
    process = ready_processes("extract_run").Process(target=exit_with, args=(logged,))
    process.start()
    while process.is_alive() and not (log.exists() and "keypoints" in log.read_text()):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert "Traceback" not in log.read_text()
    done = len(arrays(path))
    assert 0 < done < MANY
    assert cli.main(several) == 0
    assert len(arrays(path)) == MANY
