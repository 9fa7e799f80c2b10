"""Explanations by PyTorch and by ours, taking turns: every entrant with as many masks.

The entrants do the same algorithm (`benchmarks.plain`): a mask at a time in float32, batched in
float32 and float16, and batched with the model compiled in float16. Each has thresholds of its own
where a number of masks is asked for, so that rounding gives none of them fewer passes.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.gpu.probe import line_of
from benchmarks.gpu.workload import threshold_for
from vitcx.evaluation.speed import interleave, ratios, summary
from vitcx.runtime.explainer import Explainer

LEAST_SECONDS = 30  # left for what comes after
OURS = "ours"


@dataclass
class Entrant:
    """One way to explain picture `i`.

    Attributes
    ----------
    seconds : that there must be left to take it in.
    masks : of each picture, where that is known.
    """

    explain: Callable[[int], Any]
    seconds: float
    masks: list[int] | None = None


@dataclass(frozen=True)
class Pictures:
    """What is explained: normalised pictures, the class of each, and the settings of each."""

    pixels: Sequence[np.ndarray]
    classes: Sequence[int]
    settings: Sequence[Mapping[str, Any]]
    masks: Sequence[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)


def chosen(explainer: Explainer, pixels: Sequence[np.ndarray], masks: int | None) -> Pictures:
    """Classes, and the thresholds that leave `masks` masks of each; None leaves the bundle's."""
    classes: list[int] = []
    settings: list[dict[str, float]] = []
    counts: list[int] = []
    for picture in pixels:
        probabilities, embedding = explainer.session.encode(picture[None])
        classes.append(int(probabilities[0].argmax()))
        if masks is None:
            settings.append({})
            continue
        threshold, count = threshold_for(embedding[0], explainer.manifest.input_size, masks)
        settings.append({"distance_threshold": threshold})
        counts.append(count)
    return Pictures(pixels, classes, settings, counts)


def entrants(
    explainer: Explainer, module: Any, pictures: Pictures, masks: int | None
) -> dict[str, Entrant]:
    """Ours, and PyTorch's with the module: float32, on its device."""
    import torch

    from benchmarks import plain

    half = copy.deepcopy(module).half()
    # With as many masks each time, one shape comes; else any.
    compiled: Any = functools.cache(
        lambda: torch.compile(half, dynamic=None if masks is not None else True)
    )
    rows = explainer.session.batch_size
    pixels, classes = pictures.pixels, pictures.classes

    @functools.cache
    def thresholds(model: Any) -> list[tuple[float, int]]:
        found = []
        for picture in pixels if masks is not None else ():
            device = next(model.parameters()).device
            with torch.no_grad():
                _, embedding = plain.embedding_of(model, torch.from_numpy(picture).to(device))
            low = embedding[0].float().cpu().numpy()
            found.append(threshold_for(low, explainer.manifest.input_size, masks or 1))
        return found

    def of_torch(model: Any, way: Callable[..., Any], seconds: float, **options: Any) -> Entrant:
        chosen = thresholds(model)

        def explain(i: int) -> Any:
            threshold = {"threshold": chosen[i][0]} if chosen else {}
            forward = {"forward": compiled()} if options.get("compiled") else {}
            batch = {"batch": rows} if way is plain.batched else {}
            return way(model, pixels[i], classes[i], **threshold, **forward, **batch)

        return Entrant(explain, seconds, [count for _, count in chosen] or None)

    def ours(i: int) -> Any:
        return explainer.explain(pixels[i], classes[i], **pictures.settings[i])

    return {
        OURS: Entrant(ours, 5, list(pictures.masks) or None),
        "torch float32, a mask at a time": of_torch(module, plain.loop, 15),
        "torch float32": of_torch(module, plain.batched, 15),
        "torch float16": of_torch(half, plain.batched, 15),
        "torch float16, compiled": of_torch(half, plain.batched, 90, compiled=True),
    }


def contest(
    entered: Mapping[str, Entrant],
    pictures: int,
    rounds: int,
    clock: Any,
    put: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Time the entrants by turns, and tell `put` after each round.

    Parameters
    ----------
    entered : `OURS` among them. One that fails is left out, with the line of its error.
    rounds : at most; each explains every picture once.
    clock : of `benchmarks.gpu.engines`.
    """
    failed: dict[str, str] = {}
    calls: dict[str, Callable[[int], Any]] = {}
    for name, entrant in entered.items():
        if not clock.allows(name, entrant.seconds + LEAST_SECONDS):
            continue
        try:
            for i in range(min(2, pictures)):
                entrant.explain(i)  # warm: kernels are chosen and compiled for what comes
        except Exception as error:  # no compiler, no memory, ...
            failed[name] = line_of(error)
            print(f"{name}: {failed[name]}", file=sys.stderr, flush=True)
            continue
        calls[name] = entrant.explain
    samples: dict[str, list[float]] = {name: [] for name in calls}

    def told() -> dict[str, Any]:
        found: dict[str, Any] = {name: {"error": line} for name, line in failed.items()}
        for name, seconds in samples.items():
            if seconds:
                found[name] = {**summary(seconds), "masks": entered[name].masks}
                if samples.get(OURS):
                    found[name]["ours_is_faster_by"] = ratios(seconds, samples[OURS])
        return found

    for _ in range(rounds):
        if not calls or clock.left < LEAST_SECONDS:
            break
        for name, found in interleave(calls, pictures, 1).items():
            samples[name] += found
        put(told())
    return told()
