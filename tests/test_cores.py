import math
from pathlib import Path

import pytest

from sekd_cli import cores
from sekd_cli.cores import available_cores, quota_of_cores


def groups(folder: Path, own: str, files: dict[str, str]) -> float:
    """The quota where /proc says `own` and /sys/fs/cgroup has these files."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        file = folder / "all" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return quota_of_cores(folder / "own", folder / "all")


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),  # a container, of version 2
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/jobs/one\n", {"jobs/cpu.max": "300000 100000", "jobs/one/cpu.max": "max 100000"}, 3.0),
        ("0::/jobs/one\n", {"jobs/cpu.max": "300000 100000", "jobs/one/cpu.max": "50000 100000"}, 0.5),
        ("0::/../other\n", {"cpu.max": "200000 100000"}, 2.0),  # moved out of what it sees
        ("4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "400000\n"}, math.inf),  # half of it
        (
            "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            4.0,
        ),  # a container, of version 1: it sees its own group at the top
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("3:cpuset:/a\n", {"a/cpu.max": "100000 100000\n"}, math.inf),  # another controller's
        ("0::/\n", {"cpu.max": "100000 0\n"}, math.inf),
        ("0::/\n", {"cpu.max": "a few\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("nonsense\n\n::\n", {}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_what_control_groups_leave(tmp_path: Path, own: str, files: dict[str, str], quota: float) -> None:
    assert groups(tmp_path, own, files) == quota


def test_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert quota_of_cores(tmp_path / "none", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 3), (8.0, 3), (2.0, 2), (1.5, 2), (2.3, 3), (0.1, 1)])
def test_the_fewest_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    monkeypatch.setattr(cores, "quota_of_cores", lambda: quota)
    assert available_cores() == expected


def test_all_cores_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cores.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(cores, "quota_of_cores", lambda: math.inf)
    assert available_cores() == 6
