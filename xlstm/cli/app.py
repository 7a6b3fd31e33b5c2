"""The command line: its commands, and how the process begins and ends."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

import xlstm
from xlstm.cli import launch, process_signals, train
from xlstm.cli.bench import bench
from xlstm.cli.compare_backends import compare
from xlstm.cli.console import Log, one_line_errors, out, show, tell
from xlstm.cli.export_import import export, import_
from xlstm.cli.info import check_kernels, info
from xlstm.cli.inspect import inspect
from xlstm.cli.predict import evaluate, forecast, generate, predict

HELP = ("-h", "--help")


class Group(TyperGroup):
    """Commands whose help is a whole sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Show the commands; Click would cut each sentence at the end of a line."""
        shown = [
            (name, self.commands[name])
            for name in self.list_commands(ctx)
            if not self.commands[name].hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(1000)) for name, command in shown]
            )


class Root(Group):
    """The command line, which says what is wrong in one line, and keeps its words for messages."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what comes before the name of a command."""
        if not args:  # help is shown
            return super().parse_args(ctx, args)
        with one_line_errors():
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands as help lists them, `train` first."""
        return sorted(super().list_commands(ctx), key="train".__ne__)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with one_line_errors():
            return super().invoke(ctx)


class Train(Group):
    """A group whose first command, which is hidden, is run where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the name of the command, or put that of the first one in its place."""
        known = [*HELP, *(name for name, command in self.commands.items() if not command.hidden)]
        named = args[0] in known if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if named else [next(iter(self.commands)), *args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the options of the first command, and the other commands."""
        self.usual.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands, and the options of the first one, that begin as the last word
        does.
        """
        return [
            *super().shell_complete(ctx, incomplete),
            *self.usual.shell_complete(ctx, incomplete),
        ]

    @property
    def usual(self) -> Any:
        """The command that is run where none is named."""
        return next(iter(self.commands.values()))


app = typer.Typer(
    help="The LSTM family with hand-written gradients, on NumPy and CuPy.",
    cls=Root,
    no_args_is_help=True,
    context_settings={"help_option_names": list(HELP)},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
kinds = typer.Typer(
    help=(
        "Train a model of a series (forecast, unless another is named), a text, or sequences with"
        " labels."
    ),
    cls=Train,
    subcommand_metavar="[forecast|text|classify] ...",
    rich_markup_mode=None,
)
app.add_typer(kinds, name="train")
kinds.command("series", hidden=True)(train.train_forecast)
for kind in ("forecast", "text", "classify"):
    kinds.command(kind)(getattr(train, f"train_{kind}"))
for command in (
    evaluate,
    predict,
    forecast,
    generate,
    export,
    import_,
    compare,
    bench,
    info,
    inspect,
):
    app.command(command.__name__.rstrip("_"))(command)
app.command("check")(check_kernels)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """The LSTM family with hand-written gradients, on NumPy and CuPy."""
    if version:
        out.print(f"xlstm {xlstm.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    process_signals.interrupt()
    sys.excepthook = show
    launch.attach()
    log = logging.getLogger("xlstm")
    log.setLevel(logging.INFO)
    log.addHandler(Log())
    warnings.showwarning = lambda message, *rest, **more: tell(f"warning: {message}")
    try:
        # not app(), which would have Python show tracebacks in another way
        typer.main.get_command(app)()
    except SystemExit as end:
        code = process_signals.received() or int(end.code or 0)
    process_signals.done()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # forget output that cannot be printed, about which Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    launch.report(code)
    sys.exit(code)
