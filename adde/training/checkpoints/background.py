"""Run one job at a time in a thread, and raise its error at the next step."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs jobs in one thread, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._job: Future[Any] | None = None

    def start(self, job: Callable[[], Any]) -> None:
        """Start a job once the previous one is done; raise what that one raised."""
        self.wait()
        self._job = self._pool.submit(job)

    def check(self) -> None:
        """Raise what a finished job raised; do not wait."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the job; raise what it raised, once."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Wait for the job, and ignore its result."""
        self._pool.shutdown()
