"""Layers where programs interrupt them: signals, forks, threads of the user's, and the end of the
process.

Each case is a process of its own, so that a hang ends with it. Results must have the same bits in
every case.
"""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from xlstm.core.deferred_signals import held

SECONDS = 600  # a bound against hangs, far above what a case takes

# Threads of compiled loops share the batch in `parts`, and the products of each step in `whole`.
PRELUDE = """
import atexit, gc, os, random, signal, sys, threading, time
import numpy as np
import xlstm
from xlstm.arrays import cores

cores.usable = lambda: 2
rng = np.random.default_rng(0)


class Work:
    def __init__(self, H, B, T, division):
        self.layer = xlstm.LSTM(H, H)
        self.params = self.layer.init(0, "numpy")
        self.x = rng.standard_normal((T, B, H)).astype("f4")
        self.expected = self.results()
        tape = self.layer.forward(self.params, self.x)[2]["0"].tape
        assert tape.engine.name == "array_api" or tape.shares == division, tape.shares

    def results(self):
        y, _, saved = self.layer.forward(self.params, self.x)
        grads, dx, _ = self.layer.backward(self.params, saved, y)
        return [y, dx, *grads.values()]

    def check(self):
        assert all(np.array_equal(a, b) for a, b in zip(self.results(), self.expected, strict=True))


parts = Work(128, 128, 6, (2, 1))
whole = Work(512, 8, 6, (1, 2))
"""


def run(code, prelude=PRELUDE, **variables):
    # compiled where Numba works
    usual = {"XLSTM_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "XLSTM_COMPILE": ""}
    given = os.environ | usual | variables
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        prelude + textwrap.dedent(code),
    ]
    done = subprocess.run(
        command, env=given, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# A layer on NumPy alone, and a function that calls it on compiled loops, where SIGINT may interrupt
# it.
FIRST_CALL = """
import os, signal, sys
import numpy as np
import xlstm

layer = xlstm.LSTM(3, 4)
params, x = layer.init(0, "numpy", "float64"), np.ones((5, 2, 3))
expected = layer(params, x)[0]
os.environ["XLSTM_COMPILE"] = "1"

def interrupted(call):
    try:
        call()
    except KeyboardInterrupt:
        return True
    return False

"""

signals = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no timer signals"
)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@signals
@pytest.mark.parametrize(("outer", "inner"), [("parts", "whole"), ("whole", "parts")])
def test_a_signal_handler_may_run_a_layer(outer, inner):
    found = run(f"""
    done = 0

    def handler(*_):
        global done
        {inner}.check()
        done += 1

    signal.signal(signal.SIGALRM, handler)
    while done < 30:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 5e-3))
        {outer}.check()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(done)
    """)
    assert int(found) >= 30


@signals
def test_exceptions_of_signal_handlers_at_random_moments():
    found = run("""
    class Interruption(Exception):
        pass

    def handler(*_):
        raise Interruption

    signal.signal(signal.SIGALRM, handler)
    done = 0
    while done < 200:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 1e-2))
            while True:
                parts.results()
        except Interruption:
            done += 1
    parts.check()
    print(done)
    """)
    assert int(found) == 200


@forks
def test_forks_while_another_thread_computes():
    run("""
    over = False

    def compute():
        while not over:
            parts.check()
            whole.check()

    other = threading.Thread(target=compute)
    other.start()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            try:
                parts.check()
                whole.check()
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
            os._exit(0)
        parts.check()
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    over = True
    other.join()
    """)


@forks
def test_a_fork_while_another_thread_computes_a_property():
    """Locks that the other thread holds stay locked in the child, where nobody frees them."""
    run(
        """
    from xlstm.engines import tape

    before, inside, over = tape.before, threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        over.wait()
        return before(*args)

    tape.before = slow
    other = threading.Thread(target=parts.check)
    other.start()
    inside.wait()
    tape.before = before
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        parts.check()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    over.set()
    other.join()
    assert status == 0, status
    """,
        XLSTM_COMPILE="0",
    )


@forks
@signals
def test_a_child_that_a_signal_handler_forks_goes_on_with_the_layer():
    run("""
    children = []
    inside = False

    def handler(*_):
        global inside
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            inside = True
            parts.check()
        children.append(child)

    signal.signal(signal.SIGALRM, handler)
    while len(children) < 5:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 5e-3))
        parts.check()
        if inside:
            os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    """)


@pytest.mark.parametrize("compiled", ["", "0"])
def test_equal_bits_from_every_thread(compiled):
    """Whatever other threads do, and although the first one has set the number of BLAS threads
    itself.

    All of them begin each round at once, so that they meet.
    """
    run(
        """
    import threadpoolctl
    threadpoolctl.threadpool_limits(1, user_api="blas")  # from threadpoolctl 3.8 on this thread controls OpenBLAS
    threadpoolctl.threadpool_limits(2, user_api="blas")
    many = xlstm.LSTM(64, 256)
    params = many.init(0, "numpy")
    x = rng.standard_normal((3, 64, 64)).astype("f4")
    head = xlstm.Linear(256, 700)
    weights = head.init(0, "numpy")

    def results():
        y, _, saved = many.forward(params, x)
        grads, dx, _ = many.backward(params, saved, y)
        z, kept = head.forward(weights, y)
        dweights, dy = head.backward(weights, kept, z)
        return [y, dx, *grads.values(), z, dy, *dweights.values()]

    expected, bad, done = results(), [], []
    start = threading.Barrier(4, timeout=120)  # against hangs

    def call():
        for _ in range(6):
            start.wait()
            bad.extend(k for k, (a, b) in enumerate(zip(results(), expected)) if not np.array_equal(a, b))
        done.append(True)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not bad, bad
    assert len(done) == 4
    """,
        XLSTM_COMPILE=compiled,
    )


def test_the_first_layer_of_a_process_at_its_end():
    """Some versions of Python do not import Numba then; NumPy alone gives the same."""
    found = run(
        """
    import atexit, xlstm, numpy as np
    from xlstm.arrays import cores
    from xlstm.engines import engine
    cores.usable = lambda: 2

    @atexit.register
    def call():
        layer = xlstm.LSTM(128, 128)
        params, x = layer.init(0, "numpy"), np.ones((6, 128, 128), "f4")
        y, _, saved = layer.forward(params, x)
        with engine.use("array_api"):
            print(np.allclose(y, layer(params, x)[0], rtol=1e-4, atol=1e-5))
    """,
        prelude="",
    )
    assert found == "True\n"


@pytest.mark.parametrize("module", ["numba.core.typing.templates", "numba.typed"])
def test_an_interrupt_while_the_first_call_imports_numba(module):
    pytest.importorskip("numba")
    run(
        f"""
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == {module!r}:
                sys.meta_path.remove(self)
                signal.raise_signal(signal.SIGINT)

    sys.meta_path.insert(0, Finder())
    assert interrupted(lambda: layer(params, x))
    np.testing.assert_allclose(layer(params, x)[0], expected, rtol=1e-12)
    assert layer.forward(params, x)[2]["0"].tape.engine.name == "numba"
    assert sys.modules["numba"].core  # an import that is cut short and then done again leaves it out
    """,
        prelude=FIRST_CALL,
        XLSTM_COMPILE="0",
    )


def test_an_interrupt_while_the_first_call_compiles(tmp_path):
    """Within a pass, in what LLVM calls, and while code is kept and loaded: the error comes once
    the code is whole.
    """
    pytest.importorskip("numba")
    run(
        """
    from xlstm.engines.numba import jit

    def interrupt(frame, event, argument):
        if event == "call" and frame.f_code.co_name == moment:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    assert jit.enabled()
    for moment in ("run_pass", "_object_compiled_hook", "add_overload", "save_overload", "_rebuild"):
        module = jit.new_module("run_pass" if moment == "_rebuild" else moment)  # the same code again is loaded
        exec("def twice(a): return a + a", module.__dict__)
        jit.bind(module, (module.twice,))
        call = module.twice
        sys.setprofile(interrupt)
        assert interrupted(lambda: call(2.0)), moment
        assert len(call.overloads) == 1, moment
        assert call(2.0) == 4.0
    """,
        prelude=FIRST_CALL,
        XLSTM_COMPILE="0",
        NUMBA_CACHE_DIR=str(tmp_path),
    )


@pytest.fixture
def called():
    """The signals of which handlers were called, of which there are two meanwhile."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found = []

    def handle(number, frame):
        found.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, handle)
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_held_signals_are_delivered_once_at_the_end_of_the_outermost_block(called):
    handler = signal.getsignal(signal.SIGINT)

    @held()
    def call():
        with held():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
        assert not called
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as found:
        call()
    assert isinstance(found.value.__context__, ZeroDivisionError)
    assert sorted(called) == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("other", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_handler_in_python_is_left_alone(other):
    signal.signal(signal.SIGTERM, other)
    with held():
        assert signal.getsignal(signal.SIGTERM) is other
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is other
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # set within the block
