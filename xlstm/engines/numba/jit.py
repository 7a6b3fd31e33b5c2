"""Numba: whether it is there and wanted, and the functions of `loops.py` compiled for a dtype and a cell.

XLSTM_COMPILE=0 in the environment goes without Numba, XLSTM_COMPILE=1 insists on it; by default it is used where it is
installed.
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
from collections.abc import Callable, Collection, Sequence
from types import FunctionType, ModuleType
from typing import Any

from xlstm.arrays.probe import first_line
from xlstm.engines.numba import held_signals, loops, maths, products

VARIABLE = "XLSTM_COMPILE"
PACKAGES = ("numba", "platformdirs")

lock = threading.RLock()  # a signal handler may run a layer while one is compiled


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
    """Import what compiling needs, once per process: None if it works, else what failed and how to fix it."""
    try:
        with held_signals.held():
            for name in (*PACKAGES, "xlstm.engines.numba.codecache"):
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; pip install {' '.join(PACKAGES)}"
    except Exception as error:  # Numba refuses versions of NumPy that it does not know
        return f"Numba does not import ({first_line(error)}); pip install --upgrade {' '.join(PACKAGES)}"
    return "NUMBA_DISABLE_JIT is set" if sys.modules["numba"].config.DISABLE_JIT else None


def functions(dtype: str, step: str) -> ModuleType:
    """Return a module with the functions of `loops.py` for a dtype and a step, compiled when each is called first.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    step : str
        The source of functions `step` and `step_at`, which may call tanh, exp, F and the module math.
    """
    with lock:
        return _functions(dtype, step, shape(dtype))


def shape(dtype: str) -> Any:
    """Return the vectors that code is compiled for, a `vectors.Shape`."""
    return _vectors().shape(dtype)


@functools.cache
def _vectors() -> ModuleType:
    return importlib.import_module("xlstm.engines.numba.vectors")


def shared(dtype: str) -> ModuleType:
    """Return a module with the functions that do not depend on a step, for a dtype."""
    with lock:
        return _shared(dtype, shape(dtype))


# Functions of `products.py` and `loops.py` that make arrays, and those whose sums are in the order that is quickest.
COUNTED = ("room", "products_over_rows", "product_of_few_rows", "products_of_batch")
SUMS = ("rows_times_vector", "column_of_product")
FLAGS = {"contract", "nsz"}


@functools.cache
def _functions(dtype: str, step: str, shape: Any) -> ModuleType:
    from xlstm.engines.numba import vectors

    common = _shared(dtype, shape)
    found = generated(common, step)
    bind(found, (found.step,), counted=True, inline=True)
    own = tuple(f for f in vars(found).values() if isinstance(f, FunctionType) and f.__module__ == found.__name__)
    bind(found, (*own, loops.forward_step), counted=True)
    found.__dict__["step_address"] = functools.cache(lambda: vectors.address(found.step_at, vectors.step_type()))
    return found


def generated(common: ModuleType, source: str) -> ModuleType:
    """Return a module with the names of another one and of a source, whose functions are yet to be compiled."""
    found = new_module(common.__name__ + source)
    found.__dict__.update({name: value for name, value in vars(common).items() if not name.startswith("__")})
    name = f"<{found.__name__}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # for what Numba says
    exec(compile(source, name, "exec"), found.__dict__)
    return found


@functools.cache
def _shared(dtype: str, shape: Any) -> ModuleType:
    import math

    import numba
    import numpy as np

    from xlstm.engines.numba import shared_memory, vectors

    text = "".join(inspect.getsource(module) for module in (maths, products, vectors, shared_memory, loops))
    found = new_module(f"{dtype} {shape}{text}")
    found.__dict__.update(U=np.uintp, INT=np.int64, np=np, math=math, carray=numba.carray)
    pointer = shared_memory.at4 if dtype == "float32" else shared_memory.at8
    shared = ("address_of", "count_up", "count_of", "let_others_run")
    found.__dict__.update(
        vectors.tiles(dtype, shape), pointer=pointer, **{name: vars(shared_memory)[name] for name in shared}
    )
    for module in (products, loops):
        found.__dict__.update({name: getattr(module, name) for name in module.SIZES})
    bind_maths(found, dtype)
    own = {name: f for module in (products, loops) for name, f in vars(module).items() if isinstance(f, FunctionType)}
    bind(found, [f for name, f in own.items() if name not in (*COUNTED, *SUMS, "forward_step")])
    bind(found, [own[name] for name in SUMS], FLAGS | {"reassoc"})
    bind(found, [own[name] for name in COUNTED], counted=True)
    found.__dict__["PRODUCT"] = vectors.address(found.__dict__["product"], vectors.product_type(dtype))
    return found


def new_module(text: str) -> ModuleType:
    """Return an empty module, which Numba looks for among the imported ones.

    It is named after all that its functions depend on: their text, and this file, which compiles them.
    """
    text += inspect.getsource(sys.modules[__name__])
    name = f"xlstm_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    sys.modules[name] = found = ModuleType(name)
    return found


def bind(
    module: ModuleType,
    given: Sequence[Callable[..., Any]],
    flags: Collection[str] = FLAGS,
    counted: bool = False,
    inline: bool = False,
) -> None:
    """Compile functions with the names of a module for their globals.

    Functions that make arrays have to be `counted`: Numba counts the references to their arrays. It does so in atomic
    operations around every call and every view, which took a fifth to a third of the time of a small step.

    Each caller's code has a copy of a function that is not put `inline`, rounded as LLVM arranged that one, and a
    process runs the copy that it has loaded first: one where it compiles, another where it finds the code in the cache.
    """
    from xlstm.engines.numba.codecache import cached

    for function in given:
        assert isinstance(function, FunctionType)
        bound = FunctionType(function.__code__, module.__dict__, function.__name__)
        bound.__module__, bound.__qualname__ = module.__name__, function.__name__
        # Nobody calls them from C, so code for that would be compiled in vain.
        options = {"error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": counted, "forceinline": inline}
        compiled = cached(bound, nogil=True, fastmath=set(flags), **options)
        setattr(module, function.__name__, compiled)


def bind_maths(module: ModuleType, dtype: str) -> None:
    """Compile exp, tanh and log1p for a dtype; they and F, which makes a number of it, are names of the module.

    So are F4, tanh4 and so on, or F8, by the bytes of a number, as traces are written.
    """
    names, bits = module.__dict__, "single" if dtype == "float32" else "double"
    names.update(maths.constants(dtype))
    for name in ("series", "atanh"):
        bind(module, (getattr(maths, f"{name}_{bits}"),))
        names[name] = names[f"{name}_{bits}"]
    bind(module, (maths.tanh, maths.exp, maths.log1p))
    names.update({f"{name}{names['F']().itemsize}": names[name] for name in ("F", "tanh", "exp", "log1p")})


@functools.cache
def formulas() -> ModuleType:
    """Return a module with the names of both dtypes by which traces are written."""
    import math

    import numba
    import numpy as np

    from xlstm.engines.numba import shared_memory

    found = new_module("".join(inspect.getsource(module) for module in (maths, shared_memory)))
    for dtype in ("float32", "float64"):
        own = new_module(f"{found.__name__} {dtype}")
        bind_maths(own, dtype)
        found.__dict__.update({name: value for name, value in vars(own).items() if name[-1:] in "48"})
    found.__dict__.update(at4=shared_memory.at4, at8=shared_memory.at8, carray=numba.carray, U=np.uintp, math=math)
    return found


def _after_fork() -> None:
    """Make a new lock: another thread of the parent may have held the old one."""
    global lock
    lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
