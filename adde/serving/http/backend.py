"""The backend of the service: a bundle with its gallery, replaced as a unit by a hot swap."""

import asyncio
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from adde.bundle import Bundle
from adde.errors import UserError
from adde.serving import picture_location
from adde.serving.gallery.base import Item, read_picture
from adde.serving.gallery.facets import Facet
from adde.serving.http.batching import Batcher
from adde.serving.http.cards import Cards
from adde.serving.http.health import MonitoredGallery
from adde.serving.http.metrics import Metrics
from adde.serving.http.problems import Problem
from adde.serving.http.requests.admission import Admission
from adde.serving.http.settings import Settings
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import STREAMS, Session
from adde.serving.search import Searcher

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendConfig:
    """Paths and devices of a backend; opened again at every hot swap."""

    bundle: Path
    gallery: Path
    devices: Sequence[Device] = ("cpu",)
    allow_fallback: bool = False
    threads: int | None = None
    """See `Session`."""
    pictures: str | None = None
    """Location of the pictures, if not where the gallery says; see `adde.serving.picture_location`.
    """

    def open(self) -> "LoadedBackend":
        """Open bundle and gallery and run every batch size once; takes seconds.

        Raises:
            UserError: as `Bundle.read`, `Session` and `Searcher`, or `pictures` is malformed.
        """
        pictures = None if self.pictures is None else picture_location.parse_option(self.pictures)
        # Symbolic links are resolved once, so that moving a link does not change an open backend.
        bundle = Bundle.read(self.bundle.resolve())
        session = Session(bundle, self.devices, self.allow_fallback, self.threads)
        session.warm_up()
        searcher = Searcher(bundle, self.gallery.resolve(), session=session)
        gallery = searcher.gallery
        if pictures is not None:
            gallery.header = replace(gallery.header, pictures=pictures)
        folder = gallery.header.pictures
        if folder and not picture_location.url_origin(folder) and not Path(folder).is_dir():
            log.warning("no pictures: %s: no such folder; give it with --pictures", folder)
        return LoadedBackend(searcher, tuple(gallery.facets()), gallery.probe())


@dataclass(frozen=True)
class LoadedBackend:
    """An opened searcher, and facts about its gallery."""

    searcher: Searcher
    facets: tuple[Facet, ...]
    """Facets of the items when the gallery was opened."""
    items: int
    """Number of items then."""


class Backend:
    """A running backend; created and used in one event loop, see `BackendConfig.open`."""

    def __init__(
        self,
        opened: LoadedBackend,
        cards: Cards,
        settings: Settings,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self.searcher, self.cards = (searcher := opened.searcher), cards
        self.bundle, self.facets = searcher.bundle.hash, opened.facets
        self.providers = searcher.session.providers
        on_cpu = self.providers[0] == "CPUExecutionProvider"
        self.batcher = Batcher(
            searcher.embed,
            lambda: admission.pending_pictures,
            metrics,
            lanes=STREAMS,
            # Concurrent batches on a CPU share its cores, so they share the maximum too.
            max_batch=-(-settings.max_batch // (STREAMS if on_cpu else 1)),
            max_wait=settings.max_wait_ms / 1000,
        )
        admission.listeners.add(self.batcher.wake)
        self._admission = admission
        self._threads = ThreadPoolExecutor(settings.threads, "work")
        # Threads that wait for a remote gallery do not use cores.
        remote = searcher.gallery.header.engine != "embedded"
        threads = settings.max_batch if remote else settings.threads
        self.gallery = MonitoredGallery(searcher.gallery, opened.items, threads, settings.threads)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        metrics.serving.clear()
        metrics.serving.labels(self.bundle, self.providers[0]).set(1)
        metrics.items.set_function(lambda: self.gallery.items)

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Make `close` wait until the block ends."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run blocking work in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    async def stored_picture(self, item: Item) -> bytes | None:
        """Read an item's encoded picture; None if the gallery has none, or only a URL for it."""
        try:
            return await self.in_thread(read_picture, self.searcher.gallery.header, item)
        except UserError as error:
            log.error("cannot read a picture: %s", error)
            detail = f"the picture of item {item.item_id!r} is not available at present"
            raise Problem(503, "picture-missing", detail) from None

    async def close(self) -> None:
        """Wait for the last user, then close batcher, threads and gallery."""
        await self._unused.wait()
        self._admission.listeners.discard(self.batcher.wake)
        await self.batcher.close()
        await asyncio.to_thread(self._threads.shutdown)
        await self.gallery.close()
