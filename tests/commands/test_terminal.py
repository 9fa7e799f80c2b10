"""Names that others chose, on a terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from rich.table import Table

from vitcx.commands import terminal
from vitcx.commands.progress import progress_bar


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a photo of a dog", "a photo of a dog"),
        ("σ of the 写真 é 👩‍👧", "σ of the 写真 é 👩‍👧"),
        ("[bold]x[/] :smile:", "[bold]x[/] :smile:"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("\u2028", r"\u2028"),
    ],
)
def test_text_is_shown_and_not_obeyed(text, shown):
    assert terminal.plain(text) == shown
    shown.encode("utf-8")


def test_json_is_ascii_and_comes_back_as_it_was(capsys):
    terminal.say_json({"é\x9b": "caf\udce9 写 👩"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"é\x9b": "caf\udce9 写 👩"}


def test_brackets_in_names_are_no_markup(capsys):
    console = terminal.make_console()
    console.print("pip install 'vitcx[openvino]'")
    table = Table(box=None)
    table.add_column("model")
    table.add_row("a[/b] [red]c :smile:")
    console.print(table)
    out = capsys.readouterr().out
    assert "vitcx[openvino]" in out
    assert "a[/b] [red]c :smile:" in out


def test_brackets_in_the_names_of_bars_are_no_markup():
    progress = progress_bar()
    progress.add_task("vit-cx:x=[/red]", total=3)
    stream = io.StringIO()
    Console(file=stream, width=80).print(progress.get_renderable())
    assert "vit-cx:x=[/red]" in stream.getvalue()


def test_output_to_a_file_is_80_columns_wide(capsys):
    terminal.make_console().print("word " * 40)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
