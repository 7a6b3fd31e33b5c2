"""Promises of every estimator that is trained: files, copies, interrupts, warm starts, and fits
that fail.
"""

import copy
import io
import math
import pickle
import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest

import xlstm
from tests.conftest import DATA
from tests.estimators.conftest import QUICK, driven, rewrite
from xlstm import models
from xlstm.estimators import (
    Forecaster,
    NotFittedError,
    SequenceClassifier,
    SequenceRegressor,
    SeriesError,
    TextModel,
    TiRexFeatures,
    ZeroShotForecaster,
)
from xlstm.layers.recurrent import CELLS
from xlstm.training import Interrupted, ProgressBar, Terminated


class Kind(NamedTuple):
    """An estimator, what it is fitted to, and what it then finds in that."""

    estimator: Any
    data: tuple[Any, ...]
    found: Callable[..., Any]

    def new(self, **options):
        return type(self.estimator)(**self.estimator.get_params() | options)


RNG = np.random.default_rng(0)
X = [RNG.normal(size=(n, 2)) for n in RNG.integers(1, 8, 60)]
MEANS = np.array([x.mean() for x in X])
VERSE = "to be or not to be, that is the question:\n" * 40
FEW = {"hidden_size": 8, "backend": "numpy"}
KINDS = {
    "forecaster": Kind(
        Forecaster(**{**QUICK, "batch_size": 16}, name="wave", dtype="float32"),
        (driven()[0],),
        Forecaster.predict_quantiles,
    ),
    "sequence classifier": Kind(
        SequenceClassifier(**FEW, epochs=3),
        (X, np.where(MEANS > 0, "up", "down")),
        lambda made, X, y: made.predict_proba(X),
    ),
    "sequence regressor": Kind(
        SequenceRegressor(**FEW, epochs=3), (X, MEANS), lambda made, X, y: made.predict(X)
    ),
    "classifier of symbols": Kind(
        SequenceClassifier(**FEW, symbols=True, epochs=3),
        (
            [RNG.integers(0, 5, n).tolist() for n in RNG.integers(1, 8, 60)],
            np.where(MEANS > 0, "up", "down"),
        ),
        lambda made, X, y: made.predict_proba(X),
    ),
    "text model": Kind(
        TextModel(
            **FEW,
            embedding_size=8,
            steps=6,
            batch_size=4,
            length=20,
            dropout=0.1,
            schedule="cosine",
        ),
        (VERSE,),
        TextModel.nats,
    ),
}


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def trained(kind):
    """For tests that leave it as it is."""
    return kind.new().fit(*kind.data)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_and_its_file(interpreted, kind, cell, tmp_path):
    """An estimator that is read from its file gives the same numbers, bit for bit, and writes the
    same bytes.
    """
    options = {"cell": cell, "num_layers": 2, "dropout": 0.1}
    if "options" in kind.estimator.get_params():
        minimal = {"log_space": False}
        own = {"xlstm": {"num_heads": 2}, "slstm": None, "mlstm": None}
        own |= {"minlstm": minimal, "mingru": minimal}
        options["options"] = own.get(cell, {"layer_norm": True})
    made = kind.new(**options).fit(*kind.data)
    path = tmp_path / "m"
    made.save(path)
    again = type(made).load(path, "numpy")
    np.testing.assert_array_equal(kind.found(again, *kind.data), kind.found(made, *kind.data))
    assert again.get_params() == made.get_params()
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "again", [lambda made: pickle.loads(pickle.dumps(made)), copy.copy, copy.deepcopy]
)
def test_copies(kind, trained, again):
    """Before fit and after; what is made of one does not touch the other."""
    assert again(kind.estimator).get_params() == kind.estimator.get_params()
    other = again(trained)
    before = kind.found(trained, *kind.data)
    assert other.trained_.losses == trained.trained_.losses
    np.testing.assert_array_equal(kind.found(other, *kind.data), before)
    other.set_params(seed=1).fit(*kind.data)
    assert np.any(kind.found(other, *kind.data) != before)
    np.testing.assert_array_equal(kind.found(trained, *kind.data), before)


@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt])
def test_a_fit_that_fails_changes_nothing(kind, trained, error):
    def fail(now):
        if now.total == 3:
            raise error

    made = copy.copy(trained).set_params(callbacks=[fail], seed=1)
    before = dict(vars(made))
    with pytest.raises(error):
        made.fit(*kind.data)
    assert vars(made) == before
    np.testing.assert_array_equal(kind.found(made, *kind.data), kind.found(trained, *kind.data))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)]
)
def test_interrupted_and_resumed(kind, trained, tmp_path, number, error):
    def stop(now):
        if now.total == 4:
            signal.raise_signal(number)

    part = kind.new(checkpoints=tmp_path, callbacks=[stop])
    with pytest.raises(error):
        part.fit(*kind.data)
    assert len(part.trained_.losses) == 4
    assert np.all(np.isfinite(kind.found(part, *kind.data)))  # what was best so far
    part.set_params(callbacks=(), resume=True).fit(*kind.data)
    assert {name: p.tobytes() for name, p in part.params_.items()} == {
        name: p.tobytes() for name, p in trained.params_.items()
    }
    with pytest.raises(ValueError, match="holds a run already"):
        part.set_params(resume=False).fit(*kind.data)


def test_a_warm_start_goes_on(kind, trained, tmp_path):
    """Also that of a model from a file."""
    trained.save(tmp_path / "m")
    made = type(trained).load(tmp_path / "m", "numpy").set_params(warm_start=True).fit(*kind.data)
    assert made.trained_.losses[0] < trained.trained_.losses[0]
    assert made.fit(*kind.data).trained_.losses[0] < trained.trained_.losses[0]


def test_a_progress_bar_on_a_terminal(kind, monkeypatch):
    """It appears after `SHORT` seconds where a user can see it and did not decide otherwise."""
    console = pytest.importorskip("rich.console")

    def shown(options=None, terminal=True, run=lambda fit: fit(), **parameters):
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        run(lambda: kind.new(**parameters).fit(*kind.data, **(options or {})))
        return "epoch 1/" in stream.getvalue()

    monkeypatch.setattr("xlstm.training.callbacks.SHORT", math.inf)
    assert not shown()
    assert shown({"progress": True})
    monkeypatch.setattr("xlstm.training.callbacks.SHORT", -1.0)
    assert shown()
    assert not shown({"progress": False})
    assert not shown({"progress": lambda now: None})
    assert not shown(terminal=False)
    assert not shown(callbacks=[ProgressBar(console.Console(quiet=True))])
    with ThreadPoolExecutor(1) as pool:
        assert not shown(run=lambda fit: pool.submit(fit).result())
    for name, value in (("rich", None), ("multiprocessing", Mock())):  # a worker has a parent
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, value)
            assert not shown()
    with pytest.raises(TypeError, match="progress is 3, expected True, False, 'auto' or a func"):
        kind.new().fit(*kind.data, progress=3)


def test_it_says_that_it_is_not_fitted(kind, tmp_path):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        kind.found(kind.estimator, *kind.data)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        kind.estimator.save(tmp_path / "m")


# tests/attacks/test_hostile_files.py damages descriptions of forecasters; None is left out.
DAMAGE = {
    "forecaster": [
        ("fitted", {"intervals.levels": None}, "intervals.levels is None, expected an array"),
        ("fitted", {"test": 3}, "test is 3, expected an object"),
        ("fitted.test", {"spread": None}, "spread is None, expected an array"),
        ("fitted.params", {"head.b": np.zeros(7, "float32")}, "has shape"),
        ("fitted.params", {"head.b": np.full(6, np.nan, "float32")}, "is not finite"),
        ("fitted", {"scaling.units": np.zeros((1, 1))}, "scaling.units has 0"),
        ("fitted", {"spread": np.ones((6, 1), "float32")}, "spread is an array of float32 "),
    ],
    "sequence classifier": [("settings", {"units": 3}, "units")],
    "sequence regressor": [
        ("facts", {"table_": 1}, "table_ is 1"),
        ("facts", {"feature_names_in_": 3}, "feature_names_in_ is 3"),
        ("fitted", {"mean_": np.ones((2, 1))}, "mean_ has shape"),
    ],
    "text model": [
        ("settings", {"hidden_size": 5}, "has shape"),
        ("fitted", {"vocabulary": "ab"}, "vocabulary is 'ab'"),
    ],
}


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_files_that_are_refused(kind, trained, tmp_path, monkeypatch):
    """If another version of xlstm wrote a file, the error says so, and what to do."""
    path = tmp_path / "m"
    name = trained.KIND
    for version in (xlstm.__version__, "0.0.9"):
        end = r"\)"
        if version == "0.0.9":
            end += f"; xlstm '0.0.9' wrote the file, and this is xlstm {xlstm.__version__}: fit"
            end += " or train again, or install that version to load it"
        for place, change, words in DAMAGE[name]:
            trained.save(path)
            with monkeypatch.context() as patch:
                patch.setattr("xlstm.core.version.__version__", version)
                rewrite(path, name, place, change)
            with pytest.raises(ValueError, match=f"not a sound {name} .*{words}.*{end}$"):
                type(trained).load(path)


def test_files_of_another_kind_name_the_call_that_reads_them(kind, trained, tmp_path):
    path = tmp_path / "m"
    trained.save(path)
    words = f"kind is '{trained.KIND}', expected '%s'; {type(trained).__name__}.load(path) reads it"
    with pytest.raises(ValueError, match=re.escape(words % "model")):
        models.load(path)
    other = TextModel if trained.KIND == "forecaster" else Forecaster
    with pytest.raises(ValueError, match=re.escape(words % other.KIND)):
        other.load(path)
    models.save(path, trained.model_, trained.params_)
    words = f"kind is 'model', expected '{trained.KIND}'; models.load(path) reads it"
    with pytest.raises(ValueError, match=re.escape(words)):
        type(trained).load(path)


@pytest.mark.parametrize("name", sorted(DAMAGE.keys() - {"forecaster"}))
def test_files_of_arrays_under_their_names(name):
    """Files without a tree, as version 0.1.0 wrote them, give the same predictions."""
    estimator, data, find = KINDS[name]
    path = DATA / f"estimators/{name.replace(' ', '_')}.safetensors"
    found = find(type(estimator).load(path, "numpy"), *data)
    with np.load(path.with_name("predictions.npz")) as recorded:
        np.testing.assert_allclose(found, recorded[name], rtol=1e-4, atol=1e-6)


def test_errors_that_name_a_value_are_pickled():
    error = pickle.loads(pickle.dumps(SeriesError("ZeroShotForecaster", 3, 1e300, "too far")))
    assert (error.row, str(error)) == (3, "ZeroShotForecaster: values[3] is 1e+300, too far")


def test_public_names_of_estimators_are_for_users():
    """Names of parameters and of results of `fit` aside."""
    conventions = {"fit", "get_params", "set_params", "score", "predict", "KIND"}
    own = {
        Forecaster: {"backtest", "plot", "predict_quantiles", "sample", "settings"},
        SequenceClassifier: {"predict_proba", "prepared"},
        SequenceRegressor: {"prepared"},
        TextModel: {"generate", "nats", "perplexity", "stream"},
        ZeroShotForecaster: {"backtest", "predict_quantiles"},
        TiRexFeatures: {"fit_transform", "get_feature_names_out", "transform"},
    }
    for kind, names in own.items():
        public = {name for name in dir(kind) if not name.startswith("_") and name[-1] != "_"}
        public -= {field.name for field in fields(kind)}
        assert public - conventions - {"load", "save"} == names
