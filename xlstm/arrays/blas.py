"""The BLAS that multiplies matrices on the CPU: its threads, and whose turn it is to set them.

The number of BLAS threads is one for the whole process, and the last bits of a large product depend on it. So whoever
relies on it takes turns with the other threads of the program (`in_turn`), and sets it only meanwhile (`limited`).
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# BLAS uses one thread for a product of at most so many multiplications, however many it may have.
SMALL = 10**6
# A product of at most so many multiplications has equal bits however many threads BLAS has, for it uses one.
SINGLE = 1 << 18

# Seconds for which a thread that had the turn lets waiting ones take it: a free lock goes to whoever asks first.
POLITE = 1e-4

R = TypeVar("R")

_turn = threading.RLock()
_waiting: set[int] = set()  # the threads that wait for the turn
_owner: int | None = None  # the thread that has the turn
_unlimited: list[tuple[Any, int]] = []  # while `limited` runs: the libraries and their numbers of threads before it


def in_turn(call: Callable[[], R], multiplications: float = math.inf) -> R:
    """Return the result of a call, which runs while no other thread of the program has the turn.

    A call whose products have few `multiplications` needs no turn, since its bits do not depend on BLAS's threads. A
    signal handler that interrupts a turn shares it. At exit, when daemon threads stand still wherever they are, nobody
    is waited for.
    """
    global _owner
    if multiplications <= SINGLE or sys.is_finalizing():
        return call()
    me = threading.get_ident()
    nested = _owner == me
    _waiting.add(me)
    with _turn:
        _waiting.discard(me)
        _owner = me
        try:
            result = call()
        finally:
            _owner = me if nested else None
    if _waiting and not nested:
        time.sleep(POLITE)
    return result


def threads() -> int:
    """Return the number of threads of a product by BLAS's own choice or its user's; only the owner of the turn asks."""
    return max([n for _, n in _unlimited] or [now()])


def now() -> int:
    """Return the number of threads of a product at this moment."""
    return max((library.num_threads for library in _libraries()), default=1)


def limit() -> int | None:
    """Return the number of threads that a running `limited` has set, None without one; only with the turn."""
    return now() if _unlimited else None


def describe() -> list[str]:
    """Describe each library: where it lies, its version, the kernel it chose for this processor, and its threads."""
    return [
        f"{Path(library.filepath).parent.name}: {library.internal_api} {library.version} "
        f"{getattr(library, 'architecture', 'of unknown kernel')}, threads: {library.num_threads}"
        for library in sorted(_libraries(), key=lambda library: str(library.filepath))
    ]


def limited(threads: int, call: Callable[[], R]) -> R:
    """Return the result of a call during which a product has `threads` threads, in the whole process.

    Other threads of the program that call layers wait for their turn; NumPy products of their own are limited, too.
    Afterwards the libraries have as many threads as before, unless somebody else has set another number meanwhile.
    """
    return in_turn(functools.partial(_limited, threads, call))


def _limited(threads: int, call: Callable[[], R]) -> R:
    before = [(library, library.num_threads) for library in _libraries()]
    changed: list[tuple[Any, int, int]] = []  # the library, its threads before, and its threads meanwhile
    outermost = not _unlimited

    def restore() -> None:
        while changed:
            library, n, meanwhile = changed[-1]
            if library.num_threads == meanwhile:
                _set(library, n)
            changed.pop()
        if outermost:
            _unlimited.clear()

    try:
        if outermost:
            _unlimited[:] = before
        for library, n in before:
            if n != threads:
                changed.append((library, n, threads))
                _set(library, threads)
                changed[-1] = library, n, library.num_threads  # the library may allow less
        return call()
    finally:
        try:
            surely(restore)
        finally:  # a signal handler may raise before the first line of `surely`
            restore()


def surely(end: Callable[[], None]) -> None:
    """Call `end` until it is through, whatever a signal handler raises meanwhile; raise its last error afterwards."""
    late: BaseException | None = None
    while True:
        try:
            end()
            break
        except BaseException as error:
            late = error
    if late is not None:
        raise late


def _set(library: Any, threads: int) -> None:
    """Set the number of threads from whatever thread of the program.

    From threadpoolctl 3.8 on, the first thread that sets that of OpenBLAS has control of it, and others are ignored
    without a word until it gives the control back. The owner of the turn may set it, and leaves the control there.
    """
    getattr(library, "_real_set_num_threads", library.set_num_threads)(threads)


@functools.cache
def _libraries() -> list[Any]:
    """Return the libraries whose threads can be set."""
    import threadpoolctl

    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


def before_fork() -> None:
    """Wait for the turn: in the child, the limits and locks of another thread would stay as they are for good."""
    _waiting.add(threading.get_ident())
    _turn.acquire()
    _waiting.discard(threading.get_ident())


def after_fork(in_child: bool) -> None:
    """Give the turn back; in the child with a new lock, for whoever waits for the old one stays behind."""
    global _turn
    _turn.release()
    if in_child:
        _turn = threading.RLock()
        _waiting.clear()
