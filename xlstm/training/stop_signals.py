"""Ctrl-C and SIGTERM during training: the step is finished first; a second signal acts at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class _Stopped(BaseException):
    def __init__(self, message: str, trained: Any, signal: int) -> None:
        super().__init__(message, trained, signal)
        self.trained = trained
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


class Interrupted(_Stopped, KeyboardInterrupt):
    """The exception of Ctrl-C, raised after a step; a `KeyboardInterrupt`.

    Attributes
    ----------
    trained : Trained
        The best weights so far, and how training went.
    signal : int
        The number of the signal.
    """


class Terminated(_Stopped, SystemExit):
    """The exception of SIGTERM or SIGHUP, raised after a step.

    If you do not catch it, the process exits with status 128 + the signal's number.

    Attributes
    ----------
    trained : Trained
        The best weights so far, and how training went.
    signal : int
        The number of the signal.
    """

    @property
    def code(self) -> int:  # type: ignore[override]
        """The exit status of the process."""
        return 128 + self.signal


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Note the first signal in a list instead of acting on it; the second acts as usual.

    Nothing changes in threads other than the main one, since Python handles signals only there. Nor
    does it change for signals that are ignored or handled outside of Python.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    try:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                handler = signal.getsignal(number)
                if handler is not None and handler is not signal.SIG_IGN:
                    before[number] = handler
                    signal.signal(number, note)
        yield received
    finally:
        restore()
