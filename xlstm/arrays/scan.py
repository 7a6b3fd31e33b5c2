"""A recurrence of few steps, element by element: a loop of steps, or one kernel with the loop inside on CuPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import broken, fuse, probe
from xlstm.arrays.fuse import Text, converted, listed, parameters, real
from xlstm.arrays.namespace import Array, Namespace, device_of
from xlstm.tracing.symbols import Symbols, trace
from xlstm.tracing.writers import C

Pairs = list[tuple[Array, Array]]


def scan(
    xp: Namespace,
    function: Callable[..., Any],
    start: Sequence[Array | float],
    *arrays: Array,
    axis: int = -1,
    reverse: bool = False,
    after: bool = False,
    at_once: Callable[..., tuple[Array, ...]] | None = None,
) -> Pairs:
    """Apply `function(xp, *carried, *arrays of a step)` to `start` step by step; its results are carried on.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    function
        As for `fuse`; it returns as many arrays as `start` has, or the only one.
    start
        The values that are carried into the first step: arrays without the axis of steps, or float64 numbers.
    arrays
        Arrays with steps along `axis`; their shapes without it broadcast with those of `start`.
    axis : int
        Negative.
    reverse : bool
        Whether to go from the last step to the first.
    after : bool
        Whether to keep the values that are carried after each step, instead of those before it.
    at_once : callable, optional
        `at_once(xp, *arrays)` computes from `after` and these values the same by a few calls for all steps; it takes
        the place of a loop of steps.

    Returns
    -------
    list of (array, array)
        For each value that is carried: the kept ones, steps along `axis`, and the one after the last step.
    """
    found = None
    if fuse.compiles(xp):
        name = f"xlstm_scan_{function.__name__.strip('_')}"
        found = broken.attempt(name, _launch, name, function, start, arrays, axis, reverse, after)
    if found is not None:
        return found  # type: ignore[no-any-return]
    n, tail = arrays[0].shape[axis], (slice(None),) * (-axis - 1)
    if at_once is not None and not fuse.compiles(xp):  # CuPy copies factors of its own products
        return [(kept, kept[(..., 0 if reverse else n - 1, *tail)]) for kept in at_once(xp, *arrays)]
    order = range(n - 1, -1, -1) if reverse else range(n)
    first = [a[(..., order[0], *tail)] for a in arrays]
    carried = tuple(xp.full_like(first[0], s, dtype=xp.float64) if isinstance(s, float) else s for s in start)
    kept: list[Array] = []
    for t in order:
        at = (..., t, *tail)
        given = (*carried, *(a[at] for a in arrays))
        new = listed(fuse.plain(xp, function, given, {}) if fuse.compiles(xp) else function(xp, *given))
        if not kept:  # new ones have the shape and the dtype of all of them
            axes = [(*a.shape[: a.ndim + axis + 1], n, *a.shape[a.ndim + axis + 1 :]) for a in new]
            kept = [xp.empty(shape, dtype=a.dtype, device=device_of(a)) for a, shape in zip(new, axes, strict=True)]
        for room, a in zip(kept, new if after else carried, strict=True):
            room[at] = a
        carried = new
    return list(zip(kept, carried, strict=True))


def _launch(
    name: str,
    function: Callable[..., Any],
    start: Sequence[Array | float],
    arrays: tuple[Array, ...],
    axis: int,
    reverse: bool,
    after: bool,
) -> Pairs:
    """Run the kernel, which is given the first step of each array, and the distance from there to the next one."""
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
    kernel = _kernel(name, function, dtypes, tuple(a.dtype for a in arrays), after)
    kernel(*start, *firsts, n, *far, *(a[at] for a in kept), *ends)
    return list(zip(kept, ends, strict=True))


@functools.cache
def source(function: Callable[..., Any], start: tuple[Any, ...], arrays: tuple[Any, ...], after: bool) -> Text:
    """Return the text of the kernel, from the dtypes of the carried values and of the arrays.

    Its parameters are the carried values c0, ..., the first step of each array x0, ..., the number n of steps, and the
    distance in elements to the next step of each array and of each kept y0, ...; then these, and the ends z0, ...
    """
    carried = {f"c{k}": dtype for k, dtype in enumerate(start)}
    given = {f"x{k}": dtype for k, dtype in enumerate(arrays)}
    kept, ends = ({f"{letter}{k}": dtype for k, dtype in enumerate(start)} for letter in "yz")
    far = {f"far_{name}": "int64" for name in (*given, *kept)}

    def named(xp: Any, **symbols: Symbols) -> dict[str, Symbols]:
        return dict(zip(kept, listed(function(xp, *symbols.values())), strict=True))

    lines, _ = trace(named, dict.fromkeys((*carried, *given)))
    body = C(
        lines,
        lambda name, _: f"k{name}" if name in carried else converted(f"(&{name})[t * far_{name}]", given[name]),
        lambda y, _, value: f"kc{y[1:]} = {value};",
        {name: real(dtype) for name, dtype in (carried | given).items()},
    ).statements()
    keep = [f"(&{y})[t * far_{y}] = {converted(f'kc{y[1:]}', dtype)};" for y, dtype in kept.items()]
    text = [
        *(f"{real(dtype)} k{c} = {converted(c, dtype)};" for c, dtype in carried.items()),
        "for (long long t = 0; t < n; ++t) {",
        *(() if after else keep),
        *body,
        *(keep if after else ()),
        "}",
        *(f"{z} = {converted(f'kc{z[1:]}', dtype)};" for z, dtype in ends.items()),
    ]
    return Text(parameters({**carried, **given, "n": "int64", **far}), parameters(kept | ends), "\n".join(text))


@functools.cache
def _kernel(
    name: str, function: Callable[..., Any], start: tuple[Any, ...], arrays: tuple[Any, ...], after: bool
) -> Any:
    return probe.cupy().ElementwiseKernel(*source(function, start, arrays, after), name)
