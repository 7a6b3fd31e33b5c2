"""Tracing: what is written down computes what the function does, for every cell, option and activation."""

import numpy as np
import pytest

from xlstm.cells import gru, lstm, lstm_options, rnn, slstm
from xlstm.cells.activations import GATE_ACTIVATIONS, parse
from xlstm.engines.pointwise import pointwise
from xlstm.tracing.symbols import Line, UntraceableError, trace
from xlstm.tracing.writers import C, Python

# NumPy's own functions for the operations, and so not those of any target.
OPERATIONS = {
    **{"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "negative": np.negative},
    **{"less": np.less, "less_equal": np.less_equal, "and": np.logical_and, "where": np.where},
    **{name: getattr(np, name) for name in ("tanh", "exp", "expm1", "log", "log1p", "sqrt", "abs")},
    **{"maximum": np.maximum, "minimum": np.minimum, "number": np.float64, "single": np.float32, "double": np.float64},
}


def evaluate(lines, outputs, inputs):
    """The outputs of a trace from arrays of NumPy."""
    values, found = {}, {name: {} for name in outputs}
    for to, row, op, args in lines:
        if op == "input":
            name, row = args
            values[to] = inputs[name] if row is None else inputs[name][row]
        elif op == "store":
            found[to][row] = values[args[0]]
        else:
            values[to] = OPERATIONS[op](*(a if op == "number" else values[a] for a in args))
    return {n: rows[None] if outputs[n] is None else np.stack(list(rows.values())) for n, rows in found.items()}


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
    assert options.numbers == {"clip": 0.7, "cell_clip": 0.4, "alpha0": 0.3, "beta0": 0.5, "alpha2": 1.0}
    assert lstm.Cell().numbers == gru.Cell().numbers == rnn.Cell().numbers == slstm.Cell().numbers == {}
    for cell in (lstm_options.Cell(clip=0.53, cell_clip=0.37), gru.Cell(clip=0.53), rnn.Cell(clip=0.53), slstm.Cell()):
        are_inputs(cell)


def are_inputs(cell):
    """None of a cell's numbers is written into its traces, and without tracing they give the same bits."""
    step = pointwise(cell, (), ("b",))
    assert step.numbers == tuple(cell.numbers)
    for function, inputs in ((step.forward, step.before), (step.lean, step.before), (step.backward, step.after)):
        lines, _ = trace(function, inputs)
        assert not {abs(line.args[0]) for line in lines if line.op == "number"} & set(cell.numbers.values())
        assert {line.args[0] for line in lines if line.op == "input"} <= set(inputs)
    rng = np.random.default_rng(0)
    given = {n: rng.standard_normal((9,) if r is None else (r, 9)) for n, r in step.before.items()} | cell.numbers
    states = [given[s] for s in cell.STATES[1:]]
    zx = given["zx"] + given["b"]
    *new, saved = cell.gates(np, zx, given["zh"], given["h"], *states)
    kept = [a for a in saved if a is not None]
    for found, expected in zip(step.forward(np, **given).values(), (*new, *kept), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_cells_of_one_form_have_the_same_step():
    given = ((("p", 3),), ("b",))
    step = pointwise(lstm_options.Cell(("hard_sigmoid(0.1)", "elu", "tanh"), 0.5), *given)
    assert step is pointwise(lstm_options.Cell(("hard_sigmoid(0.2)", "elu(3)", "tanh"), 0.6), *given)
    for other in (
        lstm_options.Cell(("hard_sigmoid(0.1)", "elu", "tanh")),
        lstm_options.Cell(("hard_sigmoid(0.1)", "leaky_relu", "tanh"), 0.5),
        lstm_options.Cell(("hard_sigmoid(0.1)", "elu", "tanh"), 0.5, cell_clip=0.5),
    ):
        assert pointwise(other, *given) is not step


def test_equal_operations_are_there_once_and_needless_ones_not_at_all():
    lines, _ = trace(lambda xp, x, y: {"a": xp.tanh(x + y) * xp.tanh(x + y), "b": x}, {"x": None, "y": None})
    assert [line.op for line in lines] == ["input", "input", "add", "tanh", "multiply", "store", "store"]
    lines, _ = trace(lambda xp, x, y: {"a": x, "b": (xp.exp(y), x)[1]}, {"x": None, "y": None})
    assert [line.op for line in lines] == ["input", "store", "store"]


def test_changes_of_dtype(rng):
    """Conditions become numbers; floats are told from doubles, and from what has the dtype of the inputs."""

    def function(xp, x, y):
        high = xp.astype(xp.astype(x, xp.float64) - y, xp.float32)
        return {"a": high, "b": xp.astype(x < y, x.dtype), "c": xp.astype(x, x.dtype), "d": xp.astype(x, np.float64)}

    lines = agree(function, {"x": rng.standard_normal(5), "y": rng.standard_normal(5)})
    ops = [line.op for line in lines if line.op not in ("input", "number")]
    assert ops == ["double", "subtract", "single", "less", "where", *["store"] * 4]


@pytest.mark.parametrize(
    ("writer", "kinds", "expected"),
    [
        (
            C,
            {"x": "float", "y": "double"},
            "const float v0 = x; const double v1 = y; const double v2 = v1 - (double)v0; const float v3 = (float)v2; "
            "const float v5 = v3 * (-0.1f); const float v6 = expf(v5); const bool v7 = v0 < v6; "
            "const float v9 = v7 ? v6 : 2.0f; z = v9;",
        ),
        (
            Python,
            {"x": "float", "y": "double"},
            "v0 = x v1 = y v2 = v1 - F8(v0) v3 = F4(v2) v5 = v3 * F4(-0.1) v6 = exp4(v5) v7 = v0 < v6 "
            "v9 = v6 if v7 else F4(2.0) z = v9",
        ),
    ],
)
def test_operands_of_two_kinds(writer, kinds, expected):
    """Each operation is in the widest of its operands; numbers widen none, and where all is one type they have it."""

    def function(xp, x, y):
        e = xp.exp(xp.astype(y - x, xp.float32) * -0.1)
        return {"z": xp.where(x < e, e, 2.0)}

    lines, _ = trace(function, {"x": None, "y": None})
    end = ";" if writer is C else ""
    text = writer(lines, lambda n, _: n, lambda n, _, v: f"{n} = {v}{end}", kinds).statements()
    assert " ".join(text) == expected


def test_arrays_of_the_trace_are_changed_by_row():
    def function(xp, x):
        y = xp.asarray(x, copy=True)
        y[1, ...] *= 2
        y[-1, ...] = y[0, ...]
        return {"y": y, "x": x}

    agree(function, {"x": np.arange(12.0).reshape(3, 4)})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda xp, x: {"y": xp.mean(x)}, "mean cannot be traced"),
        (lambda xp, x: {"y": xp.cumsum(x, axis=0)}, "cumsum cannot be traced"),
        (lambda xp, x: {"y": x[1]}, "the index 1 cannot be traced"),
        (lambda xp, x: {"y": x[..., 0]}, "cannot be traced"),
        (lambda xp, x: {"y": x if x > 0 else -x}, "a branch on a value"),
        (lambda xp, x: {"y": x[:2, ...] + x}, "add of 2 and 3 rows"),
        (lambda xp, x: {"y": x * x.shape[0]}, "shape cannot be traced"),
        (lambda xp, x: {"y": xp.stack((x, x))}, "stack of rows"),
    ],
)
def test_what_is_not_element_by_element_is_refused_by_name(function, message):
    with pytest.raises(UntraceableError, match=message):
        trace(function, {"x": 3})


@pytest.mark.parametrize(
    ("op", "args", "words"), [("cosh", ("v0",), "cosh has no form in C"), ("add", ("v0", "v1"), "number inf")]
)
def test_operations_and_numbers_without_a_form_are_refused(op, args, words):
    lines = [Line("v0", None, "input", ("x", None)), Line("v1", None, "number", (float("inf"),))]
    with pytest.raises(UntraceableError, match=f"tracing: .*{words}"):
        C([*lines, Line("v2", None, op, args)], lambda name, row: name, str, "float").statements()
