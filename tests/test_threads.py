"""Work shared out among threads, the rules of plan.py, and how many threads there are."""

import queue
import threading
import time

import numpy as np
import pytest
import threadpoolctl

import xlstm
from tests.conftest import force
from xlstm.arrays import blas, cores, pool, threads
from xlstm.cells import lstm
from xlstm.engines import plan
from xlstm.engines.numba import tape
from xlstm.engines.plan import SOLO, Rule
from xlstm.engines.segments import split
from xlstm.engines.step import Masks, Step
from xlstm.estimators import forecaster


@pytest.fixture
def two_cores(monkeypatch):
    """As many workers as for two cores at least, whatever this machine has."""
    monkeypatch.setattr(cores, "usable", lambda: 2)


@pytest.mark.usefixtures("two_cores")
def test_results_come_in_the_order_of_the_tasks_and_two_threads_do_them():
    together = threading.Barrier(2, timeout=60)  # passed only where two tasks run side by side

    def do(k):
        if k < 2:
            together.wait()
        return k, threading.get_ident()

    seen = threads.work(3, lambda team: team.run([lambda k=k: do(k) for k in range(7)]))
    assert [k for k, _ in seen] == list(range(7))
    assert len({ident for _, ident in seen}) == 2
    assert threading.get_ident() in {ident for _, ident in seen}


def test_a_team_of_one_needs_no_thread():
    before = threading.active_count()
    assert threads.work(1, lambda team: team.run([lambda: 1, lambda: 2])) == [1, 2]
    assert threading.active_count() == before


def test_more_parts_than_cores_need_no_more_threads(monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 1)
    idents = threads.work(8, lambda team: team.run([threading.get_ident] * 8))
    assert set(idents) == {threading.get_ident()}


@pytest.mark.usefixtures("two_cores")
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

    def call(team):
        with pytest.raises(ZeroDivisionError, match="in a thread"):
            team.run(tasks)
        seen = list(done)
        assert team.run([lambda: 1, lambda: 2]) == [1, 2]
        return seen

    seen = threads.work(2, call)
    time.sleep(0.1)
    assert done == seen  # whatever had begun was waited for, and nothing began afterwards


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_a_worker_starts_leaves_none_that_never_works(monkeypatch, error, started):
    start = threading.Thread.start

    def interrupted(thread):
        if started:
            start(thread)
            time.sleep(0.1)
        raise error

    monkeypatch.setattr(pool, "workers", [])
    monkeypatch.setattr(pool, "jobs", queue.SimpleQueue())
    monkeypatch.setattr(pool, "board", np.zeros(pool.SIZE, np.int64))
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    if error is RuntimeError:
        assert pool.employ(1) == int(started)
    else:
        with pytest.raises(error):
            pool.employ(1)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert pool.employ(1) == 1
    assert len(pool.workers) == 1
    done = threading.Event()
    pool._call(done.set)
    assert done.wait(60)


def test_blas_has_one_thread_each_and_afterwards_what_it_had():
    before = [lib.num_threads for lib in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers]
    assert before
    assert threads.work(2, lambda team: team.run([blas.now, blas.now])) == [1, 1]

    def fail(team):
        raise KeyError

    with pytest.raises(KeyError):
        threads.work(2, fail)
    after = [lib.num_threads for lib in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers]
    assert after == before


def test_the_error_state_of_numpy_goes_along():
    def overflow():
        return np.exp(np.float64(1000.0))

    def call(team):
        with np.errstate(over="ignore"):
            assert team.run([overflow, overflow]) == [np.inf, np.inf]
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            team.run([lambda: None, overflow])

    threads.work(2, call)


def test_the_number_of_threads_is_the_variables_or_blas(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(cores, "usable", lambda: 64)
    assert threads.available() == blas.threads()
    with threadpoolctl.threadpool_limits(1):
        assert threads.available() == 1
    monkeypatch.setattr(cores, "usable", lambda: 1)
    assert threads.available() == 1
    for right, number in {"3": 3, "1024": 1024, "007": 7}.items():
        monkeypatch.setenv(threads.VARIABLE, right)
        assert threads.available() == number


WRONG = ("0", "00", "-1", "+1", "two", "1.5", "1_0", " 2", "\N{SUPERSCRIPT TWO}", "1025", "1" + 20 * "0", 5000 * "9")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_number_of_threads_is_refused_by_every_call(monkeypatch, wrong, rng):
    """However small the layer is; only a step of a recurrent layer, which has one thread, does not look at it."""
    x = rng.standard_normal((2, 1, 3))
    lstm, mlstm = xlstm.LSTM(3, 2), xlstm.mLSTM(3, 2)
    given = [(layer, layer.init(0, "numpy", "float64")) for layer in (lstm, mlstm)]
    series = rng.standard_normal(40)
    settings = forecaster.Settings(epochs=1, hidden_size=2, window=4)
    monkeypatch.setenv(threads.VARIABLE, wrong)
    calls = [lambda layer=layer, p=p: layer.forward(p, x) for layer, p in given]
    calls += [threads.available, lambda: forecaster.Forecaster(settings, "numpy").fit(series)]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"^XLSTM_NUM_THREADS: .* is not a number of threads, expected 1 to 1024$"
        ) as e:
            call()
        assert len(str(e.value)) < 160


@pytest.fixture
def usual(monkeypatch):
    """Rules as they are outside of tests, on four threads."""
    monkeypatch.setenv(threads.VARIABLE, "4")
    for name, value in {"TINY": 10**6, "COLUMNS": 8, "UNITS": 8192}.items():
        monkeypatch.setattr(plan, name, value)


def of(H, B, T, xp=np):
    """The rule for an LSTM of one width."""
    W, x = np.empty((4 * H, H), dtype=np.float32), np.empty((B * T, H), dtype=np.float32)
    return plan.choose(Step(xp, lstm.Cell(), {"Wx": W, "Wh": W}, Masks()), x, B)


PARTS, BLAS = "parts of the batch", "BLAS's threads"


def test_rules(usual):
    assert of(64, 1, 16) == Rule("small")  # BLAS uses one thread by itself
    assert of(64, 1, 32) == Rule("small", turn=True)
    assert of(64, 1, 400) == Rule(BLAS, 1, 4, 4)
    assert of(256, 64, 100) == Rule(BLAS, 1, 4, 4)  # too few units in a part
    assert of(512, 128, 100) == Rule(PARTS, 4, 1, 4)
    assert of(512, 8, 100) == Rule(BLAS, 1, 4, 4)
    assert of(1024, 32, 10) == Rule(PARTS, 4, 1, 4)
    assert of(512, 64, 100, xp=None) == SOLO


def test_one_thread_bounds_blas_too(usual, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "1")
    assert of(512, 64, 100) == Rule(BLAS, 1, 1, 1)


def test_parts_have_about_equal_work():
    widths = [(3, 10), (2, 7), (5, 2)]  # steps, width
    parts = split(widths, 3)
    assert sum(s.k * s.n for part in parts for s in part) == sum(k * n for k, n in widths)
    work = [sum(s.k * s.n for s in part) for part in parts]
    assert max(work) - min(work) <= 10
    for part in parts:
        assert [s.at for s in part] == [0, 30, 44][: len(part)]
    firsts = [s.first for part in parts for s in part[:1]]
    assert firsts == sorted(firsts)
    assert split([(4, 2)], 5) == [[(4, 1, 0, 0, 2)], [(4, 1, 1, 0, 2)]]
    assert split([], 2) == split([(4, 0)], 2) == []


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
    monkeypatch.setenv("XLSTM_COMPILE", "0")
    layer = xlstm.LSTM(3, 5)
    params = layer.init(0, "numpy", "float64")
    _, _, saved = layer.forward(params, rng.standard_normal((6, 9, 3)))
    sizes = [kept.segment.n for part in saved["0"].tape.kept for kept in part]
    assert sizes == {1: [9], 2: [4, 5], 3: [3, 3, 3]}[count]


def test_a_task_may_itself_give_work():
    """Whoever is busy takes nothing more, so the thread that gives the work does it."""

    def call(team):
        return team.run([lambda: 1, lambda: team.run([lambda: 2, lambda: 3])])

    assert threads.work(2, call) == [1, [2, 3]]


def test_how_many_threads_does_not_depend_on_who_works_meanwhile(monkeypatch):
    """A rule, and with it every bit, is the same while another thread of the program has limited BLAS."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    count = threads.available()
    assert blas.limited(blas.now() + 1, threads.available) == count
    assert threads.available() == count


@pytest.mark.parametrize(
    ("count", "H", "B", "heads", "divided"),
    [
        (1, 256, 64, 1, (1, 1, 1)),
        (2, 32, 4, 1, (1, 1, 1)),  # nothing is large enough for a second thread
        (2, 256, 64, 1, (2, 1, 1)),
        (3, 256, 64, 1, (3, 1, 1)),
        (8, 128, 32, 1, (4, 1, 1)),
        (16, 512, 64, 1, (8, 1, 1)),
        (16, 512, 8, 1, (1, 1, 16)),  # too few sequences to divide them
        (2, 512, 1, 1, (1, 1, 2)),
        (64, 256, 64, 1, (8, 1, 1)),  # far more threads than parts
        (64, 1024, 64, 1, (1, 1, 64)),  # more weights than a core has near
        (2, 512, 1, 4, (1, 2, 1)),  # heads do not meet
        (2, 512, 64, 4, (1, 2, 1)),
        (3, 512, 64, 4, (1, 3, 1)),
        (16, 512, 64, 4, (4, 4, 1)),
        (16, 512, 8, 4, (1, 4, 1)),
    ],
)
def test_how_compiled_loops_divide_work(monkeypatch, count, H, B, heads, divided):
    monkeypatch.setenv(threads.VARIABLE, str(count))
    assert tape.division(4 * H * H // heads, B, 100, heads) == divided
