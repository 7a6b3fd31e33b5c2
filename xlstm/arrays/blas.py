"""The BLAS that multiplies matrices for NumPy: what it is, and how to bound its threads for a while."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_turn = threading.RLock()  # whoever bounds the threads of the process, until they are as they were


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Bound the threads of BLAS in the whole process meanwhile; other threads of the program wait for their turn."""
    with _turn, _controller().limit(limits=1, user_api="blas"):
        yield


def describe() -> list[str]:
    """Describe each library: where it lies, its version, the kernel it chose for this processor, and its threads."""
    return [
        f"{Path(library.filepath).parent.name}: {library.internal_api} {library.version} "
        f"{getattr(library, 'architecture', 'of unknown kernel')}, threads: {library.num_threads}"
        for library in sorted(_controller().lib_controllers, key=lambda library: str(library.filepath))
        if library.user_api == "blas"
    ]


@functools.cache
def _controller() -> Any:
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def _new_turn() -> None:
    """Make a new lock: another thread of the parent may have held the old one."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_turn)
