"""The loop: PyTorch's losses step by step, early stopping, streams, and what it refuses."""

import math

import numpy as np
import pytest

import xlstm
from xlstm import losses
from xlstm.arrays.backend import backend_like
from xlstm.arrays.convert import to_numpy
from xlstm.data import Batch, Streams, Windows
from xlstm.estimators import TextModel
from xlstm.models.sequence import SequenceModel
from xlstm.training import evaluate, loop, optimizers

OPTIMIZERS = {
    "SGD": (lambda: optimizers.sgd(0.1, momentum=0.9), {"lr": 0.1, "momentum": 0.9}),
    "Adam": (lambda: optimizers.adam(0.01), {"lr": 0.01}),
    "AdamW": (lambda: optimizers.adamw(0.01), {"lr": 0.01}),
    "RMSprop": (lambda: optimizers.rmsprop(0.01), {"lr": 0.01}),
}


class Given:
    """The same batches in every epoch, or as many epochs as there are lists of them."""

    def __init__(self, *epochs):
        self.epochs, self.done = epochs, 0

    def __len__(self):
        return 1

    def batches(self, rng=None):
        self.done += 1
        return iter(self.epochs[min(self.done, len(self.epochs)) - 1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_follow_torch(rng, name):
    """Same weights, same data: losses of `torch.nn.LSTM` + `torch.nn.Linear` + `torch.optim` within 1e-10."""
    torch = pytest.importorskip("torch")
    T, B, D, H, V = 8, 5, 2, 6, 3
    make, settings = OPTIMIZERS[name]
    model = SequenceModel(xlstm.LSTM(D, H), V)
    params = model.init(3, "numpy", "float64")
    order = np.r_[0:H, 2 * H : 3 * H, 3 * H : 4 * H, H : 2 * H]
    lstm, head = torch.nn.LSTM(D, H, dtype=torch.float64), torch.nn.Linear(H, V, dtype=torch.float64)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.tensor(params["recurrent.0.Wx"][order]))
        lstm.weight_hh_l0.copy_(torch.tensor(params["recurrent.0.Wh"][order]))
        lstm.bias_ih_l0.copy_(torch.tensor(params["recurrent.0.b"][order]))
        lstm.bias_hh_l0.zero_()
        head.weight.copy_(torch.tensor(params["head.W"]))
        head.bias.copy_(torch.tensor(params["head.b"]))
    # PyTorch has two biases that are added; ours is one, so only one of theirs is trained.
    trained = [p for n, p in lstm.named_parameters() if n != "bias_hh_l0"] + list(head.parameters())
    peer = getattr(torch.optim, name)(trained, **settings)
    x, target = rng.standard_normal((50, T, B, D)), rng.standard_normal((50, T, B, V))
    batches = [batch(x=x, target=target) for x, target in zip(x, target, strict=True)]
    ours = loop.train(model, params, Given(batches), make(), epochs=1).losses
    for k in range(50):
        loss = torch.nn.functional.mse_loss(head(lstm(torch.tensor(x[k]))[0]), torch.tensor(target[k]))
        assert ours[k] == pytest.approx(loss.item(), abs=1e-10), f"step {k}"
        peer.zero_grad()
        loss.backward()
        peer.step()


def wave(n=400):
    return np.sin(np.arange(n) / 5.0)


def stream_data(batch_size=4, length=20):
    v = wave()
    return Streams(v[:-1, None], v[1:, None], batch_size, length)


@pytest.mark.parametrize("lengths", [None, [3, 0, 4]])
@pytest.mark.parametrize("inputs", [None, 3])
@pytest.mark.parametrize(
    "layer",
    [xlstm.LSTM(2, 3, bidirectional=True), xlstm.mLSTM(2, 4, num_heads=2), xlstm.xLSTMStack(2, 2, [1], num_heads=1)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("last", [False, True])
def test_gradients(be, rng, layer, inputs, lengths, last):
    """Predictions come after each step or at the end, in every layer, of every length; with a layer before, too."""
    model = SequenceModel(layer, 2, last=last, inputs=inputs)
    params = {name: be.asarray(rng.standard_normal(p.shape) / 2) for name, p in model.init(0, "numpy").items()}
    x = be.asarray(rng.standard_normal((4, 3, model.input_size)))

    def forward(params, x):
        y, _, saved = model.forward(params, x, lengths=lengths)
        return y, (params, saved)

    xlstm.gradcheck(forward, lambda s, dy: model.backward(*s, dy)[:2], (params, x))


def test_one_prediction_is_that_of_the_last_step(be, rng):
    layer = xlstm.mLSTM(2, 4, num_heads=2)
    once, each = (SequenceModel(layer, 2, last=last, inputs=3) for last in (True, False))
    params, x = once.init(0, be), be.asarray(rng.standard_normal((4, 3, 3)))
    y, _ = once(params, x, lengths=[3, 1, 4])
    steps = to_numpy(each(params, x)[0])
    np.testing.assert_allclose(to_numpy(y), steps[[2, 0, 3], [0, 1, 2]], rtol=1e-5, atol=1e-6)


def test_learns_a_wave_on_every_backend(be):
    model = SequenceModel(xlstm.LSTM(1, 8), 1)
    trained = loop.train(model, model.init(0, be), stream_data(), optimizers.adam(0.05), epochs=15, clip=1.0)
    assert trained.losses[-1] < 0.02 * trained.losses[0]
    assert all(backend_like(p).xp is be.xp for p in trained.params.values())


def test_streams_carry_the_state(monkeypatch):
    """The state is fresh at the beginning of an epoch and carried, detached, from batch to batch."""
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    seen = []
    forward = SequenceModel.forward

    def spy(self, params, x, state=None, train=True):
        y, end, saved = forward(self, params, x, state, train)
        seen.append((state, end))
        return y, end, saved

    monkeypatch.setattr(SequenceModel, "forward", spy)
    data = stream_data()
    loop.train(model, model.init(0, "numpy"), data, optimizers.sgd(0.1), epochs=2)
    assert len(data) == 4
    for k, (start, _) in enumerate(seen):
        assert start is None if k % len(data) == 0 else start is seen[k - 1][1]


def test_early_stopping_keeps_the_best_weights():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((40, 6, 1)), rng.standard_normal((40, 1))
    data = Windows(x[:20], target[:20])
    validation = Windows(x[20:], target[20:])
    model = SequenceModel(xlstm.LSTM(1, 16), 1, last=True)
    seen, options = [], {"epochs": 200, "validation": validation, "patience": 5}
    trained = loop.train(model, model.init(0, "numpy"), data, optimizers.adam(0.05), progress=seen.append, **options)
    assert trained.stopped_early
    assert len(trained.validations) == trained.best_epoch + 5
    assert trained.validations[trained.best_epoch - 1] == min(trained.validations)
    assert evaluate(model, trained.params, validation) == min(trained.validations)
    assert [p.epoch for p in seen] == list(range(1, len(trained.validations) + 1))
    assert seen[-1].best == min(trained.validations[:-1])


def test_averaging_follows_its_definition():
    data = stream_data()
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    start = model.init(0, "numpy", "float64")
    every = [start]

    class Spy(optimizers.Optimizer):
        init = optimizers.sgd(0.1).init

        def update(self, *arguments):
            params, state = optimizers.sgd(0.1).update(*arguments)
            every.append(params)
            return params, state

    spy = Spy()
    mean = loop.train(model, start, data, spy, epochs=1, averaging=0.9).params
    for n in start:  # four steps: still the plain mean
        np.testing.assert_allclose(mean[n], np.mean([params[n] for params in every[1:]], axis=0), rtol=1e-12)
    every[1:] = []
    mean = loop.train(model, start, data, spy, epochs=1, averaging=0.6).params
    for n in start:  # weights 1/2, 1/2; then 0.6 old and 0.4 new
        one, two, three, four = (params[n] for params in every[1:])
        expected = 0.6 * (0.6 * (one + two) / 2 + 0.4 * three) + 0.4 * four
        np.testing.assert_allclose(mean[n], expected, rtol=1e-12)


def test_divergence_names_step_and_parameter():
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    params = model.init(0, "numpy")
    params["head.W"] = params["head.W"] * np.float32(np.inf)
    with pytest.raises(FloatingPointError, match=r"^train: epoch 1, step 1: loss is nan, parameter head\.W is not"):
        loop.train(model, params, stream_data(), optimizers.sgd(0.1), epochs=1)
    with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+: loss is .*(parameter|gradient)"):
        loop.train(model, model.init(0, "numpy"), stream_data(), optimizers.sgd(1e30), epochs=5)


def test_evaluate_weighs_batches_by_what_counts():
    rng = np.random.default_rng(0)
    x, target, mask = rng.standard_normal((10, 3, 1)), rng.standard_normal((10, 2)), rng.random((10, 2)) < 0.7
    model = SequenceModel(xlstm.LSTM(1, 3), 2, last=True)
    params = model.init(0, "numpy", "float64")
    ragged = evaluate(model, params, Windows(x, target, mask, batch_size=4))
    y, _, _ = model.forward(params, np.swapaxes(x, 0, 1), train=False)
    assert ragged == pytest.approx(float(losses.mse(y, target, mask)[0]), rel=1e-12)
    assert math.isfinite(ragged)
    assert to_numpy(y).shape == (10, 2)


def test_evaluate_carries_the_state():
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    params = model.init(0, "numpy", "float64")
    whole = evaluate(model, params, stream_data(length=90))
    assert evaluate(model, params, stream_data(length=10)) == pytest.approx(whole, rel=1e-12)


def test_a_validation_that_is_not_finite_stops_training():
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    data = stream_data()
    broken = Streams(data.x, 1e30 * data.target, 4, 20)
    with pytest.raises(FloatingPointError, match=r"^train: epoch 1: the validation loss is inf"):
        loop.train(model, model.init(0, "numpy"), data, optimizers.sgd(0.1), epochs=2, validation=broken)


def batch(T=5, B=2, **changes):
    given = {"x": np.ones((T, B, 1)), "target": np.zeros((T, B, 1)), "mask": None, "fresh": True}
    return Batch(**{**given, **changes})


def fit(*epochs, last=False, backend="numpy", dtype="float32", **options):
    model = SequenceModel(xlstm.LSTM(1, 3), 1, last=last)
    params = model.init(0, backend, dtype)
    return loop.train(model, params, Given(*epochs), optimizers.sgd(0.1), **{"epochs": 2, **options})


NOTHING_COUNTS = "the data have no target that counts"


@pytest.mark.parametrize(
    ("epochs", "last", "words"),
    [
        ([[]], False, "epoch 1: the data yield no batches"),
        ([[batch()], []], False, "epoch 2: the data yield no batches"),
        ([[batch(mask=np.zeros((5, 2), bool))]], False, f"epoch 1: {NOTHING_COUNTS}"),
        ([[batch(lengths=np.array([0, 0]), target=np.zeros((2, 1)))]], True, f"epoch 1: {NOTHING_COUNTS}"),
    ],
)
def test_data_that_yield_nothing_are_named(epochs, last, words):
    with pytest.raises(ValueError, match=f"train: {words}"):
        fit(*epochs, last=last)
    with pytest.raises(ValueError, match=f"evaluate: {words.partition(': ')[2]}"):
        fit([batch(target=np.zeros((2, 1)))] if last else [batch()], last=last, validation=Given(epochs[-1]))


@pytest.mark.parametrize("value", ["on", 1, None, np.zeros(2)], ids=repr)
def test_a_value_of_graph_that_is_none_is_named(value):
    for fails in (lambda: fit([batch()], graph=value), lambda: TextModel(graph=value).fit("text")):
        with pytest.raises(ValueError, match=r"^(Step|TextModel): graph is .*, expected True, False or 'auto'"):
            fails()


@pytest.mark.parametrize(("name", "value"), [("x", np.nan), ("target", np.inf), ("target", -np.inf)])
def test_a_number_that_is_not_finite_is_named_and_not_the_learning_rate(be, name, value):
    array = np.ones((5, 2, 1))
    array[3, 1, 0] = value
    words = rf"{name}\[3, 1, 0\] is {value:g}, expected finite numbers"
    for given in (array, be.asarray(array)):
        with pytest.raises(ValueError, match=f"train: epoch 1, step 2: {words}"):
            fit([batch(), batch(**{name: given})], backend=be, dtype=None)
    with pytest.raises(ValueError, match=f"evaluate: batch 2: {words}"):
        fit([batch()], validation=Given([batch(), batch(**{name: array})]))


def test_a_target_that_a_mask_leaves_out_is_named_where_the_loss_does_not_leave_it_out():
    target, mask = np.zeros((5, 2, 1)), np.ones((5, 2, 1), bool)
    target[3, 1, 0], mask[3, 1, 0] = np.nan, False

    def careful(y, target, mask):
        return losses.mse(y, np.where(mask, target, 0).astype(y.dtype), mask)

    assert np.all(np.isfinite(fit([batch(target=target, mask=mask)], loss=careful).losses))
    with pytest.raises(ValueError, match=r"step 1: target\[3, 1, 0\] is nan"):
        fit([batch(target=target, mask=mask)])


def test_a_number_for_which_the_dtype_has_no_room_is_named():
    x = np.full((5, 2, 1), 1e300)
    with pytest.raises(ValueError, match=r"step 1: x\[0, 0, 0\] is 1e\+300, more than float32 has room for"):
        fit([batch(x=x)])
    fit([batch(x=x)], dtype="float64")


@pytest.mark.parametrize("junk", [np.nan, 1e300])
def test_steps_past_the_end_do_not_matter(junk):
    x = np.ones((5, 2, 1))
    x[3:, 1] = junk
    lengths = np.array([5, 3])
    found = fit([batch(x=x, lengths=lengths)]).losses
    assert found == fit([batch(lengths=lengths)]).losses
