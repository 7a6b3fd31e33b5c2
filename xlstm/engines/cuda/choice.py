"""Which way a recurrent layer runs on a GPU: by shape, dtype and device, or as told."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from xlstm.arrays import checks
from xlstm.engines.cuda import tiling
from xlstm.engines.cuda.cell import cell_of
from xlstm.engines.cuda.launch import LOOPS
from xlstm.engines.cuda.tiling import ARITHMETIC, Arithmetic, Device, Tiling
from xlstm.engines.pointwise import Pointwise

# The array library alone; with one kernel a step beside the product of h; one kernel for all steps: with ordinary
# arithmetic, with tensor cores and a grid that meets in global memory, with tensor cores and clusters.
PATHS = ("loop", "pointwise", "plain", "grid", "cluster")
PRECISIONS = ("float32", "tf32")
PATH, PRECISION = "XLSTM_CUDA_PATH", "XLSTM_CUDA_PRECISION"
LAUNCHES = 15.0  # microseconds of a product and a kernel, which the host takes to ask for them: an estimate

_told: contextvars.ContextVar[tuple[str | None, str | None]] = contextvars.ContextVar("told", default=(None, None))


class Choice(NamedTuple):
    """A path, and why each other one is not taken."""

    path: str
    arithmetic: Arithmetic
    forward: Tiling | None  # of a path with one kernel for all steps
    backward: Tiling | None
    others: dict[str, str]


def use(path: str | None = None, precision: str | None = None) -> contextlib.AbstractContextManager[None]:
    """How recurrent layers run on CuPy arrays, within a `with`.

    Parameters
    ----------
    path : {"auto", "loop", "pointwise", "plain", "grid", "cluster"}, optional
        "auto", the default, takes what should be quickest of those that can; another name is taken or refused. The
        environment variable XLSTM_CUDA_PATH does the same for the process.
    precision : {"float32", "tf32"}, optional
        Of products of float32 arrays in the loops: "float32", the default, has its digits, on tensor cores as three
        products in TF32; "tf32" is one product, with 11 bits of each factor. XLSTM_CUDA_PRECISION does the same.

    Raises
    ------
    ValueError
        Another name.
    """
    if path is not None:
        _check("use: path", path, ("auto", *PATHS))
    if precision is not None:
        _check("use: precision", precision, PRECISIONS)
    return _used(path, precision)


@contextlib.contextmanager
def _used(path: str | None, precision: str | None) -> Iterator[None]:
    before = _told.get()
    token = _told.set((path or before[0], precision or before[1]))
    try:
        yield
    finally:
        _told.reset(token)


def told() -> tuple[str, str]:
    """The path and the precision asked for."""
    path, precision = _told.get()
    path = path or os.environ.get(PATH) or "auto"
    precision = precision or os.environ.get(PRECISION) or "float32"
    _check(PATH, path, ("auto", *PATHS))
    _check(PRECISION, precision, PRECISIONS)
    return path, precision


def choose(
    who: str, step: Pointwise | None, why: str, dtype: str, width: int, heads: int, B: int, device: Device
) -> Choice:
    """The way of a layer with `heads` of `width` units and a batch of B.

    Parameters
    ----------
    who
        Whose error it is.
    step
        The cell's, or None where it cannot be traced; `why` says it then.

    Raises
    ------
    ValueError
        The path asked for cannot do it.
    """
    path, precision = told()
    return _choose(who, path, Layer(step, why, dtype, width, heads, B, device, precision))


class Layer(NamedTuple):
    """What a path is to do; see `choose`."""

    step: Pointwise | None
    why: str
    dtype: str
    width: int
    heads: int
    B: int
    device: Device
    precision: str


@functools.cache
def _choose(who: str, path: str, layer: Layer) -> Choice:
    found, others = {}, {}
    for name in PATHS:
        made = _try(name, layer)
        if isinstance(made, str):
            others[name] = made
        else:
            found[name] = made
    if path != "auto":
        if path not in found:
            raise ValueError(
                f"{who}: path {path!r} was asked for, but {others[path]}; {', '.join(found)} can do it, auto chooses"
            )
        others |= {name: f"{path} was asked for" for name in found if name != path}
        return found[path]._replace(others=others)
    times = {name: _time(made) for name, made in found.items()}
    best = min(times, key=lambda name: times[name])
    others |= {
        name: f"forward and backward should take {time:.1f} us a step (an estimate)"
        for name, time in times.items()
        if name != best
    }
    return found[best]._replace(others=others)


def _try(path: str, layer: Layer) -> Choice | str:
    """The choice of this path, or why it cannot be."""
    step, why, dtype, width, heads, B, device, precision = layer
    if path == "loop":
        return Choice(path, ARITHMETIC[dtype], None, None, {})
    if step is None:
        return why
    if dtype == "bfloat16" and device.capability < 80:
        return f"{device.name} is sm_{device.capability}, bfloat16 needs sm_80"
    if path == "pointwise":
        return Choice(path, ARITHMETIC[dtype], None, None, {})
    if device.capability < LOOPS:
        return f"{device.name} is sm_{device.capability}, which needs sm_{LOOPS}"
    tensor = path in ("grid", "cluster")
    if tensor and dtype == "float64":
        return "tensor cores are not used for float64"
    if tensor and device.capability < 80:
        return f"{device.name} is sm_{device.capability}, its tensor cores are not used below sm_80"
    if path == "cluster" and not device.cluster:
        return f"{device.name} is sm_{device.capability}, clusters need sm_90, and did not run on it"
    name = dtype if dtype in ("float64", "float32") else f"{dtype} plain"
    if tensor:
        name = dtype if dtype != "float32" else {"float32": "3xtf32", "tf32": "tf32"}[precision]
    arithmetic = ARITHMETIC[name]
    forward, backward = (
        tiling.best(kind, cell_of(step, kind), width, heads, B, arithmetic, device, path == "cluster")
        for kind in tiling.PASSES
    )
    if forward is None or backward is None:
        return (
            f"no way to divide {heads} x {width} units, {B} sequences and {name} fits {device.sms} SMs with "
            f"{device.shared} bytes, {'forward' if forward is None else 'backward'}"
        )
    return Choice(path, arithmetic, forward, backward, {})


def _time(choice: Choice) -> float:
    """Microseconds of a step, forward and backward; an estimate."""
    if choice.forward is None or choice.backward is None:
        return 2 * LAUNCHES * (1 if choice.path == "pointwise" else 5)
    return choice.forward.time + choice.backward.time


def _check(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{what} is {checks.shown(value)}, expected one of {', '.join(allowed)}")
