"""Read a request's body: JSON, or a multipart upload of a picture and JSON."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from adde.serving.http.problems import CLIENT_GONE, Problem
from adde.serving.http.request_models import CompleteBody, DrawBody, EmbedBody, SearchBody

T = TypeVar("T")
Body = TypeVar("Body", CompleteBody, DrawBody, EmbedBody, SearchBody)

JSON, FORM = "application/json", "multipart/form-data"

MOST_COMMAS = 100_000
"""Maximum commas in JSON, more than its mappings and lists may need; base64 has none. Counting is
instant; parsing a body of commas takes a second.
"""


class Upload:
    """A picture file's content, handed out once, so that waiting requests keep no second copy."""

    def __init__(self, content: bytes) -> None:
        self._content = [content]

    def take(self) -> bytes:
        """Return the content; works once."""
        return self._content.pop()


class _InMemory(MultiPartParser):
    # The middleware limits the whole body, and pictures must not be written to disk.
    spool_max_size = 2**40


async def read(request: Request, kind: type[Body], seconds: float) -> tuple[Body, Upload | None]:
    """Read the body, without its `image`, and the picture if there is one.

    Raises:
        Problem: the body has another media type, takes longer than `seconds`, or does not match
            `kind`.
    """
    media, options = parse_options_header(request.headers.get("content-type"))
    if media == JSON.encode():
        content = await _in_time(_whole(request), seconds)
        return _without_image(_parse(kind, content))
    if media == FORM.encode():
        # Starlette decodes fields with any of Python's codecs, some of which take minutes.
        charset = options.get(b"charset", b"utf-8")
        if charset.lower() not in (b"utf-8", b"utf8"):
            raise Problem(415, "media-type", f"expected {FORM} in utf-8, found another charset")
        return await _from_form(await _in_time(_form(request), seconds), kind)
    found = media.decode("latin-1") or "none"
    raise Problem(415, "media-type", f"expected a body of {JSON} or {FORM}, found {found}")


async def _in_time(body: Awaitable[T], seconds: float) -> T:
    try:
        return await asyncio.wait_for(body, seconds)
    except asyncio.TimeoutError:
        message = "the body took too long to arrive; send it faster"
        raise Problem(408, "slow-body", message) from None
    except ClientDisconnect:
        raise Problem(CLIENT_GONE, "client-gone", "the client left") from None


async def _whole(request: Request) -> bytes:
    # `request.body()` would keep the body until the response.
    return b"".join([chunk async for chunk in request.stream()])


async def _form(request: Request) -> FormData:
    parser = _InMemory(
        request.headers, request.stream(), max_files=1, max_fields=1, max_part_size=1 << 20
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        # Starlette raises KeyError if the boundary is missing.
        reason = getattr(error, "message", None) or "a missing boundary or malformed parts"
        raise Problem(400, "form", f"expected {FORM}, found: {reason}") from None


async def _from_form(form: FormData, kind: type[Body]) -> tuple[Body, Upload | None]:
    try:
        image, text = form.get("image"), form.get("request", "{}")
        unknown = set(form) - {"image", "request"}
        if unknown or not isinstance(text, str) or isinstance(image, str):
            message = "expected the file `image` and optionally the text `request` in JSON"
            raise Problem(422, "form", message)
        body, within = _without_image(_parse(kind, text))
        if within is not None and image is not None:
            raise Problem(422, "form", "image: expected one, found a file and one in `request`")
        return body, within if image is None else Upload(await image.read())
    finally:
        await form.close()


def _parse(kind: type[Body], content: bytes | str) -> Body:
    commas = content.count(b",") if isinstance(content, bytes) else content.count(",")
    if commas > MOST_COMMAS:
        raise Problem(422, "invalid", f"expected at most {MOST_COMMAS:,} commas, found {commas:,}")
    return kind.model_validate_json(content)


def _without_image(body: Body) -> tuple[Body, Upload | None]:
    text, body.image = body.image, None
    if text is None:
        return body, None
    head, comma, rest = text.partition(",")  # base64 has none
    if comma and head.startswith("data:") and head.endswith(";base64"):
        text = rest  # from FileReader or canvas
    try:
        # Some programs break base64 into lines.
        return body, Upload(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        message = f"image: expected a picture file in base64, or a data URL of it, found: {error}"
        raise Problem(422, "invalid", message) from None
