"""What else the paper claims: appendix B and F, figures 4 and 6, section 3.4.

    python -m benchmarks.faithfulness PHOTOGRAPHS --bundle DIR --checkpoint FILE --out OUT

prints the statistics of the masks and the sensitivity of the maps to δ and σ, and draws coverage
beside the map (figure 6). With ``--checkpoint`` it also randomises the model from the head down and
compares the maps (Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018). The bundle
'demo' needs neither: it draws its scenes, and its weights are read from its graph. With ``--out``,
a line for each picture and question is kept as it comes, and a run that was stopped, or is given
more pictures, goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from benchmarks.command import Benchmark, bundle_option, finish, images_argument, out_option
from benchmarks.models import DEMO, open_model
from vitcx.evaluation.curves import Question, score_curves
from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.map_agreement import rank_correlation
from vitcx.evaluation.masks import mean_similarity, overdetermination
from vitcx.evaluation.records import Records
from vitcx.evaluation.subjects import find_pictures
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED, make_scene
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.method.masks import vit_masks
from vitcx.runtime.pictures.preprocess import denormalise, normalise, prepare

THRESHOLDS = (0.05, 0.07, 0.1, 0.15, 0.2)
NOISES = (0.05, 0.1, 0.2, 0.4)


# (3,H,W) normalised pixels by name.
Pictures = dict[str, Any]


@click.command(cls=Benchmark)
@images_argument
@bundle_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="The bundle's weights: sanity check."
)
@click.option("--limit", default=20, show_default=True, help="Pictures.")
@click.option("--sanity-limit", default=10, show_default=True, help="Of them, sanity check.")
@click.option("--steps", default=28, show_default=True)
@out_option("Folder for figures and JSON.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    checkpoint: Path | None,
    limit: int,
    sanity_limit: int,
    steps: int,
    out: Path | None,
) -> None:
    """Statistics of masks, sensitivity to δ and σ, and the sanity check, on IMAGES."""
    if not images and bundle != DEMO:
        raise InputError("give IMAGES, files or folders: only the bundle 'demo' draws its own")
    with open_model(bundle, checkpoint) as model:
        explainer = model.explainer
        manifest = explainer.manifest
        if images:
            found = find_pictures(images)[:limit]
            pictures = {p.name: prepare(p, manifest).pixels for p in found}
        else:
            seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + limit)
            pictures = {f"scene {s}": normalise(make_scene(s).image, manifest) for s in seeds}
        context = {"model_sha256": manifest.model_sha256, "steps": steps}
        records = Records(None if out is None else out / "faithfulness.jsonl", context)
        _measure_masks(explainer, pictures, records)
        settings = [{"distance_threshold": t} for t in THRESHOLDS]
        settings += [{"noise_std": s} for s in NOISES]
        for chosen in track(settings, "sensitivity", transient=True):
            _measure_faithfulness(explainer, pictures, chosen, steps, records)
        report = {
            "model": manifest.model_name,
            "steps": steps,
            **_sum_up(pictures, settings, records),
        }
        if out is not None:
            from benchmarks.figures import draw_coverage  # needs the extra plot

            picture = next(iter(pictures.values()))
            plain = explainer.explain(picture, coverage_correction=False)
            drawn = denormalise(picture, manifest)
            draw_coverage(drawn, explainer.explain(picture), plain, out / "coverage.jpg")
        if checkpoint is not None or model.embedded:
            few = dict(list(pictures.items())[:sanity_limit])
            report["randomised"] = _sanity(model.module, explainer, few, records)
    for key, value in report.items():
        click.echo(f"{key}: {value}")
    finish(report, None if out is None else out / "faithfulness.json", ("onnxruntime", "torch"))


def _key(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in settings.items())


def _measure_masks(explainer: Explainer, pictures: Pictures, records: Records) -> None:
    """Similarity, impacts and coverage of each picture's masks that `records` lacks."""
    size = explainer.manifest.input_size
    missing = {n: p for n, p in pictures.items() if f"masks|{n}" not in records}
    for name, image in track(missing.items(), "masks", transient=True):
        _, embedding = explainer.session.encode(image[None])
        result = explainer.explain(image)
        plain = explainer.explain(image, coverage_correction=False)
        records.add(
            f"masks|{name}",
            similarity=mean_similarity(vit_masks(embedding[0], size), size),
            impacts=result.impacts[0].tolist(),
            like_coverage=rank_correlation(plain.saliency[0], plain.coverage),
        )


def _measure_faithfulness(
    explainer: Explainer,
    pictures: Pictures,
    settings: Mapping[str, Any],
    steps: int,
    records: Records,
) -> None:
    """Insertion minus deletion with these settings, of the pictures that `records` lacks."""
    key = _key(settings)
    missing = {n: p for n, p in pictures.items() if f"{key}|{n}" not in records}
    masks: list[int] = []

    def questions() -> Iterator[Question]:
        results = explainer.explain_many(missing.values(), **settings)
        for image, result in zip(missing.values(), results, strict=True):
            masks.append(len(result.masks))
            yield Question(image, result.saliency[0], result.targets[0])

    curves = score_curves(explainer.session, questions(), steps=steps)
    for place, (name, curve) in enumerate(zip(missing, curves, strict=True)):
        records.add(f"{key}|{name}", difference=curve.difference, masks=masks[place])


def _sum_up(
    pictures: Pictures, settings: Sequence[Mapping[str, Any]], records: Records
) -> dict[str, Any]:
    lines = {record["key"]: record for record in records}
    masks = [lines[f"masks|{name}"] for name in pictures]
    sensitivity = {}
    for key in map(_key, settings):
        of_key = [lines[f"{key}|{name}"] for name in pictures]
        sensitivity[key] = {
            **vars(bootstrap([line["difference"] for line in of_key])),
            "masks": float(np.mean([line["masks"] for line in of_key])),
        }
    return {
        "pictures": len(pictures),
        "mean_mask_similarity": vars(bootstrap([line["similarity"] for line in masks])),
        # JSON has no NaN: a variance that no picture gives is null.
        "overdetermination": {
            key: None if np.isnan(value) else value
            for key, value in overdetermination(
                [np.array(line["impacts"], dtype=np.float32) for line in masks]
            ).items()
        },
        "uncorrected_map_like_coverage": vars(bootstrap([line["like_coverage"] for line in masks])),
        "sensitivity": sensitivity,
    }


def _sanity(
    module: Any, explainer: Explainer, pictures: Pictures, records: Records
) -> dict[str, Any]:
    """Rank correlation of maps, weights as trained against random from the head down, no noise.

    Layers are made random in order whether or not their lines are there: the weights of a run that
    goes on are those of one that was not stopped.
    """
    import torch

    from benchmarks import plain

    classes = {n: int(explainer.session.predict(p[None])[0].argmax()) for n, p in pictures.items()}

    def explain(name: str) -> Any:
        return plain.batched(module, pictures[name], classes[name], noise_std=0.0)

    layers: dict[str, Any] = {"head": module.head}
    layers |= {f"block {i}": block for i, block in reversed(list(enumerate(module.blocks)))}
    layers["patch embedding"] = module.patch_embed
    keys = {label: [f"random {label}|{name}" for name in pictures] for label in layers}
    trained = {}
    if any(key not in records for of_label in keys.values() for key in of_label):
        trained = {name: explain(name) for name in track(pictures, "trained", transient=True)}
    for number, (label, layer) in enumerate(track(layers.items(), "sanity check", transient=True)):
        torch.manual_seed(number)  # whatever was drawn, or left out, for the layers before
        for part in layer.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        for name, key in zip(pictures, keys[label], strict=True):
            if key not in records:
                found = np.nan_to_num(explain(name))
                records.add(key, correlation=rank_correlation(trained[name], found))
    lines = {record["key"]: record for record in records}
    means = {
        label: float(np.mean([lines[key]["correlation"] for key in of_label]))
        for label, of_label in keys.items()
    }
    return {"pictures": len(pictures), "mean_rank_correlation": means}


if __name__ == "__main__":
    main()
