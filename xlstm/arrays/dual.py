"""Dual numbers as an array library: a value and its tangent go through every function together.

A tangent is the derivative of a value in a direction (forward-mode differentiation; Wengert 1964,
Griewank & Walther 2008, chapter 3). Code that is written against the array API runs on dual numbers
unchanged, and returns its results with their derivatives. At the kink of a function such as
`maximum`, the branch that was taken gives the derivative.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from xlstm.arrays.fuse import SMALL, compiles, fuse, looped
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    deepest,
    depth_of,
    dtype_name,
    is_floating,
    primal,
    root_of,
)
from xlstm.tracing.array_functions import Formula
from xlstm.tracing.symbols import UntraceableError

# The namespaces of the functions being differentiated around the running code, the innermost last.
# The derivative of a derivative has dual numbers whose values and tangents are dual numbers
# themselves.
_running: contextvars.ContextVar[tuple[DualNamespace, ...]] = contextvars.ContextVar(
    "running", default=()
)

Rule = Callable[..., Array]


def _log_or_0(xp: Namespace, a: Array) -> Array:
    return xp.log(xp.where(a > 0, a, xp.ones_like(a)))


# The tangent of a result y from the tangents of all arguments; a constant has the tangent 0.
JOINT: dict[str, Rule] = {
    "add": lambda xp, y, s, t, a, b: s + t,
    "subtract": lambda xp, y, s, t, a, b: s - t,
    "divide": lambda xp, y, s, t, a, b: (s - y * t) / b,
    "maximum": lambda xp, y, s, t, a, b: xp.where(a >= b, s, t),
    "minimum": lambda xp, y, s, t, a, b: xp.where(a <= b, s, t),
    "where": lambda xp, y, _, s, t, condition, a, b: xp.where(condition, s, t),
}
# For each argument, the part of the tangent of y that comes from its tangent t.
PARTIAL: dict[str, tuple[Rule, ...]] = {
    "multiply": (lambda xp, y, t, a, b: t * b, lambda xp, y, t, a, b: a * t),
    "matmul": (lambda xp, y, t, a, b: t @ b, lambda xp, y, t, a, b: a @ t),
    "pow": (
        lambda xp, y, t, a, b: t * (b * a ** (b - 1 + (b == 0))),  # also where a and b are 0
        lambda xp, y, t, a, b: t * (y * _log_or_0(xp, a + xp.zeros_like(y))),
    ),
    "abs": (lambda xp, y, t, x: xp.where(x < 0, -t, t),),
    "cos": (lambda xp, y, t, x: -t * xp.sin(x),),
    "exp": (lambda xp, y, t, x: t * y,),
    "expm1": (lambda xp, y, t, x: t * (y + 1),),
    "log": (lambda xp, y, t, x: t / x,),
    "log1p": (lambda xp, y, t, x: t / (1 + x),),
    "sin": (lambda xp, y, t, x: t * xp.cos(x),),
    "sqrt": (lambda xp, y, t, x: t / (2 * y),),
    "square": (lambda xp, y, t, x: t * (2 * x),),
    "tanh": (lambda xp, y, t, x: t * (1 - y * y),),
}
# Functions of an array, or of a list of arrays, that treat tangents as they treat values.
LINEAR = (
    *("broadcast_to", "concat", "copy", "cumulative_sum", "expand_dims", "flip"),
    *("matrix_transpose", "mean", "moveaxis", "negative", "permute_dims", "positive", "ravel"),
    *("repeat", "reshape", "roll", "squeeze", "stack", "sum", "take", "take_along_axis", "tile"),
    *("tril", "triu"),
)
# Functions whose derivative is 0, or whose results are booleans or places.
CONSTANT = (
    *("all", "allclose", "any", "argmax", "argmin", "argsort", "array_equal", "ceil"),
    *("count_nonzero", "equal", "floor", "full_like", "greater", "greater_equal", "isfinite"),
    *("isinf", "isnan", "less", "less_equal", "logical_and", "logical_not", "logical_or", "ndim"),
    *("nonzero", "not_equal", "ones_like", "result_type", "round", "searchsorted", "shape", "sign"),
    *("size", "trunc"),
)
# Functions that make writable arrays.
ROOM = ("empty", "empty_like", "zeros", "zeros_like")
METHODS = ("astype", "clip", "copy", "max", "mean", "min", "ravel", "squeeze", "sum", "take")
# The array API's names of NumPy's functions.
ALIASES = {
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "concatenate": "concat",
    "cumsum": "cumulative_sum",
    "power": "pow",
    "transpose": "permute_dims",
}
# The functions of operators; symbols of a trace have these, too.
OPERATORS = {
    "add": operator.add,
    "divide": operator.truediv,
    "equal": operator.eq,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "matmul": operator.matmul,
    "multiply": operator.mul,
    "not_equal": operator.ne,
    "pow": operator.pow,
    "subtract": operator.sub,
}


def _operator(name: str, swapped: bool = False) -> Callable[[Dual, Any], Any]:
    def method(self: Dual, other: Any) -> Any:
        xp = self.xp
        # Python never calls the reflected method of a number of the same type
        if isinstance(other, Dual) and other.xp is not xp:
            xp = deepest(xp, other.xp)
        pair = (other, self) if swapped else (self, other)
        return xp.function(name)(*pair)

    return method


def _in_place(name: str) -> Callable[[Dual, Any], Any]:
    operate = _operator(name)

    def method(self: Dual, other: Any) -> Any:
        new = operate(self, other)
        if new.xp is not self.xp:
            raise TypeError(
                "jvp: a number of an outer function is written to, expected a new array"
            )
        if not hasattr(primal(self.value), "__setitem__"):  # a scalar of NumPy
            return new
        self.value[...] = new.value
        self.tangent[...] = new.tangent
        return self

    return method


class Dual:
    """An array and its tangent, which has its shape and dtype."""

    def __init__(self, xp: DualNamespace, value: Array, tangent: Array) -> None:
        if xp.depth > 1:  # dual numbers cannot be written to constants
            value, tangent = (
                a if xp.base.owns(a) else xp.base.asarray(a) for a in (value, tangent)
            )
        else:
            xp.floating(value.dtype)  # raises TypeError for complex numbers
        self.xp = xp
        self.value = value
        self.tangent = tangent

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    device = property(lambda self: self.value.device)
    T = property(lambda self: Dual(self.xp, self.value.T, self.tangent.T))
    mT = property(lambda self: self.xp.matrix_transpose(self))

    __add__ = _operator("add")
    __radd__ = _operator("add", True)
    __sub__ = _operator("subtract")
    __rsub__ = _operator("subtract", True)
    __mul__ = _operator("multiply")
    __rmul__ = _operator("multiply", True)
    __truediv__ = _operator("divide")
    __rtruediv__ = _operator("divide", True)
    __matmul__ = _operator("matmul")
    __rmatmul__ = _operator("matmul", True)
    __pow__ = _operator("pow")
    __rpow__ = _operator("pow", True)
    __lt__ = _operator("less")
    __le__ = _operator("less_equal")
    __gt__ = _operator("greater")
    __ge__ = _operator("greater_equal")
    __eq__ = _operator("equal")
    __ne__ = _operator("not_equal")
    __iadd__ = _in_place("add")
    __isub__ = _in_place("subtract")
    __imul__ = _in_place("multiply")
    __itruediv__ = _in_place("divide")
    __ipow__ = _in_place("pow")
    __hash__ = None  # type: ignore[assignment]

    def __pos__(self) -> Dual:
        return self.xp.positive(self)  # type: ignore[no-any-return]

    __copy__ = __pos__

    def __deepcopy__(self, _: Any) -> Dual:
        return +self

    def __neg__(self) -> Dual:
        return Dual(self.xp, -self.value, -self.tangent)

    def __abs__(self) -> Dual:
        return self.xp.abs(self)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: Any) -> Dual:
        return Dual(self.xp, self.value[key], self.tangent[key])

    def __setitem__(self, key: Any, new: Any) -> None:
        is_dual = self.xp.owns(new)
        self.value[key] = new.value if is_dual else new
        self.tangent[key] = new.tangent if is_dual else 0

    def reshape(self, *shape: Any) -> Dual:
        """Return the array in another shape."""
        sizes = shape[0] if isinstance(shape[0], tuple | list) else shape
        return self.xp.reshape(self, sizes)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        """Return a function of the namespace as a method, if NumPy's arrays have it, too."""
        if name not in METHODS:
            raise AttributeError(f"jvp: a dual number has no attribute {name}")
        return functools.partial(getattr(self.xp, name), self)

    def __float__(self) -> float:
        raise TypeError("jvp: float() of a dual number has no tangent, expected the array itself")

    def __format__(self, form: str) -> str:
        return format(self.value, form)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        """Return the value, marked as a dual number."""
        return f"a dual number of {self.value!r}"

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("jvp: a dual number was made an array of NumPy, which has no tangent")

    def __array_namespace__(self, api_version: str | None = None) -> DualNamespace:
        """Return the namespace of the array, by the array API."""
        return self.xp

    def __array_ufunc__(self, ufunc: Any, method: str, *arrays: Any, **options: Any) -> Any:
        """Run an operator or a function of NumPy with a dual number among its arguments."""
        if method != "__call__" or options:
            raise TypeError(
                f"jvp: {ufunc.__name__} is called with {method} {sorted(options)}, expected its"
                " arguments alone; zeros_like(x) makes an array that can be written to"
            )
        return _function_of_numpy(ufunc, arrays)(*arrays)

    def __array_function__(self, function: Any, _: Any, arguments: Any, options: Any) -> Any:
        """Run another function of NumPy."""
        return _function_of_numpy(function, (arguments, options))(*arguments, **options)


def _function_of_numpy(function: Any, arguments: Any) -> Any:
    """Return the same function of the namespace of the deepest dual number."""
    name = function.__name__
    xp = deepest(*[a.xp for a in _duals_of(arguments)])
    same = getattr(xp, ALIASES.get(name, name), None)
    # a function of another library may have a NumPy name
    if same is None or getattr(np, name, None) is not function:
        _refuse(name)
    return same


def _duals_of(tree: Any) -> list[Dual]:
    """Return the dual numbers among arguments, also those in lists and dicts."""
    if isinstance(tree, dict):
        return _duals_of(list(tree.values()))
    if isinstance(tree, tuple | list):
        return [a for part in tree for a in _duals_of(part)]
    return [tree] if isinstance(tree, Dual) else []


def _refuse(name: str) -> NoReturn:
    raise TypeError(
        f"jvp: {name} has no derivative here, docs/second_derivatives.md lists the functions"
    )


def _ended(name: str) -> NoReturn:
    raise TypeError(
        f"jvp: {name} of a dual number of a call that has returned, expected a number of a call that"
        " runs"
    )


class DualNamespace:
    """The array API on dual numbers; arrays of the namespace below are constants.

    Parameters
    ----------
    base : namespace
        The namespace of values and tangents.

    Attributes
    ----------
    depth : int
        The number of functions being differentiated: the base may be a namespace of dual numbers
        itself.
    function : callable
        `function(name)` returns a function of arguments without deeper dual numbers.
    root : namespace
        The library below all dual numbers.
    """

    of_duals = True  # see `is_of_duals`

    def __init__(self, base: Namespace) -> None:
        self.base = base
        self.function: Callable[[str], Any] = functools.cache(self._function)
        self.floating = functools.cache(self._floating)
        self.root = root_of(base)
        self.depth = depth_of(base) + 1
        self.__name__ = f"dual numbers of {base.__name__}"

    def owns(self, array: Any) -> bool:
        """Tell whether a value is a dual number of this namespace."""
        return isinstance(array, Dual) and array.xp is self

    def _floating(self, dtype: Any) -> bool:
        """Tell whether numbers of a dtype have tangents; complex ones raise TypeError."""
        if dtype_name(dtype).startswith("complex"):
            raise TypeError(f"jvp: numbers are {dtype}, expected real numbers")
        return is_floating(self.base, dtype)

    def value(self, array: Any) -> Any:
        """Return the value of a dual number, or anything else as it is."""
        if isinstance(array, tuple | list):
            return type(array)(map(self.value, array))
        return array.value if self.owns(array) else array

    def tangent(self, array: Any) -> Any:
        """Return the tangent of a dual number, or 0 for a constant."""
        if isinstance(array, tuple | list):
            return type(array)(map(self.tangent, array))
        if type(array) in (int, float, bool):
            return 0
        return array.tangent if self.owns(array) else self.base.zeros_like(array)

    def parts(self, array: Any) -> tuple[Any, ...]:
        """Return the value and the tangent of a dual number, or only a constant."""
        return (array.value, array.tangent) if self.owns(array) else (array,)

    def dual(self, value: Array, tangent: Array) -> Dual:
        """Return a dual number."""
        return Dual(self, value, tangent)

    def product(self, A: Array, B: Array) -> Array:
        """Return A @ B by `matmul` of the library below."""
        times = functools.partial(matmul, self.base)
        rules = lambda _, y, t, a, b: times(t, b), lambda _, y, t, a, b: times(a, t)
        return self.by_parts(times, rules, A, B)

    def looped(
        self,
        function: Formula,
        arrays: tuple[Array, ...],
        sums: int,
        options: dict[str, Any],
    ) -> Any:
        """Run `looped` of `arrays/fuse.py`: a compiled loop, or a kernel, computes values and
        tangents.
        """
        if self.root is np and max([a.size for a in arrays]) < SMALL:
            return None
        pairs = on_pairs(function, tuple(map(self.owns, arrays)))
        parts = [part for a in arrays for part in self.parts(a)]
        if compiles(self.root) and not sums:
            try:
                results = fuse(self.base, pairs, *parts, **options)
            except UntraceableError:  # it takes means along a row
                return None
        else:
            results = looped(self.base, pairs, tuple(parts), 2 * sums, options)
        if results is None:
            return None
        duals = of_pairs(self, results)
        return duals[0] if len(duals) == 1 else tuple(duals)

    def __getattr__(self, name: str) -> Any:
        """Return a function, and keep it as an attribute, or a constant or dtype of the base."""
        if name == "ndarray":  # callers tell NumPy and CuPy from other libraries by it
            raise AttributeError(name)
        constant = self.function(name)
        if not isinstance(constant, functools.partial):
            setattr(self, name, constant)
            return constant

        def of_deepest(*arguments: Any, **options: Any) -> Any:
            xp = self
            if _running.get()[-1:] != (self,):
                xp = deepest(self, *[a.xp for a in _duals_of((arguments, options))])
            return xp.function(name)(*arguments, **options)

        setattr(self, name, of_deepest)
        return of_deepest

    def _function(self, name: str) -> Any:
        """Return a function by name, or a constant or dtype of the base."""
        function = OPERATORS.get(name) or getattr(self.base, name)
        if not callable(function) or isinstance(function, type):
            return function
        if name in JOINT:
            return functools.partial(self._jointly, function, JOINT[name])
        if name in PARTIAL:
            return functools.partial(self.by_parts, function, PARTIAL[name])
        if name in LINEAR:
            return functools.partial(self._linear, function, name)
        if name in ROOM:
            return functools.partial(self._room, function)
        return functools.partial(self._of_values, function, name)

    def _jointly(self, function: Any, rule: Rule, *arguments: Any) -> Any:
        values = [a.value if type(a) is Dual and a.xp is self else a for a in arguments]
        y = function(*values)
        if all(map(operator.is_, arguments, values)):
            return y
        return Dual(self, y, rule(self.base, y, *map(self.tangent, arguments), *values))

    def by_parts(self, function: Any, rules: tuple[Rule, ...], *arguments: Any) -> Any:
        """Return a result whose tangent is the sum of one part for each dual argument."""
        values = [a.value if type(a) is Dual and a.xp is self else a for a in arguments]
        y = function(*values)
        tangent = None
        for rule, a, value in zip(rules, arguments, values, strict=True):
            if a is not value:
                part = rule(self.base, y, a.tangent, *values)
                if tangent is None:
                    tangent = part
                else:
                    tangent += part  # nobody else has the array
        return y if tangent is None else Dual(self, y, tangent)

    def _linear(self, function: Any, name: str, array: Any, *others: Any, **options: Any) -> Any:
        if self._has_duals((others, options)) or not options.keys().isdisjoint(("initial", "out")):
            _refuse(f"{name} with {sorted(options)}")
        value = function(self.value(array), *others, **options)
        if not self._has_duals(array):
            return value
        return Dual(self, value, function(self.tangent(array), *others, **options))

    def _room(self, function: Any, *arguments: Any, **options: Any) -> Any:
        arguments = tuple(map(self.value, arguments))
        value = function(*arguments, **options)
        if not self.floating(value.dtype):
            return value
        return Dual(self, value, function(*arguments, **options))

    def _of_values(self, function: Any, name: str, *arguments: Any, **options: Any) -> Any:
        duals = self._has_duals((arguments, options))
        fill = name == "full_like" and self._has_duals((arguments[1:], options))
        if duals and (name not in CONSTANT or fill):
            _refuse(name)
        return function(*map(self.value, arguments), **options)

    def _has_duals(self, tree: Any) -> bool:
        return any(map(self.owns, _duals_of(tree)))

    def asarray(self, array: Any, **options: Any) -> Any:
        """Return a writable array, with a tangent if it is floating-point."""
        if isinstance(array, tuple | list) and self._has_duals(array):
            _refuse("asarray of a list")
        value = self.base.asarray(self.value(array), **options)
        if not self.floating(value.dtype):
            return value
        if not self.owns(array):
            return Dual(self, value, self.base.zeros_like(value))
        return Dual(self, value, self.base.asarray(array.tangent, **options))

    def astype(self, array: Any, dtype: Any, **options: Any) -> Any:
        """Return an array in another dtype; whole numbers have no tangent."""
        value = self.base.astype(self.value(array), dtype, **options)
        if not self.owns(array) or not self.floating(value.dtype):
            return value
        return Dual(self, value, self.base.astype(array.tangent, dtype, **options))

    def max(self, array: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """Return the largest numbers; for ties the tangent is the mean of their tangents."""
        return self._extreme("max", operator.ge, array, axis, keepdims)

    def min(self, array: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """Return the smallest numbers; for ties the tangent is the mean of their tangents."""
        return self._extreme("min", operator.le, array, axis, keepdims)

    def _extreme(self, name: str, reaches: Any, array: Any, axis: Any, keepdims: bool) -> Any:
        base = self.base
        x = self.value(array)
        of_all = getattr(base, name)
        if not self.owns(array):
            return of_all(x, axis=axis, keepdims=keepdims)
        y = of_all(x, axis=axis, keepdims=True)
        hit = base.astype(reaches(x, y), x.dtype)
        sums = {"axis": axis, "keepdims": keepdims}
        tangent = base.sum(hit * array.tangent, **sums) / base.sum(hit, **sums)
        return Dual(self, y if keepdims else base.reshape(y, tangent.shape), tangent)

    def clip(self, array: Any, min: Any = None, max: Any = None) -> Any:
        """Return numbers limited to these bounds."""
        array = array if min is None else self.maximum(array, min)
        return array if max is None else self.minimum(array, max)


@functools.cache
def on_pairs(function: Callable[..., Any], are_dual: tuple[bool, ...]) -> Any:
    """Turn a function of dual numbers into a function of their values and tangents, side by side.

    The result gives values and tangents side by side, too.
    """

    def pairs(xp: Namespace, *arrays: Array, **options: Any) -> tuple[Array, ...]:
        duals = DualNamespace(xp)
        left = iter(arrays)
        arguments = [
            Dual(duals, a, next(left)) if dual else a
            for dual, a in zip(are_dual, left, strict=False)
        ]
        results = function(duals, *arguments, **options)
        results = results if isinstance(results, tuple) else (results,)
        return tuple([part for a in results for part in (duals.value(a), duals.tangent(a))])

    pairs.__name__ = function.__name__
    return pairs


@contextlib.contextmanager
def deeper(arguments: Any) -> Iterator[Callable[[Namespace], DualNamespace]]:
    """Differentiate one more function in this context.

    Yield a function that returns the namespace of dual numbers over a library. No other call has
    it, so that numbers of two calls never mix. In a new thread only the arguments tell which
    functions are around this one.
    """
    outer = (*_running.get(), *[a.xp for a in _duals_of(arguments)])

    @functools.cache
    def over(root: Namespace) -> DualNamespace:
        own = DualNamespace(deepest(root, *[xp for xp in outer if xp.root is root]))
        _running.set((*_running.get(), own))
        return own

    token = _running.set(outer)
    try:
        yield over
    finally:
        for xp in _running.get()[len(outer) :]:
            xp.function = _ended
        _running.reset(token)


def of_pairs(xp: DualNamespace, results: Sequence[Array]) -> list[Dual]:
    """Return the dual numbers that `on_pairs` computes.

    The tangent of a constant may be one number for a row.
    """
    return [
        Dual(xp, a, t if t.shape == a.shape else t + xp.base.zeros_like(a))
        for a, t in zip(results[::2], results[1::2], strict=True)
    ]
