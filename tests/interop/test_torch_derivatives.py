"""Derivatives of derivatives of our modules, forward-mode AD and transforms of `torch.func`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from tests.interop.test_torch_module import LAYERS, B, D, H, T, called, flat, inputs
from tests.registry import STACK
from xlstm.interop.bridge import Bridge
from xlstm.interop.torch import from_torch, module, to_torch

torch = later("torch")
# PyTorch's own rules of forward-mode AD
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
TWICE = {
    "lstm": xlstm.LSTM(D, 3, 2, bidirectional=True, dropout=0.5),
    "gru": xlstm.GRU(D, 3, 2, dropout=0.5),
    "rnn": xlstm.RNN(D, 3),
    "slstm": LAYERS["slstm"],
    "mlstm": LAYERS["mlstm"],
    "stack": STACK,
}
LENGTHS = {"lengths": torch.tensor([2, 0, 1])}


def tangents(run, x):
    return torch.func.jvp(run, (x,), (x,))


def duals(run, x):
    """Return the results for a dual tensor, and their tangents."""
    with torch.autograd.forward_ad.dual_level():
        results = called(run, torch.autograd.forward_ad.make_dual(x, x))
        return zip(*map(torch.autograd.forward_ad.unpack_dual, results), strict=True)


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def function_of(net, **options):
    """Return a function of x, the parameters and the arrays of a state, with the masks of a
    seed.
    """
    names = [name for name, _ in net.named_parameters()]

    def call(x, *tensors):
        torch.manual_seed(1)
        params = dict(zip(names, tensors, strict=False))
        start = tensors[len(names) :]
        if start:
            options["state"] = Bridge("test", net.layer).state(start)
        return flat(torch.func.functional_call(net, params, x, options))

    return call


def squares(call):
    """Return a loss of the results of a function."""
    return lambda *tensors: sum(a.square().sum() for a in call(*tensors))


def penalty(call):
    """Return the size of the gradient of that loss by the first tensor."""
    return lambda *tensors: torch.func.grad(squares(call))(*tensors).square().sum()


@pytest.mark.parametrize("name", TWICE)
def test_gradients_of_gradients(name):
    """The second and the third derivative, and forward-mode AD."""
    net = module(TWICE[name]).double()
    x, *state = inputs(net.layer)
    call = function_of(net, **LENGTHS)
    tensors = (x, *net.parameters(), *state)
    assert torch.autograd.gradcheck(call, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)

    def slopes(*tensors):
        return torch.autograd.grad(squares(call)(*tensors), tensors[:2], create_graph=True)

    assert torch.autograd.gradgradcheck(slopes, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_double_backward_is_that_of_pytorch(kind):
    """Also that of a trace."""
    theirs = getattr(torch.nn, kind)(D, H, 2, bidirectional=True, dtype=torch.float64)
    layer, params = from_torch(theirs.state_dict())
    net = module(layer, params)
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    program = torch.export.export(net, (x,)).module()
    found = []
    for one in (theirs, net, program):
        slope = torch.autograd.grad(one(x)[0].square().sum(), x, create_graph=True)[0]
        params = dict((net if one is program else one).named_parameters())
        grads = torch.autograd.grad(slope.square().sum(), params.values())
        found.append(dict(zip(params, map(np.asarray, grads), strict=True)))
    for ours in found[1:]:
        for name, slope in to_torch(layer, ours).items():
            np.testing.assert_allclose(slope, found[0][name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_tangents_are_ours(name):
    """Those of dual tensors, of `torch.func.jvp`, and of an exported program in it."""
    net = module(LAYERS[name]).double()
    x = inputs(net.layer, grad=False)[0]
    both = xlstm.jvp(net.layer, (net.arrays(), x.numpy()), (None, x.numpy()))
    expected = [torch.from_numpy(a) for part in both for a in flat(part)]
    program = torch.export.export(net, (x,)).module()
    for found in (tangents(net, x), tangents(program, x), duals(net, x)):
        close([a for part in found for a in flat(part)], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_hessians(name):
    net = module(LAYERS[name]).double()
    x = inputs(net.layer, grad=False)[0]
    loss = squares(lambda x: called(net, x))
    expected = torch.autograd.functional.hessian(loss, x)
    modes = (torch.func.jacrev, torch.func.jacfwd)
    *hessians, twice = [outer(inner(loss)) for outer, inner in itertools.product(modes, modes)]
    close([hessian(x) for hessian in hessians], [expected] * 3)
    with pytest.raises(RuntimeError, match=r"^\w+: forward-mode AD within"):
        twice(x)


def each(slopes, dims, values):
    """Compare `vmap` of a function with calls of one after another."""
    found = torch.func.vmap(slopes, dims, randomness="same")(*values)
    calls = [
        slopes(*(a if dim is None else a[k] for a, dim in zip(values, dims, strict=True)))
        for k in range(2)
    ]
    close(found, map(torch.stack, zip(*calls, strict=True)))


@pytest.mark.parametrize("layer", [*LAYERS.values(), TWICE["lstm"]], ids=str)
def test_gradients_of_batches(layer):
    """Also those of a penalty, and of batches that have parameters of their own."""
    net = module(layer).double()
    x, *state = inputs(layer, grad=False)
    params = [p.detach() for p in net.parameters()]
    call = function_of(net)
    for loss, dim in itertools.product((squares(call), penalty(call)), (None, 0)):
        dims = (0, *[dim] * len(params), *[0] * len(state))
        values = [
            a if d is None else torch.stack([a, a / 2])
            for a, d in zip((x, *params, *state), dims, strict=True)
        ]
        each(torch.func.grad(loss, tuple(range(len(dims)))), dims, values)


def test_gradients_of_single_sequences(monkeypatch):
    """Of tokens, with lengths, by one backward pass where nobody differentiates it again."""
    passes = []
    backward = Bridge.backward
    monkeypatch.setattr(Bridge, "backward", lambda *a, **b: passes.append(b) or backward(*a, **b))
    net = module(xlstm.xLSTMLanguageModel(STACK, 7)).double().eval()

    def loss(params, x, lengths):
        return torch.func.functional_call(net, params, x, {"lengths": lengths})[0].square().sum()

    def slopes(x, lengths, *params):
        named = dict(zip(names, params, strict=True))
        return tuple(torch.func.grad(loss)(named, x[None], lengths[None]).values())

    names, params = zip(*net.named_parameters(), strict=True)
    values = (torch.randint(7, (2, T)), torch.tensor([2, 4]))
    for own, expected in (([p.detach() for p in params], 1), (params, 2)):
        each(slopes, (0, 0, *[None] * len(own)), (*values, *own))
        assert len(passes) == expected + 2
        passes.clear()


def test_compiled_and_traced_programs_are_refused():
    net = module(LAYERS["lstm"])
    x = inputs(net.layer, "float32", grad=False)[0]
    program = torch.export.export(net, (x,)).module()
    for call in (
        lambda: torch.compile(lambda x: tangents(net, x), backend="aot_eager")(x),
        lambda: torch.fx.experimental.proxy_tensor.make_fx(lambda x: tangents(net, x))(x),
        lambda: torch.no_grad()(duals)(program, x),
    ):
        with pytest.raises(RuntimeError, match=r"^LSTM: forward-mode AD, transforms of torch.func"):
            call()
