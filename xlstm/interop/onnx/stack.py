"""Whether recurrent nodes of an ONNX model are the layers of one stack, with states and lengths that a call gives."""

from __future__ import annotations

from itertools import pairwise

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.axes import DEEPEST, OPEN, Axes, UnprovenError, Values, permutation
from xlstm.interop.onnx.graph import Graph
from xlstm.interop.onnx.node import Node

STATES = ("initial_h", "initial_c")


def check(graph: Graph, nodes: list[Node]) -> None:
    """Raise ValueError unless nodes can be the layers of one stack.

    A node's X has to be Y of the node before, with directions and features joined in one axis. An initial state
    has to depend on inputs of the model, so that a call gives it, or to be 0; `sequence_lens` has to depend on them or
    to be the number of time steps, and to be the same for all nodes. Nothing of that may depend on the nodes.

    Raises
    ------
    UnprovenError
        The nodes make no stack, or nothing in the graph proves that they do.
    ValueError
        A state or `sequence_lens` is neither an input nor the default.
    """
    values = _values(graph, nodes)
    given = graph.reached(graph.inputs())
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


def transposed(graph: Graph, name: str) -> bool:
    """Say whether a Transpose node made a tensor (T, B, D) of one that is batch first."""
    return permutation(graph.producer(graph.origin(name), "Transpose")) == [1, 0, 2]


def _outer(node: Node) -> Axes:
    return [("B",), ("T",)] if node.batch_first else [("T",), ("B",)]


def _values(graph: Graph, nodes: list[Node]) -> Values:
    """Return the axes of the first node's X, of those it is a transpose of, and of every node's Y."""
    sizes, roots = {"D": nodes[0].sizes[0]}, {}
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
        if name is None or name in given or values.fill(f"{node.where}: {what}", name) == default:
            continue
        found = f"{graph.described(name)}, of constants that are not known to be"
        if graph.is_constant(name):
            found = "a constant other than"
        raise ValueError(f"{node.where}: {what} is {found} {words}, which a layer cannot hold, expected an input")
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
