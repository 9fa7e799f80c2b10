"""`vitcx serve`: explanations over HTTP."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
from pathlib import Path

import click
import numpy as np
from PIL import Image

from vitcx.commands.options import SectionedCommand, bundle_option, engine_options
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.pictures.decoders import DECODE_SECONDS, decode_apart
from vitcx.runtime.presets import DEFAULT_PRESET, PRESET_NAMES

LOG_FORMATS = ("text", "json")
_MODULES = (
    "fastapi",
    "httptools",
    "msgspec",
    "prometheus_client",
    "python_multipart",
    "uvicorn",
)


# KServe writes options with underscores: --http_port is --http-port.
@click.command(
    "serve",
    cls=SectionedCommand,
    context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
)
@bundle_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. 0.0.0.0 is every network of this machine.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Host name that requests may carry; '*' allows any. Repeat it for several.  "
    "[default: the names of this machine's loopback, and --host]",
)
@click.option(
    "--port",
    "--http-port",
    "port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes a free one and says which.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    envvar="VITCX_PRESET",
    show_envvar=True,
    help="Settings of requests that name no preset. A request's single settings override it.  "
    f"[default: {DEFAULT_PRESET}]",
)
@click.option(
    "--model-name",
    help="The model's name in /v1/models and /v2/models.  [default: the bundle's]",
)
@engine_options
@click.option(
    "--queue",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Requests inside at a time. One more is answered 429.",
)
@click.option(
    "--deadline",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.001),
    help="Seconds that a request may take. Then it is answered 504.",
)
@click.option(
    "--body-limit",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Largest request, in MiB.",
)
@click.option(
    "--pixel-limit",
    default=40_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Largest picture, in pixels.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with a bearer token that clients must send.  [default: $VITCX_TOKEN, or none]",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="text",
    show_default=True,
    help="Of the log on standard error, which has a line for each request.",
)
# KServe adds these to the command of every explainer. There is no predictor to ask, because the
# bundle holds the model, and one process serves all requests.
@click.option("--predictor-host", hidden=True, expose_value=False, help="Not used.")
@click.option("--workers", hidden=True, expose_value=False, help="Not used.")
def command(
    bundle: str,
    host: str,
    allowed_hosts: tuple[str, ...],
    port: int,
    preset: str | None,
    model_name: str | None,
    engine: str,
    threads: int | None,
    batch_size: int | None,
    device: int | None,
    allow_imprecise: bool,
    queue: int,
    deadline: float,
    body_limit: int,
    pixel_limit: int,
    token_file: Path | None,
    log_format: str,
) -> int:
    """Serve explanations over HTTP, with a page at / to try them.

    Requests share the engine's batches, so that many clients are served faster than one after the
    other. Ctrl-C or SIGTERM ends it: what was accepted is still answered.

    \b
    Example:
      vitcx serve --bundle vit_base --port 8000
    """
    _import_extra()
    from vitcx.serving.app import make_app
    from vitcx.serving.guard import LOOPBACK_HOSTS
    from vitcx.serving.limits import Limits
    from vitcx.serving.logs import server_log
    from vitcx.serving.server import Server

    if not host.strip():
        raise click.UsageError(
            "--host is empty: give 127.0.0.1 for this machine alone, or 0.0.0.0 for every network"
        )
    token = _read_token(token_file) if token_file else os.environ.get("VITCX_TOKEN")
    limits = Limits(queue, deadline, body_limit << 20, pixel_limit)
    hosts = (*LOOPBACK_HOSTS, host, *allowed_hosts)
    with (
        _listen(host, port) as listening,  # before the model is loaded, which takes its time
        load(bundle, engine, threads, batch_size, allow_imprecise, device) as explainer,
    ):
        _warm_up(explainer)
        app = make_app(explainer, limits, token, hosts, preset, model_name)
        # Ctrl-C is the way to stop it, and no failure.
        with server_log(log_format), contextlib.suppress(KeyboardInterrupt):
            Server(app, _announce).run(sockets=[listening])
    return 0


def _warm_up(explainer: Explainer) -> None:
    """Do what is done once, so that no client waits: a pass of each graph, a decoder's start."""
    nothing = np.zeros((1, 3, *explainer.manifest.input_size), np.float32)
    explainer.session.encode(nothing)
    explainer.session.predict(nothing)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    decode_apart(picture.getvalue(), "the first picture", 64, DECODE_SECONDS)


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, or an `OSError` that says in a sentence why there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise OSError(f"cannot listen at '{host}': {_reason(error)}") from None
    try:
        if os.name == "posix":  # on Windows it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        listening.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise OSError(
                f"port {port} of {host} is in use: stop the program that uses it, or give "
                "another --port (0 takes a free one)"
            ) from None
        raise OSError(f"cannot listen at {host}:{port}: {_reason(error)}") from None
    return listening


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _announce(url: str) -> None:
    click.echo(f"vitcx serves at {url}  (Ctrl-C stops it)")


def _import_extra() -> None:
    for module in _MODULES:
        try:
            __import__(module)
        except ImportError:
            raise MissingExtraError("'vitcx serve'", module, "serve") from None


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8-sig").strip()  # editors on Windows mark UTF-8
    except UnicodeDecodeError:
        raise click.UsageError(f"the token file '{path}' is not UTF-8 text") from None
    except OSError as error:
        raise click.UsageError(f"cannot read the token file '{path}': {error.strerror}") from None
    if not token:
        raise click.UsageError(f"the token file '{path}' is empty")
    if not token.isprintable() or " " in token:
        raise click.UsageError(f"the token in '{path}' has spaces or control characters")
    return token
