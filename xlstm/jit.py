"""Numba: whether it is there and wanted, and modules from source.

Environment: XLSTM_COMPILE=0 goes without, XLSTM_COMPILE=1 insists; by default it is used where it is installed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

VARIABLE = "XLSTM_COMPILE"
PACKAGES = ("numba", "scipy", "platformdirs")  # SciPy has the matrix products that Numba calls


def enabled() -> bool:
    """Whether to compile: as XLSTM_COMPILE says, else where Numba is installed.

    Raises
    ------
    ImportError, ValueError
        XLSTM_COMPILE=1 and there is no Numba, or it is neither 0 nor 1.
    """
    given = os.environ.get(VARIABLE, "")
    if given not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}: {given!r}, expected 0 or 1")
    if given == "1" and not _installed():
        raise ImportError(
            f"{VARIABLE}=1, but {' or '.join(PACKAGES)} is not installed; pip install {' '.join(PACKAGES)}"
        )
    return given != "0" and _installed()


@functools.cache
def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


@functools.cache
def load(source: str) -> ModuleType:
    """The source as a module; it lies in the user's cache folder, and what Numba makes of it beside it."""
    import platformdirs
    import scipy.linalg.cython_blas  # noqa: F401

    name = f"xlstm_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
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
