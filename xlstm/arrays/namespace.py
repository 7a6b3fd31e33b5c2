"""Arrays of any library: their shared namespace, their device, and their dtypes by name."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Mapping
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from xlstm.arrays import checks, optional_imports

Array = Any  # an array of the library in use
Namespace = Any  # the array API namespace of that library
Params = dict[str, Array]  # parameters, or their gradients, by dotted name
Shape: TypeAlias = tuple[int, ...]
Host: TypeAlias = np.ndarray[Any, Any]  # an array of NumPy
DType: TypeAlias = "str | np.dtype[Any] | type[np.generic]"

DTYPES = ("float32", "float64", "float16", "bfloat16")  # dtypes that layers compute in
HALVES = ("float16", "bfloat16")  # dtypes refused on a CPU

SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)


def namespace(where: str, arrays: Mapping[str, Array], wide: Container[str] = ()) -> Namespace:
    """Return the namespace that all arrays share.

    Parameters
    ----------
    where : str
        The caller, whose name begins an error.
    arrays : dict of str to array
        Arrays, under their names in errors.
    wide : container of str
        The names of arrays that are float32 if the first other array is float16 or bfloat16.

    Raises
    ------
    TypeError
        A value is not an array; or the arrays are of different libraries, devices or dtypes, are
        not floating-point, are float16 or bfloat16 on a CPU, or would record an autograd graph.
    ValueError
        There are no arrays, or arrays of CuPy are not on the current device.
    """
    if not arrays:
        raise ValueError(f"{where}: there are no arrays, expected parameters")
    first_name, first = next((name, array) for name, array in arrays.items() if name not in wide)
    if type(first) is np.ndarray and first.dtype in (np.float32, np.float64):
        dtype = first.dtype
        others = [a for a in arrays.values() if type(a) is not np.ndarray or a.dtype is not dtype]
        if not others:
            return np  # the most frequent case needs no further check
    duals = [array for array in arrays.values() if is_dual(array)]
    if duals:
        namespace(where, {name: primal(array) for name, array in arrays.items()}, wide)
        return max([namespace_of(array) for array in duals], key=lambda xp: xp.depth)
    try:
        xp = namespace_of(first)
    except TypeError:
        raise TypeError(f"{where}: {first_name} is {_kind(first)}, expected an array") from None
    if dtype_name(first.dtype) not in DTYPES:
        raise TypeError(
            f"{where}: {first_name} has dtype {first.dtype}, expected float32 or float64"
        )
    checks.unmasked(where, first_name, first)
    for name, array in arrays.items():
        if type(array) is not type(first):
            check_library(where, name, xp, array)
        _check_alike(where, name, array, first_name, first, name in wide)
    _check_first(where, first_name, first)
    return xp


def _check_alike(
    where: str, name: str, array: Array, first_name: str, first: Array, wide: bool
) -> None:
    """Raise TypeError unless an array has dtype and device of the first one, and records no graph.

    A `wide` array is float32 beside halves.
    """
    if wide and dtype_name(first.dtype) in HALVES:
        if dtype_name(array.dtype) != "float32":
            raise TypeError(
                f"{where}: {name} has dtype {array.dtype}, expected float32, as it is summed up in"
                f" that beside {first.dtype}"
            )
    elif array.dtype != first.dtype:
        dtype = dtype_name(array.dtype)
        problem = f"{array.dtype} but {first_name} has {first.dtype}, expected the same"
        # names of parameters have dots
        if first_name == "x" and "." in name and dtype in DTYPES:
            problem += (
                f': init(dtype="{dtype_name(first.dtype)}") or x.astype("{dtype}") makes them alike'
            )
        raise TypeError(f"{where}: {name} has dtype {problem}")
    if device_of(array) != device_of(first):
        raise TypeError(
            f"{where}: {name} is on {device_of(array)} but {first_name} on {device_of(first)},"
            " expected one device"
        )
    if getattr(array, "requires_grad", False):
        raise TypeError(
            f"{where}: {name} requires grad, which only a torch.nn.Module records: use "
            f"xlstm.interop.torch.module(layer), or pass {name}.detach()"
        )


def _check_first(where: str, name: str, array: Array) -> None:
    """Raise unless an array of CuPy is on the current device, and an array on a CPU is no half."""
    if array_api_compat.is_cupy_array(array):
        home = device_of(array)
        current = int(optional_imports.cupy().cuda.runtime.getDevice())
        if home.id != current:
            raise ValueError(
                f"{where}: {name} is on CUDA device {home.id}, which is not the current one,"
                f" {current}; with cupy.cuda.Device({home.id}): works with it"
            )
    on_gpu = array_api_compat.is_cupy_array(array) or (
        array_api_compat.is_torch_array(array) and array.device.type != "cpu"
    )
    if dtype_name(array.dtype) in HALVES and not on_gpu:
        raise TypeError(f"{where}: {name} is {array.dtype} on a CPU, expected float32 or float64")


def check_library(where: str, name: str, xp: Namespace, array: Array) -> None:
    """Raise TypeError unless `array` is an array of the library of `xp`, without a mask."""
    checks.unmasked(where, name, array)
    try:
        if namespace_of(primal(array)) is getattr(xp, "root", xp):
            return
    except TypeError:
        pass
    raise TypeError(
        f"{where}: {name} is {_kind(array)}, expected a {library(xp)} array like the others; "
        "xlstm.backend(...).asarray moves arrays"
    )


def namespace_of(array: Array) -> Namespace:
    """Return the namespace of one array.

    NumPy 2 is its own namespace; array_api_compat.numpy would import all of NumPy instead, which
    takes 0.1 s.
    """
    return (
        np
        if isinstance(array, np.ndarray | np.generic)
        else array_api_compat.array_namespace(array)
    )


def is_dual(array: Any) -> bool:
    """Tell whether an array is a dual number of `arrays.dual`."""
    return hasattr(array, "tangent")


def primal(array: Array) -> Array:
    """Return an array itself, or the innermost value of a dual number."""
    while is_dual(array):
        array = array.value
    return array


def library(xp: Namespace) -> str:
    """Return the name of a namespace's library, such as "numpy" or "cupy"."""
    return str(xp.__name__).removeprefix("array_api_compat.")


def device_of(array: Array) -> Any:
    """Return the device of an array, in its library's own terms."""
    try:
        return array.device
    except AttributeError:  # a scalar of NumPy before 2.1
        return array_api_compat.device(array)


@functools.lru_cache(maxsize=64, typed=True)  # dtypes of different libraries do not compare
def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, which is the same in all libraries."""
    return str(getattr(dtype, "__name__", dtype)).rpartition(".")[2]


def is_floating(xp: Namespace, dtype: Any) -> bool:
    """Tell whether numbers of a dtype are real and floating-point."""
    kind = getattr(dtype, "kind", None)
    if kind is None:
        return bool(xp.isdtype(dtype, "real floating"))
    # NumPy and CuPy: their `isdtype` refuses the bfloat16 of ml_dtypes.
    return kind == "f" or (kind == "V" and dtype_name(dtype) == "bfloat16")


def reshape(array: Array, shape: Shape) -> Array:
    """Reshape by the array's method if it has one, which takes less time than the function."""
    if hasattr(array, "reshape"):
        return array.reshape(shape)
    return array.__array_namespace__().reshape(array, shape)


def room(xp: Namespace, like: Array, shape: Shape, dtype: Any = None) -> Array:
    """Return a new array without values, on the device of `like` and by default in its dtype."""
    dtype = like.dtype if dtype is None else dtype
    if hasattr(xp, "ndarray"):  # NumPy's or CuPy's; their `empty` takes twice the time
        return xp.ndarray(shape, dtype)
    return xp.empty(shape, dtype=dtype, device=device_of(like))


def finfo(xp: Namespace, dtype: Any) -> Any:
    """Return `xp.finfo(dtype)`, or for bfloat16 `xp.finfo(xp.float32)`.

    CuPy does not know bfloat16, which has the exponents of float32.
    """
    return xp.finfo(xp.float32 if dtype_name(dtype) == "bfloat16" else dtype)


def widened(xp: Namespace, dtype: Any) -> Any:
    """Return the dtype of sums over many steps: float32 for float16 and bfloat16, else `dtype`."""
    return xp.float32 if dtype_name(dtype) in HALVES else dtype


def astype(xp: Namespace, array: Array, dtype: Any) -> Array:
    """Return an array in a dtype, without a copy if it has that dtype."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def squares_below(xp: Namespace, x: Array, limit: float) -> bool:
    """Tell whether the sum of all x^2 is certainly below `limit`.

    The answer takes one pass over a NumPy array, without a warning if the sum overflows. With other
    libraries it is False, because the host would have to wait for the device.
    """
    if xp is not np:
        return False
    flat = x.reshape(-1) if x.flags.c_contiguous else x
    axes = list(range(flat.ndim))  # a product by BLAS would wake its threads
    return bool(np.einsum(flat, axes, flat, axes, []) < limit)


def _kind(value: Any) -> str:
    """Return the kind of a value, in the words of errors."""
    if isinstance(value, type):
        return checks.shown(value)
    if array_api_compat.is_array_api_obj(value):
        return f"a {type(value).__module__.split('.')[0]} array"
    return f"a {type(value).__name__}"


def plain_namespace(
    params: Params, sizes: Mapping[str, tuple[int | None, ...]], x: Any, state: Any
) -> Namespace | None:
    """Return NumPy or CuPy if that is clear at once: most calls have only its arrays, of one dtype.

    Parameters
    ----------
    params : dict
        Their names and shapes must be those of `sizes`, a dict of tuples.
    x : array or None
    state : tuple or None
        It holds arrays, None, and such tuples.

    Returns
    -------
    namespace or None
        None means that the caller must call `namespace`, which finds any error.
    """
    if type(params) is not dict or len(params) != len(sizes):
        return None
    first: Array = next(iter(params.values()), None)
    kind = type(first)
    dtype = getattr(first, "dtype", None)
    if kind is not np.ndarray and not (
        array_api_compat.is_cupy_array(first) and dtype_name(dtype) in DTYPES
    ):
        return None
    # Beside halves some arrays of a state are float32.
    if dtype is not SINGLE and dtype is not DOUBLE and (kind is np.ndarray or state is not None):
        return None
    for name, size in sizes.items():
        p: Array = params.get(name)
        if type(p) is not kind or p.dtype is not dtype or p.shape != size:
            return None
    if x is not None and (type(x) is not kind or x.dtype is not dtype):
        return None
    current = None if kind is np.ndarray else optional_imports.cupy().cuda.runtime.getDevice()
    if state is not None and not _all_plain(state, kind, dtype, current):
        return None
    if current is not None and not _all_plain((*params.values(), x), kind, dtype, current):
        return None
    return np if current is None else namespace_of(first)


def _all_plain(state: Any, kind: Any, dtype: Any, current: int | None) -> bool:
    """Return whether a state is a tuple of arrays of one library and dtype, None, and such tuples.

    Arrays of CuPy must be on the current device.
    """
    if type(state) is not tuple:
        return False
    for a in state:
        plain = (
            type(a) is kind
            and a.dtype is dtype
            and (current is None or a.data.device_id == current)
        )
        if not plain and a is not None and not _all_plain(a, kind, dtype, current):
            return False
    return True


def leaves(tree: Any, whole: type | tuple[()] = ()) -> Iterator[Any]:
    """Yield the arrays of a model's state, or the tuples of type `whole` that describe them."""
    if isinstance(tree, tuple | list) and not isinstance(tree, whole):
        for part in tree:
            yield from leaves(part, whole)
    elif tree is not None:
        yield tree


def is_of_duals(xp: Namespace) -> bool:
    """Tell whether a namespace is that of dual numbers, by its class: others refuse names that they
    do not have in ways of their own.
    """
    return getattr(type(xp), "of_duals", False)


def add_over(xp: Namespace, a: Array, b: Array) -> Array:
    """Return a + b in the memory of a, which nobody else uses.

    If b may have a tangent and a has none, the sum takes new memory.
    """
    if is_of_duals(xp):
        return a + b
    a += b
    return a


def root_of(xp: Namespace) -> Namespace:
    """Return the library below all dual numbers of a namespace, or the namespace itself."""
    return xp.root if is_of_duals(xp) else xp


def depth_of(xp: Namespace) -> int:
    """Return how many functions are being differentiated, 0 without dual numbers."""
    depth: int = xp.depth if is_of_duals(xp) else 0
    return depth


def deepest(*namespaces: Namespace) -> Namespace:
    """Return the namespace of results computed from arrays of several; by default the first.

    Raise TypeError for dual numbers of two calls of `jvp` of which neither is within the other.
    """
    found = max(namespaces, key=depth_of)
    for xp in namespaces:
        if depth_of(xp) == depth_of(found) > 0 and xp is not found:
            raise TypeError(
                "jvp: dual numbers of two calls meet, expected those of one call and the calls"
                " around it"
            )
    return found
