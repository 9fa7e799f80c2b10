"""The FastAPI application: routes, and errors as one sentence of JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.serving import open_inference
from vitcx.serving.answers import JSON, NPZ, PNG, choose_kind, render
from vitcx.serving.desk import Desk, Limits, Refused
from vitcx.serving.guard import Guard
from vitcx.serving.reading import (
    INCLUDES,
    SETTING_NAMES,
    before,
    check_targets,
    make_request,
    read_asked,
)

log = logging.getLogger("vitcx")

_FIELDS = {
    "targets": {"description": "class index, name, list of these, or topN; default: top1"},
    "settings": {"type": "object", "description": f"any of {', '.join(sorted(SETTING_NAMES))}"},
    "include": {"type": "array", "items": {"type": "string", "enum": list(INCLUDES)}},
    "masks": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 8},
    "strength": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.8},
}
_ERROR = {
    "description": "One sentence on what is wrong",
    "content": {JSON: {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
}
_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 406, 408, 413, 415, 429, 503, 504), _ERROR
)


def _body(image: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": image, **_FIELDS},
            "additionalProperties": False,
        }
    }


_EXPLAIN_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _body({"type": "string", "format": "binary"}),
            JSON: _body({"type": "string", "contentEncoding": "base64"}),
        },
    }
}


def make_app(
    explainer: Explainer, limits: Limits | None = None, token: str | None = None
) -> FastAPI:
    """The server's application for one explainer, which it does not close.

    Parameters
    ----------
    limits : what is taken on; None takes the defaults.
    token : a bearer token that requests must carry, but those for the page and the probes; space
        around it, a line's end for one, is no part of it. None or "" wants none.

    Raises
    ------
    InputError
        If the token is nothing but space: it would let nobody in, or everybody.
    """
    if token and not (token := token.strip()):
        raise InputError("the token is blank: give one, or none at all")
    limits = limits or Limits()
    desk = Desk(explainer, limits)
    model = explainer.manifest.model_name

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(
        title="vitcx",
        description="ViT-CX explanations of Vision Transformers.",
        lifespan=lifespan,
        docs_url=None,  # its scripts come from another host; /openapi.json is the specification
        redoc_url=None,
    )
    app.state.desk = desk
    app.add_middleware(Guard, token=token, body_bytes=limits.body_bytes)
    _handle_errors(app, desk)
    _add_page(app)

    @app.post("/v1/explain", responses=_explain_responses(), openapi_extra=_EXPLAIN_BODY)
    async def explain(http: HttpRequest) -> Response:
        """Explain one picture; the answer is JSON, a PNG overlay or an NPZ archive, by Accept."""
        kind = choose_kind(http.headers.get("accept", "*/*"))
        if kind is None:
            raise Refused(406, f"accept one of {JSON}, {PNG}, {NPZ}")
        async with desk.admitted() as deadline:
            asked = await read_asked(http, explainer, limits, deadline)
            (result,) = await desk.explain([asked.request], deadline, _gone(http))
            body = await run_in_threadpool(render, result, asked, kind)
        return Response(body, media_type=kind)

    @app.get("/v1/classes")
    async def classes() -> dict[str, Any]:
        """The model and the names of its classes."""
        return {"model": model, "classes": list(explainer.manifest.class_names)}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: _ERROR})
    async def readyz() -> dict[str, str]:
        """Whether it can explain: the engine works and the server is not stopping."""
        if not desk.ready:
            raise Refused(503, "the engine's latest call failed, or the server is stopping")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(desk.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _add_open_inference(app, desk, model)
    return app


def _add_open_inference(app: FastAPI, desk: Desk, model: str) -> None:
    explainer, limits = desk.explainer, desk.limits

    def known(name: str, version: str = "1") -> None:
        if name != model or version != "1":
            raise Refused(404, f"there is no such model: this server has '{model}', version 1")

    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "vitcx", "version": "2", "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses={503: _ERROR})
    async def ready() -> dict[str, bool]:
        if not desk.ready:
            raise Refused(503, "not ready")
        return {"ready": True}

    missing: dict[int | str, dict[str, Any]] = {404: _ERROR, 503: _ERROR}

    @app.get("/v2/models/{name}", responses=missing)
    @app.get("/v2/models/{name}/versions/{version}", responses=missing, include_in_schema=False)
    async def model_metadata(name: str, version: str = "1") -> dict[str, Any]:
        known(name, version)
        return open_inference.metadata(model, explainer.manifest)

    @app.get("/v2/models/{name}/ready", responses=missing)
    @app.get(
        "/v2/models/{name}/versions/{version}/ready", responses=missing, include_in_schema=False
    )
    async def model_ready(name: str, version: str = "1") -> dict[str, Any]:
        known(name, version)
        return {"name": model, "ready": desk.ready}

    infer_body = {
        "requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}
    }

    @app.post(
        "/v2/models/{name}/infer", responses={**_ERRORS, 404: _ERROR}, openapi_extra=infer_body
    )
    @app.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(http: HttpRequest, name: str, version: str = "1") -> Response:
        known(name, version)
        async with desk.admitted() as deadline:
            body = await before(deadline, http.body())
            header = http.headers.get("inference-header-content-length")
            call = await run_in_threadpool(open_inference.decode, body, header)
            targets = check_targets(call.targets, limits.targets)
            requests = [make_request(explainer, i, targets, call.settings) for i in call.images]
            results = await desk.explain(requests, deadline, _gone(http))
            answer, head = await run_in_threadpool(open_inference.encode, model, call, results)
        headers = {} if head is None else {"Inference-Header-Content-Length": str(head)}
        return Response(
            answer, media_type=JSON if head is None else "application/octet-stream", headers=headers
        )


def _explain_responses() -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {JSON: {"schema": {"type": "object"}}, PNG: binary, NPZ: binary}
    return {200: {"description": "The explanation", "content": content}, **_ERRORS}


def _gone(http: HttpRequest) -> Any:
    async def wait() -> None:
        # The body has been read: the next message is the client's going away.
        while (await http.receive())["type"] != "http.disconnect":
            await asyncio.sleep(0.05)

    return wait


def _handle_errors(app: FastAPI, desk: Desk) -> None:
    def answer(status: int, message: str, headers: Any = None) -> JSONResponse:
        sentence = " ".join(message.split())
        return JSONResponse({"error": sentence}, status_code=status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(http: HttpRequest, error: Refused) -> Response:
        return answer(error.status, str(error), error.headers)

    @app.exception_handler(InputError)
    async def bad_input(http: HttpRequest, error: InputError) -> Response:
        desk.note_reject("bad_input")
        return answer(400, str(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(http: HttpRequest, error: ClientDisconnect) -> Response:
        desk.note_reject("client_gone")
        return answer(499, "the client has gone")  # nobody hears it

    @app.exception_handler(HTTPException)
    async def by_framework(http: HttpRequest, error: HTTPException) -> Response:
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unexpected(http: HttpRequest, error: Exception) -> Response:
        log.error("while answering %s %s", http.method, http.url.path, exc_info=error)
        return answer(500, "an error of the server's own: its log says more")


def _add_page(app: FastAPI) -> None:
    folder = resources.files("vitcx.serving") / "page"
    # The page may only talk to its own server: nothing comes from anywhere else.
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.js", "page.js", "text/javascript"),
        ("/page.css", "page.css", "text/css"),
    ):
        response = Response((folder / name).read_bytes(), media_type=kind, headers=headers)

        async def serve(http: HttpRequest, response: Response = response) -> Response:
            return response

        app.add_route(path, serve, methods=["GET"], include_in_schema=False)
