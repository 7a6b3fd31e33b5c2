"""One time step of a gated cell as pure functions of arrays by name, which compiled engines trace.

The arrays of a step are zx and zh (G, M), the products of x and of h; b and bh (G, M), which are added to them; h and
the other states (M,); the fields of what the cell saves, each with the prefix `s_`, (rows, M) or (M,); and gradients
likewise. M are all units of all sequences. The numbers among the cell's options, such as `clip`, are arguments like
these, each a scalar: one step serves all cells of one form. zone_h and so on are the shares of the old states that
zoneout keeps (Krueger et al. 2017).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.cell import Cell
from xlstm.tracing.symbols import UntraceableError, trace

Zoneout = tuple[tuple[str, bool], ...]  # a state, and whether its share is one number instead of a mask
Rows = Mapping[str, "int | None"]  # of the leading axis of each array, None where it has none


@dataclass(frozen=True, eq=False)
class Pointwise:
    """The step of one cell: functions `f(xp, **arrays) -> arrays by name`, and the rows of their arrays."""

    forward: Callable[..., dict[str, Array]]  # the state after the step, and what backward needs
    lean: Callable[..., dict[str, Array]]  # the state alone
    backward: Callable[..., dict[str, Array]]  # dz, dzh where it differs, dh0 where there is one, and dc, ...
    before: Rows  # inputs of forward and lean; the states come before the parameters
    saved: Rows
    after: Rows  # inputs of backward
    gradients: Rows  # outputs of backward
    carried: tuple[str, ...]  # the states but h
    numbers: tuple[str, ...]  # inputs of all three that are scalars: the cell's `numbers`, and shares without a mask
    shares: tuple[str, ...]  # inputs of all three that each row has anew: masks of zoneout
    restore: Callable[[Mapping[str, Array]], Any]  # what the cell saved, from arrays by name


def pointwise(
    cell: Cell, own: tuple[tuple[str, int | None], ...], added: tuple[str, ...], zoneout: Zoneout = ()
) -> Pointwise | None:
    """Return the step of a cell, or None where it is not element by element.

    `own` has the cell's own parameters and their rows, `added` the biases that there are among b and bh, and `zoneout`
    the states with zoneout. Cells that differ in the values of their numbers alone have the same step.
    """
    return _pointwise(cell.form, own, added, zoneout)


@functools.cache
def _pointwise(
    form: Any, own: tuple[tuple[str, int | None], ...], added: tuple[str, ...], zoneout: Zoneout
) -> Pointwise | None:
    G, carried, numbers = len(form.GATES), tuple(form.STATES[1:]), tuple(form.numbers)
    zones = [name for name, _ in zoneout]
    kind: list[Any] = []  # the NamedTuple that the cell saves

    def forward(xp: Namespace, zx: Array, zh: Array, h: Array, **rest: Array) -> dict[str, Array]:
        cell = form.given({name: rest[name] for name in form.numbers})
        carry, mine = [rest[name] for name in carried], {name: rest[name] for name, _ in own}
        zx, zh = (z + rest[name] if name in added else z for z, name in ((zx, "b"), (zh, "bh")))
        *new, saved = cell.gates(xp, zx, zh, h, *carry, **mine)
        kind[:] = [type(saved)]
        kept = {f"s_{field}": a for field, a in saved._asdict().items() if a is not None}
        state, old = dict(zip(("h", *carried), new, strict=True)), {"h": h, **rest}
        for name in zones:
            share = rest[f"zone_{name}"]
            state[name] = share * old[name] + (1 - share) * state[name]
        return state | kept

    def lean(xp: Namespace, **arrays: Array) -> dict[str, Array]:
        return {name: a for name, a in forward(xp, **arrays).items() if name in form.STATES}

    def restore(arrays: Mapping[str, Array]) -> Any:
        return kind[0](**{field: arrays.get(f"s_{field}") for field in kind[0]._fields})

    def backward(xp: Namespace, dh: Array, **rest: Array) -> dict[str, Array]:
        cell = form.given({name: rest[name] for name in form.numbers})
        carry, mine = [rest[name] for name in carried], {name: rest[name] for name, _ in own}
        local = cell.derivatives(xp, restore(rest), *carry, **mine)
        d = {"h": dh, **{name: rest[f"d{name}"] for name in carried}}
        direct = {name: rest[f"zone_{name}"] * d[name] for name in zones}  # which zoneout lets through to the old state
        given = [d[name] - direct[name] if name in direct else d[name] for name in d]
        dz, dzh, *old = cell.gates_bwd(xp, local, *given, **mine)
        start = dict(zip(d, old, strict=True))
        for name, kept in direct.items():
            start[name] = kept if start[name] is None else start[name] + kept
        found = {"dz": dz, **({} if dzh is dz else {"dzh": dzh})}
        found |= {} if start["h"] is None else {"dh0": start["h"]}
        return found | {f"d{name}": start[name] for name in carried}

    numbers = (*numbers, *(f"zone_{name}" for name, one in zoneout if one))
    shares = tuple(f"zone_{name}" for name, one in zoneout if not one)
    scalars: dict[str, int | None] = dict.fromkeys((*numbers, *shares))
    states: dict[str, int | None] = dict.fromkeys(carried)
    before = {"zx": G, "zh": G, "h": None, **states, **dict.fromkeys(added, G), **dict(own), **scalars}
    try:
        _, outputs = trace(forward, before)
        saved = {name: rows for name, rows in outputs.items() if name not in form.STATES}
        after = {"dh": None, **{f"d{c}": None for c in carried}, **states, **saved, **dict(own), **scalars}
        _, gradients = trace(backward, after)
    except UntraceableError:
        return None
    return Pointwise(forward, lean, backward, before, saved, after, gradients, carried, numbers, shares, restore)
