"""What a kill leaves of `sekd match`, at many random moments."""

import multiprocessing
import random
import time
from pathlib import Path

import h5py
import pytest
from drawn_features import write_views
from killed import Arrays, assert_among, run_and_kill

from sekd_cli import cli
from sekd_cli.match_file import MatchReader
from sekd_cli.pairs import exhaustive, format_pair

KILLS = 20
NAMES = [f"view{index:02}.jpg" for index in range(20)]


def arrays(path: Path) -> Arrays:
    """Everything in a match file, pair by pair, as any HDF5 reader finds it."""
    with h5py.File(path) as file:
        return {
            f"{first}\t{second}": [values[()] for values in group.values()]
            for first in file
            for second, group in file[first].items()
            if group.attrs["complete"]
        }


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`sekd match` of all pairs of many images, but for its output."""
    features = write_views(tmp_path / "feats.h5", NAMES)
    (tmp_path / "pairs.txt").write_text("".join(map(format_pair, exhaustive(NAMES))), encoding="utf-8")
    options = ["--features", str(features), "--verify", "homography", "--device", "cpu", "--threads", "2"]
    return ["match", str(tmp_path / "pairs.txt"), *options, "--output"]


def test_nothing_that_was_reported_is_lost_by_a_kill_at_any_moment(command: list[str], tmp_path: Path) -> None:
    start = time.monotonic()
    assert cli.main([*command, str(tmp_path / "whole.h5")]) == 0
    longest_delay = time.monotonic() - start
    whole = arrays(tmp_path / "whole.h5")
    assert len(whole) == len(NAMES) * (len(NAMES) - 1) // 2

    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["sekd_cli.commands.match_run"])  # so that a run begins at once
    moments = random.Random(0)
    path, log = tmp_path / "killed.h5", tmp_path / "log.txt"
    kills, told, before = 0, 0, set[str]()
    while kills < KILLS:
        kills += run_and_kill(processes, [*command, str(path)], log, moments.uniform(0, longest_delay))
        if not path.exists():
            continue
        with MatchReader(path) as reader:  # which finishes a change that the kill left in the journal
            pairs = ["\t".join(pair) for pair in reader.pairs()]
        found = arrays(path)
        assert pairs == sorted(found)
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("matches")]
        reported = {line.split(" DEBUG ")[1].rpartition(":")[0].replace(" and ", "\t") for line in lines}
        told += len(reported)
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
