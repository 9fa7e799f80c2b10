"""What fp16, bf16 and int8 cost in predictions and maps, and what they gain on a CPU.

``python -m benchmarks.precision --bundle DIR IMAGES...`` makes the reduced graphs of a float32
bundle as ``vitcx export`` does, and compares them with it picture by picture; with ``--speed`` it
times ONNX Runtime's forward passes, taking turns, instead. With ``--records`` a run that was
stopped goes on. The last line of the output is JSON.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

from vitcx.evaluation.precision import STEPS, compare_precisions, summarise_precision
from vitcx.evaluation.records import Records
from vitcx.evaluation.subjects import find_pictures
from vitcx.export.measuring import open_graph
from vitcx.export.precision import AVAILABLE
from vitcx.runtime.bundle import Bundle, Manifest, read_bundle
from vitcx.runtime.preprocess import prepare

PRECISIONS = [name for name in AVAILABLE if name != "fp32"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bundle", required=True, help="Folder of the float32 bundle.")
@click.option("--limit", default=100, show_default=True, help="Pictures.")
@click.option("--precision", "names", multiple=True, type=click.Choice(PRECISIONS))
@click.option("--speed", is_flag=True, help="Time forward passes instead.")
@click.option("--batch-size", default=16, show_default=True, help="Of the timing.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--records", type=click.Path(path_type=Path), help="Lines of a run that goes on.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    limit: int,
    names: tuple[str, ...],
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
    with tempfile.TemporaryDirectory() as scratch:
        graphs = {
            name: _write(source, name, Path(scratch), runnable=speed)
            for name in names or PRECISIONS
            if not (speed and name == "bf16")  # ONNX Runtime has no bfloat16 on a CPU
        }
        report: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU used",
            "versions": {p: metadata.version(p) for p in ("onnxruntime", "onnx", "numpy")},
            "model": source.manifest.model_name,
        }
        if speed:
            pixels = [prepare(p, source.manifest).pixels for p in pictures]
            batch = np.stack([pixels[i % len(pixels)] for i in range(batch_size)])
            report |= {"batch_size": batch_size, "rounds": rounds}
            report["speed"] = _speed(
                source.manifest, {"fp32": source.model_path, **graphs}, batch, rounds
            )
        else:
            report |= {"pictures": len(pictures), "steps": STEPS}
            report["precisions"] = _faithfulness(source, graphs, pictures, records)
    for label, row in report.get("speed", report.get("precisions")).items():
        click.echo(f"{label}: {json.dumps(row)}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(report))


def _write(source: Bundle, name: str, scratch: Path, *, runnable: bool) -> Path:
    """The graph in the precision `name`; its stand-in if it is not the real one that is timed."""
    chosen = AVAILABLE[name]
    folder = scratch / name
    folder.mkdir()
    path = folder / "model.onnx"
    assert chosen.write is not None
    chosen.write(source.model_path, path)
    if chosen.write_stand_in is None or runnable:
        return path
    stand_in = folder / "stand_in" / "model.onnx"
    stand_in.parent.mkdir()
    chosen.write_stand_in(path, stand_in)
    return stand_in


def _faithfulness(
    source: Bundle, graphs: dict[str, Path], pictures: list[Path], path: Path | None
) -> dict[str, dict[str, float]]:
    manifest = source.manifest
    records = Records(path, {"model_sha256": manifest.files["model.onnx"], "steps": STEPS})
    reference = open_graph(manifest, source.path)
    reduced = {name: open_graph(manifest, graph.parent) for name, graph in graphs.items()}
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


def _speed(
    manifest: Manifest, graphs: dict[str, Path], batch: Any, rounds: int
) -> dict[str, dict[str, Any]]:
    """Images a second, and times faster than fp32 round by round: median, least and most."""
    sessions = {name: open_graph(manifest, path.parent).session for name, path in graphs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.predict(batch)
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
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
