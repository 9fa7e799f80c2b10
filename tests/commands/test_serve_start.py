"""How `vitcx serve` starts and stops, as a person at a terminal meets it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from vitcx.cli import main
from vitcx.commands.serve import _read_token

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "onnxruntime"):
    pytest.importorskip(module)


def test_a_busy_port_is_one_line_before_the_model_is_loaded(capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert main(["serve", "--bundle", "nowhere", "--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"port {port} of 127.0.0.1 is in use" in err


def test_a_host_that_does_not_exist_is_one_line(capsys):
    assert main(["serve", "--bundle", "nowhere", "--host", "x" * 70]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "cannot listen at 'xxx" in err


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a child")
def test_ctrl_c_ends_the_server_with_exit_code_0():
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcx", "serve", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(30)
    assert (process.returncode, err) == (0, "")


def test_a_token_file_may_begin_with_the_mark_of_utf_8(tmp_path):
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbfabc\r\n")
    assert _read_token(tmp_path / "token") == "abc"


@pytest.mark.parametrize("token", ["a b", "a\0b", "a\x1bb", "abc\ndef"])
def test_a_token_that_no_header_could_carry_is_refused(tmp_path, capsys, token):
    (tmp_path / "token").write_text(token)
    words = ["serve", "--bundle", "nowhere", "--port", "0", "--token-file"]
    assert main([*words, str(tmp_path / "token")]) == 2
    assert "spaces or control characters" in capsys.readouterr().err
