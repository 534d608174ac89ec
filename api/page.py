"""Serves the page: the files of web/, and its start for every address that the page has a view for."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_INSTALLED = Path(__file__).with_name("web")
#: Inside this package if it came in a wheel, beside it in a checkout.
WEB = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "web"
INDEX = WEB / "index.html"
#: The sample that the empty library offers; an installed package has none.
SAMPLE, SAMPLE_PATH = Path(__file__).parents[1] / "samples" / "demo.mp4", "sample.mp4"
#: First parts of the addresses that are views of the page, not files.
VIEWS = ("", "v", "library", "people", "fleet")
#: What a browser needs; the rest of the folder (the page's tools and tests) is not served.
SERVED = (".html", ".js", ".css", ".svg", ".png", ".ico", ".woff2", ".webmanifest", ".txt")


class Page(StaticFiles):
    """The files of the page, always asked for anew so that a new version shows at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            return await self._found(path, scope)
        except HTTPException as error:
            # A person who follows a broken link gets the page, which says so; a program gets a problem document.
            wanted = "text/html" in Headers(scope=scope).get("accept", "") and not path.startswith(
                ("api/", "v1/", "v2/")
            )
            if error.status_code != 404 or not wanted or not INDEX.is_file():
                raise
            return _fresh(FileResponse(INDEX, status_code=404, media_type="text/html"))

    async def _found(self, path: str, scope: Scope) -> Response:
        parts = path.replace("\\", "/").strip("/.").split("/")
        if parts[0] in VIEWS and INDEX.is_file():
            return _fresh(FileResponse(INDEX, media_type="text/html"))
        if path == SAMPLE_PATH and SAMPLE.is_file() and scope["method"] in ("GET", "HEAD"):
            return _fresh(FileResponse(SAMPLE, media_type="video/mp4"))
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
