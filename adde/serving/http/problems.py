"""Errors as RFC 9457 problem details."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from adde.errors import UserError
from adde.serving.gallery.base import ItemNotFoundError, UnavailableError
from adde.serving.http.requests.picture_decoder import (
    BROKEN,
    TOO_LARGE,
    WRONG_FORMAT,
    NoDecoderError,
    PictureError,
)

MEDIA_TYPE = "application/problem+json"
PICTURES = {
    WRONG_FORMAT: (415, "picture-format"),
    TOO_LARGE: (413, "picture-too-large"),
    BROKEN: (422, "picture-broken"),
}
AWAY_SECONDS = 2
"""Retry-After while the gallery or the decoders are unavailable."""

CLIENT_GONE = 499
"""nginx's code for logs and metrics; the client that left does not see it."""


class ProblemBody(BaseModel):
    """Problem details of RFC 9457."""

    type: str = Field(examples=["urn:adde:problem:queue-full"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="urn:uuid of the request, as the server's log has it.")


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """An error response.

    Args:
        status: HTTP status.
        code: identifies the kind of problem; the end of `type`.
        detail: for a person; says what was expected and found.
        headers: extra response headers.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = dict(headers or {})


def retry_later(code: str, detail: str, seconds: float, status: int = 429) -> Problem:
    """Make a problem with Retry-After, rounded up to seconds."""
    return Problem(status, code, detail, {"Retry-After": str(max(1, math.ceil(seconds)))})


def from_validation(errors: list[Any]) -> Problem:
    """Make a problem from pydantic's errors, without the offending values."""
    texts = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in errors[:5]]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return Problem(422, "invalid", "; ".join(texts) + more)


def from_exception(error: Exception) -> Problem:
    """Make the problem for an exception, without internal details."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ItemNotFoundError):
        return Problem(404, "no-such-item", str(error))
    if isinstance(error, UnavailableError):
        detail = "the gallery's service does not answer at present; try again later"
        return retry_later("gallery-away", detail, AWAY_SECONDS, 503)
    if isinstance(error, NoDecoderError):
        detail = "no picture can be decoded at present; try again later"
        return retry_later("no-decoder", detail, AWAY_SECONDS, 503)
    if isinstance(error, PictureError):
        return Problem(*PICTURES[error.kind], str(error))
    if isinstance(error, UserError):
        return Problem(422, "invalid", str(error))
    if isinstance(error, ValidationError):
        return from_validation(error.errors(include_input=False, include_url=False))
    if isinstance(error, RequestValidationError):
        return from_validation([*error.errors()])
    if isinstance(error, HTTPException):
        return Problem(error.status_code, "http", str(error.detail), error.headers)
    return Problem(500, "internal", "the server failed; its log says why under this instance")


def to_response(problem: Problem, request_id: str) -> JSONResponse:
    """Make the response for a problem."""
    try:
        title = HTTPStatus(problem.status).phrase
    except ValueError:
        title = "Client Closed Request"
    body = ProblemBody(
        type=f"urn:adde:problem:{problem.code}",
        title=title,
        status=problem.status,
        detail=problem.detail,
        instance=f"urn:uuid:{request_id}",
    )
    return JSONResponse(body.model_dump(), problem.status, problem.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Handle every exception of a route as a problem."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return to_response(from_exception(error), request.state.request_id)

    kinds = (Problem, UserError, ValidationError, RequestValidationError, HTTPException, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, handle)
