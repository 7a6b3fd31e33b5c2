"""A run that was stopped, or killed, and resumed gives the bits of one that was left alone."""

import os
import pickle
import signal
import threading

import numpy as np
import pytest

from tests.training import kills
from tests.training.runs import (
    at,
    fit,
    never,
    plain,
    random_masks,
    same,
    shuffled,
    steps_on_disk,
    streams,
)
from xlstm import losses
from xlstm.arrays.backend import backend_of
from xlstm.precision import Mixed
from xlstm.training import (
    Callback,
    EarlyStopping,
    Interrupted,
    ReduceOnPlateau,
    Terminated,
    evaluate,
    optimizers,
)
from xlstm.training.steps import text_of


def pairs_of(data):
    """The batches of windows as pairs with the sequences first."""
    return [(batch.x.swapaxes(0, 1), batch.target) for batch in data.batches()]


def loader_of(data, shuffle):
    torch = pytest.importorskip("torch")
    examples = torch.utils.data.TensorDataset(
        torch.from_numpy(data.x), torch.from_numpy(data.target)
    )
    return torch.utils.data.DataLoader(examples, batch_size=data.batch_size, shuffle=shuffle)


def pairs():
    model, data, options = shuffled()
    return model, pairs_of(data), {**options, "validation": pairs_of(data)}


def loader():
    model, data, options = shuffled()
    return model, loader_of(data, True), {**options, "validation": loader_of(data, False)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (plain, {}),
        (random_masks, {}),
        (random_masks, {"precision": Mixed(scale=8.0, every=4), "accumulate": 2}),
        (shuffled, {}),
        (shuffled, {"epochs": None, "steps": 13}),
        (pairs, {}),
        (loader, {"epochs": None, "steps": 13}),
    ],
)
def test_stopped_at_any_step_and_resumed(tmp_path, monkeypatch, kind, options):
    """The scale of gradients goes on, too; float32 stands in for a lower precision."""
    monkeypatch.setattr(Mixed, "below", lambda self, home: backend_of(home, "float32"))
    whole = fit(kind, **options)
    for k in range(1, len(whole.losses) + 1):
        folder = tmp_path / str(k)
        part = fit(kind, folder, callbacks=[at(k)], every=7, **options)
        assert len(part.losses) == k
        same(whole, fit(kind, folder, resume=True, **options))
    same(whole, fit(kind, folder, resume=True, **options))  # a run that is over


def test_the_text_of_an_optimiser_stays():
    """Checkpoints tell by it whether a run is the same."""
    text = text_of(optimizers.adam(1e-3))
    assert "'eps': 1e-08, 'decay': 0.0, 'decoupled': False" in text


def test_iterables_of_batches_and_pairs(tmp_path):
    """They are those of `Windows`; of an iterator there is one epoch, which cannot be resumed."""
    model, data, _ = shuffled()
    params = model.init(0, "numpy")
    forms = [list(data.batches()), pairs_of(data), loader_of(data, False)]
    expected = evaluate(model, params, data)
    assert [evaluate(model, params, one) for one in (*forms, iter(forms[0]))] == [expected] * 4
    # shuffled
    assert (
        len({fit(shuffled, data=forms[1], epochs=1, seed=seed).losses[0] for seed in range(9)}) > 1
    )
    same(*(fit(shuffled, data=one) for one in forms[:2]))
    once = fit(shuffled, tmp_path, data=iter(forms[1]), epochs=None, steps=99)
    assert (len(once.losses), len(once.validations)) == (5, 1)
    with pytest.raises(ValueError, match="resume=True"):
        fit(shuffled, tmp_path, data=iter(forms[1]), resume=True)


def test_a_run_that_is_over_stays_over(tmp_path):
    """Steps end it within an epoch, or a callback."""
    whole = fit(shuffled, epochs=None, steps=13)
    assert (len(whole.losses), len(whole.validations), whole.stopped_early) == (13, 3, False)
    options = {"epochs": 9, "callbacks": [EarlyStopping(2)], "optimizer": optimizers.sgd(1e-12)}
    one = fit(plain, tmp_path, **options)
    assert len(one.validations) < 9
    same(one, fit(plain, tmp_path, resume=True, **options))


def test_what_may_change_in_a_run_that_goes_on(tmp_path):
    """How long it trains, where and how often it saves, what looks on, and a schedule."""
    patient = {"callbacks": [EarlyStopping(50), at(7)], "every": 4}
    fit(plain, tmp_path / "a", epochs=2, **patient)
    more = {
        "keep": 1,
        "patience": 60,
        "callbacks": [lambda now: False],
        "steps": 99,
        "resume": True,
    }
    same(fit(plain), fit(plain, tmp_path / "a", **more))
    for name, schedule in (
        ("cosine", optimizers.cosine),
        ("function", lambda rate, steps: lambda step: rate),
    ):
        one, other = (optimizers.sgd(schedule(0.1, steps)) for steps in (10, 20))
        fit(plain, tmp_path / name, one, epochs=1)
        assert len(fit(plain, tmp_path / name, other, epochs=2, resume=True).losses) == 10


class Remembers(Callback):
    def __init__(self, value):
        self.value = value

    def state(self):
        return {} if self.value is None else {"value": self.value}

    def restore(self, state):
        self.value = state.get("value")


@pytest.mark.parametrize("value", [np.inf, None, [1, (2.5, "x")], np.arange(3)])
def test_states_of_callbacks(tmp_path, value):
    fit(plain, tmp_path, callbacks=[Remembers(value), at(3)])
    found = Remembers(0)
    fit(plain, tmp_path, callbacks=[found], resume=True)
    assert str(found.value) == str(value)


REFUSED = [
    ({"resume": False}, "holds a run already .step-000000015.safetensors.; resume=True goes on"),
    ({"accumulate": 2}, "accumulate is 1, expected 2"),
    ({"averaging": 0.5}, r"callbacks is \[\], expected \['MovingAverage"),
    ({"seed": 6}, "seed is 5, expected 6"),
    ({"loss": losses.mae}, "loss function is '<function mse>'"),
    ({"data": streams(factor=2.0)}, "first batch is '........', expected '........'"),
    ({"kind": shuffled}, r"model is .*LSTM.*expected .*GRU"),
    ({"optimizer": optimizers.sgd(0.1)}, "optimizer is .*adam.*, expected .*sgd"),
    (
        {"optimizer": optimizers.adam(0.05, betas=(0.9, 0.9))},
        r"'b2': 0\.999.*, expected .*'b2': 0\.9[^9]",
    ),
    ({"kind": random_masks, "callbacks": [EarlyStopping(3)]}, "needs validation data"),
    ({"kind": random_masks, "callbacks": [ReduceOnPlateau(0.05)]}, "needs validation data"),
    ({"callbacks": [Remembers({1, 2})]}, r"the state of Remembers\.value"),
]


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("over")
    fit(plain, folder)
    return folder


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_does_not_go_with_a_run_is_refused_before_training(over, change, words):
    before = {path: path.read_bytes() for path in over.iterdir()}
    with pytest.raises((ValueError, TypeError), match=words):
        fit(**{"kind": plain, "checkpoints": over, "resume": True, "progress": never, **change})
    assert {path: path.read_bytes() for path in over.iterdir()} == before


def test_an_error_within_an_epoch_leaves_the_state_before_it(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(plain, tmp_path, progress=at(8, lambda: 1 / 0))
    assert steps_on_disk(tmp_path) == 8
    same(fit(plain), fit(plain, tmp_path, resume=True))


# Signals and kills


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGINT, Interrupted, None), (signal.SIGTERM, Terminated, 143)],
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, caplog, number, kind, code):
    whole = fit(plain)
    handler = signal.getsignal(number)
    with pytest.raises(
        kind, match=r"stopped after epoch 2, step 3 by signal .*resume=True goes on from"
    ) as caught:
        fit(plain, tmp_path, progress=at(8, lambda: signal.raise_signal(number)))
    assert signal.getsignal(number) is handler
    assert "goes on from" in caplog.text
    assert len(caught.value.trained.losses) == 8
    assert caught.value.trained.validations == whole.validations[:1]
    assert getattr(caught.value, "code", None) == code
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.signal) == (kind, str(caught.value), number)
    same(again.trained, caught.value.trained)
    same(whole, fit(plain, tmp_path, resume=True))


def test_a_signal_while_weights_are_judged(tmp_path):
    validation = streams(25)
    count = []

    class Signalling:
        def __len__(self):
            return len(validation)

        def batches(self, rng=None):
            count.append(1)
            if len(count) == 3:  # a checkpoint looks at the first batch, too
                signal.raise_signal(signal.SIGINT)
            yield from validation.batches()

    with pytest.raises(Interrupted, match="epoch 2, step 5"):
        fit(plain, tmp_path, validation=Signalling())
    same(fit(plain), fit(plain, tmp_path, resume=True))


def test_a_second_signal_acts_at_once():
    def send(now):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was not raised")

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(plain, progress=send)
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_that_the_shell_ignores_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trained = fit(plain, progress=lambda now: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    same(fit(plain), trained)


def test_training_in_another_thread(tmp_path):
    trained = []
    thread = threading.Thread(target=lambda: trained.append(fit(plain, tmp_path)))
    thread.start()
    thread.join()
    same(fit(plain), trained[0])


@pytest.mark.usefixtures("interpreted")
def test_random_kills():
    """`python -m tests.training.kills` does so 200 times."""
    assert kills.check(4, seed=1).startswith("4 kills")
