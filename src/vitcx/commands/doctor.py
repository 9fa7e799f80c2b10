"""`vitcx doctor`: what can run here, what the rest lacks, and what to take."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import click

import vitcx
from vitcx.commands.extras import read_extras
from vitcx.commands.terminal import PLAIN_WIDTH, plain, say_json
from vitcx.evaluation.speed import describe_machine
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.driver import find_driver
from vitcx.runtime.engines.registry import AUTOMATIC, ENGINES, EngineStatus, probe_engines
from vitcx.runtime.presets import PRESETS

# What an engine's trouble is usually about.
_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
)
_PURPOSES = {
    "cpu": "explain on a CPU",
    "gpu": "explain on an NVIDIA GPU",
    "openvino": "explain on a CPU with OpenVINO",
    "rtx": "explain with TensorRT-RTX",
    "export": "make bundles of PyTorch and timm models",
    "plot": "figures",
    "bench": "compare with other explainers",
    "dataset": "explain data sets into Parquet",
    "serve": "the server",
    "ray": "data sets and the server on Ray",
}
# A CPU of fewer cores takes too long for the presets with more passes.
_CORES_FOR_BALANCED = 8


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> int:
    """Show which engines can run on this machine, and what is missing for the others.

    Run it first on a new machine, or when an engine does not start. It says which engine and preset
    fit the machine, and which extras of vitcx are installed. It exits with 1 if no engine can run.

    \b
    Example:
      vitcx doctor
    """
    engines = probe_engines()
    report = _report(engines)
    if as_json:
        say_json(report)
    else:
        _show(report, engines)
    return 0 if any(engine.available for engine in engines) else 1


def _report(engines: Sequence[EngineStatus]) -> dict[str, Any]:
    usable = [engine.name for engine in engines if engine.available]
    extras, cores = read_extras(), describe_machine()["cores"]
    return {
        "vitcx": vitcx.__version__,
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "machine": f"{platform.system()} {platform.machine()}, {cores} cores",
        "gpu": _gpu_lines(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "auto": next((name for name in usable if name in AUTOMATIC), None),
        "advice": advise(usable, cores),
        "engines": {
            engine.name: {
                "available": engine.available,
                "automatic": engine.name in AUTOMATIC,
                "reason": engine.reason,
                "problems": engine.problems,
                "notes": engine.notes,
            }
            for engine in engines
        },
        "extras": {
            extra.name: {"installed": not extra.missing, "missing": extra.missing}
            for extra in extras
        },
    }


def advise(usable: Sequence[str], cores: int) -> dict[str, str]:
    """The engine and preset to start with on a machine, and why.

    Parameters
    ----------
    usable : names of the engines that can run, in the order of the registry.
    cores : of the CPU.

    Returns
    -------
    ``engine``, ``preset`` and ``why``; empty where no engine can run.
    """
    if not usable:
        return {}
    on_gpu = {engine.name for engine in ENGINES if engine.on_gpu}
    engine = next((name for name in usable if name in AUTOMATIC), usable[0])
    if engine in on_gpu:
        return {"engine": engine, "preset": "best", "why": "a GPU has time for the most passes"}
    if "openvino-bf16" in usable:
        engine, faster = "openvino-bf16", "; this CPU computes in bfloat16, which is faster"
    else:
        faster = ""
    preset = "balanced" if cores >= _CORES_FOR_BALANCED else "quick"
    return {"engine": engine, "preset": preset, "why": f"a CPU with {cores} cores{faster}"}


def _show(report: dict[str, Any], engines: Sequence[EngineStatus]) -> None:
    for key in ("vitcx", "python", "numpy", "machine"):
        _say(f"{key:9} {report[key]}", 10)
    for line in report["gpu"]:
        _say(f"{'gpu':9} {line}", 10)
    for name, version in report["packages"].items():
        _say(f"{'package':9} {name} {version}", 10)
    _show_engines("Engines, in the order in which 'auto' tries them:", engines, automatic=True)
    _show_engines("Engines that run only if you name them:", engines, automatic=False)
    _say("\nExtras:")
    width = max(map(len, report["extras"]), default=0)
    for name, extra in report["extras"].items():
        state = "yes" if extra["installed"] else "no "
        lacks = "" if extra["installed"] else f"; lacks {', '.join(extra['missing'])}"
        _say(f"  {state}  {name:{width}}  {_PURPOSES.get(name, 'more models')}{lacks}", 9 + width)
        if not extra["installed"]:
            _say(f"{' ' * (9 + width)}pip install 'vitcx[{name}]'")
    if not report["extras"]:
        _say("  unknown: vitcx runs from its sources; install it with pip to see them", 2)
    _show_advice(report)


def _show_engines(title: str, engines: Sequence[EngineStatus], *, automatic: bool) -> None:
    _say(f"\n{title}")
    for engine in engines:
        if (engine.name in AUTOMATIC) is not automatic:
            continue
        _say(f"  {'yes' if engine.available else 'no ':3}  {engine.name}: {engine.reason}", 9)
        for problem in engine.problems[1:]:
            _say(f"         and {problem}", 9)
        for note in engine.notes:
            _say(f"         note: {note}", 9)


def _show_advice(report: dict[str, Any]) -> None:
    _say(f"\n'auto' takes: {report['auto'] or 'nothing: no engine can run here'}")
    advice = report["advice"]
    if not advice:
        _say("Install one: pip install 'vitcx[cpu]'")
        return
    summary = PRESETS[advice["preset"]].summary
    _say(f"For this machine: --engine {advice['engine']} --preset {advice['preset']}")
    _say(f"  ({advice['why']}. {advice['preset']}: {summary})", 2)


def _say(text: str, indent: int = 0) -> None:
    """Print a line, continued with an indent where it is longer than 80 columns."""
    start = text[: len(text) - len(text.lstrip("\n"))]
    click.echo(
        start
        + textwrap.fill(
            plain(text[len(start) :]),
            PLAIN_WIDTH,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _gpu_lines() -> list[str]:
    """The driver and each GPU, or why there is none."""
    try:
        driver = find_driver()
    except DeviceError as error:
        return [str(error)]
    return [
        f"{gpu.name}, compute capability {gpu.compute_capability}, "
        f"{gpu.memory_bytes / 2**30:.0f} GiB; the driver runs CUDA up to {driver.cuda}"
        for gpu in driver.gpus
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
