"""Optimisers and schedules against PyTorch's, and clipping."""

import copy
import math
import pickle

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
    "adamw": (lambda: optimizers.adamw(0.01, weight_decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", CASES)
def test_follows_torch(be, rng, name):
    torch = pytest.importorskip("torch")
    make, peer_name, settings = CASES[name]
    # The last one is large enough for a compiled loop.
    start = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5), "c": rng.standard_normal((130, 70))}
    params = {n: be.asarray(p) for n, p in start.items()}
    peers = {n: torch.tensor(p, requires_grad=True) for n, p in start.items()}
    optimizer, peer = make(), getattr(torch.optim, peer_name)(list(peers.values()), **settings)
    state = optimizer.init(params)
    for _ in range(20):
        grads = {n: rng.standard_normal(p.shape) for n, p in start.items()}
        for n, p in peers.items():
            p.grad = torch.tensor(grads[n])
        peer.step()  # with the NumPy of these tests a write to arguments would raise
        params, state = optimizer.update(params, {n: be.asarray(g) for n, g in grads.items()}, state)
        for n, p in params.items():
            np.testing.assert_allclose(to_numpy(p), peers[n].detach().numpy(), rtol=1e-11, atol=1e-13)
    assert state.step == 20


def test_clipping_follows_torch(be, rng):
    torch = pytest.importorskip("torch")
    grads = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    ours = {n: be.asarray(g) for n, g in grads.items()}
    norm = math.sqrt(sum(np.sum(g * g) for g in grads.values()))
    assert float(optimizers.global_norm(ours)) == pytest.approx(norm, rel=1e-12)
    for limit in (0.5, 100.0):
        peers = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()]
        for p, g in zip(peers, grads.values(), strict=True):
            p.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(peers, limit)
        clipped = optimizers.clip_global_norm(ours, limit)
        for c, p in zip(clipped.values(), peers, strict=True):
            np.testing.assert_allclose(to_numpy(c), p.grad.numpy(), rtol=1e-5)  # PyTorch adds 1e-6 to the norm
    np.testing.assert_array_equal(to_numpy(optimizers.clip_value(ours, 0.3)["a"]), np.clip(grads["a"], -0.3, 0.3))
    both = Clip(norm=1.0, value=0.5).gradients(ours, optimizers.global_norm(ours))
    expected = optimizers.clip_global_norm(optimizers.clip_value(ours, 0.5), 1.0)
    assert all(np.array_equal(to_numpy(both[name]), to_numpy(g)) for name, g in expected.items())
    zero = {"a": be.asarray(np.zeros(3))}
    np.testing.assert_array_equal(to_numpy(optimizers.clip_global_norm(zero, 1.0)["a"]), np.zeros(3))


def test_schedules():
    steps = optimizers.step_decay(1.0, every=2, factor=0.5)
    assert [steps(k) for k in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    warm = optimizers.warmup(3, optimizers.step_decay(1.0, every=1, factor=0.5))
    assert [warm(k) for k in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5])


def test_cosine_and_step_follow_torch():
    torch = pytest.importorskip("torch")
    peer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(peer, T_max=7, eta_min=0.01)
    ours = optimizers.cosine(0.3, 7, floor=0.01)
    for k in range(8):
        assert ours(k) == pytest.approx(peer.param_groups[0]["lr"], rel=1e-10)
        peer.step()
        schedule.step()
    assert ours(20) == 0.01


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optimizers.sgd(0.0), "lr is 0.0"),
        (lambda: Clip(), "norm and value are None, expected a limit"),
        (lambda: optimizers.sgd(0.1, momentum=1.0), "momentum is 1.0"),
        (lambda: optimizers.sgd(0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: optimizers.adam(0.1, betas=(0.9, 1.0)), r"betas\[1\] is 1.0"),
        (lambda: optimizers.adamw(0.1, weight_decay=-1), "weight_decay is -1"),
        (lambda: optimizers.cosine(0.1, 0), "steps is 0"),
        (lambda: optimizers.clip_global_norm({"a": np.ones(1)}, 0), "limit is 0"),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_learning_rate_is_a_number_or_a_schedule():
    with pytest.raises(TypeError, match="adam: lr is 'fast', expected a number"):
        optimizers.adam("fast")
    with pytest.raises(TypeError, match="adam: lr is the class dict, expected a function"):
        optimizers.adam(dict)
    params = {"a": np.ones(1)}
    with pytest.raises(TypeError, match=r"sgd: lr\(0\) is 'fast', expected a number"):
        optimizers.sgd(lambda step: "fast")
    with pytest.raises(TypeError, match=r"sgd: lr is no schedule .*takes 0 positional arguments"):
        optimizers.sgd(lambda: 0.1)
    odd = optimizers.sgd(lambda step: float("nan") if step else 0.1)
    params, state = odd.update(params, params, odd.init(params))
    with pytest.raises(ValueError, match="sgd: lr is nan"):
        odd.update(params, params, state)


def test_gradients_are_checked():
    params = {"a": np.ones((2, 3), "float32")}
    optimizer = optimizers.adam(0.1)
    state = optimizer.init(params)
    with pytest.raises(TypeError, match="gradient of a has dtype float64"):
        optimizer.update(params, {"a": np.ones((2, 3))}, state)
    with pytest.raises(ValueError, match=r"adam: gradients a is .*\(1, 3\).*expected .*\(2, 3\)"):
        optimizer.update(params, {"a": np.ones((1, 3), "float32")}, state)
    with pytest.raises(ValueError, match=r"adam: gradients is .*expected a dict of a"):
        optimizer.update(params, {"b": params["a"]}, state)
    with pytest.raises(ValueError, match=r"adam: moments is .*, expected a dict of m, v"):
        optimizer.update(params, {"a": np.ones((2, 3), "float32")}, optimizers.sgd(0.1).init(params))


@pytest.mark.parametrize("name", ["nesterov", "rmsprop momentum", "adam decay"])
def test_optimisers_and_their_states_are_pickled_and_copied(rng, name):
    """In the middle of training: the rest of it is the same, bit by bit."""
    optimizer = CASES[name][0]()
    params = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    grads = [{n: rng.standard_normal(p.shape) for n, p in params.items()} for _ in range(4)]
    state = optimizer.init(params)
    for g in grads[:2]:
        params, state = optimizer.update(params, g, state)
    other, others, other_state = pickle.loads(pickle.dumps((optimizer, params, state)))
    assert type(copy.deepcopy(other)) is type(optimizer)
    for g in grads[2:]:
        params, state = optimizer.update(params, g, state)
        others, other_state = other.update(others, g, other_state)
    for n, p in params.items():
        np.testing.assert_array_equal(others[n], p)
    assert other_state.step == state.step == 4


def test_by_name_is_each_optimiser_on_its_part(rng):
    params = {name: rng.standard_normal(3) for name in ("embedding.W", "0.Wx", "0.b", "head.W", "head.b")}
    grads = {name: rng.standard_normal(3) for name in params}
    rules = {"head.b": None, "head.*": optimizers.sgd(0.1, momentum=0.9), "*.Wx": optimizers.adam(0.1)}
    optimizer = optimizers.by_name(rules, optimizers.adam(0.01))
    assert [name for name in params if optimizer.frozen(name)] == ["head.b"]
    parts = {"head.*": ["head.W"], "*.Wx": ["0.Wx"], "": ["embedding.W", "0.b"]}
    state, now = optimizer.init(params), params
    alone = {key: {name: params[name] for name in names} for key, names in parts.items()}
    made = {**rules, "": optimizers.adam(0.01)}
    states = {key: made[key].init(alone[key]) for key in parts}
    for _ in range(3):
        needed = {name: g for name, g in grads.items() if not optimizer.frozen(name)}
        now, state = optimizer.update(now, needed, state)
        for key, names in parts.items():
            alone[key], states[key] = made[key].update(alone[key], {n: grads[n] for n in names}, states[key])
            for name in names:
                assert now[name].tobytes() == alone[key][name].tobytes()
        assert now["head.b"] is params["head.b"]
    assert state.step == 3


def test_by_name_refuses_what_it_cannot_use(rng):
    params = {"0.W": rng.standard_normal(3)}
    with pytest.raises(ValueError, match="no parameter matches 'head"):
        optimizers.by_name({"head.*": None}, optimizers.sgd(0.1)).init(params)
    with pytest.raises(TypeError, match=r"'0\.\*' has 0.1, expected an optimiser"):
        optimizers.by_name({"0.*": 0.1}, optimizers.sgd(0.1))
    params["0.b"] = params["0.W"]
    optimizer = optimizers.by_name({"0.*": optimizers.adam(0.1)}, optimizers.sgd(0.1))
    with pytest.raises(ValueError, match=r"by_name: gradients is .*expected a dict of 0\.W, 0\.b"):
        optimizer.update(params, {"0.W": params["0.W"]}, optimizer.init(params))
