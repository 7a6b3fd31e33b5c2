"""Views of PyTorch tensors and JAX arrays as NumPy or CuPy arrays, and back, with shared memory.

Layers run on such views, so that tensors reach the engines of NumPy and CuPy. Work on CUDA tensors
runs in the current stream of PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from xlstm.arrays import foreign, optional_imports
from xlstm.arrays.namespace import HALVES, Array, dtype_name, leaves
from xlstm.arrays.trees import mapped

Tensor = Any  # a tensor of PyTorch


def to_tensor(array: Array) -> Tensor:
    """Return a PyTorch tensor that shares the memory of a NumPy or CuPy array.

    If the array is read-only, as in JAX, or has negative strides, the tensor holds a copy.
    """
    torch = sys.modules.get("torch") or optional_imports.torch()
    if not isinstance(array, np.ndarray):
        if not array_api_compat.is_jax_array(array):
            return torch.from_dlpack(array)
        array = np.array(array)
    flags = array.flags
    if not flags.writeable or (not flags.forc and min(array.strides) < 0):
        array = array.copy()
    return torch.from_numpy(array)


def has_tangent(tensors: Iterable[Tensor]) -> bool:
    """Tell whether some tensors are dual ones of PyTorch's forward-mode AD."""
    forward_ad = optional_imports.torch().autograd.forward_ad
    return forward_ad._current_level >= 0 and any(
        a is not None and forward_ad.unpack_dual(a).tangent is not None for a in tensors
    )


class _Stream:
    """A stream of another library, by NVIDIA's protocol for streams."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the version of the protocol, and the stream."""
        return 0, self.pointer


class Views(NamedTuple):
    """The way to run a function on views of another library's arrays, and to convert its results.

    The results become arrays of that library.
    """

    take: Callable[[Any], Array]
    give: Callable[[Array], Any]
    context: contextlib.AbstractContextManager[Any]

    def run(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        """Call a function with views of the arrays in `values`, which may be nested.

        Options are passed unchanged.
        """
        with self.context:
            return _of_arrays(self.give, function(*_of_arrays(self.take, values), **options))


def views_of(where: str, params: Any, *values: Any) -> Views | None:
    """Return how to run on views of parameters and other arrays.

    Returns
    -------
    Views or None
        None means that arrays are to be taken as they are: they are not tensors, or a later check
        finds their error.

    Raises
    ------
    TypeError
        JAX traces an array, a tensor of PyTorch is dual, or an array is on a GPU and CuPy does not
        work.
    """
    first: Any = next(iter(params.values()), None) if isinstance(params, dict) else None
    if type(first) is np.ndarray or array_api_compat.is_cupy_array(first):
        return None
    arrays = list(leaves((*params.values(), values))) if first is not None else []
    if array_api_compat.is_torch_array(first) and all(map(array_api_compat.is_torch_array, arrays)):
        if has_tangent(arrays):
            raise TypeError(
                f"{where}: a tensor is dual, and only a torch.nn.Module keeps its tangent: use"
                " xlstm.interop.torch.module(layer)"
            )
        half = first.is_cpu and dtype_name(first.dtype) in HALVES
        alike = all(a.device == first.device and not a.requires_grad for a in arrays)
        return (
            views_of_tensors(where, first)
            if alike and not half and (first.is_cpu or first.is_cuda)
            else None
        )
    if array_api_compat.is_jax_array(first) and all(map(array_api_compat.is_jax_array, arrays)):
        return _views_of_jax(where, first, arrays)
    return None


def views_of_tensors(where: str, like: Tensor) -> Views:
    """Return how to run on views of PyTorch tensors on the device of `like`, in its current stream.

    Views of tensors that require a gradient do not record it. A tensor on a device other than a CPU
    or a CUDA device, and bfloat16 on a CPU, raise TypeError, which begins with `where`.
    """
    if not like.is_cuda:
        return Views(functools.partial(_of_tensor, where), to_tensor, contextlib.nullcontext())
    cupy = foreign.cupy_for(where, "a tensor")
    return Views(
        lambda a: cupy.from_dlpack(a.detach()), to_tensor, _stream_of(cupy, like.device.index)
    )


@contextlib.contextmanager
def _stream_of(cupy: Any, number: int) -> Iterator[None]:
    """Run CuPy on a device inside a `with` block, in the current stream of PyTorch."""
    stream = _Stream(optional_imports.torch().cuda.current_stream(number).cuda_stream)
    with cupy.cuda.Device(number), cupy.cuda.Stream.from_external(stream):
        yield


def _of_tensor(where: str, tensor: Tensor) -> Array:
    if not tensor.is_cpu:
        raise TypeError(f"{where}: a tensor is on {tensor.device}, expected a CPU or a CUDA device")
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:  # NumPy has no such dtype or layout
        layout = "nested" if tensor.is_nested else tensor.layout
        tensor_of = f"a {type(tensor).__name__} ({layout}) is {tensor.dtype} on a CPU"
        raise TypeError(
            f"{where}: {tensor_of}, expected float32 or float64 in a Tensor (torch.strided) with"
            " memory of its own; inside of torch.func and by is_grads_batched or vectorize it has"
            " none, use torch.func.vmap and xlstm.interop.torch.module"
        ) from error


def _views_of_jax(where: str, first: Any, arrays: list[Any]) -> Views:
    jax = sys.modules["jax"]
    if any(isinstance(a, jax.core.Tracer) for a in arrays):
        raise TypeError(
            f"{where}: an array is traced by JAX; use xlstm.interop.jax.layer, which JAX can"
            " differentiate"
        )
    if int(first.__dlpack_device__()[0]) in foreign.HOST:
        take = np.from_dlpack
        give = functools.partial(jax.device_put, device=first.device)
    else:
        take = foreign.cupy_for(where, "an array of JAX").from_dlpack
        give = jax.dlpack.from_dlpack
    return Views(lambda a: foreign.taken(where, a, take), give, contextlib.nullcontext())


def _of_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the same nesting with a function applied to each array, and the rest unchanged."""
    return mapped(tree, lambda _, a: function(a) if hasattr(a, "__dlpack__") else a)
