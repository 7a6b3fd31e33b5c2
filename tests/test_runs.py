"""Runs of training: one that was stopped and resumed gives the bits of one that was not; callbacks; the step."""

import errno
import json
import math
import os
import pickle
import random
import shutil
import signal
import threading
import warnings

import numpy as np
import pytest

import xlstm
from tests import kills
from tests.conftest import make_backend
from xlstm.data import Streams, Windows, writing
from xlstm.models.sequence import SequenceModel
from xlstm.training import (
    Callback,
    Clip,
    EarlyStopping,
    Interrupted,
    MovingAverage,
    ReduceOnPlateau,
    Step,
    TensorBoard,
    Terminated,
    checkpoint,
    find_learning_rate,
    losses,
    optimizers,
    schedules,
    train,
)
from xlstm.training import folder as folders

EPOCHS = 3


def streams(length=10):
    v = np.sin(np.arange(201) / 3.0)
    return Streams(v[:-1, None], v[1:, None], 4, length)  # 5 batches of 4 streams


def windows(rng):
    x = rng.normal(size=(40, 6, 1))
    return Windows(x, x.sum(axis=1), batch_size=9)  # 5 batches, the last one smaller


def plain():
    model = SequenceModel(xlstm.LSTM(1, 3), 1)
    return model, streams(), {"validation": streams(25)}


def random_masks():
    model = SequenceModel(xlstm.LSTM(1, 3, num_layers=2, dropout=0.3, zoneout=0.1), 1)
    return model, streams(), {"averaging": 0.8, "clip": 0.1}


def shuffled():
    rng = np.random.default_rng(0)
    model = SequenceModel(xlstm.GRU(1, 3), 1, last=True)
    plateau = ReduceOnPlateau(0.05, factor=0.5, patience=0)
    return model, windows(rng), {"validation": windows(rng), "callbacks": [plateau], "accumulate": 3}


KINDS = (plain, random_masks, shuffled)


def fit(kind, folder=None, **options):
    model, data, given = kind()
    callbacks = [*given.pop("callbacks", ()), *options.pop("callbacks", ())]
    rate = callbacks[0] if callbacks and isinstance(callbacks[0], ReduceOnPlateau) else 0.05
    params = model.init(0, make_backend("numpy", "float32"))
    options = {"epochs": EPOCHS, "seed": 5, **given, **options}
    return train(model, params, data, optimizers.adam(rate), checkpoints=folder, callbacks=callbacks, **options)


def same(one, two):
    assert one.params.keys() == two.params.keys()
    for name, p in one.params.items():
        assert p.tobytes() == two.params[name].tobytes(), name
    assert one.losses == two.losses
    assert one.validations == two.validations
    assert one.best_epoch == two.best_epoch
    assert one.stopped_early == two.stopped_early


def at(total):
    return lambda now: now.total == total


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_stopped_at_any_step_and_resumed(kind, tmp_path):
    whole = fit(kind)
    for k in range(1, len(whole.losses) + 1):
        folder = tmp_path / str(k)
        part = fit(kind, folder, callbacks=[at(k)], every=7)
        assert len(part.losses) == k
        assert part.stopped_early
        same(whole, fit(kind, folder, resume=True))
    same(whole, fit(kind, folder, resume=True))  # a run that is over


def test_stopped_again_and_again(tmp_path):
    whole = fit(shuffled)
    for k in range(2, len(whole.losses), 2):
        fit(shuffled, tmp_path, callbacks=[at(k)], resume=True)
    same(whole, fit(shuffled, tmp_path, resume=True))


def test_in_mixed_precision(tmp_path, monkeypatch):
    """The scale of gradients and its count of good steps go on, too: float32 stands in for the lower precision."""
    from xlstm.arrays.backend import backend_of
    from xlstm.training.precision import Mixed

    monkeypatch.setattr(Mixed, "below", lambda self, home: backend_of(home, "float32"))
    options = {"precision": Mixed(scale=8.0, every=4), "accumulate": 2}
    whole = fit(random_masks, **options)
    for k in range(1, len(whole.losses)):
        fit(random_masks, tmp_path / str(k), callbacks=[at(k)], **options)
        same(whole, fit(random_masks, tmp_path / str(k), resume=True, **options))


def test_steps_end_the_last_epoch(tmp_path):
    whole = fit(shuffled, epochs=None, steps=13)
    assert (len(whole.losses), len(whole.validations), whole.stopped_early) == (13, 3, False)
    for k in range(1, 13):
        fit(shuffled, tmp_path / str(k), callbacks=[at(k)], epochs=None, steps=13)
        for _ in range(2):
            same(whole, fit(shuffled, tmp_path / str(k), resume=True, epochs=None, steps=13))
    assert fit(plain, epochs=2, steps=99).stopped_early is False
    with pytest.raises(ValueError, match="epochs and steps are None, expected one of them"):
        fit(plain, epochs=None)


def test_more_epochs_go_on(tmp_path):
    fit(plain, tmp_path, epochs=2)
    same(fit(plain), fit(plain, tmp_path, resume=True))


def test_what_a_callback_has_ended_is_over(tmp_path):
    model, data, _ = plain()
    params = model.init(0, "numpy")
    options = {"epochs": 9, "validation": data, "callbacks": [EarlyStopping(2)], "checkpoints": tmp_path}
    one = train(model, params, data, optimizers.sgd(1e-12), **options)
    assert len(one.validations) < 9
    same(one, train(model, params, data, optimizers.sgd(1e-12), resume=True, **options))


def test_files_that_are_kept(tmp_path):
    trained = fit(plain, tmp_path, every=4, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.safetensors", "history.jsonl", "step-000000012.safetensors", "step-000000015.safetensors"]
    best = folders.read(tmp_path / "best.safetensors")
    assert best.about["best_epoch"] == trained.best_epoch
    lines = folders.read_history(tmp_path / "history.jsonl")
    assert [line["loss"] for line in lines if "loss" in line] == trained.losses
    assert [line["validation"] for line in lines if "validation" in line] == trained.validations


def test_the_history_of_steps_that_are_repeated_is_replaced(tmp_path):
    trained = fit(plain, tmp_path, every=4)
    (tmp_path / "step-000000015.safetensors").unlink()
    fit(plain, tmp_path, resume=True)
    lines = folders.read_history(tmp_path / "history.jsonl")
    assert [line["loss"] for line in lines if "loss" in line] == trained.losses


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGINT, Interrupted, None), (signal.SIGTERM, Terminated, 143)]
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, caplog, number, kind, code):
    def send(now):
        if now.total == 8:
            signal.raise_signal(number)

    whole, handler = fit(plain), signal.getsignal(number)
    with pytest.raises(kind, match=r"stopped after epoch 2, step 3 by signal .*resume=True goes on from") as caught:
        fit(plain, tmp_path, progress=send)
    assert signal.getsignal(number) is handler
    assert "goes on from" in caplog.text
    assert len(caught.value.trained.losses) == 8
    assert caught.value.trained.validations == whole.validations[:1]
    if code is not None:
        assert caught.value.code == code
    same(whole, fit(plain, tmp_path, resume=True))


def test_a_signal_while_weights_are_judged(tmp_path):
    model, data, given = plain()
    validation, count = given["validation"], []

    class Signalling:
        def __len__(self):
            return len(validation)

        def batches(self, rng=None):
            count.append(1)
            if len(count) == 3:  # a checkpoint looks at the first batch, too
                signal.raise_signal(signal.SIGINT)
            yield from validation.batches()

    params = model.init(0, make_backend("numpy", "float32"))
    options = {"epochs": EPOCHS, "seed": 5, "checkpoints": tmp_path}
    with pytest.raises(Interrupted, match="epoch 2, step 5"):
        train(model, params, data, optimizers.adam(0.05), validation=Signalling(), **options)
    again = train(model, params, data, optimizers.adam(0.05), validation=validation, resume=True, **options)
    same(fit(plain), again)


def test_a_second_signal_acts_at_once():
    def send(now):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was not raised")

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(plain, progress=send)
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_another_thread(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(fit(plain, tmp_path)))
    thread.start()
    thread.join()
    same(fit(plain), found[0])


class FullDisk:
    """A disk that has no room from one write to another."""

    def __init__(self, monkeypatch, first, last=math.inf):
        self.count, self.first, self.last, self.write = 0, first, last, writing.write
        monkeypatch.setattr(writing, "write", self)

    def __call__(self, path, blob):
        self.count += 1
        if self.first <= self.count <= self.last:
            raise OSError(errno.ENOSPC, "not saved, No space left on device", str(path))
        self.write(path, blob)


def test_a_full_disk(tmp_path, monkeypatch):
    whole = fit(plain)
    FullDisk(monkeypatch, 5)
    with pytest.warns(RuntimeWarning) as caught:
        trained = fit(plain, tmp_path, every=3)
    same(whole, trained)
    words = [str(warning.message) for warning in caught]
    assert len(words) == 2
    assert "No space left" in words[0]
    assert "training goes on, and the next checkpoint tries again" in words[0]
    assert words[1].startswith("train: step 15 is not on disk")
    assert trained.unsaved in words[1]
    assert "newest checkpoint is that of step 6" in trained.unsaved
    monkeypatch.undo()
    same(whole, fit(plain, tmp_path, resume=True))


def test_a_disk_that_was_full_for_a_while(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 2, 3)
    with pytest.warns(RuntimeWarning, match="training goes on") as caught:
        trained = fit(plain, tmp_path, every=3)
    assert len(caught) == 1
    assert trained.unsaved == ""
    assert folders.find(tmp_path).about["total"] == 15


def test_a_folder_that_goes_away_is_made_again(tmp_path):
    def remove(now):
        if now.total == 7:
            shutil.rmtree(tmp_path / "run")

    trained = fit(plain, tmp_path / "run", progress=remove, every=2)
    assert trained.unsaved == ""
    same(trained, fit(plain, tmp_path / "run", resume=True))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole = fit(plain, tmp_path, every=4)
    newest = folders.Folder(tmp_path, 1).checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="an older checkpoint is taken"):
        same(whole, fit(plain, tmp_path, resume=True))
    for path in folders.Folder(tmp_path, 1).checkpoints():
        path.write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            fit(plain, tmp_path, resume=True)


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    """Whichever bit is flipped, the file is refused, or says what it said; an older one takes its place in a run."""
    whole = fit(plain)
    fit(plain, tmp_path / "a", every=4, keep=9, callbacks=[at(8)])
    path = folders.Folder(tmp_path / "a", 1).checkpoints()[-1]
    blob, sound, refused = path.read_bytes(), folders.read(path), []
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
            refused.append(bit)
            assert str(path) in str(error)  # noqa: PT017 (not every bit is one of a refusal)
            continue
        assert (found.about, found.value, found.arrays.keys()) == (sound.about, sound.value, sound.arrays.keys())
        assert all(array.tobytes() == sound.arrays[name].tobytes() for name, array in found.arrays.items())
    assert len(refused) > 450
    for bit in draw.sample(refused, 6):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        folder = tmp_path / str(bit)
        shutil.copytree(tmp_path / "a", folder)
        (folder / path.name).write_bytes(bytes(damaged))
        with pytest.warns(RuntimeWarning, match="an older checkpoint is taken"):
            same(whole, fit(plain, folder, resume=True))


def rewritten(path, place, value):
    """Write a checkpoint anew, with its digest, with another value at a place of its description or of its values."""
    arrays, config = checkpoint.load(path, folders.KIND)
    *outer, last = place.split("/")
    inner = config
    for name in outer:
        inner = inner[name] if isinstance(inner, dict) else inner[int(name)]
    if value is None:
        del inner[last]
    else:
        inner[last if isinstance(inner, dict) else int(last)] = value
    checkpoint.save(path, arrays, folders.KIND, config)


WRONG = [
    ("about/epoch", 10**9, "epoch 1000000000, step 3 does not go with the rest of it"),
    ("about/epoch", -1, "epoch is -1, expected 1 or more"),
    ("about/epoch", 2.0, "epoch is 2.0, expected a whole number"),
    ("about/ended", 1, "ended is 1, expected True or False"),
    ("about/ended", True, "epoch 2, step 3 does not go with"),
    ("about/total", None, "total is None, expected a whole number"),
    ("about/total", 9, "losses is an array of float64 of shape .8,., expected an array of float64 of shape .9,."),
    ("about/updates", -1, "updates is -1, expected 0 or more"),
    ("about/updates", 9, "does not go with"),
    ("about/skipped", 9, "does not go with"),
    ("about/best_epoch", 3, "does not go with"),
    ("about/done", True, "done is True, expected a whole number"),
    ("about/seconds", "1", "seconds is '1', expected a number"),
    ("about/loss", [], r"loss is \[\], expected a number"),
    ("about", 3, "it has no description or no values"),
    ("value/dict/params/dict/head.W", "x", "params head.W is 'x', expected an array of float32 of shape"),
    ("value/dict/params/dict/head.W", {"array": "params.head.b", "dtype": "float32"}, "params head.W is an array"),
    ("value/dict/params/dict/head.W", {"array": "params.head.W", "dtype": "float64"}, "params head.W is an array"),
    ("value/dict/params/dict/head.W", None, "params is .*, expected a dict of "),
    ("value/dict/params", 3, "params is 3, expected a dict of"),
    ("value/dict/slots/dict/m", "x", "slots m is 'x', expected a dict of"),
    ("about/optimizer_step", -1, "optimizer_step is -1, expected 0 or more"),
    ("about/scale", 0.0, "scale is 0.0, expected 0 < scale"),
    ("about/good", None, "good is None, expected a whole number"),
    ("value/dict/params/dict/head.W", {"array": "params.head.W", "dtype": "float99"}, "float99"),
    ("about/weight", "x", "weight is 'x', expected a number"),
    ("about/batches", 0.5, "batches is 0.5, expected a whole number"),
    ("value/dict/losses", "x", "losses is 'x', expected an array of float64"),
    ("value/dict/order", {"dict": {}}, "not a sound checkpoint"),
    ("value/dict/masks", "x", "not a sound checkpoint"),
    ("value/dict/callbacks/0/dict/mean", 3, "mean is 3, expected a dict of"),
    ("value/dict/callbacks/0", 3, "not a sound checkpoint"),
    ("value/dict/callbacks", [], "not a sound checkpoint"),
]


@pytest.mark.parametrize(("place", "value", "words"), WRONG)
def test_descriptions_and_values_are_checked(tmp_path, place, value, words):
    """Those of a checkpoint whose digest is right."""
    fit(random_masks, tmp_path, callbacks=[at(8)])
    path = folders.Folder(tmp_path, 1).checkpoints()[-1]
    path = path.rename(tmp_path / "one")
    rewritten(path, place, value)
    with pytest.raises(ValueError, match=words) as caught:
        fit(random_masks, resume=path, progress=lambda now: pytest.fail("it trains"))
    assert "one: not a sound checkpoint" in str(caught.value)


@pytest.mark.parametrize("value", [{"scale": -1.0}, {"best": "x"}, {"bad": 0.5}, {"scale": None}])
def test_the_state_of_a_plateau_is_checked(tmp_path, value):
    fit(shuffled, tmp_path, callbacks=[at(8)])
    path = folders.Folder(tmp_path, 1).checkpoints()[-1]
    for name, one in value.items():
        rewritten(path, f"value/dict/callbacks/0/dict/{name}", one)
    with pytest.raises(ValueError, match="not a sound checkpoint"):
        fit(shuffled, resume=path, progress=lambda now: pytest.fail("it trains"))


def test_a_description_that_is_wrong_gives_way_to_an_older_checkpoint(tmp_path):
    fit(shuffled, tmp_path, every=4, keep=9, callbacks=[at(8)])
    whole = fit(shuffled)
    rewritten(folders.Folder(tmp_path, 1).checkpoints()[-1], "about/updates", -1)
    with pytest.warns(RuntimeWarning, match="updates is -1, expected 0 or more.*an older checkpoint is taken"):
        same(whole, fit(shuffled, tmp_path, resume=True))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (optimizers.adam(0.1), optimizers.adam(0.2), r"its optimizer is .*rate=0\.1\).*, expected .*rate=0\.2\)"),
        (optimizers.adam(0.1), optimizers.sgd(0.1), "its optimizer is .*adam.*, expected .*sgd"),
        (optimizers.adam(0.1), optimizers.adam(0.1, betas=(0.9, 0.9)), r"'b2': 0\.999.*, expected .*'b2': 0\.9[^9]"),
        (
            optimizers.by_name({"*.b": None}, optimizers.sgd(0.1)),
            optimizers.by_name({"*.b": None}, optimizers.sgd(0.3)),
            r"rate=0\.1\).*, expected .*rate=0\.3\)",
        ),
        (optimizers.sgd(schedules.cosine(0.1, 20)), optimizers.sgd(schedules.cosine(0.2, 20)), r"rate=0\.1"),
        (optimizers.sgd(schedules.cosine(0.1, 10)), optimizers.sgd(schedules.cosine(0.1, 20)), None),
        (
            optimizers.sgd(schedules.warmup(3, schedules.step_decay(0.1, 5))),
            optimizers.sgd(schedules.warmup(4, schedules.step_decay(0.1, 5))),
            "steps=3.*, expected .*steps=4",
        ),
        (optimizers.sgd(lambda step: 0.1), optimizers.sgd(lambda step: 0.1), None),
    ],
)
def test_another_optimizer_is_refused(tmp_path, one, other, words):
    """The error begins shortly before the two differ; a longer run may have a longer cosine."""
    model, data, _ = plain()
    params = model.init(0, "numpy")
    train(model, params, data, one, epochs=1, checkpoints=tmp_path)
    if words is None:
        assert len(train(model, params, data, other, epochs=2, checkpoints=tmp_path, resume=True).losses) == 10
        return
    with pytest.raises(ValueError, match=words):
        train(model, params, data, other, epochs=2, checkpoints=tmp_path, resume=True)


def test_what_may_change_in_a_run_that_goes_on(tmp_path):
    """How long it trains, where and how often it saves, and what looks on."""
    patient = {"callbacks": [EarlyStopping(50), at(7)], "every": 4}
    fit(plain, tmp_path / "a", epochs=2, **patient)
    more = {"keep": 1, "patience": 60, "callbacks": [lambda now: False], "steps": 99, "resume": tmp_path / "a"}
    same(fit(plain), fit(plain, tmp_path / "b", **more))


def test_what_a_killed_process_left_is_deleted(tmp_path):
    (tmp_path / ".xlstm-0123.tmp").write_bytes(b"half")
    fit(plain, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_any_of_the_checkpoints_can_be_resumed_from(tmp_path):
    whole = fit(plain, tmp_path / "a", every=4, keep=9)
    same(whole, fit(plain, tmp_path / "b", resume=tmp_path / "a" / "step-000000008.safetensors"))
    same(whole, fit(plain, tmp_path / "b", resume=True))
    same(whole, fit(plain, resume=tmp_path / "a" / "best.safetensors"))


REFUSED = [
    (ValueError, {"resume": True, "checkpoints": None}, "checkpoints names no folder"),
    (ValueError, {"resume": False}, "holds a run already .step-000000015.safetensors.; resume=True goes on"),
    (FileNotFoundError, {"resume": "nowhere", "checkpoints": None}, "nowhere: no such file"),
    (ValueError, {"accumulate": 2}, "of another run: its accumulate is 1, expected 2"),
    (ValueError, {"validation": None}, "its first batch of validation is '........', expected None"),
    (ValueError, {"averaging": 0.5}, r"its callbacks is \[\], expected \['MovingAverage\(decay=0.5\)'\]"),
    (ValueError, {"clip": 1.0}, r"its callbacks is \[\], expected \['Clip\(norm=1.0, value=None\)'\]"),
    (ValueError, {"seed": 6}, "its seed is 5, expected 6"),
    (ValueError, {"loss": xlstm.losses.mae}, "its loss function is '<function mse>', expected '<function mae>'"),
    (ValueError, {"validation": streams()}, "its first batch of validation is '........', expected '........'"),
    (ValueError, {"every": 0}, "every is 0"),
    (ValueError, {"keep": 0}, "keep is 0"),
    (ValueError, {"seed": np.random.default_rng(0)}, "seed: expected a whole number"),
    (TypeError, {"callbacks": [3]}, r"callbacks\[0\] is 3, expected a training.Callback or a function"),
    (TypeError, {"callbacks": [EarlyStopping]}, "callbacks.0. is .*expected a training.Callback"),
]


@pytest.mark.parametrize(("error", "change", "words"), REFUSED)
def test_refusals(tmp_path, error, change, words):
    fit(plain, tmp_path)
    options = {"folder": tmp_path, "resume": True, **change}
    if "checkpoints" in options:
        options["folder"] = options.pop("checkpoints")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=words):
        fit(plain, **options)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_model_is_refused(tmp_path):
    fit(plain, tmp_path)
    with pytest.raises(ValueError, match=r"its model is .*LSTM.*expected .*GRU"):
        fit(shuffled, tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        fit(plain, tmp_path / "run", progress=lambda now: pytest.fail("it trains"))


def test_a_history_that_is_none(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"total": 1}) + "\n" + '{"total": 2, "lo')
    assert folders.read_history(path) == [{"total": 1}]
    path.write_text("3\n")
    with pytest.raises(ValueError, match="line 1 is not readable"):
        folders.read_history(path)


def test_random_kills():
    """`python -m tests.kills` does so 200 times."""
    assert kills.check(8, seed=1).startswith("8 kills")


# Callbacks and the step


def test_accumulated_batches_are_one_large_batch(rng):
    model = SequenceModel(xlstm.LSTM(2, 3), 1, last=True)
    params = model.init(0, make_backend("numpy", "float64"))
    x, y = rng.normal(size=(12, 5, 2)), rng.normal(size=(12, 1))
    mask = rng.random((12, 1)) < 0.7
    small, large = (Windows(x, y, mask, batch_size=size) for size in (4, 12))
    one = Step(model, optimizers.sgd(0.3), accumulate=3)
    state = one.init(params)
    for k, batch in enumerate(small.batches()):
        state, taken = one(state, batch)
        assert taken.updated == (k == 2)
    other = Step(model, optimizers.sgd(0.3))
    expected, _ = other(other.init(params), next(large.batches()))
    for name, p in expected.params.items():
        np.testing.assert_allclose(state.params[name], p, rtol=1e-12, atol=1e-14)


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


def test_clipping_values(rng):
    grads = {"a": rng.normal(size=5), "b": 10 * rng.normal(size=3)}
    clipped = Clip(norm=1.0, value=0.5).gradients(grads, optimizers.global_norm(grads))
    by_value = optimizers.clip_value(grads, 0.5)
    expected = optimizers.clip_global_norm(by_value, 1.0)
    assert all(np.array_equal(clipped[name], g) for name, g in expected.items())
    with pytest.raises(ValueError, match="expected a limit"):
        Clip()


def test_reduce_on_plateau_follows_torch():
    torch = pytest.importorskip("torch")
    values = [1.0, 0.9, 0.91, 0.92, 0.9, 0.8999999, 0.7, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.5, 0.6, 0.6, 0.6]
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2, threshold=1e-4)
    ours = ReduceOnPlateau(0.1, factor=0.3, patience=2)
    for value in values:
        peer.step(value)
        ours.epoch(type("Progress", (), {"validation": value}))
        assert ours(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize(
    "made",
    [
        lambda rate: optimizers.sgd(rate),
        lambda rate: optimizers.adam(optimizers.warmup(2, optimizers.warmup(2, rate))),
        lambda rate: optimizers.by_name({"*.b": optimizers.sgd(rate)}, optimizers.sgd(1)),
    ],
)
def test_a_plateau_is_the_learning_rate_and_a_callback(made):
    """One without the other changes nothing, and is refused before training."""
    model, data, given = plain()
    given = {"epochs": 1, "validation": data} | given
    start, plateau, seen = model.init(0, "numpy"), ReduceOnPlateau(0.05), []
    wanted = "ReduceOnPlateau as its learning rate, expected it in callbacks, too"
    with pytest.raises(ValueError, match=f"^train: optimizer has a {wanted}"):
        train(model, start, data, made(plateau), callbacks=[ReduceOnPlateau(0.05), seen.append], **given)
    assert not seen
    train(model, start, data, made(plateau), callbacks=[plateau], **given)
    for rate in (0.05, optimizers.warmup(2, optimizers.cosine(0.05, 9)), optimizers.step_decay(0.05, 2)):
        with pytest.raises(ValueError, match=r"^train: callbacks has a ReduceOnPlateau, expected it as the learning r"):
            train(model, start, data, made(rate), callbacks=[plateau, seen.append], **given)
    assert not seen


def test_a_function_may_ask_a_plateau_for_its_rate():
    model, data, given = plain()
    start, plateau = model.init(0, "numpy"), ReduceOnPlateau(0.05, patience=0, threshold=0.9)
    rates = []

    def halved(step):
        rates.append(plateau(step) / 2)
        return rates[-1]

    given = {"epochs": 3, "validation": data} | given
    train(model, start, data, optimizers.adam(halved), callbacks=[plateau], **given)
    assert (max(rates), min(rates)) == (0.025, pytest.approx(0.0025))
    outer = ReduceOnPlateau(optimizers.warmup(2, plateau))
    train(model, start, data, optimizers.adam(outer), callbacks=[outer, plateau], **given)
    for one in (outer, plateau):
        with pytest.raises(ValueError, match=r"^train: optimizer has a ReduceOnPlateau as its learning rate, expected"):
            train(model, start, data, optimizers.adam(outer), callbacks=[one], **given)
    adam = optimizers.adam(plateau)
    own = optimizers.Optimizer(adam.init, adam.update)  # nothing is known of an optimiser of your own
    for optimizer in (own, optimizers.by_name({"*.b": own}, optimizers.sgd(0.05))):
        train(model, start, data, optimizer, callbacks=[plateau], **given)


def test_callbacks_see_the_weights_and_all_that_happens():
    seen = []

    class Watch(Callback):
        def begin(self, params):
            seen.append("begin")

        def step(self, now):
            seen.append((now.epoch, now.step))
            assert set(now.params) == set(start)
            assert now.norm > 0

        def epoch(self, now):
            seen.append(now.validation)
            return now.epoch == 2

    model, data, given = plain()
    start = model.init(0, "numpy")
    trained = train(model, start, data, optimizers.adam(0.05), epochs=9, callbacks=[Watch()], **given)
    steps = [[(epoch, k) for k in range(1, 6)] for epoch in (1, 2)]
    assert seen == ["begin", *steps[0], trained.validations[0], *steps[1], trained.validations[1]]
    assert trained.stopped_early


def test_a_callback_that_needs_validation():
    for callback in (EarlyStopping(3), ReduceOnPlateau(0.1)):
        with pytest.raises(ValueError, match="needs validation data"):
            fit(random_masks, callbacks=[callback])


def test_a_callback_is_used_again():
    average = MovingAverage(0.9)
    model, data, _ = plain()
    params = model.init(0, "numpy")
    one, two = (
        train(model, params, data, optimizers.adam(0.05), epochs=1, callbacks=[average]).params for _ in range(2)
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_signals_that_the_shell_ignores_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trained = fit(plain, progress=lambda now: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    same(fit(plain), trained)


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
    _, dy = xlstm.losses.mse(y, next(data.batches()).target.astype("float32"))
    grads = model.backward(params, saved, dy)[0]
    assert norms[0] == pytest.approx(math.hypot(grads["head.b"][0], *grads["head.W"][0]), rel=1e-6)
    train(model, params, data, optimizer, checkpoints=tmp_path, epochs=1, clip=0.1)
    again = train(model, params, data, optimizer, checkpoints=tmp_path, resume=True, epochs=2, clip=0.1)
    same(trained, again)


def test_the_learning_rate_finder_stops_where_training_diverges():
    model, data, _ = plain()
    params = model.init(0, "numpy")
    found = find_learning_rate(model, params, data, optimizers.sgd, low=1e-4, high=1e4, steps=60)
    assert len(found.rates) == len(found.losses) < 60
    assert found.losses[-1] > found.losses.min()
    assert 1e-3 < found.suggestion < found.rates[-1]
    fast, slow = (
        train(model, params, data, optimizers.sgd(rate), epochs=4).losses[-1]
        for rate in (found.suggestion, found.suggestion / 100)
    )
    assert fast < slow
    with pytest.raises(ValueError, match=r"high is 0\.1, expected more than low"):
        find_learning_rate(model, params, data, low=1.0, high=0.1)
    with pytest.raises(ValueError, match="steps is 3, expected 10 or more"):
        find_learning_rate(model, params, data, steps=3)


@pytest.mark.parametrize("low", [1e-5, 1e3])
def test_the_learning_rate_finder_suggests_a_rate_between_low_and_high(low):
    """A first batch that happens to be easy is no minimum, and no reason to stop."""
    model, data, _ = plain()
    params, calls = model.init(0, "numpy"), []

    def lucky(y, target, mask):
        loss, dy = losses.mse(y, target, mask)
        calls.append(loss)
        return (0.01 * loss if len(calls) == 1 else loss), dy

    found = find_learning_rate(model, params, data, optimizers.sgd, low=low, high=1e4, steps=40, loss=lucky)
    assert np.argmin(found.losses) == 0
    assert len(found.losses) > 4  # of 40 the first tenth does not count
    best = 4 + np.argmin(found.losses[4:])
    assert low <= found.suggestion <= 1e4
    assert found.suggestion == pytest.approx(max(low, found.rates[best] / 10))


def test_the_learning_rate_finder_says_where_training_diverges_at_once():
    model, data, _ = plain()
    never = lambda y, target, mask: (math.nan * y[0, 0, 0], y)  # noqa: E731
    with pytest.raises(ValueError, match=r"the loss diverges after 0 steps, at a rate of 0\.01; lower low"):
        find_learning_rate(model, model.init(0, "numpy"), data, low=0.01, loss=never)


def test_curves_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = fit(plain, callbacks=[TensorBoard(tmp_path)])
    found = EventAccumulator(str(tmp_path), {"tensors": 0})
    found.Reload()
    curves = {}
    for tag in ("loss", "validation loss"):
        curves[tag] = [(e.step, float(e.tensor_proto.float_val[0])) for e in found.Tensors(tag)]
    assert curves["loss"] == [(k, pytest.approx(loss, rel=1e-6)) for k, loss in enumerate(trained.losses, 1)]
    expected = [(5 * k, pytest.approx(loss, rel=1e-6)) for k, loss in enumerate(trained.validations, 1)]
    assert curves["validation loss"] == expected


# Moments at which runs are stopped, and folders that are shared, full or cut


def test_a_run_stopped_in_its_last_step_is_validated(tmp_path):
    whole = fit(shuffled, epochs=None, steps=13)
    fit(shuffled, tmp_path, callbacks=[at(13)], epochs=None, steps=13)
    same(whole, fit(shuffled, tmp_path, resume=True, epochs=None, steps=13))


def test_later_checkpoints_of_another_run_are_not_mixed_with(tmp_path):
    fit(plain, tmp_path / "a", every=4)
    fit(plain, tmp_path / "b", every=4, callbacks=[at(5)])
    with pytest.raises(ValueError, match=r"a holds later checkpoints than .*step-000000005.*delete them"):
        fit(plain, tmp_path / "a", resume=tmp_path / "b")


def test_a_history_that_a_power_cut_has_cut(tmp_path):
    trained = fit(plain, tmp_path, every=4, callbacks=[at(9)])
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"\n" + bytes(30))
    for total in (11, 13):
        trained = fit(plain, tmp_path, resume=True, every=4, callbacks=[at(total)])
    lines = folders.read_history(path)
    assert [line["loss"] for line in lines if "loss" in line][-4:] == trained.losses[-4:]


def test_validations_that_are_repeated_are_there_once(tmp_path):
    fit(plain, tmp_path, every=5, callbacks=[at(10)])
    fit(plain, tmp_path, every=5, resume=True)
    lines = folders.read_history(tmp_path / "history.jsonl")
    assert [line["total"] for line in lines if "validation" in line] == [5, 10, 15]


def test_the_best_one_is_written_when_there_is_room_again(tmp_path, monkeypatch):
    model, data, _ = plain()
    params = model.init(0, "numpy")
    # The first epoch is the best; its two files cannot be written.
    FullDisk(monkeypatch, 1, 1)
    options = {"epochs": 3, "validation": data, "checkpoints": tmp_path}
    with pytest.warns(RuntimeWarning, match="training goes on"):
        trained = train(model, params, data, optimizers.sgd(1e-30), **options)
    assert trained.best_epoch == 1
    assert folders.read(tmp_path / "best.safetensors").about["best_epoch"] == 1
    assert trained.unsaved == ""


def test_a_history_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def append(path, text):
        raise OSError(errno.ENOSPC, "No space left", str(path))

    monkeypatch.setattr(writing, "append", append)
    with pytest.warns(RuntimeWarning, match="the history is not on disk"):
        assert "history" in fit(plain, tmp_path).unsaved


def test_one_run_in_a_folder_at_a_time(tmp_path):
    inner = []

    def begin(now):
        if now.total == 2:
            with pytest.raises(ValueError, match="another run is going on in"):
                fit(plain, tmp_path, resume=True)
            inner.append(1)

    same(fit(plain), fit(plain, tmp_path, progress=begin))
    assert inner == [1]


class Remembers(Callback):
    def __init__(self, value):
        self.value = value

    def state(self):
        return {} if self.value is None else {"value": self.value}

    def restore(self, state):
        self.value = state.get("value")


@pytest.mark.parametrize("value", [math.inf, -math.inf, None, [1, (2.5, "x")], np.arange(3)])
def test_states_of_callbacks(tmp_path, value):
    fit(plain, tmp_path, callbacks=[Remembers(value), at(3)])
    found = Remembers(0)
    fit(plain, tmp_path, callbacks=[found], resume=True)
    assert str(found.value) == str(value)


@pytest.mark.parametrize("value", [{1, 2}, np.array(["a"]), {1: 2}])
def test_states_that_cannot_be_saved_are_refused_before_training(tmp_path, value):
    with pytest.raises(TypeError, match=r"the state of Remembers\.value is .*expected numbers, text"):
        fit(plain, tmp_path, callbacks=[Remembers(value)], progress=lambda now: pytest.fail("it trains"))


def test_a_callback_may_answer_as_numpy_does():
    assert len(fit(plain, callbacks=[lambda now: np.bool_(now.total == 3)]).losses) == 3
    assert len(fit(plain, callbacks=[lambda now: "no"]).losses) == 15


def test_other_data_are_refused(tmp_path):
    model, data, _ = plain()
    params = model.init(0, "numpy")
    train(model, params, data, optimizers.sgd(0.1), epochs=1, checkpoints=tmp_path)
    other = Streams(2 * data.x, data.target, 4, 10)
    with pytest.raises(ValueError, match="another run: its first batch is"):
        train(model, params, other, optimizers.sgd(0.1), epochs=2, checkpoints=tmp_path, resume=True)


def test_an_error_within_an_epoch_leaves_the_state_before_it(tmp_path):
    def fail(now):
        if now.total == 8:
            raise RuntimeError("of a user")

    with pytest.raises(RuntimeError, match="of a user"):
        fit(plain, tmp_path, progress=fail)
    assert folders.find(tmp_path).about["total"] == 8
    same(fit(plain), fit(plain, tmp_path, resume=True))


def test_more_to_accumulate_than_there_is_is_refused():
    with pytest.raises(ValueError, match="accumulate is 16, but there are 15 batches in all"):
        fit(plain, accumulate=16)


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_small_weights_do_not_shrink_accumulated_gradients(factor):
    x, y = np.ones((8, 3, 1)), np.arange(8.0)[:, None]
    model = SequenceModel(xlstm.LSTM(1, 2), 1, last=True)
    params = model.init(0, make_backend("numpy", "float64"))
    data = Windows(x, y, np.full((8, 1), factor), batch_size=4)
    plain_data = Windows(x, y, batch_size=8)
    one = train(model, params, data, optimizers.sgd(0.1), epochs=1, accumulate=2)
    other = train(model, params, plain_data, optimizers.sgd(0.1), epochs=1)
    for name, p in other.params.items():
        np.testing.assert_allclose(one.params[name], p, rtol=1e-10)


def test_interrupts_are_pickled():
    for error in (Interrupted("a", None, 2), Terminated("b", None, 15)):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.signal) == (type(error), str(error), error.signal)
