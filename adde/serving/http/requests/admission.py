"""Admission: how many requests run at a time, and for how long."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request

from adde.serving.http.metrics import Metrics
from adde.serving.http.problems import CLIENT_GONE, Problem, retry_later

T = TypeVar("T")


class FairQuota:
    """A quota of slots or bytes, shared fairly among keys.

    With several keys, none may hold more than it leaves free: one key alone gets half, two get a
    third each, and something always remains for another.

    Args:
        limit: total for all keys.
        several: returns whether there are several keys.
    """

    def __init__(self, limit: int, several: Callable[[], bool]) -> None:
        self._limit, self._several = limit, several
        self._held: Counter[str] = Counter()
        self.taken = 0

    def fits(self, key: str, amount: int) -> bool:
        """Whether a key may take this much more."""
        own = self._held[key] if self._several() else 0
        return own + amount <= self._limit - self.taken

    def take(self, key: str, amount: int) -> None:
        """Take an amount, whether or not it fits."""
        self._held[key] += amount
        self.taken += amount

    def release(self, key: str, amount: int) -> None:
        """Give back an amount."""
        self.take(key, -amount)
        if not self._held[key]:
            del self._held[key]


class Slot:
    """The slot of an admitted request."""

    def __init__(self, admission: "Admission") -> None:
        self._admission, self._pending = admission, True

    def no_more_pictures(self) -> None:
        """Declare that this request brings no further picture; idempotent."""
        if self._pending:
            self._pending = False
            self._admission.pending_pictures -= 1
            if not self._admission.pending_pictures:
                for notify in self._admission.listeners:
                    notify()


class Admission:
    """Admits a limited number of requests and rejects others at once."""

    def __init__(self, limit: int, metrics: Metrics, several: Callable[[], bool]) -> None:
        self._limit, self._metrics = limit, metrics
        self._quota = FairQuota(limit, several)
        self._seconds = 0.0
        self.pending_pictures = 0
        """Admitted requests that may still bring a picture."""
        self.listeners: set[Callable[[], None]] = set()
        """Called when no picture is pending any more."""

    @property
    def _inside(self) -> int:
        """Slots taken."""
        return self._quota.taken

    def check(self, key: str) -> None:
        """Raise Problem 429 if there is no free slot, before the body is sent."""
        if self._quota.fits(key, 1):
            return
        self._metrics.refused.labels("queue").inc()
        detail = f"{self._inside} requests are running, which is the maximum"
        if self._inside < self._limit:
            detail = f"{self._inside} of {self._limit} slots are taken, the rest is for other keys"
        # By Little's law, slots free up within the mean time that a request holds one.
        raise retry_later("queue-full", detail, self._seconds)

    @contextmanager
    def admit(self, key: str) -> Generator[Slot]:
        """Hold a slot during the block. Raises as `check`."""
        self.check(key)
        self._quota.take(key, 1)
        self.pending_pictures += 1
        slot, start = Slot(self), asyncio.get_running_loop().time()
        self._metrics.inside.set(self._inside)
        try:
            yield slot
        finally:
            slot.no_more_pictures()
            self._quota.release(key, 1)
            self._metrics.inside.set(self._inside)
            spent = asyncio.get_running_loop().time() - start
            self._seconds += 0.1 * (spent - self._seconds)


async def within_deadline(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Run `work`; cancel it at the deadline or when the client disconnects.

    Raises:
        Problem: 504, or 499, which nobody reads.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            gone.result()  # may raise a Problem: data after the body exceeds the limit
            raise Problem(CLIENT_GONE, "client-gone", "the client left")
        raise Problem(504, "deadline", "the request exceeded its deadline")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
