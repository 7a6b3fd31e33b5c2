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
    **LAYERS,
    "lstm": xlstm.LSTM(D, 3, 2, bidirectional=True, dropout=0.5),
    "gru": xlstm.GRU(D, 3, 2, dropout=0.5),
    "rnn": xlstm.RNN(D, 3),
    "stack": STACK,
}


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def function_of(net, **options):
    """Return a function of x, the parameters and a state, with the masks of one seed."""
    names = [name for name, _ in net.named_parameters()]

    def call(x, *tensors):
        torch.manual_seed(1)
        params = dict(zip(names, tensors, strict=False))
        if start := tensors[len(names) :]:
            options["state"] = Bridge("test", net.layer).state(start)
        return flat(torch.func.functional_call(net, params, x, options))

    return call


def squares(call):
    """Return a loss of the results of a function."""
    return lambda *tensors: sum(a.square().sum() for a in call(*tensors))


def penalty(call):
    """Return the size of the gradient of that loss by the first tensor."""
    return lambda *tensors: torch.func.grad(squares(call))(*tensors).square().sum()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", sorted(TWICE.keys() - {"linear"}))
def test_gradients_of_gradients(name):
    """The second and the third derivative, and forward-mode AD."""
    net = module(TWICE[name]).double()
    x, *state = inputs(net.layer)
    call = function_of(net, lengths=torch.tensor([2, 0, 1]), resets=torch.eye(2, 3).flip(0) > 0)
    tensors = (x.detach()[:2].requires_grad_(), *net.parameters(), *state)
    assert torch.autograd.gradcheck(call, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)

    def slopes(*tensors):
        return torch.autograd.grad(squares(call)(*tensors), tensors[:2], create_graph=True)

    options = {"fast_mode": True, "check_undefined_grad": False}
    assert torch.autograd.gradgradcheck(slopes, tensors, **options)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_double_backward_is_that_of_pytorch(kind):
    theirs = getattr(torch.nn, kind)(D, H, 2, bidirectional=True, dtype=torch.float64)
    layer, params = from_torch(theirs.state_dict())
    net = module(layer, params)
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    for one in (net, theirs):
        slope = torch.autograd.grad(one(x)[0].square().sum(), x, create_graph=True)[0]
        slope.square().sum().backward()
    ours = to_torch(layer, {name: p.grad.numpy() for name, p in net.named_parameters()})
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(ours[name], p.grad, rtol=1e-10, atol=1e-10, err_msg=name)


def tangents(run, x):
    return torch.func.jvp(run, (x,), (x,))


def duals(run, x):
    """Return the results for a dual tensor, and their tangents."""
    with torch.autograd.forward_ad.dual_level():
        results = called(run, torch.autograd.forward_ad.make_dual(x, x))
        return zip(*map(torch.autograd.forward_ad.unpack_dual, results), strict=True)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode(name):
    """Tangents are ours, also of an exported program in a transform; and all ways to a Hessian
    agree.
    """
    net = module(LAYERS[name]).double()
    x = inputs(net.layer, grad=False)[0]
    both = xlstm.jvp(net.layer, (net.arrays(), x.numpy()), (None, x.numpy()))
    expected = [torch.from_numpy(a) for part in both for a in flat(part)]
    program = torch.export.export(net, (x,)).module()
    for found in (tangents(net, x), tangents(program, x), duals(net, x)):
        close([a for part in found for a in flat(part)], expected)
    loss = squares(lambda x: called(net, x))
    modes = (torch.func.jacrev, torch.func.jacfwd)
    *hessians, twice = [outer(inner(loss)) for outer, inner in itertools.product(modes, modes)]
    hessian = torch.autograd.functional.hessian(loss, x)
    close([one(x) for one in hessians], [hessian] * 3)
    with pytest.raises(RuntimeError, match=r"^\w+: forward-mode AD within"):
        twice(x)


def each(slopes, dims, values):
    """Compare `vmap` of a function with calls one after another."""
    found = torch.func.vmap(slopes, dims, randomness="same")(*values)
    calls = [
        slopes(*(a if dim is None else a[k] for a, dim in zip(values, dims, strict=True)))
        for k in range(2)
    ]
    close(found, map(torch.stack, zip(*calls, strict=True)))


@pytest.mark.parametrize("name", [*LAYERS, "gru"])
def test_gradients_of_batches(name):
    """Also those of a penalty, and of batches that have parameters of their own."""
    net = module(TWICE[name]).double()
    x, *state = inputs(net.layer, grad=False)
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
    """Tokens with lengths and resets take one backward pass where nobody differentiates it again."""
    passes = []
    backward = Bridge.backward
    monkeypatch.setattr(Bridge, "backward", lambda *a, **b: passes.append(b) or backward(*a, **b))
    net = module(xlstm.xLSTMLanguageModel(STACK, 7)).double().eval()
    values = (torch.randint(7, (2, T)), torch.tensor([2, 4]), torch.rand(2, T) < 0.5)
    params = [*net.parameters()]

    def loss(x, lengths, resets, *params):
        options = {"lengths": lengths[None], "resets": resets[None]}
        return squares(function_of(net, **options))(x[None], *params)

    slopes = torch.func.grad(loss, tuple(range(3, 3 + len(params))))
    for own, expected in (([p.detach() for p in params], 1), (params, 2)):
        passes.clear()
        each(slopes, (0, 0, 0, *[None] * len(own)), (*values, *own))
        assert len(passes) == expected + 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_programs_are_refused():
    net = module(LAYERS["lstm"])
    x = inputs(net.layer, "float32")[0]
    program = torch.export.export(net, (x,)).module()
    slope = torch.autograd.grad(program(x)[0].sum(), x, create_graph=True)[0]
    back, y = backward_of(program, x)
    for call in (
        slope.sum().backward,
        lambda: tangents(back, y),
        lambda: torch.func.vmap(back)(torch.stack([y, y])),
        lambda: torch.no_grad()(duals)(program, x),
        lambda: torch.compile(lambda x: tangents(net, x), backend="aot_eager")(x.detach()),
        lambda: torch.fx.experimental.proxy_tensor.make_fx(lambda x: tangents(net, x))(x),
    ):
        with pytest.raises(RuntimeError, match=r"^\S+: forward-mode AD, transforms"):
            call()


def backward_of(run, x):
    """Return a function from a gradient with respect to y to that with respect to x, and y."""
    y = run(x)[0]
    return lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0], y.detach()


def test_batches_of_gradients_without_torch_func_are_refused():
    net = module(LAYERS["lstm"])
    x = inputs(net.layer, "float32")[0]
    for run in (net, torch.export.export(net, (x,)).module()):
        y = run(x)[0]
        with pytest.raises((TypeError, RuntimeError), match=r"^LSTM: .*is_grads_batched"):
            torch.autograd.grad(y, x, torch.stack([y, y]), is_grads_batched=True)


def test_tensors_whose_tangents_would_be_lost_are_refused():
    """Those that a layer is called with, and those that a module is made of."""
    layer = LAYERS["linear"]
    params = {name: p.detach() for name, p in module(layer).named_parameters()}
    for words, call in (
        ("Linear: a tensor is dual", lambda W: layer({**params, "W": W}, W.mT)),
        ("module: parameter W: .*lose", lambda W: module(layer, {**params, "W": W})(W.mT)),
    ):
        for differentiate in (tangents, duals):
            with pytest.raises(TypeError, match=f"^{words}"):
                differentiate(call, params["W"])


def test_transforms_around_a_graph():
    """`functionalize` of a module, and `vmap` and tangents of PyTorch's own gradients."""
    net = module(LAYERS["slstm"])
    x = inputs(net.layer, "float32")[0]
    back, y = backward_of(net, x)
    assert torch.equal(torch.func.functionalize(net)(x)[0], y)
    up, down = torch.func.vmap(back)(torch.stack([y, -y]))
    assert up.any()
    assert torch.equal(up, -down)
    program = torch.export.export(net, (x,)).module()
    for found in (tangents(back, y), duals(back, y), duals(backward_of(program, x)[0], y)):
        # backward is linear
        torch.testing.assert_close([a for part in found for a in flat(part)], [up, up])
