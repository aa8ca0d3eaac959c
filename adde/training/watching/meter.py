"""Means of scalars over steps, and speed and memory, of all ranks and of each."""

import contextlib
import resource
import statistics
import time
from collections.abc import Iterator

import torch

from adde.distributed import RankRows, waited_in_collectives, world_size

DETAIL_EVERY = 10
"""Steps over which figures of single attributes and ranks are averaged, because a log of every step
would be several times as long."""

MAX_NAMED_RANKS = 32
"""Number of ranks up to which the log has figures of each."""


class Means:
    """Means by name, each over the times that the name was added."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, scalars: dict[str, float]) -> None:
        """Add one value of each name."""
        for name, value in scalars.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means, in the order in which names were first added, and start again."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means


class Meter:
    """Means over a step's micro-batches, and the speed of steps.

    Args:
        device: that this rank trains on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._step, self._window = Means(), Means()
        self._images = self._steps = 0
        self.speed: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Restart the clock, after an evaluation or before the first step."""
        self._started = time.perf_counter()
        self._waited = 0.0
        waited_in_collectives()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the body as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def add(self, scalars: dict[str, float], images: int) -> None:
        """Add one micro-batch's scalars."""
        self._step.add(scalars)
        self._images += images

    def take(self) -> dict[str, float]:
        """Return the step's mean scalars, set `speed`, and start the next step.

        Figures of single attributes (`<name>/<attribute>`) are returned by `details`.
        """
        means = self._step.take()
        elapsed = time.perf_counter() - self._started
        # The time without waiting for other ranks.
        alone = max(elapsed - waited_in_collectives(), 1e-9)
        self.speed = {
            "images_per_second": self._images * world_size() / elapsed,
            "data_wait": self._waited / elapsed,
            "memory_gb": _memory_gb(self._device),
        }
        self._window.add({name: value for name, value in means.items() if "/" in name})
        self._window.add({**self.speed, "images_per_second": self._images / alone})
        self._images, self._steps = 0, self._steps + 1
        self.restart()
        return {name: value for name, value in means.items() if "/" not in name}

    def details(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return figures of single attributes, and of ranks (`rank_figures`), every DETAIL_EVERY
        steps; else empty ones. It is a collective: all ranks call it after the same steps.
        """
        if self._steps < DETAIL_EVERY:
            return {}, {}
        self._steps = 0
        means = self._window.take()
        own = [means.pop(name) for name in self.speed]
        if world_size() == 1:
            return means, {}
        rows = RankRows.equal(1).gather(torch.tensor([own], device=self._device))
        return means, rank_figures(rows.tolist())


def rank_figures(rows: list[list[float]]) -> dict[str, float]:
    """Return the log's figures of ranks from each rank's images/s, share of data wait, and GB.

    Images per second do not count waiting for other ranks. `ranks/slowest` is the number of the
    slowest rank, and `ranks/slowest_lag` by how much the median rank is faster.
    """
    speeds, waits, memory = zip(*rows)
    slowest = min(range(len(rows)), key=lambda rank: speeds[rank])
    median = statistics.median(speeds)
    found = {
        "ranks/slowest": float(slowest),
        "ranks/slowest_lag": median / speeds[slowest] - 1,
        "ranks/images_per_second_median": median,
        "ranks/images_per_second_min": speeds[slowest],
        "ranks/data_wait_max": max(waits),
        "ranks/memory_gb_max": max(memory),
    }
    if len(rows) <= MAX_NAMED_RANKS:
        for rank, row in enumerate(rows):
            for name, value in zip(("images_per_second", "data_wait", "memory_gb"), row):
                found[f"ranks/{name}/{rank}"] = value
    return found


def _memory_gb(device: torch.device) -> float:
    """Return peak memory, of the GPU if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
