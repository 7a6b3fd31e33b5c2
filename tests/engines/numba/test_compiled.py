"""Compiled loops: when they are taken, streams, and code that is kept. `test_batch_sizes.py` has
every option.
"""

import copy
import gc
import re
import stat
import subprocess
import sys
import weakref

import numpy as np
import pytest

from tests.conftest import make_backend
from tests.registry import inputs_of, make
from xlstm.engines.numba import jit

needs_numba = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
KINDS = ("LSTM", "GRU", "RNN")


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_stream_take_other_arrays(monkeypatch, rng, kind):
    """A layer keeps how its steps run, but no arrays: later ones count, in either dtype, read-only,
    and in place.
    """
    layer = make(kind, {"num_layers": 2}, 3, 5)
    given = [
        inputs_of(layer, make_backend("numpy", dtype), rng, 2, 1)
        for dtype in ("float64", "float32", "float64")
    ]
    given.append(copy.deepcopy(given[0]))  # which can be written
    results = {}
    for compiled in "101":
        monkeypatch.setenv("XLSTM_COMPILE", compiled)
        results[compiled] = [layer.step(params, x[0], state) for params, x, state in given]
    for (params, x, state), (y, after), (y0, after0) in zip(
        given, results["1"], results["0"], strict=True
    ):
        tolerance = 1e-11 if x.dtype == "float64" else 1e-5
        for a, b in zip((y, *after), (y0, *after0), strict=True):
            assert a.dtype == x.dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert not any(
            np.shares_memory(a, b) for a in (y, *after) for b in (*params.values(), x, *state)
        )
        assert not any(np.shares_memory(y, a) for a in after)
    params, x, state = given[3]
    params["0.b"] += 1.0
    assert not np.allclose(layer.step(params, x[0], state)[0], results["1"][3][0])
    freed = weakref.ref(given[3][0]["0.Wx"])
    del given, results, params, x, state, a, b, y, after, y0, after0
    gc.collect()
    assert freed() is None


def test_the_variable_decides(monkeypatch):
    monkeypatch.setenv("XLSTM_COMPILE", "0")
    assert not jit.enabled()
    monkeypatch.setenv("XLSTM_COMPILE", "yes")
    with pytest.raises(ValueError, match="XLSTM_COMPILE is 'yes', expected one of 0, 1"):
        jit.enabled()
    monkeypatch.setattr(jit, "failure", lambda: "numba is not installed; pip install numba")
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    with pytest.raises(
        ImportError, match="XLSTM_COMPILE=1, but numba is not installed; pip install numba"
    ):
        jit.enabled()
    monkeypatch.delenv("XLSTM_COMPILE")
    assert not jit.enabled()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ModuleNotFoundError("no", name="numba"),
            "numba is not installed; pip install numba platformdirs",
        ),
        (
            ImportError("Numba needs NumPy 2.2 or less"),
            r"Numba does not import \(ImportError: Numba needs NumPy",
        ),
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
from xlstm.arrays.fuse import fuse
from xlstm.cells.activations import sigmoid
layer = xlstm.LSTM(2, 8)
params = layer.init(0, "numpy", "float64")
x = np.random.default_rng(0).standard_normal((4, 1, 2))
_, state = layer(params, x)
print([layer.step(params, x1, state)[0].tobytes() for x1 in x], fuse(np, sigmoid, np.linspace(-1, 1, 20000)).tobytes())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setenv("XLSTM_COMPILE", "1")
    return tmp_path / "xlstm"


@needs_numba
def test_compiled_code_is_kept_for_the_next_process(cache):
    """In files of this user alone; the next process has the same bits, and makes none."""
    printed = []
    kept = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, umask=0)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
        kept.append({path: path.stat().st_ino for path in cache.iterdir()})
    assert printed[0] == printed[1]
    assert kept[0] == kept[1] != {}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept[0]} == {0o600}
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
