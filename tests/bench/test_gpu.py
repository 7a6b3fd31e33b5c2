"""The GPU check without a GPU: formulas, budget, table, goals, and that kernels and peers do what
they say.
"""

import importlib
import sys

import numpy as np
import pytest

from bench import barriers, cudnn, events, gpu, gpu_table, limits, rows, sanitize
from bench.cudnn import CAPTURED, EAGER, Case
from bench.rows import OURS
from tests import gpu as on_gpu
from tests.engines.cuda import nvrtc
from xlstm.arrays import optional_imports
from xlstm.cli.info import CARDS


class Clock:
    """A clock that goes on as told; the device works off what it was asked for."""

    def __init__(self):
        self.time = self.until = 0.0

    def __call__(self):
        return self.time

    now = __call__

    def ask(self, host, device):
        """A call that takes the host so long to ask for, and the device so long to do in two
        kernels.
        """
        for _ in range(2):
            self.time += host / 2
            self.until = max(self.until, self.time) + device / 2

    def synchronize(self):
        self.time = max(self.time, self.until)

    def busy(self, seconds):
        self.until = max(self.until, self.time) + seconds

    def mark(self):
        return max(self.until, self.time)

    def between(self, start, end):
        return end - start


def test_limits_by_hand():
    h100 = CARDS["h100"]

    def seconds(rates, passes):
        return tuple(map(rates.seconds, passes))

    for precision, shape, forward, backward in (
        ("TF32", (512, 64, 512), 0.585, 1.016),
        ("TF32", (1024, 16, 1024), 1.784, 2.954),
    ):
        rates = limits.rates(h100, precision, shape[-1], None, None)
        np.testing.assert_allclose(
            seconds(rates, limits.recurrent("lstm", *shape)),
            [forward * 1e-3, backward * 1e-3],
            rtol=2e-3,
        )
    assert limits.rates(CARDS["v100"], "TF32", 256, None, None) is None
    assert [limits.way(H, h100) for H in (512, 513)] == ["cluster", "grid"]
    # An mLSTM is bound by memory, if its speed is known: 16 + 16 + 32 + 32 + 2 numbers of 2 bytes,
    # 3 heads of 5 x 7.
    passes = limits.mlstm(5, 3, 7, 16, 32, 2)
    moving = limits.Rates(1e30, 1e9, 0.0)
    assert moving.seconds(passes[0]) == pytest.approx(98 * 2 * 105 / 1e9)
    waiting = limits.Rates(1e9, 1e9, 1e-3)
    assert seconds(waiting, limits.language(100, 10, 4)) == pytest.approx(
        (2e-6 + 4e-3, 4e-6 + 6e-3)
    )
    assert moving.seconds(limits.token(100, 2, 4)) == pytest.approx(4e-7)


def test_parts_are_run_within_the_budget_and_none_goes_missing():
    clock = Clock()
    told = []
    takes = {"parity": 200, "tests": 150, "cudnn": 90}

    def make(name, seconds):
        if name in ("barriers", "mlstm"):
            raise (
                ImportError("cupy is not installed")
                if name == "barriers"
                else AttributeError("no such attribute")
            )
        return [name], {}

    def execute(argv, seconds, environment):
        used = min(takes.get(argv[0], 10), seconds)
        clock.time += used
        return (gpu.OK if used < seconds else gpu.CUT), f"{seconds:.0f}", []

    names = [part.name for part in gpu.PARTS]
    outcomes = gpu.check(names, 420, make, lambda o: told.append(len(o)), execute, clock)
    wrong = {"parity": gpu.CUT, "barriers": gpu.OUT, "mlstm": gpu.FAILED, "tests": gpu.CUT}
    assert [(o.name, o.result) for o in outcomes] == [
        (name, wrong.get(name, gpu.OK)) for name in names
    ]
    assert [o.said for o in outcomes if o.name in ("barriers", "mlstm")] == [
        "cupy is not installed",
        "AttributeError: no such attribute",
    ]
    assert [o.name for o in outcomes if o.tail] == ["mlstm"]
    assert outcomes[names.index("mlstm")].tail[-1] == "AttributeError: no such attribute"
    assert told == [*range(1, len(names) + 1)]
    assert clock.time <= 420
    assert gpu.status(outcomes, False) == 1
    assert gpu.status([o for o in outcomes if o.name != "mlstm"], False) == 2
    assert [gpu.status(outcomes[-1:], partial) for partial in (False, True)] == [0, 2]


def test_a_part_is_a_process_that_is_stopped_in_time(capfd):
    code = "import os; print('all is', os.environ['WORD'])"
    assert gpu.run(["-c", code], 600, {"WORD": "well"}) == (gpu.OK, "all is well", [])
    assert "all is well" in capfd.readouterr().out
    code = "for k in range(99): print(k)\nprint('  no\\n'); raise SystemExit(3)"
    last = [*map(str, range(61, 99)), "  no", ""]
    assert gpu.run(["-c", code], 600, {}) == (gpu.FAILED, "exit status 3: no", last)
    result, said, tail = gpu.run(["-c", "import time; time.sleep(600)"], 1, {})
    assert (result, tail) == (gpu.CUT, [])
    assert said.startswith("stopped after 1 s")
    code = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('1 failed')"
    assert gpu.run(["-c", code], 5, {}) == (
        gpu.FAILED,
        "stopped after 5 s: 1 failed",
        ["1 failed"],
    )


def test_slow_tests_leave_time_for_cudnn():
    """Parts that take all that they may: tests come before cudnn, which still has its least."""
    clock = Clock()

    def execute(argv, seconds, environment):
        clock.time += seconds
        return gpu.CUT, "", []

    names = [part.name for part in gpu.PARTS]
    outcomes = gpu.check(names, gpu.TOTAL, lambda *_: ([], {}), id, execute, clock)
    least = {part.name: part.least for part in gpu.PARTS}
    assert all(o.seconds >= least[o.name] for o in outcomes)
    assert names.index("tests") < names.index("cudnn")
    assert clock.time <= gpu.TOTAL


def row(precision="TF32", wall=1.0, peers=(4.0, 3.0), **changes):
    case = Case("lstm", 512, 64, 512, precision)
    seconds = {OURS: times(wall), EAGER: times(peers[0]), CAPTURED: times(peers[1])}
    found = {
        "case": cudnn.asdict(case),
        "name": str(case),
        "missing": {},
        "peer by cuDNN": True,
        "difference": 1e-4,
    }
    return found | {"choice": {"path": "cluster"}, "seconds": seconds} | changes


def times(milliseconds):
    return {"wall": milliseconds / 1e3, "device": milliseconds / 1e3 - 5e-5, "best": 0, "calls": 9}


def test_the_table_and_the_goals():
    slow = row("bf16", 4.8, (8.0, 9.0), missing={CAPTURED: "no graph of it"})
    broken = {"case": slow["case"], "missing": {}, "name": "another", "error": "broke"}
    wrong = row("fp16", 0.1, difference=float("nan"))
    barriers_of = {
        "grid": {"2": 0.5, "132": 1.0},
        "cluster": {"8": 0.2, "16": 0.3},
        "clusters at once": {"16": 7},
    }
    record = {
        "card": "NVIDIA H100 80GB HBM3",
        "device": CARDS["h100"]._asdict(),
        "barriers": {"copied": 2e12, **barriers_of},
        "cudnn": {"rows": [row(), slow, wrong, broken], "left out": ["one more"]},
        "parts": [
            gpu.Outcome("tests", gpu.OK, 12.3, "5 passed", [])._asdict(),
            gpu.Outcome("cudnn", gpu.FAILED, 1.0, "no", ["Traceback", "no"])._asdict(),
        ],
    }
    tf32, bf16, fp16 = gpu_table.lines(record)
    assert (tf32.ratio, bf16.ratio) == pytest.approx((1 / 3, 0.6))  # to the quickest
    assert (tf32.limit, tf32.overhead) == pytest.approx((1.601, 0.05), abs=1e-3)
    goals = gpu_table.goals([tf32, bf16, fp16])
    assert "<= 0.5: 1 of 2, missed" in goals[1]
    assert "0 of 1, missed" in goals[2]  # wrong results meet no goal
    said = gpu_table.text(record)
    assert said.endswith("cudnn, its last lines:\nTraceback\nno")
    for part in (
        "failed: another: broke",
        "time: one more",
        f"without {CAPTURED}: no graph of it",
        "RESULTS DIFFER",
    ):
        assert part in said


def test_a_call_that_keeps_its_device_waiting_is_seen(monkeypatch):
    monkeypatch.setattr(events, "BLOCK", 0.004)
    clock = Clock()
    slow = events.Side(lambda: clock.ask(1e-3, 2e-4))
    quick = events.Side(lambda: clock.ask(1e-5, 1e-3))
    times = events.side_by_side({"slow": slow, "quick": quick}, clock, float("inf"))
    assert times["slow"].wall == pytest.approx(1.1e-3)
    assert times["slow"].device == pytest.approx(2e-4)
    assert times["quick"].wall - times["quick"].device == pytest.approx(5e-6)
    assert times["quick"].calls >= 6


def test_cases_beyond_the_time_are_named():
    clock = Clock()
    told = []
    todo = cudnn.cases()[:5]

    def measured(case):
        clock.time += 3
        if case.precision == "bf16":
            raise AttributeError("no memory")
        return {"name": str(case)}

    record = rows.run(todo, measured, 10, lambda r: told.append(len(r["rows"])), clock)
    assert [r["name"] for r in record["rows"]] == [str(case) for case in todo[:3]]
    assert record["rows"][1]["error"] == "AttributeError: no memory"
    assert record["left out"] == [str(case) for case in todo[3:]]
    assert told == [1, 2, 3]


@pytest.mark.parametrize("capability", [80, 90])
def test_barriers_compile(capability):
    assert nvrtc.compile_for(capability, barriers.source(32, False).text).spilled == 0
    for blocks in (1, 16) if capability == 90 else ():
        assert nvrtc.compile_for(capability, barriers.source(blocks, True).text).spilled == 0
        nvrtc.compile_for(capability, barriers.source(blocks, True, "resident", 232448).text)
    nvrtc.compile_for(capability, events.SPIN)


FOUND = """\
========= Invalid __global__ write of size 4 bytes
=========     at xlstm_forward+0x130
31 layers ran
========= ERROR SUMMARY: 1 error
"""
RACE = """\
========= Error: Race reported between Write access at xlstm_backward+0x4d0 and Read access at xlstm_backward+0x5f0
31 layers ran
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


@pytest.mark.parametrize(
    ("code", "text", "errors", "status"),
    [
        (0, "31 layers ran\n========= ERROR SUMMARY: 0 errors\n", 0, 0),
        (99, FOUND, 1, 1),
        (0, RACE, 2, 1),
        (0, "========= ERROR SUMMARY: 0 errors\n", None, 2),  # nothing ran
        (99, "31 layers ran\n", None, 2),
    ],
)
def test_what_the_sanitizer_says(code, text, errors, status):
    report = sanitize.understand("memcheck", code, text)
    assert (report.errors, report.status) == (errors, status)
    if errors:
        assert list(report.kernels) == ["xlstm_forward" if text is FOUND else "xlstm_backward"]
        assert "31 layers ran" in str(report)


@pytest.mark.parametrize("name", ["gpu", "barriers", "cudnn", "mlstm", "language", "sanitize"])
def test_without_a_card_they_say_so_and_time_nothing_where_cupy_runs_on_the_cpu(name, monkeypatch):
    if optional_imports.cupy_failure() is None:
        on_gpu.on_cpu()
    words = "" if optional_imports.cupy_failure() else ".*CPU.*, whose times are not those of a GPU"
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(sanitize, "find", lambda: "compute-sanitizer")
    with pytest.raises(SystemExit, match=f"^{name}: cupy: {words}"):
        importlib.import_module(f"bench.{name}").main()
