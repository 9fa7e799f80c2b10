"""What fp16, bf16 and int8 cost in predictions and maps, and what they gain on a CPU.

    python -m benchmarks.precision PHOTOGRAPHS --bundle DIR --out FILE

makes the reduced graphs of a float32 bundle as ``vitcx export`` does, and compares them with it
picture by picture; ``--encoder same`` lets each find its own masks, ``--engine`` adds an engine
that computes in less, such as openvino-bf16. With ``--speed`` it times forward passes, taking
turns, instead. With ``--records`` a run that was stopped goes on.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.command import Benchmark, finish, out_option
from vitcx.evaluation.map_agreement import STEPS, compare_precisions, summarise_precision
from vitcx.evaluation.records import Records
from vitcx.evaluation.speed import interleave
from vitcx.evaluation.subjects import find_pictures
from vitcx.export.precision.formats import AVAILABLE
from vitcx.export.precision.measuring import open_graph
from vitcx.export.precision.reduced import write_reduced
from vitcx.runtime.bundle import Bundle, read_bundle
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.manifest import ENCODERS
from vitcx.runtime.pictures.preprocess import prepare

PRECISIONS = [name for name in AVAILABLE if name != "fp32"]


@click.command(cls=Benchmark)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bundle", required=True, help="Folder of the float32 bundle.")
@click.option("--limit", default=100, show_default=True, help="Pictures.")
@click.option("--precision", "names", multiple=True, type=click.Choice(PRECISIONS))
@click.option("--encoder", default="fp32", show_default=True, type=click.Choice(ENCODERS))
@click.option("--engine", "engines", multiple=True, help="On the float32 bundle itself.")
@click.option("--speed", is_flag=True, help="Time forward passes instead.")
@click.option("--batch-size", default=16, show_default=True, help="Of the timing.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--records", type=click.Path(path_type=Path), help="Lines of a run that goes on.")
@out_option("JSON file.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    limit: int,
    names: tuple[str, ...],
    encoder: str,
    engines: tuple[str, ...],
    speed: bool,
    batch_size: int,
    rounds: int,
    records: Path | None,
    out: Path | None,
) -> None:
    """Compare reduced precisions of a bundle on IMAGES (files or folders)."""
    source = read_bundle(bundle)
    if source.manifest.precision != "fp32":
        raise click.UsageError(f"'{bundle}' is {source.manifest.precision}: give one in fp32")
    pictures = find_pictures(images)[:limit]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        opened = {"fp32": stack.enter_context(open_graph(source))}
        for name in () if engines and not names else names or PRECISIONS:
            if not (speed and name == "bf16"):  # ONNX Runtime has no bfloat16 on a CPU
                graph = write_bundle(
                    source, name, Path(scratch) / name, encoder, stand_in=not speed
                )
                opened[name] = stack.enter_context(open_graph(graph))
        for engine in engines:
            opened[engine] = stack.enter_context(load(bundle, engine))
        report: dict[str, Any] = {
            "model": source.manifest.model_name,
            "encoder": encoder,
        }
        if speed:
            pixels = [prepare(p, source.manifest).pixels for p in pictures]
            batch = np.stack([pixels[i % len(pixels)] for i in range(batch_size)])
            report |= {"batch_size": batch_size, "rounds": rounds}
            report["speed"] = _speed(opened, batch, rounds)
        else:
            report |= {"pictures": len(pictures), "steps": STEPS}
            report["precisions"] = _faithfulness(source, opened, pictures, records, encoder)
    for label, row in report["speed" if speed else "precisions"].items():
        click.echo(f"{label}: {json.dumps(row)}")
    finish(report, out, ("onnxruntime", "onnx", *["openvino"] * bool(engines)))


def write_bundle(
    source: Bundle, name: str, scratch: Path, encoder: str, *, stand_in: bool = True
) -> Bundle:
    """A float32 bundle in the precision `name`, made in the folder `scratch`.

    With `stand_in`, what gives the same on a CPU: it tells values, not speed.
    """
    folder, beside = scratch / "bundle", scratch / "beside"
    folder.mkdir(parents=True)
    beside.mkdir()
    runnable = write_reduced(AVAILABLE[name], source.path, folder, beside, encoder)
    made = runnable if stand_in else folder
    files = {file.name: "" for file in made.iterdir()}
    return Bundle(made, replace(source.manifest, precision=name, files=files))


def _faithfulness(
    source: Bundle,
    opened: dict[str, Explainer],
    pictures: list[Path],
    path: Path | None,
    encoder: str,
) -> dict[str, dict[str, float]]:
    manifest = source.manifest
    context = {"model_sha256": manifest.model_sha256, "steps": STEPS, "encoder": encoder}
    records = Records(path, context)
    reference, reduced = opened["fp32"], {n: e for n, e in opened.items() if n != "fp32"}
    for picture in pictures:
        if all(f"{name}|{picture.name}" in records for name in reduced):
            continue
        pixels = prepare(picture, manifest).pixels
        for found in compare_precisions(reference, reduced, [pixels]):
            for name, line in found.items():
                records.add(f"{name}|{picture.name}", precision=name, figures=line)
    return {
        name: summarise_precision([r["figures"] for r in records if r["precision"] == name])
        for name in reduced
    }


def _speed(opened: dict[str, Explainer], batch: Any, rounds: int) -> dict[str, dict[str, Any]]:
    """Images a second, and times faster than fp32 round by round: median, least and most."""
    sessions = {name: explainer.session for name, explainer in opened.items()}
    for session in sessions.values():
        session.predict(batch)  # warm
    calls = {n: lambda _, s=session: s.predict(batch) for n, session in sessions.items()}
    seconds = interleave(calls, 1, rounds)
    found = {}
    for name, samples in seconds.items():
        ratios = [a / b for a, b in zip(seconds["fp32"], samples, strict=True)]
        found[name] = {
            "images_per_second": len(batch) / statistics.median(samples),
            "times_faster": statistics.median(ratios),
            "times_faster_least": min(ratios),
            "times_faster_most": max(ratios),
            "seconds": samples,
        }
    return found


if __name__ == "__main__":
    main()
