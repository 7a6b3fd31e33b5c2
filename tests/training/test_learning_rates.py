"""Learning rates: schedules, plateaus, and the range test that finds one."""

import math

import numpy as np
import pytest

import xlstm
from tests.training.runs import fit, plain
from xlstm import losses
from xlstm.data import Windows
from xlstm.models.sequence import SequenceModel
from xlstm.training import ReduceOnPlateau, find_learning_rate, optimizers


def test_schedules():
    steps = optimizers.step_decay(1.0, every=2, factor=0.5)
    assert [steps(k) for k in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    warm = optimizers.warmup(3, optimizers.step_decay(1.0, every=1, factor=0.5))
    assert [warm(k) for k in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5])


def test_cosine_follows_torch():
    torch = pytest.importorskip("torch")
    peer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(peer, T_max=7, eta_min=0.01)
    ours = optimizers.cosine(0.3, 7, floor=0.01)
    for k in range(8):
        assert ours(k) == pytest.approx(peer.param_groups[0]["lr"], rel=1e-10)
        peer.step()
        schedule.step()
    assert ours(20) == 0.01


def test_reduce_on_plateau_follows_torch():
    torch = pytest.importorskip("torch")
    values = [
        1.0,
        0.9,
        0.91,
        0.92,
        0.9,
        0.8999999,
        0.7,
        0.71,
        0.72,
        0.73,
        0.74,
        0.75,
        0.76,
        0.5,
        0.6,
        0.6,
        0.6,
    ]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=2, threshold=1e-4
    )
    ours = ReduceOnPlateau(0.1, factor=0.3, patience=2)
    assert ours(0) == 0.1
    for value in values:
        peer.step(value)
        ours.epoch(type("Progress", (), {"validation": value}))
        assert ours(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize(
    "made",
    [
        lambda rate: optimizers.adam(optimizers.warmup(2, optimizers.warmup(2, rate))),
        lambda rate: optimizers.by_name({"*.b": optimizers.sgd(rate)}, optimizers.sgd(1)),
        lambda rate: optimizers.sgd(lambda step: rate(step) / 2),
    ],
)
def test_a_plateau_is_the_learning_rate_and_a_callback(made):
    """One without the other would change nothing, and raises an error in the first epoch."""
    plateau = ReduceOnPlateau(0.05)
    with pytest.raises(ValueError, match="ReduceOnPlateau: it is a learning rate"):
        fit(plain, optimizer=made(plateau))
    fit(plain, optimizer=made(plateau), callbacks=[plateau], epochs=1)
    with pytest.raises(ValueError, match="ReduceOnPlateau: it is in callbacks"):
        fit(plain, optimizer=optimizers.sgd(0.05), callbacks=[ReduceOnPlateau(0.05)])


# The range test


def find(**options):
    model, data, _ = plain()
    return find_learning_rate(model, model.init(0, "numpy"), data, **options)


def test_the_range_test_stops_where_training_diverges():
    found = find(optimizer=optimizers.sgd, low=1e-4, high=1e4, steps=60)
    assert len(found.rates) == len(found.losses) < 60
    assert found.losses[-1] > 4 * found.losses[0] > found.losses[:-1].max()
    assert 1e-3 < found.suggestion < found.rates[-1]
    fast, slow = (
        fit(plain, None, optimizers.sgd(found.suggestion / k), epochs=4).losses[-1]
        for k in (1, 100)
    )
    assert fast < slow


@pytest.mark.parametrize("low", [1e-5, 1e3])
def test_the_range_test_suggests_a_rate_between_low_and_high(low):
    """A first batch that happens to be easy is no minimum, and no reason to stop."""
    calls = []

    def lucky(y, target, mask):
        loss, dy = losses.mse(y, target, mask)
        calls.append(loss)
        return (0.01 * loss if len(calls) == 1 else loss), dy

    found = find(optimizer=optimizers.sgd, low=low, high=1e4, steps=40, loss=lucky)
    assert np.argmin(found.losses) == 0
    best = 4 + np.argmin(found.losses[4:])  # of 40 the first tenth does not count
    assert found.suggestion == pytest.approx(max(low, found.rates[best] / 10))


@pytest.mark.parametrize("steps", [10, 20, 100])
def test_the_range_test_does_not_look_at_which_batches_are_easy(steps):
    """Batches whose losses differ far more than a step changes them: the rate is one at which the
    loss falls.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, 12, 2)) * rng.choice([0.3, 3.0], (96, 1, 1))
    data = Windows(x, x.sum(axis=(1, 2))[:, None], batch_size=8)
    model = SequenceModel(xlstm.LSTM(2, 8), 1, last=True)
    found = find_learning_rate(model, model.init(1, "numpy"), data, optimizers.adam, steps=steps)
    assert 1e-3 < found.suggestion <= 0.1


def test_a_range_test_that_diverges_at_once():
    with pytest.raises(ValueError, match="diverges after 0 steps"):
        find(low=0.01, loss=lambda y, target, mask: (math.nan * y[0, 0, 0], y))
