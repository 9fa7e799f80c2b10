"""The FastAPI application: routes, and errors as one sentence of JSON."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.presets import DEFAULT_PRESET, PRESETS, preset_settings
from vitcx.serving.access import Access
from vitcx.serving.admission import Admission
from vitcx.serving.answers import JSON, NPZ, PNG, answer_bytes, choose_kind, render
from vitcx.serving.figures import Figures, timed
from vitcx.serving.guard import LOOPBACK_HOSTS, Guard
from vitcx.serving.inference_routes import add_inference_routes
from vitcx.serving.kserve_routes import add_kserve_routes
from vitcx.serving.limits import Limits, Refused
from vitcx.serving.page_files import add_page
from vitcx.serving.reading import (
    INCLUDES,
    SETTING_NAMES,
    check_answer,
    check_kind,
    read_asked,
)
from vitcx.serving.routes import ERROR, ERRORS, client_of, gone

_FIELDS = {
    "targets": {"description": "class index, name, list of these, or topN; default: top1"},
    "settings": {"type": "object", "description": f"any of {', '.join(sorted(SETTING_NAMES))}"},
    "include": {"type": "array", "items": {"type": "string", "enum": list(INCLUDES)}},
    "masks": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 8},
    "strength": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.8},
}


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
    explainer: Explainer,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Iterable[str] = LOOPBACK_HOSTS,
    preset: str | None = None,
    model_name: str | None = None,
) -> FastAPI:
    """The server's application for one explainer, which it does not close.

    Parameters
    ----------
    limits : what is taken on; None takes the defaults.
    token : a bearer token that requests must carry, but those for the page and the probes; space
        around it, a line's end for one, is no part of it. None or "" wants none.
    hosts : names that the Host header of a request may have, but that of a probe; ``*`` is any.
    preset : of requests that name none; their single settings override it. None is the default.
    model_name : the model's name in /v1/models and /v2/models; None takes the bundle's.

    Raises
    ------
    InputError
        If the token is nothing but space: it would let nobody in, or everybody. If there is no such
        preset.
    """
    if token and not (token := token.strip()):
        raise InputError("the token is blank: give one, or none at all")
    preset_settings(preset)  # refused here, and not at each request
    limits = limits or Limits()
    admission = Admission(explainer, limits, preset)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        admission.close()

    app = FastAPI(
        title="vitcx",
        description="ViT-CX explanations of Vision Transformers.",
        lifespan=lifespan,
        docs_url=None,  # its scripts come from another host; /openapi.json is the specification
        redoc_url=None,
    )
    app.state.admission = admission
    app.add_middleware(Guard, token=token, body_bytes=limits.body_bytes, hosts=hosts)
    app.add_middleware(Access, figures=admission.figures)
    _handle_errors(app, admission.figures)
    add_page(app)
    _add_explain(app, admission)
    _add_probes(app, admission)
    name = model_name or explainer.manifest.model_name
    add_kserve_routes(app, admission, name)
    add_inference_routes(app, admission, name)
    return app


def _add_explain(app: FastAPI, admission: Admission) -> None:
    explainer, limits, figures = admission.explainer, admission.limits, admission.figures
    manifest = explainer.manifest

    @app.post("/v1/explain", responses=_explain_responses(), openapi_extra=_EXPLAIN_BODY)
    async def explain(http: HttpRequest) -> Response:
        """Explain one picture; the answer is JSON, a PNG overlay or an NPZ archive, by Accept."""
        deadline = time.monotonic() + limits.deadline
        kind = choose_kind(http.headers.get("accept", "*/*"))
        if kind is None:
            raise Refused(406, f"accept one of {JSON}, {PNG}, {NPZ}")
        content_type = http.headers.get("content-type", "")
        check_kind(content_type)
        with admission.bodies.holding() as held:
            body = await admission.bodies.receive(held, http, deadline)
            with admission.place(client_of(http)) as stay:
                with timed(figures, "read"):
                    asked = await run_in_threadpool(
                        read_asked, body, content_type, explainer, limits, admission.preset
                    )
                check_answer(answer_bytes(asked, kind, manifest), limits)
                (result,) = await admission.explain([asked.request], stay, deadline, gone(http))
                with timed(figures, "draw"):
                    answer = await run_in_threadpool(render, result, asked, kind, limits, deadline)
        return Response(answer, media_type=kind)

    @app.get("/v1/classes")
    async def classes() -> dict[str, Any]:
        """The model, the names of its classes, the presets, and which one is the server's."""
        return {
            "model": manifest.model_name,
            "classes": list(manifest.class_names),
            "preset": admission.preset or DEFAULT_PRESET,
            "presets": [{"name": one.name, "summary": one.summary} for one in PRESETS.values()],
        }


def _add_probes(app: FastAPI, admission: Admission) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: ERROR})
    async def readyz() -> dict[str, str]:
        """Whether it can explain: the engine works and the server is not stopping."""
        if reason := admission.unready:
            raise Refused(503, reason)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(admission.figures.text(), media_type=kind)


def _explain_responses() -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {JSON: {"schema": {"type": "object"}}, PNG: binary, NPZ: binary}
    return {200: {"description": "The explanation", "content": content}, **ERRORS}


def _handle_errors(app: FastAPI, figures: Figures) -> None:
    def answer(status: int, message: str, headers: Any = None) -> JSONResponse:
        sentence = " ".join(message.split()).encode(errors="replace").decode()
        return JSONResponse({"error": sentence}, status_code=status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(http: HttpRequest, error: Refused) -> Response:
        return answer(error.status, str(error), error.headers)

    @app.exception_handler(InputError)
    async def bad_input(http: HttpRequest, error: InputError) -> Response:
        figures.note_reject("bad_input")
        return answer(400, str(error))

    @app.exception_handler(ClientDisconnect)
    async def client_gone(http: HttpRequest, error: ClientDisconnect) -> Response:
        figures.note_reject("client_gone")
        return answer(499, "the client has gone")  # nobody hears it

    @app.exception_handler(MemoryError)
    async def no_memory(http: HttpRequest, error: MemoryError) -> Response:
        figures.note_reject("memory")
        return answer(503, "there is not enough memory for this request now", {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def by_framework(http: HttpRequest, error: HTTPException) -> Response:
        return answer(error.status_code, str(error.detail), error.headers)
