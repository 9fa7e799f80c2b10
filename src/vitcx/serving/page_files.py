"""The page at /: its files, and the policy that keeps it to its own server."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from vitcx.serving.guard import PAGE_PATHS

_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
# The page may only talk to its own server: nothing comes from anywhere else.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # the files of one version go together
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI) -> None:
    """Add the page to the application."""
    folder = resources.files("vitcx.serving") / "page"
    for path in PAGE_PATHS:
        name = path.removeprefix("/") or "index.html"
        kind = _KINDS[name.rpartition(".")[2]]
        response = Response((folder / name).read_bytes(), media_type=kind, headers=_HEADERS)

        async def serve(http: HttpRequest, response: Response = response) -> Response:
            return response

        app.add_route(path, serve, methods=["GET"], include_in_schema=False)
