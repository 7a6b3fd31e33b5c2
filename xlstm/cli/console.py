"""Output of commands and their ends: one line for each error, and exit codes."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlstm import distributed
from xlstm.arrays.convert import BackendError
from xlstm.core import process_signals
from xlstm.training import Terminated

# Errors whose message says enough; others show a traceback.
ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    FloatingPointError,
    MemoryError,
    BackendError,
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
INTERRUPTED = 130
CLOSED = 141  # exit codes, as a shell has for SIGINT and SIGPIPE
# a table without a frame
OPEN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}


class _Console(Console):
    """A console that shows control characters as escapes, and raises if nobody reads the output
    any more.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a line or of a cell."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        """Raise the error; rich calls this after it has caught the error."""
        raise


# Names from files are printed as they are: nothing in them is markup. Tables are as wide as they
# need to be.
out = _Console(highlight=False, markup=False, soft_wrap=True, width=10_000)
err = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
said: list[str] = []  # on standard error
ranks: list[int] = []  # the rank of this process, if several train one model


def visible(text: str) -> str:
    """Return a text with escapes for characters that would change a terminal: control characters,
    and characters that turn text.
    """
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def put(text: str) -> None:
    """Print data on standard output as they are; on a terminal, make all characters visible."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def tell(message: str) -> None:
    """Print a line on standard error, if that can still be done."""
    said.append(message)
    with contextlib.suppress(OSError):
        err.print(message)


def be_rank(rank: int) -> None:
    """Print from here on only if this process is rank 0 of several that train one model."""
    ranks.append(rank)
    out.quiet |= rank > 0
    err.quiet |= rank > 0


def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show an error that ends the process. For bad input, the line that ends the job of several
    ranks says enough.
    """
    if not (ranks and isinstance(error, ERRORS)):
        process_signals.end_of_interrupted(kind, error, trace)


def tell_of_ranks(group: distributed.Group) -> None:
    """Let rank 0 print the lines of other ranks for standard error, unless it printed the same line
    itself.
    """
    lines_of_ranks = group.tell(said)
    for rank, lines in enumerate(lines_of_ranks):
        for line in dict.fromkeys(lines):
            if line not in lines_of_ranks[0]:
                tell(f"rank {rank}: {line}")


def to_json(values: Any) -> str:
    """Return values as JSON, arrays as lists. It has neither NaN nor infinity: null stands for
    them.
    """
    text = json.dumps(values, default=lambda array: array.tolist())
    return json.dumps(json.loads(text, parse_constant=lambda constant: None))


def table(
    title: str,
    names: Iterable[str],
    rows: Iterable[Sequence[str]],
    left: int = 1,
    **style: Any,
) -> Table:
    """Return a table with its first columns aligned to the left, and the others to the right."""
    grid = Table(title=title, title_justify="left", **style)
    for k, name in enumerate(names):
        grid.add_column(name, no_wrap=True, justify="left" if k < left else "right")
    for row in rows:
        grid.add_row(*row)
    return grid


def printable(command: str) -> None:
    """Refuse a command whose only result is its output, if standard output is closed."""
    if sys.stdout is None:
        raise OSError(f"{command}: standard output is closed, there is nowhere to print to")


class Report:
    """Lines on standard output. If they cannot be printed, the work continues, and `finish` raises
    the error.

    Parameters
    ----------
    as_json : bool
        Print one JSON object at the end, and no lines.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.error: OSError | ValueError | None = None

    def print(self, line: Any) -> None:
        """Print a line, unless an earlier one could not be printed."""
        if not self.as_json:
            self._try(out.print, line)

    def finish(self, **values: Any) -> None:
        """Print the values if JSON is asked for, and raise the error of the first line that could
        not be printed.
        """
        if self.as_json:
            self._try(typer.echo, to_json(values))
        if self.error is not None:
            number = getattr(self.error, "errno", None)
            raise OSError(
                number, f"the results could not be printed, {message_of(self.error)}"
            ) from self.error

    def _try(self, write: Callable[[Any], None], line: Any) -> None:
        if self.error is None:
            try:
                write(line)
            except (OSError, ValueError) as error:
                # ValueError: the terminal cannot show a letter
                self.error = error


class Log(logging.Handler):
    """Print the messages that the library logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record; commands say in their own words how training ended."""
        if record.name != "xlstm.training" and not (out.quiet and record.levelno < logging.WARNING):
            tell(record.getMessage())


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command with one line on standard error and exit code 2 for bad input, quietly for
    signals and pipes.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it
        raise typer.Exit(CLOSED) from None
    except (*ERRORS, KeyboardInterrupt, Terminated) as error:
        if ranks and not interrupted(error):
            raise
        tell(description(error))
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:
        # Only errors of usage have this; their class is not public in every version.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        # Nobody has typed the name of the default command.
        path = "xlstm" if context is None else context.command_path.removesuffix(" series")
        tell(
            f"error: {' '.join(error.format_message().split())} ({path} --help lists what there is)"
        )
        raise typer.Exit(2) from None


def message_of(error: BaseException) -> str:
    """Return the message of an error: an error of the system without its number, an error of an
    unexpected kind with its name.
    """
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ERRORS) else f"{type(error).__name__}: {error}"


def description(error: BaseException) -> str:
    """Return the line for an error that ends a command.

    The number of a signal tells which signal it was: outside of training, and as the second signal,
    every signal raises KeyboardInterrupt.
    """
    if not interrupted(error):
        return f"error: {message_of(error)}"
    return "interrupted" if exit_code(error) == INTERRUPTED else "terminated"


def interrupted(error: BaseException) -> bool:
    """Return whether a signal caused an error; some libraries turn it into an error of their
    own.
    """
    return (
        isinstance(error, KeyboardInterrupt | Terminated) or process_signals.received() is not None
    )


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error: 2 for bad input, or the code of the signal behind it."""
    if (number := getattr(error, "signal", None)) is not None:  # of `Interrupted` and `Terminated`
        return 128 + int(number)
    return process_signals.received() or (INTERRUPTED if interrupted(error) else 2)
