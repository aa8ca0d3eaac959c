"""The endpoints."""

import json
import logging
from importlib.metadata import version
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from adde.serving import picture_location
from adde.serving.gallery.base import UnavailableError
from adde.serving.http import request_models, response_models
from adde.serving.http.backend import Backend
from adde.serving.http.problems import MEDIA_TYPE, Problem, ProblemBody, from_exception
from adde.serving.http.requests.request_body import FORM, JSON
from adde.serving.http.service import Service

SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"RIFF": "image/webp",
}

log = logging.getLogger(__name__)
router = APIRouter()


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe a route's error responses for OpenAPI."""
    schema = {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}
    content = {MEDIA_TYPE: {"schema": schema}}
    texts = {status: {"description": "Problem", "content": content} for status in statuses}
    return cast(dict[int | str, dict[str, Any]], texts)


WORK = (400, 401, 408, 413, 415, 421, 422, 429, 500, 503, 504)
LOOK = (401, 404, 421, 422, 429, 500, 503, 504)


def body_of(kind: type[BaseModel], needs_image: bool) -> dict[str, Any]:
    """Describe a request body for OpenAPI."""
    schema = inlined(kind.model_json_schema())
    form: dict[str, Any] = {
        "type": "object",
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "request": {"type": "string", "contentMediaType": JSON, "contentSchema": schema},
        },
        "required": ["image"] if needs_image else [],
        "additionalProperties": False,
    }
    in_json = {**schema, "required": ["image"]} if needs_image else schema
    content = {JSON: {"schema": in_json}, FORM: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Inline `$defs` of a schema, whose references would point into the whole document."""
    parts = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(one) for one in cast(list[Any], value)]
        if not isinstance(value, dict):
            return value
        found = cast(dict[str, Any], value)
        if "$ref" in found:
            return put(parts[found["$ref"].removeprefix("#/$defs/")])
        return {name: put(one) for name, one in found.items()}

    return put(schema)


def service_of(request: Request) -> Service:
    """Return the app's service."""
    return request.app.state.service


def json_response(content: bytes | dict[str, Any]) -> Response:
    """Make a JSON response."""
    body = content if isinstance(content, bytes) else json.dumps(content, allow_nan=False).encode()
    return Response(body, media_type=JSON)


@router.post(
    "/v1/embed",
    responses={200: {"model": response_models.EmbedResult}, **problems(*WORK)},
    openapi_extra=body_of(request_models.EmbedBody, needs_image=True),
)
async def embed(request: Request) -> Response:
    """Embed a picture."""
    return json_response(await service_of(request).embed(request))


@router.post(
    "/v1/search",
    responses={200: {"model": response_models.SearchResult}, **problems(*WORK, 404)},
    openapi_extra=body_of(request_models.SearchBody, needs_image=False),
)
async def search(request: Request) -> Response:
    """This item, but with these values."""
    return json_response(await service_of(request).search(request))


@router.post(
    "/v1/complete",
    responses={200: {"model": response_models.CompleteResult}, **problems(*WORK, 404)},
    openapi_extra=body_of(request_models.CompleteBody, needs_image=False),
)
async def complete(request: Request) -> Response:
    """Items that go with an outfit."""
    return json_response(await service_of(request).complete(request))


@router.post(
    "/v1/draw",
    response_class=Response,
    responses={
        200: {"model": response_models.DrawResult, "content": {"image/png": {}}},
        **problems(*WORK, 404),
    },
    openapi_extra=body_of(request_models.DrawBody, needs_image=False),
)
async def draw(request: Request) -> Response:
    """How it might look with these values: a PNG, or JSON for those who accept JSON alone."""
    as_json = request.headers.get("accept", "").startswith(JSON)
    content = await service_of(request).draw(request, as_json)
    if as_json:
        return json_response(content)
    return Response(content, media_type="image/png", headers={"x-synthetic": "true"})


@router.get("/v1/schema", responses=problems(401, 421, 429))
async def schema(request: Request) -> response_models.SchemaResult:
    """The attributes and fields that requests may use."""
    service = service_of(request)
    backend = service.backend
    return response_models.SchemaResult(
        bundle=backend.bundle,
        outfits=backend.searcher.outfits,
        draws=backend.searcher.bundle.drawing is not None,
        calibrated=backend.searcher.calibration is not None,
        attributes=[
            response_models.AttributeBody(name=a.name, values=list(a.values), multiple=a.multiple)
            for a in backend.searcher.schema.attributes
        ],
        fields=[
            response_models.FieldBody(name=f.name, values=[*f.values], min=f.low, max=f.high)
            for f in backend.facets
        ],
        items=backend.gallery.items,
        max_bytes=service.settings.max_bytes,
        cards=response_models.CardsBody(**vars(backend.cards)),
    )


@router.get(
    "/v1/items",
    responses={200: {"model": response_models.ItemsResult}, **problems(*LOOK)},
)
async def some_items(
    request: Request,
    count: Annotated[int, Query(ge=1, le=100)] = 12,
    seed: Annotated[
        int, Query(ge=0, lt=2**32, description="Determines which items are drawn.")
    ] = 0,
    offset: Annotated[int, Query(ge=0, le=10_000, description="Items to skip.")] = 0,
    query: Annotated[str, Query(max_length=200, description="Words that items must contain.")] = "",
    filters: Annotated[
        str, Query(max_length=2000, description="Filters as in /v1/search, as JSON.")
    ] = "{}",
) -> Response:
    """Some items to start from."""
    wanted = request_models.FILTERS.validate_json(filters)

    async def found(backend: Backend) -> Response:
        gallery = backend.searcher.gallery
        items = await backend.gallery.call(gallery.browse, query, wanted, count, offset, seed)
        return json_response(
            {"items": [response_models.item_json(gallery.header, i) for i in items]}
        )

    return await service_of(request).query_gallery(request, found)


ItemId = Annotated[str, Path(max_length=1000)]


# Must come before the items route, whose ids may contain slashes.
@router.get(
    "/v1/items/{item_id:path}/picture",
    response_class=Response,
    responses={
        200: {"content": {kind: {} for kind in SIGNATURES.values()}},
        **problems(*LOOK),
    },
)
async def picture(request: Request, item_id: ItemId) -> Response:
    """An item's picture as stored, or a redirect if `--pictures` is a URL."""

    async def read(backend: Backend) -> bytes | str | None:
        gallery = backend.searcher.gallery
        item = await backend.gallery.call(gallery.get, item_id)
        if picture_location.url_origin(pictures := gallery.header.pictures):
            return picture_location.picture_url(pictures or "", item_id)
        return await backend.stored_picture(item)

    content = await service_of(request).query_gallery(request, read)
    headers = {"cache-control": "private, max-age=300"}
    if isinstance(content, str):
        return Response(status_code=307, headers={**headers, "location": content})
    kinds = (kind for start, kind in SIGNATURES.items() if (content or b"").startswith(start))
    media = next(kinds, None)
    if content is None or media is None:
        raise Problem(404, "no-picture", f"the gallery has no picture of item {item_id!r}")
    return Response(content, media_type=media, headers=headers)


@router.get(
    "/v1/items/{item_id:path}",
    responses={200: {"model": response_models.ItemBody}, **problems(*LOOK)},
)
async def item(request: Request, item_id: ItemId) -> Response:
    """An item of the gallery."""

    async def found(backend: Backend) -> Response:
        gallery = backend.searcher.gallery
        item = await backend.gallery.call(gallery.get, item_id)
        return json_response(response_models.item_json(gallery.header, item))

    return await service_of(request).query_gallery(request, found)


@router.get("/healthz", responses=problems(421))
async def healthz(request: Request) -> response_models.Health:
    """Liveness, and what the process runs on."""
    service = service_of(request)
    return response_models.Health(
        status="ok",
        version=version("adde"),
        bundle=service.backend.bundle,
        providers=list(service.backend.providers),
        items=service.backend.gallery.items,
        swap=service.swap,
    )


@router.get("/readyz", responses=problems(421, 503))
async def readyz(request: Request) -> response_models.Ready:
    """Readiness: whether to send requests here."""
    service = service_of(request)
    if service.draining:
        raise Problem(503, "draining", "this server is shutting down; use another")
    if service.backend.gallery.unavailable:
        raise from_exception(UnavailableError("unavailable"))
    return response_models.Ready(ready=True)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problems(401, 421)},
)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
