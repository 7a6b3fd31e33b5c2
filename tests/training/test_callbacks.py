"""Callbacks, metrics, and what shows the progress of a run."""

import io

import numpy as np
import pytest

import xlstm
from tests.training.runs import EPOCHS, at, fit, history, plain, same
from xlstm import losses
from xlstm.arrays.convert import to_numpy
from xlstm.data import Sequences
from xlstm.models.sequence import SequenceModel
from xlstm.training import Callback, MovingAverage, ProgressBar, TensorBoard, evaluate
from xlstm.training.evaluation import metrics_of


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


METRICS = {"mae": losses.mae, "close": lambda y, target: abs(y - target) < 0.3}


@pytest.mark.parametrize("batch_size", [7, 40])
def test_metrics_are_means_over_the_targets_that_count(be, rng, batch_size):
    """Whatever the batches, the ends of sequences and the weights: those of 0 leave targets out,
    others count alike.
    """
    X = [rng.normal(size=(n, 2)) for n in rng.integers(1, 9, 40)]
    labels, weights = ([rng.integers(0, 2, len(x)) * scale for x in X] for scale in (1, 0.5))
    data = Sequences(X, labels, weights, batch_size=batch_size, every_step=True)
    model = SequenceModel(xlstm.LSTM(2, 3, batch_first=True), 2)
    params = model.init(0, be)
    metrics = {
        "hits": lambda y, target: be.xp.argmax(y, axis=-1) == target,
        "entropy": losses.cross_entropy,
    }
    loss, found = evaluate(model, params, data, losses.cross_entropy, metrics=metrics)
    assert loss == pytest.approx(found["entropy"])
    logits = np.concatenate([to_numpy(model(params, be.asarray(x[None]))[0])[0] for x in X])
    counts = np.concatenate(weights) > 0
    truth = np.concatenate(labels)
    assert found["hits"] == pytest.approx(np.mean((logits.argmax(axis=1) == truth)[counts]))


def test_metrics_of_a_run(tmp_path):
    seen = []
    whole = fit(plain, tmp_path / "a", metrics=METRICS, callbacks=[seen.append])
    same(fit(plain), whole)
    assert {name: len(values) for name, values in whole.metrics.items()} == {
        "mae": EPOCHS,
        "close": EPOCHS,
    }
    assert [seen[0].metrics, seen[-1].metrics["mae"]] == [{}, whole.metrics["mae"][-2]]
    assert history(tmp_path / "a", "metrics.close") == whole.metrics["close"]
    fit(plain, tmp_path / "b", metrics=METRICS, callbacks=[at(7)])
    assert fit(plain, tmp_path / "b", metrics=METRICS, resume=True).metrics == whole.metrics


def test_a_metric_has_a_number_for_each_target():
    model, data, _ = plain()
    with pytest.raises(TypeError, match=r"metrics\['a'\] returned"):
        evaluate(model, model.init(0, "numpy"), data, metrics={"a": lambda y, target: y[:0]})


def fails(y, target):
    raise TypeError("of the user")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda y: y, r"^train: metrics\['a'\] takes \(y\), expected \(y, target\)$"),
        (lambda y, target, *, axis: y, r"takes \(y, target, \*, axis\), expected"),
        (fails, "^of the user$"),
    ],
)
def test_a_metric_takes_outputs_and_targets(metric, words):
    """Training does not begin with another; an error within the metric is the user's own."""
    steps = []
    with pytest.raises(TypeError, match=words):
        fit(plain, metrics={"a": metric}, callbacks=[steps.append])
    assert bool(steps) == (metric is fails)


def test_a_metric_may_hide_its_signature():
    """Some functions in C do."""
    assert [*metrics_of("it", {"a": max})] == ["a"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar(terminal, monkeypatch, capsys):
    """A bar on a terminal, which an error closes, too, and lines elsewhere."""
    rich = pytest.importorskip("rich.console")
    text = io.StringIO()
    monkeypatch.setattr("xlstm.training.callbacks.EVERY", 0.0)
    bar = ProgressBar(rich.Console(file=text, force_terminal=terminal, width=200))
    fit(plain, callbacks=[bar], metrics=METRICS)
    for words, shown in (
        ("epoch 3/3  loss 0.", True),
        ("  close 0.", True),
        ("\x1b[?25h", terminal),
        ("left", terminal),
        ("step 5/5", not terminal),
    ):
        assert (words in text.getvalue()) == shown
    with pytest.raises(ZeroDivisionError):
        fit(plain, callbacks=[bar, at(2, lambda: 1 / 0)])
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h")
    for shown in (np.True_, False):
        fit(plain, progress=shown, epochs=1)
        assert ("epoch 1/1  loss 0." in capsys.readouterr().err) == shown


def test_curves_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = fit(plain, callbacks=[TensorBoard(tmp_path)], metrics=METRICS)
    found = EventAccumulator(str(tmp_path), {"tensors": 0})
    found.Reload()
    for tag, values, every in (
        ("loss", trained.losses, 1),
        ("validation loss", trained.validations, 5),
        ("validation mae", trained.metrics["mae"], 5),
    ):
        curve = [(e.step, float(e.tensor_proto.float_val[0])) for e in found.Tensors(tag)]
        assert curve == [
            (k * every, pytest.approx(value, rel=1e-6)) for k, value in enumerate(values, 1)
        ]
