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
from collections.abc import Mapping
from typing import Any, NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.cell import Cell
from xlstm.cells.normalization import layer_norm, layer_norm_bwd
from xlstm.tracing.reductions import GATES_AND_UNITS, REDUCTIONS, UnitNamespace
from xlstm.tracing.symbols import SymbolicNamespace, UntraceableError, trace

Arrays = dict[str, Array]
# a state, and whether its share is one number instead of a mask
Zoneout = tuple[tuple[str, bool], ...]
Own = tuple[tuple[str, "int | None"], ...]  # the cell's own parameters, and their rows
Rows = Mapping[str, "int | None"]  # of the leading axis of each array, None where it has none


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


@functools.cache
def _pointwise(form: Any, *options: Any) -> Pointwise | None:
    try:
        return Pointwise(form, *options)
    except UntraceableError:
        return None


def pointwise(
    cell: Cell,
    own: Own,
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


class Pointwise:
    """The step of one cell: functions of arrays, and the rows of their arrays.

    Parameters are those of `pointwise`, with the cell's form.

    Attributes
    ----------
    before : dict of str to (int or None)
        Rows of the inputs of `forward` and `lean`; the states come before the parameters.
    saved, after, gradients : dict of str to (int or None)
        Those of what `forward` keeps, and of the inputs and outputs of `backward`.
    carried : tuple of str
        The states but h.
    numbers : tuple of str
        Inputs of all functions that are scalars: the cell's `numbers`, and shares without a mask.
    shares : tuple of str
        Inputs of all functions that each row has anew: masks of zoneout.
    library : type
        The namespace that traces the functions.
    reduces : bool
        Whether means along units are in them.
    """

    def __init__(
        self,
        form: Any,
        own: Own,
        added: tuple[str, ...],
        zoneout: Zoneout,
        around: Around,
    ) -> None:
        self.form = form
        self.added = added
        self.around = around
        self.carried = tuple(form.STATES[1:])
        self.zones = [state for state, _ in zoneout]
        single = [f"zone_{state}" for state, is_number in zoneout if is_number]
        self.numbers = (*form.numbers, *single)
        self.shares = tuple([f"zone_{state}" for state, is_number in zoneout if not is_number])
        drop = ["drop"] * (around.drop and "drop" in form.OWN)
        self.own = [name for name, _ in own] + drop  # the arguments of the cell
        G = len(form.GATES)
        parameters: dict[str, int | None] = {
            name: rows for name, rows in own if name != around.matrix
        }
        parameters |= {"gh": G} if around.normal else {}
        inner = ["inner"] * bool(around.matrix)
        parameters |= dict.fromkeys([*self.numbers, *self.shares, *drop, *inner])
        states: dict[str, int | None] = dict.fromkeys(self.carried)
        h: dict[str, int | None] = {} if around.projected else {"h": None}
        self.before: Rows = {"zx": G, "zh": around.rows or G, **h, **states}
        self.before |= {**dict.fromkeys(added, G), **parameters}
        self.library = UnitNamespace if around.units else SymbolicNamespace
        lines, outputs = trace(self.forward, self.before, self.library)
        self.saved: Rows = {name: rows for name, rows in outputs.items() if name not in form.STATES}
        upstream = dict.fromkeys([f"d{state}" for state in ("h", *self.carried)])
        self.after: Rows = {**upstream, **states, **self.saved, **parameters}
        lines_bwd, self.gradients = trace(self.backward, self.after, self.library)
        self.reduces = any(line.op in REDUCTIONS for line in (*lines, *lines_bwd))

    @property
    def obstacle(self) -> str:
        """Why no kernel does several steps, or ""."""
        there = {
            "means along units": self.reduces,
            "a projection": self.around.projected,
            "a product within the cell": bool(self.around.matrix),
        }
        return " and ".join(name for name, is_there in there.items() if is_there)

    def forward(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return the state after the step, and what backward needs."""
        arrays = self._with_matrix(arrays)
        zx = arrays["zx"]
        zh = arrays["zh"]
        normal: Arrays = {}
        if self.around.normal:
            zh, (n, r) = layer_norm(xp, zh, arrays["gh"], GATES_AND_UNITS)  # (1)
            normal = {"n_zh": n, "r_zh": r}
        zx = zx + arrays["b"] if "b" in self.added else zx  # (2)
        zh = zh + arrays["bh"] if "bh" in self.added else zh  # (2)
        cell, carry, own = self._arguments(arrays)
        *after, saved = cell.gates(xp, zx, zh, arrays.get("h"), *carry, **own)  # (2)
        state = dict(zip(self.form.STATES, after, strict=True))
        for name in self.zones:
            share = arrays[f"zone_{name}"]
            state[name] = share * arrays[name] + (1 - share) * state[name]  # (3)
        self._saved_type = type(saved)
        fields = {f"s_{name}": a for name, a in saved._asdict().items() if a is not None}
        return state | normal | fields

    def lean(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return the state after the step alone."""
        after = self.forward(xp, **arrays)
        return {state: after[state] for state in self.form.STATES}

    def backward(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return dz; dzh where it differs; da, that of the product before its normalisation; dh0
        where there is one; and the gradients of the other states.
        """
        arrays = self._with_matrix(arrays)
        d = {state: arrays[f"d{state}"] for state in ("h", *self.carried)}
        past = {state: arrays[f"zone_{state}"] * d[state] for state in self.zones}  # (3)
        d |= {state: d[state] - past[state] for state in past}  # (3)
        cell, carry, own = self._arguments(arrays)
        local = cell.derivatives(xp, self.restore(arrays), *carry, **own)  # (2)
        dz, dzh, *before = cell.gates_bwd(xp, local, *d.values(), **own)  # (2)
        start = dict(zip(d, before, strict=True))
        for state, passed in past.items():
            start[state] = passed if start[state] is None else start[state] + passed  # (3)
        gradients = {"dz": dz} if dzh is dz else {"dz": dz, "dzh": dzh}
        if self.around.normal:
            normal = arrays["gh"], arrays["n_zh"], arrays["r_zh"]
            gradients["da"] = layer_norm_bwd(xp, dzh, *normal, GATES_AND_UNITS)  # (1)
        dh0 = start.pop("h")
        gradients |= {} if dh0 is None else {"dh0": dh0}
        return gradients | {f"d{state}": a for state, a in start.items()}

    def _arguments(self, arrays: Arrays) -> tuple[Any, list[Array], Arrays]:
        """Return the cell with its numbers, the states but h, and its own arguments."""
        cell = self.form.given({name: arrays[name] for name in self.form.numbers})
        own = {name: arrays[name] for name in self.own}
        return cell, [arrays[state] for state in self.carried], own

    def restore(self, arrays: Mapping[str, Array]) -> Any:
        """Return what the cell saved, from arrays by name."""
        fields = self._saved_type._fields
        return self._saved_type(**{field: arrays.get(f"s_{field}") for field in fields})

    # Where the cell multiplies by its `matrix`, the input "inner" is the product, and these give
    # the other factor.

    def factor(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return what the matrix multiplies."""
        arrays = self._with_matrix(arrays)
        self.forward(xp, **arrays)
        return {"factor": arrays[self.around.matrix].factor}

    def factor_bwd(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return what the transposed matrix multiplies in backward."""
        arrays = self._with_matrix(arrays)
        self.backward(xp, **arrays)
        return {"factor": arrays[self.around.matrix].factor}

    def _with_matrix(self, arrays: Arrays) -> Arrays:
        matrix = self.around.matrix
        if not matrix or matrix in arrays:
            return arrays
        return {**arrays, matrix: _Product(arrays["inner"])}


class _Product:
    """A matrix, or backward its transpose `T`, whose product with another factor is known."""

    def __init__(self, product: Array) -> None:
        self.T = self
        self.product = product
        self.factor = None

    def __matmul__(self, factor: Array) -> Array:
        if self.factor is not None:
            raise UntraceableError("tracing: more than one product within a cell")
        self.factor = factor
        return self.product
