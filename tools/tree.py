"""The tree of the package in CONTRIBUTING.md: a line for each folder and file, from its docstring.

``python -m tools.tree`` writes it; a test tells when it is out of date.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vitcx"
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- the tree: python -m tools.tree -->", "<!-- end of the tree -->"
WIDTH = 100


def summary(path: Path) -> str:
    """First sentence of a module's docstring, as far as it fits."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def lines(folder: Path = PACKAGE, depth: int = 0) -> Iterator[str]:
    """The lines of a folder and of what is in it: folders first."""
    init = folder / "__init__.py"
    yield _line(f"{folder.name}/", depth, summary(init) if init.is_file() else "")
    for child in sorted(folder.iterdir()):
        if child.is_dir() and any(child.glob("*.py")) and child.name != "__pycache__":
            yield from lines(child, depth + 1)
    for child in sorted(folder.glob("*.py")):
        if child.name not in ("__init__.py", "__main__.py"):
            yield _line(child.name, depth + 1, summary(child))


def _line(name: str, depth: int, text: str) -> str:
    head = f"{'  ' * depth}{name}".ljust(34)
    line = f"{head} {text}".rstrip()
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1].rsplit(' ', 1)[0]} …"


def page(text: str) -> str:
    """The page with today's tree in its place."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    tree = "\n".join(lines())
    return f"{before}{START}\n\n```\n{tree}\n```\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
