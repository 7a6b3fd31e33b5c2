"""Compiled code that is kept for later processes.

The files lie in the folder `xlstm` of the user's cache folder (of NUMBA_CACHE_DIR, where that is
set), which nobody but this user may read or write; where that cannot be (see `secure_cache.folder`),
nothing is kept and each process compiles for itself. Numba's own cache is not used: it loads
whatever lies in its folder, damaged or not. A file is named after all that its code depends on, the
text of the module, the types of the arguments, the processor and the versions of Python, NumPy,
Numba and llvmlite, so that code of other versions is never loaded. Together the files have at most
`LIMIT` bytes: writing removes the oldest, among them those of other versions.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import platformdirs
from llvmlite import binding
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime._nrt_python import c_helpers
from numba.core.serialize import dumps

from xlstm.engines import secure_cache
from xlstm.engines.numba import deferred_signals

LIMIT = 1 << 27  # the code of the loops of a dtype has about 1 MB, and that of a cell 0.2 MB
PREFIX = "xlstm_"  # of the names of modules, and so of files
VERSIONS = (sys.version, np.__version__, numba.__version__, llvmlite.__version__)


def cached(function: Callable[..., Any], **options: Any) -> Any:
    """Return the function compiled by `numba.njit` with these options; its code is kept.

    It belongs to a module that `jit` makes, whose name depends on all of its text.
    """
    compiled = numba.njit(function, **options)
    compiled._cache = Cache(f"{function.__module__}.{function.__qualname__}")
    compiled.compile = deferred_signals.held()(compiled.compile)
    return compiled


def describe() -> str:
    """Return the folder where compiled code is kept, or why it is not, in words."""
    try:
        return f"kept in {_folder()}"
    except OSError as error:
        return f"compiled again in each process: {error}"


class Cache(NullCache):  # type: ignore[misc]
    """The cache of one function, as Numba's dispatcher takes it."""

    def __init__(self, function: str) -> None:
        self.function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kept code for arguments of these types, or None where there is none."""
        try:
            data = secure_cache.read(_folder(), self._name(sig, target_context.codegen()), LIMIT)
        except OSError:  # there is no folder of our own
            data = None
        if data is None:
            _say()
            return None
        _link_runtime()
        return CompileResult._rebuild(target_context, *pickle.loads(data))

    def save_overload(self, sig: Any, result: Any) -> None:
        """Keep the code, where it can be: not where it has addresses of this process."""
        if result.library.has_dynamic_globals:
            return
        data = dumps(result._reduce())
        with contextlib.suppress(OSError):
            folder = _folder()
            secure_cache.write(folder, self._name(sig, result.codegen), data)
            left = LIMIT
            for path in sorted(
                folder.glob(f"{PREFIX}*"), key=lambda path: path.lstat().st_mtime, reverse=True
            ):
                left -= path.lstat().st_size
                if left < 0:
                    path.unlink()

    def _name(self, sig: Any, codegen: Any) -> str:
        key = repr((self.function, sig, codegen.magic_tuple(), VERSIONS))
        return f"{self.function}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc"


@functools.cache
def _link_runtime() -> None:
    """Let kept code find the functions of Numba's runtime, which count the references to arrays.

    `target_context.refresh()` would do so, too. But it loads all that Numba can compile, and SciPy,
    which takes 45 MB and 0.2 s.
    """
    for name, address in c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


@functools.cache
def _say() -> None:
    """Log once that something is compiled."""
    logging.getLogger("xlstm").info(
        "compiling loops for this processor, which takes some seconds once"
    )


def _folder() -> Path:
    if numba.config.CACHE_DIR:
        return secure_cache.folder(Path(numba.config.CACHE_DIR, "xlstm"))
    try:
        path = platformdirs.user_cache_path("xlstm", appauthor=False)
    except RuntimeError as error:  # the user has no home, as in many containers
        raise OSError(str(error)) from None
    return secure_cache.folder(path)
