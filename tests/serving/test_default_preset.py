"""The preset of requests that name none: `vitcx serve --preset`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

import vitcx
from tests.serving.running import png
from tests.tiny_bundle import SIZE, random_picture
from vitcx.cli import main
from vitcx.runtime.errors import InputError
from vitcx.serving.app import make_app


@pytest.fixture(scope="module")
def ask(bundle: str) -> Any:
    """Asks a server of the preset `balanced`."""
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        app = make_app(explainer, preset="balanced")

        def send(call: Callable[[httpx.AsyncClient], Any]) -> Any:
            async def go() -> Any:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as c:
                    return (await call(c)).json()

            return asyncio.run(go())

        yield send
        app.state.admission.close()


def in_force(ask: Any, settings: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that the answer names."""
    body: dict[str, Any] = {"image": base64.b64encode(png()).decode()}
    if settings is not None:
        body["settings"] = settings
    return ask(lambda client: client.post("v1/explain", json=body))["settings"]


@pytest.mark.parametrize(
    ("settings", "estimator", "noise_std", "seed"),
    [
        (None, "teams-difference", 0.0, 0),
        ({}, "teams-difference", 0.0, 0),
        ({"preset": None}, "teams-difference", 0.0, 0),
        ({"seed": 7}, "teams-difference", 0.0, 7),
        ({"estimator": "teams"}, "teams", 0.0, 0),
        ({"preset": "paper", "seed": 7}, "paper", 0.1, 7),
        ({"preset": "quick"}, "teams", 0.0, 0),
    ],
)
def test_a_request_overrides_the_servers_preset(
    ask: Any, settings: Any, estimator: str, noise_std: float, seed: int
) -> None:
    got = in_force(ask, settings)
    assert (got["estimator"], got["noise_std"], got["seed"]) == (estimator, noise_std, seed)


def test_the_open_inference_protocol_starts_from_it_too(ask: Any, bundle: str) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    tensor = {"name": "images", "datatype": "FP32", "shape": list(image.shape)}
    body = {"inputs": [{**tensor, "data": image.ravel().tolist()}]}
    answer = ask(lambda client: client.post("v2/models/tiny/infer", json=body))
    got = {one["name"]: np.array(one["data"], np.float32) for one in answer["outputs"]}
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        expected = explainer.explain(image[0], preset="balanced")
    np.testing.assert_allclose(got["saliency"], expected.saliency.ravel(), atol=1e-6)


def test_kserve_s_protocol_starts_from_it_too(ask: Any) -> None:
    body = {"instances": [{"image": base64.b64encode(png()).decode()}]}
    answer = ask(lambda client: client.post("v1/models/tiny:explain", json=body))
    assert answer["explanations"][0]["settings"]["estimator"] == "teams-difference"


def test_clients_can_learn_it(ask: Any) -> None:
    about = ask(lambda client: client.get("v2/models/tiny"))
    assert about["parameters"] == {"preset": "balanced"}
    about = ask(lambda client: client.get("v1/classes"))
    assert about["preset"] == "balanced"
    assert [one["name"] for one in about["presets"]] == ["paper", "quick", "balanced", "best"]


def test_a_preset_that_there_is_not_is_refused(
    bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        vitcx.load(bundle, "onnxruntime", 1, 8) as explainer,
        pytest.raises(InputError, match="preset is 'fast'"),
    ):
        make_app(explainer, preset="fast")
    monkeypatch.setenv("VITCX_PRESET", "fast")
    assert main(["serve", "--bundle", bundle, "--port", "0"]) == 2
    assert "VITCX_PRESET" in capsys.readouterr().err


def test_the_option_and_the_variable(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option wins over the variable, which wins over nothing."""
    seen: list[str | None] = []

    def look(explainer: Any, limits: Any, token: Any, hosts: Any, preset: Any, *rest: Any) -> Any:
        seen.append(preset)
        raise InputError("seen enough")

    monkeypatch.setattr("vitcx.serving.app.make_app", look)
    words = ["serve", "--bundle", bundle, "--port", "0", "--engine", "onnxruntime"]
    for variable, more in ((None, []), ("quick", []), ("", []), ("quick", ["--preset", "best"])):
        monkeypatch.delenv("VITCX_PRESET", raising=False)
        if variable is not None:
            monkeypatch.setenv("VITCX_PRESET", variable)
        assert main([*words, *more]) == 2
    assert seen == [None, "quick", None, "best"]


def test_settings_that_a_client_gives_are_not_changed(bundle: str) -> None:
    from vitcx.serving.limits import Limits
    from vitcx.serving.reading import make_request

    given = {"seed": 3}
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        request = make_request(explainer, random_picture(0), None, given, Limits(), preset="quick")
    assert json.dumps(given) == '{"seed": 3}'
    assert request.settings.estimator == "teams"
