"""Hold signals back while Numba is imported or compiles, since an exception would break both.

Neither works again in the process once an exception has cut it short.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let handlers of signals wait until the end of the context; each is then called once.

    The same happens to them during one long call of C. Only handlers in Python wait, which run in
    the main thread. A signal that ends the process ends it at once.
    """
    handlers: dict[int, Any] = {}
    received: dict[int, FrameType | None] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received[number] = frame

    try:
        if threading.current_thread() is threading.main_thread():
            for signum in signal.valid_signals():
                if callable(handler := signal.getsignal(signum)):
                    handlers[signum] = handler
                    signal.signal(signum, note)
        yield
    finally:
        late: BaseException | None = None
        while handlers or received:  # even if a handler raises meanwhile
            try:
                for number, handler in handlers.items():
                    if signal.getsignal(number) is note:
                        signal.signal(number, handler)
                while received:
                    number, interrupted = received.popitem()
                    handlers[number](number, interrupted)
                break
            except BaseException as error:
                late = error
        if late is not None:
            raise late
