"""A recurrence of few steps, element by element: a loop of steps, or one kernel with the loop inside on CuPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import fuse, probe
from xlstm.arrays.backend import Array, Namespace
from xlstm.arrays.fuse import Text, listed, loaded, parameters, real, stored
from xlstm.tracing.c import statements
from xlstm.tracing.symbols import Symbols, trace

Pairs = list[tuple[Array, Array]]


def scan(
    xp: Namespace,
    function: Callable[..., Any],
    start: Sequence[Array | float],
    *arrays: Array,
    axis: int = -1,
    reverse: bool = False,
    after: bool = False,
) -> Pairs:
    """What `function(xp, *carried, *arrays of a step)` makes of `start` step by step, in place of what was carried.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; it gives what is carried, an array or as many as `start` has.
    start
        What is carried into the first step, arrays without the axis of steps or numbers, which are float64.
    arrays
        With steps along `axis`; their shapes without it broadcast with those of `start`.
    axis : int
        Negative.
    reverse : bool
        From the last step to the first.
    after : bool
        Keep what is carried after each step instead of before it.

    Returns
    -------
    list of (array, array)
        For each that is carried: before every step (or after it), steps along `axis`, and after the last one.
    """
    if fuse.compiles(xp):
        return _launch(function, start, arrays, axis, reverse, after)
    n, tail = arrays[0].shape[axis], (slice(None),) * (-axis - 1)
    places = [(..., t, *tail) for t in (range(n - 1, -1, -1) if reverse else range(n))]
    steps = [[a[at] for at in places] for a in arrays]
    carried = tuple(xp.full_like(steps[0][0], s, dtype=xp.float64) if isinstance(s, float) else s for s in start)
    kept = []
    for given in zip(*steps, strict=True):
        new = function(xp, *carried, *given)
        if not isinstance(new, tuple):
            new = (new,)
        kept.append(new if after else carried)
        carried = new
    return [
        (xp.stack(some[::-1] if reverse else some, axis=axis), end)
        for some, end in zip(zip(*kept, strict=True), carried, strict=True)
    ]


def _launch(
    function: Callable[..., Any],
    start: Sequence[Array | float],
    arrays: tuple[Array, ...],
    axis: int,
    reverse: bool,
    after: bool,
) -> Pairs:
    """The kernel is given the first step of each array, and how far it is from there to the next one."""
    cp = probe.cupy()
    n, tail = arrays[0].shape[axis], (slice(None),) * (-axis - 1)
    at = (..., n - 1 if reverse else 0, *tail)
    firsts = [a[at] for a in arrays]
    shape = np.broadcast_shapes(*(a.shape for a in (*start, *firsts) if not isinstance(a, float)))
    dtypes = tuple(np.dtype("float64") if isinstance(s, float) else s.dtype for s in start)
    keep = len(shape) + axis + 1
    kept = [cp.empty((*shape[:keep], n, *shape[keep:]), dtype=dtype) for dtype in dtypes]
    ends = [cp.empty(shape, dtype=dtype) for dtype in dtypes]
    sign = -1 if reverse else 1
    far = [sign * a.strides[axis] // a.itemsize for a in (*arrays, *kept)]
    kernel = _kernel(function, dtypes, tuple(a.dtype for a in arrays), after)
    kernel(*start, *firsts, n, *far, *(a[at] for a in kept), *ends)
    return list(zip(kept, ends, strict=True))


@functools.cache
def source(function: Callable[..., Any], start: tuple[Any, ...], arrays: tuple[Any, ...], after: bool) -> Text:
    """The text of the kernel, from the dtypes of what is carried and of the arrays.

    Its parameters are what is carried c0, ..., the first step of each array x0, ..., the number n of steps, and how
    many elements it is to the next step of each array and of each kept y0, ...; then these, and the ends z0, ...
    """
    carried = {f"c{k}": dtype for k, dtype in enumerate(start)}
    given = {f"x{k}": dtype for k, dtype in enumerate(arrays)}
    kept, ends = ({f"{letter}{k}": dtype for k, dtype in enumerate(start)} for letter in "yz")
    far = {f"far_{name}": "int64" for name in (*given, *kept)}

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        return dict(zip(kept, listed(function(xp, *symbols.values())), strict=True))

    lines, _ = trace(named, dict.fromkeys((*carried, *given)))
    body = statements(
        lines,
        lambda name, _: f"k{name}" if name in carried else loaded(f"(&{name})[t * far_{name}]", given[name]),
        lambda y, _, value: f"kc{y[1:]} = {value};",
        {name: real(dtype) for name, dtype in (carried | given).items()},
    )
    keep = [f"(&{y})[t * far_{y}] = {stored(f'kc{y[1:]}', dtype)};" for y, dtype in kept.items()]
    text = [
        *(f"{real(dtype)} k{c} = {loaded(c, dtype)};" for c, dtype in carried.items()),
        "for (long long t = 0; t < n; ++t) {",
        *(() if after else keep),
        *body,
        *(keep if after else ()),
        "}",
        *(f"{z} = {stored(f'kc{z[1:]}', dtype)};" for z, dtype in ends.items()),
    ]
    return Text(parameters({**carried, **given, "n": "int64", **far}), parameters(kept | ends), "\n".join(text))


@functools.cache
def _kernel(function: Callable[..., Any], start: tuple[Any, ...], arrays: tuple[Any, ...], after: bool) -> Any:
    text = source(function, start, arrays, after)
    return probe.cupy().ElementwiseKernel(*text, f"xlstm_scan_{function.__name__.strip('_')}")
