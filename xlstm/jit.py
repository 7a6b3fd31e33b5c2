"""Numba: whether it is there and wanted, and modules from source.

Environment: XLSTM_COMPILE=0 goes without, XLSTM_COMPILE=1 insists; by default it is used where it is installed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

from xlstm.probe import first_line

VARIABLE = "XLSTM_COMPILE"
PACKAGES = ("numba", "scipy", "platformdirs")  # SciPy has the matrix products that Numba calls

_lock = threading.Lock()


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
        for name in (*PACKAGES, "scipy.linalg.cython_blas"):
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
    """The source as a module; it lies in the user's cache folder, and what Numba makes of it beside it."""
    with _lock:
        return _load(source)


@functools.cache
def _load(source: str) -> ModuleType:
    import platformdirs

    name = name_of(source)
    path = Path(platformdirs.user_cache_dir("xlstm", appauthor=False)) / f"{name}.py"
    module = sys.modules[name] = ModuleType(name)  # Numba looks it up there
    module.CACHE = True  # type: ignore[attr-defined]
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, made = tempfile.mkstemp(".py", dir=path.parent)  # a name of its own: others may do the same now
            with open(handle, "w", encoding="utf-8") as file:
                file.write(source)
            os.replace(made, path)
    except OSError:  # no folder to write to: compiled anew in every process
        module.CACHE = False  # type: ignore[attr-defined]
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module
