"""Arrays of other libraries, by `__cuda_array_interface__` and by DLPack, wherever arrays are
taken.

Small objects act as arrays of Numba and of other libraries: on a GPU that is acted out, and on the
CPU with the DLPack of NumPy.
"""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace

import array_api_compat
import numpy as np
import pytest

import xlstm
from tests import gpu as on_gpu
from tests.conftest import make_backend
from tests.registry import flat, input_of
from xlstm import losses
from xlstm.arrays import optional_imports
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import from_foreign, is_foreign
from xlstm.arrays.tensor_views import views_of_tensors
from xlstm.data import Batch, Sequences, Streams, Windows
from xlstm.estimators import Forecaster, SequenceRegressor
from xlstm.models import TiRex
from xlstm.models.sequence import SequenceModel
from xlstm.training import Step, optimizers

T = 4
B = 3
D = 5
H = 6
LANGUAGE_MODEL = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2), 7)


class Described:
    """An array that offers `__cuda_array_interface__` alone, as those of Numba do; `more` is added
    to it.
    """

    def __init__(self, array, **more):
        self.array = array
        self.more = more
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = array.ndim

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__cuda_array_interface__, "stream": None, **self.more}


class Offered:
    """An array that offers DLPack alone, on the device that its array is on or on the one of
    another kind.
    """

    def __init__(self, array, kind=None):
        self.array = array
        self.kind = kind
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = array.ndim

    def __dlpack_device__(self):
        kind, number = self.array.__dlpack_device__()
        return kind if self.kind is None else self.kind, number

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


class Column(Described):
    """A column of a table on a GPU, as those of cuDF are."""

    def to_numpy(self):
        return self.array.get()

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a host NumPy array via __array__ is not allowed")


Column.__module__ = "cudf.core.series"


def backend(name):
    return make_backend(name) if name == "cupy" else xlstm.backend(name, dtype="float64")


@pytest.fixture(params=["cupy"])
def gpu(request):
    return make_backend(request.param)


def cases(kinds=(Described, Offered)):
    return pytest.mark.parametrize(
        ("name", "kind"),
        [("cupy", kind) for kind in kinds] + [("numpy", Offered)] * (Offered in kinds),
    )


def mapped(kind, state):
    return tuple(mapped(kind, s) if isinstance(s, tuple) else kind(s) for s in state)


def everything(layer, be, kind, lengths=None, given_back=None):
    """Give a layer all its arrays as objects of a kind; return all that it gives, which is of the
    type `given_back`.
    """
    rng = np.random.default_rng(0)
    made = functools.partial(be.asarray, dtype="float64")
    params = {name: kind(made(p)) for name, p in layer.draw(rng).items()}
    x = input_of(layer, be, rng, T, B)
    y, state, saved = layer.forward(params, kind(x), lengths=lengths)
    given = mapped(kind, state)
    grads, dx, start = layer.backward(
        params, saved, kind(made(rng.standard_normal(y.shape))), given
    )
    once, after = layer.step(
        params, kind(x[:, 0, ...] if getattr(layer, "batch_first", False) else x[0, ...]), given
    )
    found = [y, *flat(state), *grads.values(), dx, *flat(start), once, *flat(after)]
    found = [a for a in found if a is not None]  # tokens have no gradient
    assert all(type(a) is (given_back or type(made(1.0))) for a in found)
    return [to_numpy(a) for a in found]


def same(found, expected, tolerance=0):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@cases()
@pytest.mark.parametrize(
    "layer",
    [
        xlstm.LSTM(D, H),
        xlstm.LSTM(D, H, proj_size=3),
        xlstm.GRU(D, H, reset_after=False),
        xlstm.mLSTM(D, H, num_heads=2),
        LANGUAGE_MODEL,
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_and_models(name, kind, layer):
    be = backend(name)
    lengths = Offered(np.array([4, 1, 2])) if kind is Offered else None
    same(everything(layer, be, kind, lengths), everything(layer, be, lambda a: a, lengths))


def tensors_of(library):
    """Return the function that makes arrays of a library, which is not one of our backends' own."""
    module = pytest.importorskip(library)
    if library == "torch":
        return lambda a: module.tensor(to_numpy(a))
    return lambda a: module.numpy.asarray(to_numpy(a))


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize(
    "layer",
    [
        xlstm.LSTM(D, H, 2, proj_size=3),
        xlstm.GRU(D, H, layer_norm=True),
        xlstm.sLSTM(D, H, num_heads=2),
        xlstm.mLSTM(D, H, num_heads=2),
        SequenceModel(xlstm.RNN(D, H), 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_tensors_run_as_views_of_numpy(library, layer):
    be = backend("numpy")
    make = tensors_of(library)
    with (
        pytest.importorskip("jax").enable_x64(True)
        if library == "jax"
        else contextlib.nullcontext()
    ):
        kind = type(make(np.ones(1)))
        found = everything(layer, be, make, np.array([4, 1, 2]), kind)
    same(found, everything(layer, be, lambda a: a, np.array([4, 1, 2])))


def test_traced_arrays_say_what_to_use():
    jax = pytest.importorskip("jax")
    layer = xlstm.LSTM(D, H)
    make = tensors_of("jax")
    params = {name: make(p) for name, p in layer.init(0, "numpy").items()}
    with pytest.raises(TypeError, match=r"LSTM: .*use xlstm\.interop\.jax\.layer"):
        jax.jit(lambda x: layer(params, x)[0])(make(np.ones((T, B, D), "float32")))


class OnCuda:
    """A tensor of PyTorch on a GPU, as far as views of it need one."""

    is_cpu = False
    is_cuda = True
    requires_grad = False

    def __init__(self, array):
        self.array = array
        self.device = SimpleNamespace(type="cuda", index=0)
        self.dtype = array.dtype

    def detach(self):
        return self

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def test_cuda_tensors_run_on_the_stream_of_pytorch(xp, monkeypatch):
    stream = xp.cuda.Stream(non_blocking=True)
    torch = SimpleNamespace(
        from_dlpack=OnCuda,
        cuda=SimpleNamespace(current_stream=lambda device: theirs),
        autograd=SimpleNamespace(forward_ad=SimpleNamespace(_current_level=-1)),
    )
    theirs = SimpleNamespace(cuda_stream=stream.ptr)
    monkeypatch.setattr(optional_imports, "torch", lambda: torch)
    monkeypatch.setattr(array_api_compat, "is_torch_array", lambda a: isinstance(a, OnCuda))
    layer = xlstm.LSTM(D, H)
    be = make_backend("cupy")
    params = layer.init(0, be)
    x = be.asarray(np.ones((T, B, D)))
    expected, _ = layer(params, x)
    seen = []
    before = xp.cuda.get_current_stream()
    views_of_tensors("test", OnCuda(x)).take(OnCuda(x))
    assert xp.cuda.get_current_stream() == before  # to look at a tensor leaves no trace
    run = type(layer).run
    monkeypatch.setattr(
        type(layer), "run", lambda *a: seen.append(xp.cuda.get_current_stream().ptr) or run(*a)
    )
    y, state = layer({name: OnCuda(p) for name, p in params.items()}, OnCuda(x))
    stream.synchronize()
    assert seen == [stream.ptr]
    assert all(isinstance(a, OnCuda) for a in (y, *state))
    np.testing.assert_array_equal(to_numpy(y.array), to_numpy(expected))


@cases()
def test_losses_and_training(name, kind):
    """The results are those of arrays of the library's own."""
    be = backend(name)
    rng = np.random.default_rng(0)
    x, y, target = (be.asarray(rng.standard_normal((T, B, size)), "float64") for size in (D, 2, 2))
    mask = be.asarray(np.ones((T, B), bool))
    tokens = be.asarray(np.array([[1, 2, 3], [4, 5, 6]]))
    model = SequenceModel(xlstm.LSTM(D, H), 2)
    adam = optimizers.adam(0.1)
    drawn, words = (
        {n: be.asarray(p, "float64") for n, p in m.draw(rng).items()}
        for m in (model, LANGUAGE_MODEL)
    )
    logits, _ = LANGUAGE_MODEL(words, tokens)
    found = []
    for one in (kind, lambda a: a):
        batch = Batch(one(x), one(target), one(mask), True, np.array([4, 1, 2]))
        step = Step(model, adam)
        state = step.init({n: one(p) for n, p in drawn.items()})
        found.append(
            [*step(state, batch)[0].params.values(), optimizers.global_norm({"a": one(y)})]
        )
        for loss in (losses.mse, losses.mae, losses.huber):
            found[-1] += loss(one(y), one(target), one(mask))
        found[-1] += LANGUAGE_MODEL.loss(one(logits), one(tokens))
        found[-1].append(
            LANGUAGE_MODEL.generate({n: one(p) for n, p in words.items()}, one(tokens), 3)[0]
        )
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


@cases((Described, Offered, Column))
def test_data_and_estimators(name, kind):
    be = backend(name)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, T, D))
    target = rng.standard_normal((9,))
    there = [kind(be.asarray(a, "float64")) for a in (x, target)]
    windows = Windows(*there)
    np.testing.assert_array_equal(windows.x, x)
    np.testing.assert_array_equal(windows.target, target)
    streams = Streams(kind(be.asarray(x[:, 0], "float64")), there[1], batch_size=2, length=2)
    np.testing.assert_array_equal(streams.x, x[:, 0])
    several = Sequences([kind(be.asarray(x[k], "float64")) for k in range(3)], target[:3])
    assert len(several) == len(Sequences(list(x[:3]), target[:3]))
    options = {"hidden_size": 3, "epochs": 1, "backend": be, "seed": 0}
    found, expected = (SequenceRegressor(**options).fit(*data) for data in (there, (x, target)))
    np.testing.assert_array_equal(to_numpy(found.predict(there[0])), expected.predict(x))
    model = TiRex(8, 1, 2, patch_size=2, quantiles=(0.5,), input_ff_size=4, context=8)
    params = model.init(0, be, "float64")
    series = kind(be.asarray(x[0, :, 0], "float64"))
    np.testing.assert_array_equal(
        model.forecast(params, series, 2).mean, model.forecast(params, x[0, :, 0], 2).mean
    )


def test_masked_arrays_are_refused_by_name(rng):
    """Nothing heeds their masks; `tests/layers/test_contract_objects.py` gives them to every layer
    and model.
    """
    x = rng.standard_normal((9, T, D))
    target = rng.standard_normal(9)
    values = rng.standard_normal(60)
    be = xlstm.backend("numpy", dtype="float64")
    y = rng.standard_normal((4, 3))
    prompt = np.array([[1, 2]])
    adam = optimizers.adam(0.1)
    step = Step(SequenceModel(xlstm.LSTM(D, H), 1), optimizers.adam(0.1))
    state = step.init(step.model.init(0, be))
    moments = adam.init({"a": y})
    words = LANGUAGE_MODEL.init(0, be)
    batch = {"x": x, "target": x[..., :1], "mask": np.ones((9, T), bool), "lengths": np.full(T, 9)}
    options = {"hidden_size": 3, "epochs": 1, "backend": be, "seed": 0}
    calls = {  # with all arrays that they take
        "mse": (losses.mse, {"y": y, "target": y, "mask": y > 0}),
        "cross_entropy": (losses.cross_entropy, {"logits": y, "labels": np.arange(4) % 3}),
        "adam": (
            lambda a, gradient: adam.update({"a": a}, {"a": gradient}, moments),
            {"a": y, "gradient": y},
        ),
        "global_norm": (lambda a: optimizers.global_norm({"a": a}), {"a": y}),
        "step": (lambda **given: step(state, Batch(**given, fresh=True)), batch),
        "Windows": (Windows, {"x": x, "target": target}),
        "Sequences": (
            lambda sequences: Sequences([x[0], sequences], target[:2]),
            {"sequences": x[1]},
        ),
        "SequenceRegressor": (SequenceRegressor(**options).fit, {"X": x, "y": target}),
        "Forecaster": (Forecaster(horizon=2, window=9, **options).fit, {"values": values}),
        "generate": (lambda prompt: LANGUAGE_MODEL.generate(words, prompt, 2), {"prompt": prompt}),
        "asarray": (be.asarray, {"values": y}),
        "to_numpy": (to_numpy, {"array": y}),
    }
    for who, (call, given) in calls.items():
        for name, array in given.items():
            with pytest.raises(TypeError, match=rf"^{who}: .*\b{name}\b.* is a masked array"):
                call(**{**given, name: np.ma.masked_array(array)})


def columns(be, a):
    """Return an array in Fortran order, as the values of a cuDF table are."""
    if a.ndim < 2:
        return a
    return be.xp.permute_dims(
        be.asarray(np.ascontiguousarray(to_numpy(a).T)), tuple(reversed(range(a.ndim)))
    )


def apart(be, a):
    """Return an array that is every second element of another one."""
    return be.asarray(np.repeat(to_numpy(a), 2, axis=-1))[..., ::2] if a.ndim else a


@pytest.mark.parametrize("strided", [columns, apart])
@pytest.mark.parametrize(
    "layer",
    [
        xlstm.LSTM(D, H),
        xlstm.LSTM(D, H, layer_norm=True),
        xlstm.mLSTM(D, H, num_heads=2),
        xlstm.xLSTMStack(D + 1, 2, [1], num_heads=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_arrays_in_any_order_of_memory(be, layer, strided):
    same(
        everything(layer, be, functools.partial(strided, be)),
        everything(layer, be, lambda a: a),
        1e-12,
    )


def test_nothing_is_copied(gpu):
    a = gpu.asarray(np.arange(12.0).reshape(3, 4).T, "float64")
    for kind in (Described, Offered):
        found = from_foreign("here", kind(a))
        assert type(found) is type(a)
        assert (found.data.ptr, found.strides) == (a.data.ptr, a.strides)
    host = np.arange(4.0)
    assert np.shares_memory(from_foreign("here", Offered(host)), host)
    for same in (a, host, [host], {"a": a}, (a, None), "text", 1.0):
        assert from_foreign("here", same) is same
    assert not is_foreign(np.ndarray)


def test_the_stream_of_an_array_is_waited_for_and_read_only_arrays_are_taken(gpu):
    """Version 3 of the interface has a stream, in which the array may still be on its way."""
    a = gpu.asarray(np.ones((T, B, D)))
    layer = xlstm.LSTM(D, H)
    params = layer.init(0, gpu)
    for more, waits in (
        ({}, 0),
        ({"stream": 1}, 1),
        ({"data": (a.data.ptr, True)}, 0),
        ({"version": 2}, 0),
    ):
        with on_gpu.counted() as found:
            layer(params, Described(a, **more))
        assert found.waits == waits, more


def test_what_cannot_be_taken_is_refused(gpu, monkeypatch):
    layer = xlstm.LSTM(D, H)
    a = gpu.asarray(np.ones((T, B, D)))
    params = layer.init(0, gpu)
    for x, words in (
        (Described(a, mask=a), r"an array of tests \(Described\) cannot be taken as it is"),
        (Offered(a, kind=7), r"an array of tests \(Offered\) is on a DLPack device of kind 7"),
        (Offered(np.ones((T, B, D), "float32")), "0.Wx is a cupy array, expected a numpy array"),
    ):
        with pytest.raises(TypeError, match=f"^LSTM: {words}"):
            layer(params, x)
    monkeypatch.setattr(optional_imports, "cupy_failure", lambda: "no driver")
    with pytest.raises(TypeError, match="needs CuPy: no driver"):
        layer(params, Described(a))


def test_arrays_on_a_device_that_is_not_the_current_one_are_refused(gpu):
    on_gpu.two_devices()
    cupy = optional_imports.cupy()
    layer = xlstm.LSTM(D, H)
    here = gpu.asarray(np.ones((T, B, D)))
    params = layer.init(0, gpu)
    with cupy.cuda.Device(1):
        there = cupy.ones((T, B, D))
        other = layer.init(0, xlstm.backend("cupy", dtype="float64"))
        with pytest.raises(
            ValueError, match=r"^LSTM: x is on CUDA device 0, which is not the current one, 1"
        ):
            layer(params, here)
        y, _ = layer(other, Described(there))
        assert y.device.id == 1
    found = from_foreign("here", Described(there))
    assert (found.device.id, found.data.ptr) == (1, there.data.ptr)
    for own, error, words in (
        (params, TypeError, "0.Wx is on <CUDA Device 0> but x on <CUDA Device 1>"),
        (other, ValueError, "x is on CUDA device 1, which is not the current one, 0"),
    ):
        with pytest.raises(error, match=f"^LSTM: {words}"):
            layer(own, Described(there))
