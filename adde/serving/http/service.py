"""The one object behind the routes: what is served now, and how."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import numpy as np
import orjson
from fastapi import Request

from adde.errors import UserError
from adde.serving.http.backend import Backend, BackendConfig, LoadedBackend
from adde.serving.http.cards import Cards
from adde.serving.http.metrics import Metrics
from adde.serving.http.problems import Problem
from adde.serving.http.request_models import EmbedBody, SearchBody
from adde.serving.http.requests.admission import Admission, FairQuota, Slot, within_deadline
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.requests.hosts import AllowedHosts
from adde.serving.http.requests.keys import Keys, RateLimiter
from adde.serving.http.requests.request_body import Body, Upload, read
from adde.serving.http.response_models import result_json, seen_json
from adde.serving.http.settings import Settings
from adde.serving.search import Request as Search
from adde.serving.search import Start

T = TypeVar("T")

log = logging.getLogger(__name__)


class Service:
    """Answers requests with the current backend; used from one event loop after `start`.

    Args:
        source: what is opened at the start and again at every swap.
        opened: what `source.open()` gave.
        keys: who may ask; None: everyone.
        hosts: what the server is called; None: anything.
        cards: how the page shows items.

    Raises:
        UserError: the gallery's items have none of what `cards` names.
    """

    def __init__(
        self,
        source: BackendConfig,
        opened: LoadedBackend,
        decoders: Decoders,
        settings: Settings,
        keys: Keys | None = None,
        hosts: AllowedHosts | None = None,
        cards: Cards | None = None,
    ) -> None:
        self.settings, self.keys, self.hosts = settings, keys, hosts
        self._cards = cards or Cards()
        self._cards_of(opened)  # told before it serves
        self.metrics = Metrics()
        self.rate_limiter = RateLimiter(settings.rate, settings.burst)
        self.draining = False
        self.swap: Literal["none", "done", "failed", "running"] = "none"
        self.backend: Backend
        self._config, self._opened, self._decoders = source, opened, decoders
        self.bodies = FairQuota(settings.queue * settings.max_bytes, self._several_keys)
        """Bytes of bodies that requests have sent."""
        self._admission = Admission(settings.queue, self.metrics, self._several_keys)
        self._swapping = asyncio.Lock()

    async def start(self) -> None:
        """Begins to serve."""
        self.backend = self._backend(self._opened)

    async def close(self) -> None:
        """Ends after the requests at hand."""
        async with self._swapping:
            await self.backend.close()

    async def reload(self) -> None:
        """Opens the source again and swaps it in; a source that is no good changes nothing."""
        async with self._swapping:
            if self.draining:
                return  # it would serve nobody
            self.swap = "running"
            try:
                backend = self._backend(await asyncio.to_thread(self._config.open))
            except Exception as error:
                self.swap = "failed"
                self.metrics.swaps.labels("failed").inc()
                # What is no UserError is unforeseen, and its trace is wanted.
                trace = None if isinstance(error, UserError) else error
                log.error("swap failed, bundle stays: %s", error, exc_info=trace)
                return
            old, self.backend = self.backend, backend
            self.swap = "done"
            self.metrics.swaps.labels("done").inc()
            log.info("swapped", extra={"was": old.bundle, "bundle": self.backend.bundle})
            await old.close()

    async def embed(self, request: Request) -> bytes:
        """Answers /v1/embed."""
        _, upload = await self._read(request, EmbedBody)
        if upload is None:
            raise Problem(422, "invalid", "image: expected one, found none")
        with self._admission.admit(request.state.key) as slot:
            return await within_deadline(
                request, self._embed(slot, upload), self._seconds_left(request)
            )

    async def search(self, request: Request) -> bytes:
        """Answers /v1/search."""
        body, upload = await self._read(request, SearchBody)
        with self._admission.admit(request.state.key) as slot:
            return await within_deadline(
                request, self._search(slot, body, upload), self._seconds_left(request)
            )

    async def query_gallery(self, request: Request, work: Callable[[Backend], Awaitable[T]]) -> T:
        """What `work` finds in the gallery: inside and in time as a search is."""

        async def run() -> T:
            backend = self.backend
            with backend.in_use():
                return await work(backend)

        with self._admission.admit(request.state.key) as slot:
            slot.no_more_pictures()
            return await within_deadline(request, run(), self._seconds_left(request))

    async def _read(self, request: Request, kind: type[Body]) -> tuple[Body, Upload | None]:
        """The body, which has a slot only when it is here: else slow ones would fill the house."""
        self._admission.check(request.state.key)
        with self.metrics.stage("read"):
            return await read(request, kind, self._seconds_left(request))

    async def _embed(self, slot: Slot, upload: Upload) -> bytes:
        backend = self.backend
        with backend.in_use():
            start = await self._start_of(backend, slot, upload)
            return await backend.in_thread(_embed_json, backend.bundle, start)

    async def _search(self, slot: Slot, body: SearchBody, upload: Upload | None) -> bytes:
        search = body.request(None if upload is None else b"")  # embedded on its own
        backend = self.backend
        with backend.in_use():
            backend.searcher.check(search)
            if upload is None:
                slot.no_more_pictures()
                start = await backend.gallery.call(backend.searcher.start_of, search.item)
            else:
                start = await self._start_of(backend, slot, upload)
            with self.metrics.stage("search"):
                return await backend.gallery.call(_search_json, backend, search, start)

    async def _start_of(self, backend: Backend, slot: Slot, upload: Upload) -> Start:
        preprocess = backend.searcher.bundle.preprocess
        with self.metrics.stage("decode"):
            loop = asyncio.get_running_loop()
            load, threads = self._decoders.load, self._decoders.threads
            picture = await loop.run_in_executor(threads, load, upload.take(), preprocess)
        slot.no_more_pictures()
        with self.metrics.stage("batch"):
            return await backend.batcher.embed(picture)

    def _backend(self, opened: LoadedBackend) -> Backend:
        cards = self._cards_of(opened)
        return Backend(opened, cards, self.settings, self._admission, self.metrics)

    def _cards_of(self, opened: LoadedBackend) -> Cards:
        return self._cards.of(opened.searcher.schema, opened.facets, opened.items)

    def _several_keys(self) -> bool:
        return self.keys is not None and len(self.keys) > 1

    def _seconds_left(self, request: Request) -> float:
        """Seconds until a request's deadline."""
        passed = time.monotonic() - request.state.started
        return max(0.0, self.settings.deadline_seconds - passed)


def _embed_json(bundle: str, start: Start) -> bytes:
    if not np.isfinite(start.embedding).all():  # orjson would write null
        raise ValueError("expected an embedding of finite numbers")
    # Thousands of numbers: json takes as long as decoding a picture, and holds up all threads.
    # Each is the shortest that reads back as the same float32.
    content = {"bundle": bundle, "embedding": start.embedding, "seen": seen_json(start.seen)}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _search_json(backend: Backend, search: Search, start: Start) -> bytes:
    result = backend.searcher.answer(search, start)
    content = result_json(backend.searcher.gallery.header, backend.bundle, result)
    return json.dumps(content, allow_nan=False).encode()
