"""Stacks of recurrent nodes in ONNX files: exports of PyTorch, and what may be around the nodes.

The files in golden/onnx are exports by PyTorch 2.13 of modules with 3 inputs and 4 units, without
`doc_string` and `metadata_props`: `torch.onnx.export(module, arguments, dynamo=...)`, where the
name says `dynamo` for True, with onnxscript 0.7, and `torchscript` for False, at opset 17.
"dynamic" leaves time and batch open (`Dim.AUTO`, `dynamic_axes`), else they are 6 and 5. "state" has
the initial states as inputs, "constant" expands a buffer (layers, 1, 4) to the batch, and all others
make zeros of them. "two" are two modules with another between them.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest

import xlstm
from tests.conftest import DATA, later
from xlstm.interop.onnx import from_onnx, to_onnx
from xlstm.interop.onnx.onnx_export import INPUTS

onnx = pytest.importorskip("onnx")
onnxruntime = later("onnxruntime")
torch = later("torch")
pytestmark = pytest.mark.usefixtures("interpreted")

T = 6
B = 5
D = 3
H = 4
KINDS = {"LSTM": xlstm.LSTM, "GRU": xlstm.GRU, "RNN": xlstm.RNN}


def exported(kind, opset, words):
    """An export of PyTorch's older exporter, with y and the states as outputs."""
    options = {name: name in words for name in ("bidirectional", "batch_first")}
    layers = 3 if "3" in words else 2
    recurrent = getattr(torch.nn, kind)(D, H, layers, bias="no_bias" not in words, **options)
    n = 2 if "bidirectional" in words else 1
    head = torch.nn.Linear(n * H, 2)

    class Module(torch.nn.Module):
        def forward(self, x, *given):
            state = given[: (2 if kind == "LSTM" else 1) * ("state" in words)]
            state = state[0] if len(state) == 1 else state or None
            if "packed" in words:
                rnn = torch.nn.utils.rnn
                x = rnn.pack_padded_sequence(x, given[-1], batch_first=recurrent.batch_first)
            y, end = recurrent(x, state)
            if "packed" in words:
                y, _ = rnn.pad_packed_sequence(y, batch_first=recurrent.batch_first)
            return head(y) if "head" in words else y, end

    module = Module()
    module.add_module("recurrent", recurrent)
    module.add_module("head", head)
    module.eval()
    shape = (B, T, D) if "batch_first" in words else (T, B, D)
    given = {"x": torch.zeros(shape)}
    if "state" in words:
        given |= {f"{s}0": torch.zeros(n * layers, B, H) for s in ("hc" if kind == "LSTM" else "h")}
    if "packed" in words:
        given["lengths"] = torch.tensor([6, 5, 4, 3, 2])
    axes = {"x": {0: "first", 1: "second"}, "h0": {1: "B"}, "c0": {1: "B"}, "lengths": {0: "B"}}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(given.values()),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=[*given],
            dynamic_axes=None if "static" in words else {name: axes[name] for name in given},
        )
    return onnx.ModelProto.FromString(file.getvalue())


def compare(model, rng, head=False):
    """Import a model, and run both on the same random numbers; return the layer."""
    layer, params = from_onnx(model)
    run = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {}
    for place, entry in enumerate(run.get_inputs()):
        shape = (layer.num_layers * len(layer.directions), B, H)
        if place == 0:
            shape = (B, T, D) if layer.batch_first else (T, B, D)
        feed[entry.name] = rng.standard_normal(shape, dtype=np.float32)
    lengths = None
    if "lengths" in feed:
        feed["lengths"] = lengths = np.array([6, 5, 4, 3, 2])
    x, *state = [a for name, a in feed.items() if name != "lengths"]
    y, end = layer(params, x, tuple(state) or None, lengths=lengths)
    if head:
        weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
        y = y @ next(a for a in weights if a.shape == (layer.output_size, 2))
        y = y + next(a for a in weights if a.shape == (2,))
    for ours, theirs in zip((y, *end), run.run(None, feed), strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    return layer


@pytest.mark.parametrize(
    ("kind", "opset", "words"),
    [
        ("LSTM", 17, "2"),
        ("LSTM", 17, "3 bidirectional batch_first head"),
        ("LSTM", 13, "2 batch_first state"),
        ("LSTM", 11, "2 bidirectional state no_bias"),
        ("LSTM", 17, "2 packed batch_first state"),
        ("LSTM", 11, "3 static head"),
        ("GRU", 17, "2 bidirectional"),
        ("GRU", 13, "3 batch_first no_bias"),
        ("GRU", 11, "2 state head"),
        ("GRU", 17, "2 packed bidirectional batch_first"),
        ("GRU", 13, "3 static bidirectional state"),
        ("RNN", 17, "3 bidirectional state"),
        ("RNN", 13, "2 packed static"),
        ("RNN", 11, "2 batch_first head"),
        ("RNN", 17, "2 bidirectional batch_first no_bias static"),
    ],
)
def test_export_computes_what_onnxruntime_does(kind, opset, words, rng):
    words = words.split()
    layer = compare(exported(kind, opset, words), rng, head="head" in words)
    assert layer == KINDS[kind](
        D,
        H,
        int(words[0]),
        bidirectional="bidirectional" in words,
        batch_first="batch_first" in words,
        bias="no_bias" not in words,
        recurrent_bias="no_bias" not in words,
        activations="tanh" if kind == "RNN" else None,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dynamo-gru-2-bidirectional-zeros", xlstm.GRU(D, H, 2, bidirectional=True)),
        ("dynamo-gru-3-dynamic-state", xlstm.GRU(D, H, 3, bias=False)),
        ("dynamo-lstm-2", xlstm.LSTM(D, H, 2, recurrent_bias=True)),
        (
            "dynamo-lstm-2-bidirectional-batch_first-dynamic",
            xlstm.LSTM(D, H, 2, bidirectional=True, batch_first=True, recurrent_bias=True),
        ),
        ("dynamo-lstm-two-dropout", xlstm.LSTM(D, H, 2, batch_first=True, recurrent_bias=True)),
        (
            "torchscript-lstm-3-bidirectional-batch_first-dynamic",
            xlstm.LSTM(D, H, 3, bidirectional=True, batch_first=True, recurrent_bias=True),
        ),
        (
            "torchscript-rnn-2-relu-batch_first-dynamic-state",
            xlstm.RNN(D, H, 2, activations="relu", batch_first=True, bias=False),
        ),
        ("dynamo-gru-1-dynamic-constant", "initial_h is a constant other than 0"),
        ("dynamo-lstm-two-relu", "X comes from Relu 'node_relu', expected Y of LSTM"),
        ("dynamo-rnn-1", "no node LSTM, GRU or RNN"),
    ],
)
def test_recorded_export_is_read_or_refused_by_name(name, expected, rng):
    path = DATA / "onnx" / f"{name}.onnx"
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            from_onnx(path)
    else:
        assert compare(onnx.load(path), rng) == expected


def test_layers_of_a_larger_model():
    """An embedding stands before the layers, and a head behind their last step."""
    model = onnx.load(DATA / "onnx/dynamo-embedding-gru.onnx")
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    tokens = np.arange(30).reshape(B, T) % 7
    layer, params = from_onnx(model)
    y, _ = layer(params, weights["e.weight"][tokens])
    run = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = run.run(None, {"t": tokens})
    found = y[:, -1] @ weights["o.weight"].T + weights["o.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# ---- nodes between layers, states and lengths


class Edited:
    """A model of two GRUs, with nodes put in front of the second."""

    def __init__(self, declared=(), **options):
        layer = xlstm.GRU(2 * H if options.get("bidirectional") else H, H, 2, **options)
        self.params = layer.init(backend="numpy", seed=0)
        self.model = to_onnx(layer, self.params, state=False)
        self.graph = self.model.graph
        for dim, size in zip(
            self.graph.input[0].type.tensor_type.shape.dim, declared, strict=False
        ):
            if size is not None:
                dim.dim_value = size
        self.graph.input.append(onnx.helper.make_tensor_value_info("given", 6, ["B"]))
        self.graph.input.append(onnx.helper.make_tensor_value_info("state", 1, [1, "B", H]))
        self.second = [n for n in self.graph.node if n.op_type == "GRU"][1]
        self.count = 0

    def constant(self, values):
        self.count += 1
        tensor = onnx.numpy_helper.from_array(np.asarray(values), f"c{self.count}")
        self.graph.initializer.append(tensor)
        return tensor.name

    def node(self, op_type, *inputs, **attributes):
        """Add a node with names or constants as inputs, and return the name of its output."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.count += 1
        new = onnx.helper.make_node(op_type, names, [f"n{self.count}"], **attributes)
        self.graph.node.insert(list(self.graph.node).index(self.second), new)
        return f"n{self.count}"

    def size(self, axis):
        return self.node("Gather", self.node("Shape", "x"), [axis])

    def give(self, **inputs):
        """Set inputs of the second GRU."""
        names = [*self.second.input, *[""] * 6][:6]
        for name, source in inputs.items():
            names[INPUTS.index(name)] = source
        self.second.input[:] = names[: max(k for k, name in enumerate(names) if name) + 1]

    def read(self, message=""):
        """Read both GRUs, which have the parameters of the model, or are refused."""
        if message:
            with pytest.raises(ValueError, match=message):
                from_onnx(self.model)
            return
        layer, params = from_onnx(self.model)
        assert layer.num_layers == 2
        for name, array in self.params.items():
            np.testing.assert_array_equal(params[name], array)


def reshaped(*sizes):
    """A reshape to numbers, and to axes of x where a size is a text."""
    return lambda e, y: e.node(
        "Reshape",
        y,
        e.node("Concat", *(e.size(int(n)) if isinstance(n, str) else [n] for n in sizes), axis=0),
    )


COMPUTED = "X comes from {}, expected Y of GRU '0.Y' with axes"


def order(operator):
    return COMPUTED.format(f"{operator} '.+'")


@pytest.mark.parametrize(
    ("between", "declared", "message"),
    [
        (lambda e, y: e.node("Dropout", y), (), ""),
        (lambda e, y: e.node("Cast", e.node("Identity", y), to=1), (), ""),
        (
            lambda e, y: e.node(
                "Transpose", e.node("Transpose", y, perm=[1, 2, 0]), perm=[2, 0, 1]
            ),
            (),
            "",
        ),
        (reshaped("0", "1", -1), (), ""),
        (reshaped(T, B, H), (T, B), ""),
        (reshaped(T, -1, H), (T, None), ""),
        (lambda e, y: e.node("Relu", y), (), COMPUTED.format("Relu 'n1'")),
        (lambda e, y: e.node("Cast", e.node("Cast", y, to=10), to=1), (), order("Cast")),
        (lambda e, y: e.node("Dropout", y, np.float32(0.5), np.array(True)), (), order("Dropout")),
        (lambda e, y: e.node("Transpose", y, perm=[1, 0, 2]), (5, 5), order("Transpose")),
        (reshaped("1", "0", -1), (), order("Reshape")),
        (reshaped(T, -1, H), (), order("Reshape")),
        (lambda e, y: "x", (), COMPUTED.format("'x'")),
        (lambda e, y: "0.h", (), order("GRU")),
    ],
)
def test_nodes_between_layers_keep_values_and_order_or_are_refused(between, declared, message):
    edited = Edited(declared)
    edited.give(X=between(edited, edited.second.input[0]))
    edited.read(message and rf"GRU '1\.Y': {message}")


def test_directions_and_units_in_another_order_are_refused():
    edited = Edited(bidirectional=True)
    turn = next(n for n in edited.graph.node if n.op_type == "Transpose")
    turn.attribute[0].ints[:] = [0, 2, 3, 1]
    edited.read(order("Reshape"))


def state(op_type):
    """A node that fills a state with a number."""

    def fill(e, value):
        value = np.float32(value)
        shape = e.node("Concat", [1], e.size(1), [H], axis=0)
        if op_type == "Expand":
            return {"initial_h": e.node("Expand", np.full((1, 1, H), value), shape)}
        tensor = onnx.helper.make_tensor("value", 1, [1], [value])
        zeros = e.node("ConstantOfShape", shape, value=tensor)
        return {"initial_h": e.node("Concat", e.node("Slice", zeros, [0], [1], [0]), axis=0)}

    return fill


def lengths(e, value):
    """Lengths as tf2onnx writes them: a number, or a size of x, for each sequence."""
    count = e.size(int(value)) if isinstance(value, str) else np.array([value])
    return {"sequence_lens": e.node("Cast", e.node("Tile", count, e.size(1)), to=6)}


@pytest.mark.parametrize(
    ("inputs", "value", "declared", "message"),
    [
        *((state(op), n, (), n and "initial_h") for op in ("Expand", "Fill") for n in (0, 1e-30)),
        (lambda e, n: {"initial_h": e.node("RandomNormal", shape=[1, B, H])}, 0, (), "initial_h"),
        (lambda e, n: {"initial_h": "0.h"}, 0, (), "initial_h"),
        (lambda e, n: {"initial_h": e.node("Identity", "state")}, 0, (), ""),
        (lambda e, n: {"initial_h": e.node("Mul", "state", np.float32(2))}, 0, (), "initial_h"),
        (
            lambda e, n: {"sequence_lens": e.node("Sub", "given", np.int32([1]))},
            0,
            (),
            "sequence_lens",
        ),
        (lengths, "0", (), ""),
        (lengths, "1", (), "sequence_lens"),
        (lengths, T, (T, None), ""),
        (lengths, T - 1, (T, B), "sequence_lens"),
        (lengths, T, (None, B), "sequence_lens"),  # which may be other than T
        (lambda e, n: {"sequence_lens": e.constant(np.int32([n] * B))}, 3, (), "sequence_lens"),
        (lambda e, n: {"sequence_lens": "given"}, 0, (), "sequence_lens"),
    ],
)
def test_states_and_lengths_are_the_default_or_inputs(inputs, value, declared, message):
    edited = Edited(declared)
    edited.give(**inputs(edited, value))
    edited.read(message and rf"GRU '1\.Y': {message} is ")


def test_a_node_by_name_may_have_a_state_that_the_model_computes_from_inputs():
    edited = Edited()
    edited.give(initial_h=edited.node("Mul", "state", np.float32(2)))
    _, params = from_onnx(edited.model, "1.Y")
    np.testing.assert_array_equal(params["0.Wh"], edited.params["1.Wh"])
