"""An array API namespace whose arrays stand for numbers of a C program and record each operation.

A layer that runs on these arrays records every operation of one step, so this file needs no
formulas. Parameters stay NumPy arrays, and NumPy computes once whatever depends on them alone. All
shapes are known. All numbers except tokens are float32.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.interop.c import source_lines
from xlstm.interop.common import Host

# operations by the names of NumPy's functions
OPERATORS = {
    "add": "add",
    "multiply": "multiply",
    "subtract": "subtract",
    "divide": "divide",
    "negative": "negative",
    "less": "less",
    "less_equal": "less_equal",
    "bitwise_and": "and",
    "absolute": "abs",
}
SWAPPED = {"greater": "less", "greater_equal": "less_equal"}
CONDITIONS = ("less", "less_equal", "and")

float32 = np.dtype(np.float32)
float64 = float32  # the program computes only in float32
int64 = np.dtype(np.int64)
finfo = np.finfo


class Node:
    """Numbers that arrays are views of: an input, constants, or the results of an operation.

    Attributes
    ----------
    op : str
        "input", "constant", "row" of a table, "join" of arrays, "product", "sum", "max", or a
        pointwise operation as in `tracing.symbols`.
    shape : tuple of int
    args : tuple of Array
    values : NumPy array or None
        The values of constants.
    name : str
        The name of an input or a constant, or of the variable in the formula; "" if there is none.
    line : tuple of (str, int)
        The file and the line number of the formula.
    comment : str
        The file of the formula and the equation numbers.
    parts : dict of (int, int) to str
        Names of parts, by their first place and size.
    section : str
        The part of the model that the node belongs to, as in names of parameters.
    number : int
        A number that grows in the order of creation.
    """

    counter = itertools.count()

    def __init__(
        self,
        op: str,
        shape: Sequence[int],
        args: Sequence[Array] = (),
        values: Host | None = None,
        name: str = "",
    ) -> None:
        self.op = op
        self.shape = tuple(int(n) for n in shape)
        self.args = tuple(args)
        self.values = values
        self.number = next(Node.counter)
        self.parts: dict[tuple[int, int], str] = {}
        if op in ("input", "constant"):
            self.name, self.line, self.comment = name, ("", self.number), ""
            self.section = name.rpartition(".")[0] if op == "constant" else ""
            return
        self.name, self.line, self.comment = source_lines.of_formula()
        below = sorted((a.node for a in args), key=lambda node: node.number)
        named = [node for node in below if node.op == "constant" and node.section]
        computed = [node for node in below if node.op != "constant"]
        self.section = (named or computed)[-1].section

    @property
    def size(self) -> int:
        """The number of numbers."""
        return math.prod(self.shape)

    def array(self, dtype: Any = float32) -> Array:
        """Return the whole node as an array, in its shape."""
        return Array(self, np.arange(self.size, dtype=np.int32).reshape(self.shape), dtype)


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """A view of a node, stored as the place of each number, which NumPy slices and transposes."""

    __hash__ = object.__hash__

    def __init__(self, node: Node, places: Host, dtype: Any = float32) -> None:
        self.node = node
        self.places = places
        self.dtype = np.dtype(dtype)

    device = "C"
    shape = property(lambda self: self.places.shape)
    ndim = property(lambda self: self.places.ndim)
    size = property(lambda self: self.places.size)
    T = property(lambda self: self._view(self.places.T))

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return sys.modules[__name__]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Any) -> Array:
        view = self._view(self.places[key])
        name = source_lines.of_part(len(self.node.parts))
        if name and view.size:
            self.node.parts.setdefault((int(view.places.min()), view.size), name)
        return view

    def reshape(self, *shape: Any) -> Array:
        """Return the array in another shape."""
        return self._view(self.places.reshape(*shape))

    def _view(self, places: Host) -> Array:
        return Array(self.node, places, self.dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Any, **options: Any) -> Any:
        """Record an operator of Python, or the function of NumPy behind it."""
        (out,) = options.get("out", (None,))
        if isinstance(out, Array) and out.size < out.node.size:
            raise NotWrittenError(
                "to_c: the formula changes a part of an array, expected a new array"
            )
        name = ufunc.__name__
        if name in SWAPPED:
            return _pointwise(SWAPPED[name], *operands[::-1])
        if name in OPERATORS:
            return _pointwise(OPERATORS[name], *operands)
        return self.__array_function__(ufunc, (), operands, {})

    def __array_function__(self, function: Any, _: Any, operands: Any, options: Any) -> Any:
        """Record a function of NumPy with this module's function of the same name."""
        return getattr(sys.modules[__name__], function.__name__)(*operands, **options)


class NotWrittenError(AttributeError, ValueError):
    """An error: a formula uses a function of arrays that has no form in C."""


def __getattr__(name: str) -> Any:
    """Raise NotWrittenError for a function that this module lacks."""
    if name.startswith("__"):
        raise AttributeError(name)
    raise NotWrittenError(
        f"to_c: the formula uses {name}, a function of arrays that is not written as C"
    )


class Weight(np.ndarray[Any, Any]):
    """A parameter, or a value that NumPy computed from parameters; all its views belong to one
    node.
    """

    name = ""
    node: Node | None = None

    def __array_finalize__(self, other: Any) -> None:
        self.name = getattr(other, "name", "")

    @classmethod
    def of(cls, name: str, values: Any) -> Weight:
        """Return a parameter as float32."""
        weight = np.array(values, float32, order="C").view(cls)
        weight.name = name
        return weight


def noted(x: Any) -> Array:
    """Return an array, or known numbers, as an array of this module."""
    if isinstance(x, Array):
        return x
    if not isinstance(x, Weight) or x.dtype != float32:
        x = Weight.of(getattr(x, "name", ""), x)
    root = x
    while isinstance(root.base, Weight):
        root = root.base
    if root.node is None:
        if not root.flags.c_contiguous:
            return noted(Weight.of(x.name, x))
        root.node = Node(
            "constant", root.shape, values=np.asarray(root), name=root.name or "constant"
        )
    whole: Array = root.node.array()
    if x is root:
        return whole
    first = (x.__array_interface__["data"][0] - root.__array_interface__["data"][0]) // x.itemsize
    # places have the width of float32, so that strides are equal
    rest = whole.places.reshape(-1)[first:]
    return Array(root.node, np.lib.stride_tricks.as_strided(rest, x.shape, x.strides))


def _pointwise(op: str, *operands: Any) -> Any:
    """Record a pointwise operation; known numbers become constants."""
    arrays = [noted(a) for a in operands]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    parts = [a._view(np.broadcast_to(a.places, shape)) for a in arrays]
    return Node(op, shape, parts).array(bool if op in CONDITIONS else float32)


def _or_numpy(name: str, symbolic: Any) -> Any:
    """Return a function by name: NumPy's if all arrays are known, otherwise the symbolic one."""

    @functools.wraps(getattr(np, name, symbolic))
    def function(*operands: Any, **options: Any) -> Any:
        listed = operands[0] if isinstance(operands[0], list | tuple) else operands
        if any(isinstance(a, Array) for a in listed):
            return symbolic(*operands, **options)
        return getattr(np, name)(*operands, **options)

    return function


# Element by element:

exp, expm1, log, log1p, tanh, sqrt, abs, maximum, minimum, where = (
    _or_numpy(name, functools.partial(_pointwise, name))
    for name in (
        "exp", "expm1", "log", "log1p", "tanh", "sqrt", "abs", "maximum", "minimum", "where",
    )
)  # fmt: skip


def astype(x: Any, dtype: Any, copy: bool = True) -> Any:
    """Return conditions as 1 and 0; all other numbers keep the only dtype."""
    if not isinstance(x, Array):
        return x.astype(float32)
    return where(x, 1.0, 0.0) if x.dtype == bool and dtype == float32 else x


def asarray(x: Any, dtype: Any = None, device: Any = None, copy: Any = None) -> Any:
    return x


def isdtype(dtype: Any, kind: Any) -> bool:
    return bool(np.dtype(dtype).kind == {"integral": "i", "real floating": "f"}[kind])


# Shapes:


def reshape(x: Any, shape: Sequence[int]) -> Any:
    return x.reshape(shape)


def permute_dims(x: Any, axes: Sequence[int]) -> Any:
    return x._view(x.places.transpose(axes)) if isinstance(x, Array) else x.transpose(axes)


def matrix_transpose(x: Any) -> Any:
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def eye(n: int, dtype: Any = None, device: Any = None) -> Any:
    return np.eye(n, dtype=float32)


def broadcast_to(x: Any, shape: Sequence[int]) -> Array:
    a = noted(x)
    return a._view(np.broadcast_to(a.places, shape))


def _concat(arrays: Sequence[Any], axis: int = 0) -> Array:
    parts = [noted(a) for a in arrays if a.size]
    sizes = np.cumsum([0, *(a.size for a in parts)])
    numbered = [np.arange(a.size).reshape(a.shape) + n for a, n in zip(parts, sizes, strict=False)]
    order = np.concatenate(numbered, axis).astype(np.int32)
    node = Node("join", (sizes[-1],), parts)  # the parts, concatenated
    return Array(node, order)


def _stack(arrays: Sequence[Any], axis: int = 0) -> Array:
    parts = [noted(a) for a in arrays]
    return _concat([a._view(np.expand_dims(a.places, axis)) for a in parts], axis)


concat, stack = (_or_numpy(name, f) for name, f in (("concatenate", _concat), ("stack", _stack)))
concatenate = concat


def _take(x: Any, indices: Any, axis: int = 0) -> Array:
    if not isinstance(indices, Array):
        return x._view(np.take(x.places, indices, axis))  # type: ignore[no-any-return]
    table = noted(x)
    row = Node("row", (indices.size, *table.shape[1:]), (table, indices)).array()
    return row.reshape(*indices.shape, *table.shape[1:])


take = _or_numpy("take", _take)


# Along axes:


def _matmul(a: Any, b: Any) -> Array:
    a = noted(a)
    b = noted(b)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = broadcast_to(a, (*batch, *a.shape[-2:]))
    b = broadcast_to(b, (*batch, *b.shape[-2:]))
    shape = (*batch, a.shape[-2], b.shape[-1])
    if shape[-1] == 1:
        return Node("product", shape, (a, b[..., 0])).array()
    b = broadcast_to(matrix_transpose(b)[..., None, :, :], (*shape, a.shape[-1]))
    return Node("product", shape, (b, a)).array()


matmul = _or_numpy("matmul", _matmul)


def _reduced(op: str, x: Array, axis: Any, keepdims: bool = False) -> Array:
    axes = {k % x.ndim for k in (axis if isinstance(axis, tuple) else (axis,))}
    others = [k for k in range(x.ndim) if k not in axes]
    moved = permute_dims(x, (*others, *sorted(axes)))
    outer = tuple(x.shape[k] for k in others)
    node = Node(op, outer, (moved.reshape(*outer, -1),))
    shape = tuple(1 if k in axes else n for k, n in enumerate(x.shape) if keepdims or k not in axes)
    return node.array().reshape(shape)


sum, max = (_or_numpy(op, functools.partial(_reduced, op)) for op in ("sum", "max"))


def mean(x: Any, axis: Any, keepdims: bool = False) -> Any:
    total = sum(x, axis=axis, keepdims=keepdims)
    return total / (math.prod(x.shape) / math.prod(total.shape))


def argmax(x: Any, axis: int) -> Any:
    """Return zeros: a function of the program finds the largest number."""
    return np.zeros(x.shape[:-1], int)


# New arrays:


def full(shape: Sequence[int], value: float, dtype: Any = None, device: Any = None) -> Any:
    return np.full(shape, value, float32)


def full_like(x: Any, value: float, dtype: Any = None) -> Any:
    return np.full(x.shape, value, float32)


zeros, ones = (functools.partial(full, value=value) for value in (0.0, 1.0))
zeros_like, ones_like = (functools.partial(full_like, value=value) for value in (0.0, 1.0))
