"""PyTorch tensors and JAX arrays as NumPy or CuPy arrays that share their memory, and arrays as these again.

Layers run on such views, so that tensors reach the engines of NumPy and CuPy. Work on CUDA tensors goes to the current
stream of PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from xlstm.arrays import foreign, probe
from xlstm.arrays.namespace import HALVES, Array, dtype_name, leaves

Tensor = Any  # of PyTorch


def from_tensors(where: str, tensors: Iterable[Tensor]) -> list[Array]:
    """Return NumPy or CuPy arrays that share the memory of PyTorch tensors; None stays None.

    Raises
    ------
    TypeError
        A tensor is on a device other than a CPU or a CUDA device, or is bfloat16 on a CPU; or it is on a CUDA device
        and CuPy does not work. The error begins with `where`.
    """
    return [None if t is None else _array(where, t.detach()) for t in tensors]


def _array(where: str, tensor: Tensor) -> Array:
    if tensor.is_cpu:
        try:
            return tensor.numpy()
        except TypeError as error:  # NumPy has no such numbers
            raise TypeError(f"{where}: a tensor is {tensor.dtype} on a CPU, expected float32 or float64") from error
    if not tensor.is_cuda:
        raise TypeError(f"{where}: a tensor is on {tensor.device}, expected a CPU or a CUDA device")
    return foreign.cupy_for(where, "a tensor").from_dlpack(tensor)


def to_tensor(array: Array) -> Tensor:
    """Return a PyTorch tensor that shares the memory of a NumPy or CuPy array.

    It has a copy where PyTorch could not write to the array, or the array goes backwards.
    """
    torch = probe.torch()
    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def stream_of(where: str, tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which CuPy works on the device of a tensor, and on PyTorch's current stream there."""
    if tensor.is_cpu:
        return contextlib.nullcontext()
    cuda = foreign.cupy_for(where, "a tensor").cuda
    context, number = contextlib.ExitStack(), tensor.device.index
    context.enter_context(cuda.Device(number))
    context.enter_context(cuda.ExternalStream(probe.torch().cuda.current_stream(number).cuda_stream, number))
    return context


class Views(NamedTuple):
    """How a function runs on views of arrays of another library, and its results become arrays of that library."""

    take: Callable[[Any], Array]
    give: Callable[[Array], Any]
    context: contextlib.AbstractContextManager[Any]

    def run(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        """Call a function with views of the arrays in values, which may be nested; options are given as they are."""
        with self.context:
            return _mapped(self.give, function(*(_mapped(self.take, value) for value in values), **options))


def views_of(where: str, params: Any, *values: Any) -> Views | None:
    """Return how to run on views of parameters and other arrays.

    Returns
    -------
    Views or None
        None says that the arrays are to be taken as they are: they are no tensors, or a check of them finds what is
        wrong.

    Raises
    ------
    TypeError
        An array is traced by JAX, or is on a GPU and CuPy does not work.
    """
    first = next(iter(params.values()), None) if isinstance(params, dict) else None
    if type(first) is np.ndarray or array_api_compat.is_cupy_array(first):
        return None
    arrays = list(leaves((tuple(params.values()), values))) if first is not None else []
    if array_api_compat.is_torch_array(first) and all(map(array_api_compat.is_torch_array, arrays)):
        return _views_of_tensors(where, first, arrays)
    if array_api_compat.is_jax_array(first) and all(map(array_api_compat.is_jax_array, arrays)):
        return _views_of_jax(where, first, arrays)
    return None


def _views_of_tensors(where: str, first: Tensor, arrays: list[Tensor]) -> Views | None:
    for a in arrays:
        if a.device != first.device or a.requires_grad or (a.is_cpu and dtype_name(a.dtype) in HALVES):
            return None
    if not (first.is_cpu or first.is_cuda):
        return None
    return Views(lambda a: _array(where, a), to_tensor, stream_of(where, first))


def _views_of_jax(where: str, first: Any, arrays: list[Any]) -> Views | None:
    jax = sys.modules["jax"]
    if any(isinstance(a, jax.core.Tracer) for a in arrays):
        raise TypeError(f"{where}: an array is traced by JAX; use xlstm.interop.jax.layer, which JAX can differentiate")
    if int(first.__dlpack_device__()[0]) in foreign.HOST:
        take, give = np.from_dlpack, functools.partial(jax.device_put, device=first.device)
    else:
        take, give = foreign.cupy_for(where, "an array of JAX").from_dlpack, jax.dlpack.from_dlpack
    return Views(lambda a: foreign.taken(where, a, take), give, contextlib.nullcontext())


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the same nesting of dicts, tuples and lists with a function of each array."""
    if isinstance(tree, dict):
        return {name: _mapped(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_mapped(function, value) for value in tree)
    return function(tree) if hasattr(tree, "__dlpack__") else tree
