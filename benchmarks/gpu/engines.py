"""Everything to prove about the GPU engines, in one command, within ten minutes.

    python -m benchmarks.gpu.engines --bundle DIR [--masks 70] [--model NAME] [PICTURES...]

For each engine that can run, in a process and a time limit of its own: parity of encode, score and
of whole explanations with the CPU engine; the time of a mask batch by the device's events and of
encoding by the clock; explanations one by one (p50, p99, the share outside the forward passes) and
packed; the device's matrix rate and what is reached of it; and, where torch and timm are there and
a model is named, PyTorch doing the same by turns: a mask at a time in float32, batched in float32
and float16, and compiled. ``--masks K`` cuts the clustering of each picture where it leaves K
masks: 2K + 1 forward passes.

What fails is a line in the report and does not stop the rest; what there is no time for is left out
and named. A JSON file is replaced after every step, so that a killed command loses one step. The
last line is that JSON. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from benchmarks.command import Benchmark, bundle_option, out_option
from benchmarks.gpu.contest import Pictures, chosen, contest, entrants
from benchmarks.gpu.measures import (
    REPEATS,
    Clock,
    goal,
    made_pictures,
    map_parity,
    measure,
    share_of_matrix_rate,
)
from benchmarks.gpu.probe import (
    ROOT,
    Report,
    default_path,
    line_of,
    matrix_rates,
    probe,
    run_tests,
)
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.device import Gpu
from vitcx.runtime.engines.registry import probe_engines
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.pictures.preprocess import prepare

ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
SECONDS = 560.0
DEFAULT_ROWS = 128


def against_torch(
    explainer: Explainer, pictures: Pictures, arguments: SimpleNamespace, clock: Clock,
    report: Report,
) -> dict[str, Any]:  # fmt: skip
    """The same explanations by PyTorch, the entrants taking turns."""
    module, told = torch_model(arguments)
    module = module.requires_grad_(False).eval().cuda()
    # The same model on both sides, or only one of the same size: this tells.
    told["probabilities_differ_by"] = _difference(module, explainer, pictures.pixels[0])
    entered = entrants(explainer, module, pictures, arguments.masks)

    def put(found: dict[str, Any]) -> None:
        report.put("torch", {**told, "explanations": found})

    rounds = -(-REPEATS // len(pictures))
    return {**told, "explanations": contest(entered, len(pictures), rounds, clock, put)}


def torch_model(arguments: SimpleNamespace) -> tuple[Any, dict[str, Any]]:
    """The model that the bundle was made of, and where its weights came from."""
    if arguments.random_weights is not None:
        from benchmarks.gpu.bundle import random_model

        seed = arguments.random_weights
        return random_model(arguments.model, seed), {"weights": f"random, seed {seed}"}
    from vitcx.export.sources.timm_models import timm_model

    module, source = timm_model(arguments.model, arguments.checkpoint)
    return module, {"weights": source}


def _difference(module: Any, explainer: Explainer, picture: np.ndarray) -> float:
    import torch

    with torch.no_grad():
        device = next(module.parameters()).device
        theirs = module(torch.from_numpy(picture[None]).to(device)).softmax(dim=1).cpu().numpy()
    return float(np.abs(theirs - explainer.session.predict(picture[None])).max())


def child(arguments: SimpleNamespace, report: Report) -> None:
    """One engine's report."""
    clock = Clock(arguments.seconds)
    start = time.perf_counter()
    # A bundle for a benchmark may have random weights, whose precision nobody has measured.
    explainer = load(
        arguments.bundle, engine=arguments.only, batch_size=rows(arguments), allow_imprecise=True
    )
    report.put("open_seconds", time.perf_counter() - start)
    with explainer, load(arguments.bundle, engine="onnxruntime", allow_imprecise=True) as cpu:
        pixels = [prepare(path, explainer.manifest).pixels for path in arguments.pictures]
        report.put("pictures", "given" if pixels else "made")
        pixels = pixels or made_pictures(explainer.manifest.input_size, 4)
        pictures = chosen(explainer, pixels, arguments.masks)
        measure(explainer, cpu, pictures, clock, report)
        if clock.allows("matrix rate", 10):
            report.step("matrix_tflop_per_s", matrix_rates)
            report.step("share_of_matrix_rate", lambda: share_of_matrix_rate(report.found))
        if arguments.model is not None and clock.allows("torch", 60):
            few = Pictures(*(part[:4] for part in vars(pictures).values()))
            report.step("torch", lambda: against_torch(explainer, few, arguments, clock, report))
        report.step("goal", lambda: goal(report.found))
        # Last: hundreds of passes of a large model on the CPU may take what time there is.
        if clock.allows("parity of maps", 30):
            report.step("map_parity", lambda: map_parity(explainer, cpu, pictures))
        report.put("left_out", clock.left_out)


def rows(arguments: SimpleNamespace) -> int:
    """Of a mask batch: all of an explanation, where the number of masks is given."""
    if arguments.batch_size is not None:
        return int(arguments.batch_size)
    return DEFAULT_ROWS if arguments.masks is None else 2 * int(arguments.masks)


def run_child(engine: str, given: Sequence[str], seconds: float, path: Path) -> dict[str, Any]:
    """An engine's report, of a process that may crash or hang: what it had found till then."""
    command = [sys.executable, "-m", "benchmarks.gpu.engines", *given, "--only", engine]
    command += ["--seconds", str(max(1.0, seconds - 10)), "--out", str(path)]
    error = None
    try:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=seconds,
            check=False, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            error = f"ended with {done.returncode}: {done.stderr.strip()[-600:]}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {seconds:.0f} s"
    found: dict[str, Any] = {}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found if error is None else {"error": error, **found}


@click.command(cls=Benchmark)
@click.argument("pictures", nargs=-1, type=click.Path(path_type=Path))
@bundle_option
@click.option("--masks", type=click.IntRange(min=1), help="Of each picture.  [default: its own]")
@click.option("--model", help="Of timm, with the bundle's weights: PyTorch takes part.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The model's weights.")
@click.option("--random-weights", type=int, metavar="SEED", help="Instead, as in bundle.")
@click.option("--engines", default=",".join(ENGINES), show_default=True)
@click.option("--batch-size", type=int, help="[default: 2 * masks, or 128]")
@click.option("--seconds", type=float, default=SECONDS, show_default=True, help="For everything.")
@out_option("JSON file.  [default: a file of this run's own in out/gpu]")
@click.option("--only", hidden=True)
def main(**given: Any) -> None:
    """Measure every engine that can run, on PICTURES or made ones."""
    arguments = SimpleNamespace(**given)
    for name in ("bundle", "checkpoint"):  # a child runs in the checkout's folder
        value = getattr(arguments, name)
        if value is not None and Path(value).exists():
            setattr(arguments, name, Path(value).resolve())
    arguments.pictures = [path.resolve() for path in arguments.pictures]
    if arguments.only is not None:
        report = Report(arguments.out)
        try:
            child(arguments, report)
        except Exception as error:
            report.put("error", line_of(error))
        click.echo(report.text())
        return
    try:
        Gpu()
    except DeviceError as error:
        sys.exit(str(error))
    report = Report((arguments.out or default_path("engines")).resolve())
    run_all(arguments, report)
    click.echo(report.text())


def run_all(arguments: SimpleNamespace, report: Report) -> None:
    """The machine, and every engine that can run here; the others with what they lack."""
    clock = Clock(arguments.seconds)
    probe(report)
    report.put("bundle", str(arguments.bundle))
    statuses = {status.name: status for status in probe_engines()}
    names = arguments.engines.split(",")
    unknown = {name: {"error": "there is no such engine"} for name in names if name not in statuses}
    lacking = {
        name: {"error": "; ".join(statuses[name].problems)}
        for name in names
        if name in statuses and not statuses[name].available
    }
    engines: dict[str, Any] = {**unknown, **lacking}
    report.put("engines", engines)
    able = [name for name in names if name not in engines]
    if "cuda" in able:
        report.step(
            "tests", lambda: run_tests(["tests/runtime/engines/ort_cuda/test_session.py"], 60)
        )
    for place, name in enumerate(able):
        seconds = clock.left / (len(able) - place)
        path = (report.path or default_path("engines")).with_suffix(f".{name}.json")
        path.unlink(missing_ok=True)
        engines[name] = run_child(name, options_of(arguments), seconds, path)
        report.put("engines", engines)
        print(name, json.dumps(engines[name].get("goal")), engines[name].get("error", ""),
              file=sys.stderr)  # fmt: skip


def options_of(arguments: SimpleNamespace) -> list[str]:
    """What a child is called with: paths are absolute."""
    words = ["--bundle", str(arguments.bundle)]
    for name in ("masks", "model", "checkpoint", "random_weights", "batch_size"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *map(str, arguments.pictures)]


if __name__ == "__main__":
    main()
