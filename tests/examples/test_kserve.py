"""The InferenceService of the example: its explainer's command starts, and its probes are there."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("onnx")

FILE = Path(__file__).resolve().parents[2] / "examples" / "kserve" / "inference-service.yaml"
# What KServe adds to the arguments of a custom explainer (August 2026); here the port is any.
ADDED = ["--model_name", "birds", "--predictor_host", "birds-predictor.default"]
ADDED += ["--http_port", "0", "--workers", "2"]


def test_the_explainer_starts_as_kserve_starts_it_and_answers_its_probes(tmp_path: Path) -> None:
    from tests.serving.running import address, png, serving
    from tests.tiny_bundle import write_tiny_bundle

    service: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    (container,) = service["spec"]["explainer"]["containers"]
    assert container["name"] == "kserve-container"  # by which KServe knows it
    assert container["args"][:2] == ["serve", "--bundle=/mnt/models"]
    write_tiny_bundle(tmp_path)
    words = [*container["args"][2:], *ADDED]
    with serving(str(tmp_path), *words, token="secret", at="http://0.0.0.0:") as (_, client):
        url = f"http://127.0.0.1:{address(client)[1]}"
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == container["ports"][0]["containerPort"] == 8080
            assert client.get(url + asked["path"]).status_code == 200
        head = {"Authorization": "Bearer secret", "Host": "birds-explainer.default.example.com"}
        name = service["metadata"]["name"]
        answer = client.get(f"{url}/v1/models/{name}", headers=head)
        assert answer.json() == {"name": name, "ready": True}
        assert client.get(f"{url}/v2/models/{name}/ready", headers=head).json()["ready"] is True
        body = {"instances": [{"image": base64.b64encode(png()).decode()}]}
        answer = client.post(f"{url}/v1/models/{name}:explain", json=body, headers=head)
        assert answer.status_code == 200
        assert len(answer.json()["explanations"]) == 1
