"""docs/command-line.md lists every command, and completion works as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitcx.cli import COMMANDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text("utf-8")


def test_the_page_lists_every_command():
    table = PAGE.partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(COMMANDS)


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
