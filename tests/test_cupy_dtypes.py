"""Every layer, block, stack and model on CuPy in every dtype, with lengths and without, beside NumPy in float64.

Passes, steps, steps of training, in mixed precision too, and CUDA graphs: dtypes are kept, the host waits only where it
is to, and numbers are those of NumPy but for rounding.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import xlstm
from tests import cuda_on_cpu, gpu
from tests.layers import EVERY, agree, flat, input_of
from tests.test_interop_nxai import NXAI
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import HALVES, dtype_name
from xlstm.data import Windows
from xlstm.interop import nxai
from xlstm.layers.sequence import SequenceLayer
from xlstm.models import SequenceModel
from xlstm.training import Step, optimizers
from xlstm.training.precision import Mixed

gpu.needed()

# Differences are shares of norms, at most so many times the gap between 1 and the next number of the dtype: values are
# rounded many times, and partly cancel. Beside halves sums, gates and states of an mLSTM are float32.
ROUNDINGS = {"float64": 1024, "float32": 1024, "float16": 48, "bfloat16": 48}
GAPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TOLERANCE = {dtype: ROUNDINGS[dtype] * gap for dtype, gap in GAPS.items()}
T, LENGTHS = 21, [21, 0, 7]
WIDE = xlstm.xLSTMStack(16, 2, [1], 2)
LAYERS = [
    *EVERY,
    xlstm.LSTM(6, 40),
    xlstm.LSTM(5, 12, layer_norm=True),
    xlstm.LSTM(5, 12, proj_size=4),
    xlstm.GRU(5, 12, reset_after=False),
    xlstm.mLSTM(4, 12, 2, num_heads=2, qk_size=8, chunk_size=16),
    xlstm.mLSTM(6, 32, num_heads=4, chunk_size=16, eps=0.1, forget_gate="exponential"),
    WIDE,
    xlstm.xLSTMLarge(16, 2, 2, eps=1e-6, norm_eps=0.01),
]
MODELS = [
    *(layer for layer in EVERY if isinstance(layer, SequenceModel | xlstm.xLSTMLanguageModel)),
    SequenceModel(xlstm.LSTM(2, 4, recurrent_dropout=0.2, zoneout=0.2), 3),
    SequenceModel(xlstm.LSTM(2, 4, layer_norm=True, batch_first=True), 3),
    SequenceModel(xlstm.LSTM(2, 4, proj_size=3, bidirectional=True), 3, last=True),
    SequenceModel(xlstm.GRU(2, 4, reset_after=False), 3),
    SequenceModel(xlstm.RNN(2, 4, 10, bidirectional=True), 3),
    SequenceModel(xlstm.sLSTM(2, 4, num_heads=2), 3),
]


def drawn(layer, dtype, rng):
    """Parameters, and x, of numbers that the dtype has, in float64."""
    low, exact = (xlstm.backend("cupy", dtype=name) for name in (dtype, "float64"))

    def rounded(a):
        return to_numpy(exact.asarray(low.asarray(a), "float64"))

    # At first gates are closed, and all that they let through is noise.
    params = {name: 0 * p if name.endswith("gates.b") else p for name, p in layer.draw(rng).items()}
    params = {name: rounded(p + 0.1 * rng.standard_normal(p.shape)) for name, p in params.items()}
    x = input_of(layer, xlstm.backend("numpy", dtype="float64"), rng, T, 3)
    return params, x if x.dtype.kind == "i" else rounded(x)


def there(be, a):
    """An array of the dtype of a backend; tokens stay what they are."""
    return be.xp.asarray(a) if a.dtype.kind == "i" else be.asarray(a)


def both(dtype, run):
    """Results by name in a dtype on CuPy, and in float64 on NumPy; those of `own` are to keep the dtype."""
    backends = xlstm.backend("cupy", dtype=dtype), xlstm.backend("numpy", dtype="float64")
    (own, other), (exact, more) = (run(be) for be in backends)
    assert {dtype_name(a.dtype) for a in own.values()} == {dtype}
    assert {dtype_name(a.dtype) for a in other.values()} <= {dtype, "float32" if dtype in HALVES else dtype}
    agree(own | other, exact | more, TOLERANCE[dtype], least=1e-2)


@contextlib.contextmanager
def without_waiting(be, again=True):
    """The host neither waits for the device nor reads from it, once kernels are compiled."""
    counts = be.name == "cupy" and again and not cuda_on_cpu.missing()
    with gpu.counted() if counts else contextlib.nullcontext() as found:
        yield
    assert found is None or not (found.waits or found.to_host), found.places()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_passes(layer, lengths, dtype, rng):
    if lengths and not isinstance(layer, SequenceLayer):
        pytest.skip("it has no time")
    (params, x), seed = drawn(layer, dtype, rng), rng.integers(1000)
    options = {"train": False, "keep": True, "lengths": lengths} if isinstance(layer, SequenceLayer) else {}

    def run(be):
        p, given, other = {name: there(be, a) for name, a in params.items()}, there(be, x), {}
        layer.forward(p, given, **options)
        with without_waiting(be):
            y, *end, saved = layer.forward(p, given, **options)
        dy = be.asarray(np.random.default_rng(seed).standard_normal(y.shape))
        layer.backward(p, saved, dy)
        with without_waiting(be):
            grads, dx, *start = layer.backward(p, saved, dy)
        for name, state in (("state", end), ("dstate", start)):
            other |= {f"{name} {k}": a for k, a in enumerate(flat(state))}
        return {"y": y, **grads} | ({} if dx is None else {"dx": dx}), other

    both(dtype, run)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "layer",
    [layer for layer in LAYERS if isinstance(layer, SequenceLayer) and layer.directions == ("",)],
    ids=lambda layer: type(layer).__name__,
)
def test_steps(layer, dtype, rng):
    params, x = drawn(layer, dtype, rng)
    x = x.swapaxes(0, 1) if getattr(layer, "batch_first", False) else x

    def run(be):
        p, state, found = {name: there(be, a) for name, a in params.items()}, None, {}
        given = [there(be, np.ascontiguousarray(one)) for one in x[:4]]
        for k, one in enumerate(given):
            with without_waiting(be, k > 1):
                found[f"y {k}"], state = layer.step(p, one, state)
        return found, {f"state {k}": a for k, a in enumerate(flat(state))}

    both(dtype, run)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(getattr(model, "layer", model)).__name__)
def test_steps_of_training(model, lengths, dtype, rng):
    """Halves are those of mixed precision; a graph gives the bits of the step that was captured."""
    last = getattr(model, "last", False)
    if isinstance(model, xlstm.xLSTMLanguageModel):
        x, target = rng.integers(0, 7, (2, 3, T))
    else:
        x, target = (rng.standard_normal((3, T, size)) for size in (model.input_size, model.output_size))
        target = target[:, -1, :] if last else target
    data = Windows(x, target, every_step=not last, batch_size=3, lengths=lengths and np.maximum(lengths, 1))
    (batch,) = data.batches()
    wide, precision = ("float32", Mixed(dtype, 1024.0)) if dtype in HALVES else (dtype, None)

    def run(name, kind, precision=None, **options):
        step = Step(model, optimizers.sgd(0.1), precision=precision, **options)
        state, found = step.init(model.init(0, xlstm.backend(name, dtype=kind)), 1), []
        for _ in range(4):
            before = {key: to_numpy(p) for key, p in state.params.items()}
            state, how = step(state._replace(carried=None), batch)
            found.append(({key: to_numpy(p) - before[key] for key, p in state.params.items()}, float(how.loss)))
        assert {dtype_name(p.dtype) for p in state.params.values()} == {kind}
        return found, state

    found, _ = run("cupy", wide, precision)
    expected, _ = run("numpy", "float64")
    captured, state = run("cupy", wide, precision, graph=True)
    assert state.graphs.captured
    moved, exact = ({"moved": np.concatenate([a.ravel() for a in one[0][0].values()])} for one in (found, expected))
    agree(moved, exact, TOLERANCE[dtype], least=1e-2)
    assert found[0][1] == pytest.approx(expected[0][1], rel=TOLERANCE[dtype])
    for (one, loss), (other, same) in zip(found, captured, strict=True):
        assert loss == same
        agree(other, one)


def test_the_state_of_an_mlstm_is_float32():
    """A sum over many steps would lose what is added to it late."""
    be = xlstm.backend("cupy", dtype="bfloat16")
    layer = xlstm.mLSTM(4, 16, num_heads=2)
    params = layer.init(0, be)
    params["0.b"][-2:] = 50.0  # nothing is forgotten
    x = be.asarray(np.ones((600, 1, 4)))
    _, whole = layer(params, x)
    state = None
    for k in range(600):
        _, state = layer.step(params, x[k], state)
    assert {dtype_name(a.dtype) for a in (*whole, *state)} == {"float32"}
    agree(dict(enumerate(state)), dict(enumerate(whole)), 0.01)
    low = tuple(be.asarray(to_numpy(a)) for a in whole)
    with pytest.raises(TypeError, match="mLSTM: state C has dtype bfloat16, expected float32, as it is summed up"):
        layer(params, x, low)


def test_a_checkpoint_in_bfloat16(tmp_path):
    """It is written, read and run as bfloat16, and writes what its float32 numbers write."""
    pytest.importorskip("torch")
    be = xlstm.backend("cupy", dtype="bfloat16")
    model, params = nxai.load(NXAI / "large.safetensors", backend="cupy", dtype="bfloat16")
    assert {dtype_name(p.dtype) for p in params.values()} == {"bfloat16"}
    nxai.save(tmp_path, model, params)
    again, same = nxai.load(tmp_path, backend=be)
    assert again == model
    assert all(np.array_equal(to_numpy(same[name]), to_numpy(p)) for name, p in params.items())
    wide = {name: xlstm.backend("cupy").asarray(to_numpy(p)) for name, p in params.items()}
    tokens = be.xp.asarray(np.arange(12).reshape(2, 6) % model.vocab_size)
    agree(*({"logits": model(p, tokens)[0]} for p in (params, wide)), 0.1)
    written, _ = model.generate(params, [[1, 2, 3]], 4)
    assert written.shape == (1, 7)
