"""Connections: limits on what a client may send, and for how long, before the app sees a request.

uvicorn limits neither size nor time of a request's head, starts all pipelined requests at once, and
waits forever for the rest of a body it has already answered. No key is needed to exploit that.
"""

import asyncio
import resource
import uuid
from enum import Enum
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from adde.serving.http.metrics import Metrics
from adde.serving.http.problems import Problem, to_response
from adde.serving.http.requests.middleware import HEADERS

HEAD_BYTES = 1 << 16
"""Maximum size of a request's head, and of the framing between two pieces of a chunked body."""

HEAD_TIMEOUT = 10.0
"""Seconds for a head, and for the rest of a body that is already answered."""

LINGER = 1.0
"""Seconds for a rejected client to read the reason."""

WRITE_TIMEOUT = 30.0
"""Seconds without progress after which a client that does not read its response is disconnected."""

SPARE_FILES = 256
"""File descriptors reserved for everything else: decoders, galleries, pipes."""

HEAD_END = b"\r\n\r\n"


class Phase(Enum):
    """The state of a connection: the next thing that it waits for."""

    FRESH = "its first byte"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    WORK = "the app"
    DISCARD = "the rest of a body that is already answered"
    IDLE = "another request"
    REFUSED = "its end"


class Connections:
    """All connections of a server.

    Args:
        most: maximum open connections. A further one closes the one that has waited longest for its
            client.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = _with_files_for(most)
        self._metrics = metrics
        self._waiting: dict[Connection, None] = {}

    def opened(self, connection: "Connection", count: int) -> None:
        """Make room for a new connection, the `count`th."""
        if count > self._most:
            self.count_refused("connections")
            next(iter(self._waiting), connection).end()

    def count_refused(self, why: str) -> None:
        """Count a rejection."""
        self._metrics.refused.labels(why).inc()

    def set_phase(self, connection: "Connection", phase: Phase | None) -> None:
        """Record what a connection waits for; None: it is closed."""
        self._waiting.pop(connection, None)
        if phase not in (None, Phase.WORK):
            self._waiting[connection] = None  # at the end, after those that have waited longer


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with limits."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._phase: Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._part: Phase | None = None  # HEAD or BODY while one is incomplete
        self._fed = 0  # bytes of the head so far, or since the last piece of a body
        self._held = b""  # received while an earlier request is running
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first byte, and make room."""
        super().connection_made(transport)
        self._update_phase()
        self._all.opened(self, len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._held = b""
        self._all.set_phase(self, None)
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; pipelined data waits until the running request is answered."""
        data, self._held, at = self._held + data, b"", 0
        while at < len(data) and not self._is_closing():
            if self.pipeline or (self._at_work() and self._part is not Phase.BODY):
                self._held = data[at:]
                self.flow.pause_reading()
                break
            room = HEAD_BYTES - self._fed
            if not room:
                detail = f"expected a head of at most {HEAD_BYTES:,} bytes"
                self._refuse(Problem(431, "large-head", detail))
                return
            end = data.find(HEAD_END, at, at + room)
            piece = data[at : at + room if end < 0 else end + len(HEAD_END)]
            at += len(piece)
            self._fed += len(piece)
            super().data_received(piece)
        self._update_phase()

    def on_message_begin(self) -> None:
        """Note the start of a head."""
        self._part = Phase.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note the end of a head."""
        self._part, self._fed = Phase.BODY, 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; ignore trailers of a chunked body."""
        if self._part is Phase.HEAD:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._fed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._part, self._fed = None, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the next pipelined request."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self.data_received(b"")

    def send_400_response(self, msg: str) -> None:
        """Reject invalid HTTP."""
        self._refuse(Problem(400, "http", msg))

    def pause_writing(self) -> None:
        """Watch a response whose client does not read."""
        super().pause_writing()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stop watching: the client reads again."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def end(self) -> None:
        """Close the connection; abort it if the client does not read the response."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _at_work(self) -> bool:
        # `cycle` is None before the first request, contrary to its type.
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _is_closing(self) -> bool:
        return self._phase is Phase.REFUSED or self.transport.is_closing()

    def _update_phase(self) -> None:
        """Set the timeout for what the connection now waits for."""
        if self._is_closing():
            return
        if self._at_work():
            self._enter(Phase.BODY if self._part is Phase.BODY else Phase.WORK)
        elif self._part is Phase.BODY:
            self._enter(Phase.DISCARD)
        elif self._part or self._fed:
            self._enter(Phase.HEAD)
        else:
            cycle: Any = self.cycle
            self._enter(Phase.FRESH if cycle is None else Phase.IDLE)

    def _enter(self, phase: Phase) -> None:
        if phase is self._phase:
            return
        self._phase = phase
        self._all.set_phase(self, phase)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # The app has its own timeouts for bodies and work.
        seconds = {Phase.IDLE: self.timeout_keep_alive, Phase.REFUSED: LINGER}
        if phase not in (Phase.BODY, Phase.WORK):
            self._timer = self.loop.call_later(seconds.get(phase, HEAD_TIMEOUT), self._on_timeout)

    def _on_timeout(self) -> None:
        if self._phase is Phase.HEAD:
            detail = f"expected a complete head within {HEAD_TIMEOUT:g} s"
            self._refuse(Problem(408, "slow-head", detail))
        elif self._phase is Phase.REFUSED:
            self.transport.abort()
        else:
            self.end()

    def _refuse(self, problem: Problem) -> None:
        """Send the reason and close, unless a response is being sent."""
        self._all.count_refused("head")
        if self._at_work():
            self.transport.abort()
            return
        said = to_response(problem, str(uuid.uuid4()))
        said.headers.update({**HEADERS, "connection": "close"})
        head = b"".join(b"%b: %b\r\n" % field for field in said.raw_headers)
        self.transport.write(STATUS_LINE[problem.status] + head + b"\r\n" + bytes(said.body))
        # If closed at once, unread input would make the kernel discard the response.
        self._enter(Phase.REFUSED)
        self.flow.pause_reading()
        self.transport.write_eof()

    def _watch_writing(self, left: int) -> None:
        def check() -> None:
            now = self.transport.get_write_buffer_size()
            if now >= left:
                self.transport.abort()
            else:
                self._watch_writing(now)

        self._stall = self.loop.call_later(WRITE_TIMEOUT, check)


def _with_files_for(most: int) -> int:
    """Raise the limit of open files if needed; return the number of connections it permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, soft - SPARE_FILES)
