"""Count the cores that this process may keep busy."""

import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the number of cores in this process's affinity mask, or its CPU quota if lower.

    A container's CPU limit is a time quota on any core of the machine (`cpu.max` of cgroup v2). One
    thread per core would use it up early and then stall until the next period.
    """
    return math.ceil(min(len(os.sched_getaffinity(0)), max(1.0, _quota())))


def _quota() -> float:
    """The smallest quota, in cores, of this process's cgroup and its ancestors."""
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
    except (OSError, ValueError):  # the root group has no quota
        return math.inf
