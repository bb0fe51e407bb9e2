"""What a kill leaves of `sekd match`, at many random moments."""

from pathlib import Path

import h5py
import pytest
from drawn_features import write_views
from killed import Arrays, assert_nothing_reported_is_lost, ready_processes

from sekd_cli.match_file import MatchReader
from sekd_cli.pairs import exhaustive, format_pair

NAMES = [f"view{index:02}.jpg" for index in range(20)]


def arrays(path: Path) -> Arrays:
    """Everything in a match file, pair by pair, as any HDF5 reader finds it."""
    with MatchReader(path) as reader:  # which finishes a change that a kill left in the journal
        pairs = ["\t".join(pair) for pair in reader.pairs()]
    with h5py.File(path) as file:
        found = {
            f"{first}\t{second}": [values[()] for values in group.values()]
            for first in file
            for second, group in file[first].items()
            if group.attrs["complete"]
        }
    assert pairs == sorted(found)
    return found


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """`sekd match` of all pairs of many images, but for its output."""
    features = write_views(tmp_path / "feats.h5", NAMES)
    (tmp_path / "pairs.txt").write_text("".join(map(format_pair, exhaustive(NAMES))), encoding="utf-8")
    options = ["--features", str(features), "--verify", "homography", "--device", "cpu", "--threads", "2"]
    return ["match", str(tmp_path / "pairs.txt"), *options, "--output"]


def test_nothing_that_was_reported_is_lost_by_a_kill_at_any_moment(command: list[str], tmp_path: Path) -> None:
    assert_nothing_reported_is_lost(ready_processes("match_run"), command, tmp_path, arrays, unit="matches")
    assert len(arrays(tmp_path / "whole.h5")) == len(NAMES) * (len(NAMES) - 1) // 2
