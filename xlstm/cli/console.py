"""Where commands print to, and how they end: one line an error, exit codes, what is saved when something fails."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from xlstm.arrays.convert import BackendError
from xlstm.cli import interrupts

# Errors whose message says enough; others show a traceback.
ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError, BackendError)
INTERRUPTED, CLOSED = 130, 141  # exit codes, those of a shell for SIGINT and SIGPIPE
BackendOption = Annotated[str, typer.Option("--backend", help="auto, numpy, cupy or torch.")]
ColumnOption = Annotated[str | None, typer.Option("--column", help="Column to forecast, if several hold numbers.")]


class _Console(Console):
    """A console that leaves it to the command what happens when nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this where it has caught the error


# Names from files are printed as they are: nothing in them is markup.
out = _Console(highlight=False, markup=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """End a command with one line on standard error and exit code 2 for bad input, quietly for signals and pipes."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has had enough
            raise typer.Exit(CLOSED) from None
        except (*ERRORS, KeyboardInterrupt) as error:
            if interrupted(error):
                tell("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            tell(f"error: {error}")
            raise typer.Exit(2) from None

    return run


def interrupted(error: BaseException) -> bool:
    """Return whether a signal caused an error; some libraries turn it into an error of their own."""
    return isinstance(error, KeyboardInterrupt) or interrupts.received() is not None


def tell(message: str) -> None:
    """Print a line on standard error, if that can still be done."""
    with contextlib.suppress(OSError):
        err.print(message)


class Log(logging.Handler):
    """Print what the library logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        tell(record.getMessage())


def printable(command: str) -> None:
    """Refuse a command whose only result is its output, where there is no output."""
    if sys.stdout is None:
        raise OSError(f"{command}: standard output is closed, there is nowhere to print to")


class Report:
    """Lines on standard output; where they cannot be printed, the work goes on, and `finish` raises the error."""

    def __init__(self) -> None:
        self.error: OSError | ValueError | None = None

    def print(self, line: Any, **options: Any) -> None:
        """Print a line, unless an earlier one could not be printed."""
        if self.error is None:
            try:
                out.print(line, **options)
            except (OSError, ValueError) as error:  # ValueError: the terminal does not have a letter
                self.error = error

    def finish(self) -> None:
        """Raise the error of the first line that could not be printed."""
        if isinstance(self.error, OSError):
            raise OSError(self.error.errno, f"the results could not be printed, {self.error.strerror}")
        if self.error is not None:
            raise ValueError(f"the results could not be printed, {self.error}")


@contextlib.contextmanager
def accounted(files: list[Path]) -> Iterator[None]:
    """Where a command fails or is interrupted, say which of its files it has written: exit code 1 if any."""
    before = [_stamp(file) for file in files]
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        written = [_stamp(file) != stamp for file, stamp in zip(files, before, strict=True)]
        if isinstance(error, BrokenPipeError) or not (interrupted(error) or any(written)):
            raise
        words = [f"{file} is{'' if new else ' not'} saved" for file, new in zip(files, written, strict=True)]
        account = ", ".join(words) if any(written) else "nothing was saved"
        what = f"error: {error}" if isinstance(error, ERRORS) else f"error: {type(error).__name__}: {error}"
        tell(f"{'interrupted' if interrupted(error) else what}; {account}")
        raise typer.Exit(INTERRUPTED if interrupted(error) else 1) from None


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return the marks by which two files at one path differ, or None where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
