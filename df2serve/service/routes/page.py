"""The page at ``/`` and the reference at ``/docs``: files of the package, alike for everybody."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["assets", "router"]

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parents[1] / "page"
_CACHED = {"Cache-Control": "no-cache"}
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
}


class _Assets(StaticFiles):
    """Files that browsers may keep, but ask for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file."""
        answer = await super().get_response(path, scope)
        answer.headers.update(_CACHED)
        return answer


assets = _Assets(directory=_FOLDER / "assets")


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> FileResponse:
    """Send the page."""
    return FileResponse(_FOLDER / "index.html", headers=_POLICY | _CACHED)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def reference() -> FileResponse:
    """Send the reference."""
    return FileResponse(_FOLDER / "docs.html", headers=_POLICY | _CACHED)
