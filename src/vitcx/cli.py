"""The command line: `vitcx COMMAND`.

Exit codes: 0 all done; 2 bad usage or input, said in one line on stderr; 1 the rest. Subcommands
live in `vitcx.commands` and are imported when called, so that `vitcx explain` pays for nothing
that it does not use.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

import vitcx
from vitcx.commands.terminal import plain, say, tolerate_any_text
from vitcx.kernels.errors import DeviceArrayError, DeviceError
from vitcx.runtime.errors import VitcxError

# Name -> (module, one line of help). The help stands here so that `vitcx --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("vitcx.commands.demo", "Try it: explain drawn scenes with the embedded model."),
    "explain": ("vitcx.commands.explain", "Explain pictures: an overlay, arrays and a summary."),
    "export": ("vitcx.commands.export", "Make a bundle of a PyTorch or timm model."),
    "dataset": ("vitcx.commands.dataset", "Explain a whole data set into Parquet files."),
    "serve": ("vitcx.commands.serve", "Serve explanations over HTTP, with a page to try them."),
    "evaluate": ("vitcx.commands.evaluate", "Measure how faithful the explanations are."),
    "bench": ("vitcx.commands.bench", "Measure how fast the explanations are here."),
    "doctor": ("vitcx.commands.doctor", "Show what can run here, and what is missing."),
    "plan": ("vitcx.commands.plan", "Build TensorRT plans ahead of time."),
    "triton": ("vitcx.commands.triton", "Write a model repository for a Triton server."),
}

GREETING = """\
vitcx shows which parts of a picture a Vision Transformer's answer rests on.

Try the embedded model:      vitcx demo --out out
Make a bundle of a model:    vitcx export vit_base_patch16_224 --out vit_base
Explain your own picture:    vitcx explain photo.jpg --bundle vit_base --out out

'vitcx --help' lists every command. 'vitcx COMMAND --help' explains one of them."""

_VERBOSE_HELP = "Log what is done, and which engine does it."
log = logging.getLogger("vitcx")


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
        _take_verbose(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        if name not in COMMANDS and close and not name.startswith("-"):
            raise click.UsageError(f"No such command '{name}': did you mean '{close[0]}'?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options, without the import of every command that click would do."""
        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _take_verbose(command: click.Command) -> None:
    """Let a subcommand, and those below it, take -v after their names too."""
    if not any("--verbose" in parameter.opts for parameter in command.params):
        command.params.append(
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_be_verbose,
                help=_VERBOSE_HELP,
            )
        )
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _take_verbose(inner)


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        log.setLevel(logging.INFO)  # ours alone: others log every node


class _PlainFormatter(logging.Formatter):
    """Log lines that a terminal takes as text, whatever names are in them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record))


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(vitcx.__version__)
@click.option("-v", "--verbose", is_flag=True, help=f"{_VERBOSE_HELP} Any command takes it too.")
@click.pass_context
def root(ctx: click.Context, verbose: bool) -> None:
    """Show which parts of a picture a Vision Transformer's answer rests on (ViT-CX)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO if verbose else logging.NOTSET)
    if ctx.invoked_subcommand is None:
        click.echo(GREETING)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Parameters
    ----------
    arguments : the words after `vitcx`; None takes those of the process.
    """
    try:
        result: Any = root.main(args=arguments, prog_name="vitcx", standalone_mode=False)
    except click.ClickException as error:
        return _refuse(error)
    except click.exceptions.Abort:
        return _fail("stopped", 1)
    except (VitcxError, DeviceError, DeviceArrayError) as error:
        return _fail(str(error), 2)
    except (OSError, MemoryError) as error:
        return _fail(f"{error}" or type(error).__name__, 1)
    except Exception as error:  # an engine's own error, or a fault of ours
        if log.isEnabledFor(logging.INFO):
            log.exception("what went wrong:")
        hint = "" if log.isEnabledFor(logging.INFO) else " (-v shows where)"
        return _fail(f"unexpected {type(error).__name__}: {error}{hint}", 1)
    return result if isinstance(result, int) else 0


def _refuse(error: click.ClickException) -> int:
    """Say what click found wrong, and where its help is."""
    ctx = getattr(error, "ctx", None)
    if ctx is None:
        return _fail(error.format_message(), 2)
    if isinstance(ctx.command, click.Group) and type(error).__name__ == "NoArgsIsHelpError":
        click.echo(ctx.get_help())  # a group of commands, named alone
        return 0
    return _fail(f"{error.format_message()} See '{ctx.command_path} --help'.", 2)


def _fail(message: str, code: int) -> int:
    """Say one line on stderr, whatever line breaks the message has, and give the exit code."""
    say(f"vitcx: {' '.join(message.split())}", err=True)
    return code


def run() -> None:
    """Entry point of the installed `vitcx` script."""
    tolerate_any_text()
    try:
        code = main()
    except KeyboardInterrupt:  # while the message about something else was being written
        code = 1
    sys.exit(code)
