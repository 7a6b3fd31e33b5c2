"""The command line: its commands, and how the process begins and ends."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

import xlstm
from xlstm.cli import launch, train
from xlstm.cli.bench import bench
from xlstm.cli.compare_backends import compare
from xlstm.cli.console import Log, one_line_errors, out, show, tell
from xlstm.cli.export_import import export, import_
from xlstm.cli.info import check_kernels, info
from xlstm.cli.inspect import inspect_model
from xlstm.cli.predict import evaluate, forecast, generate, predict
from xlstm.core import process_signals

HELP_NAMES = ["-h", "--help"]
DEFAULT = "series"  # the command of `xlstm train` alone
TRAIN = (
    "Train a model: a forecaster of series (if no other is named), a language model, or a"
    " classifier of sequences."
)


class Root(TyperGroup):
    """The command line. It prints each error in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the name of a command."""
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


class GroupWithDefault(TyperGroup):
    """A group with a hidden command `series`, which runs if no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the default command first, if no other command is named."""
        names = {*HELP_NAMES, *self.commands} - {DEFAULT}
        named = args[0] in names if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if named else [DEFAULT, *args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the options of the default command, and the other commands."""
        self.commands[DEFAULT].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the name of a command, or an option of the default one."""
        options = self.commands[DEFAULT].shell_complete(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *options]


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    context_settings={"help_option_names": HELP_NAMES},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
trainers = typer.Typer(
    help=TRAIN,
    short_help=TRAIN,
    cls=GroupWithDefault,
    subcommand_metavar="[forecast|text|classify] ...",
    rich_markup_mode=None,
)
app.add_typer(trainers, name="train")
TRAINERS: dict[str, Any] = {
    DEFAULT: train.train_forecast,
    "forecast": train.train_forecast,
    "text": train.train_text,
    "classify": train.train_classify,
}
COMMANDS: dict[str, Any] = {
    "evaluate": evaluate,
    "predict": predict,
    "forecast": forecast,
    "generate": generate,
    "export": export,
    "import": import_,
    "compare": compare,
    "bench": bench,
    "info": info,
    "inspect": inspect_model,
    "check": check_kernels,
}
for group, functions in ((trainers, TRAINERS), (app, COMMANDS)):
    for name, function in functions.items():
        # lists show the whole first paragraph of the docstring
        sentence = str(inspect.getdoc(function)).partition("\n\n")[0]
        group.command(name, short_help=sentence, hidden=name == DEFAULT)(function)


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
