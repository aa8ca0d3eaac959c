"""Count the cores that this process may keep busy."""

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def cores() -> int:
    """Cores that this process may run on, or as many as its quota pays for where that is less.

    A container's CPU limit is a quota of time on any core of the machine (`cpu.max` of cgroup v2).
    Threads for all of those use it up early, and then stand still until the next period.
    """
    return math.ceil(min(len(os.sched_getaffinity(0)), max(1.0, _quota())))


def _quota() -> float:
    """Cores that are paid for to this process's group and to those around it together."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        return math.inf
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = GROUPS / own.lstrip("/")
    return min(_paid(at / "cpu.max") for at in (folder, *folder.parents))


def _paid(file: Path) -> float:
    try:
        microseconds, period = file.read_text().split()
        return math.inf if microseconds == "max" else int(microseconds) / int(period)
    except (OSError, ValueError):  # the outermost group has none
        return math.inf
