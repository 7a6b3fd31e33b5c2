"""LSTM, GRU and RNN nodes of an ONNX model as a layer and its parameters.

Several nodes are read only if the graph proves that they are the layers of one stack, with states and lengths that a
call gives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.checks import few, shown
from xlstm.arrays.namespace import Params
from xlstm.cells import activations
from xlstm.data import reading
from xlstm.interop.common import Host, Layer, floating, one_dtype, single, stacked
from xlstm.interop.onnx.dataflow import DOMAINS, Axis, Factor, Values, open_size, size_of, subgraphs, values_of
from xlstm.interop.onnx.onnx_export import DIRECTIONS, FUNCTIONS, INPUTS
from xlstm.interop.onnx.onnx_files import Constants, check, library, parsed
from xlstm.layers.recurrent import KINDS

OLDEST = 7  # the first opset with today's LSTM, GRU and RNN
LAYERS = 1000  # of a stack, at most
GATE_COUNTS = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = "sequence_lens"
GIVEN = (LENGTHS, "initial_h", "initial_c")  # inputs that a call gives, or that are left out
BY_THEIRS = {theirs.lower(): ours for ours, theirs in FUNCTIONS.items()}
# Attributes of few values, of which the first is the default.
CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("layout", "input_forget", "linear_before_reset"), (0, 1)),
    "direction": tuple(DIRECTIONS),
}


@reading.brief()
def from_onnx(
    path_or_model: str | os.PathLike[str] | Any, node: str | Sequence[str] | None = None
) -> tuple[Layer, Params]:
    """Read recurrent nodes of an ONNX model.

    Initial states and `sequence_lens` that depend on inputs of the model are given to `layer.forward`, as `state` and
    `lengths`. The rows of the forget gate, which `input_forget` makes unused, are left out. FLOAT16 becomes float32.
    Nodes of other operators are not read, except those between the layers of a stack and those that compute states
    and lengths.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
        The model, or its file.
    node : str or sequence of str, optional
        Name of the node (that of its first output, where it has none), or names of several that make a stack,
        the first one first. By default the only node of the model, or all of them where each one's input is
        the output of the one before, as PyTorch and `to_onnx` write stacks; then an input that is transposed
        from batch first gives `batch_first=True`.

    Returns
    -------
    layer : LSTM, GRU or RNN
        It has `recurrent_bias`, and so `bh`, where there is an input B.
    params : dict of str to numpy.ndarray
        The same bits as in the file.

    Raises
    ------
    OSError
        There is no such file, or none with the external data it names.
    ValueError
        It is no ONNX model; there is no such node, or there are several and nothing in the model proves that they
        make a stack of at most 1000 layers; an attribute is unknown or has an unknown value; an initial state is a
        constant other than 0, or `sequence_lens` one other than the number of time steps; a weight is no constant,
        damaged or misshapen, or it is external data outside the folder of the model; the model would take many
        times the memory of its file.
    ImportError
        The package onnx is not installed.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.interop.onnx import from_onnx, to_onnx
    >>> gru = xlstm.GRU(3, 8, num_layers=2)
    >>> layer, params = from_onnx(to_onnx(gru, gru.init(backend="numpy")))
    >>> layer.num_layers, params["1.Wx"].shape
    (2, (24, 8))
    """
    where, model, folder = "from_onnx", path_or_model, None
    if isinstance(model, library().ModelProto):
        check(where, model)
    else:
        where, model, folder = str(Path(model)), parsed(Path(model)), Path(model).parent
    opset = next((entry.version for entry in model.opset_import if entry.domain in DOMAINS), 0)
    if opset < OLDEST:
        raise ValueError(f"{where}: opset is {opset}, expected {OLDEST} or newer")
    graph, constants = model.graph, Constants(folder, model.ByteSize())
    chosen = _chosen(where, graph, node)
    nodes: dict[int, Node] = {}

    def read(k: int, values: Values) -> tuple[Axis, ...]:
        nodes[k] = _read(where, graph.node[k], values, constants)
        return nodes[k].axes

    values = values_of(graph, constants, chosen, read)
    stack, names = [nodes[k] for k in chosen], [_name(graph.node[k]) for k in chosen]
    if problem := _problem(values, constants, stack):
        several = f"nodes {few(names)}" if node is not None else "there are several recurrent nodes and they"
        expected = "" if node is not None else f", expected node=... to choose from {few(names)}"
        raise ValueError(f"{where}: {several} make no stack{expected}; {problem}")
    layer, params = stacked(where, names, [(one.layer, one.params) for one in stack])
    one_dtype(where, params, ValueError)
    source = values[stack[0].inputs["X"]].node
    turned = getattr(source, "op_type", "") == "Transpose" and [1, 0, 2] in [list(a.ints) for a in source.attribute]
    return replace(layer, batch_first=stack[0].batch_first or (node is None and turned)), params


def _chosen(where: str, graph: Any, node: str | Sequence[str] | None) -> list[int]:
    """Return the numbers of the nodes to read."""
    nodes = {k: _name(n) for k, n in enumerate(graph.node) if n.op_type in GATE_COUNTS and n.domain in DOMAINS}
    names = list(nodes.values())
    if not nodes:
        hint = "PyTorch writes an nn.RNN as one with dynamo=False only"
        raise ValueError(f"{where}: the model has no node LSTM, GRU or RNN ({hint})")
    if node is None:
        for outer in graph.node:
            if any(n.op_type in GATE_COUNTS for inside in subgraphs(outer) for n in inside.node):
                raise ValueError(
                    f"{where}: {outer.op_type} {shown(_name(outer))} has recurrent nodes inside, expected "
                    f"node=... to choose from {few(names)}"
                )
        chosen = list(nodes)
    else:
        wanted = [node] if isinstance(node, str) else list(node)
        for name in wanted or [""]:
            if names.count(name) != 1 or wanted.count(name) != 1:
                raise ValueError(f"{where}: node {shown(name)} is not one of {few(names)}, each named once")
        chosen = [k for name in wanted for k, one in nodes.items() if one == name]
    if len(chosen) > LAYERS:
        raise ValueError(f"{where}: a stack of {len(chosen)} recurrent nodes, expected {LAYERS} at most")
    return chosen


def _name(node: Any) -> str:
    """Return a node's name, or that of its first output where it has none."""
    return str(node.name or next(filter(None, node.output), ""))


class Node(NamedTuple):
    """A recurrent node: a layer by itself."""

    where: str  # the file and the node, for messages
    label: str
    inputs: dict[str, str]  # names of the inputs that are there, by their names in ONNX
    y: str  # the name of the output
    axes: tuple[Axis, ...]  # of Y
    batch_first: bool  # in X and Y
    layer: Layer
    params: Params

    def outer(self, batch_first: bool) -> tuple[Axis, Axis]:
        """Return the axes of time and batch in the order of a layout."""
        T, B = (self.axes[1], self.axes[0]) if self.batch_first else (self.axes[0], self.axes[2])
        return (B, T) if batch_first else (T, B)


def _read(where: str, proto: Any, values: Values, constants: Constants) -> Node:
    """Read a node; raise ValueError or TypeError if attributes, inputs or shapes are wrong."""
    label = f"{proto.op_type} {shown(_name(proto))}"
    where = f"{where}: {label}"
    inputs = {name: source for name, source in zip(INPUTS, proto.input, strict=False) if source}
    attributes = _attributes(where, proto)
    arrays: dict[str, Host] = {}
    for name in (name for name in "WRBP" if name in inputs):
        value = values[inputs[name]]
        if value.tensor is None:
            raise ValueError(f"{where}: {name} is {value.described}, expected an initializer or a Constant")
        arrays[name] = floating(where, name, constants.values(f"{where}: {name}", value.tensor))
    D, H = (arrays[name].shape[-1] if arrays[name].ndim else 0 for name in "WR")
    H = checks.size(where, "hidden_size", attributes.get("hidden_size", H))
    G, directions = GATE_COUNTS[proto.op_type], DIRECTIONS[attributes["direction"]]
    rows = {f"{G}H": G * H}
    expected = {"W": {**rows, "D": D}, "R": {**rows, "H": H}, "B": {f"{2 * G}H": 2 * G * H}, "P": {"3H": 3 * H}}
    for name, array in arrays.items():
        checks.shape(where, name, array, {"directions": len(directions), **expected[name]})
    x = values[inputs["X"]].axes
    if x is None or len(x) != 3:
        x = tuple((Factor(name, open_size(name)),) for name in (f"{label} 0", f"{label} 1"))
    sizes = {"directions": len(directions), "H": H}
    each, features = (() if n == 1 else (Factor(f"{label} {name}", n),) for name, n in sizes.items())
    batch_first = attributes["layout"] == 1
    axes = (*x[:2], each, features) if batch_first else (x[0], each, x[1], features)
    layer, params = _layer(where, proto.op_type.lower(), attributes, arrays, directions)
    return Node(where, label, inputs, next(iter(proto.output), ""), axes, batch_first, layer, params)


def _layer(
    where: str, kind: str, attributes: dict[str, Any], arrays: dict[str, Host], directions: tuple[str, ...]
) -> tuple[Layer, Params]:
    """Return one layer and its parameters."""
    options: dict[str, Any] = {"reverse": directions == ("reverse.",)}
    if kind == "lstm":
        options |= {"peepholes": "P" in arrays, "coupled_input_forget": attributes["input_forget"] == 1}
    elif kind == "gru":
        options["reset_after"] = attributes["linear_before_reset"] == 1
    if "clip" in attributes:
        options["clip"] = shortest(attributes["clip"])
    if attributes.get("activations"):
        options["activations"] = _activations(where, attributes, len(KINDS[kind].CELL.activations), len(directions))
    params = {"Wx": arrays["W"], "Wh": arrays["R"]}  # each (directions, rows, ...)
    if "B" in arrays:
        params["b"], params["bh"] = np.split(arrays["B"], 2, axis=1)
    if "P" in arrays:
        params["p"] = arrays["P"]
    if attributes["input_forget"] == 1:  # the rows of the forget gate, the third, are not used
        H = arrays["R"].shape[-1]
        params = {name: np.delete(array, slice(2 * H, 3 * H), axis=1) for name, array in params.items()}
    parts = [{name: array[d].copy() for name, array in params.items()} for d in range(len(directions))]
    return single(kind, parts, **options)


def _attributes(where: str, proto: Any) -> dict[str, Any]:
    """Return attributes by name, and the defaults of those of few values."""
    attributes = {name: choices[0] for name, choices in CHOICES.items()}
    for entry in proto.attribute:
        value = library().helper.get_attribute_value(entry)
        if isinstance(value, list):
            value = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in value]
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value not in CHOICES.get(entry.name, [value]):
            choices = " or ".join(map(repr, CHOICES[entry.name]))
            raise ValueError(f"{where}: attribute {entry.name} is {shown(value)}, expected {choices}")
        attributes[entry.name] = value
    return attributes


def _activations(where: str, attributes: dict[str, Any], count: int, directions: int) -> tuple[str, ...]:
    """Return the activations that the attributes of a node name: `count` for each direction, or for both alike.

    The values of alpha and beta belong, in their order, to those functions that take one. Where there are too few
    values, functions have ONNX's defaults.
    """
    names = attributes["activations"]
    if len(names) not in (count, count * directions):  # counted before any is read, as a file may name very many
        raise ValueError(f"{where}: activations has {len(names)} names, expected {count * directions}")
    rest = {key: list(attributes.get(key, ())) for key in ("activation_alpha", "activation_beta")}
    functions = []
    for theirs in names:
        if theirs.lower() not in BY_THEIRS:
            known = ", ".join(FUNCTIONS.values())
            raise ValueError(f"{where}: activation {shown(theirs)} is unknown, expected one of {known}")
        name, defaults = activations.parse(BY_THEIRS[theirs.lower()])
        values = tuple(
            shortest(some.pop(0)) if some else default for some, default in zip(rest.values(), defaults, strict=False)
        )
        if name == "affine" and values == (1.0, 0.0):
            name, values = "linear", ()
        functions.append(activations.canonical(f"{name}({', '.join(map(repr, values))})"))
    for key, surplus in rest.items():
        if surplus:  # which function they belong to would be a guess
            raise ValueError(f"{where}: {key} has {len(surplus)} values more than {', '.join(names)} take")
    return tuple(functions)


def shortest(value: float) -> float:
    """Return the shortest decimal that is `value` in float32, the type of attributes: 0.2, not 0.20000000298."""
    return float(str(np.float32(value)))


def _problem(values: Values, constants: Constants, nodes: list[Node]) -> str:
    """Return why the graph does not show that nodes are the layers of one stack, "" if it does.

    A node's X has to be Y of the node before, with directions and features joined in one axis. An initial state
    and lengths have to be the default, or values that a call gives; raise ValueError if they are not.
    """
    for before, node in pairwise(nodes):
        x = values[node.inputs["X"]]
        if x.root != before.y:
            described = values[x.root].described if x.root else x.described
            return f"X of {node.label} is {described}, which is not known to be Y of {before.label}"
        directions, H = before.axes[2 if before.batch_first else 1], before.axes[3]
        if x.axes != (*before.outer(node.batch_first), directions + H):
            outer = "batch, time" if node.batch_first else "time, batch"
            order = f"expected ({outer}, directions*H)"
            return f"X of {node.label} has the axes of Y of {before.label} in another order, {order}"
    states = {(node.label, name): _state(values, constants, node, name) for node in nodes for name in GIVEN}
    if len({name for (_, kind), name in states.items() if kind == LENGTHS}) > 1:
        return f"{LENGTHS} is not the same for all of them"
    inputs = {**states, (nodes[0].label, "X"): nodes[0].inputs["X"]}
    behind = [f"{kind} of {label}" for (label, kind), name in inputs.items() if values[name].from_layers]
    return f"{behind[0]} depends on what they compute" if behind else ""


def _state(values: Values, constants: Constants, node: Node, name: str) -> str:
    """Return the name of lengths or of a state that a call gives, "" for the default; ValueError if it is neither."""
    if name not in node.inputs:
        return ""
    value, what = values[node.inputs[name]], f"{node.where}: {name}"
    if value.from_inputs:
        return value.name
    default = 0 if name != LENGTHS else size_of(node.outer(False)[0])
    if value.parts and all(_holds_only(what, part, default, constants) for part in value.parts):
        return ""
    words = "0" if name != LENGTHS else "the number of time steps"
    problem = f"{value.described}, of constants that are not known to be"
    if value.tensor is not None:
        problem = "a constant other than"
    raise ValueError(f"{what} is {problem} {words}, which a layer cannot hold, expected an input")


def _holds_only(what: str, part: Any, expected: int, constants: Constants) -> bool:
    """Say whether a part, a number or a tensor, has no other value than the expected one."""
    return bool(part == expected) if isinstance(part, int) else bool(np.all(constants.values(what, part) == expected))
