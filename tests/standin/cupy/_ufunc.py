"""Universal functions, with the loops of CuPy 14."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cupy._array import here, ndarray
from cupy._capture import made, now, run
from cupy._counts import record
from cupy._dtypes import canonical, dtype_of, matching, wide

SIGNED, INTEGERS, REAL, COMPLEX = "b B h H i I l L q Q", "? b B h H i I l L q Q", "e E f d", "F D"


def operand(value: Any) -> tuple[Any, Any, Any]:
    """Return an argument's host values, its dtype, and its type where it is a Python number.

    Raises
    ------
    TypeError
        CuPy takes none such.
    """
    if isinstance(value, ndarray):
        here(value)
        return value._host, value.dtype, None
    if type(value) is bool:
        return value, np.dtype(bool), None
    if type(value) in (int, float, complex):
        return value, np.asarray(value).dtype, type(value)
    if isinstance(value, np.generic):
        return value, value.dtype, None
    raise TypeError(f"Unsupported type {type(value)}")


def same(chars: str, inputs: int) -> list[str]:
    """Loops from so many inputs of a dtype to one output of it."""
    return [f"{c * inputs}->{c}" for c in chars.split()]


def truth(chars: str, inputs: int = 2) -> list[str]:
    """Loops from inputs of a dtype to a boolean; integers of two signs go together."""
    return [f"{c if len(c) == 2 else c * inputs}->?" for c in chars.split()]


class ufunc:  # noqa: N801
    """A function element by element: each call is one kernel."""

    def __init__(self, name: str, types: list[str], function: Callable[..., Any]) -> None:
        self.__name__ = self.name = name
        self.types, self.function = types, function
        self.nin = types[0].index("->")

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None, casting: str = "same_kind") -> Any:
        if not self.nin <= len(args) <= self.nin + 1:
            raise TypeError(f"Wrong number of arguments for {self.name!r}, given {len(args)}")
        if len(args) > self.nin:
            out = args[self.nin]
        if isinstance(out, tuple):
            (out,) = out
        given = [operand(a) for a in args[: self.nin]]
        loops = self.types if dtype is None else [t for t in self.types if dtype_of(t[-1]) == np.dtype(dtype)]
        types = tuple(t for _, t, _ in given)
        found = matching(loops, types if dtype is None else (np.dtype(bool),) * self.nin, tuple(w for *_, w in given))
        if found is None:
            raise TypeError(f"Wrong type ({types}) of arguments for {self.name}")

        def compute() -> Any:
            with np.errstate(all="ignore"):
                values = [_cast(a, dtype_of(c)) for (a, *_), c in zip(given, found[0], strict=True)]
                result = np.asarray(self.function(*map(wide, values))).astype(dtype_of(found[1]), copy=False)
                return canonical(result)

        result = compute()
        if result.size:
            record("launches", self.name)
        if out is None:
            return made(compute, args) if now.capture is not None else ndarray._made(result)
        self._check(result, out, casting)
        values = (lambda: result) if now.capture is None else compute
        run(lambda host=out._host: host.__setitem__(..., values()), [*args, out])
        return out

    def _check(self, result: Any, out: Any, casting: str) -> None:
        """Raise where a result does not fit into its place."""
        if not isinstance(out, ndarray):
            raise TypeError(f"Unsupported type {type(out)}")
        here(out)
        if not np.can_cast(result.dtype, out.dtype, casting):
            raise TypeError(f"output (typecode '{result.dtype}') could not be coerced to '{out.dtype}' ({casting})")
        if np.broadcast_shapes(result.shape, out.shape) != out.shape:
            raise ValueError(f"non-broadcastable output operand with shape {out.shape}, expected {result.shape}")


def _cast(value: Any, dtype: Any) -> Any:
    return value.astype(dtype, copy=False) if isinstance(value, np.ndarray) else np.asarray(value, dtype=dtype)


def _named() -> dict[str, ufunc]:
    """All of them, by their names."""
    floats, numbers = f"{REAL} {COMPLEX}", f"{SIGNED} {REAL} {COMPLEX}"
    every = f"? {numbers}"
    kinds: dict[str, tuple[list[str], str]] = {
        "one of all": (same(every, 1), "negative positive"),
        "one of numbers": (same(numbers, 1), "sign square reciprocal conj conjugate"),
        "one of floats": (
            same(floats, 1),
            "exp exp2 expm1 log log2 log10 log1p sqrt sin cos tan sinh cosh tanh arcsin arccos arctan arcsinh arccosh "
            "arctanh rint",
        ),
        "one of bits": (same(INTEGERS, 1), "invert"),
        "rounding": (same(f"? {SIGNED} {REAL}", 1), "floor ceil trunc"),
        "two of all": (same(every, 2), "add subtract multiply maximum minimum fmax fmin"),
        "two of bits": (same(INTEGERS, 2), "bitwise_and bitwise_or bitwise_xor"),
        "shifts": (same(SIGNED, 2), "left_shift right_shift"),
        "powers": (["??->b", *same(numbers, 2)], "power"),
        "quotients": (["qq->d", "qQ->d", "Qq->d", "QQ->d", *same(floats, 2)], "true_divide"),
        "rests": (same(f"{SIGNED} {REAL}", 2), "floor_divide remainder fmod"),
        "two of floats": (same(floats, 2), "hypot arctan2 copysign nextafter"),
        "real": (same(REAL, 2), "logaddexp"),
        "order": (truth("? q Q qQ Qq e E f d F D"), "less less_equal greater greater_equal"),
        "both": (truth("? q Q qQ Qq e E f d"), "logical_and logical_or"),
        "either": (truth(f"? {SIGNED} e f d"), "logical_xor"),
        "not": (truth(f"? {SIGNED} e f d", 1), "logical_not"),
        "finite": (truth("e E f d F D", 1), "isfinite isinf isnan"),
        "sign": (truth("e E f d", 1), "signbit"),
        "equality": ([*truth("? q Q qQ Qq e E f d F D"), "VV->?"], "equal not_equal"),
        "sizes": ([*same(f"? {SIGNED} {REAL}", 1), "F->f", "D->d"], "absolute"),
    }
    found = {name: ufunc(name, types, getattr(np, name)) for types, names in kinds.values() for name in names.split()}
    found["where"] = ufunc("where", [f"?{c}{c}->{c}" for c in every.split() if c != "E"], np.where)
    found["clip"] = ufunc("clip", same(f"? {SIGNED} e f d", 3), np.clip)
    return found


UFUNCS = _named()
