"""The shopper's page at / and the API documentation at /docs, without requests to other hosts."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from adde.serving import picture_location

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FOLDER = Path(__file__).parent / "page"

# Swagger UI uses data URLs for icons and inline styles.
DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Add both pages to the app."""
    # Only Swagger UI's files are used of fastapi-offline.
    swagger = find_spec("fastapi_offline")
    assert swagger is not None and swagger.origin is not None
    app.mount("/page", StaticFiles(directory=FOLDER))
    app.mount("/docs/files", StaticFiles(directory=Path(swagger.origin).parent / "static"))
    app.add_api_route("/", page, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)


async def page(request: Request) -> FileResponse:
    """Return the shopper's page, with a policy that allows pictures from the gallery's URL."""
    pictures = request.app.state.service.backend.searcher.gallery.header.pictures
    origin = picture_location.url_origin(pictures) or ""
    policy = CSP
    for source in ("img-src", "connect-src"):
        policy = policy.replace(f"{source} 'self'", f"{source} 'self' {origin}".rstrip())
    return FileResponse(FOLDER / "index.html", headers={"content-security-policy": policy})


async def docs() -> FileResponse:
    """Return Swagger UI for /openapi.json."""
    return FileResponse(FOLDER / "docs.html", headers={"content-security-policy": DOCS_CSP})
