"""Writes the graphs of a reduced precision: the one that scores, and the one that encodes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from vitcx.export.graph.shared_weights import share_weights
from vitcx.export.graph.to_onnx import save_graph
from vitcx.export.precision.formats import Precision
from vitcx.runtime.manifest import ENCODER_NAME, MODEL_NAME, TEAMS_NAME


def write_reduced(
    chosen: Precision, exact: Path, folder: Path, scratch: Path, encoder: str = "fp32"
) -> Path:
    """Write a bundle's graphs in a reduced precision to `folder`.

    Parameters
    ----------
    chosen : the precision; not float32.
    exact : folder of the float32 graphs.
    folder : gets ``model.onnx``, ``teams.onnx`` if `exact` has it and, with the encoder "fp32",
        ``encoder.onnx``.
    scratch : folder for what only the measurement needs.
    encoder : one of `ENCODERS`.

    Returns
    -------
    Path
        A folder whose graphs give on a CPU what those in `folder` give where they can run: `folder`
        itself, or one in `scratch`.
    """
    assert chosen.write is not None
    runnable = folder
    if chosen.write_stand_in is not None:
        runnable = scratch / "stand_in"
        runnable.mkdir()
    has_teams = (exact / TEAMS_NAME).is_file()
    for name in (MODEL_NAME, TEAMS_NAME) if has_teams else (MODEL_NAME,):
        chosen.write(exact / name, folder / name)
        if chosen.write_stand_in is not None:
            chosen.write_stand_in(folder / name, runnable / name)
    if encoder == "fp32":
        for place in dict.fromkeys((folder, runnable)):
            save_graph(ir.load(exact / MODEL_NAME), place / ENCODER_NAME)
    if has_teams:
        share_weights(folder)
    return runnable
