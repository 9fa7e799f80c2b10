"""The README's words run, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tools import tree

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 300  # of a module: one concept each
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    exec(compile(block, "README.md", "exec"), {"picture": picture})
    assert (tmp_path / "overlay.png").is_file()


def test_the_commands_of_the_readme_exist():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", make, flags=re.MULTILINE)
    from vitcx.cli import COMMANDS

    for command in re.findall(r"^vitcx (\w+)", README, flags=re.MULTILINE):
        assert command in COMMANDS


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_benchmark_that_can_be_run_is_in_its_list_and_the_commands_are_there():
    folder = ROOT / "benchmarks"
    listed = {
        name
        for page in ("README.md", "gpu/README.md")
        for name in re.findall(
            r"python -m (benchmarks\.[\w.]+)", (folder / page).read_text(encoding="utf-8")
        )
    }
    commands = {
        "benchmarks." + path.relative_to(folder).with_suffix("").as_posix().replace("/", ".")
        for path in folder.rglob("*.py")
        if "cls=Benchmark" in path.read_text(encoding="utf-8")
    }
    assert listed - {"benchmarks.NAME"} == commands


def test_the_tree_of_contributing_is_up_to_date():
    """`python -m tools.tree` writes it."""
    assert tree.page(tree.PAGE.read_text(encoding="utf-8")) == tree.PAGE.read_text(encoding="utf-8")


def test_every_module_is_short_and_says_what_it_is():
    for folder in ("src", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert text.count("\n") < MOST_LINES, path
            assert not text or tree.summary(path), path
