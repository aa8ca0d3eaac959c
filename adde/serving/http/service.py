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
from adde.serving.http.backend import Opened, Pair, Source
from adde.serving.http.bodies import EmbedBody, SearchBody, result_json, seen_json
from adde.serving.http.cards import Cards
from adde.serving.http.metrics import Metrics
from adde.serving.http.problems import Problem
from adde.serving.http.requests.admission import Gate, Place, Shares, in_time
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.requests.hosts import Hosts
from adde.serving.http.requests.keys import Buckets, Keys
from adde.serving.http.requests.request_body import Body, Upload, read
from adde.serving.http.settings import Settings
from adde.serving.search import Request as Search
from adde.serving.search import Start

T = TypeVar("T")

log = logging.getLogger(__name__)


class Service:
    """Answers requests with the current pair; used from one event loop after `start`.

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
        source: Source,
        opened: Opened,
        decoders: Decoders,
        settings: Settings,
        keys: Keys | None = None,
        hosts: Hosts | None = None,
        cards: Cards | None = None,
    ) -> None:
        self.settings, self.keys, self.hosts = settings, keys, hosts
        self._cards = cards or Cards()
        self._cards_of(opened)  # told before it serves
        self.metrics = Metrics()
        self.buckets = Buckets(settings.rate, settings.burst)
        self.draining = False
        self.swap: Literal["none", "done", "failed", "running"] = "none"
        self.pair: Pair
        self._source, self._opened, self._decoders = source, opened, decoders
        self.bodies = Shares(settings.queue * settings.max_bytes, self._several_keys)
        """Bytes of bodies that requests have sent."""
        self._gate = Gate(settings.queue, self.metrics, self._several_keys)
        self._swapping = asyncio.Lock()

    async def start(self) -> None:
        """Begins to serve."""
        self.pair = self._pair(self._opened)

    async def close(self) -> None:
        """Ends after the requests at hand."""
        async with self._swapping:
            await self.pair.close()

    async def reload(self) -> None:
        """Opens the source again and swaps it in; a source that is no good changes nothing."""
        async with self._swapping:
            if self.draining:
                return  # it would serve nobody
            self.swap = "running"
            try:
                pair = self._pair(await asyncio.to_thread(self._source.open))
            except Exception as error:
                self.swap = "failed"
                self.metrics.swaps.labels("failed").inc()
                # What is no UserError is unforeseen, and its trace is wanted.
                trace = None if isinstance(error, UserError) else error
                log.error("swap failed, bundle stays: %s", error, exc_info=trace)
                return
            old, self.pair = self.pair, pair
            self.swap = "done"
            self.metrics.swaps.labels("done").inc()
            log.info("swapped", extra={"was": old.bundle, "bundle": self.pair.bundle})
            await old.close()

    async def embed(self, request: Request) -> bytes:
        """Answers /v1/embed."""
        _, upload = await self._read(request, EmbedBody)
        if upload is None:
            raise Problem(422, "invalid", "image: expected one, found none")
        with self._gate.place(request.state.key) as place:
            return await in_time(request, self._embed(place, upload), self._left(request))

    async def search(self, request: Request) -> bytes:
        """Answers /v1/search."""
        body, upload = await self._read(request, SearchBody)
        with self._gate.place(request.state.key) as place:
            return await in_time(request, self._search(place, body, upload), self._left(request))

    async def look(self, request: Request, work: Callable[[Pair], Awaitable[T]]) -> T:
        """What `work` finds in the gallery: inside and in time as a search is."""

        async def looked() -> T:
            pair = self.pair
            with pair.in_use():
                return await work(pair)

        with self._gate.place(request.state.key) as place:
            place.settle()
            return await in_time(request, looked(), self._left(request))

    async def _read(self, request: Request, kind: type[Body]) -> tuple[Body, Upload | None]:
        """The body, which has a place only when it is here: else slow ones would fill the house."""
        self._gate.check(request.state.key)
        with self.metrics.stage("read"):
            return await read(request, kind, self._left(request))

    async def _embed(self, place: Place, upload: Upload) -> bytes:
        pair = self.pair
        with pair.in_use():
            start = await self._start_of(pair, place, upload)
            return await pair.in_thread(_embedded, pair.bundle, start)

    async def _search(self, place: Place, body: SearchBody, upload: Upload | None) -> bytes:
        search = body.request(None if upload is None else b"")  # embedded on its own
        pair = self.pair
        with pair.in_use():
            pair.searcher.check(search)
            if upload is None:
                place.settle()
                start = await pair.gallery.ask(pair.searcher.start_of, search.item)
            else:
                start = await self._start_of(pair, place, upload)
            with self.metrics.stage("search"):
                return await pair.gallery.ask(_found, pair, search, start)

    async def _start_of(self, pair: Pair, place: Place, upload: Upload) -> Start:
        preprocess = pair.searcher.bundle.preprocess
        with self.metrics.stage("decode"):
            loop = asyncio.get_running_loop()
            load, threads = self._decoders.load, self._decoders.threads
            picture = await loop.run_in_executor(threads, load, upload.take(), preprocess)
        place.settle()
        with self.metrics.stage("batch"):
            return await pair.batcher.embed(picture)

    def _pair(self, opened: Opened) -> Pair:
        cards = self._cards_of(opened)
        return Pair(opened, cards, self.settings, self._gate, self.metrics)

    def _cards_of(self, opened: Opened) -> Cards:
        return self._cards.of(opened.searcher.schema, opened.facets, opened.items)

    def _several_keys(self) -> bool:
        return self.keys is not None and len(self.keys) > 1

    def _left(self, request: Request) -> float:
        """Seconds until a request's deadline."""
        passed = time.monotonic() - request.state.started
        return max(0.0, self.settings.deadline_seconds - passed)


def _embedded(bundle: str, start: Start) -> bytes:
    if not np.isfinite(start.embedding).all():  # orjson would write null
        raise ValueError("expected an embedding of finite numbers")
    # Thousands of numbers: json takes as long as decoding a picture, and holds up all threads.
    # Each is the shortest that reads back as the same float32.
    content = {"bundle": bundle, "embedding": start.embedding, "seen": seen_json(start.seen)}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _found(pair: Pair, search: Search, start: Start) -> bytes:
    result = pair.searcher.answer(search, start)
    content = result_json(pair.searcher.gallery.header, pair.bundle, result)
    return json.dumps(content, allow_nan=False).encode()
