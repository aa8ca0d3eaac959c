"""A process that serves: its socket, its signals, its end."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from adde.errors import UserError
from adde.serving.http import logs
from adde.serving.http.app import create_app
from adde.serving.http.backend import BackendConfig
from adde.serving.http.cards import Cards
from adde.serving.http.requests.connections import Connection, Connections
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.requests.hosts import AllowedHosts, is_loopback
from adde.serving.http.requests.keys import VARIABLE, Keys
from adde.serving.http.service import Service
from adde.serving.http.settings import Settings

KEEP_ALIVE = 75
"""Seconds that an idle connection stays: longer than the 60 of usual load balancers, as the side
that closes first must be theirs."""

BACKLOG = 2048

log = logging.getLogger(__name__)


def serve(
    source: BackendConfig,
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    require_key: bool | None = None,
    allow_host: Sequence[str] = (),
    cards: Cards | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, and returns when the last request is answered.

    Args:
        source: bundle and gallery; SIGHUP opens them again.
        settings: limits.
        host: address to bind to.
        port: 0 takes any that is free; the log says which.
        key_file: API keys; else those of the environment's ADDE_API_KEYS.
        require_key: None: where there are keys, and wherever `host` is not loopback.
        allow_host: see `AllowedHosts`.
        cards: how the page shows items.

    Raises:
        UserError: the address is taken, keys are required and missing, a name is none, or the
            source is no good.
    """
    logs.install()
    keys = find_keys(host, key_file, require_key)
    hosts = AllowedHosts(host, allow_host)
    listener = listen(host, port)
    decoders = Decoders(settings.decoders, settings.decode_seconds, settings.max_pixels)
    try:
        service = Service(source, source.open(), decoders, settings, keys, hosts, cards)
        Server(service).run(sockets=[listener])
    finally:
        decoders.close()
        listener.close()


def find_keys(host: str, path: Path | None, require: bool | None) -> Keys | None:
    """Who may ask; None: everyone. Raises UserError where keys are required and there are none."""
    text = os.environ.get(VARIABLE, "")
    keys = Keys(path, text)
    if require is False:
        return None
    if len(keys):
        return keys
    if require or not is_loopback(host):
        raise UserError(
            f"{host}: expected API keys, found none; give --key-file with lines `name: key`, or "
            f"{VARIABLE} in the environment; or bind to 127.0.0.1; or, where something in front "
            "asks for keys, --no-require-key"
        )
    return None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; it listens once the app is up. Raises UserError."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        # The protocol is named: asyncio sets TCP_NODELAY only on connections of such a socket,
        # and without it every answer in two parts waits 40 ms for the client's acknowledgement.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:  # OverflowError: no such port
        if listener is not None:
            listener.close()
        raise UserError(f"--host {host} --port {port}: cannot be bound: {error}") from None
    return listener


class Server(uvicorn.Server):
    """uvicorn, which at SIGTERM goes on for a while before it closes its listener.

    Balancers need a moment to see that /readyz says 503; whoever they send meanwhile is answered.
    A second signal ends the wait.
    """

    def __init__(self, service: Service) -> None:
        limit = service.settings.deadline_seconds
        connections = Connections(service.settings.connections, service.metrics)
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=cast(Any, partial(Connection, connections)),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(limit) + 2,
            )
        )
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """uvicorn's, and SIGHUP."""
        await super().startup(list(sockets or ()))
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGTERM) == self.handle_exit:
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            backend = self._service.backend
            about = {"bundle": backend.bundle, "items": backend.gallery.items}
            about |= {"providers": backend.providers, "keys": self._service.keys is not None}
            log.info("ready", extra={"address": f"http://{shown}:{port}", **about})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes SIGTERM and SIGINT. uvicorn's would raise them again when all is done."""
        if self._loop is None or self._service.draining:
            self.should_exit = True
        else:
            self._service.draining = True
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Ends after the time that balancers have to see that /readyz says 503."""
        seconds = self._service.settings.drain_seconds
        log.info("draining", extra={"seconds": seconds})
        asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self.should_exit = True

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._service.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
