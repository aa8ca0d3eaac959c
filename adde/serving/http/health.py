"""Monitor a gallery's health, so that requests fail fast while it is unavailable."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController  # pyright: ignore[reportMissingTypeStubs]

from adde.errors import UserError
from adde.serving.gallery.base import Gallery, UnavailableError

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Seconds between health checks."""

log = logging.getLogger(__name__)


class MonitoredGallery:
    """Runs calls of one gallery in threads and polls its health, from an event loop.

    While the gallery is unavailable (its service is down, its folder unreadable), `call` fails at
    once, so that requests neither wait nor hold threads. Service resumes when a health check
    succeeds.

    Args:
        items: its current number of items.
        threads: concurrent calls.
        cores: cores that one call may use.
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
        """Whether the gallery is unavailable."""
        return self._unavailable is not None

    @property
    def items(self) -> int:
        """Number of items at the last health check."""
        return self._items

    async def call(self, work: Callable[..., T], *arguments: object) -> T:
        """Run a call of the gallery in a thread. Raises UnavailableError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, work, *arguments)

    def _call(self, work: Callable[..., T], *arguments: object) -> T:
        if self._unavailable is not None:  # it may have failed while this call waited for a thread
            raise UnavailableError(self._unavailable)
        try:
            return work(*arguments)
        except UnavailableError as error:
            self._mark_unavailable(error)  # until the next health check succeeds
            raise

    def _mark_unavailable(self, error: UserError) -> None:
        if self._unavailable is None:
            log.error("gallery unavailable: %s", error)
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
                    log.info("gallery available again", extra={"items": self._items})
                self._unavailable = None

    async def close(self) -> None:
        """Wait for running calls and close the gallery."""
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
    controller: Any = ThreadpoolController()
    for library in controller.lib_controllers:
        library.set_num_threads(min(library.num_threads, threads))
