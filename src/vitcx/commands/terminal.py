"""What is printed: lines that a terminal takes as text, JSON that any stream takes, and tables.

Class names, model names and paths come from files that others made. They are printed as they are
spelled: control characters and characters that turn the direction of writing are shown escaped, and
nothing in them is read as markup.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import click
from rich.console import Console

# Where the output goes to a file or a program; a terminal says its own width.
PLAIN_WIDTH = 80
# Marks that reorder the text around them on the screen.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, halves of surrogate pairs, and line and paragraph separators.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def plain(text: str) -> str:
    r"""`text` as one line that a terminal shows and does not obey: ESC becomes ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape", "surrogatepass").decode("ascii")
        if char in _TURNING or unicodedata.category(char) in _ESCAPED_CATEGORIES
        else char
        for char in text
    )


def say(text: str, *, err: bool = False) -> None:
    """Print one line, made `plain`, on stdout or stderr."""
    click.echo(plain(text), err=err)


def say_json(value: Any) -> None:
    """Print a JSON value in one line. ASCII only, so that every stream can carry it."""
    click.echo(json.dumps(value, ensure_ascii=True))


def make_console(*, stderr: bool = False) -> Console:
    """A console for tables and bars that reads no markup; 80 columns wide in files and pipes."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def tolerate_any_text() -> None:
    """Let stdout and stderr replace what their encoding lacks, instead of raising.

    A pipe on Windows is often cp1252, which has no δ and no Chinese file name.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
