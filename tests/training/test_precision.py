"""Mixed precision: scales, skipped steps, what stops training, what is refused; CuPy as far as it
goes without a GPU.

float32 below float64 stands in for float16 below float32, and float16 and bfloat16 themselves run
on a CPU where the refusal of them is taken out.
"""

import contextlib
import importlib
import sys

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from xlstm import losses, precision
from xlstm.arrays import optional_imports
from xlstm.arrays.backend import backend_like
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import namespace
from xlstm.data import Streams
from xlstm.engines.cuda.choice import told
from xlstm.estimators import Forecaster
from xlstm.models.sequence import SequenceModel
from xlstm.precision import Mixed, Scaling, after, lowered, named, raised, tf32
from xlstm.training import TrainStep, loop, optimizers

backends = importlib.import_module("xlstm.arrays.backend")  # xlstm.backend is the function


@pytest.fixture
def single(monkeypatch):
    """float32 as a lower dtype, for weights in float64."""
    monkeypatch.setattr(precision, "DTYPES", ("float16", "bfloat16", "float32"))
    return Mixed("float32", scale=2.0**8)


@pytest.fixture
def halves(monkeypatch):
    """float16 and bfloat16 let be on a CPU."""
    for module in (backends, sys.modules["xlstm.arrays.namespace"]):
        monkeypatch.setattr(module, "HALVES", ())


def stream_data():
    v = np.sin(np.arange(400) / 5.0)
    return Streams(v[:-1, None], v[1:, None], 4, 20)


def model():
    return SequenceModel(xlstm.LSTM(1, 8), 1)


def train(params, **options):
    options = {"optimizer": optimizers.adam(0.01), "epochs": 3, "clip": 1.0, **options}
    return loop.train(model(), params, options.pop("data", stream_data()), **options)


# The pieces


def test_the_scale_saves_small_gradients_in_float16():
    small = np.array([1e-8, -3e-9], "float32")
    assert np.all(lowered(small, "float16") == 0)
    low = lowered(small, "float16", 2.0**16)
    assert low.dtype == np.float16
    np.testing.assert_allclose(raised(low, scale=2.0**16), small, rtol=2**-11)
    assert lowered(small, "float32") is small
    with np.errstate(over="ignore"):
        assert np.all(np.isinf(lowered(np.array([1e5], "float32"), "float16")))


def test_the_scale_grows_and_shrinks():
    mixed = Mixed(scale=8.0, growth=4.0, backoff=0.25, every=3)
    scaling = mixed.init()
    seen = []
    for finite in (True, True, True, True, False, True, True, True):
        scaling = after(mixed, scaling, finite)
        seen.append(scaling)
    assert seen == [(8, 1), (8, 2), (32, 0), (32, 1), (8, 0), (8, 1), (8, 2), (32, 0)]


def test_the_scale_has_ends_and_bfloat16_and_full_precision_have_none():
    one = Scaling()
    default = Mixed(every=1)
    most = precision.MOST
    least = precision.LEAST
    assert default.init() == (2.0**16, 0)
    for mixed, scaling, finite, expected in (
        (default, Scaling(most), True, (most, 0)),
        (default, Scaling(2 * least), False, (least, 0)),
        (default, Scaling(least), False, None),
        (Mixed("bfloat16"), one, True, one),
        (Mixed("bfloat16"), one, False, None),
        (None, one, True, one),
        (None, one, False, None),
    ):
        assert after(mixed, scaling, finite) == expected


# The loop


def test_training_follows_full_precision(single, be):
    """float32 below float64 weights: the losses of float64 nearly, and weights in float64."""
    params = model().init(0, be)
    full = train(params)
    mixed = train(params, precision=single)
    assert mixed.skipped == 0
    np.testing.assert_allclose(mixed.losses, full.losses, rtol=1e-4)
    assert max(abs(a - b) for a, b in zip(mixed.losses, full.losses, strict=True)) > 0
    for name, p in mixed.params.items():
        assert backend_like(p).dtype == "float64"
        np.testing.assert_allclose(to_numpy(p), to_numpy(full.params[name]), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "dtype", "rtol", "atol"),
    [
        ("numpy", "float16", 0.05, 2e-3),
        ("torch", "float16", 0.05, 2e-3),
        ("torch", "bfloat16", 0.1, 1e-2),
    ],
)
def test_halves_follow_float32(halves, name, dtype, rtol, atol):
    params = model().init(0, make_backend(name, "float32"))
    full = train(params, epochs=10)
    mixed = train(params, epochs=10, precision=Mixed(dtype))
    np.testing.assert_allclose(mixed.losses, full.losses, rtol=rtol, atol=atol)
    assert mixed.losses[-1] < 0.3 * mixed.losses[0]
    assert mixed.skipped < 10
    assert all(backend_like(p).dtype == "float32" for p in mixed.params.values())


def overflowing(steps):
    """A loss whose gradient is too large for the lower dtype in some steps, counted from 0, and the
    steps so far.
    """
    count = [0]

    def loss(y, target, mask=None):
        value, dy = losses.mse(y, target, mask)
        count[0] += 1
        return value, dy * 1e300 if count[0] - 1 in steps else dy

    return loss


def test_an_overflow_leaves_the_step_out(single):
    """Weights, moments and the number of updates are those before it, and the scale is halved."""
    step = TrainStep(model(), optimizers.adam(0.01), loss=overflowing({1}), precision=single)
    state = step.init(model().init(0, "numpy", "float64"))
    scales = [state.scaling.scale]
    for k, batch in enumerate(stream_data().batches()):
        before = state
        state, taken = step(state, batch)
        assert taken.updated == (k != 1)
        assert (state.params is before.params) == (state.moments is before.moments) == (k == 1)
        scales.append(state.scaling.scale)
    assert scales == [256.0, 256.0, 128.0, 128.0, 128.0]
    assert state.updates == state.moments.step == 3


def test_a_first_step_left_out_leaves_the_average_alone(single):
    params = model().init(0, "numpy", "float64")
    trained = train(
        params, epochs=1, loss=overflowing({0, 1, 2, 3}), precision=single, averaging=0.9
    )
    assert trained.skipped == 4
    assert all(trained.params[name] is p for name, p in params.items())


def test_what_overflows_for_ever_is_named(single):
    params = model().init(0, "numpy", "float64")
    words = (
        r"epoch 6, step 3: loss is [\d.]+, gradient of \S+ is not finite in float32 at a loss scale"
        r" of 6.1.*e-05"
    )
    # 2^8 down to 2^-14: 22 steps left out, the 23rd stops
    with pytest.raises(FloatingPointError, match=words):
        train(params, epochs=9, loss=overflowing(range(99)), precision=single)


def test_a_loss_that_is_not_finite_stops_at_once(halves):
    """It comes before any scale."""
    params = {
        name: p + (1e6 if name == "head.W" else 0) for name, p in model().init(0, "numpy").items()
    }
    with pytest.raises(
        FloatingPointError,
        match=r"step 1: loss is (nan|inf), parameter head\.W is not finite in flo",
    ):
        train(params, precision=Mixed())


# Refused precisions


@pytest.mark.parametrize(("name", "dtype"), [("numpy", "float16"), ("torch", "bfloat16")])
def test_a_cpu_is_refused(name, dtype):
    params = model().init(0, make_backend(name, "float32"))
    with pytest.raises(TypeError, match=f"{dtype} on a CPU"):
        train(params, precision=Mixed(dtype))
    with pytest.raises(TypeError, match=f"{dtype} on a CPU"):
        namespace("f", lowered({"a": params["head.W"]}, dtype))


def test_a_forecaster_saves_its_masters(halves, tmp_path):
    values = np.sin(np.arange(300) / 5)
    forecaster = Forecaster(
        precision="float16", epochs=2, window=12, hidden_size=4, backend="numpy"
    ).fit(values)
    assert {p.dtype for p in forecaster.params_.values()} == {np.dtype("float32")}
    forecaster.save(tmp_path / "model")
    loaded = Forecaster.load(tmp_path / "model", "numpy")
    assert loaded.settings.precision == "float16"
    np.testing.assert_array_equal(loaded.predict(values, 3), forecaster.predict(values, 3))


# CuPy, as far as it goes without a GPU


def test_tf32_holds_within_its_block_on_cupy():
    home = make_backend("cupy", "float32")
    core = optional_imports.cupy()._core
    kinds = core._routines_linalg
    before = core.get_compute_type(np.float32)
    for context in (tf32(), named("tf32", home)[1]):
        with contextlib.suppress(KeyError), context:
            assert (told()[1], core.get_compute_type(np.float32)) == (
                "tf32",
                kinds.COMPUTE_TYPE_TF32,
            )
            with tf32(False):
                assert (told()[1], core.get_compute_type(np.float32)) == (
                    "float32",
                    kinds.COMPUTE_TYPE_DEFAULT,
                )
            assert core.get_compute_type(np.float32) == kinds.COMPUTE_TYPE_TF32
            raise KeyError
        assert core.get_compute_type(np.float32) == before


def test_bfloat16_arrays_of_torch(rng):
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    be = make_backend("torch", "float32")
    values = rng.standard_normal(5)
    low = be.asarray(values, "bfloat16")
    assert low.dtype is torch.bfloat16
    assert to_numpy(low).dtype == np.float32
    np.testing.assert_array_equal(
        to_numpy(low), values.astype(ml_dtypes.bfloat16).astype("float32")
    )
    np.testing.assert_array_equal(
        to_numpy(be.asarray(values.astype(ml_dtypes.bfloat16), "bfloat16")), to_numpy(low)
    )
    assert be.asarray(low).dtype is torch.float32  # floating, so in the backend's dtype
