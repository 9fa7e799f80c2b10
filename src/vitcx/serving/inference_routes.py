"""The routes of the Open Inference Protocol: /v2."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from vitcx.serving import open_inference
from vitcx.serving.admission import Admission
from vitcx.serving.answers import JSON
from vitcx.serving.figures import timed
from vitcx.serving.limits import Refused
from vitcx.serving.reading import check_answer, check_targets, make_request
from vitcx.serving.routes import ERROR, ERRORS, client_of, gone


def add_inference_routes(app: FastAPI, admission: Admission, model: str) -> None:
    """Add /v2 to the application, for the one model, by the name that clients use."""
    explainer, limits, figures = admission.explainer, admission.limits, admission.figures

    def known(name: str, version: str = "1") -> None:
        if name != model or version != "1":
            raise Refused(404, f"there is no such model: this server has '{model}', version 1")

    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "vitcx", "version": "2", "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses={503: ERROR})
    async def ready() -> dict[str, bool]:
        if reason := admission.unready:
            raise Refused(503, reason)
        return {"ready": True}

    missing: dict[int | str, dict[str, Any]] = {404: ERROR, 503: ERROR}

    # A name may hold slashes, so the longer paths are tried first.
    @app.get("/v2/models/{name:path}/ready", responses=missing)
    @app.get(
        "/v2/models/{name:path}/versions/{version}/ready",
        responses=missing,
        include_in_schema=False,
    )
    async def model_ready(name: str, version: str = "1") -> dict[str, Any]:
        known(name, version)
        return {"name": model, "ready": admission.unready is None}

    @app.get("/v2/models/{name:path}", responses=missing)
    @app.get(
        "/v2/models/{name:path}/versions/{version}", responses=missing, include_in_schema=False
    )
    async def model_metadata(name: str, version: str = "1") -> dict[str, Any]:
        known(name, version)
        return open_inference.metadata(model, explainer.manifest, admission.preset)

    infer_body = {
        "requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}
    }

    @app.post(
        "/v2/models/{name:path}/infer", responses={**ERRORS, 404: ERROR}, openapi_extra=infer_body
    )
    @app.post("/v2/models/{name:path}/versions/{version}/infer", include_in_schema=False)
    async def infer(http: HttpRequest, name: str, version: str = "1") -> Response:
        known(name, version)
        deadline = time.monotonic() + limits.deadline
        with admission.bodies.holding() as held:
            body = await admission.bodies.receive(held, http, deadline)
            with admission.place(client_of(http)) as stay:
                header = http.headers.get("inference-header-content-length")
                with timed(figures, "read"):
                    call = await run_in_threadpool(open_inference.decode, body, header)
                targets = check_targets(call.targets, limits.targets)
                check_answer(open_inference.answer_bytes(call, explainer.manifest), limits)
                requests = [
                    make_request(
                        explainer, image, targets, call.settings, limits, preset=admission.preset
                    )
                    for image in call.images
                ]
                results = await admission.explain(requests, stay, deadline, gone(http))
                with timed(figures, "draw"):
                    answer, head = await run_in_threadpool(
                        open_inference.encode, model, call, results
                    )
        headers = {} if head is None else {"Inference-Header-Content-Length": str(head)}
        return Response(
            answer, media_type=JSON if head is None else "application/octet-stream", headers=headers
        )
