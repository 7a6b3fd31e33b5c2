"""Numba: whether it is there and wanted, and modules from source.

Environment: XLSTM_COMPILE=0 goes without, XLSTM_COMPILE=1 insists; by default it is used where it is installed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import linecache
import os
import sys
import threading
from types import ModuleType

from xlstm.arrays.probe import first_line

VARIABLE = "XLSTM_COMPILE"
PACKAGES = ("numba", "scipy", "platformdirs")  # SciPy has the matrix products that Numba calls

_lock = threading.RLock()  # a signal handler may run a layer while one is compiled


def enabled() -> bool:
    """Whether to compile: as XLSTM_COMPILE says, else where Numba works.

    Raises
    ------
    ImportError, ValueError
        XLSTM_COMPILE=1 and Numba does not work, or it is neither 0 nor 1.
    """
    given = os.environ.get(VARIABLE, "")
    if given not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}: {given!r}, expected 0 or 1")
    if given == "0":
        return False
    if given == "1" and (reason := failure()):
        raise ImportError(f"{VARIABLE}=1, but {reason}")
    return failure() is None


@functools.cache
def failure() -> str | None:
    """Import what compiling needs, once per process: None if it works, else what is wrong and the mend."""
    try:
        for name in (*PACKAGES, "scipy.linalg.cython_blas", "xlstm.engines.numba.codecache"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; pip install {' '.join(PACKAGES)}"
    except Exception as error:  # Numba refuses versions of NumPy that it does not know
        return f"Numba does not import ({first_line(error)}); pip install --upgrade {' '.join(PACKAGES)}"
    return None


def name_of(source: str) -> str:
    """The name of the module that `load` makes of it."""
    return f"xlstm_{hashlib.sha256(source.encode()).hexdigest()[:32]}"


def load(source: str) -> ModuleType:
    """The source as a module; a function that it makes by `codecache.cached` is compiled once for all processes."""
    with _lock:
        return _load(source)


@functools.cache
def _load(source: str) -> ModuleType:
    name = name_of(source)
    module = sys.modules[name] = ModuleType(name)  # Numba looks it up there
    linecache.cache[f"<{name}>"] = (len(source), None, source.splitlines(True), f"<{name}>")  # for what Numba says
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


def _after_fork() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
