"""The server as its clients meet it: a process of its own on loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import vitcx
from tests.serving.running import TIMEOUT, png, serving
from tests.tiny_bundle import SIZE, random_picture
from vitcx.cli import main


def test_upload_gives_what_the_library_gives(client, bundle: str) -> None:
    data = {"targets": "top2", "include": "saliency,heatmap,masks,colors", "masks": "3"}
    answer = client.post("v1/explain", files={"image": png()}, data=data)
    assert answer.status_code == 200
    got = answer.json()
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        expected = explainer.explain(random_picture(0), "top2")
    assert [t["index"] for t in got["targets"]] == list(expected.targets)
    raw = base64.b64decode(got["saliency"]["data"])
    saliency = np.frombuffer(raw, "<f4").reshape(got["saliency"]["shape"])
    np.testing.assert_allclose(saliency, expected.saliency, atol=1e-6)
    assert got["strongest_masks"]["shape"] == [3, 4, 4]
    assert got["colors"]["shape"] == [256, 3]


def test_json_png_and_npz(client) -> None:
    body = {"image": base64.b64encode(png()).decode(), "targets": ["cat", 1], "settings": {}}
    assert client.post("v1/explain", json=body).json()["targets"][0]["name"] == "cat"
    overlay = client.post("v1/explain", json=body, headers={"Accept": "image/png"})
    assert Image.open(io.BytesIO(overlay.content)).size == (36, 40)
    archive = client.post("v1/explain", json=body, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(archive.content), allow_pickle=False) as arrays:
        assert arrays["saliency"].shape == (2, SIZE, SIZE)
    assert client.post("v1/explain", json=body, headers={"Accept": "text/csv"}).status_code == 406


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "image"),
        ({"image": "%%%"}, "base64"),
        ({"image": ""}, "empty"),
        ({"image": base64.b64encode(b"no picture").decode()}, "not a picture"),
        ({"image": base64.b64encode(png()).decode(), "targets": "cow"}, "cow"),
        ({"image": base64.b64encode(png()).decode(), "targets": 99}, "99"),
        ({"image": base64.b64encode(png()).decode(), "targets": {"a": 1}}, "targets"),
        ({"image": base64.b64encode(png()).decode(), "settings": {"seed": -1}}, "seed"),
        ({"image": base64.b64encode(png()).decode(), "settings": {"sed": 1}}, "sed"),
        ({"image": base64.b64encode(png()).decode(), "settings": [1]}, "settings"),
        (
            {
                "image": base64.b64encode(png()).decode(),
                "settings": {"method": "rise", "mask_count": 100_000},
            },
            "MiB",
        ),
        ({"image": base64.b64encode(png()).decode(), "masks": -1}, "masks"),
        ({"image": base64.b64encode(png()).decode(), "strength": "x"}, "strength"),
        ({"image": base64.b64encode(png()).decode(), "more": 1}, "more"),
    ],
)
def test_bad_requests_are_told_in_a_sentence(client, body: dict, says: str) -> None:
    answer = client.post("v1/explain", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_wrong_kinds_and_places(client) -> None:
    wrong = client.post("v1/explain", content=b"x", headers={"Content-Type": "text/plain"})
    assert wrong.status_code == 415
    broken = client.post("v1/explain", content=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 400
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("v1/explain", content=b"--y", headers=form).status_code == 400
    assert client.get("v1/explain").status_code == 405
    assert client.get("nowhere").json() == {"error": "Not Found"}


def test_probes_metrics_and_specification(client) -> None:
    assert client.get("healthz").status_code == 200
    assert client.get("readyz").status_code == 200
    client.post("v1/explain", files={"image": png()})
    text = client.get("metrics").text
    for name in ("vitcx_stage_seconds_bucket", "vitcx_queue_depth", "vitcx_batch_fill_bucket"):
        assert name in text
    assert 'vitcx_stage_seconds_count{stage="score"}' in text
    assert "/v1/explain" in client.get("openapi.json").json()["paths"]


def test_concurrent_requests_share_batches(bundle: str) -> None:
    with serving(bundle) as (_, client), ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda i: client.post("v1/explain", files={"image": png(i)}), range(48))
        )
        assert {answer.status_code for answer in answers} == {200}
        lines = client.get("metrics").text.splitlines()
        batches = next(float(s.split()[1]) for s in lines if s.startswith("vitcx_batch_fill_count"))
        rows = next(float(s.split()[1]) for s in lines if s.startswith("vitcx_batch_fill_sum")) * 8
    passes = [answer.json()["settings"]["forward_passes"] - 1 for answer in answers]
    assert rows == sum(passes)
    assert batches < sum(-(-p // 8) for p in passes), "alone, each picture would need more batches"


def test_token(bundle: str) -> None:
    with serving(bundle, token="s3cret") as (_, client):
        for probe, said in (
            ("healthz", {"status": "alive"}),
            ("readyz", {"status": "ready"}),
            ("v2/health/live", {"live": True}),
            ("v2/health/ready", {"ready": True}),
        ):
            answer = client.get(probe)
            assert (answer.status_code, answer.json()) == (200, said)
        closed = ("metrics", "openapi.json", "v1/classes", "v2", "v2/models/tiny/ready")
        assert {client.get(path).status_code for path in closed} == {401}
        wrong = client.post(
            "v1/explain", files={"image": png()}, headers={"Authorization": "Bearer s3cre"}
        )
        assert wrong.status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        answer = client.post("v1/explain", files={"image": png()}, headers=right)
        assert answer.status_code == 200


def test_an_address_of_ipv6_is_told_as_a_url_has_it(bundle: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with serving(bundle, "--host", "::1", at="http://[::1]:") as (_, client):
        assert client.get("healthz").status_code == 200


def test_a_token_from_the_environment_may_end_in_a_line_break(bundle: str) -> None:
    """As a secret that was made from a file does."""
    with serving(bundle, token="s3cret\n") as (_, client):
        right = {"Authorization": "Bearer s3cret"}
        assert client.get("v1/classes", headers=right).status_code == 200
        assert client.get("v1/classes").status_code == 401
        assert client.get("v1/classes", headers={"Authorization": "Bearer"}).status_code == 401


def test_a_blank_token_is_refused(
    bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VITCX_TOKEN", " \n")
    assert main(["serve", "--bundle", bundle, "--port", "0", "--engine", "onnxruntime"]) == 2
    assert "the token is blank" in capsys.readouterr().err


def test_body_and_pixel_limits(bundle: str) -> None:
    with serving(bundle, "--body-limit", "1", "--pixel-limit", "5000") as (_, client):
        large = client.post("v1/explain", files={"image": b"x" * (2 << 20)})
        assert large.status_code == 413

        def chunks() -> Iterator[bytes]:  # no Content-Length
            for _ in range(40):
                yield b"x" * (1 << 16)

        try:
            kind = {"Content-Type": "image/png"}
            chunked = client.post("v1/explain", content=chunks(), headers=kind)
            assert chunked.status_code == 413
        except httpx.WriteError:
            pass  # closed while we were still sending
        wide = client.post("v1/explain", files={"image": png(0, (80, 80))})
        assert wide.status_code == 400
        assert "5,000 pixels" in wide.json()["error"]


def test_the_limit_of_targets_holds_for_every_route(bundle: str) -> None:
    from vitcx.serving.app import make_app
    from vitcx.serving.limits import Limits

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as here:
            return [
                (
                    await here.post(
                        "v1/explain", files={"image": png()}, data={"targets": json.dumps(targets)}
                    )
                ).status_code
                for targets in ([0, 1], [0, 1, 2], "top3")
            ]

    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        app = make_app(explainer, Limits(targets=2))
        try:
            assert asyncio.run(ask()) == [200, 400, 400]
        finally:
            app.state.admission.close()


HEAVY = {"cluster_masks": "none", "estimator": "antithetic"}


def test_overload_is_told_at_once_and_the_accepted_are_answered(bundle: str) -> None:
    with serving(bundle, "--queue", "2") as (_, client), ThreadPoolExecutor(24) as pool:

        def ask(i: int):
            data = {"settings": json.dumps(HEAVY)}
            return client.post("v1/explain", files={"image": png(i, (1500, 1500))}, data=data)

        answers = list(pool.map(ask, range(24)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert 'vitcx_rejects_total{reason="queue_full"}' in client.get("metrics").text


def test_deadline(bundle: str) -> None:
    with serving(bundle, "--deadline", "0.02") as (_, client):
        answer = client.post("v1/explain", files={"image": png(0, (3000, 3000))})
        assert answer.status_code in (408, 504)


def test_a_client_that_goes_away_frees_its_place(bundle: str) -> None:
    with serving(bundle, "--queue", "1") as (_, client):
        picture = png(0, (4000, 4000))
        for _ in range(3):
            # Too soon for an answer, but for a 429 while the one before has not been noticed.
            with suppress(httpx.TimeoutException):
                client.post("v1/explain", files={"image": picture}, timeout=0.05)
        end = time.monotonic() + TIMEOUT
        while client.post("v1/explain", files={"image": png()}).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_slow_sender_does_not_hold_a_place(bundle: str) -> None:
    with serving(bundle, "--queue", "1", "--deadline", "0.5") as (_, client):
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, TIMEOUT) as slow:
            head = "POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\nabc".encode())
            assert b" 408 " in slow.recv(1000)
        assert client.post("v1/explain", files={"image": png()}).status_code == 200


def test_a_client_that_goes_away_while_it_sends_is_no_error_of_the_server(bundle: str) -> None:
    with serving(bundle) as (process, client):
        address = (client.base_url.host, client.base_url.port)
        for kind in ("image/png", "application/json", "multipart/form-data; boundary=b"):
            with socket.create_connection(address, TIMEOUT) as leaving:
                head = f"POST /v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                leaving.sendall(f"{head}Content-Length: 100\r\n\r\n--b\r\n".encode())
                time.sleep(0.2)  # the server waits for the rest
        counted = 'vitcx_rejects_total{reason="client_gone"} 3.0'
        end = time.monotonic() + TIMEOUT
        while counted not in client.get("metrics").text:
            assert time.monotonic() < end, client.get("metrics").text
            time.sleep(0.05)
        client.close()
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.stdout.read()


def test_stopping_answers_what_was_accepted(bundle: str) -> None:
    with serving(bundle) as (process, client):
        answers: list[int] = []

        def ask() -> None:
            answer = client.post("v1/explain", files={"image": png(0, (3000, 3000))})
            answers.append(answer.status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        end = time.monotonic() + TIMEOUT
        while "vitcx_queue_depth 1.0" not in client.get("metrics").text and not answers:
            assert time.monotonic() < end
        process.send_signal(signal.SIGTERM)
        thread.join(TIMEOUT)
        assert answers == [200]
        client.close()
        assert process.wait(TIMEOUT) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("binary", [True, False])
def test_open_inference_protocol(client, bundle: str, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    host = f"{client.base_url.host}:{client.base_url.port}"
    images = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    with triton.InferenceServerClient(host) as server:
        assert server.is_server_live()
        assert server.is_server_ready()
        assert server.is_model_ready("tiny")
        assert server.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 3, SIZE, SIZE]
        given = triton.InferInput("images", list(images.shape), "FP32")
        given.set_data_from_numpy(images, binary_data=binary)
        targets = triton.InferInput("targets", [2], "INT64")
        targets.set_data_from_numpy(np.array([3, 1]), binary_data=binary)
        wanted = [
            triton.InferRequestedOutput(name, binary_data=binary)
            for name in ("probabilities", "saliency", "targets")
        ]
        answer = server.infer("tiny", [given, targets], outputs=wanted, parameters={"seed": 5})
        with pytest.raises(triton.InferenceServerException, match="no such model"):
            server.get_model_metadata("other")
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        expected = [explainer.explain(image, [3, 1], seed=5) for image in images]
    saliency = np.stack([one.saliency for one in expected])
    np.testing.assert_allclose(answer.as_numpy("saliency"), saliency, atol=1e-6)
    np.testing.assert_array_equal(answer.as_numpy("targets"), [[3, 1], [3, 1]])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"inputs": 3}',
        b'{"inputs": [{}]}',
        b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": [1], "data": ["x"]}]}',
        b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": [99999999999], "data": []}]}',
        b'{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": [1,3,2,2],'
        b' "data": [0,0,0,0,0,0,0,0,0,0,0,0]}]}',
    ],
)
def test_open_inference_refuses_in_a_sentence(client, body: bytes) -> None:
    answer = client.post("v2/models/tiny/infer", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.slow
def test_requests_made_from_the_specification_never_end_in_a_server_error(tmp_path):
    """Valid and invalid ones, by Schemathesis: no answer is a 5xx, and none fails to come."""
    pytest.importorskip("schemathesis")
    config = tmp_path / "schemathesis.toml"
    config.write_text('[parameters]\n"path.name" = "vitcx_demo"\n')
    words = ["--config-file", str(config), "run", "--no-color", "--seed", "1", "--warnings", "off"]
    words += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing"]
    words += ["--max-examples", "15", "--request-timeout", str(TIMEOUT)]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    with serving("demo") as (_, client):
        done = subprocess.run(
            [shutil.which("schemathesis", path=Path(sys.executable).parent), *words,
             f"{client.base_url}openapi.json"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        made = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert made, done.stdout
        assert int(made[1]) >= 200
        assert client.get("readyz").status_code == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\xff\xfe", "is not UTF-8 text"), (None, "No such file")],
)
def test_a_token_file_that_cannot_be_used_is_one_line(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    assert main(["serve", "--port", "0", "--token-file", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert str(path) in said
