"""The service behind the routes: the current backend, and how requests use it."""

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
from adde.preprocess import Picture
from adde.serving.drawing import Drawing, check_drawing
from adde.serving.http.backend import Backend, BackendConfig, LoadedBackend
from adde.serving.http.cards import Cards
from adde.serving.http.metrics import Metrics
from adde.serving.http.problems import Problem
from adde.serving.http.request_models import CompleteBody, DrawBody, EmbedBody, SearchBody
from adde.serving.http.requests.admission import Admission, FairQuota, Slot, within_deadline
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.requests.hosts import AllowedHosts
from adde.serving.http.requests.keys import Keys, RateLimiter
from adde.serving.http.requests.request_body import Body, Upload, read
from adde.serving.http.response_models import complete_json, drawing_json, result_json, seen_json
from adde.serving.http.settings import Settings
from adde.serving.outfits import check_outfit
from adde.serving.search import Request as Search
from adde.serving.search import Start

T = TypeVar("T")

log = logging.getLogger(__name__)


class Service:
    """Answers requests with the current backend; used from one event loop after `start`.

    Args:
        source: opened at start and again at every hot swap.
        opened: the result of `source.open()`.
        keys: accepted API keys; None: no key is needed.
        hosts: accepted Host headers; None: any.
        cards: how the page shows items.

    Raises:
        UserError: the gallery's items do not have a field that `cards` names.
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
        self._cards_of(opened)  # fails before serving
        self.metrics = Metrics()
        self.rate_limiter = RateLimiter(settings.rate, settings.burst)
        self.draining = False
        self.swap: Literal["none", "done", "failed", "running"] = "none"
        self.backend: Backend
        self._config, self._opened, self._decoders = source, opened, decoders
        self.bodies = FairQuota(settings.queue * settings.max_bytes, self._several_keys)
        """Bytes of request bodies held in memory."""
        self._admission = Admission(settings.queue, self.metrics, self._several_keys)
        self._swapping = asyncio.Lock()

    async def start(self) -> None:
        """Start serving."""
        self.backend = self._backend(self._opened)

    async def close(self) -> None:
        """Wait for running requests and close the backend."""
        async with self._swapping:
            await self.backend.close()

    async def reload(self) -> None:
        """Open the source again and swap it in; if that fails, the old backend keeps serving."""
        async with self._swapping:
            if self.draining:
                return  # shutting down
            self.swap = "running"
            try:
                backend = self._backend(await asyncio.to_thread(self._config.open))
            except Exception as error:
                self.swap = "failed"
                self.metrics.swaps.labels("failed").inc()
                # Anything but a UserError is unexpected, so log its traceback.
                trace = None if isinstance(error, UserError) else error
                log.error("swap failed, the old bundle keeps serving: %s", error, exc_info=trace)
                return
            old, self.backend = self.backend, backend
            self.swap = "done"
            self.metrics.swaps.labels("done").inc()
            log.info("swapped", extra={"was": old.bundle, "bundle": self.backend.bundle})
            await old.close()

    async def embed(self, request: Request) -> bytes:
        """Answer /v1/embed."""
        _, upload = await self._read(request, EmbedBody)
        if upload is None:
            raise Problem(422, "invalid", "image: expected one, found none")
        with self._admission.admit(request.state.key) as slot:
            return await within_deadline(
                request, self._embed(slot, upload), self._seconds_left(request)
            )

    async def search(self, request: Request) -> bytes:
        """Answer /v1/search."""
        body, upload = await self._read(request, SearchBody)
        with self._admission.admit(request.state.key) as slot:
            return await within_deadline(
                request, self._search(slot, body, upload), self._seconds_left(request)
            )

    async def complete(self, request: Request) -> bytes:
        """Answer /v1/complete."""
        body, upload = await self._read(request, CompleteBody)
        with self._admission.admit(request.state.key) as slot:
            return await within_deadline(
                request, self._complete(slot, body, upload), self._seconds_left(request)
            )

    async def draw(self, request: Request, as_json: bool) -> bytes:
        """Answer /v1/draw, with a PNG or JSON."""
        body, upload = await self._read(request, DrawBody)
        with self._admission.admit(request.state.key) as slot:
            return await within_deadline(
                request, self._draw(slot, body, upload, as_json), self._seconds_left(request)
            )

    async def query_gallery(self, request: Request, work: Callable[[Backend], Awaitable[T]]) -> T:
        """Run `work` on the backend, admitted and within the deadline like a search."""

        async def run() -> T:
            backend = self.backend
            with backend.in_use():
                return await work(backend)

        with self._admission.admit(request.state.key) as slot:
            slot.no_more_pictures()
            return await within_deadline(request, run(), self._seconds_left(request))

    async def _read(self, request: Request, kind: type[Body]) -> tuple[Body, Upload | None]:
        """Read the body before admission, so that slow clients do not hold slots."""
        self._admission.check(request.state.key)
        with self.metrics.stage("read"):
            return await read(request, kind, self._seconds_left(request))

    async def _embed(self, slot: Slot, upload: Upload) -> bytes:
        backend = self.backend
        with backend.in_use():
            start = await self._start_of(backend, slot, upload)
            return await backend.in_thread(_embed_json, backend.bundle, start)

    async def _search(self, slot: Slot, body: SearchBody, upload: Upload | None) -> bytes:
        search = body.request(None if upload is None else b"")  # the picture is embedded separately
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

    async def _complete(self, slot: Slot, body: CompleteBody, upload: Upload | None) -> bytes:
        backend = self.backend
        with backend.in_use():
            check_outfit(backend.searcher.bundle, body.items, int(upload is not None))
            starts: list[Start] = []
            if upload is None:
                slot.no_more_pictures()
            else:
                starts.append(await self._start_of(backend, slot, upload))
            with self.metrics.stage("search"):
                return await backend.gallery.call(_complete_json, backend, body, starts)

    async def _draw(
        self, slot: Slot, body: DrawBody, upload: Upload | None, as_json: bool
    ) -> bytes:
        backend, edits = self.backend, body.made_edits()
        searcher = backend.searcher
        with backend.in_use():
            if (upload is None) == (body.item is None):
                raise UserError("expected one of image and item, found both or neither")
            check_drawing(searcher.bundle, edits)
            if upload is None:
                slot.no_more_pictures()
                start = await backend.gallery.call(searcher.start_of, body.item)
                item = await backend.gallery.call(searcher.gallery.get, body.item)
                content = await backend.stored_picture(item)
                picture = await backend.in_thread(searcher.picture_of, body.item, content)
            else:
                picture = await self._decoded(backend, upload)
                start = await self._embedded(backend, slot, picture)
            with self.metrics.stage("draw"):
                drawing = await backend.in_thread(searcher.drawn, start, picture, edits)
                encode = _drawing_json if as_json else Drawing.png
                return await backend.in_thread(encode, drawing)

    async def _start_of(self, backend: Backend, slot: Slot, upload: Upload) -> Start:
        return await self._embedded(backend, slot, await self._decoded(backend, upload))

    async def _decoded(self, backend: Backend, upload: Upload) -> Picture:
        preprocess = backend.searcher.bundle.preprocess
        with self.metrics.stage("decode"):
            loop = asyncio.get_running_loop()
            load, threads = self._decoders.load, self._decoders.threads
            return await loop.run_in_executor(threads, load, upload.take(), preprocess)

    async def _embedded(self, backend: Backend, slot: Slot, picture: Picture) -> Start:
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
        """Seconds until the request's deadline."""
        passed = time.monotonic() - request.state.started
        return max(0.0, self.settings.deadline_seconds - passed)


def _embed_json(bundle: str, start: Start) -> bytes:
    if not np.isfinite(start.embedding).all():  # orjson would write null
        raise ValueError("expected an embedding of finite numbers")
    # orjson, because json takes as long as decoding a picture and holds the GIL. Each number is the
    # shortest that parses to the same float32.
    content = {"bundle": bundle, "embedding": start.embedding, "seen": seen_json(start.seen)}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def _complete_json(backend: Backend, body: CompleteBody, starts: list[Start]) -> bytes:
    searcher = backend.searcher
    found = searcher.completed(body.items, starts, body.category, body.k, body.filters)
    content = complete_json(searcher.gallery.header, backend.bundle, found)
    return json.dumps(content, allow_nan=False).encode()


def _drawing_json(drawing: Drawing) -> bytes:
    return json.dumps(drawing_json(drawing), allow_nan=False).encode()


def _search_json(backend: Backend, search: Search, start: Start) -> bytes:
    result = backend.searcher.answer(search, start)
    content = result_json(backend.searcher.gallery.header, backend.bundle, result)
    return json.dumps(content, allow_nan=False).encode()
