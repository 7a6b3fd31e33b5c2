"""CUDA on the CPU below CuPy (`cuda_on_cpu`): it counts, and finds faults."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import cuda_on_cpu

if cuda_on_cpu.missing():
    pytest.skip(cuda_on_cpu.missing(), allow_module_level=True)

import cupy as cp

cuda_on_cpu.watch()


@pytest.fixture(autouse=True)
def clean():
    """After a fault, go on as a new process would."""
    yield
    cuda_on_cpu.recover()


@pytest.fixture
def stream():
    made = cp.cuda.Stream(non_blocking=True)
    with made:
        yield made


def kernel(text, name="k", **options):
    return cp.RawKernel(f'extern "C" __global__ void {text}', name, **options)


def test_counts():
    a = cp.ones((4, 4), "f4")
    (a @ (a + 1)).sum()
    with cuda_on_cpu.counted(names=True) as found:
        b = a + 1
        with cuda_on_cpu.counted() as inner:
            c = a @ b
        assert float(c.sum()) == 128
    expected = {
        "launches": 2,
        "gemm": 1,
        "allocations": 3,
        "to_host": 1,
        "sync": 1,
        "memcpyAsync": 1,
        "modules": 0,
    }
    assert {name: found.counts[name] for name in expected} == expected
    assert (inner.counts["launches"], inner.counts["gemm"]) == (0, 1)
    assert [name.split()[1] for name in found.names[:2]] == [
        "cupy_add__float32_float_float32",
        "GemmEx",
    ]


# ---- faults of kernels


def test_a_missing_barrier_is_found_in_another_order_of_threads():
    text = (
        "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; y[threadIdx.x] = s[63 -"
        " threadIdx.x];"
    )
    turn = kernel(f"k(float* y) {{ {text} }}")
    y = cp.zeros(64, "f4")
    with cuda_on_cpu.configured(seed=1):
        turn((1,), (64,), (y,))
        first = y.get()
    assert np.isnan(first).any()  # of threads that had not begun
    with cuda_on_cpu.configured(seed=2):
        turn((1,), (64,), (y,))
    assert not np.array_equal(first, y.get(), equal_nan=True)


@pytest.mark.parametrize(
    "body",
    [
        "if (threadIdx.x) __syncthreads(); else while (true) __nanosleep(1);",
        "while (atomicAdd(x, 0) == 0);",
        "if (threadIdx.x < 8) __syncwarp(0xffff); else while (atomicCAS(x, 1, 2) != 1);",
    ],
)
def test_threads_that_wait_in_vain_are_found(body):
    with (
        cuda_on_cpu.counted() as asked,
        pytest.raises(cp.cuda.driver.CUDADriverError, match="LAUNCH_FAILED"),
    ):
        kernel(f"k(int* x) {{ {body} }}")((1,), (64,), (cp.zeros(1, "i4"),))
    assert "threads wait for what never comes" in asked.problems[0]
    # nothing works after that, as on a device
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.runtime.deviceSynchronize()


@pytest.mark.parametrize("place", ["shared", "pool", "variable"])
def test_memory_that_nobody_wrote_is_not_a_number(place):
    x = cp.zeros(1 << 10, "f4")
    del x  # its block is taken again
    y = cp.empty(1 << 10, "f4")
    if place != "pool":
        declared = "extern __shared__ float s[];" if place == "shared" else "__shared__ float s[1];"
        kernel(f"k(float* y) {{ {declared} y[threadIdx.x] = s[0]; s[0] = 0; }}")(
            (2,), (1,), (y,), shared_mem=4
        )
        y = y[:1]
    assert np.isnan(y.get()).all()


@pytest.mark.parametrize(
    ("words", "threads", "shared"),
    [("", 1025, 0), ("__launch_bounds__(32)", 64, 0), ("", 64, 50_000)],
)
def test_launches_beyond_limits_are_refused(words, threads, shared):
    with (
        cuda_on_cpu.counted() as asked,
        pytest.raises(cp.cuda.driver.CUDADriverError, match="INVALID_VALUE"),
    ):
        kernel(f"{words} k() {{}}")((1,), (threads,), (), shared_mem=shared)
    assert "beyond limits" in asked.problems[0]


# ---- streams


@pytest.mark.parametrize("waits", [True, False])
def test_a_missing_event_is_found_where_streams_are_lazy(waits):
    with cuda_on_cpu.configured(lazy=1):
        a = cp.zeros(4)
        one = cp.cuda.Stream(non_blocking=True)
        two = cp.cuda.Stream(non_blocking=True)
        cp.cuda.runtime.deviceSynchronize()
        with one:
            a += 1
            event = one.record()
        with two:
            if waits:
                two.wait_event(event)
            found = (a * 2).get().tolist()
        cp.cuda.runtime.deviceSynchronize()
    assert found == [2.0 if waits else 0.0] * 4


# ---- memory that was given back


@pytest.mark.parametrize("gone", ["array", "pool", "allocator"])
def test_a_launch_on_memory_that_was_given_back_is_found(gone):
    """It went back to its pool, or to the device: a pool that is gone tells nobody of the end of
    its arrays.
    """
    pool = cp.cuda.MemoryPool()
    with cp.cuda.using_allocator(None if gone == "allocator" else pool.malloc):
        x = cp.ones(4)
        look = kernel("k(double* x) {}")  # whose memory may be the host's then
    with cuda_on_cpu.counted() as asked:
        look((1,), (1,), (x,))
        assert not asked.problems
        address = np.uintp(x.data.ptr)
        if gone == "pool":
            del pool
        del x
        look((1,), (1,), (address,))
    assert [problem[:26] for problem in asked.problems] == ["memory that was given back"]


# ---- graphs


def test_a_graph_does_what_was_captured_with_each_launch(stream):
    a = cp.zeros(4)
    a += 1
    a *= 1
    stream.begin_capture()
    a += 1
    a *= 2
    graph = stream.end_capture()
    assert a.get().tolist() == [1] * 4
    with cuda_on_cpu.counted() as asked:
        graph.launch(stream)
        graph.launch(stream)
    assert a.get().tolist() == [10] * 4
    assert (asked.counts["graphs"], asked.counts["launches"], asked.problems) == (2, 0, [])


def test_a_graph_is_not_launched_on_memory_that_was_given_back(stream):
    a = cp.ones(4)
    y = cp.zeros(4)
    cp.add(a, 1, y)
    stream.begin_capture()
    cp.add(a, 1, y)
    graph = stream.end_capture()
    graph.launch(stream)
    assert y.get().tolist() == [2] * 4
    del a
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="IllegalAddress"):
        graph.launch(stream)


def test_memory_of_a_capture_that_others_get_is_found(stream):
    a = cp.ones(4)
    y = cp.zeros(4)
    cp.add(a * 2, a, y)
    stream.begin_capture()
    cp.add(a * 2, a, y)  # a * 2 went back to the pool, and the graph will write there
    graph = stream.end_capture()
    graph.launch(stream)
    assert y.get().tolist() == [3] * 4
    others = cp.zeros(4)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="IllegalAddress"):
        graph.launch(stream)
    del others
    graph.launch(stream)


REFUSED = {
    "wait": lambda stream, outside: stream.synchronize(),
    "wait for all": lambda stream, outside: cp.cuda.runtime.deviceSynchronize(),
    "wait for an event": lambda stream, outside: stream.record().synchronize(),
    "copy": lambda stream, outside: cp.cuda.runtime.memcpy(
        cp.zeros(1).data.ptr, cp.zeros(1).data.ptr, 8, 3
    ),
    "malloc": lambda stream, outside: cp.cuda.runtime.malloc(512),
    "outside": lambda stream, outside: stream.wait_event(outside),
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_a_capture_refuses(stream, call):
    outside = cp.cuda.Stream(non_blocking=True).record()
    cp.zeros(1)
    stream.begin_capture(cp.cuda.runtime.streamCaptureModeGlobal)
    with (
        cuda_on_cpu.counted() as asked,
        pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Capture"),
    ):
        REFUSED[call](stream, outside)
    assert asked.problems
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="CaptureInvalidated"):
        stream.end_capture()


def test_a_capture_ends_when_its_streams_have_been_waited_for(stream):
    side = cp.cuda.Stream(non_blocking=True)
    a = cp.ones(3)

    def captured(waits):
        stream.begin_capture()
        side.wait_event(stream.record())
        with side:
            cp.negative(a, out=a)
        if waits:
            stream.wait_event(side.record())
        return stream.end_capture()

    captured(True).launch()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnjoined"):
        captured(False)
    captured(True).launch()
    assert (a == 1).all()


def test_a_product_in_a_capture_has_a_workspace_and_is_not_the_first_of_its_kind(stream):
    cublas = ctypes.CDLL(cuda_on_cpu.HOME / "lib/libcublas.so.12")
    handle = ctypes.c_void_p()
    A = cp.ones((2, 2), "f4")
    one = ctypes.c_float(1)
    workspace = cp.empty(64)

    # of cublasGemmEx: 68 is float32, and 75, which no other test takes, bfloat16
    def product(compute):
        a = ctypes.c_void_p(A.data.ptr)
        factor = ctypes.byref(one)
        shape = (0, 0, 2, 2, 2)
        matrix = (a, 0, 2)
        return cublas.cublasGemmEx(
            handle, *shape, factor, *matrix, *matrix, factor, *matrix, compute, -1
        )

    cublas.cublasCreate_v2(ctypes.byref(handle))
    cublas.cublasSetStream_v2(handle, ctypes.c_void_p(stream.ptr))
    assert product(68) == 0
    found = []
    stream.begin_capture()
    with cuda_on_cpu.counted() as asked:
        found.append(product(68))
        cublas.cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.data.ptr), workspace.nbytes)
        found += [product(75), product(68)]
    stream.end_capture()
    assert found == [14, 14, 0]
    assert [problem.split()[-1] for problem in asked.problems] == ["workspace", "kind"]
    cublas.cublasDestroy_v2(handle)
