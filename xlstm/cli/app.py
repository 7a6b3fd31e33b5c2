"""The command line: its commands, and how the process begins and ends."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

import xlstm
from xlstm.cli import interrupts
from xlstm.cli.bench import bench
from xlstm.cli.console import Log, one_line_errors, out
from xlstm.cli.convert import export, import_
from xlstm.cli.generate import generate
from xlstm.cli.info import info
from xlstm.cli.inspect import inspect
from xlstm.cli.train import predict, train

app = typer.Typer(
    help="The LSTM family with hand-written gradients, on NumPy and CuPy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (train, predict, export, import_, generate, bench, info, inspect):
    app.command(command.__name__.rstrip("_"))(one_line_errors(command))


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
