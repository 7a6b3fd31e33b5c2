"""One time step of a gated cell as pure functions of arrays by name: what targets trace and compile.

A step's arrays are zx and zh (G, M), the products of x and of h; b and bh (G, M), what is added to them; h and the
carried states (M,); what the cell saves, s0, s1, ... (rows, M) or (M,); gradients likewise. M are all units of all
sequences. The numbers among the cell's options, such as `clip`, are arguments like these, each a scalar: a step is that
of all cells of one form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm.arrays.backend import Array, Namespace
from xlstm.tracing.symbols import UntraceableError, trace

Rows = Mapping[str, "int | None"]  # of the leading axis of each array, None where it has none


@dataclass(frozen=True, eq=False)
class Pointwise:
    """The step of one cell: functions `f(xp, **arrays) -> arrays by name`, and the rows of what they take and give."""

    forward: Callable[..., dict[str, Array]]  # the state after the step, and what backward needs
    lean: Callable[..., dict[str, Array]]  # the state alone
    backward: Callable[..., dict[str, Array]]  # from what forward saved: dz (and dzh, dh0 of a SPLIT cell), dc, ...
    before: Rows  # inputs of forward and lean
    saved: Rows
    after: Rows  # inputs of backward
    carried: tuple[str, ...]  # the states but h
    numbers: tuple[str, ...]  # inputs of all three that are scalars: the cell's `numbers`


def pointwise(cell: Any, own: tuple[tuple[str, int], ...], added: tuple[str, ...]) -> Pointwise | None:
    """The step of a cell, or None where it is not element by element.

    `own` has the cell's own parameters and their rows, `added` which of b and bh there are. Cells that differ in the
    values of their numbers alone have the same step.
    """
    return _pointwise(cell.form, own, added)


@functools.cache
def _pointwise(form: Any, own: tuple[tuple[str, int], ...], added: tuple[str, ...]) -> Pointwise | None:
    G, carried, numbers = len(form.GATES), tuple(form.STATES[1:]), tuple(form.numbers)

    def forward(xp: Namespace, zx: Array, zh: Array, h: Array, **rest: Array) -> dict[str, Array]:
        cell = form.given({name: rest[name] for name in numbers})
        carry, mine = [rest[name] for name in carried], {name: rest[name] for name, _ in own}
        zx, zh = (z + rest[name] if name in added else z for z, name in ((zx, "b"), (zh, "bh")))
        if cell.SPLIT:
            h, *new, saved = cell.gates(xp, zx, zh, h, *carry)
        else:
            h, *new, saved = cell.gates(xp, zx + zh, *carry, **mine)
        return {"h": h, **dict(zip(carried, new, strict=True)), **{f"s{k}": a for k, a in enumerate(saved)}}

    def lean(xp: Namespace, **arrays: Array) -> dict[str, Array]:
        return {name: a for name, a in forward(xp, **arrays).items() if name in form.STATES}

    def backward(xp: Namespace, dh: Array, **rest: Array) -> dict[str, Array]:
        cell = form.given({name: rest[name] for name in numbers})
        carry, mine = [rest[name] for name in carried], {name: rest[name] for name, _ in own}
        slopes = cell.slopes(xp, *carry, [rest[name] for name in rest if name in saved], **mine)
        names = ["dz", *(("dzh", "dh0") if cell.SPLIT else ()), *(f"d{name}" for name in carried)]
        return dict(zip(names, cell.gates_bwd(xp, dh, *(rest[f"d{c}"] for c in carried), slopes), strict=True))

    if form.INNER:
        return None
    scalars: dict[str, int | None] = dict.fromkeys(numbers)
    states: dict[str, int | None] = dict.fromkeys(carried)
    before = {"zx": G, "zh": G, **dict.fromkeys(added, G), "h": None, **states, **dict(own), **scalars}
    try:
        _, outputs = trace(forward, before)
    except UntraceableError:
        return None
    saved = {name: rows for name, rows in outputs.items() if name not in form.STATES}
    after = {"dh": None, **{f"d{c}": None for c in carried}, **states, **saved, **dict(own), **scalars}
    try:
        trace(backward, after)
    except UntraceableError:
        return None
    return Pointwise(forward, lean, backward, before, saved, after, carried, numbers)
