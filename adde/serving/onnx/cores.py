"""How many cores this process may keep busy; libraries that would count those of the machine."""

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
OWN_FILES = Path("/proc/self/maps")

BLAS = tuple(
    f"{prefix}openblas_{{}}_num_threads{suffix}"
    for prefix in ("scipy_", "")
    for suffix in ("64_", "")
)
"""How numpy's wheels and other builds of OpenBLAS name the functions."""


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


def limit_libraries(threads: int) -> None:
    """Has numpy's BLAS, and faiss in this thread, use at most so many threads.

    Both take as many as the machine has cores, whatever a container may use. Their variables in the
    environment are read when they are loaded, which is before anyone has said how many. OpenMP, by
    which faiss computes, keeps a number for every thread that is not its own.
    """
    for get, put in zip(_blas("get"), _blas("set")):
        put(min(get(), threads))
    faiss: Any = sys.modules.get("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(min(faiss.omp_get_max_threads(), threads))


def blas_threads() -> set[int]:
    """How many threads the BLAS libraries of this process use."""
    return {function() for function in _blas("get")}


def _blas(verb: str) -> list[Any]:
    lines = (line.split(maxsplit=5)[5:] for line in OWN_FILES.read_text().splitlines())
    paths = {path for (path,) in filter(None, lines) if "openblas" in Path(path).name}
    loaded = [ctypes.CDLL(path) for path in sorted(paths) if Path(path).exists()]
    names = [name.format(verb) for name in BLAS]
    return [
        getattr(library, name) for library in loaded for name in names if hasattr(library, name)
    ]
