"""How a run is doing: means over a step, speed, memory."""

import resource
import time

import torch


class Meter:
    """Means over a step's micro-batches, and how fast the steps go."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._parts = self._images = 0
        self.speed: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Starts the clock again, after something that is not training."""
        self._started = time.perf_counter()
        self.waited = 0.0

    def add(self, scalars: dict[str, float], images: int) -> None:
        """Adds one micro-batch's scalars."""
        self._parts += 1
        self._images += images
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self, ranks: int) -> dict[str, float]:
        """The step's mean scalars; sets `speed` and starts the next step."""
        means = {name: value / self._parts for name, value in self._sums.items()}
        elapsed = time.perf_counter() - self._started
        self.speed = {
            "images_per_second": self._images * ranks / elapsed,
            "data_wait": self.waited / elapsed,
            "memory_gb": _memory_gb(),
        }
        self._sums, self._parts, self._images = {}, 0, 0
        self.restart()
        return means


def _memory_gb() -> float:
    """Peak memory: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
