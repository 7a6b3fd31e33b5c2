"""Compiled loops and threads: the same numbers on every path that a layer can take, and when which is taken."""

import copy
import gc
import os
import pickle
import re
import stat
import subprocess
import sys
import weakref

import numpy as np
import pytest

import xlstm
from tests.conftest import force, make_backend
from tests.layers import COMPILED, alone, inputs_of, make, pairwise, run
from xlstm.cells import gru, lstm, lstm_options
from xlstm.cli import info
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.numba import codegen, jit, numba_engine
from xlstm.engines.numba.numba_engine import NUMBA

needs_numba = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
KINDS = ("LSTM", "GRU", "RNN")
LENGTHS = [7, 0, 3, 7, 1]
# (compiled, plan that is forced, threads)
PATHS = {
    "compiled": ("1", None, 1),
    "both": ("1", "parts", 2),
    "shared": ("1", "shared", 2),
    "both, three threads": ("1", "parts", 3),
    "shared, three threads": ("1", "shared", 3),
}


@pytest.mark.parametrize("path", [pytest.param(p, marks=needs_numba) if PATHS[p][0] == "1" else p for p in PATHS])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_gives_the_same_numbers(monkeypatch, rng, kind, dtype, path):
    """y, states, and gradients of everything, of all options alone; and the same bits each time.

    In float32 the options that are compiled go together in pairs: each other step takes time to compile.
    """
    compiled, forced, count = PATHS[path]
    options_of_all = [*alone(kind), {"num_layers": 2, "direction": "bidirectional"}]
    if dtype == "float32":
        options_of_all = [o for o in options_of_all if not set(o) & set(COMPILED)] + pairwise(kind, COMPILED)
    tolerance = {"float64": 1e-11, "float32": 3e-5}[dtype]
    be = make_backend("numpy", dtype)
    for options in options_of_all:
        layer = make(kind, options, 3, 5)
        params, x, state = inputs_of(layer, be, rng, 7, 5)
        for lengths in (None, LENGTHS):
            monkeypatch.setenv("XLSTM_COMPILE", "0")
            monkeypatch.setenv("XLSTM_NUM_THREADS", "1")
            expected = run(layer, params, x, state, lengths, seed=4)
            with monkeypatch.context() as patch:
                patch.setenv("XLSTM_COMPILE", compiled)
                if forced:
                    force(forced, patch, count)
                found, again = (run(layer, params, x, state, lengths, seed=4) for _ in range(2))
            for name, array in found.items():
                np.testing.assert_array_equal(array, again[name], err_msg=f"{layer} {name}")
                limit = tolerance * max(1.0, np.max(np.abs(expected[name]), initial=0))
                assert np.max(np.abs(array - expected[name]), initial=0) <= limit, f"{layer} {lengths} {name}"


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
def test_inference_and_single_steps(monkeypatch, rng, kind):
    for options in alone(kind):
        layer = make(kind, options, 3, 5)
        if layer.directions != ("",) or layer.batch_first:
            continue
        for B in (1, 4):
            params, x, state = inputs_of(layer, make_backend("numpy"), rng, 5, B)
            results = []
            for compiled in "01":
                monkeypatch.setenv("XLSTM_COMPILE", compiled)
                y, end, saved = layer.forward(params, x, state, train=False)
                y1, after = layer.step(params, x[0], state)
                y0, zero = layer.step(params, x[0])
                assert saved is None
                results.append([y, *end, y1, *after, y0, *zero])
            np.testing.assert_allclose(results[1][0][0], results[1][len(end) + 1], rtol=1e-9, atol=1e-11)
            for a, b in zip(*results, strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-11, err_msg=str(layer))


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_stream_take_other_arrays(monkeypatch, rng, kind):
    """A layer keeps how its steps run, but no arrays: later ones count, in either dtype, read-only, and in place."""
    layer = make(kind, {"num_layers": 2}, 3, 5)
    given = [inputs_of(layer, make_backend("numpy", dtype), rng, 2, 1) for dtype in ("float64", "float32", "float64")]
    given.append(copy.deepcopy(given[0]))  # which can be written
    results = {}
    for compiled in "101":
        monkeypatch.setenv("XLSTM_COMPILE", compiled)
        results[compiled] = [layer.step(params, x[0], state) for params, x, state in given]
    for (params, x, state), (y, after), (y0, after0) in zip(given, results["1"], results["0"], strict=True):
        tolerance = 1e-11 if x.dtype == "float64" else 1e-5
        for a, b in zip((y, *after), (y0, *after0), strict=True):
            assert a.dtype == x.dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert not any(np.shares_memory(a, b) for a in (y, *after) for b in (*params.values(), x, *state))
        assert not any(np.shares_memory(y, a) for a in after)
    params, x, state = given[3]
    params["0.b"] += 1.0
    assert not np.allclose(layer.step(params, x[0], state)[0], results["1"][3][0])
    freed = weakref.ref(given[3][0]["0.Wx"])
    del given, results, params, x, state, a, b, y, after, y0, after0
    gc.collect()
    assert freed() is None
    assert pickle.loads(pickle.dumps(layer)) == layer == copy.deepcopy(layer)


@needs_numba
@pytest.mark.parametrize(("dtype", "ulps"), [("float32", 3), ("float64", 3)])
def test_tanh_is_right_to_three_units_in_the_last_place(dtype, ulps):
    step = codegen.kernel(dtype, lambda xp, h: {"y": xp.tanh(h)}, {"h": None}).loops.step
    x = np.concatenate([np.linspace(-30, 30, 60001), np.logspace(-30, 2, 5001), -np.logspace(-30, 2, 5001)]).astype(
        dtype
    )
    y = np.empty_like(x)
    step(0, 0, 0, 0, 0, 0, 0, x.size, x, y)
    exact = np.tanh(x.astype(np.longdouble))
    assert np.max(np.abs(y - exact) / np.spacing(np.abs(exact).astype(dtype))) <= ulps
    special = np.array([np.nan, np.inf, -np.inf, 0.0], dtype=dtype)
    y = np.empty_like(special)
    step(0, 0, 0, 0, 0, 0, 0, 4, special, y)
    np.testing.assert_array_equal(y, [np.nan, 1, -1, 0])


@needs_numba
def test_what_is_not_a_number_stays_so(rng):
    """NaN and infinity in one sequence reach its own results, as in NumPy, and no other's."""
    for options in ({}, {"clip": 0.5}, {"cell_clip": 0.5}):
        layer = xlstm.LSTM(2, 3, **options)
        params = layer.init(0, "numpy", "float64")
        x = rng.standard_normal((4, 3, 2))
        x[1, 1, 0] = np.nan
        y, _, _ = layer.forward(params, x)
        assert np.all(np.isnan(y[1:, 1]))
        assert np.all(np.isfinite(y[:, [0, 2]]))


@needs_numba
def test_cells_that_are_compiled(monkeypatch):
    monkeypatch.setenv("XLSTM_COMPILE", "1")

    def of(cell, own=(), added=()):
        return codegen.kernels(cell, "float64", own, added)

    assert of(lstm.Cell(), added=("b",)) is of(lstm.Cell(), added=("b",)) is not None
    assert of(lstm_options.Cell(clip=1.0)) is of(lstm_options.Cell(clip=2.0)) is not None
    assert of(lstm_options.Cell(clip=1.0)) is not of(lstm_options.Cell())
    assert of(lstm_options.Cell(), (("p", 3),)) is not None
    assert of(lstm_options.Cell(), (("gc", None), ("bc", None))) is None  # normalised over all units
    assert of(gru.ResetBefore(), (("Wn", None),)) is None  # a product between its gates
    weights = {"Wx": np.empty((12, 2), "f2"), "Wh": np.empty((12, 3), "f2")}
    assert "float16" in NUMBA.refuses(Step(np, lstm.Cell(), weights, Masks()), [(2, 2)])
    assert set(numba_engine.DTYPES.values()) == {"float32", "float64"}


def test_the_variable_decides(monkeypatch):
    monkeypatch.setenv("XLSTM_COMPILE", "0")
    assert not jit.enabled()
    monkeypatch.setenv("XLSTM_COMPILE", "yes")
    with pytest.raises(ValueError, match="XLSTM_COMPILE: 'yes', expected 0 or 1"):
        jit.enabled()
    monkeypatch.setattr(jit, "failure", lambda: "numba is not installed; pip install numba")
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    with pytest.raises(ImportError, match="XLSTM_COMPILE=1, but numba is not installed; pip install numba"):
        jit.enabled()
    monkeypatch.delenv("XLSTM_COMPILE")
    assert not jit.enabled()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("no", name="numba"), "numba is not installed; pip install numba platformdirs"),
        (ImportError("Numba needs NumPy 2.2 or less"), r"Numba does not import \(ImportError: Numba needs NumPy"),
    ],
)
def test_numba_that_is_missing_or_broken_is_said_so(monkeypatch, error, reason):
    def fail(name):
        raise error

    monkeypatch.setattr(jit.importlib, "import_module", fail)
    jit.failure.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("XLSTM_COMPILE", raising=False)
            assert not jit.enabled()
        found = jit.failure()
    finally:
        jit.failure.cache_clear()
    assert re.match(reason, found)


CODE = """
import numpy as np, xlstm
layer = xlstm.LSTM(2, 8, coupled_input_forget=True)
params = layer.init(0, "numpy", "float64")
x = np.random.default_rng(0).standard_normal((4, 1, 2))
y, state, saved = layer.forward(params, x)
layer.backward(params, saved, y)
print(saved["0"].tape.engine.name, y.tobytes(), [layer.step(params, x1, state)[0].tobytes() for x1 in x])
"""


def in_processes(count):
    return [subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True) for _ in range(count)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    return tmp_path / "xlstm"


@needs_numba
def test_compiled_code_is_kept_for_the_next_process(cache):
    """In files of this user alone, with the same bits; damaged ones are made again, and nothing else changes."""
    before = os.umask(0)
    try:
        first, second = in_processes(2)
        kept = {path: path.stat() for path in cache.iterdir()}
        assert len(kept) > 3
        assert {path.suffix for path in kept} == {".nbc"}
        assert {stat.S_IMODE(found.st_mode) for found in kept.values()} == {0o600}
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
        damaged, *_ = cache.glob("*.forward-*")
        damaged.write_bytes(damaged.read_bytes()[:-1])
        (third,) = in_processes(1)
    finally:
        os.umask(before)
    assert [r.returncode for r in (first, second, third)] == [0, 0, 0], first.stderr + third.stderr
    assert first.stdout == second.stdout == third.stdout
    assert first.stdout.startswith("numba ")
    assert {path for path in cache.iterdir() if path.stat().st_ino != kept[path].st_ino} == {damaged}


@needs_numba
def test_where_compiled_code_is_kept(cache, monkeypatch):
    assert info.compiled().endswith(f", kept in {cache}")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(cache.parent / "numba"))
    assert info.compiled().endswith(f", kept in {cache.parent / 'numba' / 'xlstm'}")


def gates(k):
    return f"hard_sigmoid({0.2 + 0.1 * k}, {0.5 - 0.1 * k})"


NUMBERS = [
    lambda k: xlstm.LSTM(3, 5, clip=0.3 + k, cell_clip=0.2 + k, activations=(gates(k), "tanh", f"elu({1 + k})")),
    lambda k: xlstm.GRU(3, 5, clip=0.3 + k, activations=("sigmoid", f"scaled_tanh({1 + k}, {1 + 0.5 * k})")),
    lambda k: xlstm.RNN(3, 5, clip=0.3 + k, activations=f"leaky_relu({0.1 + 0.1 * k})"),
]


@needs_numba
@pytest.mark.parametrize("which", range(len(NUMBERS)))
def test_numbers_are_arguments_of_compiled_code(monkeypatch, rng, which):
    """Another value compiles nothing and gives its own results."""
    from xlstm.engines.numba import codecache

    asked = []
    load = codecache.Cache.load_overload
    monkeypatch.setattr(codecache.Cache, "load_overload", lambda self, *args: asked.append(self) or load(self, *args))
    params, x, state = inputs_of(NUMBERS[which](0), make_backend("numpy", "float64"), rng, 7, 1, scale=2.0)
    different = []
    for k in (0, 0.25, 1):
        layer = NUMBERS[which](k)
        results = []
        for compiled in "01":
            monkeypatch.setenv("XLSTM_COMPILE", compiled)
            found = run(layer, params, x, state)
            found["step"] = layer.step(params, x[0], state)[0]
            results.append(found)
        assert k == 0 or not asked, layer
        asked.clear()
        for name, array in results[0].items():
            np.testing.assert_allclose(results[1][name], array, rtol=1e-10, atol=1e-12, err_msg=f"{layer} {name}")
        different.append(results[0]["y"])
    assert not np.allclose(different[0], different[1])
    assert not np.allclose(different[1], different[2])
