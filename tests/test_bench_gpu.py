"""The GPU check without a GPU: formulas, budget, table, goals, and that kernels and peers do what they say."""

import contextlib
import importlib
import json
import sys

import numpy as np
import pytest

from bench import barriers, cudnn, events, gpu, gpu_table, language, limits, mlstm, rows, sanitize
from bench.budget import Budget, Part
from bench.cudnn import CAPTURED, EAGER, Case
from bench.rows import OURS
from tests import gpu as on_gpu
from tests import nvrtc
from tests.conftest import make_backend
from xlstm.arrays import probe
from xlstm.cli.info import CARDS
from xlstm.engines.cuda import launch
from xlstm.interop.torch import to_torch

H100 = "NVIDIA H100 80GB HBM3"


class Clock:
    """A clock that goes on as told; the device works off what it was asked for."""

    def __init__(self):
        self.time = self.until = 0.0

    def __call__(self):
        return self.time

    now = __call__

    def ask(self, host, device):
        """A call that takes the host so long to ask for, and the device so long to do in two kernels."""
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


@pytest.mark.parametrize(
    ("shape", "precision", "forward", "backward"),
    [
        ((512, 64, 512), "TF32", 0.585, 1.016),
        ((512, 64, 512), "bf16", 0.446, 0.739),
        ((1024, 16, 1024), "TF32", 1.784, 2.954),
        ((1024, 16, 1024), "fp16", 1.507, 2.399),
        ((128, 256, 256), "TF32", 0.146, 0.254),
        ((512, 64, 512), "fp32", 2.358, 4.563),
    ],
)
def test_limits_by_hand(shape, precision, forward, backward):
    T, B, H = shape
    found = limits.rates(CARDS["h100"], precision, H, None, None).limit(limits.recurrent("lstm", T, B, H))
    np.testing.assert_allclose([1e3 * found.forward, 1e3 * found.backward], [forward, backward], rtol=2e-3)
    assert found.of(True) == found.forward + found.backward
    assert found.of(False) == found.forward


def test_limits_of_other_layers_cards_and_measured_rates():
    h100 = CARDS["h100"]
    lstm, gru = (
        limits.rates(h100, "TF32", 256, 0.0, None).limit(limits.recurrent(k, 10, 8, 256)) for k in ("lstm", "gru")
    )
    np.testing.assert_allclose(gru, [0.75 * n for n in lstm])
    waits = limits.rates(h100, "TF32", 256, 1e-6, None).limit(limits.recurrent("lstm", 10, 8, 256))
    np.testing.assert_allclose(np.subtract(waits, lstm), [10e-6, 15e-6])
    assert limits.rates(None, "TF32", 256, None, None) is None
    assert limits.rates(CARDS["v100"], "TF32", 256, None, None) is None
    assert [limits.way(H, h100) for H in (512, 513)] == ["cluster", "grid"]
    assert limits.way(256, CARDS["rtx4090"]) == "grid"
    # GeForce: half of the rate of its chip; two flops of 128 SMs
    assert limits.rates(CARDS["rtx4090"], "fp16", 256, None, None).flops == pytest.approx(128 * 1.275e12)
    # An mLSTM is bound by memory, if its speed is known: 16 + 16 + 32 + 32 + 2 numbers of 2 bytes, 3 heads of 5 x 7.
    passes = limits.mlstm(5, 3, 7, 16, 32, 2)
    assert limits.Rates(1e30, 1e9, 0.0).limit(passes).forward == pytest.approx(98 * 2 * 105 / 1e9)
    assert limits.Rates(1e9, None, 0.0).limit(passes).backward == pytest.approx(8 * 16 * 32 * 105 / 1e9)
    assert limits.Rates(1e9, 1e9, 1e-3).limit(limits.language(100, 10, 4)) == pytest.approx((2e-6 + 4e-3, 4e-6 + 6e-3))
    assert limits.Rates(1e30, 1e9, 0.0).seconds(limits.token(100, 2, 4)) == pytest.approx(4e-7)


def test_a_budget_keeps_something_for_later_parts():
    clock = Clock()
    budget = Budget(100, clock)
    first, second, third = Part("a", 80, 10), Part("b", 50, 30), Part("c", 50, 20)
    assert budget.of(first, [second, third]) == 50
    clock.time += 45
    assert budget.of(second, [third]) == 35
    clock.time += 40
    assert budget.of(third) == 0  # 15 are left
    assert (budget.spent, budget.left) == (85, 15)


def test_parts_are_run_within_the_budget_and_none_goes_missing():
    clock, told = Clock(), []
    takes = {"parity": 200, "dtypes": 10, "races": 5, "graphs": 5, "choices": 5, "language": 20, "cudnn": 90}
    takes |= {"tests": 150, "main job": 1}

    def make(name, seconds):
        if name == "barriers":
            raise ImportError("cupy is not installed")
        if name == "mlstm":
            raise AttributeError("no such attribute")
        return [name], {}

    def execute(argv, seconds, environment):
        used = min(takes[argv[0]], seconds)
        clock.time += used
        return (gpu.OK if used < seconds else gpu.CUT), f"{seconds:.0f}"

    outcomes = gpu.check([p.name for p in gpu.PARTS], Budget(420, clock), make, execute, lambda o: told.append(len(o)))
    assert [(o.name, o.result) for o in outcomes] == [
        ("parity", gpu.CUT),
        ("dtypes", gpu.OK),
        ("races", gpu.OK),
        ("barriers", gpu.OUT),
        ("graphs", gpu.OK),
        ("choices", gpu.OK),
        ("language", gpu.OK),
        ("cudnn", gpu.OK),
        ("mlstm", gpu.FAILED),
        ("tests", gpu.CUT),
        ("main job", gpu.OK),
    ]
    assert outcomes[3].said == "cupy is not installed"
    assert outcomes[8].said == "AttributeError: no such attribute"
    assert told == [*range(1, 12)]
    assert clock.time <= 420
    assert gpu.status(outcomes, False) == 1
    assert gpu.status([o for o in outcomes if o.name != "mlstm"], False) == 2
    assert gpu.status(outcomes[-1:], False) == 0
    assert gpu.status(outcomes[-1:], True) == 2
    assert gpu.status([gpu.Outcome("tests", gpu.FAILED, 1.0, ""), *outcomes], False) == 1
    outcomes = gpu.check(["main job"], Budget(10, clock), make, execute)
    assert outcomes == [gpu.Outcome("main job", gpu.OUT, 0.0, "10 of 10 seconds were left")]


def test_a_part_is_a_process_that_is_stopped_in_time(capfd):
    assert gpu.run(["-c", "print('all is well')"], 60, {}) == (gpu.OK, "all is well")
    assert gpu.run(["-c", "import sys; print('no'); sys.exit(3)"], 60, {}) == (gpu.FAILED, "exit status 3: no")
    code = "import os, time; print(os.environ['WORD'], flush=True); time.sleep(60)"
    result, said = gpu.run(["-c", code], 1, {"WORD": "began"})
    assert result == gpu.CUT
    assert said.startswith("stopped after 1 s")
    assert "began" in capfd.readouterr().out
    for name in (part.name for part in gpu.PARTS):
        with contextlib.suppress(ImportError):  # of what is not installed
            argv, _ = gpu.command(name, 50, gpu.Path("room"))
            assert importlib.util.find_spec(argv[1])


def row(precision="TF32", wall=1.0, peers=(4.0, 3.0), layer="lstm", **changes):
    case = Case(layer, 512, 64, 512, precision)
    times = {OURS: wall, EAGER: peers[0], CAPTURED: peers[1]}
    seconds = {n: {"wall": t / 1e3, "device": t / 1e3 - 5e-5, "best": 0, "calls": 9} for n, t in times.items() if t}
    found = {"case": cudnn.asdict(case), "name": str(case), "missing": {}, "peer by cuDNN": True, "difference": 1e-4}
    return found | {"choice": {"path": "cluster"}, "seconds": seconds} | changes


HEADS = limits.mlstm(8, 8, 2048, 256, 512, 2)


def heads():
    case = mlstm.Case(8, 8, 2048, 256, 512, "bf16")
    walls = {"xlstm": 1.5e-3, "xl_chunk": 2e-3, "limit_chunk": 5e-3}
    seconds = {name: {"wall": t, "device": t, "best": 0, "calls": 9} for name, t in walls.items()}
    return {**rows.head(case), "seconds": seconds, "difference": 1e-3}


def text(train=True):
    case = language.Case(16, 512 if train else 1, 768, 32000, "TF32", train)
    times = {"wall": 2.0, "device": 1.9, "best": 0, "calls": 9}
    seconds = {"xlstm": times, **({"xlstm captured": times | {"wall": 1.5}} if train else {})}
    return {**rows.head(case), "seconds": seconds, "weights": 1e8, "loops": 1, "tokens a second": 4096.0}


def test_the_table_and_the_goals():
    slow = row("bf16", 4.8, (8.0, None), missing={CAPTURED: "no graph of it"})
    broken = {"case": slow["case"], "missing": {}, "name": "another", "error": "broke"}
    found = [row(), slow, row("fp16", 1.0, (1.1, 1.0)), broken]
    forced = row()
    forced["case"] = forced["case"] | {"forced": True}
    forced["name"] += ", each path"
    forced["seconds"]["xlstm loop"] = {"wall": 0.123, "device": 0.1, "best": 0, "calls": 9}
    record = {
        "card": H100,
        "device": CARDS["h100"]._asdict(),
        "barriers": {
            **{"copied": 2e12, "grid": {"2": 0.5, "132": 1.0}, "cluster": {"8": 0.2, "16": 0.3}},
            **{"clusters at once": {"16": 7}},
        },
        "cudnn": {"rows": [*found, forced], "left out": ["one more"]},
        "mlstm": {"rows": [heads()], "left out": ["an mLSTM more"]},
        "language": {"rows": [text(), text(train=False)], "left out": []},
        "parts": [gpu.Outcome("tests", gpu.OK, 12.3, "5 passed")._asdict()],
    }
    tf32, bf16, fp16, _, mlstm_, step, token = gpu_table.lines(record)
    assert tf32.ratio == pytest.approx(1 / 3)
    assert bf16.ratio == pytest.approx(0.6)  # to the only one there is
    assert bf16.remark == f"no {CAPTURED}"
    assert tf32.limit == pytest.approx(1.601, abs=1e-3)
    assert tf32.limit - tf32.measured == pytest.approx(512 * 2.5 * 0.3e-3)
    assert tf32.overhead == pytest.approx(0.05)
    assert mlstm_.peer == pytest.approx(2.0)  # the quickest
    assert mlstm_.ratio == pytest.approx(0.75)
    assert mlstm_.limit < mlstm_.measured == pytest.approx(1e3 * limits.Rates(1e30, 2e12, 0.0).limit(HEADS).of(True))
    assert step.limit == pytest.approx(1e3 * 6 * 1e8 * 16 * 512 / 495e12 + 512 * 2.5 * 1.2e-3, rel=1e-3)
    assert token.measured == pytest.approx(0.2)
    assert step.remark == "4,096 tokens/s"
    assert (step.xlstm, step.graph, step.best) == (2000, 1500, 1500)
    assert step.over_limit == pytest.approx(1500 / step.limit)
    assert (token.graph, token.best) == (None, 2000)
    goals = gpu_table.goals([tf32, bf16, fp16, mlstm_, step])
    assert "<= 0.5: 1 of 2, missed" in goals[1]
    assert "<= 0.33: 0 of 2, missed" in goals[1]
    assert f"0.6 at {bf16.name}" in goals[1]
    assert "<= 1.1: 1 of 1, met" in goals[2]
    assert "<= 0.85: 0 of 1, missed" in goals[2]
    assert "<= 2: 2 of 3, missed" in goals[3]
    assert "<= 0.1: 3 of 3, met" in goals[4]
    assert "<= 0.85: 1 of 1, met" in goals[5]
    said = gpu_table.text(record)
    for part in (
        "failed: another: broke",
        "time: one more; an mLSTM more",
        f"without {CAPTURED}: no graph of it",
        "copies read and write 2000 GB/s",
        "cluster (chosen) 1, loop 123",
        "12.3  ok: 5 passed",
        "  7",
    ):
        assert part in said


@pytest.mark.parametrize(
    "barriers",
    [
        None,
        {"threads": 256, "grid": {}},
        {"grid": {"2": 0.5}, "cluster": {"8": 0.1}, "clusters at once": {}, "failed": {}},
    ],
)
def test_a_record_that_was_cut_short_has_a_table(barriers):
    record = {"card": H100, "barriers": barriers, "cudnn": {"rows": [row()], "left out": ["one more"]}, "parts": []}
    assert "one more" in gpu_table.text(record)
    assert gpu_table.text({**record, "cudnn": None})


def test_nvidia_smi_that_hangs_is_said(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)

    def hang(*arguments, **options):
        raise gpu.subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(gpu.subprocess, "run", hang)
    assert "says nothing" in gpu.smi()


def test_wrong_results_meet_no_goal_and_unknown_cards_have_no_limit():
    wrong = row("fp16", 0.1, (4.0, 3.0), difference=float("nan"))
    record = {"card": "another", "barriers": None, "cudnn": {"rows": [wrong], "left out": []}, "parts": []}
    (line,) = gpu_table.lines(record)
    assert (line.limit, line.measured, line.over_limit) == (None, None, None)
    assert "RESULTS DIFFER" in gpu_table.table([line])[1]
    goals = gpu_table.goals([line])
    assert "0 of 1, missed" in goals[2]
    assert "not measured" in goals[3]
    assert "not measured" in gpu_table.text({"card": "", "parts": []})


def test_a_call_that_keeps_its_device_waiting_is_seen():
    clock = Clock()
    slow, quick = events.Side(lambda: clock.ask(1e-3, 2e-4)), events.Side(lambda: clock.ask(1e-5, 1e-3))
    found = events.side_by_side({"slow": slow, "quick": quick}, clock, rounds=3, block=0.004)
    assert found["slow"].wall == pytest.approx(1.1e-3)
    assert found["slow"].device == pytest.approx(2e-4)
    assert found["slow"].overhead == pytest.approx(9e-4)
    assert found["quick"].overhead == pytest.approx(5e-6)
    assert found["quick"].calls >= 6
    begun = clock.now()
    once = events.side_by_side({"slow": slow}, clock, rounds=9, block=0.0, until=begun)
    assert once["slow"].calls == 1


def test_cases_beyond_the_time_are_named():
    clock, told = Clock(), []
    todo = cudnn.cases()[:5]

    def measured(case, until):
        clock.time += 3
        if case.precision == "bf16":
            raise AttributeError("no memory")
        return {"name": str(case)}

    record = rows.run(todo, measured, 10, clock, lambda r: told.append(len(r["rows"])))
    assert [r["name"] for r in record["rows"]] == [str(case) for case in todo[:3]]
    assert record["rows"][1]["error"] == "AttributeError: no memory"
    assert record["left out"] == [str(case) for case in todo[3:]]
    assert told == [1, 2, 3]
    assert len(set(map(str, cudnn.cases()))) == len(cudnn.cases()) == 100


@pytest.mark.parametrize("layer", ["lstm", "gru"])
def test_the_peer_has_the_same_weights_and_gives_the_same(layer):
    pytest.importorskip("torch")
    case = Case(layer, 5, 3, 8, "fp32")
    x, dy = cudnn.arrays(case)
    ours = cudnn.layer_of("bench", layer, 8, 8)
    params = ours.init(0, "numpy")
    peer = cudnn.Torch(case, to_torch(ours, params), x, dy, "cpu")
    with peer.around():
        assert not peer.torch.backends.cuda.matmul.allow_tf32
        peer.eager()
    y, _, saved = ours.forward(params, x)
    grads, dx, _ = ours.backward(params, saved, dy)
    mine = {"y": y, "dx": dx, **{f"d{name}": g for name, g in to_torch(ours, grads).items()}}
    assert mine.keys() == peer.results().keys()
    assert rows.agreement(mine, peer.results()) < 1e-5
    assert rows.agreement({**mine, "y": y + 1}, peer.results()) > 0.1
    assert rows.agreement({**mine, "y": y * np.nan}, peer.results()) == np.inf
    forward = cudnn.Torch(Case(layer, 5, 3, 8, "TF32", train=False), to_torch(ours, params), x, dy, "cpu")
    with forward.around():
        assert forward.torch.backends.cudnn.allow_tf32
        forward.eager()
    np.testing.assert_allclose(forward.results()["y"], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("capability", "ways"), [(80, [(32, False)]), (90, [(132, False), (1, True), (16, True)])])
def test_barriers_compile(capability, ways):
    for blocks, cluster in ways:
        assert nvrtc.compile_for(capability, barriers.source(blocks, cluster).text).spilled == 0
        if cluster:
            nvrtc.compile_for(capability, barriers.source(blocks, True, "resident", 232448).text)
    if capability == 90:
        nvrtc.compile_for(capability, events.SPIN)


@pytest.mark.parametrize("cluster", [False, True])
def test_every_block_passes_every_barrier(monkeypatch, xp, cluster):
    monkeypatch.setattr(barriers, "THREADS", 32)
    barriers.source.cache_clear()
    here = launch.runtime(xp, xp.ones(1))
    met = barriers.wait(here, lambda n: xp.zeros(n, dtype="uint32"), 4, cluster, 7, groups=2)
    barriers.source.cache_clear()
    assert met.tolist() == [7] * 8


def test_what_is_measured_of_barriers(monkeypatch, xp):
    monkeypatch.setattr(barriers, "latency", lambda be, run, blocks, cluster: 0.25 if cluster else 0.81)
    monkeypatch.setattr(barriers, "at_once", lambda be, run, blocks: 8 // blocks)
    monkeypatch.setattr(barriers, "copy_rate", lambda be: 2e12)
    kept = []
    found = barriers.measure(make_backend("cupy", "float32"), lambda found: kept.append(json.dumps(found)))
    sms = launch.current().sms
    assert list(found["grid"]) == [*(str(n) for n in barriers.GRIDS if n < sms), str(sms)]
    assert found["clusters at once"] == {"1": 8, "2": 4, "4": 2, "8": 1, "16": 0}
    assert json.loads(kept[-1]) == found
    assert len(set(kept)) == len(kept) == 1 + len(found["grid"]) + 5  # what there is after every measurement
    assert len(barriers.table(found)) == len(found["grid"]) + 7


def test_barriers_in_words():
    found = {"grid": {"2": 0.81}, "cluster": {"16": 0.25}, "clusters at once": {"16": 7}, "failed": {"8": "no"}}
    assert barriers.table(found)[1:] == [
        "2, across the grid                 0.81",
        "16, in a cluster                   0.25        7",
        "cluster of 8 blocks: no",
    ]


FOUND = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at xlstm_forward+0x130
=========     by thread (0,0,0) in block (1,0,0)
ran: LSTM
31 layers ran
========= ERROR SUMMARY: 1 error
"""
RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at xlstm_backward+0x4d0 and Read access at xlstm_backward+0x5f0
31 layers ran
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


@pytest.mark.parametrize(
    ("code", "text", "errors", "status"),
    [
        (0, "31 layers ran\n========= ERROR SUMMARY: 0 errors\n", 0, 0),
        (0, "31 layers ran\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, 0),
        (99, FOUND, 1, 1),
        (0, RACE, 2, 1),
        (1, "Traceback\n========= ERROR SUMMARY: 0 errors\n", None, 2),
        (0, "========= ERROR SUMMARY: 0 errors\n", None, 2),  # nothing ran
        (99, "31 layers ran\n", None, 2),
        (127, "", None, 2),
    ],
)
def test_what_the_sanitizer_says(code, text, errors, status):
    report = sanitize.understand("memcheck", code, text)
    assert (report.errors, report.status) == (errors, status)
    if errors:
        assert list(report.kernels) == ["xlstm_forward" if text is FOUND else "xlstm_backward"]
        assert "31 layers ran" in str(report)


def test_the_sanitizer_is_found_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    if not gpu.Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        with pytest.raises(FileNotFoundError, match="CUDA_HOME says where"):
            sanitize.find()
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert sanitize.find() == str(program)


@pytest.mark.parametrize("name", ["gpu", "barriers", "choices", "cudnn", "mlstm", "language", "sanitize"])
def test_without_a_card_they_say_so_and_time_nothing_where_cupy_runs_on_the_cpu(name, monkeypatch):
    if probe.cupy_failure() is None:
        on_gpu.on_cpu()
    words = "" if probe.cupy_failure() else ".*CPU.*, whose times are not those of a GPU"
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(sanitize, "find", lambda: "compute-sanitizer")
    with pytest.raises(SystemExit, match=f"^{name}: cupy: {words}"):
        importlib.import_module(f"bench.{name}").main()


def test_records_are_json(tmp_path):
    path = tmp_path / "record.json"
    assert rows.read(path) is None
    rows.keep(path, {"a": 1})
    assert rows.read(path) == {"a": 1}
    assert gpu.slug(H100) == "nvidia-h100-80gb-hbm3"
