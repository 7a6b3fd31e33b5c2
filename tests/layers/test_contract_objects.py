"""Every layer, block, stack and model as an object: copies, files, formats of others, summaries,
refusals.
"""

import copy
import functools
import pickle

import numpy as np
import pytest

import xlstm
from tests.layers.test_contract import everywhere, like, options_of, same
from tests.registry import (
    EVERY,
    TABLE,
    agree,
    flat,
    given,
    has_file,
    input_of,
    numbered,
    run,
    steps,
    takes_tokens,
    through_time,
)
from xlstm import models
from xlstm.layers.embedding import Embedding
from xlstm.models.tirex.tirex2 import Mixers

pytestmark = pytest.mark.usefixtures("interpreted")
SEQUENCES = [layer for layer in EVERY if through_time(layer)]
WAYS = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@everywhere(TABLE)
def test_a_copy_goes_on_where_the_layer_was(be, rng, layer):
    """Also with what forward saved, for a backward pass of the copy."""
    params, x, _ = given(layer, be, rng)
    y, *_, saved = layer.forward(params, x, **options_of(layer, [3, 1, 5]))
    copies = {way: (copied(layer), copied(saved)) for way, copied in WAYS.items()}
    expected, *_ = layer.backward(params, saved, y)
    for way, (again, kept) in copies.items():
        assert again == layer, way
        assert hash(again) == hash(layer), way
        agree(again.backward(params, kept, y)[0], expected)
        same(again.forward(params, x, **options_of(layer, [3, 1, 5]))[0], y)


NAMES = {type(layer).__name__: type(layer) for layer in TABLE} | {"Mixers": Mixers}


@pytest.mark.parametrize("layer", **numbered(TABLE))
def test_a_layer_is_its_description(layer):
    assert eval(repr(layer), dict(NAMES)) == layer


@everywhere([layer for layer in TABLE if has_file(layer)])
def test_files_come_back(be, tmp_path, layer):
    """On the backend that is asked for."""
    params = layer.init(0, be)
    models.save(tmp_path / "model", layer, params)
    again, found = models.load(tmp_path / "model", be)
    assert again == layer
    assert list(found) == sorted(params)
    agree(found, params)


WRITTEN = [layer for layer in EVERY if not isinstance(layer, models.TiRex | models.TiRex2)]


@pytest.mark.parametrize("layer", **numbered(WRITTEN))
def test_onnx(rng, layer):
    """onnxruntime gives y and the final state, from a state. tests/interop/test_onnx.py has TiRex,
    and all options.
    """
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from xlstm.interop.onnx import to_onnx

    params, x, state = given(layer, xlstm.backend("numpy", dtype="float32"), rng)
    params = layer.init(0, "numpy")
    file = to_onnx(layer, params).SerializeToString()
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(names, [x, *flat(state)], strict=True)))
    expected = flat(layer(params, x, state)) if through_time(layer) else [layer(params, x)]
    agree(dict(enumerate(found)), dict(enumerate(expected)), 1e-4)


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_a_module_of_pytorch(rng, layer):
    """Its gradients are ours, and its weights come back from a state_dict."""
    torch = pytest.importorskip("torch")
    from xlstm.interop.torch import module

    params, x, state = given(layer, xlstm.backend("numpy", dtype="float64"), rng)
    net = module(layer, params).eval().double()
    other = module(layer).double()
    other.load_state_dict(net.state_dict())
    tensors = tuple(map(torch.tensor, flat(state)))
    y, *_ = flat((net(torch.tensor(x), *([like(state, iter(tensors))] if tensors else [])),))
    y.backward(y.detach())
    train = {"train": False, "keep": True} if tensors else {}
    expected = run(
        layer, params, x, state, dstate=like(state, map(np.zeros_like, flat(state))), **train
    )
    grads = {f"d{name}": p.grad for name, p in net.named_parameters()}
    agree(grads, {name: expected[name] for name in grads}, 1e-12)
    agree(other.state_dict(), params)


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_a_summary_counts_and_knows_the_shape_of_y(rng, layer):
    params = layer.init(0, "numpy")
    x = input_of(layer, xlstm.backend("numpy"), rng, T=4)
    found = models.summary(layer, x.shape)
    assert found[0].parameters == sum(p.size for p in params.values())
    assert found[0].bytes == sum(p.nbytes for p in params.values())
    y = layer(params, x)
    shape = (y[0] if through_time(layer) else y).shape
    assert found[0].output in (shape, ("...", shape[-1]))
    parts = [part.parameters for part in found[1:] if part.name in layer.parts]
    assert sum(parts) + sum(params[name].size for name in layer.weights) == found[0].parameters
    assert len(repr(found).splitlines()) == 1 + len(found)


@pytest.mark.parametrize("way", WAYS)
def test_backends_are_copied(be, way):
    again = WAYS[way](be)
    assert again == be
    assert again.xp is be.xp


# Refusals


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_bad_arrays_are_named(rng, layer):
    """In parameters, x, the state, lengths and gradients: missing, masked, of another shape, dtype
    or kind.
    """
    params, x, state = given(layer, xlstm.backend("numpy", dtype="float64"), rng)
    y, *_, saved = layer.forward(params, x, **options_of(layer))
    some = next(iter(params))
    every = [layer, layer.forward, *([layer.step] if steps(layer) else [])]
    masked = np.ma.masked_array
    calls = [(call, "parameters", None, x) for call in every]
    for p in (params[some][None], masked(params[some]), 1.0):
        calls += [(call, some, {**params, some: p}, x) for call in every]
    calls += [
        (call, f"{some} is missing", {n: p for n, p in params.items() if n != some}, x)
        for call in every
    ]
    calls += [(call, "nosuch", {**params, "nosuch": x}, x) for call in every]
    bad = [None, masked(x), x.astype("complex64" if takes_tokens(layer) else "float32")]
    if not isinstance(layer, Embedding):  # which takes any shape
        bad += [x[..., None, None, :0], np.zeros((), x.dtype)]
    calls += [(call, "(x|tokens)", params, x) for x in bad for call in every]
    for dy in (masked(y), y.astype("float32"), y[..., :1, :0]):
        calls.append((layer.backward, "d(y|logits)", params, saved, dy))
    if through_time(layer):
        for change in (masked, lambda a: a.astype("float32"), lambda a: a[..., :1, :0]):
            calls.append((layer, "state", params, x, like(state, map(change, flat(state)))))
        for lengths in (masked([1, 2, 3]), [True] * 3, [1, -1, 1], [99, 1, 1]):
            calls.append((functools.partial(layer, lengths=lengths), "lengths", params, x))
    for call, name, *arguments in calls:
        with pytest.raises((TypeError, ValueError), match=f"^{type(layer).__name__}: .*{name}"):
            call(*arguments)


@pytest.mark.parametrize("layer", **numbered(EVERY))
def test_saved_is_of_one_layer(rng, layer):
    params, x, _ = given(layer, xlstm.backend("numpy", dtype="float64"), rng)
    y = layer.forward(params, x, **options_of(layer))[0]
    other = xlstm.Linear(3, 3)
    _, saved = other.forward(other.init(0, "numpy", "float64"), np.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=f"{type(layer).__name__}: saved is what forward of Linear"
    ):
        layer.backward(params, saved, y)


@pytest.mark.parametrize("layer", **numbered([layer for layer in SEQUENCES if not steps(layer)]))
def test_step_needs_a_forward_direction(rng, layer):
    params, x, _ = given(layer, xlstm.backend("numpy"), rng)
    with pytest.raises(ValueError, match="step goes forward in time"):
        layer.step(params, x[0])
