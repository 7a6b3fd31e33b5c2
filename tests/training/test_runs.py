"""Runs of training: one that was stopped and resumed gives the bits of one that was not; callbacks; the step."""

import errno
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import threading
import warnings

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.training import kills
from xlstm import checkpoint, losses
from xlstm.arrays.backend import backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.data import Sequences, Streams, Windows, writing
from xlstm.models.sequence import SequenceModel
from xlstm.precision import Mixed
from xlstm.training import (
    Callback,
    Clip,
    EarlyStopping,
    Interrupted,
    MovingAverage,
    ProgressBar,
    ReduceOnPlateau,
    Step,
    TensorBoard,
    Terminated,
    evaluate,
    find_learning_rate,
    optimizers,
    train,
)
from xlstm.training import folder as folders

EPOCHS = 3


def streams(length=10, factor=1.0):
    v = np.sin(np.arange(201) / 3.0)
    return Streams(factor * v[:-1, None], v[1:, None], 4, length)  # 5 batches of 4 streams


def windows(rng):
    x = rng.normal(size=(40, 6, 1))
    return Windows(x, x.sum(axis=1), batch_size=9)  # 5 batches, the last one smaller


def plain():
    return SequenceModel(xlstm.LSTM(1, 3), 1), streams(), {"validation": streams(25)}


def random_masks():
    model = SequenceModel(xlstm.LSTM(1, 3, num_layers=2, dropout=0.3, zoneout=0.1), 1)
    return model, streams(), {"averaging": 0.8, "clip": 0.1}


def shuffled():
    rng = np.random.default_rng(0)
    model = SequenceModel(xlstm.GRU(1, 3), 1, last=True)
    plateau = ReduceOnPlateau(0.05, factor=0.5, patience=0)
    return model, windows(rng), {"validation": windows(rng), "callbacks": [plateau], "accumulate": 3}


def pairs_of(data):
    """The batches of windows as pairs with the sequences first."""
    return [(batch.x.swapaxes(0, 1), batch.target) for batch in data.batches()]


def loader_of(data, shuffle):
    torch = pytest.importorskip("torch")
    examples = torch.utils.data.TensorDataset(torch.from_numpy(data.x), torch.from_numpy(data.target))
    return torch.utils.data.DataLoader(examples, batch_size=data.batch_size, shuffle=shuffle)


def pairs():
    model, data, options = shuffled()
    return model, pairs_of(data), {**options, "validation": pairs_of(data)}


def loader():
    model, data, options = shuffled()
    return model, loader_of(data, True), {**options, "validation": loader_of(data, False)}


def fit(kind, folder=None, optimizer=None, data=None, **options):
    model, batches, given = kind()
    callbacks = [*given.pop("callbacks", ()), *options.pop("callbacks", ())]
    rate = callbacks[0] if callbacks and isinstance(callbacks[0], ReduceOnPlateau) else 0.05
    params = model.init(0, make_backend("numpy", "float32"))
    options = {"epochs": EPOCHS, "seed": 5, **given, **options}
    optimizer = optimizer or optimizers.adam(rate)
    return train(
        model, params, batches if data is None else data, optimizer, checkpoints=folder, callbacks=callbacks, **options
    )


def same(one, two):
    assert one.params.keys() == two.params.keys()
    for name, p in one.params.items():
        assert p.tobytes() == two.params[name].tobytes(), name
    assert one.losses == two.losses
    assert one.validations == two.validations
    assert one.best_epoch == two.best_epoch
    assert one.stopped_early == two.stopped_early


def at(total, do=lambda: True):
    return lambda now: now.total == total and do()


def newest(folder):
    return folders.Folder(folder, 1).checkpoints()[-1]


def lines_of(folder, name):
    return [line[name] for line in folders.read_history(folder / "history.jsonl") if name in line]


def never(now):
    pytest.fail("it trains")


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


def test_iterables_of_batches_and_pairs(tmp_path):
    """They are those of `Windows`; of an iterator there is one epoch, which cannot be resumed."""
    model, data, _ = shuffled()
    params, forms = model.init(0, "numpy"), [list(data.batches()), pairs_of(data), loader_of(data, False)]
    expected = evaluate(model, params, data)
    assert [evaluate(model, params, one) for one in (*forms, iter(forms[0]))] == [expected] * 4
    assert len({fit(shuffled, data=forms[1], epochs=1, seed=seed).losses[0] for seed in range(9)}) > 1  # shuffled
    same(*(fit(shuffled, data=one) for one in forms[:2]))
    once = fit(shuffled, tmp_path, data=iter(forms[1]), epochs=None, steps=99)
    assert (len(once.losses), len(once.validations)) == (5, 1)
    refused = [
        (ValueError, {"data": iter(forms[1]), "resume": True, "folder": tmp_path}, "does not go with resume=True"),
        (ValueError, {"data": iter(forms[1]), "epochs": 2}, "cannot begin anew, expected epochs=1, got 2"),
        (ValueError, {"validation": iter(forms[1])}, "validation is an iterator"),
        (ValueError, {"data": []}, "data has no batches"),
        (TypeError, {"data": 3}, "data is 3, expected Windows.* or pairs"),
        (TypeError, {"data": [{"x": 1}]}, "batch 1 is .*expected a pair .x, target. or an xlstm.data.Batch"),
        (ValueError, {"data": [(data.x, data.target[1:])]}, r"batch 1 has x of shape .* \(B, \.\.\.\)"),
    ]
    for error, options, words in refused:
        with pytest.raises(error, match=words):
            fit(shuffled, **options)


def test_steps_end_the_last_epoch():
    whole = fit(shuffled, epochs=None, steps=13)
    assert (len(whole.losses), len(whole.validations), whole.stopped_early) == (13, 3, False)
    assert fit(plain, epochs=2, steps=99).stopped_early is False


def test_what_a_callback_has_ended_is_over(tmp_path):
    options = {"epochs": 9, "callbacks": [EarlyStopping(2)], "optimizer": optimizers.sgd(1e-12)}
    one = fit(plain, tmp_path, **options)
    assert len(one.validations) < 9
    same(one, fit(plain, tmp_path, resume=True, **options))


def test_files_that_are_kept(tmp_path):
    (tmp_path / ".xlstm-0123.tmp").write_bytes(b"half")  # of a killed process
    trained = fit(plain, tmp_path, every=4, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.safetensors", "history.jsonl", "step-000000012.safetensors", "step-000000015.safetensors"]
    assert folders.read(tmp_path / "best.safetensors").about["best_epoch"] == trained.best_epoch
    assert lines_of(tmp_path, "loss") == trained.losses
    assert lines_of(tmp_path, "validation") == trained.validations


def test_the_history_of_what_is_repeated_is_replaced(tmp_path):
    """Steps, validations, and what a power cut has left of a line."""
    fit(plain, tmp_path, every=4, callbacks=[at(10)])
    newest(tmp_path).unlink()
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"\n" + bytes(30))
    trained = fit(plain, tmp_path, resume=True)
    assert lines_of(tmp_path, "loss") == trained.losses
    assert lines_of(tmp_path, "validation") == trained.validations


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGINT, Interrupted, None), (signal.SIGTERM, Terminated, 143)]
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, caplog, number, kind, code):
    send = at(8, lambda: signal.raise_signal(number))
    whole, handler = fit(plain), signal.getsignal(number)
    with pytest.raises(kind, match=r"stopped after epoch 2, step 3 by signal .*resume=True goes on from") as caught:
        fit(plain, tmp_path, progress=send)
    assert signal.getsignal(number) is handler
    assert "goes on from" in caplog.text
    assert len(caught.value.trained.losses) == 8
    assert caught.value.trained.validations == whole.validations[:1]
    assert getattr(caught.value, "code", None) == code
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.signal) == (kind, str(caught.value), number)
    same(whole, fit(plain, tmp_path, resume=True))


def test_a_signal_while_weights_are_judged(tmp_path):
    validation, count = streams(25), []

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


def fill_disk(monkeypatch, first, last=math.inf):
    """Leave no room on the disk from one write to another."""
    count, write = itertools.count(1), writing.write

    def limited(path, blob):
        if first <= next(count) <= last:
            raise OSError(errno.ENOSPC, "not saved, No space left on device", str(path))
        write(path, blob)

    monkeypatch.setattr(writing, "write", limited)


def test_a_full_disk(tmp_path, monkeypatch):
    whole = fit(plain)
    fill_disk(monkeypatch, 5)
    with pytest.warns(RuntimeWarning) as caught:
        trained = fit(plain, tmp_path, every=3)
    same(whole, trained)
    first, last = (str(warning.message) for warning in caught)
    assert "No space left" in first
    assert "training goes on, and the next checkpoint tries again" in first
    assert last.startswith("train: step 15 is not on disk")
    assert trained.unsaved in last
    assert "newest checkpoint is that of step 6" in trained.unsaved
    monkeypatch.undo()
    same(whole, fit(plain, tmp_path, resume=True))


def test_a_disk_that_was_full_for_a_while(tmp_path, monkeypatch):
    """The best epoch is the first, whose files come once there is room again."""
    fill_disk(monkeypatch, 1, 1)
    with pytest.warns(RuntimeWarning, match="training goes on") as caught:
        trained = fit(plain, tmp_path, optimizer=optimizers.sgd(1e-30))
    assert len(caught) == trained.best_epoch == 1
    assert trained.unsaved == ""
    assert folders.Folder(tmp_path, 1).newest().about["total"] == 15
    assert folders.read(tmp_path / "best.safetensors").about["best_epoch"] == 1


def test_a_history_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def append(path, text):
        raise OSError(errno.ENOSPC, "No space left", str(path))

    monkeypatch.setattr(writing, "append", append)
    with pytest.warns(RuntimeWarning, match="the history is not on disk"):
        assert "history" in fit(plain, tmp_path).unsaved


def test_a_folder_that_goes_away_is_made_again(tmp_path):
    remove = at(7, lambda: shutil.rmtree(tmp_path / "run"))
    trained = fit(plain, tmp_path / "run", progress=remove, every=2)
    assert trained.unsaved == ""
    same(trained, fit(plain, tmp_path / "run", resume=True))


def test_one_run_in_a_folder_at_a_time(tmp_path):
    refused = []

    def begin():
        with pytest.raises(ValueError, match="another run is going on in"):
            fit(plain, tmp_path, resume=True)
        refused.append(1)

    same(fit(plain), fit(plain, tmp_path, progress=at(2, begin)))
    assert refused == [1]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole = fit(plain, tmp_path, every=4)
    path = newest(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="an older checkpoint is taken"):
        same(whole, fit(plain, tmp_path, resume=True))
    rewritten(newest(tmp_path), "about/updates", -1)
    with pytest.warns(RuntimeWarning, match="updates is -1, expected 0 or more.*an older checkpoint is taken"):
        same(whole, fit(plain, tmp_path, resume=True))
    for path in folders.Folder(tmp_path, 1).checkpoints():
        path.write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            fit(plain, tmp_path, resume=True)


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    """Whichever bit is flipped, the file is refused, or says what it said."""
    fit(plain, tmp_path, callbacks=[at(8)])
    path = newest(tmp_path)
    blob, sound, refused = path.read_bytes(), folders.read(path), 0
    header = 8 + int.from_bytes(blob[:8], "little")
    draw = random.Random(0)
    bits = [*range(64), *draw.sample(range(64, 8 * header), 200), *draw.sample(range(8 * header, 8 * len(blob)), 200)]
    for bit in bits:
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            found = folders.read(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017 (not every bit is one of a refusal)
            continue
        assert (found.about, found.value, found.arrays.keys()) == (sound.about, sound.value, sound.arrays.keys())
        assert all(array.tobytes() == sound.arrays[name].tobytes() for name, array in found.arrays.items())
    assert refused > 450


def rewritten(path, place, value):
    """Write a checkpoint anew, with its digest, with another value at a place of its description or of its values."""
    arrays, config = checkpoint.load(path, folders.KIND)
    *outer, last = [int(name) if name.isdigit() else name for name in place.split("/")]
    inner = config
    for name in outer:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    checkpoint.save(path, arrays, folders.KIND, config)


PARAMS = "value/dict/params"
WRONG = [
    ("about/epoch", 10**9, "epoch 1000000000, step 3 does not go with the rest of it"),
    ("about/epoch", -1, "epoch is -1, expected 1 or more"),
    ("about/ended", 1, "ended is 1, expected True or False"),
    ("about/ended", True, "epoch 2, step 3 does not go with"),
    ("about/total", None, "total is None, expected a whole number"),
    ("about/total", 9, "losses is an array of float64 of shape .8,., expected an array of float64 of shape .9,."),
    ("about/updates", 9, "does not go with"),
    ("about/best_epoch", 3, "does not go with"),
    ("about/seconds", "1", "seconds is '1', expected a number"),
    ("about/scale", 0.0, "scale is 0.0, expected 0 < scale"),
    ("about", 3, "it has no description or no values"),
    (f"{PARAMS}/dict/head.W", "x", "params head.W is 'x', expected an array of float32 of shape"),
    (f"{PARAMS}/dict/head.W", {"array": "params.head.W", "dtype": "float64"}, "params head.W is an array"),
    (f"{PARAMS}/dict/head.W", {"array": "params.head.W", "dtype": "float99"}, "float99"),
    (PARAMS, 3, "params is 3, expected a dict of"),
    ("value/dict/order", {"dict": {}}, "not a sound"),
    ("value/dict/callbacks/0/dict/mean", 3, "mean is 3, expected a dict of"),
    ("value/dict/callbacks/1/dict/scale", -1.0, "scale is -1.0"),
    ("value/dict/callbacks", [], "not a sound"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A checkpoint of a run with everything that has a state, and what goes on with it."""
    folder, plateau = tmp_path_factory.mktemp("stopped"), ReduceOnPlateau(0.05)
    options = {"callbacks": [plateau], "optimizer": optimizers.adam(plateau), "validation": streams(25)}
    options["callbacks"].append(at(8))
    fit(random_masks, folder, **options)
    return newest(folder), options


@pytest.mark.parametrize(("place", "value", "words"), WRONG)
def test_descriptions_and_values_are_checked(tmp_path, stopped, place, value, words):
    """Those of a checkpoint whose digest is right."""
    sound, options = stopped
    rewritten(shutil.copy(sound, tmp_path / sound.name), place, value)
    with pytest.raises(ValueError, match=words) as caught:
        fit(random_masks, tmp_path, resume=True, progress=never, **options)
    assert f"{sound.name}: not a sound checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (optimizers.adam(0.1), optimizers.sgd(0.1), "its optimizer is .*adam.*, expected .*sgd"),
        (optimizers.adam(0.1), optimizers.adam(0.1, betas=(0.9, 0.9)), r"'b2': 0\.999.*, expected .*'b2': 0\.9[^9]"),
        (
            optimizers.by_name({"*.b": None}, optimizers.sgd(0.1)),
            optimizers.by_name({"*.b": None}, optimizers.sgd(0.3)),
            r"rate=0\.1\).*, expected .*rate=0\.3\)",
        ),
        (optimizers.sgd(optimizers.cosine(0.1, 10)), optimizers.sgd(optimizers.cosine(0.1, 20)), None),
        (optimizers.sgd(lambda step: 0.1), optimizers.sgd(lambda step: 0.1), None),
    ],
)
def test_another_optimizer_is_refused(tmp_path, one, other, words):
    """The error begins shortly before the two differ; a longer run may have a longer cosine."""
    fit(plain, tmp_path, one, epochs=1)
    if words is None:
        assert len(fit(plain, tmp_path, other, epochs=2, resume=True).losses) == 10
        return
    with pytest.raises(ValueError, match=words):
        fit(plain, tmp_path, other, epochs=2, resume=True)


def test_what_may_change_in_a_run_that_goes_on(tmp_path):
    """How long it trains, where and how often it saves, and what looks on."""
    patient = {"callbacks": [EarlyStopping(50), at(7)], "every": 4}
    fit(plain, tmp_path / "a", epochs=2, **patient)
    more = {"keep": 1, "patience": 60, "callbacks": [lambda now: False], "steps": 99, "resume": True}
    same(fit(plain), fit(plain, tmp_path / "a", **more))


class Remembers(Callback):
    def __init__(self, value):
        self.value = value

    def state(self):
        return {} if self.value is None else {"value": self.value}

    def restore(self, state):
        self.value = state.get("value")


REFUSED = [
    (ValueError, {"resume": True, "folder": None}, "checkpoints names no folder"),
    (ValueError, {"resume": False}, "holds a run already .step-000000015.safetensors.; resume=True goes on"),
    (ValueError, {"accumulate": 2}, "of another run: its accumulate is 1, expected 2"),
    (ValueError, {"validation": None}, "its first batch of validation is '........', expected None"),
    (ValueError, {"averaging": 0.5}, r"its callbacks is \[\], expected \['MovingAverage\(decay=0.5\)'\]"),
    (ValueError, {"seed": 6}, "its seed is 5, expected 6"),
    (ValueError, {"loss": losses.mae}, "its loss function is '<function mse>', expected '<function mae>'"),
    (ValueError, {"data": streams(factor=2.0)}, "its first batch is '........', expected '........'"),
    (ValueError, {"kind": shuffled}, r"its model is .*LSTM.*expected .*GRU"),
    (ValueError, {"epochs": None}, "epochs and steps are None, expected one of them"),
    (ValueError, {"averaging": 1.0}, "averaging is 1.0"),
    (ValueError, {"accumulate": 16}, "accumulate is 16, but there are 15 batches in all"),
    (ValueError, {"kind": random_masks, "callbacks": [EarlyStopping(3)]}, "needs validation data"),
    (ValueError, {"kind": random_masks, "callbacks": [ReduceOnPlateau(0.05)]}, "needs validation data"),
    (ValueError, {"seed": np.random.default_rng(0)}, "seed: expected a whole number"),
    (TypeError, {"callbacks": [EarlyStopping]}, "callbacks.0. is .*expected a training.Callback"),
    (TypeError, {"callbacks": [Remembers({1, 2})]}, r"the state of Remembers\.value is .*expected numbers, text"),
    (TypeError, {"callbacks": [Remembers(np.array(["a"]))]}, r"the state of Remembers\.value is .*expected numbers"),
]


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("over")
    fit(plain, folder)
    return folder


@pytest.mark.parametrize(("error", "change", "words"), REFUSED)
def test_refusals(over, error, change, words):
    before = {path: path.read_bytes() for path in over.iterdir()}
    with pytest.raises(error, match=words):
        fit(**{"kind": plain, "folder": over, "resume": True, "progress": never, **change})
    assert {path: path.read_bytes() for path in over.iterdir()} == before


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        fit(plain, tmp_path / "run", progress=never)


def test_a_history_that_is_none(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"total": 1}) + "\n" + '{"total": 2, "lo')
    assert folders.read_history(path) == [{"total": 1}]
    path.write_text("3\n")
    with pytest.raises(ValueError, match="line 1 is not readable"):
        folders.read_history(path)


def test_an_error_within_an_epoch_leaves_the_state_before_it(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(plain, tmp_path, progress=at(8, lambda: 1 / 0))
    assert folders.Folder(tmp_path, 1).newest().about["total"] == 8
    same(fit(plain), fit(plain, tmp_path, resume=True))


def test_random_kills():
    """`python -m tests.training.kills` does so 200 times."""
    assert kills.check(4, seed=1).startswith("4 kills")


# Callbacks and the step


def test_accumulated_batches_are_one_large_batch(rng):
    """Small weights of targets do not shrink their gradients."""
    model = SequenceModel(xlstm.LSTM(2, 3), 1, last=True)
    params = model.init(0, make_backend("numpy", "float64"))
    x, y = rng.normal(size=(12, 5, 2)), rng.normal(size=(12, 1))
    mask = 1e-3 * (rng.random((12, 1)) < 0.7)
    small, large = (Windows(x, y, mask, batch_size=size) for size in (4, 12))
    one = Step(model, optimizers.sgd(0.3), accumulate=3)
    state = one.init(params)
    for k, batch in enumerate(small.batches()):
        state, taken = one(state, batch)
        assert taken.updated == (k == 2)
    other = Step(model, optimizers.sgd(0.3))
    expected, _ = other(other.init(params), next(large.batches()))
    for name, p in expected.params.items():
        np.testing.assert_allclose(state.params[name], p, rtol=1e-10, atol=1e-14)


def test_a_loop_of_ones_own_is_train(rng):
    model, data, _ = random_masks()
    params = model.init(0, "numpy")
    step = Step(model, optimizers.adam(0.05), callbacks=[Clip(0.1)])
    state, found = step.init(params, seed=3), []
    for _ in range(2):
        state = state._replace(carried=None)
        for batch in data.batches():
            state, taken = step(state, batch)
            found.append(taken.loss)
    trained = train(model, params, data, optimizers.adam(0.05), epochs=2, clip=0.1, seed=3)
    assert trained.losses == found
    assert all(trained.params[name].tobytes() == p.tobytes() for name, p in state.params.items())


def test_reduce_on_plateau_follows_torch():
    torch = pytest.importorskip("torch")
    values = [1.0, 0.9, 0.91, 0.92, 0.9, 0.8999999, 0.7, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.5, 0.6, 0.6, 0.6]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2, threshold=1e-4)
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
    with pytest.raises(ValueError, match=r"^ReduceOnPlateau: it is a learning rate, expected it in callbacks of train"):
        fit(plain, optimizer=made(plateau))
    fit(plain, optimizer=made(plateau), callbacks=[plateau], epochs=1)
    with pytest.raises(ValueError, match=r"^ReduceOnPlateau: it is in callbacks, expected it as the learning rate"):
        fit(plain, optimizer=optimizers.sgd(0.05), callbacks=[ReduceOnPlateau(0.05)])


def test_callbacks_see_the_weights_and_all_that_happens():
    seen = []

    class Watch(Callback):
        def begin(self, params):
            seen.append("begin")

        def step(self, now):
            seen.append((now.epoch, now.step))
            assert "head.W" in now.params
            assert now.norm > 0

        def epoch(self, now):
            seen.append(now.validation)
            return now.epoch == 2

    trained = fit(plain, epochs=9, callbacks=[Watch()])
    steps = [[(epoch, k) for k in range(1, 6)] for epoch in (1, 2)]
    assert seen == ["begin", *steps[0], trained.validations[0], *steps[1], trained.validations[1]]
    assert trained.stopped_early


def test_a_callback_is_used_again():
    average = MovingAverage(0.9)
    same(*(fit(plain, epochs=1, callbacks=[average]) for _ in range(2)))


def test_a_callback_may_answer_as_numpy_does():
    assert len(fit(plain, callbacks=[lambda now: np.bool_(now.total == 3)]).losses) == 3
    assert len(fit(plain, callbacks=[lambda now: "no"]).losses) == 15


@pytest.mark.parametrize("value", [math.inf, -math.inf, None, [1, (2.5, "x")], np.arange(3)])
def test_states_of_callbacks(tmp_path, value):
    fit(plain, tmp_path, callbacks=[Remembers(value), at(3)])
    found = Remembers(0)
    fit(plain, tmp_path, callbacks=[found], resume=True)
    assert str(found.value) == str(value)


def test_frozen_parameters_stay_and_do_not_count_in_the_norm(tmp_path):
    model, data, _ = plain()
    params = model.init(0, "numpy")
    optimizer = optimizers.by_name({"recurrent.*": None}, optimizers.adam(0.05))
    norms = []
    options = {"epochs": 2, "clip": 0.1, "progress": lambda now: norms.append(now.norm)}
    trained = train(model, params, data, optimizer, **options)
    for name, p in params.items():
        assert (trained.params[name] is p) == name.startswith("recurrent.")
    y, _, saved = model.forward(params, next(data.batches()).x.astype("float32"))
    _, dy = losses.mse(y, next(data.batches()).target.astype("float32"))
    grads = model.backward(params, saved, dy)[0]
    assert norms[0] == pytest.approx(math.hypot(grads["head.b"][0], *grads["head.W"][0]), rel=1e-6)
    train(model, params, data, optimizer, checkpoints=tmp_path, epochs=1, clip=0.1)
    same(trained, train(model, params, data, optimizer, checkpoints=tmp_path, resume=True, epochs=2, clip=0.1))


METRICS = {"mae": losses.mae, "close": lambda y, target: abs(y - target) < 0.3}


@pytest.mark.parametrize("batch_size", [7, 40])
def test_metrics_are_means_over_the_targets_that_count(be, rng, batch_size):
    """Whatever the batches, the ends of sequences and the weights: those of 0 leave targets out, others count alike."""
    X = [rng.normal(size=(n, 2)) for n in rng.integers(1, 9, 40)]
    labels, weights = ([rng.integers(0, 2, len(x)) * scale for x in X] for scale in (1, 0.5))
    data = Sequences(X, labels, weights, batch_size=batch_size, every_step=True)
    model = SequenceModel(xlstm.LSTM(2, 3, batch_first=True), 2)
    params = model.init(0, be)
    metrics = {"hits": lambda y, target: be.xp.argmax(y, axis=-1) == target, "entropy": losses.cross_entropy}
    loss, found = evaluate(model, params, data, losses.cross_entropy, metrics=metrics)
    assert loss == pytest.approx(found["entropy"])
    logits = np.concatenate([to_numpy(model(params, be.asarray(x[None]))[0])[0] for x in X])
    counts, truth = np.concatenate(weights) > 0, np.concatenate(labels)
    assert found["hits"] == pytest.approx(np.mean((logits.argmax(axis=1) == truth)[counts]))


def test_metrics_of_a_run(tmp_path):
    seen = []
    whole = fit(plain, tmp_path / "a", metrics=METRICS, callbacks=[seen.append])
    same(fit(plain), whole)
    assert {name: len(values) for name, values in whole.metrics.items()} == {"mae": EPOCHS, "close": EPOCHS}
    assert [seen[0].metrics, seen[-1].metrics["mae"]] == [{}, whole.metrics["mae"][-2]]
    assert lines_of(tmp_path / "a", "metrics.close") == whole.metrics["close"]
    fit(plain, tmp_path / "b", metrics=METRICS, callbacks=[at(7)])
    assert fit(plain, tmp_path / "b", metrics=METRICS, resume=True).metrics == whole.metrics
    with pytest.raises(ValueError, match=r"its metrics is \['mae', 'close'\], expected \[\]"):
        fit(plain, tmp_path / "b", resume=True)
    for metrics, options, words in (
        ({"a": 3}, {}, r"metrics\['a'\] is 3, expected a function"),
        ([1], {}, r"metrics is \[1\], expected a dict of name to function"),
        ("", {}, r"metrics is '', expected a dict of name to function"),
        (METRICS, {"validation": None}, "metrics are computed on validation data, but there are none"),
        ({"a": lambda y, target: "good"}, {}, r"metrics\['a'\] returned 'good', expected numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            fit(plain, metrics=metrics, **options)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        *((some, f"metrics is {some!r}, expected a dict of name to function") for some in ([], "mae", 3)),
        ({"a": 3}, "metrics['a'] is 3, expected a function"),
        ({"a": lambda y, target: ()}, "metrics['a'] returned (), expected numbers"),
        ({"a": lambda y, target: None}, "metrics['a'] returned None, expected numbers"),
        (
            {"a": lambda y, target: y[:0]},
            "metrics['a'] returned an array of float32 of shape (0, 4, 1), expected numbers",
        ),
    ],
)
def test_metrics_to_evaluate_are_functions_that_return_numbers(metrics, words):
    model, data, _ = plain()
    with pytest.raises(TypeError, match=f"^evaluate: {re.escape(words)}$"):
        evaluate(model, model.init(0, "numpy"), data, metrics=metrics)


def test_arrays_and_numbers_are_no_functions():
    model, data, _ = plain()
    for stopped in (None, 3, np.ones(2)):
        with pytest.raises(TypeError, match=r"^evaluate: stopped is .*, expected a function"):
            evaluate(model, model.init(0, "numpy"), data, stopped=stopped)
    with pytest.raises(TypeError, match=r"^train: progress is an array of .*, expected a function"):
        fit(plain, progress=np.ones(2))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar(terminal, monkeypatch, capsys):
    """A bar on a terminal, which an error closes, too, and lines elsewhere."""
    rich, text = pytest.importorskip("rich.console"), io.StringIO()
    monkeypatch.setattr("xlstm.training.callbacks.EVERY", 0.0)
    bar = ProgressBar(rich.Console(file=text, force_terminal=terminal, width=200))
    fit(plain, callbacks=[bar], metrics=METRICS)
    assert "epoch 3/3  loss 0." in text.getvalue()
    assert ("  close 0." in text.getvalue(), "\x1b[?25h" in text.getvalue()) == (True, terminal)
    assert ("left" in text.getvalue(), "step 5/5" in text.getvalue()) == (terminal, not terminal)
    with pytest.raises(ZeroDivisionError):
        fit(plain, callbacks=[bar, at(2, lambda: 1 / 0)])
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h")
    for shown in (True, np.True_, np.False_, False):
        fit(plain, progress=shown, epochs=1)
        assert ("epoch 1/1  loss 0." in capsys.readouterr().err) == shown
    for console in (3, text, rich.Console):
        with pytest.raises(TypeError, match=r"^ProgressBar: console is .*, expected a rich\.console\.Console"):
            ProgressBar(console)


def find(**options):
    model, data, _ = plain()
    return find_learning_rate(model, model.init(0, "numpy"), data, **options)


def test_the_learning_rate_finder_stops_where_training_diverges():
    found = find(optimizer=optimizers.sgd, low=1e-4, high=1e4, steps=60)
    assert len(found.rates) == len(found.losses) < 60
    assert found.losses[-1] > 4 * found.losses[0] > found.losses[:-1].max()
    assert 1e-3 < found.suggestion < found.rates[-1]
    fast, slow = (fit(plain, None, optimizers.sgd(found.suggestion / k), epochs=4).losses[-1] for k in (1, 100))
    assert fast < slow


def test_the_learning_rate_finder_suggests_a_rate_between_low_and_high():
    """A first batch that happens to be easy is no minimum, and no reason to stop."""
    calls = []

    def lucky(y, target, mask):
        loss, dy = losses.mse(y, target, mask)
        calls.append(loss)
        return (0.01 * loss if len(calls) == 1 else loss), dy

    for low in (1e-5, 1e3):
        calls.clear()
        found = find(optimizer=optimizers.sgd, low=low, high=1e4, steps=40, loss=lucky)
        assert np.argmin(found.losses) == 0
        best = 4 + np.argmin(found.losses[4:])  # of 40 the first tenth does not count
        assert found.suggestion == pytest.approx(max(low, found.rates[best] / 10))


@pytest.mark.parametrize("steps", [10, 20, 100])
def test_the_learning_rate_finder_does_not_look_at_which_batches_are_easy(steps):
    """Batches whose losses differ far more than a step changes them: the rate is one at which the loss falls."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, 12, 2)) * rng.choice([0.3, 3.0], (96, 1, 1))
    data, model = Windows(x, x.sum(axis=(1, 2))[:, None], batch_size=8), SequenceModel(xlstm.LSTM(2, 8), 1, last=True)
    found = find_learning_rate(model, model.init(1, "numpy"), data, optimizers.adam, steps=steps)
    assert 1e-3 < found.suggestion <= 0.1


def test_refusals_of_the_learning_rate_finder():
    with pytest.raises(ValueError, match=r"high is 0\.1, expected more than low"):
        find(low=1.0, high=0.1)
    with pytest.raises(ValueError, match=r"the loss diverges after 0 steps, at a rate of 0\.01; lower low"):
        find(low=0.01, loss=lambda y, target, mask: (math.nan * y[0, 0, 0], y))


def test_the_learning_rate_finder_keeps_nothing_of_steps_that_it_does_not_take():
    """Rates of 2**50 steps would be 8 PiB."""

    def stops(y, target, mask):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        find(steps=2**50, loss=stops)


def test_curves_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = fit(plain, callbacks=[TensorBoard(tmp_path)], metrics=METRICS)
    found = EventAccumulator(str(tmp_path), {"tensors": 0})
    found.Reload()
    curves = [("loss", trained.losses, 1), ("validation loss", trained.validations, 5)]
    for tag, values, every in (*curves, ("validation mae", trained.metrics["mae"], 5)):
        curve = [(e.step, float(e.tensor_proto.float_val[0])) for e in found.Tensors(tag)]
        assert curve == [(k * every, pytest.approx(value, rel=1e-6)) for k, value in enumerate(values, 1)]
