"""The step of a cell as Python source, made from its trace: one loop over all units for Numba.

NumPy makes a pass over memory for every operation. The loop here makes one pass for all operations,
in vector registers and without the interpreter. Its operations are those of the trace, so this file
has no formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from xlstm.engines.numba import jit
from xlstm.engines.pointwise import Own, Pointwise, pointwise
from xlstm.tracing.symbols import Symbols, trace
from xlstm.tracing.writers import Python

# Arguments of a step: where its numbers begin in arrays over all steps. No parameter of a cell may
# have such a name.
PLACES = ("_zx", "_h", "_new_h", "_carry", "_new_carry", "_saved")


class Kernel(NamedTuple):
    """Compiled loops, and the arguments of their step: first arrays, then numbers."""

    loops: ModuleType
    arrays: tuple[str, ...]
    rows: tuple[int, ...]  # rows of each array
    numbers: tuple[str, ...]


class Kernels(NamedTuple):
    """The compiled loops of one cell and dtype."""

    step: Pointwise
    vectors: tuple[str, ...]  # arrays of a step beside products and states
    forward: Kernel
    lean: Kernel  # forward pass that keeps nothing
    backward: Kernel


@functools.cache
def kernels(form: Any, dtype: str, own: Own, added: tuple[str, ...], shape: Any) -> Kernels | None:
    """Return the loops of a cell for vectors of a shape, or None if the cell is not element by
    element.

    `form` is the form of the cell, `own` has its own parameters and their rows, and `added` the
    biases among b and bh.
    """
    step = pointwise(form, own, added)
    # the loop has no place for rows of `own_bwd`
    # nor for a gradient of h that the cell neither computes nor multiplies by weights
    ends = step and not form.RECURRENT and "dh0" not in step.gradients
    if step is None or step.gradients["dz"] != len(form.GATES) or ends:
        return None
    saved = dict.fromkeys(step.saved, "_saved")
    carried = step.carried
    at = {"zx": "_zx", "h": "_h", **saved, **dict.fromkeys(carried, "_carry")}
    after = {"h": "_new_h", **saved, **dict.fromkeys(carried, "_new_carry")}
    first = ("zx", "zh", "h")
    lean = kernel(dtype, step.lean, step.before, first, at, after, step.numbers)
    return Kernels(
        step,
        lean.arrays[len(first) + len(carried) :],
        kernel(dtype, step.forward, step.before, first, at, after, step.numbers),
        lean,
        kernel(dtype, step.backward, step.after, ("dz", "dzh", "dh0", "dh"), at, {}, step.numbers),
    )


def kernel(
    dtype: str,
    function: Callable[..., Mapping[str, Symbols]],
    inputs: Mapping[str, int | None],
    given: tuple[str, ...],
    loads: Mapping[str, str],
    stores: Mapping[str, str],
    numbers: Collection[str],
) -> Kernel:
    """Write a traced function as the source of a step, and return the loops around it.

    The source has the step twice. `step` takes arrays, first those in `given`, and then numbers.
    `step_at` takes a table with the address of each array and the length of its rows, and a float64
    array of the numbers. So it has the same arguments for all cells, and the loops that call it by
    its address are compiled only once.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    function
        `function(xp, **arrays)` returns arrays by name, element by element.
    inputs : dict of str to (int or None)
        Rows of its arrays, None for an array without that axis.
    given : tuple of str
        Names of the arrays that come first among the arguments of the step.
    loads, stores : dict of str to str
        For each array that is read or written, the argument of the step that says where it begins.
    numbers : names
        Inputs that are scalars, the same for all units.
    """
    lines, outputs = trace(function, inputs)
    counts = {**inputs, **outputs}
    arrays = tuple(name for name in dict.fromkeys((*given, *counts)) if name not in numbers)
    scalars = tuple(name for name in inputs if name in numbers)
    real = {"float32": "float", "float64": "double"}[dtype]

    def load(name: str, row: int | None) -> str:
        return f"F({name})" if name in numbers else f"{name}{_index(loads, name, row)}"

    body = Python(
        lines, load, lambda name, row, value: f"{name}{_index(stores, name, row)} = {value}", real
    ).statements()
    loop = [f"    {place} = U({place})" for place in PLACES]
    loop += ["    for unit in range(U(_first), U(_last)):", *(f"        {line}" for line in body)]
    places = ", ".join((*PLACES, "_first", "_last"))
    text = [
        f"def step({', '.join((places, *arrays, *scalars))}):",
        *loop,
        f"def step_at({places}, _table, _numbers):",
    ]
    for k, name in enumerate(arrays):
        if name in counts:
            shape = f"({'' if counts[name] is None else '1, '}_table[{k}, 1],)"
            text.append(f"    {name} = carray(pointer(_table[{k}, 0]), {shape})")
    text += [f"    {name} = _numbers[{k}]" for k, name in enumerate(scalars)]
    loops = jit.functions(dtype, "\n".join([*text, *loop, ""]))
    return Kernel(loops, arrays, tuple(counts.get(name) or 1 for name in arrays), scalars)


def _index(places: Mapping[str, str], name: str, row: int | None) -> str:
    unit = f"{places[name]} + unit" if name in places else "unit"
    return f"[{unit}]" if row is None else f"[{row}, {unit}]"
