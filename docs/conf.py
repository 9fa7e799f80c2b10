"""The documentation as a site: ``sphinx-build -W -c docs . site`` (extra ``docs``).

The source is the repository itself, so every link works on the site as it works in the repository.
Only the pages below are read.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tools.docs_site.docstrings import as_fields  # noqa: E402
from tools.docs_site.reference import with_generated_parts  # noqa: E402

project = "vitcx"
author = "The vitcx developers"
html_title = "vitcx"
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "examples/**.md",
    "examples/**.ipynb",
    "benchmarks/**.md",
    "tests/emulator/*.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton"]
templates_path: list[str] = []

myst_heading_anchors = 4  # named as the repository's host names them
nb_execution_mode = "off"  # a test runs the notebook
suppress_warnings = ["misc.highlighting_failure"]  # a console block that shows output
highlight_language = "text"
default_role = "py:obj"
smartquotes = False  # it makes one dash of an option's two
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"  # the fields of a class are listed with their meanings
autodoc_type_aliases = {"FloatArray": "FloatArray"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"

# Titles of the menu; the pages in their order.
MENU = {
    "Start": ["Tutorial <docs/tutorial>", "examples/notebook/explain", "All pages <docs/README>"],
    "How to": [
        "docs/export",
        "docs/own-onnx",
        "Your own head <docs/own-head>",
        "docs/hugging-face",
        "docs/datasets",
        "docs/read-shards",
        "docs/serving",
        "docs/scaling",
        "docs/run-on-a-gpu",
        "TensorRT plans <docs/tensorrt>",
        "Embed in C++ <docs/embedding-in-cpp>",
    ],
    "Reference": [
        "docs/command-line",
        "docs/python",
        "docs/http",
        "docs/bundle",
        "Models <docs/models>",
        "docs/engines",
        "docs/precision",
        "GPU status <docs/gpu-notes>",
        "benchmarks/README",
        "Benchmarks on a GPU <benchmarks/gpu/README>",
    ],
    "Explanation": [
        "docs/method",
        "docs/teams",
        "How fast <docs/speed>",
        "How faithful <docs/proof>",
    ],
    "Examples": [
        "KServe <examples/kserve/README>",
        "Triton <examples/triton/README>",
        "Docker <examples/docker/README>",
        "MLflow <examples/mlflow/README>",
        "C++ <examples/cpp_pipeline/README>",
    ],
    "Project": ["CONTRIBUTING", "CHANGELOG", "SECURITY"],
}


_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:#]+)\)")


def _path(entry: str) -> str:
    return entry.rpartition("<")[2].rstrip(">")


def _menu(found: set[str]) -> str:
    """The menu, at the end of the first page: a page that is in none of its parts comes last."""
    listed = [_path(entry) for entries in MENU.values() for entry in entries]
    parts = {**MENU, "More": sorted(found - {root_doc, *listed})}
    lines = []
    for title, entries in parts.items():
        there = [entry for entry in entries if _path(entry) in found]
        if there:
            lines += ["", "```{toctree}", ":hidden:", f":caption: {title}", "", *there, "```"]
    return "\n".join(lines) + "\n"


def _of_a_folder(link, folder):
    """A link to a folder leads to its page here; where it has none, there is no link."""
    if not (folder / link[2]).is_dir():
        return link[0]
    page = Path(link[2]) / "README.md"
    return f"[{link[1]}]({page})" if (folder / page).is_file() else link[1]


def _on_source(app, name, source):
    text = with_generated_parts(source[0])
    folder = (ROOT / name).parent
    text = _LINK.sub(lambda link: _of_a_folder(link, folder), text)
    # A link whose text is the file's name has the page's title here.
    source[0] = re.sub(r"\[[\w-]+\.md\]\(", "[](", text)
    if name == root_doc:
        source[0] += _menu(set(app.env.found_docs))


def _on_docstring(app, what, name, obj, options, lines):
    lines[:] = as_fields("\n".join(lines)).splitlines()


def _on_help(app, context, lines):
    """Help is plain text: an asterisk in it starts no emphasis."""
    lines[:] = [line.replace("*", "\\*") for line in lines]


def setup(app):
    """Connect what this site adds."""
    app.connect("source-read", _on_source)
    app.connect("autodoc-process-docstring", _on_docstring)
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", _on_help)
