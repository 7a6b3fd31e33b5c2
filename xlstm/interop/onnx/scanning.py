"""Networks as ONNX graphs: a layer runs on arrays that write nodes, and a recurrence becomes ONNX's Scan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.engines import engine
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Widths
from xlstm.interop.onnx import arrays
from xlstm.interop.onnx.arrays import BATCH, TIME, Array, Graph
from xlstm.interop.onnx.onnx_files import library
from xlstm.layers.sequence import complete
from xlstm.recurrence.packing import Packing, Span


class Scan:
    """The engine for arrays that write ONNX: the cell of a step in the body of a Scan."""

    name = "onnx"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step, or ""."""
        if step.xp is not arrays:
            return "it writes ONNX"
        return f"no Scan does {step.obstacle}" if step.obstacle or step.own else ""

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Any]:
        """Write all steps; see `Engine`."""
        ((T, B),) = widths
        G, H, outer = step.G, step.H, arrays.current()
        zx = arrays.reshape(x if "Wx" not in step.w else x @ step.w["Wx"].T, (T, B, G * H))
        starts = [s.T for s in state]
        body = Graph(outer.opset, outer)
        with body.open():
            before = [Array(body.name(), s.shape, s.dtype) for s in starts]
            now = Array(body.name(), (B, G * H), zx.dtype)
            sums = [arrays.permute_dims(arrays.reshape(now, (B, G, H)), (1, 0, 2)), _recurrent(step, before[0])]
            for k, name in enumerate(("b", "bh")):
                if name in step.added:
                    sums[k] = sums[k] + arrays.reshape(step.w[name], (G, 1, H))
            results = step.cell.gates(arrays, *sums, *before)[: len(before)]
            after = [arrays.reshape(a, s.shape) for a, s in zip(results, before, strict=True)]
        graph = subgraph(body, [*before, now], [*after, after[0]])
        names = [a.name for a in (*starts, zx)]
        *ends, y = outer.node("Scan", names, len(before) + 1, body=graph, num_scan_inputs=1)
        after = [Array(name, s.shape, s.dtype).T for name, s in zip(ends, starts, strict=True)]
        return arrays.reshape(Array(y, (T, B, H), zx.dtype), (T * B, H)), after, None

    def backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        """Refuse: a graph has no gradients."""
        raise NotImplementedError


def _recurrent(step: Step, h: Array) -> Array:
    """Return the products of h (B, H), (G, B, H)."""
    B, (G, H), Wh = h.shape[0], (step.G, step.H), step.w["Wh"]
    if Wh.ndim == 2:
        return arrays.permute_dims(arrays.reshape(h @ Wh.T, (B, G, H)), (1, 0, 2))
    N, K = Wh.shape[1:3]
    by_head = arrays.reshape(arrays.permute_dims(Wh, (1, 3, 0, 2)), (N, K, G * K))
    z = arrays.permute_dims(arrays.reshape(h, (B, N, K)), (1, 0, 2)) @ by_head  # (N, B, G K)
    return arrays.reshape(arrays.permute_dims(arrays.reshape(z, (N, B, G, K)), (2, 1, 0, 3)), (G, B, H))


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    """Let recurrences of arrays that write ONNX run."""
    scan: Any = Scan()
    engine.ENGINES.insert(0, scan)
    try:
        yield
    finally:
        engine.ENGINES.remove(scan)


def network(model: Any, params: Params, tokens: int, opset: int) -> Any:
    """Return the graph of a network with the batch first, for so many tokens of each sequence of any batch."""
    graph = Graph(opset)
    x = Array("tokens", (BATCH, tokens, model.input_size), "float32")
    span = Span(arrays, Packing.of("to_onnx", None, tokens, BATCH))
    (shape,) = graph.node("Shape", ["tokens"])
    graph.node("Slice", [shape, *(graph.enter([k], "int64") for k in (0, 1))], ["batch"])
    with graph.open(), _engine():
        p = {name: arrays.constant(to_numpy(a), "float32") for name, a in params.items()}
        state = complete("to_onnx", arrays, "state", None, model.states, BATCH, p)
        y, _, _ = model.run(p, arrays.permute_dims(x, (1, 0, 2)), state, span)
        y = arrays.permute_dims(y, (1, 0, *range(2, y.ndim)))
    return finished(graph, [x], {"y": y}, type(model).__name__)


def finished(graph: Graph, inputs: Sequence[Array], outputs: Mapping[str, Array], name: str) -> Any:
    """Return a graph with the constants that it needs, and outputs of these names."""
    for output, array in outputs.items():
        graph.node("Identity", [array.name], [output])
    ends = [Array(output, array.shape, array.dtype) for output, array in outputs.items()]
    proto = subgraph(graph, inputs, ends, name)
    used = _used(proto)
    proto.initializer.extend(
        library().numpy_helper.from_array(a, name) for name, a in graph.constants.items() if name in used
    )
    return proto


def subgraph(graph: Graph, inputs: Sequence[Array], outputs: Sequence[Array], name: str = "step") -> Any:
    """Return a graph of those of its nodes that the outputs need; one that is there twice gets a name of its own."""
    helper = library().helper
    named = [a.name for a in outputs]
    for k, one in enumerate(named):
        if one in named[:k] or any(one == a.name for a in inputs):
            named[k] = graph.node("Identity", [one])[0]
    needed, nodes = set(named), []
    for node in reversed(graph.nodes):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    needed |= _used(attribute.g)
    values = [
        [_value(one, a) for one, a in zip(names, some, strict=True)]
        for names, some in (([a.name for a in inputs], inputs), (named, outputs))
    ]
    return helper.make_graph(nodes[::-1], name, *values)


def _used(graph: Any) -> set[str]:
    """Return the names that nodes of a graph take, those of graphs within it among them."""
    names: set[str] = set()
    for node in graph.node:
        names |= set(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _used(attribute.g)
    return names


def _value(name: str, array: Array) -> Any:
    helper = library().helper
    dims = [{BATCH: "batch", TIME: "time"}.get(n, n) for n in array.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims)
