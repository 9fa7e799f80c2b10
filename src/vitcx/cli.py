"""The command line: `vitcx COMMAND`.

Exit codes: 0 all done; 2 bad usage or input, said in one line on stderr; 1 the rest. Subcommands
live in `vitcx.commands` and are imported when called, so that `vitcx explain` pays for nothing
that it does not use.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import click

from vitcx.kernels.errors import DeviceArrayError, DeviceError
from vitcx.runtime.errors import VitcxError

# Name -> (module, one line of help). The help stands here so that `vitcx --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "explain": ("vitcx.commands.explain", "Explain pictures: overlay PNG, NPZ and JSON for each."),
    "demo": ("vitcx.commands.demo", "Explain drawn scenes with the embedded model."),
    "export": ("vitcx.commands.export", "Turn a PyTorch or timm model into a bundle."),
    "plan": ("vitcx.commands.plan", "Build TensorRT plans ahead of time, or take them over."),
    "dataset": ("vitcx.commands.dataset", "Explain a data set into Parquet shards; resumable."),
    "serve": ("vitcx.commands.serve", "Serve explanations over HTTP, with a page to try them."),
    "evaluate": ("vitcx.commands.evaluate", "Measure how faithful explanations are."),
    "bench": ("vitcx.commands.bench", "Time explanations on your model, engines and batch sizes."),
    "doctor": ("vitcx.commands.doctor", "Tell which engines can run here, and why others cannot."),
}


class _LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitcx")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, and which engine does it.")
def root(verbose: bool) -> None:
    """ViT-CX explanations of Vision Transformers, without PyTorch at run time."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    if verbose:
        logging.getLogger("vitcx").setLevel(logging.INFO)  # ours alone: others log every node


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Parameters
    ----------
    arguments : the words after `vitcx`; None takes those of the process.
    """
    try:
        result: Any = root.main(args=arguments, prog_name="vitcx", standalone_mode=False)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code if error.exit_code != 1 else 2)
    except click.exceptions.Abort:
        return _fail("stopped", 1)
    except (VitcxError, DeviceError, DeviceArrayError) as error:
        return _fail(str(error), 2)
    except (OSError, MemoryError) as error:
        return _fail(f"{error}" or type(error).__name__, 1)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    """Say one line on stderr, whatever line breaks the message has, and give the exit code."""
    click.echo(f"vitcx: {' '.join(message.split())}", err=True)
    return code


def run() -> None:
    """Entry point of the installed `vitcx` script."""
    sys.exit(main())
