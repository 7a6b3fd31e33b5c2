"""C from a trace, compiled by gcc, computes what NumPy does: every cell, forward and backward."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.compilers import load
from xlstm.cells import gru, lstm, lstm_options, rnn, slstm
from xlstm.cells.activations import GATE_ACTIVATIONS
from xlstm.cells.cell import Summed
from xlstm.engines.pointwise import pointwise
from xlstm.tracing.symbols import Line, UntraceableError, trace
from xlstm.tracing.writers import C

TYPES = {"float32": "float", "float64": "double"}
TOLERANCE = {"float32": 3e-6, "float64": 1e-14}


def run(function, inputs, dtype):
    """The outputs of a traced function of arrays (rows, M) and (M,), as gcc makes it."""
    rows = {name: a.shape[0] if a.ndim == 2 else None for name, a in inputs.items()}
    lines, outputs = trace(function, rows)
    M = next(iter(inputs.values())).shape[-1]
    real = TYPES[dtype]

    def at(name, row):
        return f"{name}[{(row or 0) * M} + i]"

    body = C(lines, at, lambda name, row, value: f"{at('to_' + name, row)} = {value};", real).statements()
    parameters = [f"const {real}* {name}" for name in inputs] + [f"{real}* to_{name}" for name in outputs]
    text = f"#include <math.h>\n#include <stdbool.h>\nvoid run({', '.join(parameters)}) {{\n"
    text += f"for (int i = 0; i < {M}; i++) {{\n" + "\n".join(body) + "\n}\n}\n"
    made = load(text, "gcc", "-x", "c", "-std=c11", "-O1", "-ffp-contract=off", "-Werror")
    found = {n: np.full((r, M) if r is not None else (M,), np.nan, dtype) for n, r in outputs.items()}
    given = [np.ascontiguousarray(a, dtype=dtype) for a in inputs.values()]
    made.run(*(ctypes.c_void_p(a.ctypes.data) for a in (*given, *found.values())))
    return found


def agree(found, expected, dtype):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=TOLERANCE[dtype] * np.max(np.abs(value)), err_msg=name
        )


CELLS = {
    "lstm": (lstm.Cell(), 0),
    "lstm with options": (lstm_options.Cell(), 0),
    "lstm clip": (lstm_options.Cell(clip=0.5), 3),
    "lstm coupled": (lstm_options.Cell(coupled=True), 2),
    "lstm cell_clip": (lstm_options.Cell(cell_clip=0.4), 3),
    "lstm all": (lstm_options.Cell(("hard_sigmoid(0.3, 0.5)", "softsign", "elu"), 0.7, True, 0.4), 2),
    "gru": (gru.Cell(), 0),
    "gru clip": (gru.Cell(clip=0.5), 0),
    "rnn": (rnn.Cell(), 0),
    "rnn clip": (rnn.Cell(("softplus",), 0.5), 0),
    "slstm": (slstm.Cell(), 0),
    "slstm exponential": (slstm.Cell("exponential"), 0),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CELLS)
def test_cells(rng, name, dtype):
    cell, peepholes = CELLS[name]
    added = ("b",) if isinstance(cell, Summed) else ("b", "bh")
    step = pointwise(cell, (("p", peepholes),) if peepholes else (), added)
    M = 60

    def draw(rows):
        return {n: rng.standard_normal((r, M) if r is not None else M).astype(dtype) for n, r in rows.items()}

    numbers = {n: np.full(M, value, dtype) for n, value in cell.numbers.items()}
    given = draw(step.before) | numbers
    if "n" in given:
        given["n"] = abs(given["n"]) + 1
    expected = step.forward(np, **given)
    agree(run(step.forward, given, dtype), expected, dtype)
    agree(run(step.lean, given, dtype), step.lean(np, **given), dtype)
    kept = {n: expected[n] for n in step.saved} | {n: given[n] for n in given if n in step.after}
    after = draw(step.after) | kept | numbers
    agree(run(step.backward, after, dtype), step.backward(np, **after), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", GATE_ACTIVATIONS)
def test_activations(rng, name, dtype):
    pair = GATE_ACTIVATIONS[name]
    x, dy = (rng.standard_normal(200).astype(dtype) for _ in range(2))
    y = pair.fwd(np, x)
    agree(run(lambda xp, x: {"y": pair.fwd(xp, x)}, {"x": x}, dtype), {"y": y}, dtype)
    found = run(lambda xp, dy, y: {"dx": pair.bwd(xp, dy, None, y)}, {"dy": dy, "y": y}, dtype)
    agree(found, {"dx": pair.bwd(np, dy, None, y)}, dtype)


def test_what_is_not_a_number_stays_one():
    x = np.array([np.nan, 1.0, -np.inf])
    found = run(lambda xp, x: {"y": xp.minimum(xp.maximum(x, 0 * x), x)}, {"x": x}, "float64")
    assert np.isnan(found["y"][0])
    assert found["y"][1] == 1.0


def test_operations_and_numbers_without_a_form_are_refused():
    for op, args, message in (("cosh", ("v0",), "tracing: cosh has no form in C"), ("add", ("v0", "v1"), "number inf")):
        lines = [Line("v0", None, "input", ("x", None)), Line("v1", None, "number", (float("inf"),))]
        with pytest.raises(UntraceableError, match=message):
            C([*lines, Line("v2", None, op, args)], lambda name, row: name, str, "float").statements()
