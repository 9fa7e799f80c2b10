"""The routes of KServe's protocol, version 1: /v1/models."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from vitcx.serving import kserve
from vitcx.serving.admission import Admission
from vitcx.serving.answers import JSON
from vitcx.serving.figures import timed
from vitcx.serving.limits import Refused
from vitcx.serving.open_inference import MOST_IMAGES
from vitcx.serving.reading import check_answer
from vitcx.serving.routes import ERROR, ERRORS, client_of, gone

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {
                        "instances": {"type": "array", "minItems": 1, "maxItems": MOST_IMAGES}
                    },
                }
            }
        },
    }
}


def add_kserve_routes(app: FastAPI, admission: Admission, model: str) -> None:
    """Add /v1/models to the application, for the one model, by the name that clients use."""
    explainer, limits, figures = admission.explainer, admission.limits, admission.figures

    def known(name: str) -> None:
        if name != model:
            raise Refused(404, f"there is no such model: this server has '{model}'")

    @app.get("/v1/models")
    async def models() -> dict[str, list[str]]:
        """The one model's name."""
        return {"models": [model]}

    @app.get("/v1/models/{name:path}", responses={404: ERROR, 503: ERROR})
    async def ready(name: str) -> dict[str, Any]:
        """Whether the model can explain."""
        known(name)
        if reason := admission.unready:
            raise Refused(503, reason)
        return {"name": model, "ready": True}

    @app.post(
        "/v1/models/{name:path}:explain", responses={**ERRORS, 404: ERROR}, openapi_extra=_BODY
    )
    async def explain(http: HttpRequest, name: str) -> Response:
        """Explain the pictures of `instances`."""
        known(name)
        deadline = time.monotonic() + limits.deadline
        with admission.bodies.holding() as held:
            body = await admission.bodies.receive(held, http, deadline)
            with admission.place(client_of(http)) as stay:
                with timed(figures, "read"):
                    asked = await run_in_threadpool(
                        kserve.decode, body, explainer, limits, admission.preset
                    )
                check_answer(kserve.answer_bytes(asked, explainer.manifest), limits)
                requests = [each.request for each in asked]
                results = await admission.explain(requests, stay, deadline, gone(http))
                with timed(figures, "draw"):
                    answer = await run_in_threadpool(kserve.encode, asked, results)
        return Response(answer, media_type=JSON)
