"""Read a file at an address through fsspec: http(s) as one stream, buckets in blocks."""

import re
from collections.abc import Generator
from http import HTTPStatus
from importlib import import_module
from typing import Any, cast
from urllib.parse import urlsplit

from adde.errors import UserError

HTTP = ("http", "https")
OBJECTS = ("s3", "gs")
BLOCK = 8 << 20
"""Bytes requested at a time from s3 and gs, and read at most at a time from http."""


def shown(address: str) -> str:
    """Return an address without user, password and query, for messages."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


Pieces = Generator[tuple[int, bytes], None, None]
"""Yields (position in the file, bytes at this position) in order."""


def read_from(address: str, start: int, size: int | None, timeout: float, left: float) -> Pieces:
    """Yield the file from byte `start`, or from byte 0 if the server does not support ranges.

    Args:
        address: Address of the file.
        start: First byte wanted.
        size: Size of the file, if known.
        timeout: Seconds without an answer or a byte after which TimeoutError is raised.
        left: Seconds after which TimeoutError is raised in any case (http only).

    Raises:
        UserError: A package is missing. Other exceptions of the file system pass through.
    """
    scheme = urlsplit(address).scheme
    try:
        fsspec: Any = import_module("fsspec")  # imported here, because serving does not need it
        if scheme in HTTP:
            # Respect proxies and ~/.netrc.
            system = fsspec.filesystem(scheme, client_kwargs={"trust_env": True})
            opened = _http(system, address, start, timeout, left)
        else:
            opened = _objects(fsspec.filesystem(scheme), address, start, size, timeout)
    except ImportError as error:
        extra = "train" if scheme in HTTP else "remote"
        raise UserError(
            f"{shown(address)}: expected the packages that read {scheme}, found: {error}; "
            f"pip install 'adde[{extra}]'"
        ) from None
    yield from opened


def _http(system: Any, address: str, start: int, timeout: float, left: float) -> Pieces:
    import aiohttp

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    limits = aiohttp.ClientTimeout(total=left, sock_connect=timeout, sock_read=timeout)
    # block_size=0 streams a single answer; a size saves the request for it.
    options = {"block_size": 0, "size": 1, "headers": headers, "timeout": limits}
    with system.open(address, "rb", **options) as stream:
        if stream.r.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0  # Range was ignored, the whole file comes
        elif not re.match(rf"bytes {start}-", stream.r.headers.get("Content-Range", "")):
            # The wrong bytes; the sha256 would reveal it only after the whole download.
            raise ConnectionError(f"another range than the one from byte {start}")
        while piece := stream.read(BLOCK):
            yield start, piece
            start += len(piece)


def _objects(system: Any, address: str, start: int, size: int | None, timeout: float) -> Pieces:
    if size is None:
        size = int(system.info(address, timeout=timeout)["size"])
    while start < size:
        end = min(start + BLOCK, size)
        piece = system.cat_file(address, start=start, end=end, timeout=timeout)
        if not piece:
            return
        yield start, piece
        start += len(piece)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status in an error of aiohttp, gcsfs (code) or botocore (response)."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return cast("dict[str, Any]", response).get("ResponseMetadata", {}).get("HTTPStatusCode")
    status: Any = getattr(error, "status", None) or getattr(error, "code", None)
    return int(status) if str(status).isdecimal() else None
