"""`vitcx` itself: the greeting, -v, completion, and how failures end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from vitcx import cli
from vitcx.cli import COMMANDS, main


@pytest.fixture(autouse=True)
def _quiet_log():
    yield
    logging.getLogger("vitcx").setLevel(logging.NOTSET)


def test_vitcx_alone_greets_with_three_commands(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) > 4
    assert all(len(line) <= 80 for line in lines)
    for command in ("vitcx demo", "vitcx explain", "vitcx export"):
        assert command in out
    assert err == ""


def test_a_group_alone_shows_its_help(capsys):
    assert main(["plan"]) == 0
    out, err = capsys.readouterr()
    assert "take" in out
    assert len(out.splitlines()) > 5
    assert err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_and_explains_every_option(capsys, name):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert f"vitcx {name}" in out.partition("Options:")[0].partition("\n")[2]
    command = cli.root.get_command(None, name)
    assert all(p.help for p in command.params if p.param_type_name == "option")


@pytest.mark.parametrize("words", [["-v", "doctor"], ["doctor", "-v"], ["plan", "take", "-v"]])
def test_verbose_is_taken_anywhere(words):
    main(words)
    assert logging.getLogger("vitcx").isEnabledFor(logging.INFO)
    main(["doctor", "--json"])
    assert not logging.getLogger("vitcx").isEnabledFor(logging.INFO)


def test_a_mistyped_command_is_told_the_right_one(capsys):
    assert main(["explian"]) == 2
    assert "did you mean 'explain'?" in capsys.readouterr().err


def test_bad_usage_says_where_the_help_is(capsys):
    assert main(["explain", "--out", "o"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "See 'vitcx explain --help'." in err


def test_what_nobody_expected_is_one_line_and_exit_code_1(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the engine\nis \x1b[31mred")

    monkeypatch.setattr("vitcx.commands.doctor.probe_engines", fail)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "unexpected RuntimeError: the engine is \\x1b[31mred" in err
    assert len(err.splitlines()) == 1


def test_completion_lists_commands_without_importing_them():
    program = """
import sys
from vitcx import cli
from vitcx.cli import COMMANDS, main
try:
    main([])
finally:
    assert not any(name.startswith("vitcx.commands.e") for name in sys.modules)
"""
    environment = {**os.environ, "_VITCX_COMPLETE": "bash_complete", "COMP_WORDS": "vitcx e"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["plain,explain", "plain,export", "plain,evaluate"]


def test_a_stream_of_few_characters_takes_every_help_and_name():
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    for words in (["explain", "--help"], ["explain", "写真.png", "--out", "写"]):
        done = subprocess.run(
            [sys.executable, "-m", "vitcx", *words],
            env=environment,
            capture_output=True,
            timeout=60,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == (0 if "--help" in words else 2)


def test_the_package_has_its_version_and_its_packages():
    program = """
import sys, vitcx
assert vitcx.__version__[0].isdigit()
for name in vitcx.__all__:
    getattr(vitcx, name)
assert callable(vitcx.export.export_model)
assert not {"torch", "onnx", "timm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
