"""Batch pictures of several requests into one run of the encoder."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from adde.preprocess import Picture
from adde.serving.http.metrics import Metrics
from adde.serving.search import Start

WAIT_SHARE = 0.2
"""The first picture of a batch may wait for this share of the last batch's duration, if longer than
`max_wait`. Otherwise the next batch would start with the few pictures already decoded.
"""


@dataclass
class _Entry:
    picture: Picture
    future: "asyncio.Future[Start]"
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects pictures into batches; all calls come from one event loop.

    A batch starts when the encoder is free and the batch is full, its first picture has waited
    `max_wait` seconds (see also WAIT_SHARE), or no other picture is pending. A lone request
    therefore never waits.

    Args:
        embed: encodes pictures in one run; called in a thread.
        pending_pictures: returns the number of admitted requests that may still bring a picture.
        lanes: concurrent batches.
        max_batch: pictures per batch.
        max_wait: in seconds.
    """

    def __init__(
        self,
        embed: Callable[[Sequence[Picture]], list[Start]],
        pending_pictures: Callable[[], int],
        metrics: Metrics,
        lanes: int,
        max_batch: int,
        max_wait: float,
    ) -> None:
        self._embed, self._pending_pictures, self._metrics = embed, pending_pictures, metrics
        self._max_batch, self._max_wait = max_batch, max_wait
        self._last_seconds = 0.0
        self._waiting: deque[_Entry] = deque()
        self._news = asyncio.Event()
        self._threads = ThreadPoolExecutor(lanes, "encode")
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(lanes)]

    async def embed(self, picture: Picture) -> Start:
        """Embed one picture. If cancelled while waiting, it is left out of its batch."""
        entry = _Entry(picture, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._metrics.waiting.inc()
        self.wake()
        return await entry.future

    def wake(self) -> None:
        """Re-check the waiting batch, because `pending_pictures` has changed."""
        self._news.set()

    async def close(self) -> None:
        """Finish running batches and cancel waiting pictures."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        for entry in self._waiting:
            entry.future.cancel()
        self._metrics.waiting.dec(len(self._waiting))
        await asyncio.to_thread(self._threads.shutdown)

    async def _lane(self) -> None:
        while True:
            if batch := await self._collect():
                await self._run(batch)

    async def _collect(self) -> list[_Entry]:
        while not self._waiting:
            await self._wait(None)
        limit = self._waiting[0].arrived + max(self._max_wait, WAIT_SHARE * self._last_seconds)
        while self._waiting and len(self._waiting) < self._max_batch and self._pending_pictures():
            left = limit - time.monotonic()
            if left <= 0:
                break
            await self._wait(left)
        count = min(self._max_batch, len(self._waiting))
        batch = [self._waiting.popleft() for _ in range(count)]
        self._metrics.waiting.dec(count)
        return [entry for entry in batch if not entry.future.done()]  # the others were cancelled

    async def _wait(self, seconds: float | None) -> None:
        self._news.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)

    async def _run(self, batch: Sequence[_Entry]) -> None:
        loop, pictures = asyncio.get_running_loop(), [entry.picture for entry in batch]
        self._metrics.batches.observe(len(batch))
        began = time.monotonic()
        try:
            with self._metrics.encode.time():
                starts = await loop.run_in_executor(self._threads, self._embed, pictures)
        except Exception as error:
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        self._last_seconds = time.monotonic() - began
        for entry, start in zip(batch, starts):
            if not entry.future.done():
                entry.future.set_result(start)
