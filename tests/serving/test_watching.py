"""Readiness, figures and the dashboard: what an operator sees."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import vitcx
from tests.serving.running import TIMEOUT, comes, connect, head, png, serving, serving_here
from vitcx.cli import main
from vitcx.serving.limits import Limits

DASHBOARD = Path(__file__).resolve().parents[2] / "examples" / "grafana" / "vitcx.json"


@pytest.fixture
def explainer(bundle: str) -> Iterator[Any]:
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        yield explainer


def ready(client: Any) -> tuple[int, str]:
    answer = client.get("readyz")
    said = answer.json()
    return answer.status_code, said.get("error", said.get("status"))


def test_an_engine_that_hangs_is_not_ready_until_it_answers(explainer: Any) -> None:
    hung, score = threading.Event(), explainer.session.score

    def hang(batch: Any) -> Any:
        hung.wait(TIMEOUT)
        return score(batch)

    with serving_here(explainer, Limits(deadline=1)) as client:
        client.post("v1/explain", files={"image": png()})  # what is started with the first picture
        explainer.session.score = hang
        assert ready(client) == (200, "ready")
        assert client.post("v1/explain", files={"image": png()}).status_code == 504
        end = time.monotonic() + TIMEOUT
        while ready(client)[0] == 200 and time.monotonic() < end:
            time.sleep(0.05)
        status, why = ready(client)
        assert (status, "on one batch for over 1 s" in why) == (503, True)
        assert client.get("healthz").status_code == 200
        assert "vitcx_ready 0.0" in client.get("metrics").text
        hung.set()
        while ready(client)[0] == 503 and time.monotonic() < end:
            time.sleep(0.05)
        assert ready(client) == (200, "ready")


def test_an_engine_that_fails_is_not_ready_until_it_works(explainer: Any) -> None:
    score = explainer.session.score

    def fail(batch: Any) -> Any:
        raise RuntimeError("injected")

    with serving_here(explainer, Limits()) as client:
        explainer.session.score = fail
        assert client.post("v1/explain", files={"image": png()}).status_code == 503
        assert ready(client) == (503, "the engine's latest call failed")
        explainer.session.score = score
        assert client.post("v1/explain", files={"image": png()}).status_code == 200
        assert ready(client) == (200, "ready")


def test_a_dead_thread_is_not_ready(explainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_here(explainer, Limits()) as client:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        pipelines = [t for t in threading.enumerate() if t.name.startswith("vitcx-")]
        assert pipelines
        monkeypatch.setattr(type(pipelines[0]), "is_alive", lambda self: self is not pipelines[0])
        status, why = ready(client)
        assert client.get("v2/health/ready").status_code == 503
        assert client.get("v2/models/tiny/ready").json()["ready"] is False
        monkeypatch.undo()
    assert (status, why) == (503, "a thread of the pipeline has died: start the server again")


def test_a_picture_that_the_model_has_no_number_for_is_the_client_s(explainer: Any) -> None:
    encode = explainer.session.encode

    def nothing(images: Any) -> Any:
        return tuple(np.full_like(a, np.nan) for a in encode(images))

    explainer.session.encode = nothing
    with serving_here(explainer, Limits()) as client:
        answer = client.post("v1/explain", files={"image": png()})
        assert answer.status_code == 422
        assert "NaN" in answer.json()["error"]


def figures_of(client: Any) -> dict[str, dict[str, set[str]]]:
    """Names of samples, with the values of each label."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(client.get("metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def test_the_dashboard_asks_only_for_figures_that_there_are(explainer: Any) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    assert len(expressions) > 20
    with serving_here(explainer, Limits(head_bytes=1000)) as client:
        client.post("v1/explain", files={"image": png()})
        client.post("v1/explain", files={"image": b"x"})
        with connect(client) as wordy:
            wordy.sendall(head("/", "X: " + "y" * 2000, method="GET"))
            assert comes(lambda: "vitcx_connections_cut_total" in client.get("metrics").text)
            figures = figures_of(client)
    for expression in expressions:
        names = re.findall(r"vitcx_\w+", expression)
        assert names, expression
        for name in names:
            assert name in figures, expression
            for label in re.findall(r"by \((\w+)\)", expression):
                assert label == "le" or label in figures[name], expression
            for label, value in re.findall(r'(\w+)="(\w+)"', expression):
                assert value in figures[name][label], expression


def test_each_stage_of_a_request_has_its_seconds(explainer: Any) -> None:
    with serving_here(explainer, Limits()) as client:
        client.post("v1/explain", files={"image": png()})
        stages = figures_of(client)["vitcx_stage_seconds_count"]["stage"]
    assert {"read", "queue", "preprocess", "encode", "masks", "blend", "score"} <= stages
    assert {"aggregation", "draw", "total"} <= stages


def test_the_server_logs_json_with_the_request_s_name(bundle: str) -> None:
    with serving(bundle, "--log-format", "json") as (process, client):
        client.get("healthz", headers={"X-Request-ID": "probe-1"})
        entry = json.loads(process.stdout.readline())
    assert (entry["request_id"], entry["path"], entry["status"]) == ("probe-1", "/healthz", 200)


def test_a_model_whose_name_holds_a_slash_is_reachable(
    explainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    named = dataclasses.replace(explainer.manifest, model_name="timm/vit_tiny")
    monkeypatch.setattr(explainer, "manifest", named)
    with serving_here(explainer, Limits()) as client:
        for name in ("timm/vit_tiny", "timm%2Fvit_tiny"):
            for path in ("", "/versions/1"):
                url = f"v2/models/{name}{path}"
                assert client.get(url).json()["name"] == "timm/vit_tiny"
                assert client.get(url + "/ready").json()["ready"] is True
                assert client.post(url + "/infer", content=b"{}").status_code == 400
        assert client.get("v2/models/timm").status_code == 404
        assert client.get("v2/models/timm/vit_tiny/versions/2").status_code == 404


def test_an_empty_host_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for empty in ("", " "):
        assert main(["serve", "--host", empty, "--port", "0"]) == 2
        assert "--host is empty" in capsys.readouterr().err


def test_a_name_that_the_operator_allows_is_answered(bundle: str) -> None:
    with serving(bundle, "--allowed-host", "maps.example") as (_, client):
        for host, status in (("maps.example", 200), ("evil.example", 421)):
            assert client.get("v1/classes", headers={"Host": host}).status_code == status


def test_a_log_that_nobody_reads_does_not_keep_the_server_from_ending(bundle: str) -> None:
    with serving(bundle, "--log-format", "json") as (process, client):
        fcntl = pytest.importorskip("fcntl")
        said = process.stdout  # the log comes there too, and is not read from here on
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(said.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(400):
            assert client.get("healthz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
