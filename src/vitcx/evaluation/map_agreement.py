"""What a reduced precision costs: its predictions and its maps against those of float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from vitcx.evaluation.curves import Question, score_curves
from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.records import Record
from vitcx.runtime.explainer import Explainer

FloatArray = NDArray[np.float32]

# Half of an evaluation's default: the areas move by less than 0.002, the time is halved.
STEPS = 28


def compare_precisions(
    reference: Explainer,
    reduced: Mapping[str, Explainer],
    pictures: Iterable[FloatArray],
    *,
    steps: int = STEPS,
) -> Iterator[dict[str, Record]]:
    """Compare a model at reduced precisions with itself in float32, picture by picture.

    All explain the class that float32 finds likeliest. Rank correlations (Spearman, over the
    pixels) are of maps without noise, and of maps with the default noise, the same on both sides.
    Deletion and insertion are of the latter maps, all judged by the model in float32, so that what
    changes is the map alone.

    Parameters
    ----------
    reference : the model in float32.
    reduced : the same model, by precision.
    pictures : each (3,H,W) float32, normalised.
    steps : of the deletion and insertion curves.

    Yields
    ------
    for each picture and precision: ``agrees`` (top-1, 0 or 1), ``probability_difference`` (largest
    over the classes), ``correlation`` (no noise), ``correlation_same_noise``, ``deletion`` and
    ``insertion`` (areas, reduced minus float32).
    """
    for pixels in pictures:
        exact = reference.session.predict(pixels[None])[0]
        target = int(exact.argmax())
        plain, noisy = _maps(reference, pixels, target)
        others = {label: _maps(explainer, pixels, target) for label, explainer in reduced.items()}
        maps = [noisy, *(other for _, other in others.values())]
        questions = [Question(pixels, saliency, target) for saliency in maps]
        before, *after = score_curves(reference.session, questions, steps=steps)
        found = {}
        for (label, explainer), curves in zip(reduced.items(), after, strict=True):
            rough = explainer.session.predict(pixels[None])[0]
            found[label] = {
                "agrees": float(rough.argmax() == target),
                "probability_difference": float(np.abs(exact - rough).max()),
                "correlation": rank_correlation(plain, others[label][0]),
                "correlation_same_noise": rank_correlation(noisy, others[label][1]),
                "deletion": curves.deletion_auc - before.deletion_auc,
                "insertion": curves.insertion_auc - before.insertion_auc,
            }
        yield found


def _maps(explainer: Explainer, pixels: FloatArray, target: int) -> tuple[FloatArray, FloatArray]:
    """The map without noise, and the one with the default noise."""
    plain = explainer.explain(pixels, target, noise_std=0.0)
    return plain.saliency[0], explainer.explain(pixels, target).saliency[0]


def summarise_precision(lines: Sequence[Record]) -> dict[str, float]:
    """The comparisons of at least one picture as the figures of a manifest.

    Changes of the areas are means over the pictures with the ends of their paired 95 % bootstrap
    interval.
    """
    found = {name: [line[name] for line in lines] for name in lines[0]}
    figures = {
        "images": float(len(lines)),
        "top1_agreement": float(np.mean(found["agrees"])),
        "probabilities_max_abs": float(np.max(found["probability_difference"])),
    }
    for noise in ("", "_same_noise"):
        correlations = found[f"correlation{noise}"]
        figures[f"rank_correlation{noise}_median"] = float(np.median(correlations))
        figures[f"rank_correlation{noise}_min"] = float(np.min(correlations))
    for side in ("deletion", "insertion"):
        interval = bootstrap(found[side])
        figures[f"{side}_change"] = interval.mean
        figures[f"{side}_change_low"] = interval.low
        figures[f"{side}_change_high"] = interval.high
    return figures


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Spearman's of two maps; two flat maps agree, a flat one and another do not at all."""
    flat = [float(np.ptp(m)) == 0 for m in (a, b)]
    if any(flat):
        return float(all(flat))
    return float(spearmanr(a.ravel(), b.ravel()).statistic)
