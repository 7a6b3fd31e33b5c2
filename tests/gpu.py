"""CuPy for tests of what runs there alone: on a card, or on a CPU (`cuda_on_cpu`), where calls are
counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cuda_on_cpu
from tests.conftest import BACKENDS, make_backend
from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import kernel_fallback
from xlstm.engines.cuda import launch


def needed() -> Any:
    """CuPy, for a module of tests that is skipped, with the reason, where CuPy is not usable."""
    if "cupy" not in BACKENDS:
        pytest.skip("XLSTM_TEST_BACKENDS leaves CuPy out", allow_module_level=True)
    try:
        make_backend("cupy")
    except pytest.skip.Exception as reason:
        pytest.skip(str(reason), allow_module_level=True)
    return optional_imports.cupy()


def half(name: str) -> np.dtype:
    """The dtype of a name; NumPy by itself has no bfloat16."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def as_it_lies(a: np.ndarray) -> Any:
    """The CuPy array with the values of one of NumPy and its strides, those of broadcasts and views
    as well.
    """
    if a.size == 0:
        return optional_imports.cupy().asarray(a)
    low, high = np.lib.array_utils.byte_bounds(a)
    raw = optional_imports.cupy().asarray(
        np.frombuffer((ctypes.c_char * (high - low)).from_address(low), np.uint8)
    )
    return optional_imports.cupy().ndarray(
        a.shape, a.dtype, raw.data + (a.ctypes.data - low), a.strides
    )


class Counts:
    """The requests of a block of code to the device."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def of(self, *kinds: str) -> int:
        return sum(self.found.counts[kind] for kind in kinds)

    operations = property(
        lambda self: self.of("launches", "gemm", "memset", "memcpyAsync", "memcpy", "graphs")
    )
    products = property(lambda self: self.of("gemm"))
    to_device = property(lambda self: self.of("to_device"))
    to_host = property(lambda self: self.of("to_host"))
    waits = property(lambda self: self.of("sync"))
    allocations = property(lambda self: self.of("allocations"))
    compiled = property(lambda self: self.of("modules"))

    @property
    def streams(self) -> set[int]:
        """Addresses of those that had operations."""
        return {
            int(found[1], 16)
            for line in self.found.names
            if (found := re.match(r"  ([0-9a-f]+) \S", line))
        }

    def places(self) -> str:
        return "\n".join(self.found.names)


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count what a `with` block asks of the device."""
    on_cpu()
    with cuda_on_cpu.counted(names=True) as found:
        yield Counts(found)


def on_cpu() -> None:
    """Skip a test that needs counts, or an order of threads, where a card runs it."""
    if cuda_on_cpu.missing():
        pytest.skip("operations are counted where CuPy runs on a CPU (cuda_on_cpu)")


def timed_as_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs that time a card run where CuPy runs on the CPU."""
    monkeypatch.setattr("bench.rows.card", lambda: make_backend("cupy", "float32"))


def two_devices() -> None:
    """Skip a test where there is one device."""
    if optional_imports.cupy().cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")


@contextlib.contextmanager
def refusing(stage: str, part: str) -> Iterator[None]:
    """Refuse kernels in a `with` block, which is one process's first contact with a card.

    Those whose text has a part are not compiled or not loaded; those whose name begins with it are
    not launched.
    """
    on_cpu()
    cupy = optional_imports.cupy()
    compiler = importlib.import_module("cupy.cuda.compiler")
    whole = compiler._compile_module_with_cache

    def refuse(text: str, *arguments: Any, **options: Any) -> Any:
        if part in text and stage == "compile":
            message = f"/tmp/tmp{len(text)}/kernel.cu(3): error: {part} has no meaning\n1 error"
            raise compiler.CompileException(message, text, "kernel.cu", ())
        if part in text and stage == "load":
            raise cupy.cuda.driver.CUDADriverError(209)
        return whole(text, *arguments, **options)

    first_contact()
    cuda_on_cpu.library().cuda_on_cpu_refuse(part.encode() if stage == "launch" else b"")
    compiler._compile_module_with_cache = refuse
    try:
        yield
    finally:
        compiler._compile_module_with_cache = whole
        cuda_on_cpu.library().cuda_on_cpu_refuse(b"")
        first_contact()


def first_contact() -> None:
    """Forget all kernels, and what is known against them."""
    optional_imports.cupy().clear_memo()
    for module in [
        made
        for name, made in sys.modules.items()
        if name.startswith(("xlstm.arrays", launch.__name__))
    ]:
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
    kernel_fallback.forget()
