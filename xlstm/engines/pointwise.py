"""One time step of a gated cell as pure functions of arrays by name, which compiled engines trace.

M stands for all units of all sequences. The arrays of a step are:

- zx and zh (G, M), the products with x and with h, and b and bh (G, M), the biases added to them;
- h and the other states (M,);
- the fields that the cell saves, with the prefix `s_`, (rows, M) or (M,);
- gradients, named and shaped likewise;
- the numbers among the cell's options, such as `clip`, each a scalar, so that one step serves all
  cells of one form;
- zone_h and so on, the shares of the old states that zoneout keeps (Krueger et al. 2017);
- with layer normalisation (Ba et al. 2016), the gain gh (G, M) of zh, and n_zh (G, M) and r_zh
  (M,), which the normalisation keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.cell import Cell, check_results
from xlstm.cells.normalization import layer_norm, layer_norm_bwd
from xlstm.tracing.reductions import GATES_AND_UNITS, REDUCTIONS, UnitNamespace
from xlstm.tracing.symbols import SymbolicNamespace, UntraceableError, trace

Arrays = dict[str, Array]
# each state, and whether its share is a number and not a mask
Zoneout = tuple[tuple[str, bool], ...]
Own = tuple[tuple[str, "int | None"], ...]  # the cell's own parameters, and their rows
Rows = Mapping[str, "int | None"]  # rows of the leading axis of each array, None if it has none


class Around(NamedTuple):
    """The options of a step beside its cell, zoneout and biases; only some engines take them.

    Attributes
    ----------
    drop : bool
        h has a mask before its product, for recurrent dropout.
    normal : bool
        The product with h is normalised.
    projected : bool
        h is projected: it has another width in its product than in the cell, and the cell does not
        get it.
    matrix : str
        The name of the cell's own parameter that is a matrix, "" if there is none.
    rows : int or None
        Rows of the product with h, if they are not those of all gates.
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
    except (UntraceableError, NotImplementedError):  # a cell may have no backward pass
        return None


def pointwise(
    cell: Cell,
    own: Own,
    added: tuple[str, ...],
    zoneout: Zoneout = (),
    around: Around = Around(),  # noqa: B008
) -> Pointwise | None:
    """Return the step of a cell, or None if the cell is not element by element.

    `own` has the cell's own parameters and their rows, `added` the biases among b and bh, and
    `zoneout` the states with zoneout. Cells that differ only in the values of their numbers share a
    step.
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
        Rows of the kept values of `forward`, and of the inputs and outputs of `backward`.
    carried : tuple of str
        All states except h.
    numbers : tuple of str
        Inputs of all functions that are scalars: the cell's `numbers`, and shares without a mask.
    shares : tuple of str
        Inputs of all functions that differ from row to row: masks of zoneout.
    library : type
        The namespace that traces the functions.
    reduces : bool
        Whether the functions take means along units.
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
        self.own = [name for name, _ in own] + drop  # own arguments of the cell
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
        """The reason why no kernel runs several steps, or ""."""
        there = {
            "means along units": self.reduces,
            "a projection": self.around.projected,
            "a product within the cell": bool(self.around.matrix),
        }
        return " and ".join(name for name, is_there in there.items() if is_there)

    def forward(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return the state after the step, and the values that the backward pass needs."""
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
        results = cell.gates(xp, zx, zh, arrays.get("h"), *carry, **own)  # (2)
        check_results(cell, "gates", results, *cell.STATES)
        *after, saved = results
        state = dict(zip(self.form.STATES, after, strict=True))
        for name in self.zones:
            share = arrays[f"zone_{name}"]
            state[name] = share * arrays[name] + (1 - share) * state[name]  # (3)
        self._saved_type = type(saved)
        fields = {f"s_{name}": a for name, a in saved._asdict().items() if a is not None}
        return state | normal | fields

    def lean(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return only the state after the step."""
        after = self.forward(xp, **arrays)
        return {state: after[state] for state in self.form.STATES}

    def backward(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return the gradients of a step by name.

        They are dz; dzh, if it differs; da, with respect to the product before its normalisation;
        dh0, if there is one; and those of the other states.
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
        """Return the cell with its numbers, the states except h, and its own arguments."""
        cell = self.form.given({name: arrays[name] for name in self.form.numbers})
        own = {name: arrays[name] for name in self.own}
        return cell, [arrays[state] for state in self.carried], own

    def restore(self, arrays: Mapping[str, Array]) -> Any:
        """Return the `saved` of the cell, from arrays by name."""
        fields = self._saved_type._fields
        return self._saved_type(**{field: arrays.get(f"s_{field}") for field in fields})

    # If the cell multiplies by its `matrix`, the input "inner" is the product. These functions
    # return the other factor.

    def factor(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return the factor that the matrix multiplies."""
        arrays = self._with_matrix(arrays)
        self.forward(xp, **arrays)
        return {"factor": arrays[self.around.matrix].factor}

    def factor_bwd(self, xp: Namespace, **arrays: Array) -> Arrays:
        """Return the factor that the transposed matrix multiplies in the backward pass."""
        arrays = self._with_matrix(arrays)
        self.backward(xp, **arrays)
        return {"factor": arrays[self.around.matrix].factor}

    def _with_matrix(self, arrays: Arrays) -> Arrays:
        matrix = self.around.matrix
        if not matrix or matrix in arrays:
            return arrays
        return {**arrays, matrix: _Product(arrays["inner"])}


class _Product:
    """A matrix, or in the backward pass its transpose `T`, whose product with another factor is
    known.
    """

    def __init__(self, product: Array) -> None:
        self.T = self
        self.product = product
        self.factor = None

    def __matmul__(self, factor: Array) -> Array:
        if self.factor is not None:
            raise UntraceableError("tracing: more than one product within a cell")
        self.factor = factor
        return self.product
