"""The middleware: checks before every route, and headers, log and metrics of every response."""

import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import get_route_path  # pyright: ignore[reportPrivateImportUsage]
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adde.serving.http.pages import CSP
from adde.serving.http.problems import Problem, from_exception, retry_later, to_response
from adde.serving.http.service import Service

log = logging.getLogger(__name__)

OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")
OPEN_FOLDERS = ("/page/", "/docs/files/")
"""Paths that need no key: the page, the API documentation, probes."""

PROBES = ("/healthz", "/readyz", "/metrics")
"""Not logged on success, because they come every few seconds."""

HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def needs_key(path: str) -> bool:
    """Whether a path needs a key: all but the known open ones."""
    return path not in OPEN and not path.startswith(OPEN_FOLDERS)


class RequestMiddleware:
    """The outermost ASGI layer: hosts, keys, rate limits, body sizes, headers, log, metrics.

    It never sends CORS headers, so pages of other origins cannot read responses.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._service, scope).run(self._app, receive, send)


class _Exchange:
    """One request and its response."""

    def __init__(self, service: Service, scope: Scope) -> None:
        self._service, self._scope = service, scope
        self._headers = Headers(scope=scope)
        self._id, self._started = str(uuid.uuid4()), time.monotonic()
        self._key: str | None = None
        self._read = self._sent = self._status = 0
        scope.setdefault("state", {}).update(request_id=self._id, started=self._started, key="")

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        async def limited() -> Message:
            message = await receive()
            self._count_body(len(message.get("body", b"")))
            return message

        async def send_with_headers(message: Message) -> None:
            self._add_headers(message)
            await send(message)

        try:
            self._check_request()
            await app(self._scope, limited, send_with_headers)
        except Problem as problem:  # raised here, before any route
            await to_response(problem, self._id)(self._scope, receive, send_with_headers)
        except Exception as error:  # the app re-raises what it has answered
            log.error("failed", exc_info=error, extra={"request": self._id})
            if not self._status:
                await to_response(from_exception(error), self._id)(
                    self._scope, receive, send_with_headers
                )
        finally:
            self._service.bodies.release(self._key or "", self._read)
            self._report()

    def _check_request(self) -> None:
        # The path as routes see it, without a proxy's or parent app's prefix.
        service, path = self._service, get_route_path(self._scope) or "/"
        self._check_host(path in PROBES)
        if service.keys is not None and needs_key(path):
            self._key = self._scope["state"]["key"] = self._authenticate()
            wait = 0.0 if path in PROBES else service.rate_limiter.take(self._key)
            if wait:
                service.metrics.refused.labels("rate").inc()
                detail = f"expected at most {service.settings.rate:g} requests per second per key"
                raise retry_later("rate", detail, wait)
        length = self._headers.get("content-length", "0")
        self._check_size(int(length) if length.isascii() and length.isdigit() else 0)

    def _check_host(self, probe: bool) -> None:
        hosts, found = self._service.hosts, self._headers.getlist("host")
        if hosts is None or hosts.allows(found, probe):
            return
        self._service.metrics.refused.labels("host").inc()
        names = "localhost, 127.0.0.1 or a name that --allow-host gives"
        raise Problem(421, "host", f"Host: expected {names}, found {', '.join(found)[:100]!r}")

    def _authenticate(self) -> str:
        scheme, _, presented = self._headers.get("authorization", "").partition(" ")
        keys = self._service.keys
        name = keys.name_of(presented.strip()) if keys and scheme.lower() == "bearer" else None
        if name is None:
            self._service.metrics.refused.labels("key").inc()
            detail = "expected the header `Authorization: Bearer KEY` with a key of this server"
            raise Problem(401, "key", detail, {"WWW-Authenticate": "Bearer"})
        return name

    def _count_body(self, count: int) -> None:
        """Count what has been read of the body and enforce limits."""
        key, bodies = self._key or "", self._service.bodies
        fits = bodies.fits(key, count)
        bodies.take(key, count)
        self._read += count
        self._check_size(self._read)
        if not fits:
            self._service.metrics.refused.labels("queue").inc()
            detail = "the memory for request bodies is used up by other requests"
            raise retry_later("queue-full", detail, 1)

    def _check_size(self, size: int) -> None:
        limit = self._service.settings.max_bytes
        if size > limit:
            self._service.metrics.refused.labels("size").inc()
            raise Problem(413, "too-large", f"expected a body of at most {limit:,} bytes")

    def _add_headers(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            # The page's files have an ETag and are revalidated.
            headers.setdefault("cache-control", "no-cache" if "etag" in headers else "no-store")
            headers["x-request-id"] = self._id
            if self._service.draining:
                headers["connection"] = "close"  # so that the client reconnects to another server
        self._sent += len(message.get("body", b""))

    def _report(self) -> None:
        seconds = time.monotonic() - self._started
        # The route template, because clients choose paths freely.
        route = getattr(self._scope.get("route"), "path", "none")
        method = self._scope["method"] if route != "none" else "any"
        self._service.metrics.requests.labels(method, route, self._status).observe(seconds)
        if route in PROBES and self._status < 400:
            return
        fields = {
            "request": self._id,
            "method": method,
            "route": route,
            "status": self._status,
            "ms": round(seconds * 1000, 2),
            "bytes_in": self._read,
            "bytes_out": self._sent,
            "key": self._key,
            "client": (self._scope.get("client") or ("",))[0],
        }
        log.info("request", extra=fields)
