"""The checkout as it arrived on another machine: the package is found, and its links are there.

`src/vitcx` has links to folders beside it. A copy that drops links, or makes text files of them,
leaves a package that cannot be imported, with errors that do not say why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("export", "kernels", "runtime")


def link_problems(root: Path = ROOT) -> list[str]:
    """A line for each part of the package that did not survive the copy."""
    lines = []
    for name in LINKED:
        place = root / "src" / "vitcx" / name
        if not place.is_dir():
            found = "missing" if not os.path.lexists(place) else "no link that leads to a folder"
            lines.append(
                f"'{place}' is {found}: copy the checkout with its links, or run  "
                f"rm -f '{place}' && ln -s ../../{name} '{place}'"
            )
    return lines


def use_checkout(root: Path = ROOT) -> None:
    """Make the checkout's package the one that is imported; exit with a line if it is damaged."""
    problems = link_problems(root)
    if problems:
        sys.exit("\n".join(problems))
    source = str(root / "src")
    if sys.path[0] != source:
        sys.path.insert(0, source)
