"""Kernels of the user: g++ compiles them, and the types of their arguments are checked."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
from cupy._array import here, ndarray
from cupy._capture import made, run
from cupy._counts import record
from cupy._dtypes import canonical
from cupy.cards import card, current

from tests import ctargets, device


class ElementwiseKernel:
    """Statements for each element of arrays that are broadcast together; types are named, not deduced."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str = "kernel", **options: Any) -> None:
        self.name = self.__name__ = name
        self.host = ctargets.ElementwiseKernel(in_params, out_params, operation, name)
        self.compiled: set[int] = set()

    def __call__(self, *args: Any) -> Any:
        found = self.run(*args)
        if any(a.size for a in (found if isinstance(found, tuple) else (found,))):
            record("launches", self.name)
        return found

    def run(self, *args: Any) -> Any:
        """Compute without counting."""
        parameters = [*self.host.inputs, *self.host.outputs]
        if len(args) not in (len(self.host.inputs), len(parameters)):
            raise TypeError(f"Wrong number of arguments for {self.name!r}: {len(args)}")
        for a, (kind, name) in zip(args, parameters, strict=False):
            if isinstance(a, ndarray):
                here(a)
                if a.dtype.name != kind:
                    raise TypeError(f"Type is mismatched. {name} {a.dtype} {kind} ({self.name})")
            elif not isinstance(a, int | float | np.generic):
                raise TypeError(f"Unsupported type {type(a)}")
        _once(self.compiled, self.name)
        outs = args[len(self.host.inputs) :]
        if not outs:  # room for results of the shape of all arrays
            shape = np.broadcast_shapes(*(a.shape for a in args if isinstance(a, ndarray)))
            outs = tuple(ndarray(shape, kind) for kind, _ in self.host.outputs)
        hosts = [a._host if isinstance(a, ndarray) else a for a in (*args[: len(self.host.inputs)], *outs)]

        def compute() -> None:
            self.host(*hosts)
            for host in hosts[len(self.host.inputs) :]:
                canonical(host)

        run(compute, [*args, *outs])
        return outs[0] if len(outs) == 1 else outs


class ReductionKernel:
    """A sum of statements for each element."""

    def __init__(
        self, in_params: str, out_params: str, map_expr: str, reduce_expr: str, post_map_expr: str, identity: str,
        name: str, reduce_type: str, **options: Any,
    ) -> None:  # fmt: skip
        assert (reduce_expr, identity) == ("a + b", "0"), "the stand-in has sums alone"
        kind = {"float": "float32", "double": "float64"}[reduce_type]
        self.map = ElementwiseKernel(in_params, f"{kind} a", f"a = {map_expr}", name)
        self.post = ElementwiseKernel(f"{kind} a", out_params, post_map_expr, name)

    def __call__(self, *args: Any, axis: Any = None, keepdims: bool = False) -> ndarray:
        record("launches", self.map.name)
        terms = self.map.run(*args)
        return self.post.run(made(lambda: np.array(np.sum(terms._host, axis=axis, keepdims=keepdims)), [terms]))


def _once(compiled: set[int], name: str) -> None:
    """Count a kernel as compiled on the current device."""
    if current.number not in compiled:
        compiled.add(current.number)
        record("compiled", name)


TYPES = {
    **{"float": "float32", "double": "float64", "half_t": "float16", "bf16_t": "bfloat16", "uint4": "uint32"},
    **{"int": "int32", "unsigned": "uint32", "long long": "int64", "unsigned long long": "uint64"},
    **{"unsigned char": "uint8"},
}


def _argument(where: str, kind: str, a: Any) -> Any:
    """Return an argument as ctypes has it, if its size and its dtype are those of the kernel's parameter."""
    pointer = kind.endswith("*")
    if isinstance(a, ndarray):
        here(a)
        pointee = TYPES.get(kind.rstrip("* "), "")
        assert pointer, f"{where}: an array of {a.dtype} for a parameter {kind}"
        assert kind.startswith("void") or a.dtype.name == pointee, f"{where}: an array of {a.dtype} for {kind}"
        return ctypes.c_void_p(a._host.ctypes.data)
    if isinstance(a, np.ndarray) and a.size == 1 and a.dtype.fields:
        return (ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes())  # a struct by value
    if isinstance(a, bool | int | float):
        a = np.asarray(a)[()]
    if not isinstance(a, np.generic):
        raise TypeError(f"Unsupported type {type(a)}")
    expected = "uint64" if pointer else TYPES.get(kind, "")
    fits = a.dtype.name == expected or (
        a.dtype.kind in "iu" and expected[-2:] == a.dtype.name[-2:] and "int" in expected
    )
    assert fits, f"{where}: a number of {a.dtype} for a parameter {kind}"
    return (ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes())


def _addresses(args: Any) -> list[int]:
    """Return what may be addresses in structs."""
    structs = [a for a in args if isinstance(a, np.ndarray)]
    return [n for a in structs for n in np.frombuffer(a.tobytes()[: a.nbytes // 8 * 8], np.uint64).tolist() if n]


class RawKernel:
    """A kernel of CUDA C++, which the shim of `tests/device` runs."""

    def __init__(
        self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", *,
        enable_cooperative_groups: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        if type(options) is not tuple:
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.name, self.together = code, name, enable_cooperative_groups
        self.compiled: set[int] = set()
        self._most = 48 * 1024
        self.large_clusters = False
        self.kernel = SimpleNamespace(ptr=id(self))
        FUNCTIONS[id(self)] = self
        if name not in device.entries(code):
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        self.entry = device.entries(code)[name]

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._most

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        if nbytes > card().shared:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._most = nbytes

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        for what in (grid, block):
            if type(what) is not tuple:
                raise TypeError(f"Expected tuple, got {type(what).__name__}")
        _once(self.compiled, self.name)
        x, y = (max(1, n) for n in (*grid, 1)[:2])  # as CuPy does
        threads, gpu, cluster = block[0], card(), self.entry.cluster
        if shared_mem > self._most or threads > 1024:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        possible = cluster <= 8 or self.large_clusters
        if cluster > 1 and (x % cluster or not possible or not gpu.clusters(cluster, threads, shared_mem)):
            raise RuntimeError("CUDA_ERROR_INVALID_CLUSTER_SIZE: cluster misconfiguration")
        if self.together and x * y > gpu.sms * max(1, gpu.shared // (shared_mem + 1024) if shared_mem else 1):
            raise RuntimeError("CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: too many blocks in cooperative launch")
        types = self.entry.types
        assert len(types) == len(args), f"{self.name}: {len(args)} arguments, expected {types}"
        values = [
            _argument(f"{self.name}, argument {k}", t, a) for k, (t, a) in enumerate(zip(types, args, strict=True))
        ]
        record("launches", self.name)
        together = self.together or cluster > 1

        def work() -> None:
            with ONE:
                device.run(self.code, self.name, x, y, threads, shared_mem, cluster, values, together, ORDER.seed)

        run(work, args, _addresses(args))


FUNCTIONS: dict[int, RawKernel] = {}  # by their addresses
ONE = threading.Lock()  # shared memory is a variable of a kernel, so one kernel runs at a time
ORDER = SimpleNamespace(seed=0)  # draws the order in which threads run, 0 for that of their numbers


class RawModule:
    """A text with kernels."""

    def __init__(
        self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc",
        enable_cooperative_groups: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        self.code, self.options, self.enable_cooperative_groups = code, options, enable_cooperative_groups

    def get_function(self, name: str) -> RawKernel:
        together = self.enable_cooperative_groups
        return RawKernel(self.code, name, self.options, enable_cooperative_groups=together)
