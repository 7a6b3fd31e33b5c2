"""One time step of a gated cell as pure functions of arrays by name, which compiled engines trace.

The arrays of a step are zx and zh (G, M), the products of x and of h; b and bh (G, M), which are
added to them; h and the other states (M,); the fields of what the cell saves, each with the prefix
`s_`, (rows, M) or (M,); and gradients likewise. M are all units of all sequences. The numbers among
the cell's options, such as `clip`, are arguments like these, each a scalar: one step serves all
cells of one form. zone_h and so on are the shares of the old states that zoneout keeps (Krueger et
al. 2017). With layer normalisation (Ba et al. 2016) gh (G, M) is the gain of zh, and the arrays
n_zh (G, M) and r_zh (M,) are what the normalisation keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.cell import Cell
from xlstm.cells.normalization import layer_norm, layer_norm_bwd
from xlstm.tracing.reductions import GATES_AND_UNITS, REDUCTIONS, Units
from xlstm.tracing.symbols import SymbolicNamespace, UntraceableError, trace

# a state, and whether its share is one number instead of a mask
Zoneout = tuple[tuple[str, bool], ...]
Rows = Mapping[str, "int | None"]  # of the leading axis of each array, None where it has none
Function = Callable[..., dict[str, Array]]  # f(xp, **arrays) -> arrays by name


class Around(NamedTuple):
    """The options of a step beside its cell, zoneout and biases; only some engines take them.

    Attributes
    ----------
    drop : bool
        h has a mask before its product, with recurrent dropout.
    normal : bool
        The product of h is normalised.
    projected : bool
        h has another width in its product than in the cell, which then does not get it.
    matrix : str
        The name of the cell's parameter by which it multiplies, "" where there is none.
    rows : int or None
        Rows of the product of h, where they are not those of all gates.
    units : bool
        The cell may take means along its units.
    """

    drop: bool = False
    normal: bool = False
    projected: bool = False
    matrix: str = ""
    rows: int | None = None
    units: bool = False


@dataclass(frozen=True, eq=False)
class Pointwise:
    """The step of one cell: functions of arrays, and the rows of their arrays."""

    forward: Function  # the state after the step, and what backward needs
    lean: Function  # the state alone
    # dz, dzh where it differs, da before its normalisation, dh0 where there is one, and dc, ...
    backward: Function
    before: Rows  # inputs of forward and lean; the states come before the parameters
    saved: Rows
    after: Rows  # inputs of backward
    gradients: Rows  # outputs of backward
    carried: tuple[str, ...]  # the states but h
    # inputs of all three that are scalars: the cell's `numbers`, and shares without a mask
    numbers: tuple[str, ...]
    shares: tuple[str, ...]  # inputs of all three that each row has anew: masks of zoneout
    restore: Callable[[Mapping[str, Array]], Any]  # what the cell saved, from arrays by name
    around: Around
    library: type[SymbolicNamespace]  # that traces the functions
    reduces: bool  # whether means along units are in them
    # Where the cell multiplies by its `matrix`, the input "inner" is the product, and these give
    # the other factor.
    factor: Function
    factor_bwd: Function

    @property
    def obstacle(self) -> str:
        """Why no kernel does several steps, or ""."""
        there = {
            "means along units": self.reduces,
            "a projection": self.around.projected,
            "a product within the cell": bool(self.around.matrix),
        }
        return " and ".join(name for name, is_there in there.items() if is_there)


def pointwise(
    cell: Cell,
    own: tuple[tuple[str, int | None], ...],
    added: tuple[str, ...],
    zoneout: Zoneout = (),
    around: Around = Around(),  # noqa: B008
) -> Pointwise | None:
    """Return the step of a cell, or None where it is not element by element.

    `own` has the cell's own parameters and their rows, `added` the biases that there are among b
    and bh, and `zoneout` the states with zoneout. Cells that differ in the values of their numbers
    alone have the same step.
    """
    return _pointwise(cell.form, own, added, zoneout, around)


@functools.cache
def _pointwise(
    form: Any,
    own: tuple[tuple[str, int | None], ...],
    added: tuple[str, ...],
    zoneout: Zoneout,
    around: Around,
) -> Pointwise | None:
    G = len(form.GATES)
    carried = tuple(form.STATES[1:])
    numbers = tuple(form.numbers)
    # that the cell takes
    names = [name for name, _ in own] + ["drop"] * (around.drop and "drop" in form.OWN)
    zones = [name for name, _ in zoneout]
    kind: list[Any] = []  # the NamedTuple that the cell saves

    def forward(
        xp: Namespace, zx: Array, zh: Array, h: Array = None, **rest: Array
    ) -> dict[str, Array]:
        cell = form.given({name: rest[name] for name in form.numbers})
        carry = [rest[name] for name in carried]
        mine = {name: rest[name] for name in names}
        kept: dict[str, Array] = {}
        if around.normal:
            zh, (kept["n_zh"], kept["r_zh"]) = layer_norm(xp, zh, rest["gh"], GATES_AND_UNITS)
        zx, zh = (z + rest[name] if name in added else z for z, name in ((zx, "b"), (zh, "bh")))
        *new, saved = cell.gates(xp, zx, zh, h, *carry, **mine)
        kind[:] = [type(saved)]
        kept |= {f"s_{field}": a for field, a in saved._asdict().items() if a is not None}
        state = dict(zip(("h", *carried), new, strict=True))
        old = {"h": h, **rest}
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
        carry = [rest[name] for name in carried]
        mine = {name: rest[name] for name in names}
        local = cell.derivatives(xp, restore(rest), *carry, **mine)
        d = {"h": dh, **{name: rest[f"d{name}"] for name in carried}}
        # which zoneout lets through to the old state
        direct = {name: rest[f"zone_{name}"] * d[name] for name in zones}
        given = [d[name] - direct[name] if name in direct else d[name] for name in d]
        dz, dzh, *old = cell.gates_bwd(xp, local, *given, **mine)
        start = dict(zip(d, old, strict=True))
        for name, kept in direct.items():
            start[name] = kept if start[name] is None else start[name] + kept
        found = {"dz": dz, **({} if dzh is dz else {"dzh": dzh})}
        if around.normal:
            found["da"] = layer_norm_bwd(
                xp, dzh, rest["gh"], rest["n_zh"], rest["r_zh"], GATES_AND_UNITS
            )
        found |= {} if start["h"] is None else {"dh0": start["h"]}
        return found | {f"d{name}": start[name] for name in carried}

    functions: list[Function] = [forward, lean, backward]
    if around.matrix:
        sides = (_Product, _Product, _Transposed)
        functions = [
            functools.partial(_with_product, function, around.matrix, side)
            for function, side in zip(functions, sides, strict=True)
        ]
    numbers = (*numbers, *(f"zone_{name}" for name, one in zoneout if one))
    shares = tuple(f"zone_{name}" for name, one in zoneout if not one)
    both = {
        **{name: rows for name, rows in own if name != around.matrix},
        **({"gh": G} if around.normal else {}),
    }
    both |= dict.fromkeys(
        [*numbers, *shares, *["drop"] * ("drop" in names), *["inner"] * bool(around.matrix)]
    )
    states: dict[str, int | None] = dict.fromkeys(carried)
    before: dict[str, int | None] = {
        "zx": G,
        "zh": around.rows or G,
        **({} if around.projected else {"h": None}),
    }
    before |= {**states, **dict.fromkeys(added, G), **both}
    library = Units if around.units else SymbolicNamespace
    try:
        lines, outputs = trace(functions[0], before, library)
        saved = {name: rows for name, rows in outputs.items() if name not in form.STATES}
        after = {"dh": None, **{f"d{c}": None for c in carried}, **states, **saved, **both}
        more, gradients = trace(functions[2], after, library)
    except UntraceableError:
        return None
    reduces = any(line.op in REDUCTIONS for line in (*lines, *more))
    factor, factor_bwd = (
        functools.partial(_factor, function, around.matrix, side)
        for function, side in ((forward, _Product), (backward, _Transposed))
    )
    made = (before, saved, after, gradients, carried, numbers, shares, restore)
    return Pointwise(
        functions[0],
        functions[1],
        functions[2],
        *made,
        around,
        library,
        reduces,
        factor,
        factor_bwd,
    )


class _Product:
    """A matrix whose product with another factor is known."""

    def __init__(self, product: Array) -> None:
        self.product = product
        self.factor = None

    def __matmul__(self, factor: Array) -> Array:
        if self.factor is not None:
            raise UntraceableError("tracing: more than one product within a cell")
        self.factor = factor
        return self.product


class _Transposed:
    """A matrix whose transpose has a product that is known."""

    def __init__(self, product: Array) -> None:
        self.T = _Product(product)

    factor = property(lambda self: self.T.factor)


def _with_product(
    function: Function, matrix: str, side: Any, xp: Namespace, inner: Array, **arrays: Array
) -> dict[str, Array]:
    return function(xp, **arrays, **{matrix: side(inner)})


def _factor(
    function: Function, matrix: str, side: Any, xp: Namespace, inner: Array, **arrays: Array
) -> dict[str, Array]:
    product = side(inner)
    function(xp, **arrays, **{matrix: product})
    return {"factor": product.factor}
