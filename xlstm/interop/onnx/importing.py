"""LSTM, GRU and RNN nodes of an ONNX model as a layer and its parameters.

Several nodes are read only if the graph proves that they are the layers of one stack, with states and lengths that a
call gives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from xlstm.arrays.checks import few, shown
from xlstm.arrays.namespace import Params
from xlstm.interop.common import Layer, one_dtype, stacked
from xlstm.interop.onnx.axes import DEEPEST, OPEN, Axes, UnprovenError, Values, permutation
from xlstm.interop.onnx.graph import DOMAINS, Graph, name_of, subgraphs
from xlstm.interop.onnx.names import GATE_COUNTS
from xlstm.interop.onnx.node import Node, declared

LAYERS = 1000  # of a stack, at most
STATES = ("initial_h", "initial_c")


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
    FileNotFoundError, IsADirectoryError
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
    graph = Graph(path_or_model)
    nodes = [declared(graph, proto) for proto in _chosen(graph, node)]
    names = [name_of(one.proto) for one in nodes]
    try:
        _check(graph, nodes)
    except UnprovenError as error:
        found = f"nodes {few(names)}" if node is not None else "there are several recurrent nodes and they"
        expected = "" if node is not None else f", expected node=... to choose from {few(names)}"
        raise ValueError(f"{graph.where}: {found} make no stack{expected}; {error}") from None
    turned = permutation(graph.producer(graph.origin(nodes[0].inputs["X"]), "Transpose")) == [1, 0, 2]
    batch_first = nodes[0].batch_first or (node is None and turned)
    layer, params = stacked(graph.where, names, [one.layer(batch_first) for one in nodes])
    one_dtype(graph.where, params, ValueError)
    return layer, params


def _chosen(graph: Graph, node: str | Sequence[str] | None) -> list[Any]:
    """Return the nodes to read."""
    nodes = [n for n in graph.nodes if n.op_type in GATE_COUNTS and n.domain in DOMAINS]
    if not nodes:
        hint = "PyTorch writes an nn.RNN as one with dynamo=False only"
        raise ValueError(f"{graph.where}: the model has no node LSTM, GRU or RNN ({hint})")
    names = [name_of(n) for n in nodes]
    if node is None:
        for outer in graph.nodes:
            if any(n.op_type in GATE_COUNTS for inside in subgraphs(outer) for n in inside.node):
                raise ValueError(
                    f"{graph.where}: {outer.op_type} {shown(name_of(outer))} has recurrent nodes inside, expected "
                    f"node=... to choose from {few(names)}"
                )
    else:
        wanted = [node] if isinstance(node, str) else list(node)
        unknown = [name for name in wanted if name not in names]
        if unknown or not wanted:
            raise ValueError(f"{graph.where}: node {shown(unknown or wanted)} is none of {few(names)}")
        for name in wanted:
            if names.count(name) > 1 or wanted.count(name) > 1:
                raise ValueError(f"{graph.where}: node {shown(name)} is not one node, expected names of one node each")
        nodes = [nodes[names.index(name)] for name in wanted]
    if len(nodes) > LAYERS:
        raise ValueError(f"{graph.where}: a stack of {len(nodes)} recurrent nodes, expected {LAYERS} at most")
    return nodes


def _check(graph: Graph, nodes: list[Node]) -> None:
    """Raise ValueError unless nodes can be the layers of one stack.

    A node's X has to be Y of the node before, with directions and features joined in one axis. An initial state
    has to depend on inputs of the model, so that a call gives it, or to be 0; `sequence_lens` has to depend on them or
    to be the number of time steps, and to be the same for all nodes. Nothing of that may depend on the nodes. The error
    is an UnprovenError where nodes make no stack, or where nothing in the graph proves that they do.
    """
    values = _values(graph, nodes)
    given = graph.reached()
    lengths = {_lengths(values, node, given) for node in nodes}
    for k, (before, node) in enumerate(pairwise(nodes)):
        _follows(values, k, before, node)
    if len(lengths) > 1:
        raise UnprovenError("sequence_lens is not the same for all of them")
    ours = graph.reached(name for node in nodes for name in node.proto.output if name)
    for k, node in enumerate(nodes):
        for what in ("sequence_lens", *STATES, *(["X"] if k == 0 else [])):
            if node.inputs.get(what) in ours:
                raise UnprovenError(f"{what} of {node.label} depends on what they compute")


def _outer(node: Node) -> Axes:
    return [("B",), ("T",)] if node.batch_first else [("T",), ("B",)]


def _values(graph: Graph, nodes: list[Node]) -> Values:
    """Return the axes of the first node's X, of those it is a transpose of, and of every node's Y."""
    sizes, roots = {"D": nodes[0].sizes[0]}, dict[str, Axes]()
    name, axes = graph.origin(nodes[0].inputs["X"]), [*_outer(nodes[0]), ("D",)]
    while name not in roots and len(roots) < DEEPEST:
        roots[name] = axes
        for (symbol,), size in zip(axes, graph.declared(name), strict=False):
            if size is not None:
                sizes.setdefault(symbol, size)
        node = graph.producer(name, "Transpose")
        perm = permutation(node)
        if sorted(perm) != [0, 1, 2]:
            break
        name, axes = graph.origin(node.input[0]), [axes[perm.index(k)] for k in range(3)]
    for k, one in enumerate(nodes):
        sizes |= {f"directions{k}": len(one.directions), f"H{k}": one.sizes[1]}
        if one.proto.output and one.proto.output[0]:
            inner = [*_outer(one), (f"H{k}",)]
            inner.insert(2 if one.batch_first else 1, (f"directions{k}",))
            roots[one.proto.output[0]] = inner
    return Values(graph, {**OPEN, **sizes}, roots)


def _lengths(values: Values, node: Node, given: set[str]) -> str:
    """Return the name of a node's `sequence_lens`, empty where all sequences have all steps.

    Raise ValueError if the lengths or a state are neither `given` by a call nor the default.
    """
    defaults = {"sequence_lens": (values.sizes["T"], "the number of time steps"), **dict.fromkeys(STATES, (0, "0"))}
    graph = values.graph
    for what, (default, words) in defaults.items():
        name = node.inputs.get(what)
        if name is None or name in given or values.fill(f"{graph.where}: {node.label}: {what}", name) == default:
            continue
        found = f"{graph.described(name)}, of constants that are not known to be"
        if graph.is_constant(name):
            found = "a constant other than"
        raise ValueError(
            f"{graph.where}: {node.label}: {what} is {found} {words}, which a layer cannot hold, expected an input"
        )
    lengths = node.inputs.get("sequence_lens", "")
    return graph.origin(lengths) if lengths in given else ""


def _follows(values: Values, k: int, before: Node, node: Node) -> None:
    """Raise UnprovenError unless `node` runs on the output of `before`, layer k."""
    expected = values.plain([*_outer(node), (f"directions{k}", f"H{k}")])
    try:
        root, axes = values.axes(node.inputs["X"])
    except UnprovenError as error:
        raise UnprovenError(f"X of {node.label} is {error}") from None
    if root != next(iter(before.proto.output), ""):
        raise UnprovenError(f"X of {node.label} is made of {shown(root)}, which is not Y of {before.label}")
    if axes != expected:
        joined = ", ".join("*".join(axis) or "1" for axis in expected)
        raise UnprovenError(f"X of {node.label} has the axes of Y in another order than ({joined})")
