"""The server on Ray Serve: one replica for one CPU, on a local Ray that goes away again."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitcx
from vitcx.runtime.demo.scenes import make_scene

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("onnxruntime")
httpx = pytest.importorskip("httpx")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOURCE = Path(__file__).resolve().parents[2] / "src"
MARK = "VITCX_TEST_SERVE"
TOKEN = {"Authorization": "Bearer s3cret"}
# The replica's engine runs the same graph, with another number of rows to a batch.
TOLERANCE = 1e-5

# A process of its own: Ray warns and logs in it as it likes, and takes its signals.
PROGRAM = """
import sys
import ray
from ray import serve
from vitcx.serving.ray_app import build

ray.init(num_cpus=1, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
# Text, as `serve run` gives it.
arguments = {"bundle": "demo", "engine": "onnxruntime", "threads": "1"}
serve.run(build(arguments), route_prefix="/")
print("serving", flush=True)
sys.stdin.readline()
serve.shutdown()
ray.shutdown()
print("ended", flush=True)
"""


def processes(mark: str) -> list[str]:
    """Command lines of the living processes that were started with this mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the served application; afterwards nothing of it may be left."""
    mark = str(tmp_path_factory.mktemp("ray"))
    log = Path(mark, "log")
    environment = {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": str(SOURCE),
        "VITCX_TOKEN": "s3cret",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            lines = iter(process.stdout.readline, "")
            assert "serving\n" in lines, log.read_text()
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
            process.stdin.write("\n")
            process.stdin.flush()
            assert "ended\n" in lines, log.read_text()
            assert process.wait(60) == 0
            end = time.monotonic() + 30
            while left := processes(mark):
                assert time.monotonic() < end, left
                time.sleep(0.2)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def drawn() -> Any:
    return Image.fromarray(make_scene(7).image)


def png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def test_a_replica_answers_what_the_library_gives(served) -> None:
    data = {"targets": "top2", "include": "saliency"}
    answer = served.post("v1/explain", files={"image": png(drawn())}, data=data, headers=TOKEN)
    assert answer.status_code == 200, answer.text
    got = answer.json()
    with vitcx.load("demo", "onnxruntime", 1) as explainer:
        expected = explainer.explain(drawn(), "top2")
    assert [target["index"] for target in got["targets"]] == list(expected.targets)
    raw = base64.b64decode(got["saliency"]["data"])
    saliency = np.frombuffer(raw, "<f4").reshape(got["saliency"]["shape"])
    np.testing.assert_allclose(saliency, expected.saliency, atol=TOLERANCE)


def test_probes_figures_and_token(served) -> None:
    assert served.get("healthz").json() == {"status": "alive"}
    assert served.get("readyz").status_code == 200
    assert served.get("metrics").status_code == 401
    figures = served.get("metrics", headers=TOKEN)
    assert figures.status_code == 200
    assert "vitcx_queue_depth 0.0" in figures.text


def test_a_bad_upload_is_told_in_a_sentence(served) -> None:
    for files, says in ((b"no picture", "not a picture"), (png(drawn())[:60], "truncated")):
        answer = served.post("v1/explain", files={"image": files}, headers=TOKEN)
        assert answer.status_code == 400
        assert says in answer.json()["error"]
    assert served.post("v1/explain", content=b"x", headers=TOKEN).status_code == 415
    assert served.get("readyz").status_code == 200
