"""Every layer, block, stack and model on CuPy in every dtype, with lengths and without, beside
NumPy in float64.

Passes, steps, steps of training, in mixed precision too, and CUDA graphs: dtypes are kept, the host
waits only where it is to, and numbers are those of NumPy but for rounding.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu
from tests.interop.test_nxai import NXAI
from tests.registry import PATCHES, agree, flat, input_of
from xlstm.arrays import optional_imports
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.namespace import HALVES, dtype_name
from xlstm.data import Windows
from xlstm.interop import nxai
from xlstm.layers.blocks.block import GatedFeedForward, ResidualFeedForward
from xlstm.layers.conv import CausalConv
from xlstm.layers.embedding import Embedding
from xlstm.layers.linear import HeadwiseLinear
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import SequenceLayer
from xlstm.models import SequenceModel, TiRex, TiRex2
from xlstm.precision import Mixed
from xlstm.training import Step, optimizers

cupy = gpu.needed()

# Differences are shares of norms, at most so many times the gap between 1 and the next number of
# the dtype: values are rounded many times, and partly cancel. Beside halves sums are float32.
ROUNDINGS = {"float64": 4096, "float32": 4096, "float16": 48, "bfloat16": 48}
GAPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TOLERANCE = {dtype: ROUNDINGS[dtype] * gap for dtype, gap in GAPS.items()}
T = 21
LENGTHS = [21, 0, 7]
STACK = xlstm.xLSTMStack(16, 2, [1], 2, dropout=0.2)
LARGE = xlstm.xLSTMLarge(16, 2, 2, eps=1e-6, norm_eps=0.01)
# As in `EVERY` of tests/registry.py, but wide enough that no norm is of few numbers, where rounding
# is all there is.
LAYERS = [
    xlstm.LSTM(6, 16, 2, bidirectional=True, peepholes=True),
    xlstm.LSTM(6, 40),
    xlstm.LSTM(6, 16, proj_size=8, batch_first=True),
    xlstm.LSTM(6, 12, layer_norm=True),
    xlstm.GRU(6, 16, 2, dropout=0.2),
    xlstm.GRU(6, 12, reset_after=False),
    xlstm.RNN(6, 16, reverse=True),
    xlstm.sLSTM(6, 16, num_heads=2),
    xlstm.mLSTM(4, 12, 2, num_heads=2, qk_size=8, chunk_size=16),
    xlstm.mLSTM(6, 32, num_heads=4, chunk_size=16, eps=0.1, forget_gate="exponential"),
    xlstm.mLSTMBlock(16, 2),
    xlstm.sLSTMBlock(16, 2),
    STACK,
    LARGE,
    SequenceModel(xlstm.LSTM(6, 16), 3),
    SequenceModel(xlstm.GRU(6, 16, 2, bidirectional=True), 3, last=True),
    SequenceModel(STACK, 3, last=True, inputs=2),
    xlstm.xLSTMLanguageModel(STACK, 7, logit_cap=2.0),
    xlstm.xLSTMLanguageModel(LARGE, 7, tied=True),
    TiRex(16, 2, 2, **PATCHES),
    TiRex2(16, [("slstm", 2, 1), ("mlstm", 2, 2)], output_ff_size=5, horizon=2, **PATCHES),
    CausalConv(8),
    xlstm.Linear(16, 8),
    HeadwiseLinear(16, 2),
    LayerNorm(16),
    RMSNorm(16, residual=True, bias=True),
    MultiHeadNorm(16, num_heads=2),
    GatedFeedForward(16, 24),
    ResidualFeedForward(8, 16, 4),
    Embedding(7, 16),
]
MODELS = [
    *(layer for layer in LAYERS if isinstance(layer, SequenceModel | xlstm.xLSTMLanguageModel)),
    SequenceModel(
        xlstm.LSTM(6, 12, layer_norm=True, recurrent_dropout=0.2, zoneout=0.2, batch_first=True), 3
    ),
    SequenceModel(xlstm.LSTM(6, 12, proj_size=8, bidirectional=True), 3, last=True),
    SequenceModel(xlstm.GRU(6, 12, reset_after=False), 3),
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
    """Results by name in a dtype on CuPy, and in float64 on NumPy; those of `own` are to keep the
    dtype.
    """
    backends = xlstm.backend("cupy", dtype=dtype), xlstm.backend("numpy", dtype="float64")
    (own, other), (exact, more) = (run(be) for be in backends)
    assert {dtype_name(a.dtype) for a in own.values()} == {dtype}
    assert {dtype_name(a.dtype) for a in other.values()} <= {
        dtype,
        "float32" if dtype in HALVES else dtype,
    }
    # All gradients as one vector: what all input gates have in common is divided out again, so that
    # the gradient with respect to their biases is nearly nothing, of which rounding is a large part.
    found = own | other
    expected = exact | more
    for made in (found, expected):
        gradient = [
            to_numpy(made.pop(name)).ravel() for name in list(made) if name.startswith("d ")
        ]
        made["gradient"] = np.concatenate([*gradient, [0.0]])
    agree(found, expected, TOLERANCE[dtype], least=1e-2)


@contextlib.contextmanager
def without_waiting(be, again=True):
    """The host neither waits for the device nor reads from it, once kernels are compiled."""
    counts = be.name == "cupy" and again and not cuda_on_cpu.missing()
    with gpu.counted() if counts else contextlib.nullcontext() as found:
        yield
    assert found is None or not (found.waits or found.to_host), found.places()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("parts", ["full", "lengths", "resets"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_passes(layer, parts, dtype, rng):
    if parts != "full" and not isinstance(layer, SequenceLayer):
        pytest.skip("it has no time")
    params, x = drawn(layer, dtype, rng)
    seed = rng.integers(1000)
    options = {"train": False, "keep": True} if isinstance(layer, SequenceLayer) else {}
    if parts == "lengths":
        options["lengths"] = LENGTHS
    if parts == "resets":
        options["resets"] = rng.random(x.shape[:2]) < 0.2

    def run(be):
        p = {name: there(be, a) for name, a in params.items()}
        given = there(be, x)
        other = {}
        layer.forward(p, given, **options)
        with without_waiting(be):
            y, *end, saved = layer.forward(p, given, **options)
        dy = be.asarray(np.random.default_rng(seed).standard_normal(y.shape))
        layer.backward(p, saved, dy)
        with without_waiting(be):
            grads, dx, *start = layer.backward(p, saved, dy)
        for name, state in (("state", end), ("dstate", start)):
            other |= {f"{name} {k}": a for k, a in enumerate(flat(state))}
        gradient = {f"d {name}": g for name, g in grads.items()}
        return {"y": y, **gradient} | ({} if dx is None else {"dx": dx}), other

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
        p = {name: there(be, a) for name, a in params.items()}
        state = None
        found = {}
        given = [there(be, np.ascontiguousarray(one)) for one in x[:4]]
        for k, one in enumerate(given):
            with without_waiting(be, k > 1):
                found[f"y {k}"], state = layer.step(p, one, state)
        return found, {f"state {k}": a for k, a in enumerate(flat(state))}

    both(dtype, run)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize(
    "model", MODELS, ids=lambda model: type(getattr(model, "layer", model)).__name__
)
def test_steps_of_training(model, lengths, dtype, rng):
    """Halves are those of mixed precision; a graph gives the bits of the step that was captured."""
    last = getattr(model, "last", False)
    if isinstance(model, xlstm.xLSTMLanguageModel):
        x, target = rng.integers(0, 7, (2, 3, T))
    else:
        x, target = (
            rng.standard_normal((3, T, size)) for size in (model.input_size, model.output_size)
        )
        target = target[:, -1, :] if last else target
    data = Windows(
        x, target, every_step=not last, batch_size=3, lengths=lengths and np.maximum(lengths, 1)
    )
    (batch,) = data.batches()
    wide, precision = (
        ("float32", Mixed(dtype, *([256.0] * (dtype == "float16"))))
        if dtype in HALVES
        else (dtype, None)
    )

    def run(name, kind, precision=None, **options):
        step = Step(model, optimizers.sgd(0.1), precision=precision, **options)
        state = step.init(model.init(0, xlstm.backend(name, dtype=kind)), 1)
        found = []
        for _ in range(4):
            before = {key: to_numpy(p) for key, p in state.params.items()}
            state, how = step(state._replace(carried=None), batch)
            found.append(
                (
                    {key: to_numpy(p) - before[key] for key, p in state.params.items()},
                    float(how.loss),
                )
            )
        assert {dtype_name(p.dtype) for p in state.params.values()} == {kind}
        return found, state

    found, _ = run("cupy", wide, precision)
    expected, _ = run("numpy", "float64")
    captured, state = run("cupy", wide, precision, graph=True)
    assert state.runtime.graphs.captured
    moved, exact = (
        {"moved": np.concatenate([a.ravel() for a in one[0][0].values()])}
        for one in (found, expected)
    )
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
    with pytest.raises(
        TypeError, match="mLSTM: state C has dtype bfloat16, expected float32, as it is summed up"
    ):
        layer(params, x, low)


def test_a_language_model_of_matrix_memories_goes_on_in_bfloat16(rng):
    """Its state alone is float32, and its tokens say nothing of dtypes."""
    test_steps(xlstm.xLSTMLanguageModel(LARGE, 7), "bfloat16", rng)


def test_a_checkpoint_in_bfloat16(tmp_path):
    """It is written and read as bfloat16."""
    pytest.importorskip("torch")
    model, params = nxai.load(NXAI / "large.safetensors", backend="cupy", dtype="bfloat16")
    assert {dtype_name(p.dtype) for p in params.values()} == {"bfloat16"}
    nxai.save(tmp_path, model, params)
    again, same = nxai.load(tmp_path, backend="cupy", dtype="bfloat16")
    assert again == model
    assert all(np.array_equal(to_numpy(same[name]), to_numpy(p)) for name, p in params.items())


def as_on_rocm():
    """Run layers and steps of training on the CuPy of ROCm, as far as this package sees."""
    optional_imports.rocm = lambda: True
    cupy.RawKernel = None
    for layer in LAYERS[::3]:
        test_passes(
            layer,
            "lengths" if isinstance(layer, SequenceLayer) else "full",
            "float32",
            np.random.default_rng(0),
        )
    x = np.random.default_rng(0).standard_normal((3, T, 6))
    found = []
    for name in ("cupy", "numpy"):
        made = Step(MODELS[0], optimizers.adam(0.1), graph="auto")
        state = made.init(made.model.init(0, name))
        for batch in list(Windows(x, x[..., :3], every_step=True).batches()) * 3:
            state, how = made(state, batch)
        found.append(how.loss)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    with pytest.raises(BackendError, match="graph is True, which needs arrays of CuPy on CUDA"):
        Step(MODELS[0], made.optimizer, graph=True).init(MODELS[0].init(0, "cupy"))
    with pytest.raises(BackendError, match="bfloat16 needs CUDA"):
        xlstm.backend("cupy", dtype="bfloat16")
    with pytest.raises(BackendError, match=r"cuda\.check: CuPy for ROCm"):
        xlstm.cuda.check()


def test_cupy_for_rocm_has_neither_our_kernels_nor_graphs():
    """In a process of its own, as choices are kept."""
    program = f"from {__name__} import as_on_rocm; as_on_rocm()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
