"""CuPy acted out on NumPy arrays: the text of its kernels compiled by g++, and cuBLAS by its definition.

The results of a kernel, with broadcasting, strides and types, can so be tested without a GPU; the things that only a
GPU does (races, its exp and fused multiply-add, speed) cannot.
"""

from __future__ import annotations

import ctypes
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from tests.compilers import load
from xlstm.arrays import concat, fuse, matmul, probe, rows, scan

BFLOAT16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)

# Halves have what CuPy's classes have: they are made from a float, and become one.
PRELUDE = """
extern "C" {
  double tanh(double), exp(double), expm1(double), log(double), log1p(double), sqrt(double), fabs(double);
  float tanhf(float), expf(float), expm1f(float), logf(float), log1pf(float), sqrtf(float), fabsf(float);
}
typedef float float32;
typedef double float64;
typedef long long int64;
struct float16 {
  _Float16 value;
  explicit float16(float x) : value(x) {}
  float16& operator=(float x) { value = x; return *this; }
  operator float() const { return value; }
};
struct bfloat16 {
  unsigned short bits;
  bfloat16& operator=(float x) {
    unsigned all;
    __builtin_memcpy(&all, &x, 4);
    bits = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    return *this;
  }
  operator float() const {
    unsigned all = (unsigned)bits << 16;
    float x;
    __builtin_memcpy(&x, &all, 4);
    return x;
  }
};
"""
LOOP = """
extern "C" void run(char** at, const long long* shape, const long long* strides, long long ndim) {{
  long long size = 1;
  for (long long axis = 0; axis < ndim; ++axis) size *= shape[axis];
  for (long long i = 0; i < size; ++i) {{
    long long offset[{count}] = {{}};
    for (long long axis = ndim - 1, rest = i; axis >= 0; rest /= shape[axis--])
      for (int a = 0; a < {count}; ++a) offset[a] += rest % shape[axis] * strides[a * ndim + axis];
    {refer}
    {body}
  }}
}}
"""


@functools.cache
def compiled(text: str):
    """The function `run` of a text in C++."""
    found = load(text, "g++", "-x", "c++", "-O1", "-w").run
    found.restype = None
    return found


class ElementwiseKernel:
    """That of CuPy, of arrays of NumPy."""

    launches = 0

    def __init__(self, in_params, out_params, operation, name="kernel"):
        self.inputs, self.outputs = ([p.split() for p in text.split(", ")] for text in (in_params, out_params))
        both = [*self.inputs, *self.outputs]
        refer = [
            f"{'const ' if k < len(self.inputs) else ''}{kind} &{name} = *({kind}*)(at[{k}] + offset[{k}]);"
            for k, (kind, name) in enumerate(both)
        ]
        self.text = PRELUDE + LOOP.format(count=len(both), refer="\n    ".join(refer), body=operation + ";")
        self.name = name

    def __call__(self, *args):
        ElementwiseKernel.launches += 1
        given = []
        for (kind, name), a in zip(self.inputs, args, strict=False):
            if isinstance(a, np.ndarray):
                assert a.dtype.name == kind, f"{self.name}: {name} is {a.dtype}, expected {kind}"
            given.append(np.asarray(a) if isinstance(a, np.ndarray) else np.array(a, dtype=kind))
        outs = list(args[len(self.inputs) :])
        shape = np.broadcast_shapes(*(a.shape for a in (*given, *outs)))
        outs = outs or [np.empty(shape, dtype=kind) for kind, _ in self.outputs]
        for (kind, name), out in zip(self.outputs, outs, strict=True):
            assert out.dtype.name == kind, f"{self.name}: {name} is {out.dtype}, expected {kind}"
            assert out.shape == shape, f"{self.name}: {name} has shape {out.shape}, expected {shape}"
            assert out.flags.writeable
        arrays = [*(np.broadcast_to(a, shape) for a in given), *outs]
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        strides = np.array([a.strides for a in arrays], dtype=np.int64)
        sizes = np.array(shape, dtype=np.int64)
        call = (ctypes.c_void_p(sizes.ctypes.data), ctypes.c_void_p(strides.ctypes.data))
        if 0 not in shape:
            compiled(self.text)(pointers, *call, ctypes.c_longlong(len(shape)))
        return outs[0] if len(outs) == 1 else tuple(outs)


class ReductionKernel:
    """That of CuPy for sums."""

    def __init__(self, in_params, out_params, map_expr, reduce_expr, post_map_expr, identity, name, reduce_type):
        assert (reduce_expr, identity) == ("a + b", "0")
        kind = {"float": "float32", "double": "float64"}[reduce_type]
        self.map = ElementwiseKernel(in_params, f"{kind} a", f"a = {map_expr}", name)
        self.post = ElementwiseKernel(f"{kind} a", out_params, post_map_expr, name)

    def __call__(self, *args, axis):
        found = self.post(np.asarray(np.sum(self.map(*args), axis=axis)))
        ElementwiseKernel.launches -= 1
        return found


def memory(address: int, dtype: np.dtype, sizes, strides):
    """An array over memory that is there; strides in elements."""
    if 0 in sizes:
        return np.empty(sizes, dtype=dtype)
    last = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    raw = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(address)
    return as_strided(
        np.frombuffer(raw, dtype=f"u{dtype.itemsize}").view(dtype), sizes, [s * dtype.itemsize for s in strides]
    )


class Cublas:
    """Products as cuBLAS defines them: of matrices whose columns lie one after the other."""

    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 69, 77
    CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC, CUBLAS_GEMM_DEFAULT = 70, 71, -1
    calls: list[dict]

    def __init__(self):
        self.calls = []

    def gemmStridedBatchedEx(  # noqa: N802
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype,
        ldc, strideC, batch, compute, algo,
    ):  # fmt: skip
        kinds = {0: np.dtype("float32"), 1: np.dtype("float64"), 2: np.dtype("float16"), 14: BFLOAT16}
        assert Atype == Btype
        assert Ctype in (Atype, 0 if Atype in (2, 14) else Atype)  # sums of halves may stay in float32
        assert (compute in (70, 71)) == (Atype == 1)
        assert lda >= max(1, k if transa else m)
        assert ldb >= max(1, n if transb else k)
        assert ldc >= max(1, m)
        self.calls.append({"compute": compute, "batch": batch, "transposed": (transa, transb)})
        one = np.dtype("float64" if Atype == 1 else "float32")
        scale, keep = (memory(at, one, (1,), (1,))[0] for at in (alpha, beta))
        dtype = kinds[Atype]
        a = memory(A, dtype, (batch, m, k), (strideA, lda, 1) if transa else (strideA, 1, lda))
        b = memory(B, dtype, (batch, k, n), (strideB, ldb, 1) if transb else (strideB, 1, ldb))
        c = memory(C, kinds[Ctype], (batch, m, n), (strideC, 1, ldc))
        # cuBLAS reads nothing of what it is told to multiply by 0
        before = keep * c.astype(one) if keep else 0
        c[...] = scale * (a.astype(one) @ b.astype(one)) + before


class Acted(SimpleNamespace):
    """The parts of CuPy that are used; `copies` counts those that products had to make."""

    def ascontiguousarray(self, a):
        self.copies += 1
        return np.ascontiguousarray(a)


def act(patch: pytest.MonkeyPatch) -> Acted:
    """Let arrays of NumPy take the paths of CuPy."""
    cublas = Cublas()
    cupy = Acted(
        ElementwiseKernel=ElementwiseKernel,
        ReductionKernel=ReductionKernel,
        **{name: getattr(np, name) for name in ("empty", "zeros", "broadcast_to")},
        cuda=SimpleNamespace(cublas=cublas, get_cublas_handle=lambda: 0),
        _core=SimpleNamespace(get_compute_type=lambda dtype: 1),
        cublas=cublas,
        copies=0,
    )
    for cache in (fuse._kernel, fuse._total, scan._kernel):
        patch.setattr(cache.__module__ + "." + cache.__name__, functools.cache(cache.__wrapped__))
    patch.setattr(fuse, "CUPY", "numpy")
    patch.setattr(concat, "_takes", lambda *arguments: False)
    patch.setattr(rows, "_launched", lambda *arguments: None)
    patch.setattr(probe, "cupy", lambda: cupy)
    patch.setattr(matmul, "_address", lambda a: a.ctypes.data)
    return cupy
