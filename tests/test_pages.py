"""Every page of docs/ runs: its Python and its commands, from top to bottom, in one folder.

A block that cannot run here stands below a comment ``<!-- needs: WHAT -->``.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitcx
from vitcx.cli import main
from vitcx.runtime.explainer import find_bundle

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^(<!-- needs: [^\n]+ -->\n)?```(\w*)\n(.*?)^```$", re.S | re.M)
# Pages that export models, a minute each, and pages of many commands.
EXPORTS = ("hugging-face", "own-head")
SLOW = (*EXPORTS, "command-line", "datasets", "read-shards")
# Their commands make figures, from photographs and in hours.
FIGURES = ("proof", "speed")
NAMES = [path.stem for path in sorted(DOCS.glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block, and what it needs that is not here."""

    needs: str
    language: str
    text: str


def blocks_of(name: str) -> list[Block]:
    text = re.sub(r"^ {3}(?=\S)", "", (DOCS / f"{name}.md").read_text("utf-8"), flags=re.M)
    return [Block(*found) for found in BLOCK.findall(text)]


def runs(name: str) -> bool:
    return any(not b.needs and b.language in ("python", "console") for b in blocks_of(name))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the pages speak of: pictures, a list, an archive, a bundle."""
    pytest.importorskip("pyarrow", reason="pyarrow (extra dataset) is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra cpu) is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    (tmp_path / "photos").mkdir()
    for file in ("photo.jpg", "other.png", "photos/first.jpg"):
        photo.save(tmp_path / file)
    (tmp_path / "list.csv").write_text("path,target\nphoto.jpg,star\n")
    with tarfile.open(tmp_path / "train-000.tar", "w") as archive:
        content = (tmp_path / "photo.jpg").read_bytes()
        for member, data in (("one.jpg", content), ("one.cls", b"3")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "vit_base").symlink_to(find_bundle("demo"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow, pytest.mark.timeout(1800)] if name in SLOW else [],
        )
        for name in NAMES
        if runs(name)
    ],
)
def test_a_page_runs_from_top_to_bottom(name, folder):
    before = {path.name for path in folder.iterdir()}
    if name in EXPORTS:
        pytest.importorskip("torch", reason="torch (extra export) is not installed")
        pytest.importorskip("transformers", reason="transformers (extra hf) is not installed")
        from vitcx.export.timm_import import import_timm

        import_timm()
    with vitcx.load("demo", engine="onnxruntime") as explainer:
        names = {"explainer": explainer, "picture": "photo.jpg"} if name == "teams" else {}
        for block in blocks_of(name):
            if block.needs:
                continue
            if block.language == "python":
                exec(compile(block.text, name, "exec"), names)
            elif block.language == "console":
                for line in block.text.splitlines():
                    program, *words = shlex.split(line)
                    assert program == "vitcx"
                    assert main(words) == 0, line
    if name == "tutorial":
        made = {path.name for path in folder.iterdir()} - before
        assert made == {"out", "maps", "shards", "overlay.png"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FIGURES])
def test_every_block_runs_or_says_what_it_needs(name):
    for block in blocks_of(name):
        assert block.language in ("python", "console", "sh"), block.text
        assert block.language != "sh" or block.needs, block.text


@pytest.mark.parametrize("name", NAMES)
def test_what_a_block_imports_of_vitcx_is_there(name):
    for block in blocks_of(name):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitcx"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
