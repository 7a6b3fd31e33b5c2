"""Whether recurrent nodes of an ONNX model are the layers of one stack, with states and lengths that a call gives."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.interop.onnx.graph import Graph
from xlstm.interop.onnx.shapes import DEEPEST, Axes, Shapes, UnprovenError, permutation


@dataclass
class Node:
    """A recurrent node, with as much of it as its place in a graph depends on."""

    label: str  # operator and name, for messages
    proto: Any
    sizes: tuple[int, int]  # of input and hidden state
    directions: int
    batch_first: bool  # layout=1

    def input(self, position: int) -> str:
        return str(self.proto.input[position]) if len(self.proto.input) > position else ""

    def outer(self) -> Axes:
        return [("B",), ("T",)] if self.batch_first else [("T",), ("B",)]

    def inner(self, k: int) -> Axes:
        """The axes of output Y of layer k."""
        T, B = self.outer()
        return [T, B, (f"directions{k}",), (f"H{k}",)] if self.batch_first else [T, (f"directions{k}",), B, (f"H{k}",)]


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
    shapes = _shapes(graph, nodes)
    given = graph.reached(graph.inputs())
    lengths = [_arguments(graph, shapes, node, given) for node in nodes]
    for k, (before, node) in enumerate(pairwise(nodes)):
        _follows(shapes, k, before, node)
    if len(set(lengths)) > 1:
        raise UnprovenError("sequence_lens is not the same for all of them")
    ours = graph.reached(name for node in nodes for name in node.proto.output if name)
    for node in nodes:
        for what, position in (("sequence_lens", 4), ("initial_h", 5), ("initial_c", 6)):
            if node.input(position) in ours:
                raise UnprovenError(f"{what} of {node.label} depends on what they compute")
    if nodes[0].input(0) in ours:
        raise UnprovenError(f"X of {nodes[0].label} depends on what they compute")


def transposed(graph: Graph, name: str) -> bool:
    """Whether a Transpose node made a tensor (T, B, D) of one that is batch first."""
    return permutation(graph.producer(graph.origin(name), "Transpose")) == [1, 0, 2]


def _shapes(graph: Graph, nodes: list[Node]) -> Shapes:
    """Axes of the first node's X, of those it is a transpose of, and of every node's Y."""
    sizes: dict[str, int | None] = {"T": None, "B": None, "D": nodes[0].sizes[0]}
    roots: dict[str, Axes] = {}
    name, axes = graph.origin(nodes[0].input(0)), [*nodes[0].outer(), ("D",)]
    while name not in roots and len(roots) < DEEPEST:
        roots[name] = axes
        for (symbol,), size in zip(axes, graph.declared(name), strict=False):
            if sizes[symbol] is None:
                sizes[symbol] = size
        node = graph.producer(name, "Transpose")
        perm = permutation(node)
        if sorted(perm) != [0, 1, 2]:
            break
        name, axes = graph.origin(node.input[0]), [axes[perm.index(k)] for k in range(3)]
    for k, node in enumerate(nodes):
        sizes |= {f"directions{k}": node.directions, f"H{k}": node.sizes[1]}
        if node.proto.output and node.proto.output[0]:
            roots[node.proto.output[0]] = node.inner(k)
    return Shapes(graph, sizes, roots)


def _arguments(graph: Graph, shapes: Shapes, node: Node, given: set[str]) -> str:
    """The name of a node's `sequence_lens`, empty where all sequences have all steps; raise ValueError, see `check`."""
    for what, name in (("initial_h", node.input(5)), ("initial_c", node.input(6))):
        if name and name not in given and shapes.fill(what, name) != (0, ()):
            raise _refused(graph, node, what, name, "0")
    name = node.input(4)
    if not name or name in given:
        return graph.origin(name)
    if shapes.fill("sequence_lens", name) != shapes.size("T"):
        raise _refused(graph, node, "sequence_lens", name, "the number of time steps")
    return ""


def _refused(graph: Graph, node: Node, what: str, name: str, default: str) -> ValueError:
    constant = graph.is_constant(name)
    found = "a constant other than" if constant else f"{graph.described(name)}, of constants that are not known to be"
    return ValueError(
        f"{graph.where}: {node.label}: {what} is {found} {default}, which a layer cannot hold, expected an input"
    )


def _follows(shapes: Shapes, k: int, before: Node, node: Node) -> None:
    """Raise UnprovenError unless `node` runs on the output of `before`, layer k."""
    expected = shapes.plain([*node.outer(), (f"directions{k}", f"H{k}")])
    try:
        root, axes = shapes.axes(node.input(0))
    except UnprovenError as error:
        raise UnprovenError(f"X of {node.label} is {error}") from None
    if root != next(iter(before.proto.output), ""):
        raise UnprovenError(f"X of {node.label} is made of {shown(root)}, which is not Y of {before.label}")
    if axes != expected:
        raise UnprovenError(
            f"X of {node.label} has the axes of Y in another order than ({', '.join(map(_joined, expected))})"
        )


def _joined(axis: tuple[str, ...]) -> str:
    return "*".join(axis) or "1"
