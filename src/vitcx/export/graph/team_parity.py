"""Compares the graph that scores teams with torch, and the tokens that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcx.export.graph.parity import Tolerance, normalised, scene
from vitcx.export.graph.tokens import Teams, plain_features
from vitcx.export.preprocessing import Preprocessing
from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import (
    ENCODER_NAME,
    INPUT,
    MODEL_NAME,
    PATCHES,
    PICTURES,
    PROBABILITIES,
    TEAMS_NAME,
    TOKENS,
)
from vitcx.runtime.onnx_runtime import import_onnxruntime, open_on_cpu

Array = NDArray[np.float32]
Indices = NDArray[np.int64]

# Pictures, rows, and the part of the patches that a row keeps. The last one keeps them all.
_TRIALS = ((1, 1, 2), (3, 5, 3), (2, 3, 1))
# Differences are taken of no smaller score: a value may be 0, the likeliest of 1000 classes is not.
_LEAST_SCORE = 1e-3
_SEED = 20240814


def check_teams(
    folder: Path,
    module: nn.Module,
    teams: Teams,
    preprocessing: Preprocessing,
    tolerance: Tolerance,
) -> dict[str, float]:
    """Compare a folder's ``teams.onnx`` with torch, on the tokens that its encoder gives.

    Parameters
    ----------
    folder : of the graphs.
    module : images (B,channels,H,W) to (probabilities, embedding, tokens).
    teams : of the same model.
    preprocessing : size and normalisation of the pictures.
    tolerance : largest differences allowed; the tokens' is that of the embedding's rms.

    Returns
    -------
    dict
        Largest differences, the tolerances, and the number of rows, for the manifest.

    Raises
    ------
    BundleError
        If the graph is not of the form that it must have, or anything differs by more than it may.
    """
    encoder = folder / (ENCODER_NAME if (folder / ENCODER_NAME).exists() else MODEL_NAME)
    onnxruntime = import_onnxruntime("vitcx export", "export")
    encode, score = (open_on_cpu(onnxruntime, path) for path in (encoder, folder / TEAMS_NAME))
    rows = 0
    worst = np.zeros(3)  # tokens; probabilities, absolutely and of their row's largest
    for images, pictures, patches in _trials(teams, preprocessing):
        with torch.no_grad():
            whole, _, tokens = module(torch.from_numpy(images))
            expected = _expected(teams, tokens, pictures, patches).numpy()
            if patches.shape[1] == teams.grid[0] * teams.grid[1]:
                expected[0] = whole[pictures[0]].numpy()  # all in order: the model's own answer
        (mine,) = encode.run([TOKENS], {INPUT: images})
        _check_form(score, mine.shape[1:], expected.shape[1])
        (got,) = score.run([PROBABILITIES], {TOKENS: mine, PICTURES: pictures, PATCHES: patches})
        off = np.abs(got - expected)
        largest = np.abs(expected).max(1)
        found = (
            _relative(mine, tokens.numpy()),
            off.max() / max(1.0, largest.max()),  # a regression's values have any size
            (off.max(1) / np.maximum(largest, _LEAST_SCORE)).max(),
        )
        worst = np.maximum(worst, found)  # NaN if either is
        rows += len(patches)
    limits = (tolerance.embedding_rms, tolerance.probabilities, tolerance.team_relative)
    if not (worst <= limits).all():
        raise BundleError(
            f"the exported graphs differ from torch by {worst[0]:.1e} of the tokens' rms (at most "
            f"{limits[0]:.0e}) and, with some patches left out, by {worst[1]:.1e} in the "
            f"probabilities (at most {limits[1]:.0e}) and {worst[2]:.1e} of the largest "
            f"(at most {limits[2]:.0e}): the export was deleted"
        )
    return {
        "team_rows": float(rows),
        "tokens_rms_relative": float(worst[0]),
        "teams_probabilities_max_abs": float(worst[1]),
        "teams_probabilities_max_relative": float(worst[2]),
    }


def _trials(teams: Teams, p: Preprocessing) -> Iterator[tuple[Array, Indices, Indices]]:
    """Pictures (P,3,H,W), the picture of each row (B,), and the patches that it keeps (B,n)."""
    rng = np.random.default_rng(_SEED)
    count = teams.grid[0] * teams.grid[1]
    for pictures, rows, part in _TRIALS:
        drawn = normalised(np.stack([scene(p.input_size, rng) for _ in range(pictures)]), p)
        patches = np.stack([rng.permutation(count)[: max(1, count // part)] for _ in range(rows)])
        if part == 1:
            patches[0] = np.arange(count)
        yield drawn, rng.integers(pictures, size=rows), patches


def _expected(teams: Teams, tokens: Tensor, pictures: Indices, patches: Indices) -> Tensor:
    """Probabilities (B,C) by plain torch, row by row."""
    rows = [
        plain_features(teams, tokens[int(picture)], torch.from_numpy(kept))
        for picture, kept in zip(pictures, patches, strict=True)
    ]
    scores: Tensor = teams.scores(teams.logits(torch.stack(rows)))
    return scores


def _relative(got: Array, expected: Array) -> float:
    off = got.astype(np.float64) - expected
    return float(np.sqrt(np.mean(off**2) / np.mean(expected.astype(np.float64) ** 2)))


def _check_form(session: Any, tokens: tuple[int, ...], classes: int) -> None:
    """Names, element types and axes; of those, all are dynamic that a batch may differ in."""
    found = [
        (v.name, v.type, [axis if isinstance(axis, int) else None for axis in v.shape])
        for v in (*session.get_inputs(), *session.get_outputs())
    ]
    expected = [
        (TOKENS, "tensor(float)", [None, *tokens]),
        (PICTURES, "tensor(int64)", [None]),
        (PATCHES, "tensor(int64)", [None, None]),
        (PROBABILITIES, "tensor(float)", [None, classes]),
    ]
    if found != expected:
        raise BundleError(
            f"the graph that scores teams is {found}, expected {expected}, in which None may be "
            "any number: the export was deleted"
        )
