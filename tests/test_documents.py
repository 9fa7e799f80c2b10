"""Links in the documents lead somewhere, and their commands are understood."""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest

from vitcx.cli import root

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "examples", "benchmarks", "tests/emulator")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
OTHER_OPTIONS = {"--help"}.union(
    *(
        re.findall(r'"(--[a-z-]+)', p.read_text("utf-8"))
        for p in (ROOT / "benchmarks").rglob("*.py")
    )
)


def blocks_of(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)


def anchors_of(path: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(path.read_text("utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):  # another site's: nothing here may ask the network
            continue
        target, _, anchor = link.partition("#")
        found = page.parent / target if target else page
        assert found.exists(), link
        assert not anchor or anchor in anchors_of(found), link


def test_the_list_of_pages_names_every_page():
    page = ROOT / "docs" / "README.md"
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", page.read_text("utf-8")))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_the_files_and_modules_that_a_page_names_are_there(name):
    text = (ROOT / name).read_text("utf-8")
    for file in re.findall(r"`([\w-]+/[\w/-]+\.py)`", text):
        assert (ROOT / file).is_file() or (ROOT / "src" / "vitcx" / file).is_file(), file
    for module in re.findall(r"python -m ((?:benchmarks|tools)(?:\.[a-z0-9_]+)*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
    for dotted in re.findall(r"`(vitcx(?:\.\w+)+)`", text):
        pkgutil.resolve_name(dotted)


def options_of(command: click.Command) -> set[str]:
    own = {word for p in command.params for word in (*p.opts, *p.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            own |= options_of(found)
    return own


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page):
    known = options_of(root) | OTHER_OPTIONS
    text = without_blocks(page.read_text("utf-8"))
    for option in re.findall(r"`(?:vitcx [^`]*)?(--[a-z][a-z-]*)", text):
        assert option in known, option


LINES = sorted(
    {
        line
        for path in DOCUMENTS
        for block in blocks_of(path, "console")
        for line in block.splitlines()
    }
)


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_pages_is_understood(line):
    program, *words = shlex.split(line)
    assert program == "vitcx"
    command: click.Command = root
    context = click.Context(root)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    command.make_context(command.name, words)
