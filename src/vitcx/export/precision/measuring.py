"""Measures what a precision costs, for the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcx.evaluation.map_agreement import compare_precisions, summarise_precision
from vitcx.export.graph.parity import scene
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.pictures.preprocess import normalise, prepare

FloatArray = NDArray[np.float32]

# Where no photographs are given. Each costs some 250 forward passes.
DRAWN_SCENES = 4
_SEED = 20240814


def open_graph(bundle: Bundle) -> Explainer:
    """An explainer on the CPU of a bundle whose folder has no manifest yet."""
    return Explainer(bundle, open_session(bundle, "onnxruntime", check=False))


def measure_figures(
    exact: Bundle,
    reduced: Bundle,
    pictures: Sequence[Path],
    advance: Callable[[int, int], None],
) -> dict[str, float]:
    """The figures of a reduced precision.

    Parameters
    ----------
    exact, reduced : the graphs in float32 and in its precision (or their stand-ins).
    pictures : photographs; without any, drawn scenes are taken.
    advance : told how many of how many images are done.

    Returns
    -------
    dict
        As `summarise_precision` has it, and ``photographs``: how many of the images are.
    """
    manifest = exact.manifest
    if pictures:
        images = [prepare(path, manifest).pixels for path in pictures]
    else:
        rng = np.random.default_rng(_SEED)
        drawn = [scene(manifest.input_size, rng) for _ in range(DRAWN_SCENES)]
        images = [normalise(np.rint(picture * 255).astype(np.uint8), manifest) for picture in drawn]
    lines = []
    with open_graph(exact) as reference, open_graph(reduced) as other:
        for found in compare_precisions(reference, {"reduced": other}, images):
            lines.append(found["reduced"])
            advance(len(lines), len(images))
    return {**summarise_precision(lines), "photographs": float(len(pictures))}
