"""What else the paper claims: appendix B and F, figures 4 and 6, section 3.4.

``python -m benchmarks.faithfulness --bundle DIR IMAGES...`` prints the statistics of the masks and
the sensitivity of the maps to δ and σ, and draws coverage beside the map (figure 6); ``--model``
with the weights also randomises the model from the head down and compares the maps (Adebayo et
al., "Sanity checks for saliency maps", NeurIPS 2018). The bundle 'demo' needs neither: it draws
its scenes, and its weights are read from its graph. The last line of the output is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track
from scipy.stats import spearmanr

from benchmarks.embedded import embedded_module
from benchmarks.sources import DEMO
from vitcx.evaluation.curves import Question, score_curves
from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.masks import mean_similarity, overdetermination
from vitcx.evaluation.subjects import find_pictures
from vitcx.export.models import timm_model
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED, make_scene
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.masks import vit_masks
from vitcx.runtime.preprocess import normalise, prepare

THRESHOLDS = (0.05, 0.07, 0.1, 0.15, 0.2)
NOISES = (0.05, 0.1, 0.2, 0.4)


@click.command()
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--bundle", required=True, help="Folder, or 'demo'.")
@click.option("--model", "name", help="timm name of the same model, for the sanity check.")
@click.option("--checkpoint", type=click.Path(path_type=Path))
@click.option("--limit", default=20, show_default=True)
@click.option("--steps", default=28, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for figures and JSON.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    name: str | None,
    checkpoint: Path | None,
    limit: int,
    steps: int,
    out: Path | None,
) -> None:
    """Statistics of masks, sensitivity to δ and σ, and the sanity check, on IMAGES."""
    if not images and bundle != DEMO:
        raise InputError("give IMAGES, files or folders: only the bundle 'demo' draws its own")
    with load(bundle) as explainer:
        manifest = explainer.manifest
        if images:
            pixels = [prepare(p, manifest).pixels for p in find_pictures(images)[:limit]]
        else:
            seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + limit)
            pixels = [normalise(make_scene(seed).image, manifest) for seed in seeds]
        similarities, impacts, coverages = [], [], []
        for image in track(pixels, "masks", transient=True):
            _, embedding = explainer.session.encode(image[None])
            similarities.append(
                mean_similarity(vit_masks(embedding[0], manifest.input_size), manifest.input_size)
            )
            result = explainer.explain(image)
            impacts.append(result.impacts[0])
            plain = explainer.explain(image, coverage_correction=False)
            coverages.append(_rank(plain.saliency[0], plain.coverage))
            if out is not None and len(impacts) == 1:
                _figure(result, plain, out / "coverage.png")
        report: dict[str, Any] = {
            "pictures": len(pixels),
            "mean_mask_similarity": vars(bootstrap(similarities)),
            # JSON has no NaN: a variance that no picture gives is null.
            "overdetermination": {
                key: None if np.isnan(value) else value
                for key, value in overdetermination(impacts).items()
            },
            "uncorrected_map_like_coverage": vars(bootstrap(coverages)),
            "sensitivity": {},
        }
        settings = [{"distance_threshold": t} for t in THRESHOLDS]
        settings += [{"noise_std": s} for s in NOISES]
        for chosen in track(settings, "sensitivity", transient=True):
            key = ", ".join(f"{k}={v}" for k, v in chosen.items())
            report["sensitivity"][key] = _faithful(explainer, pixels, chosen, steps)
        if name is not None or bundle == DEMO:
            module = (
                embedded_module(explainer.bundle.model_path)
                if name is None
                else timm_model(name, checkpoint)[0]
            )
            report["randomised"] = _sanity(module, explainer, pixels)
    for key, value in report.items():
        click.echo(f"{key}: {value}")
    line = json.dumps(report)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "faithfulness.json").write_text(line + "\n", encoding="utf-8")
    click.echo(line)


def _rank(a: Any, b: Any) -> float:
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def _faithful(
    explainer: Explainer, pixels: list[Any], settings: dict[str, float], steps: int
) -> dict[str, float]:
    masks: list[int] = []

    def questions() -> Iterator[Question]:
        for image, result in zip(pixels, explainer.explain_many(pixels, **settings), strict=True):
            masks.append(len(result.masks))
            yield Question(image, result.saliency[0], result.targets[0])

    found = [c.difference for c in score_curves(explainer.session, questions(), steps=steps)]
    return {**vars(bootstrap(found)), "masks": float(np.mean(masks))}


def _sanity(module: Any, explainer: Explainer, pixels: list[Any]) -> dict[str, float]:
    """Rank correlation of maps, weights as trained against random from the head down, no noise."""
    import torch

    from benchmarks import plain

    classes = [int(explainer.session.predict(p[None])[0].argmax()) for p in pixels]

    def maps() -> list[Any]:
        return [
            plain.batched(module, p, c, noise_std=0.0) for p, c in zip(pixels, classes, strict=True)
        ]

    trained = maps()
    torch.manual_seed(0)
    layers: dict[str, Any] = {"head": module.head}
    layers |= {f"block {i}": block for i, block in reversed(list(enumerate(module.blocks)))}
    layers["patch embedding"] = module.patch_embed
    found = {}
    for label, layer in track(layers.items(), "sanity check", transient=True):
        for part in layer.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        scores = [_rank(a, np.nan_to_num(b)) for a, b in zip(trained, maps(), strict=True)]
        found[label] = float(np.mean(scores))
    return found


def _figure(result: Any, plain: Any, path: Path) -> None:
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, values, title in zip(
        figure.subplots(1, 3),
        (plain.coverage, plain.saliency[0], result.saliency[0]),
        ("coverage ρ", "map, not corrected", "map, corrected"),
        strict=True,
    ):
        axes.imshow(values, cmap="magma")
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
