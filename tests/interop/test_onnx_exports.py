"""ONNX files of PyTorch's two exporters, and which graphs make a stack.

The files in golden/onnx are exports by PyTorch 2.13 of modules with 3 inputs and 4 units, without `doc_string` and
`metadata_props`: `torch.onnx.export(module, arguments, dynamo=...)`, where the name says `dynamo` for True, with
onnxscript 0.7, and `torchscript` for False, at opset 17. Arguments have 6 time steps and a batch of 5; "dynamic"
leaves both open (`Dim.AUTO`, `dynamic_axes`). States are inputs ("state"), zeros made in `forward` ("zeros"), a buffer
(layers, 1, 4) expanded to the batch ("constant"), or left out. "packed" is `pack_padded_sequence`, "two" are two
modules with another between them.
"""

from __future__ import annotations

import numpy as np
import pytest

import xlstm
from tests.conftest import DATA, later
from xlstm.interop.onnx import from_onnx, to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = later("onnxruntime")
helper = onnx.helper
pytestmark = pytest.mark.usefixtures("interpreted")

T, B, D, H = 6, 5, 3, 4
EXPORTS = DATA / "onnx"
FILES = sorted(path.stem for path in EXPORTS.glob("*.onnx"))
# Beginnings of the names of files that are refused, and why.
REFUSED = {
    "dynamo-lstm-2-constant": "initial_h is a constant other than 0, which a layer cannot hold",
    "dynamo-gru-1-dynamic-constant": "initial_h is computed by a node Slice, .*, of constants that are not known to be",
    "dynamo-rnn-1": "the model has no node LSTM, GRU or RNN",
    "dynamo-lstm-two-relu": "make no stack, .*; X of LSTM '.*' is computed by a node Relu, 'relu'",
    "torchscript-gru-2-dynamic-constant": "initial_h is computed by a node Slice, .* not known to be 0",
    "torchscript-lstm-1-constant": "initial_h is computed by a node Expand, .* not known to be 0",
}


assert len(FILES) == 17


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def compare(model, rng):
    """Import a model, run both on the same random numbers, and return the layer."""
    layer, params = from_onnx(model)
    run = session(model)
    L = layer.num_layers * len(layer.directions)
    feed = {}
    for k, entry in enumerate(run.get_inputs()):
        open_sizes = [B, T] if layer.batch_first else [T, B]
        sizes = [*open_sizes, D] if k == 0 else [B] if entry.name == "lengths" else [L, B, H]
        given = [n if isinstance(n, int) else sizes[axis] for axis, n in enumerate(entry.shape)]
        feed[entry.name] = rng.standard_normal(given).astype(np.float32)
    lengths = None
    if "lengths" in feed:
        feed["lengths"] = lengths = np.array([6, 5, 4, 3, 2])  # PyTorch wants the longest first
    x, *state = [array for name, array in feed.items() if name != "lengths"]
    expected = run.run(None, feed)
    y, final, _ = layer.forward(params, x, tuple(state) or None, lengths=lengths)
    for ours, theirs in zip((y, *final), expected, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    return layer


@pytest.mark.parametrize("name", [name for name in FILES if name not in REFUSED and "embedding" not in name])
def test_recorded_export_computes_what_onnxruntime_does(name, rng):
    layer = compare(onnx.load(EXPORTS / f"{name}.onnx"), rng)
    _, kind, layers, *options = name.split("-")
    assert type(layer).__name__.lower() == kind
    assert layer.num_layers == (2 if layers == "two" else int(layers))
    assert layer.bidirectional == ("bidirectional" in options)
    assert layer.batch_first == ("batch_first" in options or layers == "two")
    assert layer.activations == (("relu",) if "relu" in options else None)


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_recorded_export_is_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        from_onnx(EXPORTS / f"{name}.onnx")


def test_layers_of_a_larger_model():
    """An embedding before the layers, and a head behind their last step."""
    model = onnx.load(EXPORTS / "dynamo-embedding-gru.onnx")
    layer, params = from_onnx(model)
    assert (layer.num_layers, layer.bidirectional, layer.batch_first) == (2, True, True)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tokens = np.arange(30).reshape(B, T) % 7
    y, *_ = layer.forward(params, weights["e.weight"][tokens])
    (expected,) = session(model).run(None, {model.graph.input[0].name: tokens})
    np.testing.assert_allclose(y[:, -1] @ weights["o.weight"].T + weights["o.bias"], expected, rtol=1e-5, atol=1e-5)


# ---- stacks


class Edited:
    """A model of two layers, and nodes put between them or in front of their inputs."""

    def __init__(self, declared=(), **options):
        layer = xlstm.GRU(2 * H if options.get("bidirectional") else H, H, 2, **options)
        self.model = to_onnx(layer, layer.init(backend="numpy", seed=0), state=False)
        for dim, size in zip(self.model.graph.input[0].type.tensor_type.shape.dim, declared, strict=False):
            dim.Clear() if size is None else setattr(dim, "dim_value", size)
        self.graph, self.count = self.model.graph, 0
        self.first, self.second = (n for n in self.graph.node if n.op_type == "GRU")

    def node(self, op_type, *inputs, **attributes):
        """Add a node, with inputs that are names or constants, and return the name of its output."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.count += 1
        self.insert(helper.make_node(op_type, names, [f"n{self.count}"], **attributes))
        return f"n{self.count}"

    def insert(self, node):
        self.graph.node.insert(list(self.graph.node).index(self.second), node)

    def constant(self, values):
        self.count += 1
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), f"c{self.count}"))
        return f"c{self.count}"

    def size(self, axis):
        return self.node("Gather", self.node("Shape", "x"), [axis])

    def shape(self, *sizes):
        """A shape that is computed from numbers and axes of x."""
        return self.node("Concat", *(self.size(n["x"]) if isinstance(n, dict) else [n] for n in sizes), axis=0)

    def read(self, message=None):
        """Read both layers; they have the parameters that the model had, or are refused."""
        if message:
            with pytest.raises(ValueError, match=message):
                from_onnx(self.model)
            return
        layer, params = from_onnx(self.model)
        assert layer.num_layers == 2
        for name, array in layer.init(backend="numpy", seed=0).items():
            np.testing.assert_array_equal(params[name], array)


def reshaped(*sizes):
    return lambda e, y: e.node("Reshape", y, e.shape(*sizes))


def turned(*perm):
    return lambda e, y: e.node("Transpose", y, perm=perm)


ORDER = r"has the axes of Y of GRU '0\.Y' in another order, expected \(time, batch,"


@pytest.mark.parametrize(
    ("between", "declared", "message"),
    [
        (lambda e, y: e.node("Dropout", y), (), None),
        (lambda e, y: e.node("Transpose", turned(1, 2, 0)(e, y), perm=[2, 0, 1]), (), None),
        (reshaped({"x": 0}, {"x": 1}, -1), (), None),
        (reshaped(T, B, H), (T, B), None),
        (reshaped(T, -1, H), (T, None), None),
        (lambda e, y: e.node("Relu", y), (), "is computed by a node Relu"),
        (lambda e, y: e.node("Dropout", y, np.float32(0.5), np.array(True)), (), "is computed by a node Dropout"),
        (turned(1, 0, 2), (5, 5), ORDER),
        (reshaped({"x": 1}, {"x": 0}, -1), (), "is computed by a node Reshape"),
        (reshaped(T, -1, H), (), "is computed by a node Reshape"),
        (lambda e, y: "x", (), "is an input of the model, 'x', which is not known to be Y of GRU '0.Y'"),
        (lambda e, y: e.first.output[1], (), "is computed by a node GRU, '0.h'"),
    ],
)
def test_nodes_between_layers_keep_every_axis_or_make_no_stack(between, declared, message):
    edited = Edited(declared)
    edited.second.input[0] = between(edited, edited.second.input[0])
    edited.read(message and rf"make no stack.*; X of GRU '1\.Y' {message}")


def test_directions_and_features_in_another_order_make_no_stack():
    edited = Edited(bidirectional=True)
    turn = next(n for n in edited.graph.node if n.op_type == "Transpose")
    turn.attribute[0].ints[:] = [0, 2, 3, 1]  # T, B, H, directions
    edited.read("in another order")


# ---- states and lengths


def same(value, *shape):
    return np.full(shape, value, np.float32)


def filled(e, value):
    state = e.node("ConstantOfShape", e.shape(2, {"x": 1}, H), value=helper.make_tensor("value", 1, [1], [value]))
    return ["", e.node("Slice", state, [0], [1], [0])]


def expanded(e, value):
    return ["", e.node("Expand", same(value, 1, 1, H), e.shape(1, {"x": 1}, H))]


def steps(e, value):
    count = e.size(value["x"]) if isinstance(value, dict) else np.array(value)
    return [e.node("Cast", e.node("Expand", count, e.size(1)), to=6)]


@pytest.mark.parametrize(
    ("inputs", "value", "declared", "message"),
    [
        *(
            (lambda e, value: ["", e.node("Identity", same(value, 1, B, H))], n, (), n and "initial_h")
            for n in (0, 1e-30)
        ),
        *((inputs, n, (), n and "initial_h") for inputs in (filled, expanded) for n in (0, float("nan"))),
        (lambda e, shape: ["", e.node("RandomNormal", shape=shape)], [1, B, H], (), "initial_h"),
        (lambda e, name: ["", name], "0.h", (), "initial_h of GRU '1.Y' depends on what they compute"),
        (lambda e, name: [name], "lengths", (), "sequence_lens is not the same for all of them"),
        (steps, T, (T, None), None),
        (steps, T - 1, (T, B), "sequence_lens"),
        (steps, T, (None, B), "sequence_lens"),  # who knows how many steps a call has
        (steps, {"x": 0}, (), None),
        (steps, {"x": 1}, (), "sequence_lens"),
        (lambda e, value: [e.constant(np.int32(value))], [T, T, T, T, 1], (T, B), "sequence_lens"),
    ],
)
def test_states_and_lengths_are_the_default_or_refused(inputs, value, declared, message):
    edited = Edited(declared)
    edited.graph.input.append(helper.make_tensor_value_info("lengths", 6, ["B"]))
    edited.second.input.extend(inputs(edited, value))
    if message and " " not in message:
        message = rf"GRU '1\.Y': {message} is .*, which a layer cannot hold, expected an input"
    edited.read(message)


def test_default_of_an_input_is_a_constant():
    edited = Edited()
    edited.graph.input.append(helper.make_tensor_value_info("h0", 1, [1, B, H]))
    edited.second.input.extend(["", "h0"])
    edited.read()
    edited.graph.initializer.append(onnx.numpy_helper.from_array(same(1, 1, B, H), "h0"))
    edited.read("initial_h is a constant other than 0")
