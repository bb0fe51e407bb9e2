"""How many CPU cores are this process's: a container, a job or `taskset` often leaves it fewer than the machine has."""

import math
import os
from pathlib import Path

OWN_GROUPS, ALL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # of Linux


def available_cores() -> int:
    """CPU cores that this process may use."""
    on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(on, quota_of_cores())))


def quota_of_cores(own_groups: Path = OWN_GROUPS, all_groups: Path = ALL_GROUPS) -> float:
    """As many cores' time as control groups give this process and its like; infinite where none of them says.

    It is what `docker run --cpus 2` and Kubernetes' limits set: all cores are there, and stand still by turns.
    """
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return math.inf
    quota = math.inf
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")  # none are named in version 2
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = all_groups / "cpu" if controllers else all_groups
        place = root / group.lstrip("/")
        for folder in (place, *place.parents):  # a group has no more than those it lies in
            if folder.is_relative_to(root):
                quota = min(quota, _quota(folder))
    return quota


def _quota(group: Path) -> float:
    """Of one control group; version 2 has one file for it, version 1 had two."""
    try:
        if (both := group / "cpu.max").exists():
            most, period = both.read_text(encoding="utf-8").split()
        else:
            most, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return int(most) / int(period) if most != "max" and int(most) > 0 else math.inf
    except (OSError, ValueError, ArithmeticError):  # none is set, or in words of a later day
        return math.inf
