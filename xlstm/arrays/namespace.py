"""Arrays of any library: the namespace they share, where they are, and their dtypes by name."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Mapping
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from xlstm.arrays import checks, optional_imports

Array = Any  # an array of whichever library is in use
Namespace = Any  # the array API namespace of that library
Params = dict[str, Array]  # parameters, or their gradients, by dotted name
Shape: TypeAlias = tuple[int, ...]
Host: TypeAlias = np.ndarray[Any, Any]  # an array of NumPy
DType: TypeAlias = "str | np.dtype[Any] | type[np.generic]"

DTYPES = ("float32", "float64", "float16", "bfloat16")  # dtypes that layers compute in
HALVES = ("float16", "bfloat16")  # dtypes that are refused on a CPU

SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)


def namespace(where: str, arrays: Mapping[str, Array], wide: Container[str] = ()) -> Namespace:
    """Return the one namespace that all arrays share.

    Parameters
    ----------
    where : str
        The caller, with whose name an error begins.
    arrays : dict of str to array
        Arrays under the names that an error uses.
    wide : container of str
        The names of arrays that are float32 where the first other array is float16 or bfloat16.

    Raises
    ------
    TypeError
        Something is no array; or the arrays are of different libraries, devices or dtypes, are not
        floating-point, are float16 or bfloat16 on a CPU, or would record an autograd graph.
    ValueError
        There are no arrays, or those of CuPy are not on the current device.
    """
    if not arrays:
        raise ValueError(f"{where}: there are no arrays, expected parameters")
    first_name, first = next((name, array) for name, array in arrays.items() if name not in wide)
    if type(first) is np.ndarray and first.dtype in (np.float32, np.float64):
        dtype = first.dtype
        others = [a for a in arrays.values() if type(a) is not np.ndarray or a.dtype is not dtype]
        if not others:
            return np  # the most frequent case needs no further question
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
    """Raise TypeError unless an array has the dtype of the first one, or float32 beside halves, is
    on its device, and records no graph.
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
    """Raise unless an array of CuPy is on the current device, and one on a CPU no half."""
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

    NumPy 2 is its own namespace; array_api_compat.numpy would import all of NumPy for it, which
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
    """Return an array itself, or the value of a dual number, which is no dual number."""
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


@functools.lru_cache(maxsize=64, typed=True)  # dtypes of two libraries do not compare
def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, which is the same in all libraries."""
    return str(getattr(dtype, "__name__", dtype)).rpartition(".")[2]


def is_floating(xp: Namespace, dtype: Any) -> bool:
    """Tell whether numbers of a dtype are real and floating-point."""
    kind = getattr(dtype, "kind", None)
    if kind is None:
        return bool(xp.isdtype(dtype, "real floating"))
    # A dtype of NumPy or CuPy, whose `isdtype` refuses the bfloat16 of ml_dtypes.
    return kind == "f" or (kind == "V" and dtype_name(dtype) == "bfloat16")


def reshape(array: Array, shape: Shape) -> Array:
    """Reshape by the method, where the library has one: it takes less time than the function."""
    if hasattr(array, "reshape"):
        return array.reshape(shape)
    return array.__array_namespace__().reshape(array, shape)


def room(xp: Namespace, like: Array, shape: Shape, dtype: Any = None) -> Array:
    """Return a new array on the device of another one, and in its dtype unless there is another;
    nothing is in it.
    """
    dtype = like.dtype if dtype is None else dtype
    if hasattr(xp, "ndarray"):  # that of NumPy or CuPy, whose `empty` takes twice the time
        return xp.ndarray(shape, dtype)
    return xp.empty(shape, dtype=dtype, device=device_of(like))


def finfo(xp: Namespace, dtype: Any) -> Any:
    """Return `xp.finfo(dtype)`, of float32 for bfloat16, which has the same exponents and which
    CuPy does not know.
    """
    return xp.finfo(xp.float32 if dtype_name(dtype) == "bfloat16" else dtype)


def widened(xp: Namespace, dtype: Any) -> Any:
    """Return float32 for float16 and bfloat16, else the dtype itself: the dtype of sums that go on
    for many steps.
    """
    return xp.float32 if dtype_name(dtype) in HALVES else dtype


def astype(xp: Namespace, array: Array, dtype: Any) -> Array:
    """Return an array in a dtype; it is the array itself where it has that dtype."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def squares_below(xp: Namespace, x: Array, limit: float) -> bool:
    """Tell whether the sum of all x^2 is certainly below `limit`.

    The answer takes one pass over a NumPy array, and raises no warning where the sum overflows. It
    is False on other libraries, where the host would have to wait for the device.
    """
    if xp is not np:
        return False
    flat = x.reshape(-1) if x.flags.c_contiguous else x
    axes = list(range(flat.ndim))  # not BLAS's product, which wakes BLAS's threads
    return bool(np.einsum(flat, axes, flat, axes, []) < limit)


def _kind(value: Any) -> str:
    """Return what a value is, in the words of an error."""
    if isinstance(value, type):
        return checks.shown(value)
    if array_api_compat.is_array_api_obj(value):
        return f"a {type(value).__module__.split('.')[0]} array"
    return f"a {type(value).__name__}"


def plain_namespace(
    params: Params, sizes: Mapping[str, tuple[int | None, ...]], x: Any, state: Any
) -> Namespace | None:
    """Return NumPy or CuPy where that is seen at once: most calls have only its arrays, all of one
    dtype.

    Parameters
    ----------
    params : dict
        Their names and shapes have to be those of `sizes`, a dict of tuples.
    x : array or None
    state : tuple or None
        It holds arrays, None, and such tuples.

    Returns
    -------
    namespace or None
        None says that `namespace` is to be asked, which finds what is wrong, if anything is.
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
    """Return whether a state is a tuple of a library's arrays of a dtype, of None, and of such
    tuples.

    Those of CuPy are on the current device.
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
    """Yield the arrays of a state of a model, or tuples of the type `whole` that describe them."""
    if isinstance(tree, tuple | list) and not isinstance(tree, whole):
        for part in tree:
            yield from leaves(part, whole)
    elif tree is not None:
        yield tree
