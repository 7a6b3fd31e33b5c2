"""Whether recurrent nodes of an ONNX model are the layers of one stack."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from xlstm.interop.onnx_graph import Graph, name_of


def stacked(graph: Graph, nodes: list[Any]) -> bool:
    """Whether each node runs on the output of the one before, over equal lengths and from states of its own."""
    lengths = {graph.origin(node.input[4]) if len(node.input) > 4 else "" for node in nodes}
    joined = all(_merges(graph, node.input[0], before) for before, node in pairwise(nodes))
    apart = not any(_depends(graph, name, nodes) for node in nodes for name in node.input[5:7])
    return joined and apart and len(lengths) == 1


def permutation(graph: Graph, name: str) -> list[int]:
    """The permutation by which a Transpose node made `name`, empty if none did."""
    node = graph.producer(graph.origin(name), "Transpose")
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), []) if node else []


def _merges(graph: Graph, name: str, before: Any) -> bool:
    """Whether `name` is Y (T, directions, B, H) of the node `before` as (T, B, directions*H)."""
    where = f"{graph.where}: {name_of(before)!r}"
    name, y = graph.origin(name), next(iter(before.output), "")
    attributes = {a.name: a for a in before.attribute}
    if not y or ("layout" in attributes and attributes["layout"].i):
        return False
    both = "direction" in attributes and attributes["direction"].s == b"bidirectional"
    if squeeze := graph.producer(name, "Squeeze"):
        axes = [list(a.ints) for a in squeeze.attribute if a.name == "axes"]  # an input since opset 13
        if len(squeeze.input) > 1:
            axes = [graph.constant(where, "axes", squeeze.input[1]).ravel().tolist()]
        return not both and axes == [[1]] and graph.origin(squeeze.input[0]) == y
    reshape = graph.producer(name, "Reshape")
    if reshape is None or len(reshape.input) < 2 or not graph.is_constant(reshape.input[1]):
        return False
    shape = graph.constant(where, "shape", reshape.input[1]).ravel().tolist()
    width = (1 + both) * graph.shape(where, "R", before.input[2])[-1]
    turned = graph.origin(reshape.input[0])
    return (
        shape in ([0, 0, -1], [0, 0, width])
        and permutation(graph, turned) == [0, 2, 1, 3]
        and graph.origin(graph.producer(turned).input[0]) == y
    )


def _depends(graph: Graph, name: str, nodes: list[Any]) -> bool:
    """Whether values of recurrent nodes, and not only their shapes, go into `name`."""
    ours = {output for node in nodes for output in node.output if output}
    ahead, seen = [name], set()
    while ahead:
        name = ahead.pop()
        if name in ours:
            return True
        node = graph.producer(name)
        if node is not None and name not in seen and node.op_type not in ("Shape", "Size"):
            seen.add(name)
            ahead += node.input
    return False
