"""Where commands print to, and how they end: one line an error, exit codes, what is saved when something fails."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from xlstm.arrays.convert import BackendError
from xlstm.cli import interrupts
from xlstm.training import Interrupted, Terminated

# Errors whose message says enough; others show a traceback.
ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError, BackendError)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WIDE = 10_000  # columns of the widest table
INTERRUPTED, CLOSED = 130, 141  # exit codes, those of a shell for SIGINT and SIGPIPE
BackendOption = Annotated[str, typer.Option("--backend", help="auto, numpy, cupy or torch.")]
ColumnOption = Annotated[str | None, typer.Option("--column", help="Column to forecast, if several hold numbers.")]


class _Console(Console):
    """A console that shows control characters as escapes, and leaves it to the command when nobody reads any more."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a line or of a cell."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        raise  # rich calls this where it has caught the error


# Names from files are printed as they are: nothing in them is markup.
out = _Console(highlight=False, markup=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """Return a text with escapes for what would change a terminal: control characters, and those that turn text."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def put(text: str) -> None:
    """Print data on standard output: as they are, but visible on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def to_json(values: Any) -> str:
    """Return values as JSON, which has neither NaN nor infinity: null stands for them."""
    return json.dumps(json.loads(json.dumps(values), parse_constant=lambda text: None))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command with one line on standard error and exit code 2 for bad input, quietly for signals and pipes."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough
        raise typer.Exit(CLOSED) from None
    except (*ERRORS, KeyboardInterrupt, Terminated) as error:
        if interrupted(error):
            tell("interrupted")
            raise typer.Exit(code(error)) from None
        tell(f"error: {message_of(error)}")
        raise typer.Exit(2) from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # that of a usage error, whose class is not public in every version
            raise
        context = getattr(error, "ctx", None)
        if context is not None and context.command.hidden:  # the usual command of a group
            context = context.parent
        path = "xlstm" if context is None else context.command_path
        tell(f"error: {' '.join(error.format_message().split())} ({path} --help lists what there is)")
        raise typer.Exit(2) from None


def message_of(error: BaseException) -> str:
    """Return the message of an error, that of the system without its number."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def interrupted(error: BaseException) -> bool:
    """Return whether a signal caused an error; some libraries turn it into an error of their own."""
    return isinstance(error, KeyboardInterrupt | Terminated) or interrupts.received() is not None


def code(error: BaseException) -> int:
    """Return the exit code for an error that a signal caused."""
    return 128 + error.signal if isinstance(error, Interrupted | Terminated) else interrupts.received() or INTERRUPTED


def again(context: typer.Context, option: str) -> str:
    """Return the command that runs, with an option added."""
    words = ["xlstm", *context.obj]
    return shlex.join(words if option in words else [*words, option])


@contextlib.contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """Print nothing but errors, warnings and what a program asked for."""
    before, out.quiet = out.quiet, quiet
    try:
        yield
    finally:
        out.quiet = before


def tell(message: str) -> None:
    """Print a line on standard error, if that can still be done."""
    with contextlib.suppress(OSError):
        err.print(message)


def uncut(table: Table) -> Table:
    """Return a table that is as wide as it needs to be, whatever the terminal: nothing in it is cut short."""
    table.width = Measurement.get(out, out.options.update(max_width=WIDE), table).maximum
    return table


class Log(logging.Handler):
    """Print what the library logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record; commands say in their own words how training ended."""
        if record.name != "xlstm.training" and not (out.quiet and record.levelno < logging.WARNING):
            tell(record.getMessage())


def warn(message: Warning | str, *rest: Any) -> None:
    """Print a warning as a line on standard error, in the place of `warnings.showwarning`."""
    tell(f"warning: {message}")


def printable(command: str) -> None:
    """Refuse a command whose only result is its output, where there is no output."""
    if sys.stdout is None:
        raise OSError(f"{command}: standard output is closed, there is nowhere to print to")


class Report:
    """Lines on standard output; where they cannot be printed, the work goes on, and `finish` raises the error.

    Parameters
    ----------
    as_json : bool
        Print no lines, but at the end one JSON object.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.error: OSError | ValueError | None = None

    def print(self, line: Any, **options: Any) -> None:
        """Print a line, unless an earlier one could not be printed."""
        if not self.as_json:
            self._try(lambda: out.print(line, **options))

    def finish(self, **values: Any) -> None:
        """Print the values where JSON is asked for, and raise the error of the first line that could not be printed."""
        if self.as_json:
            self._try(lambda: typer.echo(to_json(values)))
        if isinstance(self.error, OSError):
            raise OSError(self.error.errno, f"the results could not be printed, {self.error.strerror}")
        if self.error is not None:
            raise ValueError(f"the results could not be printed, {self.error}")

    def _try(self, act: Callable[[], None]) -> None:
        if self.error is None:
            try:
                act()
            except (OSError, ValueError) as error:  # ValueError: the terminal does not have a letter
                self.error = error


@contextlib.contextmanager
def accounted(files: list[Path], resume: Callable[[], str] = str) -> Iterator[None]:
    """Where a command fails or is interrupted, say which of its files it has written: exit code 1 if any.

    Parameters
    ----------
    files : list of Path
    resume : callable
        It returns the command that goes on after an interrupt, or nothing.
    """
    before = [_stamp(file) for file in files]
    try:
        yield
    except (Exception, KeyboardInterrupt, Terminated) as error:
        written = [_stamp(file) != stamp for file, stamp in zip(files, before, strict=True)]
        if isinstance(error, BrokenPipeError) or not (interrupted(error) or any(written)):
            raise
        words = [f"{file} is{'' if new else ' not'} saved" for file, new in zip(files, written, strict=True)]
        account = ", ".join(words) if any(written) else "nothing was saved"
        what = f"error: {message_of(error)}" if isinstance(error, ERRORS) else f"error: {type(error).__name__}: {error}"
        if not interrupted(error):
            tell(f"{what}; {account}")
            raise typer.Exit(1) from None
        how = resume()
        what = "terminated" if isinstance(error, Terminated) else "interrupted"
        parts = [what, account if any(written) or not how else "", f"go on with: {how}" if how else ""]
        tell("; ".join(part for part in parts if part))
        raise typer.Exit(code(error)) from None


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return the marks by which two files at one path differ, or None where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
