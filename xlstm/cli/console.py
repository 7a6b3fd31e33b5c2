"""Where commands print to, and how they end: one line an error, exit codes, what is saved when something fails."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xlstm import training
from xlstm.arrays.convert import BackendError
from xlstm.cli import process_signals
from xlstm.training import Interrupted, Terminated

# Errors whose message says enough; others show a traceback.
ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError, BackendError)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
INTERRUPTED, CLOSED = 130, 141  # exit codes, those of a shell for SIGINT and SIGPIPE
EVERY = 30.0  # seconds between two lines about training where there is no terminal


class _Console(Console):
    """A console that shows control characters as escapes, and raises where nobody reads any more."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a line or of a cell."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        """Raise the error; rich calls this where it has caught it."""
        raise


# Names from files are printed as they are: nothing in them is markup. Tables are as wide as they need to be.
out = _Console(highlight=False, markup=False, soft_wrap=True, width=10_000)
err = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """Return a text with escapes for what would change a terminal: control characters, and those that turn text."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def put(text: str) -> None:
    """Print data on standard output: as they are, but visible on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def tell(message: str) -> None:
    """Print a line on standard error, if that can still be done."""
    with contextlib.suppress(OSError):
        err.print(message)


def to_json(values: Any) -> str:
    """Return values as JSON, which has neither NaN nor infinity: null stands for them."""
    return json.dumps(json.loads(json.dumps(values), parse_constant=lambda text: None))


def table(title: str | None, names: Iterable[str], rows: Iterable[Sequence[str]], left: int = 1, **style: Any) -> Table:
    """Return a table whose first columns begin at the left, and whose other ones end at the right."""
    made = Table(title=title, title_justify="left", **style)
    for k, name in enumerate(names):
        made.add_column(name, no_wrap=True, justify="left" if k < left else "right")
    for row in rows:
        made.add_row(*row)
    return made


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

    def print(self, line: Any) -> None:
        """Print a line, unless an earlier one could not be printed."""
        if not self.as_json:
            self._try(lambda: out.print(line))

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


class Log(logging.Handler):
    """Print what the library logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record; commands say in their own words how training ended."""
        if record.name != "xlstm.training" and not (out.quiet and record.levelno < logging.WARNING):
            tell(record.getMessage())


@contextlib.contextmanager
def progress() -> Iterator[Callable[[training.Progress], None]]:
    """Show how training goes, by a bar on a terminal and elsewhere by lines; give the function that is told of it."""
    columns = (TextColumn("{task.fields[epoch]}"), BarColumn(16), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=err)
    task = bar.add_task("", total=None, epoch="")
    terminal, due = err.is_terminal and not out.quiet, time.monotonic() + EVERY

    def show(now: training.Progress) -> None:
        nonlocal due
        losses = f"loss {now.loss:.4f}" + ("" if now.validation is None else f"  validation {now.validation:.4f}")
        if terminal:  # training may stop early, so the time left is at most that which the bar shows
            total, completed = now.epochs * now.steps, (now.epoch - 1) * now.steps + now.step
            epoch, description = f"{now.epoch}/{now.epochs}", f"{losses}  left"
            bar.update(task, total=total, completed=completed, epoch=epoch, description=description)
        elif time.monotonic() >= due and not out.quiet:
            due = time.monotonic() + EVERY
            tell(f"epoch {now.epoch}/{now.epochs}, step {now.step}/{now.steps}: {losses}")

    with bar if terminal else contextlib.nullcontext():  # old versions of rich print an empty line elsewhere
        yield show


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
        tell("interrupted" if interrupted(error) else f"error: {message_of(error)}")
        raise typer.Exit(code(error)) from None
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
    """Return the message of an error, that of the system without its number, and other kinds with their name."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ERRORS) else f"{type(error).__name__}: {error}"


def interrupted(error: BaseException) -> bool:
    """Return whether a signal caused an error; some libraries turn it into an error of their own."""
    return isinstance(error, KeyboardInterrupt | Terminated) or process_signals.received() is not None


def code(error: BaseException) -> int:
    """Return the exit code for an error: 2 for bad input, or that of the signal which caused it."""
    if not interrupted(error):
        return 2
    return (
        128 + error.signal if isinstance(error, Interrupted | Terminated) else process_signals.received() or INTERRUPTED
    )


@contextlib.contextmanager
def accounted(files: Sequence[Path], resume: Callable[[], str] = str) -> Iterator[None]:
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
        if not interrupted(error):
            tell(f"error: {message_of(error)}; {account}")
            raise typer.Exit(1) from None
        how = resume()
        cause = "terminated" if isinstance(error, Terminated) else "interrupted"
        parts = [cause, account if any(written) or not how else "", f"go on with: {how}" if how else ""]
        tell("; ".join(part for part in parts if part))
        raise typer.Exit(code(error)) from None


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return the marks by which two files at one path differ, or None where there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
