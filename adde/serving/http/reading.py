"""A request's body: JSON, or a multipart upload of a picture beside JSON."""

import asyncio
import base64
import binascii
from typing import TypeVar

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from adde.serving.http.bodies import EmbedBody, SearchBody
from adde.serving.http.problems import CLIENT_GONE, Problem

Body = TypeVar("Body", EmbedBody, SearchBody)

JSON, FORM = "application/json", "multipart/form-data"


class _InMemory(MultiPartParser):
    # The guard bounds the whole body, and no picture is to lie on a disk.
    spool_max_size = 2**40


async def read(request: Request, kind: type[Body], seconds: float) -> tuple[Body, bytes | None]:
    """The body, and its picture's content if it has one.

    Raises:
        Problem: the body is neither kind, is slower than that, or is not as `kind` says.
    """
    try:
        content = await asyncio.wait_for(request.body(), seconds)
    except asyncio.TimeoutError:
        message = "the body took longer than a request may; send it faster"
        raise Problem(408, "slow-body", message) from None
    except ClientDisconnect:
        raise Problem(CLIENT_GONE, "client-gone", "the client left") from None
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == JSON:
        body = kind.model_validate_json(content)
        return body, None if body.image is None else _from_base64(body.image)
    if media == FORM:
        return await _read_form(request, kind)
    message = f"expected a body of {JSON} or {FORM}, found {media or 'none'}"
    raise Problem(415, "media-type", message)


async def _read_form(request: Request, kind: type[Body]) -> tuple[Body, bytes | None]:
    try:
        parser = _InMemory(
            request.headers, request.stream(), max_files=1, max_fields=1, max_part_size=1 << 20
        )
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        # Starlette looks for the boundary with no regard to its not being there.
        reason = getattr(error, "message", None) or "its boundary or its parts are not as it says"
        raise Problem(400, "form", f"expected {FORM}, found: {reason}") from None
    try:
        return await _from_form(form, kind)
    finally:
        await form.close()


async def _from_form(form: FormData, kind: type[Body]) -> tuple[Body, bytes | None]:
    image, text = form.get("image"), form.get("request", "{}")
    unknown = set(form) - {"image", "request"}
    if unknown or not isinstance(text, str) or isinstance(image, str):
        raise Problem(
            422, "form", "expected the file `image` and, if anything, the text `request`, in JSON"
        )
    body = kind.model_validate_json(text)
    if body.image is not None and image is not None:
        raise Problem(422, "form", "image: expected one, found a file and one in `request`")
    if image is not None:
        return body, await image.read()
    return body, None if body.image is None else _from_base64(body.image)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "invalid", f"image: expected base64, found: {error}") from None
