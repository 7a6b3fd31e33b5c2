"""Decide whether to use Numba, and compile the functions of `loops.py` for a dtype and a cell.

By default Numba is used if it is installed. XLSTM_COMPILE=0 in the environment turns it off, and
XLSTM_COMPILE=1 raises an error if it does not work.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import linecache
import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.compiled import VARIABLE
from xlstm.arrays.optional_imports import first_line
from xlstm.core import deferred_signals
from xlstm.engines.numba import loops, maths, products

PACKAGES = ("numba", "platformdirs")

lock = threading.RLock()  # reentrant: a signal handler may run a layer while another is compiled


def enabled() -> bool:
    """Return whether to compile: as XLSTM_COMPILE says, or by default if Numba works.

    Raises
    ------
    ImportError, ValueError
        XLSTM_COMPILE is 1 and Numba does not work, or XLSTM_COMPILE is neither 0 nor 1.
    """
    asked = checks.variable(VARIABLE, ("0", "1"))
    if asked == "0":
        return False
    reason = failure()
    if asked == "1" and reason:
        raise ImportError(f"{VARIABLE}=1, but {reason}")
    return reason is None


@functools.cache
def failure() -> str | None:
    """Import everything that compiling needs, once per process; return None, or what failed and how
    to fix it.
    """
    try:
        with deferred_signals.held():
            for name in (*PACKAGES, "xlstm.engines.numba.codecache"):
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; pip install {' '.join(PACKAGES)}"
    except Exception as error:  # Numba refuses versions of NumPy that it does not know
        return (
            f"Numba does not import ({first_line(error)}); pip install --upgrade"
            f" {' '.join(PACKAGES)}"
        )
    return "NUMBA_DISABLE_JIT is set" if sys.modules["numba"].config.DISABLE_JIT else None


def functions(dtype: str, step: str) -> ModuleType:
    """Return a module with the functions of `loops.py` for a dtype and a step, each compiled at its
    first call.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    step : str
        The source of functions `step` and `step_at`. They may call F, the module math, and the
        functions in `formulas`.
    """
    with lock:
        return _functions(dtype, step, shape(dtype))


def shape(dtype: str) -> Any:
    """Return the vectors that code is compiled for, as an `llvm.VectorShape`."""
    from xlstm.engines.numba import llvm

    return llvm.shape(dtype)


def shared(dtype: str) -> ModuleType:
    """Return a module with the functions for a dtype that do not depend on a step."""
    with lock:
        return _shared(dtype, shape(dtype))


# Functions of `products.py` and `loops.py` that make arrays, and those whose sums are in the
# fastest order.
COUNTED = ("room", "packed_in", "products_over_rows", "product_of_few_rows")
SUMS = ("rows_times_vector",)
FLAGS = {"contract", "nsz"}


@functools.cache
def _functions(dtype: str, step: str, shape: Any) -> ModuleType:
    from xlstm.engines.numba import llvm

    common = _shared(dtype, shape)
    module = new_module(common.__name__, vars(common), step)
    bind(module, (module.step,), counted=True, inline=True)
    bind(module, (module.step_at, loops.forward_alone), counted=True)
    module.__dict__["step_address"] = functools.cache(
        lambda: llvm.address(module.step_at, llvm.step_type())
    )
    return module


@functools.cache
def _shared(dtype: str, shape: Any) -> ModuleType:
    from xlstm.engines.numba import llvm

    sources = vars(loops) | vars(products)
    size = 4 if dtype == "float32" else 8
    maths = vars(formulas())
    names = {name: value for name, value in sources.items() if isinstance(value, int)}
    names |= {
        **maths,
        **llvm.tiles(dtype, shape),
        "F": maths[f"F{size}"],
        "pointer": maths[f"at{size}"],
    }
    text = "".join(inspect.getsource(module) for module in (products, loops))
    module = new_module(f"{formulas().__name__} {dtype} {shape}{text}", names)
    own = {name: f for name, f in sources.items() if isinstance(f, FunctionType)}
    bind(module, [f for name, f in own.items() if name not in (*COUNTED, *SUMS, "forward_alone")])
    bind(module, [own[name] for name in SUMS], FLAGS | {"reassoc"})
    bind(module, [own[name] for name in COUNTED], counted=True)
    module.__dict__["PRODUCT"] = llvm.address(module.product, llvm.product_type(dtype))
    return module


@functools.cache
def formulas() -> ModuleType:
    """Return a module with exp, tanh and log1p, and with F, which makes a number of a dtype.

    The source of traces uses these names. They end with the bytes of a number: F4, tanh4 and so on,
    or F8.
    """
    text = inspect.getsource(maths)
    names = dict[str, Any]()
    for dtype, bits in (("float32", "single"), ("float64", "double")):
        own = new_module(f"{text}{dtype}", maths.constants(dtype))
        for name in ("series", "atanh"):
            bind(own, (getattr(maths, f"{name}_{bits}"),))
            setattr(own, name, getattr(own, f"{name}_{bits}"))
        bind(own, (maths.tanh, maths.exp, maths.log1p))
        names |= {
            f"{name}{own.F().itemsize}": getattr(own, name)
            for name in ("F", "tanh", "exp", "log1p")
        }
    return new_module(text, names)


def new_module(
    text: str, names: Mapping[str, Any] = MappingProxyType({}), source: str = ""
) -> ModuleType:
    """Return a module with the functions of a source, not yet compiled; Numba finds it among the
    imported modules.

    The module also has `names`, and names that all such modules have. Its own name depends on
    everything that its functions depend on: a text, the source, and this file, which compiles them.
    """
    import math

    import numba
    import numpy as np

    from xlstm.engines.numba import llvm

    own = "".join(inspect.getsource(module) for module in (sys.modules[__name__], llvm))
    digest = hashlib.sha256((own + text + source).encode()).hexdigest()
    module = ModuleType(f"xlstm_{digest[:32]}")
    sys.modules[module.__name__] = module
    module.__dict__.update(
        np=np, math=math, U=np.uintp, INT=np.int64, carray=numba.carray, **llvm.INTRINSICS
    )
    module.__dict__.update(
        {name: value for name, value in names.items() if not name.startswith("__")}
    )
    file = f"<{module.__name__}>"
    # Messages of Numba show lines of this source.
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def bind(
    module: ModuleType,
    functions: Sequence[Callable[..., Any]],
    flags: Collection[str] = FLAGS,
    counted: bool = False,
    inline: bool = False,
) -> None:
    """Compile functions with the names of a module as their globals.

    Functions that make arrays must be `counted`, so that Numba counts the references to their
    arrays. It does so with atomic operations around every call and every view, which took a fifth
    to a third of the time of a small step.

    Without `inline`, the code of each caller has its own copy of a function, rounded as LLVM
    arranged that copy. A process runs the copy that it loads first. It can therefore be one copy in
    a process that compiles, and another in a process that finds the code in the cache.
    """
    from xlstm.engines.numba.codecache import cached

    options = {
        "fastmath": set(flags),
        "nogil": True,
        "error_model": "numpy",
        "no_cfunc_wrapper": True,  # nobody calls them from C
        "_nrt": counted,
        "forceinline": inline,
    }
    for function in functions:
        assert isinstance(function, FunctionType)
        bound = FunctionType(function.__code__, module.__dict__, function.__name__)
        bound.__module__ = module.__name__
        bound.__qualname__ = function.__name__
        setattr(module, function.__name__, cached(bound, **options))


def _after_fork() -> None:
    """Make a new lock, because another thread of the parent may hold the old one."""
    global lock
    lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
