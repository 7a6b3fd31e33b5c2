"""Tracing: what is written down computes what the function does, for every cell, option and
activation.
"""

import numpy as np
import pytest

from xlstm.cells import gru, lstm, lstm_options, rnn, slstm
from xlstm.cells.activations import GATE_ACTIVATIONS, parse
from xlstm.engines.pointwise import pointwise
from xlstm.tracing.symbols import Line, UntraceableError, trace
from xlstm.tracing.writers import C

# NumPy's own functions for the operations, and so not those of any target.
OPERATIONS = {
    **{
        "add": np.add,
        "subtract": np.subtract,
        "multiply": np.multiply,
        "divide": np.divide,
        "negative": np.negative,
    },
    **{
        "equal": np.equal,
        "less": np.less,
        "less_equal": np.less_equal,
        "and": np.logical_and,
        "where": np.where,
    },
    **{name: getattr(np, name) for name in ("tanh", "exp", "expm1", "log", "log1p", "sqrt", "abs")},
    **{
        "maximum": np.maximum,
        "minimum": np.minimum,
        "number": np.float64,
        "single": np.float32,
        "double": np.float64,
    },
}


def evaluate(lines, outputs, inputs):
    """The outputs of a trace from arrays of NumPy."""
    values = {}
    found = {name: {} for name in outputs}
    for to, row, op, args in lines:
        if op == "input":
            name, row = args
            values[to] = inputs[name] if row is None else inputs[name][row]
        elif op == "store":
            found[to][row] = values[args[0]]
        else:
            values[to] = OPERATIONS[op](*(a if op == "number" else values[a] for a in args))
    return {
        n: rows[None] if outputs[n] is None else np.stack(list(rows.values()))
        for n, rows in found.items()
    }


def agree(function, inputs):
    """A traced function against the function itself, which is given NumPy."""
    rows = {name: a.shape[0] if a.ndim == 2 else None for name, a in inputs.items()}
    lines, outputs = trace(function, rows)
    expected = function(np, **inputs)
    found = evaluate(lines, outputs, inputs)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-15, atol=0, err_msg=name)
    return lines


ACTIVATIONS = {"hard_sigmoid": (0.21, 0.53), "scaled_tanh": (1.7, 0.66), "affine": (0.9, 0.1)}


@pytest.mark.parametrize("name", [name for name in GATE_ACTIVATIONS if parse(name).values])
def test_numbers_of_activations_are_inputs(name):
    values = ACTIVATIONS.get(name, (0.37,))
    assert len(values) == len(parse(name).values)
    text = f"{name}({', '.join(map(str, values))})"
    cells = lstm_options.Cell((text, text, text)), gru.Cell((text, text)), rnn.Cell((text,))
    for cell in cells:
        assert list(cell.numbers.values()) == list(values) * len(cell.activations)
        are_inputs(cell)


def test_numbers_of_cells_are_inputs():
    options = lstm_options.Cell(("hard_sigmoid(0.3, 0.5)", "softsign", "elu"), 0.7, True, 0.4)
    assert options.numbers == {
        "clip": 0.7,
        "cell_clip": 0.4,
        "alpha0": 0.3,
        "beta0": 0.5,
        "alpha2": 1.0,
    }
    assert (
        lstm.Cell().numbers
        == gru.Cell().numbers
        == rnn.Cell().numbers
        == slstm.Cell().numbers
        == {}
    )
    for cell in (
        lstm_options.Cell(clip=0.53, cell_clip=0.37),
        gru.Cell(clip=0.53),
        rnn.Cell(clip=0.53),
        slstm.Cell(),
    ):
        are_inputs(cell)


def are_inputs(cell):
    """None of a cell's numbers is written into its traces, and without tracing they give the same
    bits.
    """
    step = pointwise(cell, (), ("b",))
    assert step.numbers == tuple(cell.numbers)
    for function, inputs in (
        (step.forward, step.before),
        (step.lean, step.before),
        (step.backward, step.after),
    ):
        lines, _ = trace(function, inputs)
        assert not {abs(line.args[0]) for line in lines if line.op == "number"} & set(
            cell.numbers.values()
        )
        assert {line.args[0] for line in lines if line.op == "input"} <= set(inputs)
    rng = np.random.default_rng(0)
    given = {
        n: rng.standard_normal((9,) if r is None else (r, 9)) for n, r in step.before.items()
    } | cell.numbers
    states = [given[s] for s in cell.STATES[1:]]
    zx = given["zx"] + given["b"]
    *new, saved = cell.gates(np, zx, given["zh"], given["h"], *states)
    kept = [a for a in saved if a is not None]
    for found, expected in zip(step.forward(np, **given).values(), (*new, *kept), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_changes_of_dtype(rng):
    """Conditions become numbers; floats are told from doubles, and from what has the dtype of the
    inputs.
    """

    def function(xp, x, y):
        high = xp.astype(xp.astype(x, xp.float64) - y, xp.float32)
        return {
            "a": high,
            "b": xp.astype(x < y, x.dtype),
            "c": xp.astype(x, x.dtype),
            "d": xp.astype(x, np.float64),
            "e": xp.where(x == 0, y, x),
        }

    x = np.maximum(rng.standard_normal(5), 0)
    lines = agree(function, {"x": x, "y": rng.standard_normal(5)})
    assert {"double", "single"} < {line.op for line in lines}


def test_arrays_of_the_trace_are_changed_by_row():
    def function(xp, x):
        y = xp.asarray(x, copy=True)
        y[1, ...] *= 2
        y[-1, ...] = y[0, ...]
        return {"y": y, "x": x}

    agree(function, {"x": np.arange(12.0).reshape(3, 4)})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda xp, x: xp.mean(x), "mean"),
        (lambda xp, x: x[1], "the index 1"),
        (lambda xp, x: x if x > 0 else -x, "a branch"),
        (lambda xp, x: xp.where(x != 0, x, x), "a branch"),
        (lambda xp, x: x[:2, ...] + x, "add of 2 and 3 rows"),
        (lambda xp, x: x * x.shape[0], "shape"),
        (lambda xp, x: xp.stack((x, x)), "stack of rows"),
    ],
)
def test_what_is_not_element_by_element_is_refused_by_name(function, words):
    with pytest.raises(UntraceableError, match=words):
        trace(lambda xp, x: {"y": function(xp, x)}, {"x": 3})


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [("cosh", ("v0",), "cosh has no form in C"), ("add", ("v0", "v1"), "number inf")],
)
def test_operations_and_numbers_without_a_form_are_refused(op, args, words):
    lines = [Line("v0", None, "input", ("x", None)), Line("v1", None, "number", (float("inf"),))]
    with pytest.raises(UntraceableError, match=f"tracing: .*{words}"):
        C([*lines, Line("v2", None, op, args)], lambda name, row: name, str, "float").statements()
