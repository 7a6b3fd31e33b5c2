"""How signals end the command line, where Python would show a traceback or lose them."""

import signal
import subprocess
import sys

import pytest

from xlstm.core import process_signals

PATH = f"import sys\nsys.path[:] = {sys.path!r}\n"
START = "import signal, sys\nfrom xlstm.core import process_signals\nprocess_signals.interrupt()\n"


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("program", "original", "expected"),
    [
        ("/usr/local/bin/xlstm", ["/usr/bin/python", "/usr/local/bin/xlstm", "train"], True),
        ("-m", ["python", "-X", "dev", "-m", "xlstm", "train"], True),
        ("-m", ["python", "-m", "pytest", "xlstm"], False),
        ("xlstm.py", ["python", "xlstm.py"], False),
        ("", [], False),
    ],
)
def test_signals_are_left_alone_in_other_programs(program, original, expected):
    assert process_signals.is_command(program, original) is expected
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "number", [*map(signal.Signals, process_signals.SIGNALS)], ids=lambda number: number.name
)
def test_an_interrupt_that_nobody_catches(number):
    assert run(f"signal.raise_signal({int(number)})") == (128 + number, "")


# It prints the modules that the command line has imported when it first handles a signal.
FIRST = """
import _signal, os, sys
known, handle = {*sys.modules}, _signal.signal
def first(*arguments):
    _signal.signal = handle
    print(*sorted({*sys.modules} - known))
    return handle(*arguments)
_signal.signal, sys.argv = first, ["xlstm"]
import xlstm.cli
"""


def test_signals_are_handled_before_anything_that_takes_long_to_import():
    """Until then Ctrl-C shows a traceback."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PATH + FIRST], capture_output=True, text=True
    )
    found = {*done.stdout.split()} - {"xlstm", "xlstm.core", "xlstm.core.process_signals"}
    assert found <= {"__future__", "atexit", "itertools"}, done


FRAGILE = """
class Fragile:
    def __init__(self):
        {begin}
        self.handle = 1
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        del self.handle
Fragile()
"""


@pytest.mark.parametrize(
    "code",
    [
        (
            "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise"
            " ValueError('of a library')"
        ),
        FRAGILE.format(begin="") + "import time\ntime.sleep(30)",
        FRAGILE.format(begin="signal.raise_signal(signal.SIGINT)"),
        "process_signals.done()\nsignal.raise_signal(signal.SIGINT)",
        "process_signals.end_at_once()\nsignal.raise_signal(signal.SIGINT)",
    ],
    ids=[
        "turned into another error",
        "in a destructor",
        "before a destructor that fails",
        "after the command",
        "before",
    ],
)
def test_an_interrupt_ends_the_process_quietly(code):
    assert run(code) == (130, "")


def test_other_errors_in_a_destructor_are_shown_as_ever():
    code = """
class Fragile:
    def __del__(self):
        raise ValueError("shown")
Fragile()
"""
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)
    assert "ValueError: shown" in done.stderr


def test_an_interrupt_that_passed_through_exec_leaves_the_exit_code():
    code = """
try:
    exec("signal.raise_signal(signal.SIGINT)")
except KeyboardInterrupt:
    process_signals.done()
    sys.exit(7)
"""
    assert run(code) == (7, "")


def test_a_job_in_the_background_stays_deaf():
    """A shell starts it with SIGINT ignored."""
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        + START
        + "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
