"""An array API namespace whose functions add nodes to an ONNX graph.

A layer that runs on these arrays writes its own computation, so this file needs no formulas. The
batch may have any size, and so may the number of steps of a recurrent layer. In shapes, `BATCH` and
`TIME` stand for them; they are prime numbers that divide no other size.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import copy
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.interop.common import Host
from xlstm.interop.onnx.onnx_files import WEIGHT, library

BATCH = 2**31 - 1
TIME = 2**31 - 19
OPEN = {"batch": BATCH, "time": TIME}  # by the names of values and axes in the graph
# operators by the names of NumPy's functions
OPERATORS = {
    "add": "Add",
    "multiply": "Mul",
    "subtract": "Sub",
    "divide": "Div",
    "negative": "Neg",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "bitwise_and": "And",
    "invert": "Not",
    "isnan": "IsNaN",
    "power": "Pow",
    "absolute": "Abs",
}
CONDITIONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Not", "IsNaN")

float32 = np.dtype("float32")
float64 = np.dtype("float64")
int64 = np.dtype("int64")
finfo = np.finfo


class OnnxGraph:
    """An ONNX graph under construction: nodes and constants.

    A graph within a node shares the constants of the graph around it. A node that depends only on
    constants goes into the outermost graph, so that a loop does not repeat it.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.outermost = self
        self.constants: dict[str, Host] = {}
        self.fixed: set[str] = set()  # names of values that are the same in all steps
        self.device = object()
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Write the operations of arrays in this context to this graph."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def name(self) -> str:
        """Return a name that is not in use."""
        return f"v{next(self._numbers)}"

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: int | list[str] = 1, **attributes: Any
    ) -> list[str]:
        """Add a node with outputs of these names, or this number of outputs; return their names."""
        names = outputs if isinstance(outputs, list) else [self.name() for _ in range(outputs)]
        graph = self
        if self.fixed.issuperset(inputs):
            graph = self.outermost
            self.fixed.update(names)
        graph.nodes.append(
            library().helper.make_node(op_type, list(inputs), names, name=names[0], **attributes)
        )
        return names

    def enter(self, values: Any, dtype: Any = None, name: str = "") -> str:
        """Add a constant, and return its name."""
        name = name or f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype, order="C")
        self.fixed.add(name)
        return name

    def model(
        self, inputs: Sequence[Array], outputs: Mapping[str, Array], name: str
    ) -> tuple[Any, dict[str, Host]]:
        """Return the checked model of the graph, with outputs of these names, and apart from it its
        weights.
        """
        onnx = library()
        proto = self.part(inputs, outputs, name)
        used = {name for node in proto.node for name in names_into(node)}
        weights = {}
        for name, a in self.constants.items():
            if name in used and a.dtype == float32 and a.nbytes >= WEIGHT:
                weights[name] = a
                # the checker takes no more than 2 GB, and sees weights as inputs
                proto.input.append(_value(name, Array(name, a.shape, a.dtype)))
            elif name in used:
                proto.initializer.append(onnx.numpy_helper.from_array(a, name))
        versions = [onnx.helper.make_opsetid("", self.opset)]
        ir_version = onnx.helper.find_min_ir_version_for(versions)
        model = onnx.helper.make_model(
            proto, producer_name="xlstm", opset_imports=versions, ir_version=ir_version
        )
        onnx.checker.check_model(model, full_check=True)
        del model.graph.input[len(inputs) :]
        return model, weights

    def part(self, inputs: Sequence[Array], outputs: Mapping[str, Array], title: str) -> Any:
        """Return a graph of the nodes that outputs of these names need."""
        helper = library().helper
        nodes = [helper.make_node("Identity", [a.name], [name]) for name, a in outputs.items()]
        needed = {a.name for a in outputs.values()}
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(names_into(node))
        results = [_value(name, a) for name, a in outputs.items()]
        return helper.make_graph(nodes[::-1], title, [_value(a.name, a) for a in inputs], results)


def names_into(node: Any) -> Iterator[str]:
    """Yield the names of the inputs of a node and of all nodes of graphs inside it."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from names_into(inner)


def _value(name: str, array: Array) -> Any:
    helper = library().helper
    dims = [next((name for name, size in OPEN.items() if n == size), n) for n in array.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims)


class NoOperatorError(AttributeError, ValueError):
    """An error: a formula uses a function of arrays that has no form in ONNX."""


def __getattr__(name: str) -> Any:
    """Raise NoOperatorError for a function that this module lacks."""
    raise NoOperatorError(
        f"to_onnx: the formula uses {name}, a function of arrays that is not written as ONNX"
    )


_current: contextvars.ContextVar[OnnxGraph] = contextvars.ContextVar("graph")


current = _current.get  # the graph being written


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """The result of a node, or a constant."""

    __hash__ = object.__hash__

    def __init__(self, name: str, shape: Iterable[Any], dtype: Any) -> None:
        self.name = name
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return sys.modules[__name__]

    @property
    def device(self) -> Any:
        """The mark of the graph: arrays cached between calls are cached for each device."""
        return current().device

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def T(self) -> Array:  # noqa: N802
        """The transpose."""
        return matrix_transpose(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        keys = list(key) if isinstance(key, tuple) else [key]
        if isinstance(keys[0], np.ndarray):  # rows with these indices
            rows = take(self, constant(keys[0], int64))
            return rows[(*[slice(None)] * keys[0].ndim, *keys[1:])]
        if Ellipsis not in keys:
            keys.append(Ellipsis)
        at = keys.index(Ellipsis)
        axes = len(keys) - 1 - keys.count(None)
        keys[at : at + 1] = [slice(None)] * (self.ndim - axes)
        cuts = []
        sizes = []
        shape = []
        axis = 0
        for k in keys:
            if k is None:
                shape.append(1)
                continue
            n = self.shape[axis]
            start, stop, step = (k % n, k % n + 1, 1) if isinstance(k, int) else k.indices(n)
            sizes.append(len(range(start, stop, step)))
            shape += [] if isinstance(k, int) else sizes[-1:]
            if (start, stop, step) != (0, n, 1):
                cuts.append((start, stop if stop >= 0 else -n - 1, axis, step))
            axis += 1
        if not cuts:
            return reshape(self, shape)
        bounds = [current().enter(numbers, int64) for numbers in zip(*cuts, strict=True)]
        return reshape(_node("Slice", [self, *bounds], sizes, self.dtype), shape)

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Any, **_: Any) -> Any:
        """Write an operator of Python, or the function of NumPy behind it."""
        if ufunc.__name__ in OPERATORS:
            return _pointwise(OPERATORS[ufunc.__name__], *operands)
        return self.__array_function__(ufunc, (), operands, {})

    def __array_function__(self, function: Any, _: Any, operands: Any, options: Any) -> Any:
        """Write a function of NumPy with this module's function of the same name."""
        return getattr(sys.modules[__name__], function.__name__)(*operands, **options)


class Buffer(Array):
    """An array that is filled step by step along one axis, and read when it is full."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        super().__init__("", shape, dtype)
        self.steps: dict[int, Array] = {}

    def __setitem__(self, key: tuple[Any, ...], value: Array) -> None:
        _, step, *tail = key  # (..., step, :, :)
        axis = self.ndim - 1 - len(tail)
        self.steps[step] = value[(..., None, *tail)]
        if len(self.steps) == self.shape[axis]:
            self.name = concat([self.steps[k] for k in range(self.shape[axis])], axis).name


def _node(
    op_type: str, inputs: Sequence[Any], shape: Sequence[int], dtype: Any, **attributes: Any
) -> Array:
    """Add a node with arrays and names as inputs, and return its result."""
    names = [a.name if isinstance(a, Array) else a for a in inputs]
    return Array(current().node(op_type, names, **attributes)[0], shape, dtype)


def _pointwise(op_type: str, *operands: Any) -> Array:
    """Add a pointwise node, also on plain numbers."""
    numeric = [a.dtype for a in operands if isinstance(a, Array) and a.dtype != bool]
    wide = np.result_type(*numeric) if numeric else np.dtype(bool)
    arrays = [a if isinstance(a, Array) else constant(a, wide) for a in operands]
    arrays = [a if a.dtype == bool else astype(a, wide) for a in arrays]
    dtype = bool if op_type in CONDITIONS else wide
    return _node(op_type, arrays, _broadcast(*(a.shape for a in arrays)), dtype)


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the broadcast shape of shapes; NumPy's function refuses sizes as large as these."""
    sizes = itertools.zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)
    return tuple(next((n for n in some if n != 1), 1) for some in sizes)[::-1]


# Element by element:


exp, log, tanh, sqrt, abs, maximum, minimum, where = (
    functools.partial(_pointwise, op_type)
    for op_type in ("Exp", "Log", "Tanh", "Sqrt", "Abs", "Max", "Min", "Where")
)


def log1p(x: Array) -> Array:
    return log(_pointwise("Add", x, 1))


def expm1(x: Array) -> Array:
    return _pointwise("Sub", exp(x), 1)


def astype(x: Array, dtype: Any, copy: bool = True) -> Array:
    code = library().helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return x if x.dtype == dtype else _node("Cast", [x], x.shape, dtype, to=code)


def clip(x: Array, low: float, high: float) -> Array:
    return minimum(maximum(x, low), high)


def asarray(x: Any, dtype: Any = None, device: Any = None, copy: Any = None) -> Array:
    array = x if isinstance(x, Array) else constant(x)
    return array if dtype is None else astype(array, dtype)


# Shapes:


def reshape(x: Array, shape: Sequence[int]) -> Array:
    """Return x in another shape; an open size keeps its place (0), or follows from others (-1)."""
    left = math.prod(x.shape) // builtins.abs(math.prod(int(n) for n in shape) or 1)
    shape = tuple(left if n == -1 else int(n) for n in shape)
    if shape == x.shape:
        return x
    places = [0 if x.shape[k : k + 1] == (n,) else -1 for k, n in enumerate(shape)]
    numbers = [place if _open_sizes(n) else n for n, place in zip(shape, places, strict=True)]
    sizes = _sizes(shape).name if numbers.count(-1) > 1 else current().enter(numbers, int64)
    return _node("Reshape", [x, sizes], shape, x.dtype)


def _open_sizes(n: int) -> list[str]:
    """Return the names of the open sizes that divide a size."""
    return [name for name, size in OPEN.items() if n and n % size == 0]


def _sizes(shape: Sequence[int]) -> Array:
    """Return the sizes of a shape as an array; open ones come from the values that `OPEN` names."""
    sizes = []
    for n in shape:
        factors = _open_sizes(n)
        size = constant([n // math.prod(OPEN[name] for name in factors)], int64)
        for name in factors:
            size *= open_size(name)
        sizes.append(size)
    return concat(sizes)


def open_size(name: str) -> Array:
    """Return an open size, (1,)."""
    return Array(name, (1,), int64)


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    return _node("Transpose", [x], [x.shape[k] for k in axes], x.dtype, perm=list(axes))


def matrix_transpose(x: Array) -> Array:
    return permute_dims(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])


def concat(arrays: Sequence[Any], axis: int = 0) -> Array:
    arrays = [asarray(a) for a in arrays]
    shape = [*arrays[0].shape]
    axis %= len(shape)
    shape[axis] = builtins.sum(a.shape[axis] for a in arrays)
    return _node("Concat", arrays, shape, arrays[0].dtype, axis=axis)


concatenate = concat  # NumPy's name


def stack(arrays: Sequence[Array]) -> Array:
    return concat([a[None, ...] for a in arrays])


def take(x: Array, indices: Array, axis: int = 0) -> Array:
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return _node("Gather", [x, indices], shape, x.dtype, axis=axis)


# Along axes:


def matmul(a: Any, b: Any) -> Array:
    a = asarray(a)
    b = asarray(b)
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    return _node("MatMul", [a, b], (*batch, a.shape[-2], b.shape[-1]), a.dtype)


def vecdot(a: Any, b: Any) -> Array:
    return sum(a * b, -1)


def _reduced(op_type: str, since: int, x: Array, axis: Any, keepdims: bool = False) -> Array:
    """Add a reduction along axes, which are an input of the node from opset `since` on."""
    axes = [k % x.ndim for k in (axis if isinstance(axis, tuple) else (axis,))]
    shape = [1 if k in axes else n for k, n in enumerate(x.shape) if keepdims or k not in axes]
    if current().opset >= since:
        inputs = [x, current().enter(axes, int64)]
        return _node(op_type, inputs, shape, x.dtype, keepdims=int(keepdims))
    return _node(op_type, [x], shape, x.dtype, keepdims=int(keepdims), axes=axes)


sum, mean, max = (
    functools.partial(_reduced, op_type, since)
    for op_type, since in (("ReduceSum", 13), ("ReduceMean", 18), ("ReduceMax", 18))
)


def count_nonzero(x: Array, axis: int) -> Array:
    return sum(astype(x, float64), axis)


def argmax(x: Array, axis: int) -> Array:
    axis %= x.ndim
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return _node("ArgMax", [x], shape, int64, axis=axis, keepdims=0)


def sort(x: Array, axis: int = -1) -> Array:
    count = current().enter([x.shape[axis]], int64)
    values, _ = current().node("TopK", [x.name, count], 2, axis=axis, largest=0)
    return Array(values, x.shape, x.dtype)


def median(x: Array, axis: int) -> Array:
    n = x.shape[axis]
    return mean(take(sort(x, axis), constant([(n - 1) // 2, n // 2]), axis), axis)


def cumsum(x: Array, axis: int = 0) -> Array:
    return _node("CumSum", [x, constant(axis)], x.shape, x.dtype)


# Over steps:


def scan(
    step: Callable[[list[Array], list[Array]], Sequence[Array]],
    over: Sequence[Array],
    start: Sequence[Array] = (),
    reverse: bool = False,
) -> list[Array]:
    """Write a Scan of `step(rows, states) -> (*states, *results)` over the rows of arrays.

    Return the final states and the results of all steps.
    """
    outer = current()
    body = copy.copy(outer)  # shares everything except the nodes
    body.nodes = []
    n = len(start)
    with body.open():
        before = [Array(body.name(), a.shape, a.dtype) for a in start]
        rows = [Array(body.name(), a.shape[1:], a.dtype) for a in over]
        after = step(rows, before)
    names = outer.node(
        "Scan",
        [a.name for a in (*start, *over)],
        len(after),
        body=body.part([*before, *rows], {body.name(): a for a in after}, "step"),
        num_scan_inputs=len(over),
        scan_input_directions=[int(reverse)] * len(over),
        scan_output_directions=[int(reverse)] * (len(after) - n),
    )
    T = over[0].shape[:1]
    return [
        Array(name, T[: k >= n] + a.shape, a.dtype)
        for k, (name, a) in enumerate(zip(names, after, strict=True))
    ]


# New arrays:


def constant(values: Any, dtype: Any = None) -> Array:
    """Return an array of known numbers."""
    host = np.asarray(values, dtype)
    host = host.astype(object) if host.dtype.kind == "U" else host
    return Array(current().enter(host), host.shape, host.dtype)


def full(shape: Sequence[int], value: float, dtype: Any = float32, device: Any = None) -> Array:
    """Return an array of a shape filled with one number."""
    if not any(map(_open_sizes, shape)):
        return constant(np.full(shape, value, dtype))
    return broadcast_to(constant(value, dtype), shape)


def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    return _node("Expand", [x, _sizes(shape)], shape, x.dtype)


def empty(shape: Sequence[int], dtype: Any = float32, device: Any = None) -> Array:
    return Buffer(shape, dtype)


def full_like(x: Array, value: float, dtype: Any = None, device: Any = None) -> Array:
    return full(x.shape, value, x.dtype if dtype is None else dtype)


zeros, ones = (functools.partial(full, value=value) for value in (0.0, 1.0))
zeros_like, ones_like = (functools.partial(full_like, value=value) for value in (0.0, 1.0))


def arange(*bounds: Any, dtype: Any = None, device: Any = None) -> Array:
    return constant(np.arange(*bounds, dtype=dtype))


def eye(n: int, dtype: Any = float32, device: Any = None) -> Array:
    return constant(np.eye(n, dtype=dtype))


def triu(x: Array) -> Array:
    """Return the upper triangle of a matrix of constants."""
    return constant(np.triu(current().constants[x.name]))
