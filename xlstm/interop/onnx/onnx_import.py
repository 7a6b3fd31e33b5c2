"""Import of the LSTM, GRU or RNN nodes of an ONNX model as a layer and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.checks import few, shown
from xlstm.arrays.namespace import Params
from xlstm.cells import activations
from xlstm.data import reading
from xlstm.data.writing import AnyPath
from xlstm.interop.common import GATE_COUNTS, Host, Layer, floating, one_dtype, single, stacked
from xlstm.interop.onnx.dataflow import Tensors, size
from xlstm.interop.onnx.onnx_export import DIRECTIONS, FLAGS, FUNCTIONS, INPUTS
from xlstm.interop.onnx.onnx_files import DOMAINS, attributes_of, check, library, parsed, values
from xlstm.layers.recurrent import KINDS

DEEPEST = 1000  # layers in a stack
OLDEST = 7  # the first opset with the current LSTM, GRU and RNN
KINDS_THERE = {kind.upper(): kind for kind in KINDS}  # kinds by operators
BY_THEIRS = {theirs.lower(): ours for ours, theirs in FUNCTIONS.items()}
# Attributes with few possible values; the first is the default.
CHOICES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("layout", *FLAGS), (0, 1)),
    "direction": tuple(DIRECTIONS),
}


@reading.brief()
def from_onnx(path_or_model: AnyPath | Any, node: str | None = None) -> tuple[Layer, Params]:
    """Convert the recurrent nodes of an ONNX model to a layer and its parameters.

    A stack becomes one layer with `num_layers`: each node takes the Y of the one before it, and the
    nodes have the same operator and options. Between them there may be nodes that keep all values
    in their order: Transpose, Reshape, Squeeze, Identity, Dropout, and Cast to the same type. Nodes
    before and after the stack are not read, so a head is left out.

    Initial states and `sequence_lens` that are inputs of the model are not read: give them to
    `layer.forward` as `state` and `lengths`. With `node`, that holds also for those that the model
    computes from inputs. With `input_forget`, the unused rows of the forget gate are left out.
    FLOAT16 becomes float32.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
        The model, or its file.
    node : str, optional
        The name of one node or, if it has none, of its first output. By default all recurrent
        nodes of the model are read. Only in this case, an input that is transposed from batch first
        gives the layer `batch_first=True`; with `node` it does not.

    Returns
    -------
    layer : LSTM, GRU or RNN
        The layer. If the node has an input B, the layer has `recurrent_bias`, and so `bh`.
    params : dict of str to numpy.ndarray
        The same bits as in the file.

    Raises
    ------
    OSError
        The file, or a file of external data that it names, does not exist.
    ValueError, TypeError
        The file is not an ONNX model. There is no such node, or there are several that are no stack
        of at most 1000 layers. An attribute is unknown or has an unknown value. The graph computes
        an initial state that is not known to be 0, or `sequence_lens` that are not known to be the
        number of steps. A weight is not a constant, is damaged or misshapen, or is external data
        outside of the model's folder.
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
    where = "from_onnx"
    model = path_or_model
    folder = None
    if isinstance(model, library().ModelProto):
        check(where, model)
    else:
        path = Path(path_or_model)
        where = str(path)
        model = parsed(path)
        folder = path.parent
    opset = next((entry.version for entry in model.opset_import if entry.domain in DOMAINS), 0)
    if opset < OLDEST:
        raise ValueError(f"{where}: opset is {opset}, expected {OLDEST} or newer")
    graph = model.graph
    constants = _constants(graph)
    nodes = _chosen(where, graph, node, constants)
    read = {k: _read(where, proto, constants, folder) for k, proto in nodes.items()}
    layers = {k: layer for k, (layer, _) in read.items()}
    tensors = Tensors(graph, constants, layers, node is None)
    _check(where, graph, nodes, layers, tensors, folder)
    layer, params = stacked(where, [*map(_name, nodes.values())], [*read.values()])
    x = next(iter(nodes.values())).input[0]
    if node is None and any(
        before.op_type == "Transpose"
        and x in before.output
        and [entry.ints for entry in before.attribute] == [[1, 0, 2]]
        for before in graph.node
    ):
        layer = replace(layer, batch_first=True)
    return layer, params


def _chosen(
    where: str, graph: Any, node: str | None, constants: Mapping[str, Any]
) -> dict[int, Any]:
    """Return the nodes to read, by their places in the graph."""
    nodes = {
        k: n for k, n in enumerate(graph.node) if n.op_type in KINDS_THERE and n.domain in DOMAINS
    }
    if not nodes:
        hint = "PyTorch writes an nn.RNN as one with dynamo=False only"
        raise ValueError(f"{where}: the model has no node LSTM, GRU or RNN ({hint})")
    chosen = {k: n for k, n in nodes.items() if node in (None, _name(n))}
    if not 0 < len(chosen) <= (DEEPEST if node is None else 1):
        most = f"at most {DEEPEST}" if node is None else "one"
        raise ValueError(
            f"{where}: for node {shown(node)} there are {len(chosen)} recurrent nodes, expected"
            f" {most} of {few(map(_name, nodes.values()))}"
        )
    # layers have parameters of their own, so a small file could take much memory
    names = [name for n in chosen.values() for name in n.input[1:3] if name in constants]
    if len(chosen) > 1 and len({id(constants[name]) for name in names}) < len(names):
        raise ValueError(f"{where}: nodes share weights, expected some for each; node= reads one")
    return chosen


def _constants(graph: Any) -> dict[str, Any]:
    """Return by name the tensors that do not depend on inputs: initializers, and values of Constant
    nodes.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
    return tensors


def _name(node: Any) -> str:
    """Return the name of a node or, if it has none, of its first output."""
    return str(node.name or next(filter(None, node.output), ""))


def _label(node: Any) -> str:
    """Return the operator and the name of a node, for errors."""
    return f"{node.op_type} {shown(_name(node))}"


def _check(
    where: str,
    graph: Any,
    nodes: Mapping[int, Any],
    layers: Mapping[int, Layer],
    tensors: Tensors,
    folder: Path | None,
) -> None:
    """Raise ValueError unless nodes compute what a stack of their layers computes."""
    makers = {name: _label(proto) for proto in graph.node for name in proto.output}
    given = tensors.given - tensors.read
    lengths = []
    for k, proto in nodes.items():
        steps = size(tensors.axes[proto.input[0]][layers[k].batch_first])
        inputs = dict(zip(INPUTS, proto.input, strict=False))
        for name, number in (("initial_h", 0), ("initial_c", 0), ("sequence_lens", steps)):
            source = inputs.get(name, "")
            what = f"{where}: {_label(proto)}: {name}"
            only = tensors.only[source]
            default = only and all(_is_only(what, constant, number, folder) for constant in only)
            if source and source not in given and not default:
                words = "the number of steps" if number else "0"
                came = f"computed by {makers.get(source, 'no node')}"
                if only:
                    came = f"a constant other than {words}"
                raise ValueError(
                    f"{what} is {came}, which a layer cannot hold, expected {words} or an input of"
                    " the model"
                )
        lengths.append(tensors.roots.get(source, source) if source in given else "")
    for (before, lens), (after, others) in pairwise(zip(nodes.values(), lengths, strict=True)):
        x = after.input[0]
        root = tensors.roots.get(x, x)
        problem = "" if lens == others else f"sequence_lens is another one than of {_label(before)}"
        if root not in before.output[:1] or tensors.axes[x] != tensors.above[root]:
            # a node that only rearranges Y has it as its root
            name = x if root in before.output else root
            problem = (
                f"X comes from {makers.get(name, shown(name))}, expected Y of {_label(before)} with"
                " axes (time, batch, directions * H)"
            )
        if problem:
            names = few(map(_name, nodes.values()))
            raise ValueError(f"{where}: {_label(after)}: {problem}; node= reads one of {names}")


def _is_only(what: str, constant: Any, number: int, folder: Path | None) -> bool:
    """Return whether a constant, which errors call `what`, has one number as all its values."""
    array = constant if isinstance(constant, np.ndarray) else values(what, constant, folder)
    return not np.any(array != number)


def _read(
    where: str, proto: Any, constants: Mapping[str, Any], folder: Path | None
) -> tuple[Layer, Params]:
    """Return a node as a layer; raise ValueError or TypeError for wrong attributes, inputs or
    shapes.
    """
    where = f"{where}: {_label(proto)}"
    inputs = {name: source for name, source in zip(INPUTS, proto.input, strict=False) if source}
    attributes = _attributes(where, proto)
    arrays: dict[str, Host] = {}
    for name in (name for name in "WRBP" if name in inputs):
        if inputs[name] not in constants:
            raise ValueError(
                f"{where}: {name} is {shown(inputs[name])}, which is no constant, expected an"
                " initializer or a Constant"
            )
        arrays[name] = floating(
            where, name, values(f"{where}: {name}", constants[inputs[name]], folder)
        )
    one_dtype(where, arrays)
    D, H = (arrays[name].shape[-1] if arrays[name].ndim else 0 for name in "WR")
    H = checks.size(where, "hidden_size", attributes.get("hidden_size", H))
    kind = KINDS_THERE[proto.op_type]
    G = GATE_COUNTS[kind]
    directions = DIRECTIONS[attributes["direction"]]
    rows = {f"{G}H": G * H}
    expected = {
        "W": {**rows, "D": D},
        "R": {**rows, "H": H},
        "B": {f"{2 * G}H": 2 * G * H},
        "P": {"3H": 3 * H},
    }
    for name, array in arrays.items():
        checks.shape(where, name, array, {"directions": len(directions), **expected[name]})
    return _layer(where, kind, attributes, arrays, directions)


def _layer(
    where: str,
    kind: str,
    attributes: dict[str, Any],
    arrays: dict[str, Host],
    directions: tuple[str, ...],
) -> tuple[Layer, Params]:
    """Return one layer and its parameters."""
    options: dict[str, Any] = {
        "reverse": directions == ("reverse.",),
        "batch_first": attributes["layout"] == 1,
    }
    for name, ours in FLAGS.items():
        if hasattr(KINDS[kind], ours):
            options[ours] = attributes[name] == 1
    if kind == "lstm":
        options["peepholes"] = "P" in arrays
    if "clip" in attributes:
        options["clip"] = shortest(attributes["clip"])
    if attributes.get("activations"):
        options["activations"] = _activations(
            where, attributes, len(KINDS[kind].CELL.activations), len(directions)
        )
    params = {"Wx": arrays["W"], "Wh": arrays["R"]}  # each (directions, rows, ...)
    if "B" in arrays:
        params["b"], params["bh"] = np.split(arrays["B"], 2, axis=1)
    if "P" in arrays:
        params["p"] = arrays["P"]
    if attributes["input_forget"] == 1:  # drop the forget gate's unused rows, the third
        H = arrays["R"].shape[-1]
        unused = slice(2 * H, 3 * H)
        params = {name: np.delete(array, unused, axis=1) for name, array in params.items()}
    parts = [{name: a[d].copy() for name, a in params.items()} for d in range(len(directions))]
    return single(kind, parts, **options)


def _attributes(where: str, proto: Any) -> dict[str, Any]:
    """Return attributes by name, with defaults for attributes with few possible values."""
    found = {name: choices[0] for name, choices in CHOICES.items()}
    for name, given in attributes_of(proto).items():
        value = [*map(_text, given)] if isinstance(given, list) else _text(given)
        if value not in CHOICES.get(name, [value]):
            choices = " or ".join(map(repr, CHOICES[name]))
            raise ValueError(f"{where}: attribute {name} is {shown(value)}, expected {choices}")
        found[name] = value
    return found


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _activations(
    where: str, attributes: dict[str, Any], count: int, directions: int
) -> tuple[str, ...]:
    """Return the activations that a node's attributes name: `count` for each direction, or shared
    by both.

    The values of alpha and beta belong, in order, to the functions that take one. If there are too
    few values, the remaining functions have ONNX's defaults.
    """
    names = attributes["activations"]
    # counted before any is read, since a file may name very many
    if len(names) not in (count, count * directions):
        raise ValueError(
            f"{where}: activations has {len(names)} names, expected {count * directions}"
        )
    rest = {key: list(attributes.get(key, ())) for key in ("activation_alpha", "activation_beta")}
    functions = []
    for theirs in names:
        if theirs.lower() not in BY_THEIRS:
            expected = ", ".join(FUNCTIONS.values())
            raise ValueError(
                f"{where}: activation {shown(theirs)} is unknown, expected one of {expected}"
            )
        name, defaults = activations.parse(BY_THEIRS[theirs.lower()])
        values = tuple(
            shortest(some.pop(0)) if some else default
            for some, default in zip(rest.values(), defaults, strict=False)
        )
        if name == "affine" and values == (1.0, 0.0):
            name = "linear"
            values = ()
        functions.append(activations.canonical(f"{name}({', '.join(map(repr, values))})"))
    for key, surplus in rest.items():
        if surplus:  # their functions would be a guess
            raise ValueError(
                f"{where}: {key} has {len(surplus)} values more than {', '.join(names)} take"
            )
    return tuple(functions)


def shortest(value: float) -> float:
    """Return the shortest decimal that equals `value` in float32, the type of attributes.

    So 0.2 does not become 0.20000000298.
    """
    return float(str(np.float32(value)))
