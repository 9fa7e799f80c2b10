"""Runs a notebook and keeps what its cells show: ``python -m tools.notebook [FILE]``."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "notebook" / "explain.ipynb"


def run(path: Path = NOTEBOOK) -> Any:
    """The notebook after a run from its first cell to its last, in this Python.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    import nbclient
    import nbformat

    read: Any = nbformat.read  # untyped in nbformat
    notebook = read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    for cell in notebook.cells:  # when a cell ran is no part of the document
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            _make_small(output.get("data", {}))
    return notebook


def _make_small(data: Any) -> None:
    """Pictures in 256 colours, once each: a repository is no place for megabytes."""
    from PIL import Image

    data.pop("image/jpeg", None)
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        png = io.BytesIO()
        picture.quantize(256).save(png, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(png.getvalue()).decode()


if __name__ == "__main__":
    import nbformat

    file = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    write: Any = nbformat.write
    write(run(file), file)
