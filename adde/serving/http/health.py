"""Whether a gallery can be asked at present; so that not every request finds out."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from adde.errors import UserError
from adde.serving.gallery.base import Gallery, UnavailableError

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Seconds between looks."""

log = logging.getLogger(__name__)


class MonitoredGallery:
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
        self._unavailable: str | None = None
        self._items = items
        self._task = asyncio.create_task(self._poll())
        self._prober = ThreadPoolExecutor(1, "watch")

    @property
    def unavailable(self) -> bool:
        """The gallery does not answer."""
        return self._unavailable is not None

    @property
    def items(self) -> int:
        """Number of items, at the last look."""
        return self._items

    async def call(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs in a thread what asks the gallery. Raises UnavailableError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, work, *arguments)

    def _call(self, work: Callable[..., T], *arguments: object) -> T:
        if self._unavailable is not None:  # also for those who waited for a thread since it is
            raise UnavailableError(self._unavailable)
        try:
            return work(*arguments)
        except UnavailableError as error:
            self._mark_unavailable(error)  # until the next look, which may find it there
            raise

    def _mark_unavailable(self, error: UserError) -> None:
        if self._unavailable is None:
            log.error("gallery away: %s", error)
        self._unavailable = str(error)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                self._items = await loop.run_in_executor(self._prober, self._gallery.probe)
            except UserError as error:
                self._mark_unavailable(error)
            else:
                if self._unavailable is not None:
                    log.info("gallery back", extra={"items": self._items})
                self._unavailable = None

    async def close(self) -> None:
        """Ends after what is asked at present, and lets go of the gallery."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for pool in (self._prober, self._threads):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self._gallery.close)


def limit_libraries(threads: int) -> None:
    """Limit BLAS to at most so many threads, and OpenMP, which faiss uses, in this thread.

    Both default to the machine's cores, whatever a container's quota. OpenMP keeps a limit of its
    own for every thread, so each thread that searches calls this.
    """
    for library in ThreadpoolController().lib_controllers:
        library.set_num_threads(min(library.num_threads, threads))
