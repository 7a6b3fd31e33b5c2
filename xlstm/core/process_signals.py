"""Signals end the command line quietly at any moment, with the exit code 128 + signal (130 for
Ctrl-C).

Python raises KeyboardInterrupt wherever it happens to be. During imports and after the last line of
the program nobody catches it. So a signal ends the process at once there; no work needs to be
cleaned up. In between, a signal raises KeyboardInterrupt. In a destructor or a callback Python
would show this exception and ignore it, so there it ends the process, too.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn
else:
    # importing the modules above takes milliseconds, and a signal in that time would show a
    # traceback
    import _signal as signal

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_received: list[int] = []


def is_command(program: str, original: list[str]) -> bool:
    """Return whether a process is `xlstm` or `python -m xlstm`, by its sys.argv[0] and
    sys.orig_argv.
    """
    if program == "-m":  # while the package is being imported
        return ("-m", "xlstm") in itertools.pairwise(original)
    return os.path.basename(program) in ("xlstm", "xlstm.exe")


def end_at_once() -> None:
    """Let a signal end the process on the spot, without a word."""
    handle(lambda number, frame: os._exit(128 + number))


def interrupt() -> None:
    """Let a signal raise KeyboardInterrupt in the main thread; `received` tells which signal it
    was.
    """
    sys.excepthook = end_of_interrupted
    sys.unraisablehook = _end_of_ignored
    # in the last moments of Python, which then knows no handlers
    atexit.register(handle, signal.SIG_IGN)
    handle(_raise)


def done() -> None:
    """Let a signal end the process at once again, and forget earlier signals."""
    end_at_once()
    # Python would die of an interrupt that has passed through `exec`; the next `exec` forgets it
    exec("")


def received() -> int | None:
    """Return the exit code that goes with the first signal that came, if one did."""
    return 128 + _received[0] if _received else None


def handle(handler: Callable[[int, FrameType | None], object] | int) -> None:
    """Handle the signals, except those that the process ignores."""
    for number in SIGNALS:
        # the shell ignores it for a job in the background
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt


def end_of_interrupted(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show no traceback if a signal is the cause."""
    if (code := received()) is not None:
        os._exit(code)
    sys.__excepthook__(kind, error, trace)


def _end_of_ignored(ignored: Any) -> None:
    """Let an interrupt that Python is about to ignore end the process; without a signal, show
    errors as usual.

    After a signal, destructors may fail because of objects that it left half made.
    """
    if (code := received()) is None:
        sys.__unraisablehook__(ignored)
    elif issubclass(ignored.exc_type, KeyboardInterrupt):
        os._exit(code)


if is_command("".join(sys.argv[:1]), sys.orig_argv):  # the package is imported for the command line
    end_at_once()
