"""Bytes of a file behind an address, through fsspec: http(s) as one stream, buckets in blocks."""

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
"""Bytes asked for at a time of s3 and gs, and read at most at a time of http."""


def shown(address: str) -> str:
    """An address without user, password and query, for messages."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


Pieces = Generator[tuple[int, bytes], None, None]
"""(position in the file, bytes from there on), one after another."""


def read_from(address: str, start: int, size: int | None, stall: float, left: float) -> Pieces:
    """The file from byte `start` on; from byte 0 where a server does not know ranges.

    Args:
        address: of the file.
        start: first byte wanted.
        size: of the file, where it is known.
        stall: seconds without an answer or a byte after which a TimeoutError is raised.
        left: seconds after which one is raised whatever came (http alone).

    Raises:
        UserError: a package is missing. Whatever else the file system raises goes through.
    """
    scheme = urlsplit(address).scheme
    try:
        fsspec: Any = import_module("fsspec")  # not at the top: serving does without
        if scheme in HTTP:
            # Proxies and ~/.netrc as other tools of the machine have them.
            system = fsspec.filesystem(scheme, client_kwargs={"trust_env": True})
            opened = _http(system, address, start, stall, left)
        else:
            opened = _objects(fsspec.filesystem(scheme), address, start, size, stall)
    except ImportError as error:
        extra = "train" if scheme in HTTP else "remote"
        raise UserError(
            f"{shown(address)}: expected the packages that read {scheme}, found: {error}; "
            f"pip install 'adde[{extra}]'"
        ) from None
    yield from opened


def _http(system: Any, address: str, start: int, stall: float, left: float) -> Pieces:
    import aiohttp

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = aiohttp.ClientTimeout(total=left, sock_connect=stall, sock_read=stall)
    # block_size=0: one streamed answer; size: spares the question for it.
    options = {"block_size": 0, "size": 1, "headers": headers, "timeout": timeout}
    with system.open(address, "rb", **options) as stream:
        if stream.r.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0  # Range was ignored, the whole file comes
        elif not re.match(rf"bytes {start}-", stream.r.headers.get("Content-Range", "")):
            # Bytes of who knows where; sha256 would tell in the end, after the whole download.
            raise ConnectionError(f"another range than the one from byte {start}")
        while piece := stream.read(BLOCK):
            yield start, piece
            start += len(piece)


def _objects(system: Any, address: str, start: int, size: int | None, stall: float) -> Pieces:
    if size is None:
        size = int(system.info(address, timeout=stall)["size"])
    while start < size:
        end = min(start + BLOCK, size)
        piece = system.cat_file(address, start=start, end=end, timeout=stall)
        if not piece:
            return
        yield start, piece
        start += len(piece)


def status_of(error: Exception) -> int | None:
    """HTTP status in an error of aiohttp (status), gcsfs (code) or botocore (response)."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return cast("dict[str, Any]", response).get("ResponseMetadata", {}).get("HTTPStatusCode")
    status: Any = getattr(error, "status", None) or getattr(error, "code", None)
    return int(status) if str(status).isdecimal() else None
