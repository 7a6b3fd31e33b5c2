"""Hostile and damaged ONNX files: a layer or a refusal within the bounds of `bounds.py`, never
anything else.
"""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

import xlstm
from tests.attacks import damage
from tests.attacks.bounds import examples, refusal
from tests.conftest import DATA
from xlstm.interop.onnx import from_onnx, to_onnx

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")
array = pytest.importorskip("onnx.numpy_helper").from_array
pytestmark = pytest.mark.usefixtures("interpreted")

BIG = 4_000_000  # bytes of the largest files here


def written(kind="LSTM", **options):
    """A model of one layer."""
    layer = getattr(xlstm, kind)(3, 4, **options)
    return to_onnx(layer, layer.init(backend="numpy", seed=1), lengths=True)


def node(model):
    return next(n for n in model.graph.node if n.op_type in ("LSTM", "GRU", "RNN"))


def tensor(model, name="0.W"):
    return next(t for t in model.graph.initializer if t.name == name)


def attempt(model, tmp_path, expected=None):
    """Import a model, or the bytes of one, from a file: the refusal, which must say `expected`."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    error = refusal(lambda: from_onnx(path), len(data))
    if expected is not None:
        assert expected in str(error), str(error)
    return error


# ---- by hand: what was done to a model, and what the refusal says


def attribute(name, value):
    """Set an attribute of the layer."""

    def spoil(model):
        rest = [a for a in node(model).attribute if a.name != name]
        del node(model).attribute[:]
        node(model).attribute.extend([*rest, helper.make_attribute(name, value)])

    return spoil


def shaped(name, dims, blob=None):
    """Declare other sizes of a constant."""

    def spoil(model):
        tensor(model, name).dims[:] = dims
        tensor(model, name).raw_data = tensor(model, name).raw_data if blob is None else blob

    return spoil


def computed_weight(model):
    """Let a node compute the kernel in place of its constant."""
    model.graph.initializer.remove(tensor(model))
    model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["0.W"]))


def long_operator(model):
    model.graph.node.insert(0, helper.make_node("R" * 2_000_000, ["x"], ["z"]))


def tied_layers(model, width=700, layers=600):
    """Nodes in a true stack that all have the same two large matrices."""
    nodes = [helper.make_node("RNN", ["x", "W", "W"], ["y0"])]
    for k in range(1, layers):
        nodes.append(helper.make_node("Squeeze", [f"y{k - 1}", "axes"], [f"x{k}"]))
        nodes.append(helper.make_node("RNN", [f"x{k}", "W", "W"], [f"y{k}"]))
    constants = [array(np.ones((1, width, width), np.float32), "W"), array(np.array([1]), "axes")]
    x = helper.make_tensor_value_info("x", 1, ["T", "B", width])
    graph = helper.make_graph(nodes, "graph", [x], [], constants)
    model.CopyFrom(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def between(*operators, **attributes):
    """Put a chain of nodes in front of the second of two layers; a None is an input twice."""

    def spoil(model):
        model.CopyFrom(written(num_layers=2))
        place, second = [(k, n) for k, n in enumerate(model.graph.node) if n.op_type == "LSTM"][1]
        before = second.input[0]
        for k, (operator, *inputs) in enumerate(operators):
            names = [name or before for name in inputs]
            options = {} if operator == "Shape" else attributes
            new = helper.make_node(operator, names, [f"between {k}"], **options)
            model.graph.node.insert(place + k, new)
            before = f"between {k}"
        second.input[0] = before

    return spoil


def nodes_by_the_thousand(model):
    for k in range(2000):
        copy = model.graph.node.add()
        copy.CopyFrom(node(model))
        copy.name = f"copy {k}"
        copy.output[:] = [f"copy {k}"]


def huge_state(model):
    state = helper.make_tensor("state", 1, [1, 1, 4], np.ones(4, np.float32))
    state.dims[:] = [1, 10**6, 10**6]
    model.graph.initializer.append(state)
    node(model).input[5] = "state"


def doubled_state(model):
    """Zeros that are doubled forty times."""
    model.graph.initializer.append(array(np.zeros((1, 1, 4), np.float32), "z0"))
    for k in range(40):
        one = helper.make_node("Concat", [f"z{k}"] * 2, [f"z{k + 1}"], axis=0)
        model.graph.node.insert(k, one)
    node(model).input[5] = "z40"


def alpha_of_nothing(model):
    attribute("activations", ["Elu", "Tanh", "Tanh"])(model)
    attribute("activation_alpha", [1.0, 2.0])(model)


def other_dtype(dtype):
    def spoil(model):
        tensor(model).CopyFrom(
            array(onnx.numpy_helper.to_array(tensor(model)).astype(dtype), "0.W")
        )

    return spoil


UNSOUND = "not a sound ONNX model ("  # which the package's checker says
HOSTILE = {
    "many activations": (
        # which are counted before the first is read
        attribute("activations", ["Unknown"] * 150_000),
        "activations has 150000 names, expected 3",
    ),
    "many nodes": (nodes_by_the_thousand, "there are 2001 recurrent nodes"),
    "tied layers": (tied_layers, "nodes share weights"),
    "long chain": (
        between(*[("Transpose", None)] * 9000, perm=[1, 0, 2, 3]),
        "X comes from Transpose",
    ),
    "doubled shapes": (
        between(("Shape", None), *[("Concat", None, None)] * 40, axis=0),
        "X comes from Concat",
    ),
    "squared shapes": (
        between(("Shape", "0.Y"), *[("Mul", None, None)] * 40),
        "X comes from Mul",
    ),
    "doubled state": (doubled_state, "initial_h is computed by Concat"),
    "too few bytes": (shaped("0.W", [1, 16, 3], bytes(188)), UNSOUND),
    "huge declared state": (huge_state, UNSOUND),
    "long operator": (long_operator, UNSOUND),
    "long activation": (
        attribute("activations", ["T" * 2_000_000, "Tanh", "Tanh"]),
        "activation 'TTT",
    ),
    "long direction": (
        attribute("direction", "forward" * 300_000),
        "attribute direction is 'forwardforward",
    ),
    "alpha of nothing": (alpha_of_nothing, "activation_alpha has 1 values more"),
    "other width": (attribute("hidden_size", 5), "expected (directions, 4H, D) = (1, 20, 3)"),
    "circle": (lambda m: node(m).input.__setitem__(0, "0.Y"), UNSOUND),
    "computed weight": (computed_weight, "W is '0.W', which is no constant"),
    "whole numbers": (other_dtype(np.int64), "W has dtype int64, expected float32 or float64"),
    "several dtypes": (
        other_dtype(np.float64),
        "weights are of dtypes float32, float64, expected one",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_model_is_refused(name, tmp_path):
    spoil, message = HOSTILE[name]
    model = written()
    spoil(model)
    attempt(model, tmp_path, message)


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        *(
            (place, {}, UNSOUND)
            for place in ("../secret", "inside/../../secret", "link", "{folder}/secret", "absent")
        ),
        ("a/" * 1_000_000, {}, "an entry has 2000000 bytes"),
        ("W.bin", {"length": 2**50}, "W of shape (1, 16, 3) is damaged"),
        ("W.bin", {"offset": 12}, "W of shape (1, 16, 3) is damaged"),
        ("W.bin", {"offset": -8}, "W of shape (1, 16, 3) is damaged"),
        ("W.bin", {"offset": "9" * 5000}, "W of shape (1, 16, 3) is damaged"),
    ],
)
def test_bad_external_data_is_refused(location, entries, message, tmp_path):
    folder = tmp_path / "folder"
    model = written()
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(200))
    (folder / "W.bin").write_bytes(bytes(200))
    (folder / "link").symlink_to(tmp_path / "secret")
    tensor(model).ClearField("raw_data")
    tensor(model).data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location.format(folder=tmp_path), **entries}.items():
        tensor(model).external_data.add(key=key, value=str(value))
    attempt(model, folder, message)


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
    "nothing": lambda: b"",
    "a zip": lambda: b"PK\x03\x04zip",
    "nodes": lambda: message(7, message(1, b"") * (BIG // 2)),
    "whole numbers": lambda: message(7, message(1, message(5, b"\x40\x01" * (BIG // 2)))),
    "packed numbers": lambda: message(7, message(1, message(5, message(8, b"\x01" * BIG)))),
    "unknown fields": lambda: b"\xf8\x07\x01" * (BIG // 3),
    "depth": lambda: nested(20_000),
    "a number without end": lambda: b"\xff" * BIG,
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_hostile_bytes_are_refused(make, tmp_path):
    attempt(make(), tmp_path, "ONNX model")


# ---- at random


VALUES = [0, 1, 2, 3, 4, 7, 100, -1, 2**31 - 1, -(2**31), 2**40, 2**63 - 1]
VALUES += [
    0.0,
    -1.0,
    1e30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "Identity",
    "Reshape",
    "\u00e9" * 50,
]


def edited(model, draw):
    """One field of one message changed for another value of its type, taken out, or doubled."""
    messages = [model]
    for found in messages:
        for field, value in found.ListFields():
            if field.message_type:
                messages += value if hasattr(value, "extend") else [value]
    found = draw.choice(messages)
    there = [field for field, _ in found.ListFields()]
    fields = list(found.DESCRIPTOR.fields)
    name = draw.choice(there if there and draw.random() < 0.8 else fields).name
    value = getattr(found, name)
    names = [text for n in model.graph.node for text in (*n.input, *n.output, n.op_type)]
    values = [*VALUES, *names, *(text.encode() for text in names)]

    def other(old):
        return draw.choice([new for new in values if type(new) is type(old)] or [old])

    operations = [lambda: found.ClearField(name), lambda: setattr(found, name, other(value))]
    if hasattr(value, "extend"):
        place = draw.randrange(len(value)) if value else 0
        operations = [lambda: value.pop(place), lambda: value.extend([value[place]]), value.reverse]
        operations.append(lambda: value.__setitem__(place, other(value[place])))
    # a message, too large, or empty
    with contextlib.suppress(TypeError, ValueError, AttributeError, IndexError):
        draw.choice(operations)()


def sound():
    """Models to be damaged."""
    return [
        written(),
        written("GRU", bidirectional=True, batch_first=True),
        written("RNN", activations="leaky_relu(0.3)"),
        written("LSTM", peepholes=True, clip=1.0, bias=False),
        *(onnx.load(path) for path in sorted((DATA / "onnx").glob("dynamo-*-dynamic*.onnx"))),
        written("GRU", num_layers=3, bidirectional=True),
    ]


@pytest.mark.parametrize("kind", ["bytes", "fields"])
def test_damaged_model_is_read_or_refused(kind, tmp_path):
    models = [model.SerializeToString() for model in sound()]
    read = 0
    for seed in range(examples(60)):
        draw = random.Random(f"{kind} {seed}")
        data = draw.choice(models)
        if kind == "bytes":
            data = damage.flipped(data, draw)
        else:
            model = onnx.ModelProto.FromString(data)
            for _ in range(draw.choice([1, 1, 2, 5])):
                edited(model, draw)
            data = model.SerializeToString()
        read += attempt(data, tmp_path) is None
    assert read  # not everything is refused at the door
