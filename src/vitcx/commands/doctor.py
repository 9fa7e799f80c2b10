"""`vitcx doctor`: what can run here."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib import metadata

import click

from vitcx.runtime.engines import probe_engines

_EXTRAS = {
    "cpu": ("onnxruntime",),
    "export": ("torch", "timm", "onnx", "onnxscript", "safetensors"),
    "plot": ("matplotlib",),
}


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
        "auto": usable[0] if usable else None,
        "engines": {
            engine.name: {"available": engine.available, "reason": engine.reason}
            for engine in engines
        },
        "missing_extras": missing,
    }
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        for key in ("vitcx", "python", "numpy", "machine"):
            click.echo(f"{key:12} {report[key]}")
        click.echo("engines, in the order in which 'auto' prefers them:")
        for engine in engines:
            click.echo(
                f"  {'yes' if engine.available else 'no ':3}  {engine.name}: {engine.reason}"
            )
        click.echo(f"'auto' takes: {report['auto'] or 'nothing: no engine can run here'}")
        for extra, absent in missing.items():
            click.echo(f"extra '{extra}' lacks: {', '.join(absent)}")
    return 0 if usable else 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
