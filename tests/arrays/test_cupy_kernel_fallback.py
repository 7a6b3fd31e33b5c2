"""Kernels that a card refuses: another path does their work, with one warning, and with the same
results.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from unittest.mock import Mock

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu, registry
from tests.engines.cuda.test_cupy_kernels import LENGTHS, TOLERANCE, results
from tests.registry import agree, largest
from xlstm import optim, training
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda import concat_kernel as concats
from xlstm.arrays.cuda import kernel_fallback, waits
from xlstm.arrays.cuda.device import TYPES
from xlstm.arrays.cuda.kernel_fallback import CudaError
from xlstm.cells import lstm
from xlstm.data import Windows
from xlstm.engines import cuda, secure_cache
from xlstm.engines.cuda import (
    cell_source,
    check,
    check_results,
    chunk_passes,
    kernel_source,
    launch,
)
from xlstm.engines.cuda.check import ARRAYS
from xlstm.engines.cuda.choice import choose
from xlstm.engines.pointwise import pointwise

cupy = gpu.needed()
STAGES = ("compile", "load", "launch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("start", ARRAYS)
def test_kernels_of_arrays(start, stage, dtype):
    be = xlstm.backend("cupy", dtype=dtype)
    rng = np.random.default_rng(0)
    given = [be.asarray(rng.standard_normal((4, 40))) for _ in range(2)]
    expected = ARRAYS[start](be.xp, *(a.copy() for a in given))
    words = (
        "does not compile .error: "
        if stage == "compile"
        else "is not loaded or launched .CUDADriverError: "
    )
    with gpu.refusing(stage, start):
        with pytest.warns(RuntimeWarning, match=f"on CUDA on the CPU {start}.* {words}") as warned:
            found = ARRAYS[start](be.xp, *(a.copy() for a in given))
        with gpu.counted() as again:
            ARRAYS[start](be.xp, *(a.copy() for a in given))  # nor is it tried a second time
    assert len(warned) == len({str(w.message) for w in warned}) <= 3
    assert not [name for name in again.found.names if f" {start}" in name]
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        agree({"": a}, {"": b}, TOLERANCE[dtype], largest)


def alone(path):
    """Have no other path be taken than this one, or what follows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for other in {"cluster", "grid", "plain"} - {path}:
            kernel_fallback.note(f"{other} ", "it is not tried")


# A path, and what the text of its kernels of passes has.
LOOPS = {
    "cluster": "#define CLUSTER 1",
    "grid": "#define CLUSTER 0",
    "plain": "#define CLUSTER 0",
    "pointwise": "_step",
}


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}])
@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("path", LOOPS)
def test_recurrent_layers(path, stage, kind, options):
    """Where nothing is launched, the passes that follow fail as well, and the array library does
    their work.
    """
    layer = xlstm.LSTM(3, 20, num_layers=2, peepholes=True, recompute=stage == "load")
    expected = results(layer, backend="numpy", **options)
    kind = {"forward": "slim", "backward": "again"}[kind] if layer.recompute else kind
    part = LOOPS[path] if stage == "compile" and path != "pointwise" else f"xlstm_{kind}"
    with gpu.refusing(stage, part):
        alone(path)
        with pytest.warns(RuntimeWarning, match="xlstm_.*; another way does its work") as found:
            agree(results(layer, "float32", **options), expected, TOLERANCE["float32"], largest)
        agree(results(layer, "float32", **options), expected, TOLERANCE["float32"], largest)
    said = [str(one.message) for one in found]
    assert path in said[0]
    assert (
        len(said)
        == len(set(said))
        == (1 if part[0] == "#" or (path == "pointwise" and kind != "again") else 2)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_single_step(stage):
    be = xlstm.backend("cupy", dtype="float32")
    layer = xlstm.GRU(3, 8)
    params = layer.init(0, be)
    x = be.asarray(np.ones((2, 3)))
    expected = layer.step(params, x)[0]
    with (
        gpu.refusing(stage, "xlstm_lean_step"),
        pytest.warns(RuntimeWarning, match="xlstm_lean_step"),
    ):
        agree({"": layer.step(params, x)[0]}, {"": expected}, 1e-5)


def test_what_was_asked_for_is_refused():
    """CUDA 12.0 does not compile st.async, with which clusters exchange."""
    layer = xlstm.LSTM(3, 20)
    with gpu.refusing("compile", "#define CLUSTER 1"), cuda.use("cluster"):
        for _ in range(2):
            with pytest.raises(CudaError, match="xlstm_forward does not compile"):
                results(layer, "float32")
    be = xlstm.backend("cupy", dtype="bfloat16")
    with (
        gpu.refusing("launch", "xlstm_"),
        pytest.warns(RuntimeWarning),
        pytest.raises(TypeError, match="bfloat16"),
    ):
        layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))


@pytest.mark.parametrize("kind", ["gates", "states_bwd"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_of_an_mlstm(dtype, stage, kind):
    layer = xlstm.mLSTM(3, 16, num_heads=2)
    exact = results_of(layer, "numpy", "float64")
    with gpu.refusing(stage, f"xlstm_chunk_{kind}"):
        with pytest.warns(RuntimeWarning, match=f"chunks .*: xlstm_chunk_{kind} ") as found:
            agree(results_of(layer, "cupy", dtype), exact, TOLERANCE[dtype], largest)
        agree(results_of(layer, "cupy", dtype), exact, TOLERANCE[dtype], largest)
    assert len(found) == 1


def results_of(layer, backend, dtype):
    be = xlstm.backend(backend, dtype=dtype)
    rng = np.random.default_rng(0)
    params = {n: be.asarray(p) for n, p in layer.init(0, "numpy").items()}
    x = be.asarray(rng.standard_normal((20, 2, layer.input_size)))
    return registry.run(layer, params, x)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_language_model_without_any_kernel(dtype, stage):
    layer = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 2, [], 2, dropout=0.2), 7)
    found = {}
    for part in ("nothing at all", "xlstm_"):
        be = xlstm.backend("cupy", dtype=dtype)
        rng = np.random.default_rng(0)
        params = {
            n: be.asarray(0.3 * rng.standard_normal(to_numpy(p).shape))
            for n, p in layer.init(0, be).items()
        }
        with gpu.refusing(stage, part), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y, _, saved = layer.forward(params, registry.input_of(layer, be, rng), seed=1)
            grads = layer.backward(params, saved, y)[0]
        found[part] = {"y": y, **grads}
        assert {str(a.dtype) for a in found[part].values()} == {dtype}
    agree(*found.values(), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("path", ["cluster", "grid"])
def test_blocks_that_wait_for_one_another_have_room(monkeypatch, path):
    """MPS leaves a process a part of the multiprocessors: no kernel is launched that waits for
    blocks in vain.
    """
    gpu.on_cpu()
    monkeypatch.setattr(
        launch, "_device", lambda number: launch.Device("CUDA on the CPU", 90, 132, 232448, 16)
    )
    layer = xlstm.LSTM(3, 200)
    expected = results(layer, backend="numpy")
    gpu.first_contact()
    alone(path)
    words = f"{path} .* wait for one another, and [02] run at once"
    with cuda_on_cpu.configured(part=2), pytest.warns(RuntimeWarning, match=words):
        agree(results(layer, "float32"), expected, TOLERANCE["float32"], largest)
    gpu.first_contact()


@pytest.mark.usefixtures("refused")
def test_a_card_that_answers_nothing_more_is_named():
    gpu.on_cpu()
    text = (
        'extern "C" __global__ void hang() { if (threadIdx.x) __syncthreads(); else while (true)'
        " __nanosleep(1); }"
    )
    xp = xlstm.backend("cupy").xp
    a = cupy.ones((3, 4), "float32")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="LAUNCH_FAILED"):
        cupy.RawKernel(text, "hang")((1,), (64,), ())
    with pytest.raises(
        CudaError,
        match=r"xlstm_concat, or a kernel before it, failed while it ran .* answers nothing",
    ):
        concat(xp, [a, a], 0)
    cuda_on_cpu.recover()


def test_missing_memory_is_no_fault_of_a_kernel(monkeypatch):
    """It reaches the user as CUDA, cuBLAS or the pool says it, and the kernels run as soon as there
    is memory.
    """
    gpu.first_contact()
    cublas = importlib.import_module("cupy_backends.cuda.libs.cublas")
    errors = [cupy.cuda.memory.OutOfMemoryError(1, 2), cublas.CUBLASError(3)]
    errors += [cupy.cuda.runtime.CUDARuntimeError(2), cupy.cuda.driver.CUDADriverError(2)]
    layer = xlstm.LSTM(3, 20)
    launch.current()  # what the card can do is known before
    for error in errors:
        monkeypatch.setattr(launch, "_kernel", Mock(side_effect=error))
        with pytest.raises(type(error)):
            results(layer, "float32")
        assert not kernel_fallback._reasons


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A check of one cell in float32, whose result is kept in a folder of the test."""
    gpu.on_cpu()
    monkeypatch.setattr(check, "CELLS", {"LSTM": check.CELLS["LSTM"]})
    monkeypatch.setattr(check_results, "DTYPES", ("float32",))
    monkeypatch.setattr(check_results, "place", lambda dtype: (tmp_path, f"{dtype}.json"))
    monkeypatch.delenv(check_results.VARIABLE)
    in_child(monkeypatch)
    yield monkeypatch
    monkeypatch.undo()
    new_process()


def in_child(monkeypatch, *lines):
    """Have the process that checks do this before it begins."""
    before = (
        "from xlstm.engines.cuda import kernel_source, check; check.CELLS = {'LSTM':"
        " check.CELLS['LSTM']}"
    )
    text = "\n".join([before, *lines, "check.child()"])
    monkeypatch.setattr(check, "COMMAND", (sys.executable, "-P", "-c", text))


def new_process():
    """Forget what is known, and use the card."""
    gpu.first_contact()
    check_results._begun.clear()
    check._prove.cache_clear()
    return launch.current()


def chosen():
    """The path of an LSTM, and whether an mLSTM has kernels of its own."""
    be = xlstm.backend("cupy")
    step = pointwise(lstm.Cell(), (), ("b",))
    a = be.asarray(np.ones((4, 2, 32)))
    path = choose(("auto", "float32"), step, "", "float32", 80, 1, 2, launch.current()).path
    return path, chunk_passes.kernels(be.xp, a, a, a, 2, 16, "sigmoid", 0.0) is not None


def begin_training():
    layer = xlstm.LSTM(1, 4)
    training.Step(layer, optim.adam(1e-2)).init(layer.init(0, "cupy"))


def processes(monkeypatch):
    """Return a list to which each process that checks adds the path that is chosen meanwhile."""
    whole = check.subprocess.run
    found = []

    def run(*arguments, **options):
        found.append(chosen())
        return whole(*arguments, **options)

    monkeypatch.setattr(check.subprocess, "run", run)
    return found


SAFE = ("pointwise", False)
ALL = ("cluster", True)


def test_the_check_of_a_card(kept, capsys):
    kept.setattr(check_results, "DTYPES", tuple(TYPES))
    found = xlstm.cuda.check()
    assert capsys.readouterr().out == f"{found}\n"
    assert not found.wrong
    for kernel in ("", " LSTM"):
        assert {row.dtype for row in found if row.kernel.endswith(kernel)} == {
            *check_results.DTYPES,
            "tf32",
        }
    kinds = {"cluster", "grid", "plain", "pointwise", "step", "chunks", "rows"}
    assert {row.kernel.split()[0] for row in found} >= kinds
    new_process()
    assert not kernel_fallback._reasons


def test_kernels_are_checked_before_training_takes_them(kept, caplog):
    """By one process, of which later ones and plain inference take the result; a variable says
    otherwise.
    """
    checks = processes(kept)
    new_process()
    assert chosen() == SAFE  # inference does not check
    with caplog.at_level("INFO", "xlstm"):
        begin_training()
    assert checks == [SAFE]
    words = (
        "checking the float32 kernels of CUDA on the CPU, once for this card, driver and versions"
    )
    assert caplog.messages == [words]
    assert chosen() == ALL
    begin_training()
    new_process()
    assert chosen() == ALL
    begin_training()
    assert len(checks) == 1
    kept.setenv(check_results.VARIABLE, "1")
    new_process()
    assert chosen() == SAFE
    begin_training()
    begin_training()
    assert (len(checks), chosen()) == (2, ALL)


@pytest.mark.parametrize("file", ["damaged", "of another user"])
def test_what_is_no_result_of_ours_proves_nothing(kept, tmp_path, file):
    checks = processes(kept)
    me = os.geteuid()
    path = tmp_path / "float32.json"
    check_results.write("float32", check.Checked(), False)
    new_process()
    assert chosen() == ALL
    if file == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    else:
        kept.setattr(secure_cache.os, "geteuid", lambda: me + 1)
    new_process()
    assert chosen() == SAFE
    kept.setenv(check_results.VARIABLE, "0")
    new_process()
    begin_training()
    assert (chosen(), checks) == (ALL, [])


@pytest.mark.parametrize(
    ("seconds", "does", "why"),
    [(2, "time.sleep(1000)", "no answer within 60 s"), (60, "os.abort()", "it ended with -6")],
)
def test_a_check_that_does_not_end_is_not_waited_for_again(kept, seconds, does, why):
    """The process that checks has little time for the second kind alone, which it has begun when
    that time begins.
    """
    first = f"lambda *given: setattr(check, 'SECONDS', {seconds}) or concat(*given)"
    lines = [
        "import os, time",
        "concat = check.ARRAYS['xlstm_concat']",
        f"check.ARRAYS['xlstm_concat'] = {first}",
    ]
    in_child(kept, *lines, f"check.ARRAYS['xlstm_gather'] = lambda *_: {does}")
    checks = processes(kept)
    new_process()
    with pytest.warns(RuntimeWarning, match=f"xlstm_gather: {why}, float32; another way"):
        begin_training()
    assert chosen() == SAFE
    with pytest.warns(RuntimeWarning, match=f"xlstm_gather: {why}"):
        new_process()
    begin_training()
    assert (len(checks), chosen()) == (1, SAFE)
    assert "the check stopped at gather, float32" in kernel_fallback._reasons.values()


@pytest.mark.parametrize(
    ("part", "wrong", "problem", "path"),
    [
        ("group.step + 1)", "group.step)", waits.GAVE_UP, "cluster"),
        ("zh[gate] = 0;", "zh[gate] = gate;", check.WRONG, "pointwise"),
        ("", "", check.OTHER, "cluster"),
    ],
)
def test_kernels_that_a_check_finds_wrong_are_not_taken(kept, run, part, wrong, problem, path):
    lines = [
        "import itertools",
        "real, n, passes = kernel_source.template, itertools.count(), check._passes",
    ]
    lines.append(f"kernel_source.template = lambda name: real(name).replace({part!r}, {wrong!r})")
    if problem == check.OTHER:
        lines.append(
            "check._passes = lambda c, p, *a: [y + 1e-7 * (p == 'grid') * next(n) for y in"
            " passes(c, p, *a)]"
        )
    in_child(kept, *lines)
    new_process()
    with pytest.warns(RuntimeWarning, match=f": {problem}, "):
        begin_training()
    assert chosen() == (path, True)
    with pytest.warns(RuntimeWarning, match=f": {problem}, "):
        new_process()
    rows = json.loads(run("check", "--json", code=1).output)
    assert all(row["problem"].endswith(problem) for row in rows if row["kernel"] == "grid LSTM")


def test_training_ends_with_the_name_of_a_kernel_that_waits_in_vain(monkeypatch):
    gpu.on_cpu()
    whole = kernel_source.template
    monkeypatch.setattr(
        kernel_source,
        "template",
        lambda name: whole(name).replace("group.step + 1)", "group.step)"),
    )
    layer = xlstm.LSTM(1, 80)
    inputs = np.ones((4, 5, 80))
    (batch,) = Windows(inputs[..., :1], inputs, every_step=True, batch_size=4).batches()
    step = training.Step(layer, optim.adam(1e-2), graph="auto")
    cell_source.loop.cache_clear()
    gpu.first_contact()
    try:
        alone("grid")
        with pytest.raises(
            CudaError,
            match=r"xlstm_.* of grid 3xfp16 4 x 1 x 80: its blocks waited for one another",
        ):
            step(step.init(layer.init(0, "cupy")), batch)
        assert step(step.init(layer.init(0, "cupy")), batch)[1].updated  # by another path
    finally:
        cell_source.loop.cache_clear()
        gpu.first_contact()


def test_kernels_that_are_wrong_on_a_card_are_not_used(kept, capsys):
    """Those that did not compile may do so in another process."""
    kept.setattr(concats, "TEXT", concats.TEXT.replace("index[axis] * part", "0 * part"))
    xp = xlstm.backend("cupy").xp
    a = cupy.ones((2, 3), "float32")
    with gpu.refusing("compile", "#define CLUSTER 1"):
        with pytest.warns(
            RuntimeWarning, match="wrong values, float32; another way|does not compile"
        ) as warned:
            xlstm.cuda.check()
        assert len(warned) == 3  # concat, and clusters in float32 and in TF32
        assert "wrong values" in capsys.readouterr().out.splitlines()[0]
    with pytest.warns(RuntimeWarning, match="concat: wrong values") as warned:
        new_process()  # it reads what the one before it kept
    assert len(warned) == 1
    assert to_numpy(concat(xp, [a, a, filled(xp, a, 1, 1, 1)], 1)).tolist() == [[1] * 7] * 2
