"""Further figures of a map, beside the curves: faithfulness in other words, and steadiness.

`saco` and `mufidelity` ask the model about the map, `sparseness` looks at the map alone;
`seed_correlation` and `class_correlation` ask the method again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.evaluation.curves import Question, hider, pixel_ranks, taken_pixels
from vitcx.evaluation.map_agreement import rank_correlation
from vitcx.runtime.engines.session import Session
from vitcx.runtime.explainer import Explainer

FloatArray = NDArray[np.float32]
Figures = dict[str, float]

GROUPS = 10
SUBSETS = 128
SUBSET_SHARE = 0.2

METRICS: Mapping[str, str] = {
    "saco": "whether parts that the map ranks higher matter more to the model, -1 to 1 (SaCo)",
    "mufidelity": "correlation of what hidden patches sum up to in the map with the score's fall",
    "sparseness": "Gini index of the heatmap: 0 all alike, towards 1 a single pixel",
    "seed": "rank correlation of the maps under two seeds",
    "class": "rank correlation of the maps of two classes: low tells them apart",
}


def saco(
    session: Session, question: Question, *, groups: int = GROUPS, canvas: str = "mean"
) -> float:
    """Salience-guided Faithfulness Coefficient, from -1 to 1; `groups` + 1 forward passes.

    The pixels are cut into groups of equal size in order of saliency. For each two groups, the
    difference of their mean saliency counts for the map if hiding the higher one costs the target
    at least as much probability, and else against it. A flat map gives 0.
    Source: Wu et al., "On the faithfulness of vision transformer explanations" (CVPR 2024), where
    hidden pixels become the picture's mean colour.

    Parameters
    ----------
    groups : at least 2.
    canvas : what hidden pixels become, of `vitcx.evaluation.curves.CANVASES`.
    """
    ranks = pixel_ranks(question.saliency)
    edges = taken_pixels(ranks.size, groups)
    inside = [(ranks >= low) & (ranks < high) for low, high in itertools.pairwise(edges)]
    fall = _falls(session, question, inside, canvas)
    salience = [float(question.saliency[group].mean(dtype=np.float64)) for group in inside]
    total = weight = 0.0
    for i in range(groups - 1):
        for j in range(i + 1, groups):
            gap = salience[i] - salience[j]
            total += gap if fall[i] >= fall[j] else -gap
            weight += abs(gap)
    return total / weight if weight else 0.0


def mufidelity(
    session: Session,
    question: Question,
    grid: tuple[int, int],
    *,
    subsets: int = SUBSETS,
    share: float = SUBSET_SHARE,
    canvas: str = "zero",
    seed: int = 0,
) -> float:
    """Correlation of what hidden patches sum up to in the map with what hiding them costs.

    Each of `subsets` random subsets holds the same share of the patches of `grid`; Pearson's
    correlation, over the subsets, of the map's sum in them and of the fall of the target's
    probability. `subsets` + 1 forward passes. A flat map, or a score that never moves, gives 0.
    Source: Bhatt, Weller, Moura, "Evaluating and aggregating feature-based model explanations"
    (IJCAI 2020); patches instead of pixels as in the library Xplique.
    """
    count = grid[0] * grid[1]
    size = max(1, round(share * count))
    rng = np.random.default_rng(seed)
    chosen = np.zeros((subsets, count), dtype=bool)
    for row in chosen:
        row[rng.choice(count, size, replace=False)] = True
    patch_of = _patches(grid, question.saliency.shape)
    sums = np.bincount(
        patch_of.reshape(-1), question.saliency.reshape(-1).astype(np.float64), minlength=count
    )
    fall = _falls(session, question, (row[patch_of] for row in chosen), canvas)
    return _correlation(chosen @ sums, np.array(fall))


def sparseness(saliency: FloatArray) -> float:
    """Gini index of the heatmap (the map from its lowest value, 0, to its highest, 1).

    Source: Chalasani et al., "Concise explanations of neural networks using adversarial training"
    (ICML 2020). A flat map gives 0.
    """
    values = np.sort(saliency.reshape(-1).astype(np.float64) - float(saliency.min()))
    if values[-1] == 0:
        return 0.0
    places = 2 * np.arange(1, values.size + 1) - values.size - 1
    return float(places @ values / (values.size * values.sum()))


def seed_correlation(
    explainer: Explainer, settings: Mapping[str, Any], question: Question
) -> float:
    """Rank correlation of the map with that of the next seed; 1 where there is no chance in it."""
    other = {**settings, "seed": int(settings.get("seed", 0)) + 1}
    found = explainer.explain(question.pixels, question.target, **other)
    return rank_correlation(question.saliency, found.saliency[0])


def class_correlation(
    explainer: Explainer, settings: Mapping[str, Any], question: Question
) -> float:
    """Rank correlation of the map with that of the likeliest class that is not its target."""
    scores = explainer.session.predict(question.pixels[None])[0].copy()
    scores[question.target] = -np.inf
    found = explainer.explain(question.pixels, int(scores.argmax()), **settings)
    return rank_correlation(question.saliency, found.saliency[0])


def figures_of(
    names: Iterable[str],
    explainer: Explainer,
    settings: Mapping[str, Any] | None,
    canvas: str,
) -> Callable[[Question], Figures]:
    """What measures the metrics `names` of a map.

    Parameters
    ----------
    names : of `METRICS`.
    settings : of the method that made the map; None for a map that no method made, which has no
        other seed and no other class.
    canvas : what `mufidelity` hides patches with; `saco` takes the picture's mean colour.
    """
    session, grid = explainer.session, explainer.manifest.grid
    measures: dict[str, Callable[[Question], float]] = {
        "saco": lambda question: saco(session, question),
        "mufidelity": lambda question: mufidelity(session, question, grid, canvas=canvas),
        "sparseness": lambda question: sparseness(question.saliency),
    }
    if settings is not None:
        measures["seed"] = lambda question: seed_correlation(explainer, settings, question)
        measures["class"] = lambda question: class_correlation(explainer, settings, question)
    chosen = {name: measures[name] for name in names if name in measures}
    return lambda question: {name: measure(question) for name, measure in chosen.items()}


def _falls(
    session: Session, question: Question, hidden: Iterable[NDArray[np.bool_]], canvas: str
) -> list[float]:
    """By how much the target's probability falls when each set of pixels is hidden."""
    hide = hider(question.pixels, canvas)
    whole = float(session.predict(question.pixels[None])[0, question.target])
    falls: list[float] = []
    rows: list[FloatArray] = []

    def flush() -> None:
        scores = session.predict(np.stack(rows))[:, question.target]
        falls.extend(whole - float(score) for score in scores)
        rows.clear()

    for pixels in hidden:
        rows.append(hide(pixels))
        if len(rows) == session.batch_size:
            flush()
    if rows:
        flush()
    return falls


def _patches(grid: tuple[int, int], size: tuple[int, ...]) -> NDArray[np.int64]:
    """(H,W) the index of the patch that each pixel is in."""
    rows, columns = (
        np.arange(pixels) * patches // pixels for pixels, patches in zip(size, grid, strict=True)
    )
    return np.asarray(rows[:, None] * grid[1] + columns)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0
