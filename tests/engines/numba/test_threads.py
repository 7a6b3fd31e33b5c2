"""How many threads there are, how compiled loops divide work among them, and workers that are started."""

import threading
import time

import pytest
import threadpoolctl

import xlstm
from xlstm.arrays import cores
from xlstm.engines.numba import numba_engine, team
from xlstm.estimators import Forecaster


def test_the_number_of_threads_is_the_variables_or_that_of_cores(monkeypatch):
    for name in (cores.VARIABLE, cores.COMMON):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "usable", lambda: 64)
    assert cores.threads() == 64
    for name in (cores.COMMON, cores.VARIABLE):  # the second one decides where both are set
        for right, number in {"3": 3, "1024": 1024, "007": 7}.items():
            monkeypatch.setenv(name, right)
            assert cores.threads() == number
    monkeypatch.setenv(cores.VARIABLE, "")
    monkeypatch.setenv(cores.COMMON, " 4, 3")  # threads, and threads within each of them
    assert cores.threads() == 4


def test_ranks_share_the_cores_and_threads_of_blas(monkeypatch):
    for name in (cores.VARIABLE, cores.COMMON):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "usable", lambda: 7)
    monkeypatch.setattr(cores, "_ranks", 1)
    with cores.one_thread():  # so that afterwards BLAS has what it had
        cores.share(3)
        assert cores.threads() == 2
        blas = cores._controller().select(user_api="blas")  # another test may have loaded more libraries since
        blas.limit(limits=7)
        cores.share(2)
        assert [library.num_threads for library in blas.lib_controllers] == [3] * len(blas)
        cores.share(9)
        assert cores.threads() == 1


def test_a_wrong_number_for_all_programs_is_refused_by_its_name(monkeypatch):
    monkeypatch.setenv(cores.VARIABLE, "")
    for wrong in ("0", "two", ",2", "2000,1"):
        monkeypatch.setenv(cores.COMMON, wrong)
        with pytest.raises(ValueError, match=rf"^OMP_NUM_THREADS: '{wrong}' is not a number of threads"):
            cores.threads()


WRONG = ("0", "00", "-1", "+1", "two", "1.5", "1_0", " 2", "\N{SUPERSCRIPT TWO}", "1025", "1" + 20 * "0", 5000 * "9")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_number_of_threads_is_refused_by_every_call(monkeypatch, wrong, rng):
    """However small the layer is; only a step of a recurrent layer, which has one thread, does not look at it."""
    pytest.importorskip("numba")
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    x = rng.standard_normal((2, 1, 3))
    lstm, mlstm = xlstm.LSTM(3, 2), xlstm.mLSTM(3, 2)
    given = [(layer, layer.init(0, "numpy", "float64")) for layer in (lstm, mlstm)]
    series = rng.standard_normal(40)
    forecaster = Forecaster(epochs=1, hidden_size=2, window=4, backend="numpy")
    monkeypatch.setenv(cores.VARIABLE, wrong)
    calls = [lambda layer=layer, p=p: layer.forward(p, x) for layer, p in given]
    calls += [cores.threads, lambda: forecaster.fit(series)]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"^XLSTM_NUM_THREADS: .* is not a number of threads, expected 1 to 1024$"
        ) as e:
            call()
        assert len(str(e.value)) < 160


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_a_worker_starts_leaves_none_that_never_works(monkeypatch, error, started):
    start, helped = threading.Thread.start, threading.Semaphore(0)

    def interrupted(thread):
        if started:
            start(thread)
        raise error

    def employ():
        return team.employ(1, lambda queue: helped.release())

    monkeypatch.setattr(cores, "usable", lambda: 2)
    monkeypatch.setattr(team, "workers", [])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        if error is RuntimeError:  # there can be no more threads
            assert employ() == 0
        else:
            with pytest.raises(error):
                employ()
    assert employ() == 1
    assert all(helped.acquire(timeout=60) for _ in range(2))
    (worker,) = team.workers
    while not worker.bell.empty() or not worker.asleep:
        time.sleep(0.01)
    assert employ() == 1
    assert all(helped.acquire(timeout=60) for _ in range(2))


def test_blas_has_one_thread_and_afterwards_what_it_had():
    def counts():
        return [lib.num_threads for lib in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers]

    before = counts()
    assert before
    with cores.one_thread():
        assert counts() == [1] * len(before)
    assert counts() == before


def test_ranges_of_sequences_have_about_equal_work():
    widths = [(3, 10), (2, 7), (5, 2)]  # steps, width
    ranges = numba_engine.spans(widths, 3)
    assert [first for first, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    work = [sum(k * max(0, min(end, n) - first) for k, n in widths) for first, end in ranges]
    assert sum(work) == sum(k * n for k, n in widths)
    assert max(work) - min(work) <= 10
    assert numba_engine.spans([(4, 2)], 5) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("count", "H", "B", "divided"),
    [
        (1, 256, 64, (1, 1)),
        (2, 32, 4, (1, 1)),  # nothing is large enough for a second thread
        (2, 256, 64, (2, 1)),
        (8, 128, 32, (4, 1)),
        (16, 512, 64, (8, 1)),
        (16, 512, 8, (1, 16)),  # too few sequences to divide them
        (2, 512, 1, (1, 2)),
        (64, 256, 64, (8, 1)),  # far more threads than parts
        (64, 1024, 64, (1, 64)),  # more weights than a core has near
    ],
)
def test_how_compiled_loops_divide_work(monkeypatch, count, H, B, divided):
    monkeypatch.setenv(cores.VARIABLE, str(count))
    assert numba_engine.division(4 * H * H, B, 100) == divided
