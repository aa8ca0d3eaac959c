"""Whether a gallery can be asked at present; so that not every request finds out."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from adde.errors import UserError
from adde.serving.gallery.base import Gallery, UnavailableError
from adde.serving.onnx.cores import limit_libraries

T = TypeVar("T")

EVERY = 1.0
"""Seconds between looks."""

log = logging.getLogger(__name__)


class Watch:
    """Looks after one gallery from an event loop.

    While it does not answer (its service is away, its folder cannot be read), `ask` refuses at
    once: requests neither wait for it nor hold the threads that others need. It goes on by itself
    when the gallery is back.

    Args:
        items: as it said just now.
        threads: calls of the gallery at a time.
        cores: that one of them may keep busy.
    """

    def __init__(self, gallery: Gallery, items: int, threads: int, cores: int) -> None:
        self._gallery = gallery
        self._threads = ThreadPoolExecutor(threads, "search", limit_libraries, (cores,))
        self._away: str | None = None
        self._items = items
        self._task = asyncio.create_task(self._look())
        self._looking = ThreadPoolExecutor(1, "watch")

    @property
    def away(self) -> bool:
        """The gallery does not answer."""
        return self._away is not None

    @property
    def items(self) -> int:
        """Number of items, at the last look."""
        return self._items

    async def ask(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs in a thread what asks the gallery. Raises UnavailableError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._asked, work, *arguments)

    def _asked(self, work: Callable[..., T], *arguments: object) -> T:
        if self._away is not None:  # also for those who waited for a thread since it is
            raise UnavailableError(self._away)
        try:
            return work(*arguments)
        except UnavailableError as error:
            self._gone(error)  # until the next look, which may find it there
            raise

    def _gone(self, error: UserError) -> None:
        if self._away is None:
            log.error("gallery away: %s", error)
        self._away = str(error)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(EVERY)
            try:
                self._items = await loop.run_in_executor(self._looking, self._gallery.probe)
            except UserError as error:
                self._gone(error)
            else:
                if self._away is not None:
                    log.info("gallery back", extra={"items": self._items})
                self._away = None

    async def close(self) -> None:
        """Ends after what is asked at present, and lets go of the gallery."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for pool in (self._looking, self._threads):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self._gallery.close)
