"""What goes wrong, as RFC 9457 problem details."""

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
"""After which to come back, where the gallery's service does not answer, or no decoder."""

CLIENT_GONE = 499
"""As nginx has it: nobody reads the answer, and logs and metrics say why there is none."""


class ProblemBody(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:adde:problem:queue-full"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="urn:uuid of the request, as the server's log has it.")


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """An answer that is an error.

    Args:
        status: HTTP status.
        code: what programs tell problems apart by; the end of `type`.
        detail: for a person; names what was expected and what was found.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = dict(headers or {})


def retry_later(code: str, detail: str, seconds: float, status: int = 429) -> Problem:
    """With Retry-After, in whole seconds."""
    return Problem(status, code, detail, {"Retry-After": str(max(1, math.ceil(seconds)))})


def from_validation(errors: list[Any]) -> Problem:
    """What pydantic found, without the values that it found it in."""
    texts = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in errors[:5]]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return Problem(422, "invalid", "; ".join(texts) + more)


def from_exception(error: Exception) -> Problem:
    """The problem that an exception is to the client; nothing of what the server alone may know."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ItemNotFoundError):
        return Problem(404, "no-such-item", str(error))
    if isinstance(error, UnavailableError):
        detail = "the service that the gallery lies in does not answer now; come back"
        return retry_later("gallery-away", detail, AWAY_SECONDS, 503)
    if isinstance(error, NoDecoderError):
        detail = "no picture can be decoded now; come back"
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
    """The answer that a problem is."""
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
    """Makes every exception of a route a problem."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return to_response(from_exception(error), request.state.request_id)

    kinds = (Problem, UserError, ValidationError, RequestValidationError, HTTPException, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, handle)
