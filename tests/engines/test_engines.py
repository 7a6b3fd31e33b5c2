"""Which engine runs a recurrence: the choice, an engine that is asked for, and why an engine
refuses.
"""

import contextlib
import threading

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import agree, alone, inputs_of, largest, make
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.numba import jit

needs_numba = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
KINDS = ("LSTM", "GRU", "RNN", "sLSTM")


def layer_of(kind, **options):
    return (
        xlstm.sLSTM(3, 6, num_heads=2, **options) if kind == "sLSTM" else make(kind, options, 3, 6)
    )


def engine_of(layer, params, x, **options):
    """The name of the engine that forward takes."""
    _, _, saved = layer.forward(params, x, **options)
    (name,) = {one.tape.engine.name for one in saved.kept.values()}
    return name


@pytest.fixture
def compiling(monkeypatch):
    """Numba is used where it is installed."""
    monkeypatch.delenv(jit.VARIABLE, raising=False)


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_is_asked_for_runs(rng, kind):
    """Forward, and backward in the engine that forward took."""
    layer = layer_of(kind)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 5, 3)
    usual = "numba" if jit.failure() is None else "array_api"
    for name in ("array_api", usual):
        with engine.use(name):
            assert engine_of(layer, params, x) == name
            _, _, saved = layer.forward(params, x, state)
        assert saved.kept["0"].tape.engine.name == name
        layer.backward(params, saved, np.ones((5, 3, 6)))


@needs_numba
@pytest.mark.usefixtures("compiling")
def test_the_engine_of_a_context_ends_with_it(rng):
    layer = layer_of("GRU")
    params, x, _ = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
    elsewhere = []

    def fail():
        assert engine_of(layer, params, x) == "numba"
        raise ZeroDivisionError

    with engine.use("array_api"):
        with pytest.raises(ZeroDivisionError), engine.use("numba"):
            fail()
        assert engine_of(layer, params, x) == "array_api"
        other = threading.Thread(target=lambda: elsewhere.append(engine_of(layer, params, x)))
        other.start()
        other.join()
    assert engine_of(layer, params, x) == "numba"
    assert elsewhere == ["numba"]  # a thread has a context of its own


class Counting(engine.Engine):
    """An engine that counts what the reference runs for it."""

    name = "counting"
    passes = 0

    def refuses(self, step, widths):
        return ""

    def forward(self, *args):
        self.passes += 1
        return ARRAY_API.forward(*args)


def test_a_third_engine_streams(rng, monkeypatch):
    """A single step is by default a pass of one step."""
    counting = Counting()
    layer = xlstm.LSTM(3, 6, num_layers=2)
    params, x, state = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
    expected = layer.step(params, x[0], state)
    monkeypatch.setattr(engine, "ENGINES", [counting])
    y, end = type(layer)(3, 6, num_layers=2).step(params, x[0], state)
    assert counting.passes == 2
    agree(dict(enumerate((y, *end))), dict(enumerate((expected[0], *expected[1]))), 1e-12, largest)


@needs_numba
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("T", [1, 3, 4, 60])
def test_inference_of_one_sequence_is_that_of_training(rng, T):
    """It runs in a compiled call of its own, also with parameters that were changed in place."""
    for layer in map(layer_of, KINDS):
        params, x, state = inputs_of(layer, make_backend("numpy"), rng, T, 1)
        params["0.Wh"] = params["0.Wh"].copy()
        for _ in range(2):
            y, end = layer(params, x, state)
            y1, after = layer.step(params, x[0], state)
            z, last, _ = layer.forward(params, x, state)
            z1, first, _ = layer.forward(params, x[:1], state)
            results = dict(enumerate((y, *end, y1[None], *after)))
            agree(results, dict(enumerate((z, *last, z1, *first))), 1e-12, largest)
            params["0.Wh"] *= 0.5


# Options that keep a layer from the loops of an engine, and what it calls them.
REFUSED = {
    "zoneout": "zoneout",
    "recurrent_dropout": "recurrent dropout",
    "proj_size": "a projection",
    "layer_norm": "layer normalisation",
    "reset_after": "a product within the cell",
}


@needs_numba
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_refusal_is_an_error_that_names_the_option(rng, kind):
    """Each option alone is tried, forward and in a single step; a layer that is not refused
    runs.
    """
    for options in alone(kind):
        layer = make(kind, options, 3, 6)
        params, x, state = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
        words = [REFUSED[name] for name in options if name in REFUSED]
        with engine.use("numba"):
            if not words:
                assert engine_of(layer, params, x, state=state, seed=1) == "numba", layer
                continue
            with pytest.raises(
                ValueError, match=f"^engine numba: no compiled loop does .*{words[0]}"
            ):
                layer.forward(params, x, state, seed=1)
            if options.keys() & {"proj_size", "layer_norm", "reset_after"}:
                for B in (1, 2):
                    with pytest.raises(
                        ValueError, match=f"^engine numba: no compiled loop does .*{words[0]}"
                    ):
                        layer.step(params, x[0, :B])
        assert engine_of(layer, params, x, state=state, seed=1) == "array_api"


def test_an_engine_of_another_library_or_without_its_package_is_refused(rng, monkeypatch):
    layer = layer_of("LSTM")
    params, x, _ = inputs_of(layer, make_backend("numpy"), rng, 4, 2)
    with engine.use("cuda"):
        for call in (lambda: layer.forward(params, x), lambda: layer.step(params, x[0])):
            with pytest.raises(ValueError, match=r"^engine cuda: it runs arrays of CuPy$"):
                call()
    with pytest.raises(ValueError, match=r"^engines\.use: name is 'jax'"), engine.use("jax"):
        pass
    monkeypatch.setenv(jit.VARIABLE, "0")
    with (
        engine.use("numba"),
        pytest.raises(
            ValueError, match=r"^engine numba: XLSTM_COMPILE is 0, or Numba is not installed$"
        ),
    ):
        layer.forward(params, x)


@needs_numba
@pytest.mark.usefixtures("compiling")
def test_an_engine_that_is_asked_for_runs_the_mlstm(rng):
    """Without being asked, compiled loops run where they are quicker."""
    layer = xlstm.mLSTM(4, 8)
    params = layer.init(backend=make_backend("numpy"))
    x = rng.standard_normal((4, 2, 4))
    ran = {}
    for name in ("array_api", "numba", None):
        with engine.use(name) if name else contextlib.nullcontext():
            ran[name] = layer.forward(params, x)[2]["0"].memory.engine.name
    assert ran == {"array_api": "array_api", "numba": "numba", None: "array_api"}
    with engine.use("cuda"), pytest.raises(ValueError, match="cuda: it runs arrays of CuPy"):
        layer.forward(params, x)
