"""The array class."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
from cupy import _streams as streams
from cupy._capture import made, now, run
from cupy._counts import record
from cupy._dtypes import canonical, check
from cupy.cards import Memory, current

Host = np.ndarray[Any, Any]
NOT_IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


class ndarray:  # noqa: N801
    """An array on a device: `_host` has its values, `_memory` is the allocation that they lie in."""

    __array_priority__ = 100
    __hash__ = None
    __slots__ = ("__weakref__", "_host", "_memory")

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"):
        assert memptr is None, "the stand-in has no arrays of foreign memory"
        self._host = np.empty(shape, check(dtype), order=order)
        _spoil(self._host)
        self._own()

    @classmethod
    def _made(cls, host: Any) -> ndarray:
        """A new array with values that were computed."""
        made = cls.__new__(cls)
        made._host = host if isinstance(host, np.ndarray) else np.asarray(host)
        made._own()
        return made

    def _own(self) -> None:
        record("allocations", "")
        allocator = cupy.cuda.get_allocator()
        held = None if allocator == cupy.cuda._memory.default else allocator(self._host.nbytes)
        self._memory = Memory(self._host.nbytes, streams.asked(), held, self._host.ctypes.data)
        if now.capture is not None:
            now.capture.allocated(self)

    @classmethod
    def _foreign(cls, host: Host, owner: Any, number: int) -> ndarray:
        """An array in the memory of another library."""
        found = cls.__new__(cls)
        found._host, found._memory = host, Memory(0, (0, 0), owner, number=number)
        return found

    def _view(self, host: Any) -> ndarray:
        """An array of the same memory."""
        seen = ndarray.__new__(ndarray)
        seen._host, seen._memory = host if isinstance(host, np.ndarray) else np.asarray(host), self._memory
        return seen

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    strides = property(lambda self: self._host.strides)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    T = property(lambda self: self._view(self._host.T))
    mT = property(lambda self: self._view(self._host.mT))
    device = property(lambda self: cupy.cuda.Device(self._memory.number))

    @property
    def data(self) -> Any:
        ordered(self)
        return SimpleNamespace(ptr=self._host.ctypes.data, device_id=self._memory.number)

    @property
    def flags(self) -> Any:
        flags = self._host.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    # From the device to the host: the host waits.

    def _fetch(self) -> Host:
        ordered(self)
        record("to_host", f"{self.shape} {self.dtype}")
        cupy.cuda.get_current_stream().synchronize()
        return self._host.copy()

    def get(self) -> Host:
        return self._fetch()

    def item(self) -> Any:
        return self._fetch().item()

    def tolist(self) -> Any:
        return self._fetch().tolist()

    def __float__(self) -> float:
        return float(self._fetch())

    def __int__(self) -> int:
        return int(self._fetch())

    def __index__(self) -> int:
        return operator.index(self._fetch()[()])

    def __bool__(self) -> bool:
        return bool(self._fetch())

    def __repr__(self) -> str:
        return repr(self._fetch())

    def __str__(self) -> str:
        return str(self._fetch())

    def __format__(self, form: str) -> str:
        return format(self._fetch()[()], form)

    def __array__(self, *args: Any, **options: Any) -> Host:
        raise TypeError(NOT_IMPLICIT)

    def __reduce__(self) -> Any:
        return cupy.array, (self._fetch(),)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.number

    def __dlpack__(self, **options: Any) -> Any:
        return self._host.__dlpack__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        host = self._host
        strides = None if host.flags.c_contiguous else host.strides
        stream = cupy.cuda.get_current_stream().ptr or 1
        described = {"shape": host.shape, "typestr": host.dtype.str, "strides": strides, "stream": stream}
        return {**described, "data": (host.ctypes.data, False), "version": 3}

    # CuPy's function of the same name takes a call of NumPy's.

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        found = getattr(cupy, ufunc.__name__, None)
        return NotImplemented if found is None or method != "__call__" else found(*inputs, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        found = getattr(cupy, function.__name__, None)
        return NotImplemented if found is None else found(*args, **options)

    # Views and copies.

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[k] for k in range(len(self._host)))

    def __getitem__(self, key: Any) -> ndarray:
        index, fancy = _index(key)
        if not fancy:
            return self._view(self._host[(*index, ...)] if ... not in index else self._host[index])
        if fancy == "mask":
            record("waits", "")
        record("launches", "take")
        return made(lambda host=self._host: np.array(host[index]), [self, *_arrays(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        index, fancy = _index(key)
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        given = cupy._ufunc.operand(value)
        target = self._host[index if fancy or ... in index else (*index, ...)]
        if target.size == 0:
            return
        if isinstance(value, ndarray) and not fancy and _same(target, value._host):
            return
        record("launches", "copy" if isinstance(value, ndarray) else "fill")
        run(lambda host=self._host: host.__setitem__(index, given[0]), [self, value, *_arrays(key)])

    def copy(self, order: str = "C") -> ndarray:
        record("launches", "copy")
        return made(lambda host=self._host: host.copy(order=order), [self])

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def astype(self, dtype: Any, order: str = "K", casting: str = "unsafe", subok: Any = None, copy: bool = True):
        dtype = check(dtype)
        if dtype == self.dtype and not copy:
            return self
        record("launches", f"astype {self.dtype} {dtype}")
        with np.errstate(all="ignore"):
            return made(lambda host=self._host: canonical(host.astype(dtype, order=order)), [self])

    def view(self, dtype: Any = None) -> ndarray:
        return self._view(self._host.view() if dtype is None else self._host.view(check(dtype)))

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return cupy.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._host.transpose(*axes))

    def squeeze(self, axis: Any = None) -> ndarray:
        return self._view(self._host.squeeze(axis))

    def ravel(self) -> ndarray:
        return cupy.reshape(self, (-1,))

    def flatten(self) -> ndarray:
        return self.copy().reshape((-1,))

    def take(self, indices: Any, axis: Any = None) -> ndarray:
        return cupy.take(self, indices, axis)

    def fill(self, value: Any) -> None:
        self[...] = value

    def __matmul__(self, other: Any) -> ndarray:
        return cupy.matmul(self, other)


def _index(key: Any) -> tuple[tuple[Any, ...], str]:
    """Return a key as NumPy takes it, and whether it has "arrays", or a "mask", or neither."""
    found, fancy = [], ""
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, list | np.ndarray):
            k = cupy.asarray(np.asarray(k))
        if isinstance(k, ndarray):
            fancy = "mask" if k.dtype.kind == "b" or fancy == "mask" else "arrays"
            k = k._host
        found.append(k)
    return tuple(found), fancy


def _arrays(key: Any) -> list[ndarray]:
    """Return the arrays of a key."""
    return [k for k in (key if isinstance(key, tuple) else (key,)) if isinstance(k, ndarray)]


def _same(a: Host, b: Host) -> bool:
    """Whether two arrays are the same place."""
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.strides == b.strides and a.dtype == b.dtype


def _spoil(host: Host) -> None:
    """Fill memory that nobody has written with what shows when it is read."""
    host.fill(np.nan if host.dtype.kind in "fcV" else 77 if host.dtype.kind in "iu" else True)
    canonical(host)


def _operator(name: str, ufunc: str, arity: int = 2) -> None:
    """Give the class an operator, and what it is from the right and in place."""

    def known(other: Any) -> bool:
        return isinstance(other, ndarray | np.ndarray | np.generic | int | float | complex)

    def forward(self: ndarray, other: Any) -> Any:
        return getattr(cupy, ufunc)(self, other) if known(other) else NotImplemented

    def backward(self: ndarray, other: Any) -> Any:
        return getattr(cupy, ufunc)(other, self) if known(other) else NotImplemented

    def in_place(self: ndarray, other: Any) -> Any:
        return getattr(cupy, ufunc)(self, other, out=self)

    def alone(self: ndarray) -> Any:
        return getattr(cupy, ufunc)(self)

    methods: dict[str, Callable[..., Any]] = {"": forward, "r": backward, "i": in_place} if arity == 2 else {"": alone}
    for prefix, method in methods.items():
        setattr(ndarray, f"__{prefix}{name}__", method)


for _name, _ufunc in {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide"},
    **{"mod": "remainder", "pow": "power", "lshift": "left_shift", "rshift": "right_shift"},
    **{"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"},
    **{"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"},
}.items():
    _operator(_name, _ufunc)
for _name, _ufunc in {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}.items():
    _operator(_name, _ufunc, 1)


def _reduction(name: str) -> None:
    def method(self: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        options = {} if dtype is None else {"dtype": dtype}
        return getattr(cupy, name)(self, axis=axis, keepdims=keepdims, **options)

    setattr(ndarray, name, method)


for _name in ("sum", "prod", "mean", "max", "min", "any", "all", "argmax", "argmin"):
    _reduction(_name)


def ordered(a: ndarray) -> None:
    """Count an array that another stream filled, if nothing makes the current one wait for that."""
    if not streams.in_order(*a._memory.filled):
        record("unordered", f"{a.shape} {a.dtype}")


def here(a: ndarray) -> None:
    """Raise ValueError unless an array is on the current device: the two of the stand-in cannot see each other."""
    ordered(a)
    if a._memory.number != current.number:
        raise ValueError(
            f"Array device must be same as the current device: array device = {a._memory.number} "
            f"while current = {current.number}"
        )
