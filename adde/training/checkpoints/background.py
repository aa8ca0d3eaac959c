"""One job at a time beside the training, whose failure is told at the next step."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs jobs in one thread, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._job: Future[Any] | None = None

    def start(self, job: Callable[[], Any]) -> None:
        """Starts a job once the one before it is done; raises what that one raised."""
        self.wait()
        self._job = self._pool.submit(job)

    def check(self) -> None:
        """Raises what a job that has ended raised; waits for none."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the job; raises what it raised, once."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Waits for the job, whatever becomes of it."""
        self._pool.shutdown()
