"""What docs/command-line.md tells to type exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from vitcx.cli import COMMANDS, root

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text("utf-8")
LINES = [
    line
    for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_of_the_page_is_understood(line):
    program, name, *words = shlex.split(line)
    assert program == "vitcx"
    command = root.get_command(click.Context(root), name)
    command.make_context(name, words)


def test_the_page_lists_every_command():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_every_shell_of_the_page_is_there(shell):
    assert f"_VITCX_COMPLETE={shell}_source vitcx" in PAGE
    done = subprocess.run(
        [sys.executable, "-c", "from vitcx.cli import main; main([])"],
        env={**os.environ, "_VITCX_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "_VITCX_COMPLETE" in done.stdout, done.stderr
