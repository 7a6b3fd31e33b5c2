"""Keep compiled code for later processes.

The files are in the folder `xlstm` of the user's cache folder, or of NUMBA_CACHE_DIR if that is
set. Only this user may read or write it. If that is not possible (see `secure_cache.folder`),
nothing is kept, and each process compiles for itself. Numba's own cache is not used, since it loads
any file in its folder, damaged or not.

The name of a file depends on everything that its code depends on: the text of the module, the types
of the arguments, the processor, and the versions of Python, NumPy, Numba and llvmlite. So code of
other versions is never loaded. All files together have at most `LIMIT` bytes: writing removes the
oldest files, including those of other versions.
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

from xlstm.core import deferred_signals
from xlstm.engines import secure_cache

LIMIT = 1 << 27  # bytes; the loops of a dtype have about 1 MB of code, a cell 0.2 MB
PREFIX = "xlstm_"  # beginning of the names of modules, and so of files
VERSIONS = (sys.version, np.__version__, numba.__version__, llvmlite.__version__)


def cached(function: Callable[..., Any], **options: Any) -> Any:
    """Return the function compiled by `numba.njit` with these options; its code is kept.

    The function belongs to a module that `jit` makes, whose name depends on its whole text.
    """
    compiled = numba.njit(function, **options)
    compiled._cache = Cache(f"{function.__module__}.{function.__qualname__}")
    compiled.compile = deferred_signals.held()(compiled.compile)
    return compiled


def describe() -> str:
    """Return the folder of compiled code, or in words why nothing is kept."""
    try:
        return f"kept in {_folder()}"
    except OSError as error:
        return f"compiled again in each process: {error}"


class Cache(NullCache):  # type: ignore[misc]
    """The cache of one function, in the form that Numba's dispatcher needs."""

    def __init__(self, function: str) -> None:
        self.function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kept code for arguments of these types, or None if there is none."""
        try:
            data = secure_cache.read(_folder(), self._name(sig, target_context.codegen()), LIMIT)
        except OSError:  # no folder belongs to us
            data = None
        if data is None:
            _say()
            return None
        _link_runtime()
        return CompileResult._rebuild(target_context, *pickle.loads(data))

    def save_overload(self, sig: Any, result: Any) -> None:
        """Keep the code, unless it has addresses of this process."""
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
    """Let kept code find the functions of Numba's runtime, which count references to arrays.

    `target_context.refresh()` would do so, too, but it loads everything that Numba can compile, and
    SciPy. That takes 45 MB and 0.2 s.
    """
    for name, address in c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


@functools.cache
def _say() -> None:
    """Say once in the log that something is compiled."""
    logging.getLogger("xlstm").info(
        "compiling loops for this processor, which takes some seconds once"
    )


def _folder() -> Path:
    if numba.config.CACHE_DIR:
        return secure_cache.folder(Path(numba.config.CACHE_DIR, "xlstm"))
    try:
        path = platformdirs.user_cache_path("xlstm", appauthor=False)
    except RuntimeError as error:  # the user has no home folder, as in many containers
        raise OSError(str(error)) from None
    return secure_cache.folder(path)
