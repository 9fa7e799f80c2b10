"""The site builds without a warning, its links lead somewhere, and the reference is complete."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitcx
from tools.docs_site import docstrings, links, reference

ROOT = Path(__file__).resolve().parents[1]
NOT_CLASSES = {"__version__", "dataset", "evaluation", "export", "kernels", "runtime", "serving"}


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    named = set(re.findall(r"^\| `vitcx\.(\w+)` \|", page, flags=re.M))
    assert named == set(vitcx.__all__) - NOT_CLASSES


def test_the_presets_of_the_reference_are_the_presets():
    from vitcx.runtime.presets import PRESETS

    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)`(?: \([a-z]+\))? \| (.*) \|$", page, flags=re.M))
    for name, preset in PRESETS.items():
        for setting, value in preset.settings.items():
            shown = f'"{value}"' if isinstance(value, str) else f"{value:g}"
            row = rows[name].replace("as `balanced`", rows["balanced"])
            assert f"`{setting}={shown}`" in row, name


def test_docstrings_become_fields():
    assert doctest.testmod(docstrings).failed == 0
    text = (
        "Do.\n\nReturns\n-------\nan image\nof a size.\n\nRaises\n------\nInputError\n    If bad.\n"
    )
    assert docstrings.as_fields(text) == (
        "Do.\n\n:returns: an image of a size.\n\n:raises InputError: If bad."
    )


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here"></a><a href="#x"></a><p id="x"></p>')
    (tmp_path / "b.html").write_text('<p id="there"></p><img src="none.png">')
    assert list(links.broken_links(tmp_path)) == ["a.html: b.html#here", "b.html: none.png"]


@pytest.mark.slow
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    for module in ("sphinx", "myst_nb", "furo", "sphinx_click", "fastapi", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} (extras docs, serve, cpu) is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    command += ["-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert list(links.broken_links(tmp_path)) == []
    api = (tmp_path / "docs" / "python.html").read_text("utf-8")
    for name in set(vitcx.__all__) - NOT_CLASSES:
        assert f'id="{reference._home(f"vitcx.{name}")}"' in api
    options = (tmp_path / "docs" / "command-line.html").read_text("utf-8")
    from vitcx.cli import COMMANDS

    for name in COMMANDS:
        assert f'id="vitcx-{name}"' in options
    assert "/v1/explain" in (tmp_path / "docs" / "http.html").read_text("utf-8")
    assert (tmp_path / "examples" / "notebook" / "explain.html").is_file()


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_showed(tmp_path):
    for module in ("nbclient", "nbformat", "ipykernel", "onnxruntime", "matplotlib"):
        pytest.importorskip(module, reason=f"{module} (extras docs, cpu, plot) is not installed")
    code = (
        "import sys, nbformat; from tools import notebook; "
        "nbformat.write(notebook.run(), sys.argv[1])"
    )
    file = tmp_path / "run.ipynb"
    command = [sys.executable, "-W", "ignore", "-c", code, file]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    ran = json.loads(file.read_text("utf-8"))
    kept = json.loads((ROOT / "examples/notebook/explain.ipynb").read_text("utf-8"))
    for now, then in zip(ran["cells"], kept["cells"], strict=True):
        shown = [[*output.get("data", {"text": 0})] for output in now.get("outputs", [])]
        assert shown == [[*output.get("data", {"text": 0})] for output in then.get("outputs", [])]
