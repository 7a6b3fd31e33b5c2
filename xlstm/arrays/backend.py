"""Which array library runs the maths, and on which device.

Arrays decide: every function takes its namespace from the arrays it is given (`namespace`).
Only where there is no array yet is a backend named (`backend`). CuPy and PyTorch are imported
only when asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from xlstm.arrays import checks, probe

Array = Any  # an array of whichever library is in use
Namespace = Any  # the array API namespace of that library
Params = dict[str, Array]  # parameters, or their gradients, by dotted name

Seed: TypeAlias = "int | np.random.Generator"
DType: TypeAlias = "str | np.dtype[Any] | type[np.generic]"

NAMES = ("numpy", "cupy", "torch")
DTYPES = ("float32", "float64", "float16", "bfloat16")
OTHERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")  # that `asarray` knows too
HALVES = ("float16", "bfloat16")  # dtypes that are refused on a CPU
VARIABLE = "XLSTM_BACKEND"
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here; says what failed and what to install."""


class Portable:
    """Base of classes with a namespace `xp`, which copies and pickles have by its name."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "xp": self.__dict__["xp"].__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, xp=importlib.import_module(state["xp"]))


@dataclass(frozen=True)
class Backend(Portable):
    """An array library, a device of it and the dtype that new arrays get.

    Attributes
    ----------
    name : str
        "numpy", "cupy" or "torch".
    xp : namespace
        Its array API namespace.
    device : object
        The device in that library's own terms.
    dtype : str
        dtype of arrays made from floating-point values, "float32" unless told otherwise.
    reason : str
        Why this backend was chosen, in words.
    """

    name: str
    xp: Namespace
    device: Any
    dtype: str = "float32"
    reason: str = "asked for"

    def asarray(self, values: Any, dtype: DType | None = None) -> Array:
        """Put host values (or an array of this backend) on the device.

        Floating-point values get `dtype` (default: the backend's); integers and booleans keep
        theirs unless `dtype` is given.
        """
        if not array_api_compat.is_array_api_obj(values):
            values = np.asarray(values)
        if dtype is None:
            dtype = self.dtype if _floating(_namespace_of(values), values.dtype) else None
        target = None if dtype is None else _dtype(self.xp, dtype_text("asarray", dtype))
        with self.device if self.name == "cupy" else contextlib.nullcontext():
            if isinstance(values, np.ndarray) and self.name == "torch":
                values = to_numpy(values)  # PyTorch does not know the bfloat16 of ml_dtypes
                if not values.flags.writeable:
                    values = values.copy()  # PyTorch warns about memory it could write to but must not
            return self.xp.asarray(values, dtype=target, device=self.device)

    def synchronize(self) -> None:
        """Wait until the device has finished everything asked of it."""
        if self.name == "cupy":
            self.device.synchronize()
        elif self.name == "torch" and self.device.type == "cuda":
            probe.torch().cuda.synchronize(self.device)

    def __str__(self) -> str:
        return f"{self.name} on {device_name(self)}"


def backend(name: str = "auto", device: Any = None, dtype: DType = "float32") -> Backend:
    """Choose the array library for arrays that do not exist yet.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy", "torch"}
        "auto" takes CuPy if a small kernel and a matrix product ran on the GPU, else NumPy; the
        environment variable XLSTM_BACKEND, where set, decides instead of "auto". An explicit name
        is used or refused, never replaced by another.
    device : optional
        CuPy: the device number. PyTorch: a device such as "cpu" (the default) or "cuda:0".
    dtype : {"float32", "float64", "float16", "bfloat16"}
        dtype of the arrays it makes, as a name or as NumPy's dtype. float16 and bfloat16 need a GPU, and bfloat16 on
        CuPy needs CuPy 14 and ml_dtypes.

    Raises
    ------
    ValueError
        Unknown name, device or dtype.
    TypeError
        float16 or bfloat16 on a CPU.
    BackendError
        The named library, or what it needs for the dtype, is missing or does not work here.
    """
    reason = "asked for"
    if not isinstance(name, str):
        raise TypeError(f"backend: name is {checks.shown(name)}, expected auto, {', '.join(NAMES)}")
    if name == "auto" and os.environ.get(VARIABLE) not in (None, "", "auto"):
        name = os.environ[VARIABLE]
        reason = f"{VARIABLE}={name}"
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: {name!r} is not a backend, expected auto, {', '.join(NAMES)}")
    if name == "auto":
        if device is not None:
            raise ValueError(f"backend: device {checks.shown(device)} goes with a named backend, not with auto")
        failure = probe.cupy_failure()
        if failure is None:
            name, reason = "cupy", "a kernel and a matrix product ran on the GPU"
        else:
            name, reason = "numpy", f"no usable GPU: {failure}"
    if name == "numpy":
        chosen = _numpy_backend(device, reason)
    elif name == "cupy":
        chosen = _cupy_backend(device, reason)
    elif name == "torch":
        chosen = _torch_backend(device, reason)
    else:
        raise ValueError(f"backend: name {checks.shown(name)} is not a backend, expected auto, {', '.join(NAMES)}")
    return _with_dtype(chosen, dtype)


def backend_of(chosen: str | Backend | None, dtype: DType | None = None) -> Backend:
    """The backend meant by an argument that may be a name, a backend, or None for "auto"."""
    if isinstance(chosen, Backend):
        return chosen if dtype is None else _with_dtype(chosen, dtype)
    return backend("auto" if chosen is None else chosen, dtype="float32" if dtype is None else dtype)


def backend_like(array: Array) -> Backend:
    """The backend that an array belongs to, with its device and dtype."""
    xp = _namespace_of(array)
    library = xp.__name__.removeprefix("array_api_compat.")
    return Backend(library, xp, device_of(array), dtype_name(array.dtype), "that of the arrays given")


def dtype_text(where: str, dtype: Any) -> str:
    """The name of a dtype that is given by name or as NumPy's, such as np.float32 or np.dtype("float32")."""
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.generic)):
        return np.dtype(dtype).name
    return str(checks.text(where, "dtype", dtype))


def _with_dtype(chosen: Backend, given: DType) -> Backend:
    dtype = dtype_text("backend", given)
    if dtype not in DTYPES:
        raise ValueError(f"backend: dtype {checks.shown(dtype)} is not supported, expected one of {', '.join(DTYPES)}")
    if dtype in HALVES and (chosen.name == "numpy" or str(chosen.device) == "cpu"):
        raise TypeError(f"backend: {dtype} on a CPU is slow and inexact; use float32, or a GPU")
    if dtype == "bfloat16" and chosen.name == "cupy":
        version = probe.cupy().__version__
        if int(version.split(".")[0]) < 14:
            raise BackendError(f"cupy: bfloat16 needs CuPy 14 or newer, this is {version}; {probe.CUPY}")
    _dtype(chosen.xp, dtype)  # what it needs is there
    return replace(chosen, dtype=dtype)


def _numpy_backend(device: Any, reason: str) -> Backend:
    if device is not None and not (isinstance(device, str) and device == "cpu"):
        raise ValueError(f"backend: numpy has only the device 'cpu', got {checks.shown(device)}")
    return Backend("numpy", np, "cpu", reason=reason)


def _cupy_backend(device: Any, reason: str) -> Backend:
    number = getattr(device, "id", _current_device() if device is None else device)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= checks.LARGEST:
        raise ValueError(f"backend: a cupy device is a number from 0 up, got {checks.shown(device)}")
    failure = probe.cupy_failure(number)
    if failure is not None:
        raise BackendError(f"cupy: {failure}")
    if number != _current_device():  # new arrays go to the current device whatever `device=` says
        raise ValueError(
            f"backend: cupy device {number} is not the current one; make it so with cupy.cuda.Device({number}).use()"
        )
    import array_api_compat.cupy as xp

    return Backend("cupy", xp, probe.cupy().cuda.Device(number), reason=reason)


def _current_device() -> int:
    return int(probe.cupy().cuda.runtime.getDevice()) if probe.cupy_failure() is None else 0


def _torch_backend(device: Any, reason: str) -> Backend:
    try:
        torch = probe.torch()
    except ImportError as error:
        raise BackendError("torch: PyTorch is not installed; pip install torch") from error
    import array_api_compat.torch as xp

    try:
        chosen = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"backend: {checks.shown(device)} is not a torch device: {probe.first_line(error)}") from error
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackendError(f"torch: device {checks.shown(device)} is not usable: {probe.first_line(error)}") from error
    return Backend("torch", xp, chosen, reason=reason)


def available_backends() -> dict[str, Backend | str]:
    """Return every backend by name: a `Backend` where it runs, else the reason why it does not."""
    found: dict[str, Backend | str] = {}
    for name in NAMES:
        try:
            found[name] = backend(name)
        except BackendError as error:
            found[name] = str(error).removeprefix(f"{name}: ")
    return found


usable = available_backends  # its old name


def device_name(chosen: Backend) -> str:
    """The device in words, with the card's name where it is a GPU."""
    if chosen.name == "cupy":
        properties = probe.cupy().cuda.runtime.getDeviceProperties(chosen.device.id)
        return f"GPU {chosen.device.id} ({properties['name'].decode()})"
    if chosen.name == "torch" and chosen.device.type == "cuda":
        return f"GPU {chosen.device.index or 0} ({probe.torch().cuda.get_device_name(chosen.device)})"
    return "CPU" if str(chosen.device) == "cpu" else str(chosen.device)


def generator(seed: Seed, stream: int = 0, where: str = "") -> np.random.Generator:
    """The seeded generator on the host from which every random number of the library comes.

    It is the same on every backend, so equal seeds give equal weights everywhere. `stream` numbers
    independent generators of one seed. A generator is returned as it is. `where` says who asks, in an error.
    """
    checked = checks.seed(where, "seed", seed)
    if isinstance(checked, np.random.Generator):
        return checked
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(checked, spawn_key=(stream,) if stream else ())))


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """A NumPy array with the values of `array`, copied to the host where they are not there already.

    NumPy has no bfloat16: its values come as float32, which has them all.
    """
    if isinstance(array, np.ndarray | np.generic):
        low = array.dtype.kind == "V" and dtype_name(array.dtype) == "bfloat16"
        return np.asarray(array.astype(np.float32) if low else array)
    if array_api_compat.is_cupy_array(array):
        return to_numpy(array.get())
    if array_api_compat.is_torch_array(array):
        host = array.detach().cpu()
        return np.asarray((host.float() if dtype_name(host.dtype) == "bfloat16" else host).numpy())
    if array_api_compat.is_array_api_obj(array):
        return np.from_dlpack(array, device="cpu", copy=True)
    return np.asarray(array)


def device_of(array: Array) -> Any:
    """The device of an array, in its library's own terms."""
    return "cpu" if type(array) is np.ndarray else array_api_compat.device(array)


def like(values: Any, array: Array) -> Array:
    """Host values as an array of the library, device and dtype of `array`."""
    xp = _namespace_of(array)
    return xp.asarray(np.asarray(values), dtype=array.dtype, device=device_of(array))


def loses_bfloat16(array: Array) -> bool:
    """Whether operations with a Python number make float32 of an array, as CuPy's (but not PyTorch's) of bfloat16."""
    return dtype_name(array.dtype) == "bfloat16" and hasattr(array.dtype, "kind")


def cast(arrays: Mapping[str, Array], dtype: str) -> Params:
    """The same arrays in the dtype of that name; one that has it already is not copied."""
    if not arrays:
        return {}
    xp = _namespace_of(next(iter(arrays.values())))
    target = _dtype(xp, dtype)
    return {name: a if a.dtype == target else xp.astype(a, target) for name, a in arrays.items()}


def namespace(where: str, arrays: Mapping[str, Array]) -> Namespace:
    """The one namespace that all `arrays` share.

    Parameters
    ----------
    where : str
        Who asks, the first word of an error.
    arrays : dict of str to array
        Arrays under the names an error should use.

    Raises
    ------
    TypeError
        Something is no array, the arrays are of different libraries, devices or dtypes, are not
        floating-point, are float16 or bfloat16 on a CPU, or would record an autograd graph.
    """
    if not arrays:
        raise ValueError(f"{where}: there are no arrays, expected parameters")
    first_name, first = next(iter(arrays.items()))
    if type(first) is np.ndarray and first.dtype in (np.float32, np.float64):
        kind = first.dtype
        if all(type(array) is np.ndarray and array.dtype is kind for array in arrays.values()):
            return np  # what most calls are, without the price of asking
    try:
        xp = _namespace_of(first)
    except TypeError:
        raise TypeError(f"{where}: {first_name} is {_kind(first)}, expected an array") from None
    if dtype_name(first.dtype) not in DTYPES:
        raise TypeError(f"{where}: {first_name} has dtype {first.dtype}, expected float32 or float64")
    home = device_of(first)
    for name, array in arrays.items():
        if type(array) is not type(first):
            check_library(where, name, xp, array)
        if array.dtype != first.dtype:
            raise TypeError(
                f"{where}: {name} has dtype {array.dtype} but {first_name} has {first.dtype}, expected the same"
            )
        if device_of(array) != home:
            raise TypeError(f"{where}: {name} is on {device_of(array)} but {first_name} on {home}, expected one device")
        if getattr(array, "requires_grad", False):
            raise TypeError(f"{where}: {name} requires grad; gradients are computed by hand here, pass {name}.detach()")
    if dtype_name(first.dtype) in HALVES and _on_cpu_array(first):
        raise TypeError(f"{where}: {first_name} is {first.dtype} on a CPU, expected float32 or float64")
    return xp


def plain_namespace(
    params: Params, sizes: Mapping[str, tuple[int | None, ...]], x: Any, state: Any
) -> Namespace | None:
    """Return NumPy where that is seen at once: most calls have only its arrays, all in float32 or all in float64.

    Parameters
    ----------
    params : dict
        Their names and shapes have to be those of `sizes`, a dict of tuples.
    x : array or None
    state : tuple or None
        Of arrays, of None, and of such tuples.

    Returns
    -------
    namespace or None
        None says that `namespace` is to be asked, which finds what is wrong, if anything is.
    """
    if type(params) is not dict or len(params) != len(sizes):
        return None
    kind = getattr(next(iter(params.values()), None), "dtype", None)
    if kind is not SINGLE and kind is not DOUBLE:
        return None
    for name, size in sizes.items():
        p = params.get(name)
        if type(p) is not np.ndarray or p.dtype is not kind or p.shape != size:
            return None
    if x is not None and (type(x) is not np.ndarray or x.dtype is not kind):
        return None
    return np if state is None or _all_plain(state, kind) else None


def _all_plain(state: Any, kind: np.dtype[Any]) -> bool:
    """Return whether a state is a tuple of NumPy's arrays of a dtype, of None, and of such tuples."""
    if type(state) is not tuple:
        return False
    for a in state:
        if a is None or (type(a) is np.ndarray and a.dtype is kind):
            continue
        if not _all_plain(a, kind):
            return False
    return True


def check_library(where: str, name: str, xp: Namespace, array: Array) -> None:
    """Raise TypeError unless `array` is an array of the library of `xp`."""
    try:
        if _namespace_of(array) is xp:
            return
    except TypeError:
        pass
    library = xp.__name__.removeprefix("array_api_compat.")
    raise TypeError(
        f"{where}: {name} is {_kind(array)}, expected a {library} array like the others; "
        "xlstm.backend(...).asarray moves arrays"
    )


def _namespace_of(array: Array) -> Namespace:
    """NumPy 2 is its own namespace; array_api_compat.numpy would import all of NumPy for it, 0.1 s."""
    return np if isinstance(array, np.ndarray | np.generic) else array_api_compat.array_namespace(array)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, the same in all libraries."""
    return str(dtype).rpartition(".")[2]


def _dtype(xp: Namespace, name: str) -> Any:
    """The dtype of that name in a library's own terms; NumPy and CuPy have bfloat16 from ml_dtypes."""
    if name == "bfloat16" and not hasattr(xp, name):
        try:
            from ml_dtypes import bfloat16
        except ImportError as error:
            raise BackendError("bfloat16 needs ml_dtypes, which is not installed; pip install ml_dtypes") from error
        return np.dtype(bfloat16)
    if name not in (*DTYPES, *OTHERS):
        raise ValueError(f"asarray: dtype {checks.shown(name)} is unknown, expected a name such as {', '.join(DTYPES)}")
    return getattr(xp, name)


def _floating(xp: Namespace, dtype: Any) -> bool:
    """Whether numbers of a dtype are real and floating-point."""
    kind = getattr(dtype, "kind", None)
    if kind is None:
        return bool(xp.isdtype(dtype, "real floating"))
    # NumPy's and CuPy's, whose `isdtype` refuses the bfloat16 of ml_dtypes.
    return kind == "f" or (kind == "V" and dtype_name(dtype) == "bfloat16")


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return checks.shown(value)
    module = type(value).__module__.split(".")[0]
    if array_api_compat.is_array_api_obj(value):
        return f"a {module} array"
    return f"a {type(value).__name__}"


def _on_cpu_array(array: Array) -> bool:
    if array_api_compat.is_torch_array(array):
        return bool(array.device.type == "cpu")
    return not array_api_compat.is_cupy_array(array)
