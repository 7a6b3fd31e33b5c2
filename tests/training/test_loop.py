"""The loop and its step: PyTorch's losses step by step, early stopping, streams, and what it
refuses.
"""

import math

import numpy as np
import pytest

import xlstm
from tests.training import runs
from xlstm import losses
from xlstm.data import Batch, Sequences, Streams, Windows
from xlstm.interop.torch import to_torch
from xlstm.models.sequence import SequenceModel
from xlstm.training import Clip, Step, TrainStep, evaluate, loop, optimizers


class Given:
    """The same batches in every epoch, or as many epochs as there are lists of them."""

    def __init__(self, *epochs):
        self.epochs = epochs
        self.done = 0

    def __len__(self):
        return 1

    def batches(self, rng=None):
        self.done += 1
        return iter(self.epochs[min(self.done, len(self.epochs)) - 1])


def test_fifty_steps_follow_torch(rng):
    """Same weights, same data: losses of `torch.nn.LSTM` + `torch.nn.Linear` + `torch.optim` within
    1e-10.
    """
    torch = pytest.importorskip("torch")
    T = 8
    B = 5
    D = 2
    H = 6
    V = 3

    model = SequenceModel(xlstm.LSTM(D, H, recurrent_bias=True), V)
    params = model.init(3, "numpy", "float64")
    peer = torch.nn.ModuleDict(
        {"recurrent": torch.nn.LSTM(D, H), "head": torch.nn.Linear(H, V)}
    ).double()
    peer.load_state_dict({name: torch.tensor(p) for name, p in to_torch(model, params).items()})
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.01)
    x = rng.standard_normal((50, T, B, D))
    target = rng.standard_normal((50, T, B, V))
    batches = [batch(x=x, target=target) for x, target in zip(x, target, strict=True)]
    ours = loop.train(model, params, Given(batches), optimizers.adam(0.01), epochs=1).losses
    for k in range(50):
        y = peer["head"](peer["recurrent"](torch.tensor(x[k]))[0])
        loss = torch.nn.functional.mse_loss(y, torch.tensor(target[k]))
        assert ours[k] == pytest.approx(loss.item(), abs=1e-10), f"step {k}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def stream_data(length=20):
    v = np.sin(np.arange(400) / 5.0)
    return Streams(v[:-1, None], v[1:, None], 4, length)


def test_accumulated_batches_are_one_large_batch(rng):
    """Small weights of targets do not shrink their gradients."""
    model = SequenceModel(xlstm.LSTM(2, 3), 1, last=True)
    params = model.init(0, "numpy", "float64")
    x = rng.normal(size=(12, 5, 2))
    y = rng.normal(size=(12, 1))
    mask = 1e-3 * (rng.random((12, 1)) < 0.7)
    small, large = (Windows(x, y, mask, batch_size=size) for size in (4, 12))
    step = TrainStep(model, optimizers.sgd(0.3), accumulate=3)
    state = step.init(params)
    for k, part in enumerate(small.batches()):
        state, taken = step(state, part)
        assert taken.updated == (k == 2)
    whole = TrainStep(model, optimizers.sgd(0.3))
    expected, _ = whole(whole.init(params), next(large.batches()))
    for name, p in expected.params.items():
        np.testing.assert_allclose(state.params[name], p, rtol=1e-10, atol=1e-14)


def test_episodes_in_one_sequence_are_sequences_of_their_own(rng):
    model = SequenceModel(xlstm.LSTM(3, 4), 2)
    params = model.init(0, "numpy", "float64")
    x = rng.normal(size=(9, 2, 3))
    target = rng.normal(size=(9, 2, 2))
    resets = np.zeros((9, 2), bool)
    resets[[4, 0, 6], [0, 1, 1]] = True

    def part(steps, fresh=True):
        return Batch(x[steps], target[steps], None, fresh, options={"resets": resets[steps]})

    episodes = [[a[:4, 0], a[4:, 0], a[:6, 1], a[6:, 1]] for a in (x, target)]
    apart = Sequences(*episodes, every_step=True)
    found, expected = (
        loop.train(model, params, data, optimizers.adam(0.1), epochs=5)
        for data in ([part(np.s_[:])], apart)
    )
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-12)
    for name, p in expected.params.items():
        np.testing.assert_allclose(found.params[name], p, rtol=1e-9)
    carried = evaluate(model, params, [part(np.s_[:5]), part(np.s_[5:], False)])
    assert carried == pytest.approx(evaluate(model, params, apart), rel=1e-12)


def test_a_loop_of_ones_own_is_train():
    model, data, _ = runs.random_masks()
    params = model.init(0, "numpy")
    # there is nothing to wait for
    # `Step` is the other name of `TrainStep`
    step = Step(model, optimizers.adam(0.05), callbacks=[Clip(0.1)], wait=False)
    state = step.init(params, seed=3)
    found = []
    for _ in range(2):
        state = state._replace(carried=None)
        for part in data.batches():
            state, taken = step(state, part)
            assert isinstance(taken.loss, float)
            assert taken.updated is True
            found.append(taken.loss)
    trained = loop.train(model, params, data, optimizers.adam(0.05), epochs=2, clip=0.1, seed=3)
    assert trained.losses == found
    assert all(trained.params[name].tobytes() == p.tobytes() for name, p in state.params.items())


def test_frozen_parameters_stay_and_do_not_count_in_the_norm(tmp_path):
    model, data, _ = runs.plain()
    params = model.init(0, "numpy")
    optimizer = optimizers.by_name({"recurrent.*": None}, optimizers.adam(0.05))
    seen = []
    options = {"clip": 0.1, "checkpoints": tmp_path}
    trained = loop.train(model, params, data, optimizer, epochs=2, clip=0.1, progress=seen.append)
    for name, p in params.items():
        assert (trained.params[name] is p) == name.startswith("recurrent.")
    first = next(data.batches())
    y, _, saved = model.forward(params, first.x.astype("float32"))
    grads, *_ = model.backward(params, saved, losses.mse(y, first.target.astype("float32"))[1])
    assert seen[0].norm == pytest.approx(
        math.hypot(grads["head.b"][0], *grads["head.W"][0]), rel=1e-6
    )
    loop.train(model, params, data, optimizer, epochs=1, **options)
    runs.same(trained, loop.train(model, params, data, optimizer, epochs=2, resume=True, **options))


@pytest.mark.parametrize("length", [10, 90])
def test_streams_carry_the_state_through_an_epoch(length):
    """It is fresh at the beginning of each epoch: weights that stay have the losses of one long
    batch.
    """
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    params = model.init(0, "numpy", "float64")
    data = stream_data(length)
    whole = evaluate(model, params, stream_data(90))
    assert evaluate(model, params, data) == pytest.approx(whole, rel=1e-12)
    trained = loop.train(model, params, data, optimizers.sgd(1e-300), epochs=2)
    np.testing.assert_allclose(np.reshape(trained.losses, (2, -1)).mean(axis=1), whole, rtol=1e-12)


def test_early_stopping_keeps_the_best_weights():
    model, _, options = runs.shuffled()
    seen = []
    trained = runs.fit(runs.shuffled, epochs=200, patience=5, progress=seen.append)
    assert trained.stopped_early
    assert len(trained.validations) == trained.best_epoch + 5
    assert trained.validations[trained.best_epoch - 1] == min(trained.validations)
    assert evaluate(model, trained.params, options["validation"]) == min(trained.validations)
    assert seen[-1].best == min(trained.validations[:-1])


@pytest.mark.parametrize("decay", [0.9, 0.6])
def test_averaging_follows_its_definition(decay):
    """The mean of all updates so far while these are few, then `decay` of the mean before and the
    rest of the new.
    """
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    updates = []

    class Spy(optimizers.Optimizer):
        init = optimizers.sgd(0.1).init

        def update(self, *arguments):
            params, state = optimizers.sgd(0.1).update(*arguments)
            updates.append(params)
            return params, state

    start = model.init(0, "numpy", "float64")
    found = loop.train(model, start, stream_data(), Spy(), epochs=1, averaging=decay).params
    assert len(updates) == 4
    for name in start:
        mean = 0.0
        for k, params in enumerate(updates):
            kept = min(decay, k / (k + 1))
            mean = kept * mean + (1 - kept) * params[name]
        np.testing.assert_allclose(found[name], mean, rtol=1e-12)


def test_an_optimiser_may_have_helpers_of_any_name():
    """Those of `Optimizer` that a step calls are private."""

    class Own(optimizers.Optimizer):
        init = optimizers.sgd(0.1).init
        rates = moving = numbers = None

        def apply(self, params, grads):
            return {name: p - 0.1 * grads[name] for name, p in params.items()}

        def update(self, params, grads, state):
            return self.apply(params, grads), state

    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    start = model.init(0, "numpy", "float64")
    data = stream_data()
    own, sgd = (
        loop.train(model, start, data, optimizer, steps=3).params
        for optimizer in (Own(), optimizers.sgd(0.1))
    )
    for name, p in sgd.items():
        np.testing.assert_allclose(own[name], p, rtol=1e-12)


def test_a_schedule_is_asked_once_an_update():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.1

    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    step = TrainStep(model, optimizers.sgd(rate), accumulate=2)
    state = step.init(model.init(0, "numpy"))
    asked.clear()
    for part in stream_data().batches():
        state, _ = step(state, part)
    assert asked == [0, 1]


def test_divergence_names_step_and_parameter():
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    params = model.init(0, "numpy")
    params["head.W"] = params["head.W"] * np.float32(np.inf)
    with pytest.raises(
        FloatingPointError, match=r"^train: epoch 1, step 1: loss is nan, parameter head\.W is not"
    ):
        loop.train(model, params, stream_data(), optimizers.sgd(0.1), epochs=1)
    with pytest.raises(
        FloatingPointError, match=r"epoch \d+, step \d+: loss is .*(parameter|gradient)"
    ):
        loop.train(model, model.init(0, "numpy"), stream_data(), optimizers.sgd(1e30), epochs=5)


def test_a_validation_that_is_not_finite_stops_training():
    model = SequenceModel(xlstm.LSTM(1, 4), 1)
    data = stream_data()
    broken = Streams(data.x, 1e30 * data.target, 4, 20)
    with pytest.raises(FloatingPointError, match=r"^train: epoch 1: the validation loss is inf"):
        loop.train(
            model, model.init(0, "numpy"), data, optimizers.sgd(0.1), epochs=2, validation=broken
        )


def batch(T=5, B=2, **changes):
    given = {"x": np.ones((T, B, 1)), "target": np.zeros((T, B, 1)), "mask": None, "fresh": True}
    return Batch(**{**given, **changes})


def fit(*epochs, last=False, backend="numpy", dtype="float32", **options):
    model = SequenceModel(xlstm.LSTM(1, 3), 1, last=last)
    params = model.init(0, backend, dtype)
    return loop.train(
        model, params, Given(*epochs), optimizers.sgd(0.1), **{"epochs": 2, **options}
    )


@pytest.mark.parametrize(
    ("epochs", "last", "words"),
    [
        ([[batch()], []], False, "epoch 2: the data yield no batches"),
        (
            [[batch(mask=np.zeros((5, 2), bool))]],
            False,
            "epoch 1: the data have no target that counts",
        ),
        (
            [[batch(lengths=np.array([0, 0]), target=np.zeros((2, 1)))]],
            True,
            "epoch 1: the data have no target",
        ),
    ],
)
def test_data_that_yield_nothing_are_named(epochs, last, words):
    with pytest.raises(ValueError, match=f"train: {words}"):
        fit(*epochs, last=last)
    with pytest.raises(ValueError, match=f"evaluate: {words.partition(': ')[2]}"):
        fit(
            [batch(target=np.zeros((2, 1)))] if last else [batch()],
            last=last,
            validation=Given(epochs[-1]),
        )


@pytest.mark.parametrize(
    ("name", "value"), [("x", np.nan), ("target", np.inf), ("target", -np.inf)]
)
def test_a_number_that_is_not_finite_is_named_and_not_the_learning_rate(be, name, value):
    array = np.ones((5, 2, 1))
    array[3, 1, 0] = value
    words = rf"{name}\[3, 1, 0\] is {value:g}, expected finite numbers"
    for given in (array, be.asarray(array)):
        with pytest.raises(ValueError, match=f"train: epoch 1, step 2: {words}"):
            fit([batch(), batch(**{name: given})], backend=be, dtype=None)
    with pytest.raises(ValueError, match=f"evaluate: batch 2: {words}"):
        fit([batch()], validation=Given([batch(), batch(**{name: array})]))


@pytest.mark.parametrize("token", [-1, 5])
def test_a_symbol_out_of_range_is_named(be, token):
    """On the host before the step; on a device its row is NaN, and so is the loss."""
    model = SequenceModel(xlstm.LSTM(2, 3), 1, symbols=5)
    step = Step(model, optimizers.sgd(0.1))
    state = step.init(model.init(0, be))
    tokens = np.array([[0, 1], [4, token]])
    target = np.zeros((2, 2, 1))
    words = rf"has {token} at \(1, 1\), expected whole numbers from 0 to 4"
    for x, name in ((tokens, "step: x"), (be.asarray(tokens), "(x|tokens)")):
        with pytest.raises(ValueError, match=f"{name} {words}"):
            step(state, batch(x=x, target=target))
    step(state, batch(x=tokens, target=target, lengths=np.array([2, 1])))


def test_a_target_that_a_mask_leaves_out_does_not_matter():
    target = np.zeros((5, 2, 1))
    mask = np.ones((5, 2, 1), bool)
    mask[3, 1, 0] = False
    clean = batch(target=target.copy(), mask=mask)
    target[3, 1, 0] = np.nan
    masked = batch(target=target, mask=mask)
    options = {"metrics": {"error": losses.mae}, "validation": Given([masked])}
    history = fit([masked], **options)
    assert history.losses == fit([clean]).losses
    assert np.isfinite([*history.validations, *history.metrics["error"]]).all()
    with pytest.raises(FloatingPointError, match="loss is inf"):
        fit([batch(target=np.where(mask, 1e38, np.nan), mask=mask)])

    def reads_all(y, target, mask):
        e = mask * (y - target)
        return np.mean(e * e), 2 * e / e.size

    with pytest.raises(ValueError, match=r"step 1: target\[3, 1, 0\] is nan"):
        fit([masked], loss=reads_all)


def test_a_number_for_which_the_dtype_has_no_room_is_named():
    x = np.full((5, 2, 1), 1e300)
    with pytest.raises(
        ValueError, match=r"step 1: x\[0, 0, 0\] is 1e\+300, more than float32 has room for"
    ):
        fit([batch(x=x)])
    fit([batch(x=x)], dtype="float64")


@pytest.mark.parametrize("junk", [np.nan, 1e300])
def test_steps_past_the_end_do_not_matter(junk):
    x = np.ones((5, 2, 1))
    x[3:, 1] = junk
    lengths = np.array([5, 3])
    found = fit([batch(x=x, lengths=lengths)]).losses
    assert found == fit([batch(lengths=lengths)]).losses
