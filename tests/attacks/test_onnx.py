"""Hostile and damaged ONNX files: a layer or a refusal within the bounds of `bounds.py`, never anything else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import xlstm
from tests.attacks.bounds import examples, refusal
from xlstm.interop.onnx import from_onnx, to_onnx

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")
pytestmark = pytest.mark.usefixtures("interpreted")

EXPORTS = Path(__file__).parents[1] / "data" / "onnx"  # see tests/test_onnx_exports.py
BIG = 4_000_000  # bytes of the largest files here


def stack(kind="LSTM", layers=2, **options):
    layer = getattr(xlstm, kind)(3, 4, layers, **options)
    return to_onnx(layer, layer.init(backend="numpy", seed=1), lengths=True)


def node(model, position=0):
    return [n for n in model.graph.node if n.op_type in ("LSTM", "GRU", "RNN")][position]


def tensor(model, name="0.W"):
    return next(t for t in model.graph.initializer if t.name == name)


def attempt(model, tmp_path, expected=None):
    """Import a model, or the bytes of one, from a file: the refusal, which must say `expected`."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    error = refusal(lambda: from_onnx(path), len(data))
    if expected is not None:
        assert error is not None
        assert expected in str(error), str(error)
    return error


def attribute(model, name, value):
    found = node(model)
    rest = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*rest, helper.make_attribute(name, value)])


def between(model, op_type, **attributes):
    """Put a node in front of the second layer."""
    new = helper.make_node(op_type, [node(model, 1).input[0]], ["between"], **attributes)
    node(model, 1).input[0] = "between"
    model.graph.node.insert(0, new)


# ---- by hand: what was done to a model, and what the refusal says


def many_activations(model):
    attribute(model, "activations", ["Tanh"] * 300_000)


def many_parameters(model):
    attribute(model, "activation_alpha", [1.0] * 300_000)


def many_nodes(model):
    first = node(model)
    for k in range(4000):
        copy = model.graph.node.add()
        copy.CopyFrom(first)
        copy.name = f"copy {k}"
        del copy.output[:]
        copy.output.append(f"copy {k}")


def many_tied_layers(model):
    """Nodes in a true stack that all have the same large weights."""
    model.CopyFrom(square(700, 600))


def square(width, layers):
    """A stack of plain RNNs with `width` inputs and units, all with the same two matrices."""
    nodes = [helper.make_node("RNN", ["x", "W", "W"], ["y0"], name="0")]
    for k in range(1, layers):
        nodes.append(helper.make_node("Squeeze", [f"y{k - 1}", "axes"], [f"x{k}"]))
        nodes.append(helper.make_node("RNN", [f"x{k}", "W", "W"], [f"y{k}"], name=f"{k}"))
    constants = [
        onnx.numpy_helper.from_array(np.ones((1, width, width), np.float32), "W"),
        onnx.numpy_helper.from_array(np.array([1]), "axes"),
    ]
    x = helper.make_tensor_value_info("x", 1, ["T", "B", width])
    graph = helper.make_graph(nodes, "graph", [x], [], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def many_axes(model):
    axes = model.graph.initializer.add(name="many", data_type=7, dims=[1_000_000])
    axes.raw_data = np.ones(1_000_000, np.int64).tobytes()
    next(n for n in model.graph.node if n.op_type == "Squeeze").input[1] = "many"


def many_axes_in_an_attribute(model):
    between(model, "Transpose", perm=[0] * 200_000)


def many_dimensions(model):
    tensor(model).dims[:] = [1] * 200_000


def huge_tensor(model):
    tensor(model).dims[:] = [1, 16, 10**12]


def negative_tensor(model):
    tensor(model).dims[:] = [-1, -16, 3]


def negative_state(model):
    state = model.graph.initializer.add(name="state", data_type=1, dims=[1, -1, -4])
    state.raw_data = b""
    node(model).input[5] = "state"


def huge_state(model):
    state = model.graph.initializer.add(name="state", data_type=1, dims=[1, 10**6, 10**6])
    state.raw_data = b"\0" * 16
    node(model).input[5] = "state"


def huge_declared_state(model):
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 10**6, 10**6]), "sizes"))
    value = helper.make_tensor("one", 1, [1], [1.0])
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["sizes"], ["state"], value=value))
    node(model).input[5] = "state"


def wrong_bytes(model):
    tensor(model).raw_data += b"\0"


def long_node_name(model):
    for part in node(model), node(model, 1):
        part.name = "n" * 2_000_000
    between(model, "Relu")


def long_operator(model):
    between(model, "R" * 2_000_000)


def long_activation(model):
    attribute(model, "activations", ["T" * 2_000_000, "Tanh", "Tanh"])


def long_attribute(model):
    attribute(model, "a" * 1_000_000, "b" * 1_000_000)


def long_direction(model):
    attribute(model, "direction", "forward" * 300_000)


def long_location(model):
    external(model, location="a/" * 1_000_000)


def external(model, **entries):
    weight = tensor(model)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)


def outside(model):
    external(model, location="../model.onnx")


def absolute(model):
    external(model, location="/etc/hostname")


def absent(model):
    external(model, location="absent.bin")


def too_long(model):
    external(model, location="model.onnx", offset="99999999", length=str(4 * 48))


def huge_offset(model):
    external(model, location="model.onnx", offset="9" * 5000)


def twice_in_a_node(model):
    node(model).attribute.append(helper.make_attribute("hidden_size", 5))


def twice_in_the_model(model):
    model.graph.initializer.append(tensor(model))


def twice_computed(model):
    model.graph.node.append(helper.make_node("Relu", ["x"], ["0.Y"]))


def cycle_of_layers(model):
    node(model).input[0] = "1.y"


def cycle_between(model):
    between(model, "Transpose", perm=[0, 1, 2])
    model.graph.node[0].input[0] = "between"


def cycle_of_transposes(model):
    node(model).input[0] = "a"
    model.graph.node.append(helper.make_node("Transpose", ["b"], ["a"], perm=[1, 0, 2]))
    model.graph.node.append(helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 2]))
    between(model, "Relu")


def long_chain(model):
    for k in range(2000):
        model.graph.node.append(helper.make_node("Squeeze", [f"chain{k + 1}", "Y.axes"], [f"chain{k}"]))
    node(model, 1).input[0] = "chain0"


def doubled_shapes(model):
    """A shape of 2^30 numbers, by doubling."""
    for k in range(30):
        model.graph.node.append(helper.make_node("Concat", [f"s{k + 1}"] * 2, [f"s{k}"], axis=0))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "s30"))
    between(model, "Reshape")
    model.graph.node[0].input.append("s0")


def squared_shapes(model):
    """A size of 2^30 bits at the least, by squaring."""
    model.graph.node.append(helper.make_node("Shape", ["0.y"], ["s31"], start=2, end=3))
    for k in range(31):
        model.graph.node.append(helper.make_node("Mul", [f"s{k + 1}"] * 2, [f"s{k}"]))
    between(model, "Reshape")
    model.graph.node[0].input.append("s0")


def no_number(model):
    model.CopyFrom(stack(layers=1))
    attribute(model, "clip", float("nan"))


def no_alpha(model):
    attribute(model, "activations", ["Affine", "Tanh", "Tanh"])
    attribute(model, "activation_alpha", [float("nan")])


def branches(model, depth=20):
    """Layers deep inside branches, and one beside them."""
    inner = helper.make_graph([node(model)], "inner", [], [])
    for _ in range(depth):
        inner = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=inner)], "inner", [], [])
    model.graph.node.append(inner.node[0])


def operator_anew(model):
    model.functions.add(name="LSTM")


HOSTILE = [
    (many_activations, "attribute activations has 300000 values, expected 6 at most"),
    (many_parameters, "attribute activation_alpha has 300000 values, expected 6 at most"),
    (many_nodes, "a stack of 4002 recurrent nodes, expected 1000 at most"),
    (many_tied_layers, "as nodes share them"),
    (many_axes, "is a constant of shape (1000000,)"),
    (many_axes_in_an_attribute, "whose axes are not known"),
    (many_dimensions, "W has 200000 axes, expected 8 at most"),
    (huge_tensor, "input_size is 1000000000000, expected at most 268435456"),
    (negative_tensor, "W has shape (-1, -16, 3), expected (directions, 4H, D)"),
    (negative_state, "initial_h has shape (1, -1, -4), expected none below 0"),
    (huge_state, "initial_h has 16 bytes, expected 4000000000000"),
    (huge_declared_state, "initial_h is computed by a node ConstantOfShape"),
    (wrong_bytes, "W has 193 bytes, expected 192"),
    (long_node_name, "make no stack"),
    (long_operator, "is computed by a node RRR"),
    (long_activation, "activation 'TTT"),
    (long_attribute, "is unknown, its value is b'bbb"),
    (long_direction, "attribute direction is 'forwardforward"),
    (long_location, "expected a relative path"),
    (outside, "expected a relative path"),
    (absolute, "expected a relative path"),
    (absent, "'absent.bin', which is no file"),
    (too_long, "at bytes 99999999 to 100000191 of 'model.onnx'"),
    (huge_offset, "with offset '999"),
    (twice_in_a_node, "attribute hidden_size is there twice"),
    (twice_in_the_model, "'0.W' is defined twice"),
    (twice_computed, "'0.Y' is defined twice"),
    (cycle_of_layers, "X of LSTM '0.Y' depends on what they compute"),
    (cycle_between, "behind more than 32 nodes"),
    (cycle_of_transposes, "is computed by a node Relu"),
    (long_chain, "behind more than 32 nodes"),
    (doubled_shapes, "make no stack"),
    (squared_shapes, "make no stack"),
    (no_number, "clip is nan"),
    (no_alpha, "affine(nan, 0.0)"),
    (branches, "If 'o' has recurrent nodes inside"),
    (operator_anew, "defines an operator 'LSTM' of ONNX anew"),
]


@pytest.mark.parametrize(("spoil", "message"), HOSTILE, ids=[spoil.__name__ for spoil, _ in HOSTILE])
def test_hostile_model_is_refused(spoil, message, tmp_path):
    model = stack()
    spoil(model)
    attempt(model, tmp_path, message)


# ---- by hand: bytes


def message(number, content):
    """A field of protobuf with a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def nested(levels):
    """Subgraphs in attributes of nodes in subgraphs, of which each level is a node with a graph."""
    graph = b""
    for _ in range(levels):
        graph = message(1, message(5, message(6, graph)))
    return message(7, graph)


BOMBS = {
    "nodes": lambda: message(7, message(1, b"") * (BIG // 2)),
    "tensors": lambda: message(7, message(5, b"") * (BIG // 2)),
    "declared values": lambda: message(7, message(13, b"") * (BIG // 2)),
    "functions": lambda: message(25, b"") * (BIG // 3),
    "names": lambda: message(7, message(1, message(1, b"") * (BIG // 2))),
    "attributes": lambda: message(7, message(1, message(5, b"") * (BIG // 2))),
    "whole numbers": lambda: message(7, message(1, message(5, b"\x40\x01" * (BIG // 2)))),
    "packed numbers": lambda: message(7, message(1, message(5, message(8, b"\x01" * BIG)))),
    "unknown fields": lambda: b"\xf8\x07\x01" * (BIG // 3),
    "depth": lambda: nested(40_000),
    "a long length": lambda: message(7, b"")[:1] + varint(2**62) + b"\0" * 100,
    "a number without end": lambda: b"\xff" * BIG,
    "groups": lambda: b"\x0b" * BIG,
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_hostile_bytes_are_refused(make, tmp_path):
    attempt(make(), tmp_path, "not an ONNX model")


# ---- at random


def damaged(data, draw):
    """Bytes flipped, cut off, put in, taken out, or copied elsewhere."""
    blob = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        place, length = draw.randrange(len(blob) + 1), draw.choice([1, 1, 2, 8, 100])
        match draw.choice(["flip", "byte", "cut", "put", "take", "copy"]):
            case "flip":
                blob[place : place + 1] = bytes(b ^ 1 << draw.randrange(8) for b in blob[place : place + 1])
            case "byte":
                blob[place : place + 1] = draw.choice([b"\0", b"\xff", b"\x7f", b"\x80"])
            case "cut":
                del blob[place:]
            case "put":
                blob[place:place] = draw.randbytes(length)
            case "take":
                del blob[place : place + length]
            case "copy":
                start = draw.randrange(len(blob) + 1)
                blob[place:place] = blob[start : start + length]
    return bytes(blob)


def edited(model, draw):
    """One field of one message changed for another value of its type, taken out, or doubled."""
    messages = [model]
    for found in messages:
        for field, value in found.ListFields():
            if field.message_type:
                messages += value if is_repeated(value) else [value]
    found = draw.choice(messages)
    fields = [field for field in found.DESCRIPTOR.fields if field.name != "doc_string"]
    field = draw.choice([f for f, _ in found.ListFields()] or fields) if draw.random() < 0.8 else draw.choice(fields)
    value = getattr(found, field.name)
    if is_repeated(value):
        operation = draw.choice(["change", "take", "double", "shuffle"])
        if operation == "take" and value:
            del value[draw.randrange(len(value))]
        elif operation == "shuffle":
            mixed = list(value)
            draw.shuffle(mixed)
            del value[:]
            value.extend(mixed)
        elif operation == "double" or field.message_type:
            value.extend([draw.choice(value)] if value else [])
        elif value:
            value[draw.randrange(len(value))] = drawn(field, draw, model)
    elif draw.random() < 0.3 or field.message_type:
        found.ClearField(field.name)
    else:
        setattr(found, field.name, drawn(field, draw, model))


def is_repeated(value):
    return hasattr(value, "extend")


def drawn(field, draw, model):
    """A value for a field: one that is in the model, or an extreme one."""
    if field.enum_type:
        return draw.choice(field.enum_type.values).number
    if field.cpp_type == field.CPPTYPE_STRING:
        names = [name for n in model.graph.node for name in (*n.input, *n.output, n.op_type)]
        text = draw.choice([*names, "", "x", "Identity", "Reshape", "\u00e9" * 50])
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    wide = field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64)
    numbers = [0, 1, 2, 3, 4, 7, 100, 2**31 - 1, *([2**40, 2**63 - 1] if wide else [])]
    signed = field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_INT32)
    return draw.choice([*numbers, *([-1, -(2**31)] if signed else [])])


def sound():
    """Models to be damaged."""
    return [
        stack(),
        stack("GRU", bidirectional=True, batch_first=True),
        stack("RNN", 3, activations="leaky_relu(0.3)"),
        stack("LSTM", 1, peepholes=True, clip=1.0, bias=False),
        *(onnx.load(path) for path in sorted(EXPORTS.glob("*-dynamic*.onnx")) if "constant" not in path.name),
    ]


def test_sound_models_are_read(tmp_path):
    for model in sound():
        assert attempt(model, tmp_path) is None


@pytest.mark.parametrize("kind", ["bytes", "fields"])
def test_damaged_model_is_read_or_refused(kind, tmp_path):
    models = [model.SerializeToString() for model in sound()]
    read = 0
    for seed in range(examples(250)):
        draw = random.Random(f"{kind} {seed}")
        data = draw.choice(models)
        if kind == "bytes":
            data = damaged(data, draw)
        else:
            model = onnx.ModelProto.FromString(data)
            for _ in range(draw.choice([1, 1, 2, 5])):
                edited(model, draw)
            data = model.SerializeToString()
        read += attempt(data, tmp_path) is None
    assert read  # not everything is refused at the door
