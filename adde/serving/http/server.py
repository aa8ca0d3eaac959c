"""The server process: socket, signals, shutdown."""

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
"""Seconds before an idle connection is closed: more than the usual 60 of load balancers, which must
close first.
"""

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
    """Serve until SIGTERM or SIGINT; return when the last request is answered.

    Args:
        source: bundle and gallery; SIGHUP opens them again.
        settings: limits.
        host: address to bind to.
        port: 0 uses any free port, which is logged.
        key_file: file of API keys; default: ADDE_API_KEYS.
        require_key: None: required off loopback, or if there are keys.
        allow_host: see `AllowedHosts`.
        cards: how the page shows items.

    Raises:
        UserError: the address cannot be bound, required keys are missing, a host name is malformed,
            or the backend cannot be opened.
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
    """Return the API keys, or None if none are needed. Raises UserError if they are missing."""
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
            "checks keys, --no-require-key"
        )
    return None


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket; uvicorn listens on it later. Raises UserError."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        # With an explicit protocol asyncio sets TCP_NODELAY; without it every response in two parts
        # waits 40 ms for the client's acknowledgement.
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
    """uvicorn's server, which keeps accepting for a while after SIGTERM.

    Load balancers need time to see that /readyz returns 503; requests sent meanwhile are answered.
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
        """Start as uvicorn does, and handle SIGHUP."""
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
        """Handle SIGTERM and SIGINT. uvicorn would raise them again at the end."""
        if self._loop is None or self._service.draining:
            self.should_exit = True
        else:
            self._service.draining = True
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Shut down after the time that load balancers need to see /readyz return 503."""
        seconds = self._service.settings.drain_seconds
        log.info("draining", extra={"seconds": seconds})
        asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        self.should_exit = True

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._service.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
