"""The page at /docs: Swagger UI for the service's /openapi.json. Every file is served from here and works offline.

The `swagger-ui` files come unchanged from the npm package swagger-ui-dist 5.35.0 (Apache-2.0, licence beside them);
`index.html` and `viewer.js` are ours. To update: `npm pack swagger-ui-dist`.
"""

from pathlib import Path

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse

_FILES = Path(__file__).parent
_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "viewer.js": "text/javascript",
}

VIEWER_PATH = "/docs"
VIEWER_PATHS = frozenset({VIEWER_PATH, *(f"{VIEWER_PATH}/{name}" for name in _ASSETS)})

_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
"""No inline scripts and nothing from other sites; the icons of Swagger UI are data URLs."""


def create_viewer() -> APIRouter:
    """Return the routes of the page and of the files that it loads."""
    router = APIRouter(include_in_schema=False)

    @router.get(VIEWER_PATH)
    async def page() -> Response:
        return FileResponse(_FILES / "index.html", media_type="text/html", headers=_POLICY)

    @router.get(f"{VIEWER_PATH}/{{name}}")
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404)
        return FileResponse(_FILES / name, media_type=_ASSETS[name], headers={"Cache-Control": "max-age=3600"})

    return router
