"""Functions of the namespace: arrays made, seen otherwise, moved, and reduced."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
from cupy import _streams
from cupy._array import here, ndarray
from cupy._capture import guard, made, run
from cupy._counts import record
from cupy._dtypes import canonical, check, wide
from cupy._ufunc import UFUNCS
from cupy.cards import device_of

SINGLE_KERNEL = 8  # more arrays than these are put together by one kernel, which is sent their addresses

NAMED: dict[str, Callable[..., Any]] = {}  # functions that are made from their names, which Python's own may have

# Arrays that are made.


def array(obj: Any, dtype: Any = None, copy: Any = True, order: str = "K", ndmin: int = 0, **options: Any) -> ndarray:
    if isinstance(obj, ndarray):
        return obj.astype(obj.dtype if dtype is None else dtype, order=order or "K", copy=bool(copy))
    if hasattr(obj, "__cuda_array_interface__"):
        found = _described(obj)
        return array(found, dtype, copy or found._memory.number != cupy.cards.current.number, order)
    if isinstance(obj, list | tuple) and any(isinstance(o, ndarray) for o in obj):
        found = stack([o if isinstance(o, ndarray) else array(o) for o in obj])
        return found if dtype is None else found.astype(dtype, copy=False)
    host = np.array(obj, dtype=dtype, order="F" if order == "F" else "C", ndmin=ndmin)
    check(host.dtype)
    if host.ndim == 0:
        record("launches", "fill")
    elif host.size:
        record("to_device", f"{host.shape} {host.dtype}")
    return made(lambda: host.copy(order="K"), [])


def _described(owner: Any) -> ndarray:
    """The array that another library describes, without a copy."""
    found = owner.__cuda_array_interface__
    if found.get("mask") is not None:
        raise ValueError("CuPy currently does not support masked arrays.")
    if found.get("stream") is not None:
        _streams.wait_for(found["stream"])
    shown = {key: found.get(key) for key in ("shape", "typestr", "strides")} | {"data": found["data"], "version": 3}
    return ndarray._foreign(np.asarray(SimpleNamespace(__array_interface__=shown)), owner, device_of(found["data"][0]))


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    kind, number = array.__dlpack_device__()
    if kind not in (2, 13):
        raise TypeError("CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))`.")
    with cupy.cuda.Device(number):
        capsule = array.__dlpack__(stream=cupy.cuda.get_current_stream().ptr or 1)
    on_host = SimpleNamespace(__dlpack__=lambda **options: capsule, __dlpack_device__=lambda: (1, 0))
    return ndarray._foreign(np.from_dlpack(on_host), array, number)


def asarray(a: Any, dtype: Any = None, order: Any = None, **options: Any) -> ndarray:
    return array(a, dtype, copy=None, order=order)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous and a.ndim else a.copy()


def empty(shape: Any, dtype: Any = float, order: str = "C", **options: Any) -> ndarray:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, **options: Any) -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.asarray(fill_value).dtype
    found = empty(shape, dtype)
    found.fill(fill_value)
    return found


def zeros(shape: Any, dtype: Any = float, order: str = "C", **options: Any) -> ndarray:
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float, **options: Any) -> ndarray:
    return full(shape, 1, dtype)


def empty_like(a: Any, dtype: Any = None, **options: Any) -> ndarray:
    found = ndarray._made(np.empty_like(a._host, dtype=a.dtype if dtype is None else check(dtype)))
    found._host.fill(77)
    return found


def full_like(a: Any, fill_value: Any, dtype: Any = None, **options: Any) -> ndarray:
    found = empty_like(a, dtype)
    found.fill(fill_value)
    return found


def zeros_like(a: Any, dtype: Any = None, **options: Any) -> ndarray:
    return full_like(a, 0, dtype)


def ones_like(a: Any, dtype: Any = None, **options: Any) -> ndarray:
    return full_like(a, 1, dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    record("launches", "arange")
    return made(lambda: np.arange(*((start,) if stop is None else (start, stop, step)), dtype=dtype), [])


def linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None, **options: Any) -> ndarray:
    record("launches", "linspace")
    return made(lambda: np.linspace(start, stop, num, endpoint, dtype=dtype), [])


def eye(N: int, M: Any = None, k: int = 0, dtype: Any = float, **options: Any) -> ndarray:
    record("launches", "fill")
    record("launches", "diagonal")
    return made(lambda: np.eye(N, M, k, dtype=check(dtype)), [])


def tril(m: Any, k: int = 0) -> ndarray:
    record("launches", "tri")
    return where(made(lambda: np.tri(*m.shape[-2:], k=k, dtype=bool), []), m, m.dtype.type(0))


def triu(m: Any, k: int = 0) -> ndarray:
    record("launches", "tri")
    return where(made(lambda: np.tri(*m.shape[-2:], k=k - 1, dtype=bool), []), m.dtype.type(0), m)


# Arrays that are seen otherwise.


def reshape(a: Any, shape: Any, order: str = "C", *, copy: Any = None) -> ndarray:
    try:
        return a._view(np.reshape(a._host, shape, copy=False))
    except ValueError:
        record("launches", "copy to reshape")
        return made(lambda host=a._host: np.array(np.reshape(host, shape)), [a])


def _seen(name: str) -> Callable[..., Any]:
    """A function of NumPy that gives a view."""

    def function(a: Any, *args: Any, **options: Any) -> ndarray:
        return a._view(getattr(np, name)(a._host, *args, **options))

    function.__name__ = name
    return function


VIEWS = "transpose swapaxes moveaxis rollaxis expand_dims squeeze broadcast_to flip diagonal matrix_transpose"
NAMED.update({name: _seen(name) for name in VIEWS.split()})


def ravel(a: Any) -> ndarray:
    return reshape(a, (-1,))


def broadcast_arrays(*arrays: Any) -> list[ndarray]:
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    return [a._view(np.broadcast_to(a._host, shape)) for a in arrays]


# Arrays that are moved.


def copyto(dst: Any, src: Any) -> None:
    dst[...] = src


def where(condition: Any, x: Any, y: Any) -> ndarray:
    return UFUNCS["where"](condition.astype("?", copy=False), x, y)


def clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None) -> ndarray:
    if a_min is None or a_max is None:
        return UFUNCS["minimum"](a, a_max, out=out) if a_min is None else UFUNCS["maximum"](a, a_min, out=out)
    return UFUNCS["clip"](a, a_min, a_max, out=out)


def concatenate(tup: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    arrays = list(tup)
    if not all(isinstance(a, ndarray) for a in arrays):
        raise TypeError("Only cupy arrays can be concatenated")
    if axis is None:
        arrays, axis = [ravel(a) for a in arrays], 0
    for a in arrays:
        here(a)
    if len(arrays) > SINGLE_KERNEL and len({a.dtype for a in arrays}) == 1:
        alike = all(a.flags.c_contiguous and a.shape == arrays[0].shape for a in arrays)
        for what in ("addresses",) if alike else ("addresses", "sizes", "strides"):
            record("to_device", what)
        record("launches", "concatenate")
    else:
        for a in arrays:
            if a.size:
                record("launches", "copy to concatenate")
    hosts = [a._host for a in arrays]
    return made(lambda: np.concatenate(hosts, axis=axis, dtype=dtype), arrays)


def stack(tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    return concatenate([a._view(np.expand_dims(a._host, axis)) for a in tup], axis, dtype=dtype)


def take(a: Any, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    if not isinstance(indices, ndarray):
        indices = array(np.asarray(indices, dtype=np.int64))
    here(indices)
    record("launches", "take")
    # An index beyond the end wraps round on the device.
    host, places = a._host, indices._host
    return made(lambda: np.take(host, places, axis, mode="wrap"), [a, indices])


def _one_kernel(name: str, launches: int = 1) -> Callable[..., Any]:
    """A function of NumPy that takes so many kernels."""

    def function(a: Any, *args: Any, **options: Any) -> ndarray:
        for _ in range(launches):
            record("launches", name)
        given = [x._host if isinstance(x, ndarray) else x for x in (a, *args)]
        return made(lambda: canonical(np.array(getattr(np, name)(*given, **options))), [a, *args])

    function.__name__ = name
    return function


KERNELS = "round sort argsort cumsum cumprod roll repeat tile take_along_axis searchsorted trace"
NAMED.update({name: _one_kernel(name) for name in KERNELS.split()})


def array_equal(a: Any, b: Any) -> ndarray:
    return (a == b).all() if a.shape == b.shape else array(False)


def nonzero(a: Any) -> tuple[ndarray, ...]:
    record("launches", "nonzero")
    record("waits", "")  # for their number
    return tuple(ndarray._made(k) for k in np.nonzero(a._host))


# Arrays that are reduced.


def _reduction(name: str) -> Callable[..., Any]:
    reduce = getattr(np, name)

    def function(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        if not isinstance(a, ndarray):
            raise TypeError(f"Unsupported type {type(a)}")
        here(a)
        host, options = a._host, {} if dtype is None else {"dtype": check(dtype)}
        own = host.dtype if name in ("max", "min", "sum", "prod", "mean") and host.dtype.itemsize == 2 else None

        def compute() -> Any:
            with np.errstate(all="ignore"):
                found = np.array(reduce(wide(host), axis=axis, keepdims=keepdims, **options))
                return canonical(found.astype(own) if own is not None and own.kind in "fV" and dtype is None else found)

        record("launches", name)
        found = made(compute, [a])
        if out is None:
            return found
        out[...] = found
        return out

    function.__name__ = name
    return function


REDUCTIONS = "sum prod mean max min any all"
NAMED.update({name: _reduction(name) for name in REDUCTIONS.split()})


def _place(name: str) -> Callable[..., Any]:
    def function(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        record("launches", name)
        return made(lambda host=a._host: np.array(getattr(np, name)(host, axis=axis, keepdims=keepdims)), [a])

    function.__name__ = name
    return function


NAMED.update({name: _place(name) for name in ("argmax", "argmin")})


def count_nonzero(a: Any, axis: Any = None) -> ndarray:
    record("launches", "count_nonzero")
    return made(lambda host=a._host: np.array(np.count_nonzero(host, axis)), [a])


def var(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> ndarray:
    record("launches", "mean")
    record("launches", "var")

    def compute(host: Any = a._host) -> Any:
        return canonical(np.array(np.var(wide(host), axis=axis, ddof=ddof, keepdims=keepdims)).astype(host.dtype))

    return made(compute, [a])


def std(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> ndarray:
    return UFUNCS["sqrt"](var(a, axis, dtype, out, ddof, keepdims))


# Products.


def _ready(a: ndarray) -> ndarray:
    """Return a matrix as cuBLAS takes it from CuPy, which copies all but whole matrices by rows or columns."""
    flags = a.flags
    return a if flags.f_contiguous or flags.c_contiguous else a.copy()


def matmul(a: Any, b: Any, out: Any = None) -> ndarray:
    for one in (a, b):
        if not isinstance(one, ndarray):
            raise TypeError(f"Unsupported type {type(one)}")
        here(one)
    if not a.ndim or not b.ndim:
        raise ValueError("Scalar operands are not allowed, use '*' instead")
    dtype = np.promote_types(a.dtype, b.dtype)
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    if max(a.ndim, b.ndim) <= 2:
        return _product(a, b, dtype, out)
    return _batch(a, b, dtype, out)


def _product(a: ndarray, b: ndarray, dtype: Any, out: Any) -> ndarray:
    if not a.size or not b.size:
        record("launches", "fill")
    elif math.prod((a.shape[:-1] or (1,)) + b.shape[1:]) == 1:
        record("launches", "multiply")
        record("launches", "sum")
    else:
        for one in (a, b):
            if one.ndim == 2:
                _ready(one)
        if dtype.kind in "fcV":
            guard()
        record("products" if dtype.kind in "fcV" else "launches", f"{a.shape} @ {b.shape}")
    return _multiplied(a, b, dtype, out)


def _batch(a: ndarray, b: ndarray, dtype: Any, out: Any) -> ndarray:
    for one in (a, b):
        if not one.flags.c_contiguous:
            one.copy()
    outer = a.shape[:-2], b.shape[:-2]
    broadcast = np.broadcast_shapes(*outer)
    if outer[0] != outer[1] and math.prod(broadcast):
        for _ in range(3 * len(broadcast)):
            record("launches", "addresses of matrices")
    if a.size and b.size:
        guard()
    record("products" if a.size and b.size else "launches", f"{a.shape} @ {b.shape}")
    return _multiplied(a, b, dtype, out)


def _multiplied(a: ndarray, b: ndarray, dtype: Any, out: Any) -> ndarray:
    first, second = a._host, b._host

    def compute() -> Any:
        return canonical(np.asarray(wide(first) @ wide(second)).astype(dtype))

    if out is None:
        return made(compute, [a, b])
    run(lambda host=out._host: host.__setitem__(..., compute()), [a, b, out])
    return out


def dot(a: Any, b: Any, out: Any = None) -> ndarray:
    return matmul(a, b, out)


def tensordot(a: Any, b: Any, axes: Any = 2) -> ndarray:
    guard()
    record("products", "tensordot")
    return ndarray._made(canonical(np.tensordot(a._host, b._host, axes)))


def outer(a: Any, b: Any) -> ndarray:
    return UFUNCS["multiply"](a.reshape((-1, 1)), b.reshape((1, -1)))


# Names that are no arrays.


def asnumpy(a: Any) -> Any:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def isdtype(dtype: Any, kind: Any) -> bool:
    return np.isdtype(np.dtype(dtype), kind)


_own = {name: f for name, f in globals().items() if getattr(f, "__module__", "") == __name__}
__all__ = [name for name in _own if not name.startswith("_")]
