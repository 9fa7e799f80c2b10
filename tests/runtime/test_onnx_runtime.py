"""ONNX Runtime collects no usage data in vitcx: nothing is written, nobody is called."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vitcx
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.onnx_runtime import TELEMETRY_SWITCH, import_onnxruntime

pytest.importorskip("onnxruntime")

SOURCE = Path(vitcx.__file__).parent
# Loads and explains; then a while for whatever is done behind its back.
WITH_VITCX = """
import sys, time, numpy, vitcx
with vitcx.load("demo", "onnxruntime", threads=1) as explainer:
    explainer.explain(numpy.zeros((96, 96, 3), "uint8"), estimator="fast")
    time.sleep(float(sys.argv[1]))
"""
WITHOUT_VITCX = "import sys, time, onnxruntime; time.sleep(float(sys.argv[1]))"
# ONNX Runtime 1.32 makes its first call after 9 to 10 seconds.
LONG = 14.0


def watch(program: str, seconds: float, home: Path, proxy: str = "") -> list[Path]:
    """Run a program with an empty home folder; returns the files that are there afterwards."""
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in (TELEMETRY_SWITCH, "XDG_CACHE_HOME")}
    environment = {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    if proxy:
        environment |= {"https_proxy": proxy, "http_proxy": proxy, "all_proxy": proxy}
    subprocess.run(
        [sys.executable, "-c", program, str(seconds)], env=environment, check=True, timeout=120
    )
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform != "linux", reason="it is the builds for Linux that do it")
def test_nothing_is_written_to_the_home_folder(tmp_path):
    assert watch(WITH_VITCX, 0.5, tmp_path / "with") == []


class Proxy:
    """A proxy on the loopback interface that notes whom it is asked to call."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.asked: list[bytes] = []
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(5)
                self.asked.append(connection.recv(200))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it is the builds for Linux that do it")
def test_nobody_is_called(tmp_path):
    """Beside a process without vitcx, which shows that this sees such a call."""
    proxies = {"with": Proxy(), "without": Proxy()}
    programs = {"with": WITH_VITCX, "without": WITHOUT_VITCX}
    threads = [
        threading.Thread(target=watch, args=(programs[n], LONG, tmp_path / n, proxy.url))
        for n, proxy in proxies.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for proxy in proxies.values():
        proxy.close()
    assert proxies["with"].asked == []
    if not proxies["without"].asked:
        pytest.skip("this ONNX Runtime calls nobody anyway")


def test_a_choice_of_the_user_stays(monkeypatch):
    monkeypatch.setenv(TELEMETRY_SWITCH, "0")
    import_onnxruntime()
    assert os.environ[TELEMETRY_SWITCH] == "0"
    monkeypatch.delenv(TELEMETRY_SWITCH)
    import_onnxruntime()
    assert os.environ[TELEMETRY_SWITCH] == "1"


def test_a_missing_module_names_the_feature_and_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"the engine 'cuda' .*vitcx\[gpu\]"):
        import_onnxruntime("the engine 'cuda'", "gpu")


def test_nothing_else_imports_it():
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"^\s*(import|from) onnxruntime\b(?!\.quantization)", path.read_text(), re.M)
    }
    assert found == {"runtime/onnx_runtime.py"}
