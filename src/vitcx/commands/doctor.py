"""`vitcx doctor`: what can run here, what the rest lacks, and what to do about it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib import metadata

import click

from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.driver import find_driver
from vitcx.runtime.engines.registry import AUTOMATIC, EngineStatus, probe_engines

_EXTRAS = {
    "cpu": ("onnxruntime",),
    "openvino": ("openvino",),
    "export": ("torch", "timm", "onnx", "onnxscript", "safetensors"),
    "plot": ("matplotlib",),
}
_ABSENT = "not installed"
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


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(as_json: bool) -> int:
    """Tell which engines can run here, and why the others cannot.

    Exits with 1 when no engine can run.
    """
    engines = probe_engines()
    usable = [engine.name for engine in engines if engine.available]
    missing = {
        extra: absent
        for extra, modules in _EXTRAS.items()
        if (absent := [name for name in modules if importlib.util.find_spec(name) is None])
    }
    report = {
        "vitcx": _version("vitcx"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "gpu": _gpu_lines(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) != _ABSENT},
        "auto": next((name for name in usable if name in AUTOMATIC), None),
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
        "missing_extras": missing,
    }
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        for key in ("vitcx", "python", "numpy", "machine"):
            click.echo(f"{key:12} {report[key]}")
        for line in _gpu_lines():
            click.echo(f"{'gpu':12} {line}")
        for name in _PACKAGES:
            if (version := _version(name)) != _ABSENT:
                click.echo(f"{'package':12} {name} {version}")
        _show_engines("in the order in which 'auto' prefers them", engines, automatic=True)
        _show_engines("by name only", engines, automatic=False)
        click.echo(f"'auto' takes: {report['auto'] or 'nothing: no engine can run here'}")
        for extra, absent in missing.items():
            click.echo(f"extra '{extra}' lacks: {', '.join(absent)}")
    return 0 if usable else 1


def _show_engines(title: str, engines: list[EngineStatus], *, automatic: bool) -> None:
    click.echo(f"engines, {title}:")
    for engine in engines:
        if (engine.name in AUTOMATIC) is not automatic:
            continue
        click.echo(f"  {'yes' if engine.available else 'no ':3}  {engine.name}: {engine.reason}")
        for problem in engine.problems[1:]:
            click.echo(f"         and {problem}")
        for note in engine.notes:
            click.echo(f"         note: {note}")


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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _ABSENT
