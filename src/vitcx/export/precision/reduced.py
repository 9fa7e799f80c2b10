"""Writes the graphs of a reduced precision: the one that scores, and the one that encodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from vitcx.export.graph.to_onnx import is_large, save_graph
from vitcx.export.precision.formats import Precision
from vitcx.runtime.bundle import ENCODER_NAME, MODEL_NAME


def write_reduced(
    chosen: Precision, exact: Path, folder: Path, scratch: Path, encoder: str = "fp32"
) -> Path:
    """Write a bundle's graphs in a reduced precision to `folder`.

    Parameters
    ----------
    chosen : the precision; not float32.
    exact : folder of the float32 graph.
    folder : gets ``model.onnx`` and, with the encoder "fp32", ``encoder.onnx``.
    scratch : folder for what only the measurement needs.
    encoder : one of `ENCODERS`.

    Returns
    -------
    Path
        A folder whose graphs give on a CPU what those in `folder` give where they can run: `folder`
        itself, or one in `scratch`.
    """
    assert chosen.write is not None
    chosen.write(exact / MODEL_NAME, folder / MODEL_NAME)
    runnable = folder
    if chosen.write_stand_in is not None:
        runnable = scratch / "stand_in"
        runnable.mkdir()
        chosen.write_stand_in(folder / MODEL_NAME, runnable / MODEL_NAME)
    if encoder == "fp32":
        for place in dict.fromkeys((folder, runnable)):
            _copy_graph(exact / MODEL_NAME, place / ENCODER_NAME)
    return runnable


def _copy_graph(source: Path, target: Path) -> None:
    """Copy a graph; weights in a file of their own get the name that goes with the new one."""
    model = ir.load(source)
    if is_large(model):
        save_graph(model, target)
    else:
        shutil.copyfile(source, target)
