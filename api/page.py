"""Serves the page: the files of web/, and its start for every address that the page has a view for."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_INSTALLED = Path(__file__).with_name("web")
#: Inside this package if it came in a wheel, beside it in a checkout.
WEB = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "web"
INDEX = WEB / "index.html"
#: First parts of the addresses that are views of the page, not files.
VIEWS = ("", "v", "library", "people", "fleet")
#: What a browser needs; the rest of the folder (the page's tools and tests) is not served.
SERVED = (".html", ".js", ".css", ".svg", ".png", ".ico", ".woff2", ".webmanifest", ".txt")


class Page(StaticFiles):
    """The files of the page, always asked for anew so that a new version shows at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        parts = path.replace("\\", "/").strip("/.").split("/")
        if parts[0] in VIEWS and INDEX.is_file():
            return _fresh(FileResponse(INDEX, media_type="text/html"))
        hidden = parts[0] == "api" or any(part.startswith(".") or part == "node_modules" for part in parts)
        if hidden or "\x00" in path or Path(path).suffix not in SERVED:
            raise HTTPException(404)
        return _fresh(await super().get_response(path, scope))


def serve(app: FastAPI) -> None:
    """Serve the page at every address that no route has."""
    # Not a mount: one would also take requests whose address has a route, for other methods.
    app.router.default = GZipMiddleware(Page(directory=WEB, check_dir=False), minimum_size=1000)


def _fresh(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-cache"
    return response
