"""Threads of our own, the BLAS threads beside them, and memory that is used again."""

import gc
import os
import threading
import time

import numpy as np
import pytest
import threadpoolctl

import xlstm
from tests.conftest import force
from xlstm import blas, plan, threads, workspace
from xlstm.plan import Plan
from xlstm.runs import split


def test_results_come_in_the_order_of_the_tasks():
    with threads.team(3) as team:
        seen = team.run([lambda k=k: (k, threading.get_ident()) for k in range(7)])
    assert [k for k, _ in seen] == list(range(7))
    assert len({ident for _, ident in seen}) == 3
    assert seen[0][1] == threading.get_ident()


def test_a_team_of_one_needs_no_thread():
    before = threading.active_count()
    with threads.team(1) as team:
        assert team.run([lambda: 1, lambda: 2]) == [1, 2]
    assert threading.active_count() == before


@pytest.mark.parametrize("where", [0, 1])
def test_an_error_is_raised_once_nobody_works_any_more(where):
    done = []

    def slow():
        time.sleep(0.05)
        done.append(True)

    def fail():
        raise ZeroDivisionError("in a thread")

    tasks = [slow, slow]
    tasks[where] = fail
    with threads.team(2) as team:
        with pytest.raises(ZeroDivisionError, match="in a thread"):
            team.run(tasks)
        assert done == [True]
        assert team.run([lambda: 1, lambda: 2]) == [1, 2]


def test_blas_has_one_thread_each_and_afterwards_what_it_had():
    before = [lib.num_threads for lib in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers]
    assert before
    with threads.team(2) as team:
        inside = team.run([blas.now, blas.now])
    assert inside == [1, 1]
    with pytest.raises(KeyError), threads.team(2):
        raise KeyError
    after = [lib.num_threads for lib in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers]
    assert after == before


def test_the_error_state_of_numpy_goes_along():
    def overflow():
        return np.exp(np.float64(1000.0))

    with threads.team(2) as team:
        with np.errstate(over="ignore"):
            assert team.run([overflow, overflow]) == [np.inf, np.inf]
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            team.run([lambda: None, overflow])


def test_products_are_shared_out(rng, monkeypatch):
    monkeypatch.setattr(threads, "LARGE", 0)
    pairs = [
        (rng.standard_normal((m, k)), rng.standard_normal((k, n))) for m, k, n in ((7, 5, 3), (1, 4, 4), (200, 90, 16))
    ]
    pairs.append((rng.standard_normal((30, 50)).T, rng.standard_normal((30, 4))))
    with threads.team(2) as team:
        found = team.products(pairs)
    for (a, b), c in zip(pairs, found, strict=True):
        np.testing.assert_allclose(c, a @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(512, 300, 16), (130, 260, 8), (64, 4096, 32), (96, 6000, 16), (33, 5003, 40), (40, 9, 3)]
)
def test_products_in_tiles_equal_whole_ones(rng, shape, monkeypatch):
    """With the tiles that OpenBLAS' AVX-512 kernels get, whatever the BLAS here is."""
    monkeypatch.setattr(blas, "_unpacked", lambda scipy: True)
    R, K, n = shape
    a, b = rng.standard_normal((R, K)), rng.standard_normal((K, n))
    with blas.limited(1):
        out = np.empty((R, n))
        blas.product(a, b, out)
        np.testing.assert_allclose(out, a @ b, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose((blas.blocks(a, n) @ b).reshape(R, n), a @ b, rtol=1e-11, atol=1e-11)
        rows, pieces = blas.tiles(R, K, n)
        assert (rows, pieces) == (R, 1) or (rows * (K // pieces) * n <= blas.SMALL and K % pieces == 0)


def test_the_number_of_threads_is_the_variables_or_blas(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert threads.available() == blas.threads()
    monkeypatch.setenv(threads.VARIABLE, "3")
    assert threads.available() == 3
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv(threads.VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"XLSTM_NUM_THREADS: '{wrong}' is not a number of threads, expected 1 or"):
            threads.available()


@pytest.fixture
def usual(monkeypatch):
    """Plans as they are outside of tests, on four threads."""
    monkeypatch.setenv(threads.VARIABLE, "4")
    for name, value in {"TINY": 10**6, "COLUMNS": 8, "UNITS": 8192, "HUGE": 1 << 21}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(threads, "LARGE", 10**7)


def of(H, B, T, directions=1, compilable=True, xp=np):
    return Plan.of(xp, [np.empty((4 * H, H), dtype=np.float32)] * directions, H, B, B * T, compilable)


def test_plans(usual):
    assert of(64, 1, 32) == Plan(compiled=True)  # BLAS does by itself
    assert of(64, 1, 400) == Plan(blas=1, compiled=True)
    assert of(256, 64, 100) == Plan(4, 1, parts=4, compiled=True)
    assert of(256, 64, 100, directions=2) == Plan(4, 1, parts=2, compiled=True)
    assert of(256, 64, 100, compilable=False) == Plan(blas=4)  # too few units in a part
    assert of(512, 128, 100, compilable=False) == Plan(4, 1, parts=4)
    assert of(512, 16, 100) == Plan(4, 1, parts=2, compiled=True)  # half of them have work
    assert of(512, 8, 100) == Plan(blas=4)  # too few sequences for threads of our own: they are left to BLAS
    assert of(64, 8, 400) == Plan(4, 1, parts=1, compiled=True)  # its product is too small for them
    assert of(1024, 32, 10) == Plan(4, 1, compiled=True, shared=True)
    assert of(1024, 32, 10, compilable=False) == Plan(4, 1, parts=4)
    assert of(512, 64, 100, xp=None, compilable=False) == Plan()


def test_one_thread_bounds_blas_too(usual, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "1")
    assert of(512, 64, 100) == Plan(blas=1, compiled=True)
    assert of(512, 64, 100, compilable=False).blas == 1


def test_parts_have_about_equal_work():
    runs = [(3, 10), (2, 7), (5, 2)]  # steps, width
    parts = split(runs, 3)
    assert sum(run.k * run.n for part in parts for run in part) == sum(k * n for k, n in runs)
    work = [sum(run.k * run.n for run in part) for part in parts]
    assert max(work) - min(work) <= 10
    for part in parts:
        assert [run.at for run in part] == [0, 30, 44][: len(part)]
    assert [run.first for part in parts for run in part[:1]] == sorted(run.first for part in parts for run in part[:1])
    assert split([(4, 2)], 5) == [[(4, 1, 0, 0, 2)], [(4, 1, 1, 0, 2)]]
    assert split([], 2) == split([(4, 0)], 2) == []


def test_large_memory_is_used_again_once_nobody_refers_to_it():
    like = np.zeros(1, dtype=np.float32)
    a = workspace.empty(np, (300, 300), like)
    place = a.ctypes.data
    view = a[10:20].T
    del a
    b = workspace.empty(np, (300, 300), like)
    assert b.ctypes.data != place
    del view
    c = workspace.empty(np, (310, 290), like)
    assert c.ctypes.data == place
    assert c.shape == (310, 290)
    assert c.flags.writeable
    assert c.dtype == np.float32


def test_little_memory_is_kept(monkeypatch):
    monkeypatch.setattr(workspace, "LIMIT", 3 << 20)
    monkeypatch.setattr(workspace, "_spare", [])
    like = np.zeros(1, dtype=np.float64)
    arrays = [workspace.empty(np, (1 << 17,), like) for _ in range(8)]  # 1 MB each
    del arrays
    gc.collect()
    assert len(workspace._spare) == 3
    workspace.empty(np, (10,), like)  # a small one is not from there
    assert len(workspace._spare) == 3


def test_a_layer_gives_its_memory_back_without_the_garbage_collector(rng):
    """Nothing in a pass refers to itself: the memory of one training step is there for the next."""
    layer = xlstm.LSTM(8, 64)
    params = layer.init(0, "numpy")
    x = rng.standard_normal((200, 16, 8)).astype(np.float32)
    gc.disable()
    try:
        for _ in range(2):
            y, _, saved = layer.forward(params, x)
            layer.backward(params, saved, y)
        del y, saved
        spare = {memory.ctypes.data for memory in workspace._spare}
        _, _, saved = layer.forward(params, x)
        assert saved["0"].saved.hs.base.memory.ctypes.data in spare
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    with threads.team(2) as team:
        team.run([lambda: 1, lambda: 2])
    child = os.fork()
    if child == 0:
        with threads.team(2) as team:
            fine = team.run([lambda: 1, lambda: 2]) == [1, 2]
        os._exit(0 if fine else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    pytest.fail("the child hangs")


def test_several_callers_take_turns(rng, monkeypatch):
    """Layers called from several threads of the user's at once give what they give alone."""
    force("parts", monkeypatch)
    layer = xlstm.GRU(3, 5)
    params = layer.init(0, "numpy", "float64")
    x = rng.standard_normal((6, 4, 3))
    expected, _, _ = layer.forward(params, x)
    found, errors = [], []

    def call():
        try:
            for _ in range(20):
                y, _, saved = layer.forward(params, x)
                layer.backward(params, saved, y)
                found.append(y)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not errors
    assert len(found) == 60
    for y in found:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_variable_bounds_the_parts_of_a_batch(rng, monkeypatch, count):
    force("parts", monkeypatch, count)
    layer = xlstm.LSTM(3, 5)
    params = layer.init(0, "numpy", "float64")
    _, _, saved = layer.forward(params, rng.standard_normal((6, 9, 3)))
    sizes = [run.n for part in saved["0"].saved.parts for run in part.runs]
    assert sizes == {1: [9], 2: [4, 5], 3: [3, 3, 3]}[count]


def test_a_task_cannot_give_work_to_its_own_team():
    with threads.team(2) as team, pytest.raises(RuntimeError, match="a task of a team cannot give it work"):
        team.run([lambda: 1, lambda: team.run([lambda: 2, lambda: 3])])


def test_how_many_threads_does_not_depend_on_who_works_meanwhile(monkeypatch):
    """A plan, and with it every bit, is the same while another thread of the program has limited BLAS."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    count = threads.available()
    with blas.limited(count + 1):
        assert threads.available() == count
    assert threads.available() == count
    with pytest.raises(ZeroDivisionError), blas.limited(count + 1):
        raise ZeroDivisionError
    assert not blas._limited


@pytest.mark.parametrize(
    ("count", "H", "B", "directions", "expected"),
    [
        (2, 256, 64, 1, Plan(2, 1, 2, compiled=True)),
        (3, 256, 64, 1, Plan(3, 1, 3, compiled=True)),
        (3, 256, 64, 2, Plan(3, 1, 1, compiled=True)),
        (4, 128, 32, 2, Plan(4, 1, 2, compiled=True)),
        (8, 128, 32, 1, Plan(8, 1, 4, compiled=True)),
        (16, 512, 64, 1, Plan(16, 1, 8, compiled=True)),
        (16, 512, 8, 1, Plan(blas=16)),  # no more than one part: BLAS takes the threads
        (3, 1024, 32, 2, Plan(3, 1, compiled=True, shared=True)),
        (2, 1024, 32, 2, Plan(2, 1, 1, compiled=True)),  # a direction each
    ],
)
def test_plans_for_more_than_two_threads(monkeypatch, count, H, B, directions, expected):
    monkeypatch.setenv(threads.VARIABLE, str(count))
    weights = [np.zeros((4 * H, H), dtype=np.float32)] * directions
    assert Plan.of(np, weights, H, B, 100 * B, True) == expected


def test_memory_given_back_while_some_is_taken(monkeypatch):
    """The collector may end a lease within `empty`: it must not wait for the lock, nor change what is chosen from."""
    monkeypatch.setattr(workspace, "_spare", [])
    like = np.zeros(1)
    array = workspace.empty(np, (1 << 17,), like)
    place = array.ctypes.data
    with workspace._lock:
        del array
        assert workspace._spare == []
    again = workspace.empty(np, (1 << 17,), like)
    assert again.ctypes.data == place
