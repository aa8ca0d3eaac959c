"""The ASGI app."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from adde.serving.http import pages, problems
from adde.serving.http.requests.middleware import RequestMiddleware, needs_key
from adde.serving.http.routes import router
from adde.serving.http.service import Service


def create_app(service: Service) -> ASGIApp:
    """Create the ASGI app of a service, behind the middleware; its lifespan starts and stops the
    service.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await service.start()
        yield
        await service.close()

    # Redirects to a path with a slash would leave a proxy's prefix.
    app = FastAPI(
        title="ADDE", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False
    )
    app.state.service = service
    app.include_router(router)
    pages.install(app)
    problems.install(app)
    described = _description(app, keyed=service.keys is not None)
    app.openapi = lambda: described
    return RequestMiddleware(app, service)


def _description(app: FastAPI, keyed: bool) -> dict[str, Any]:
    content = get_openapi(
        title="ADDE",
        version="1",
        description="This item, but with these values.",
        routes=app.routes,
        servers=[{"url": "."}],  # relative to this document, so that any prefix works
    )
    schemas = content["components"]["schemas"]
    schemas[problems.ProblemBody.__name__] = problems.ProblemBody.model_json_schema()
    for operations in content["paths"].values():
        for operation in operations.values():
            operation["summary"] = operation.pop("description")
            # Validation errors are problem details here, not FastAPI's format.
            error = operation["responses"].get("422", {}).get("content", {})
            error.pop("application/json", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if keyed:
        content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in content["paths"].items():
            if needs_key(path):
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    return content
