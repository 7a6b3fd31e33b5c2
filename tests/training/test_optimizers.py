"""Optimisers and clipping against PyTorch's."""

import numpy as np
import pytest

from xlstm.arrays.convert import to_numpy
from xlstm.training import Clip, optimizers

CASES = {
    "sgd": (lambda: optimizers.sgd(optimizers.constant(np.float64(0.1))), "SGD", {"lr": 0.1}),
    "momentum": (lambda: optimizers.sgd(0.1, momentum=0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        lambda: optimizers.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "rmsprop momentum": (
        lambda: optimizers.rmsprop(0.01, alpha=0.9, momentum=0.5, weight_decay=0.1),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "weight_decay": 0.1},
    ),
    "adam decay": (
        lambda: optimizers.adam(0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adamw": (
        lambda: optimizers.adamw(0.01, weight_decay=0.1),
        "AdamW",
        {"lr": 0.01, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_follows_torch(be, rng, name):
    torch = pytest.importorskip("torch")
    make, peer_name, settings = CASES[name]
    # The last one is large enough for a compiled loop.
    start = {
        "a": rng.standard_normal((3, 4)),
        "b": rng.standard_normal(5),
        "c": rng.standard_normal((130, 70)),
    }
    params = {n: be.asarray(p) for n, p in start.items()}
    peers = {n: torch.tensor(p, requires_grad=True) for n, p in start.items()}
    optimizer = make()
    peer = getattr(torch.optim, peer_name)(list(peers.values()), **settings)
    state = optimizer.init(params)
    for _ in range(20):
        grads = {n: rng.standard_normal(p.shape) for n, p in start.items()}
        for n, p in peers.items():
            p.grad = torch.tensor(grads[n])
        peer.step()  # with the NumPy of these tests a write to arguments would raise
        params, state = optimizer.update(
            params, {n: be.asarray(g) for n, g in grads.items()}, state
        )
        for n, p in params.items():
            np.testing.assert_allclose(
                to_numpy(p), peers[n].detach().numpy(), rtol=1e-11, atol=1e-13
            )
    assert state.step == 20


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_follows_torch(be, rng, limit):
    torch = pytest.importorskip("torch")
    grads = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    ours = {n: be.asarray(g) for n, g in grads.items()}
    peers = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()]
    for p, g in zip(peers, grads.values(), strict=True):
        p.grad = torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_(peers, limit)
    assert float(optimizers.global_norm(ours)) == pytest.approx(norm.item(), rel=1e-12)
    for clipped, p in zip(optimizers.clip_global_norm(ours, limit).values(), peers, strict=True):
        # PyTorch adds 1e-6 to the norm
        np.testing.assert_allclose(to_numpy(clipped), p.grad.numpy(), rtol=1e-5)


def test_clipping_by_value_comes_before_that_by_norm(be, rng):
    grads = {"a": rng.standard_normal((3, 4))}
    ours, zero = ({"a": be.asarray(a)} for a in (grads["a"], np.zeros(3)))
    np.testing.assert_array_equal(
        to_numpy(optimizers.clip_value(ours, 0.3)["a"]), np.clip(grads["a"], -0.3, 0.3)
    )
    both = Clip(norm=1.0, value=0.5).gradients(ours, optimizers.global_norm(ours))
    expected = optimizers.clip_global_norm(optimizers.clip_value(ours, 0.5), 1.0)
    np.testing.assert_array_equal(to_numpy(both["a"]), to_numpy(expected["a"]))
    np.testing.assert_array_equal(
        to_numpy(optimizers.clip_global_norm(zero, 1.0)["a"]), np.zeros(3)
    )


def test_names_without_a_parameter_and_parameters_without_a_gradient_are_refused():
    params = {"0.W": np.ones(3), "0.b": np.ones(3)}
    head = {"head.*": None}
    with pytest.raises(ValueError, match="'head"):
        optimizers.by_name(head, optimizers.sgd(0.1)).init(params)
    parts = optimizers.by_name({"0.W": optimizers.adam(0.1)}, optimizers.sgd(0.1))
    with pytest.raises(ValueError, match="gradients"):
        parts.update(params, {"0.W": params["0.W"]}, parts.init(params))


def updated(optimizer, params, grads, state=None):
    """The parameters, and the state, after an update by each of some gradients."""
    state = optimizer.init(params) if state is None else state
    for one in grads:
        params, state = optimizer.update(params, one, state)
    return params, state


def test_by_name_is_each_optimiser_on_its_part(rng):
    params = {
        name: rng.standard_normal(3) for name in ("embedding.W", "0.Wx", "0.b", "head.W", "head.b")
    }
    grads = {name: rng.standard_normal(3) for name in params}
    rules = {
        "head.b": None,
        "head.*": optimizers.sgd(0.1, momentum=0.9),
        "*.Wx": optimizers.adam(0.1),
    }
    rest = optimizers.adam(0.01)
    whole = optimizers.by_name(rules, rest)
    assert [name for name in params if whole.frozen(name)] == ["head.b"]
    found, state = updated(
        whole, params, [{name: g for name, g in grads.items() if name != "head.b"}] * 3
    )
    assert state.step == 3
    assert found["head.b"] is params["head.b"]
    for optimizer, names in (
        (rules["head.*"], ["head.W"]),
        (rules["*.Wx"], ["0.Wx"]),
        (rest, ["embedding.W", "0.b"]),
    ):
        expected, _ = updated(
            optimizer, {n: params[n] for n in names}, [{n: grads[n] for n in names}] * 3
        )
        for name, p in expected.items():
            assert found[name].tobytes() == p.tobytes()
