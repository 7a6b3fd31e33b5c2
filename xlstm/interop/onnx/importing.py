"""LSTM, GRU and RNN nodes of an ONNX model as a layer and its parameters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from xlstm.arrays.backend import Params
from xlstm.arrays.checks import few, shown
from xlstm.interop import common
from xlstm.interop.onnx.axes import UnprovenError
from xlstm.interop.onnx.graph import DOMAINS, Graph, name_of, subgraphs
from xlstm.interop.onnx.names import GATES
from xlstm.interop.onnx.node import declared
from xlstm.interop.onnx.stack import check, transposed
from xlstm.layers.recurrent import GRU, LSTM, RNN

LAYERS = 1000  # of a stack, at most


def from_onnx(
    path_or_model: str | os.PathLike[str] | Any, node: str | Sequence[str] | None = None
) -> tuple[LSTM | GRU | RNN, Params]:
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
        check(graph, nodes)
    except UnprovenError as error:
        found = f"nodes {few(names)}" if node is not None else "there are several recurrent nodes and they"
        expected = "" if node is not None else f", expected node=... to choose from {few(names)}"
        raise ValueError(f"{graph.where}: {found} make no stack{expected}; {error}") from None
    batch_first = nodes[0].batch_first or (node is None and transposed(graph, nodes[0].inputs["X"]))
    layer, params = common.stacked(graph.where, names, [one.layer(batch_first) for one in nodes])
    common.one_dtype(graph.where, params, ValueError)
    return layer, params


def _chosen(graph: Graph, node: str | Sequence[str] | None) -> list[Any]:
    """Return the nodes to read."""
    nodes = [n for n in graph.nodes if n.op_type in GATES and n.domain in DOMAINS]
    if not nodes:
        hint = "PyTorch writes an nn.RNN as one with dynamo=False only"
        raise ValueError(f"{graph.where}: the model has no node LSTM, GRU or RNN ({hint})")
    names = [name_of(n) for n in nodes]
    if node is None:
        for outer in graph.nodes:
            if any(n.op_type in GATES for inside in subgraphs(outer) for n in inside.node):
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
