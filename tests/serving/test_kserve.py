"""KServe's protocol, version 1: as its clients speak it, well and badly."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

import vitcx
from tests.serving.running import png, serving_here
from tests.tiny_bundle import CLASSES, SIZE, random_picture
from vitcx.runtime.errors import InputError
from vitcx.serving import kserve
from vitcx.serving.limits import Limits

TEXT = base64.b64encode(png()).decode()
PIXELS = np.random.default_rng(0).standard_normal((3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def explainer(bundle: str) -> Iterator[vitcx.Explainer]:
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        yield explainer


@pytest.fixture(scope="module")
def client(explainer: vitcx.Explainer) -> Iterator[Any]:
    with serving_here(explainer, Limits()) as client:
        yield client


def decode(explainer: vitcx.Explainer, **body: Any) -> list[Any]:
    return kserve.decode(json.dumps(body).encode(), explainer, Limits())


def test_every_form_of_an_instance_is_explained_as_the_library_does(
    client: Any, explainer: vitcx.Explainer
) -> None:
    files = [{"image": TEXT}, {"b64": TEXT}, {"image_bytes": {"b64": TEXT}}]
    numbers = [PIXELS.tolist(), PIXELS.ravel().tolist()]
    body = {"instances": files + numbers, "targets": [3, 1], "settings": {"seed": 5}}
    answer = client.post("v1/models/tiny:explain", json=body)
    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert got.keys() == {"predictions", "explanations"}
    pictures = [random_picture(0)] * 3 + [PIXELS] * 2
    assert len(got["predictions"]) == len(got["explanations"]) == len(pictures)
    for picture, scores, made in zip(
        pictures, got["predictions"], got["explanations"], strict=True
    ):
        expected = explainer.explain(picture, [3, 1], seed=5)
        np.testing.assert_allclose(scores, expected.probabilities, atol=1e-6)
        assert [target["index"] for target in made["targets"]] == [3, 1]
        heat = np.frombuffer(base64.b64decode(made["heatmap"]["data"]), np.uint8)
        heat = heat.reshape(made["heatmap"]["shape"])
        for i in range(2):
            np.testing.assert_allclose(heat[i], 255 * expected.heatmap(i), atol=1)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"instances":[{"b64":"x"}],"instances":[{"b64":"y"}]}', "the body has the key 'inst"),
        ('{"instances":[{"b64":"x","b64":"y"}]}', "instance 0 has the key 'b64' twice"),
        ('{"instances":[{"image":{"b64":"x","b64":"y"}}]}', "instance 0 has the key 'b64' twice"),
    ],
)
def test_a_key_stands_once(explainer: vitcx.Explainer, body: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        kserve.decode(body.encode(), explainer, Limits())


def test_include_replaces_the_heatmap(client: Any) -> None:
    body = {"instances": [{"image": TEXT}], "include": ["saliency"]}
    (made,) = client.post("v1/models/tiny:explain", json=body).json()["explanations"]
    assert made["saliency"]["shape"] == [1, SIZE, SIZE]
    assert "heatmap" not in made


def test_the_model_says_whether_it_is_ready(client: Any) -> None:
    assert client.get("v1/models").json() == {"models": ["tiny"]}
    assert client.get("v1/models/tiny").json() == {"name": "tiny", "ready": True}
    for answer in (
        client.get("v1/models/other"),
        client.post("v1/models/other:explain", json={"instances": [{"image": TEXT}]}),
    ):
        assert answer.status_code == 404
        assert answer.json() == {"error": "there is no such model: this server has 'tiny'"}


def test_a_model_that_cannot_explain_is_not_ready(explainer: vitcx.Explainer) -> None:
    from vitcx.serving.app import make_app

    app = make_app(explainer, Limits())
    app.state.admission.close()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/models/tiny")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()) == (503, {"error": "the server is stopping"})


def test_the_routes_want_the_token(explainer: vitcx.Explainer) -> None:
    with serving_here(explainer, Limits(), token="secret") as client:
        for method, path in (
            ("GET", "v1/models"),
            ("GET", "v1/models/tiny"),
            ("POST", "v1/models/tiny:explain"),
        ):
            assert client.request(method, path).status_code == 401
        given = {"Authorization": "Bearer secret"}
        assert client.get("v1/models/tiny", headers=given).status_code == 200


ONE = {"image": TEXT}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is not JSON"),
        (b"[]", "the body does not fit"),
        (b"{}", "missing required field `instances`"),
        ({"instances": None}, "the body does not fit"),
        ({"instances": []}, "'instances' is empty"),
        ({"instances": [ONE], "more": 1}, "unknown field `more`"),
        ({"instances": [None]}, "instance 0 is none of these"),
        ({"instances": [ONE, "x"]}, "instance 1 is none of these"),
        ({"instances": [{}]}, "instance 0 is not one of these"),
        ({"instances": [{"image": TEXT, "b64": TEXT}]}, "instance 0 is not one of these"),
        ({"instances": [{"image": 3}]}, "instance 0 does not fit"),
        ({"instances": [{"image": {"b64": TEXT, "x": 1}}]}, "instance 0 does not fit"),
        ({"instances": [{"image": "%"}]}, "instance 0 is not base64"),
        ({"instances": [{"image": ""}]}, "instance 0 is empty"),
        ({"instances": [{"image": "AAAA"}]}, "'instance 0' is not a picture"),
        ({"instances": [[1, 2]]}, "numbers of instance 0 do not fill their shape"),
        ({"instances": [[["x"]]]}, "numbers of instance 0 do not fill their shape"),
        ({"instances": [[1e39] * PIXELS.size]}, "instance 0 has values that are NaN or beyond"),
        ({"instances": [ONE] * 65}, "at most length 64"),
        ({"instances": [ONE] * 60, "targets": "top5"}, "make 300 maps: ask for at most 256"),
        ({"instances": [ONE], "targets": 99}, "99"),
        ({"instances": [ONE], "settings": {"seed": "x"}}, "seed"),
        ({"instances": [ONE], "include": ["x"]}, "'include' lists"),
        ({"instances": [ONE], "strength": 1}, "unknown field `strength`"),
    ],
)
def test_what_does_not_follow_the_protocol_is_told(client: Any, body: Any, says: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("v1/models/tiny:explain", content=content)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]


def test_the_pictures_of_a_request_share_the_limit_of_pixels(explainer: vitcx.Explainer) -> None:
    with serving_here(explainer, Limits(pixels=2 * 40 * 36)) as client:
        for count, status in ((2, 200), (3, 400)):
            body = {"instances": [ONE] * count}
            assert client.post("v1/models/tiny:explain", json=body).status_code == status


def test_an_answer_is_no_larger_than_was_reckoned(explainer: vitcx.Explainer) -> None:
    asked = decode(
        explainer,
        instances=[ONE, PIXELS.tolist()],
        targets=list(range(CLASSES)),
        include=["saliency", "heatmap", "masks", "colors"],
        masks=1000,
    )
    results = [explainer.explain(each.request.image, list(range(CLASSES))) for each in asked]
    most = kserve.answer_bytes(asked, explainer.manifest)
    assert most / 8 < len(kserve.encode(asked, results)) <= most
    with serving_here(explainer, Limits(answer_bytes=1000)) as client:
        answer = client.post("v1/models/tiny:explain", json={"instances": [ONE]})
        assert "the answer would have up to" in answer.json()["error"]


def test_instances_without_end_take_no_memory(explainer: vitcx.Explainer) -> None:
    body = b'{"instances": [' + b"0," * 1_000_000 + b"0]}"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="at most length 64"):
            kserve.decode(body, explainer, Limits())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
