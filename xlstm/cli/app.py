"""The command line: its commands, and how the process begins and ends."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

import xlstm
from xlstm.cli import interrupts
from xlstm.cli.bench import bench
from xlstm.cli.console import Log, out, warn
from xlstm.cli.convert import export, import_
from xlstm.cli.evaluate import evaluate
from xlstm.cli.forecast import forecast
from xlstm.cli.generate import generate
from xlstm.cli.groups import HELP, Root, Usual
from xlstm.cli.info import info
from xlstm.cli.inspect import inspect
from xlstm.cli.options import Command, configurable
from xlstm.cli.predict import predict
from xlstm.cli.runs import runs
from xlstm.cli.train import train
from xlstm.cli.train_classify import train_classify
from xlstm.cli.train_forecast import train_forecast
from xlstm.cli.train_text import train_text
from xlstm.cli.train_tirex import train_tirex

app = typer.Typer(
    help="The LSTM family with hand-written gradients, on NumPy and CuPy.",
    cls=Root,
    no_args_is_help=True,
    context_settings={"help_option_names": list(HELP)},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
trains = typer.Typer(
    help="Train a model of a series (forecast, unless another is named), a text, sequences with labels, or any series.",
    cls=Usual,
    subcommand_metavar="[forecast|text|classify|tirex] ...",
    rich_markup_mode=None,
)
app.add_typer(trains, name="train")
jobs: dict[str, Command] = {
    "series": train,
    "forecast": train_forecast,
    "text": train_text,
    "classify": train_classify,
    "tirex": train_tirex,
}
for name, job in jobs.items():
    trains.command(name, hidden=name == "series")(configurable(job))
commands: tuple[Command, ...] = (evaluate, predict, forecast, generate, runs, export, import_, bench, info, inspect)
for command in commands:
    app.command(command.__name__.rstrip("_"))(command)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """The LSTM family with hand-written gradients, on NumPy and CuPy."""
    if version:
        out.print(f"xlstm {xlstm.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    interrupts.interrupt()
    log = logging.getLogger("xlstm")
    log.setLevel(logging.INFO)
    log.addHandler(Log())
    warnings.showwarning = warn  # type: ignore[assignment]
    try:
        typer.main.get_command(app)()  # not app(), which would have Python show tracebacks in another way
    except SystemExit as end:
        code = interrupts.received() or end.code
    interrupts.done()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # forget output that cannot be printed, about which Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
