"""How many requests are inside, and how long each may take."""

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
    """Places, or bytes, of which all keys together may have so many.

    Where there are several keys, none may have more than it leaves free: one alone so has half, two
    have a third each, and there is always something for another.

    Args:
        limit: of all together.
        several: whether there are several keys.
    """

    def __init__(self, limit: int, several: Callable[[], bool]) -> None:
        self._limit, self._several = limit, several
        self._held: Counter[str] = Counter()
        self.taken = 0

    def fits(self, key: str, amount: int) -> bool:
        """Whether a key may take so much more."""
        own = self._held[key] if self._several() else 0
        return own + amount <= self._limit - self.taken

    def take(self, key: str, amount: int) -> None:
        """Takes it, whether or not it may."""
        self._held[key] += amount
        self.taken += amount

    def release(self, key: str, amount: int) -> None:
        """Gives back what was taken."""
        self.take(key, -amount)
        if not self._held[key]:
            del self._held[key]


class Slot:
    """A request's place inside."""

    def __init__(self, admission: "Admission") -> None:
        self._admission, self._pending = admission, True

    def no_more_pictures(self) -> None:
        """Says that this request brings no further picture; saying so again changes nothing."""
        if self._pending:
            self._pending = False
            self._admission.pending_pictures -= 1
            if not self._admission.pending_pictures:
                for notify in self._admission.listeners:
                    notify()


class Admission:
    """Lets so many requests in at a time, and sends the others away at once."""

    def __init__(self, limit: int, metrics: Metrics, several: Callable[[], bool]) -> None:
        self._limit, self._metrics = limit, metrics
        self._quota = FairQuota(limit, several)
        self._seconds = 0.0
        self.pending_pictures = 0
        """Requests inside that may yet bring a picture."""
        self.listeners: set[Callable[[], None]] = set()
        """Told when no picture is pending any more."""

    @property
    def _inside(self) -> int:
        """Places taken."""
        return self._quota.taken

    def check(self, key: str) -> None:
        """Raises Problem 429 where there is no place: nobody need send a body first."""
        if self._quota.fits(key, 1):
            return
        self._metrics.refused.labels("queue").inc()
        detail = f"{self._inside} requests are inside, which is as many as may be"
        if self._inside < self._limit:
            detail = f"{self._inside} of {self._limit} places are taken, the rest is for other keys"
        # A full house is empty after the time that one spends in it (Little's law).
        raise retry_later("queue-full", detail, self._seconds)

    @contextmanager
    def admit(self, key: str) -> Generator[Slot]:
        """A place for the body. Raises as `check`."""
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
    """The result of `work`, which is cancelled when its time is over or its client is gone.

    Raises:
        Problem: 504, or 499 which nobody reads.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            gone.result()  # or a Problem: what is sent on after the body is too large
            raise Problem(CLIENT_GONE, "client-gone", "the client left")
        raise Problem(504, "deadline", "the answer took longer than a request may")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
