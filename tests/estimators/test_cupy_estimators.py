"""Estimators on CuPy, from Python and from the command line."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest

from tests import gpu
from xlstm import optim, training
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel
from xlstm.models.tirex import PatchWindows, TiRex

gpu.needed()


WAVE = np.sin(np.arange(120) / 5)
ROWS = WAVE.reshape(20, 6)
VERSE = "to be or not to be, that is the question:\n" * 10
FEW = {"hidden_size": 4, "epochs": 4}
NETWORK = {"candidates": ["linear", "network"], "batch_size": 4}
TEXT = {"hidden_size": 8, "embedding_size": 4, "steps": 6, "batch_size": 2, "length": 10}
TIREX = TiRex(8, 2, 2, patch_size=4, input_ff_size=8, context=16)


def losses_of_tirex(backend, graph="auto"):
    windows = PatchWindows(TIREX, WAVE, horizon=4, stride=16, batch_size=2)
    params = TIREX.init(0, backend)
    return training.train(TIREX, params, windows, optim.adamw(2e-3), epochs=1, graph=graph).losses


ESTIMATES = {
    "classifier": lambda **be: (
        SequenceClassifier(**FEW, **be).fit(ROWS, np.arange(20) % 2).predict_proba(ROWS)
    ),
    "labels of steps": lambda **be: (
        SequenceClassifier(**FEW, **be).fit(ROWS, ROWS > 0).predict_proba(ROWS)
    ),
    "several labels": lambda **be: (
        SequenceClassifier(**FEW, **be).fit(ROWS, ROWS[:, :2] > 0).predict_proba(ROWS)
    ),
    "text": lambda **be: TextModel(**TEXT, **be).fit(VERSE).nats(VERSE),
    "forecaster": lambda **be: (
        Forecaster(window=4, horizon=2, **FEW, **NETWORK, **be).fit(WAVE).predict(WAVE, 5)
    ),
    "TiRex": losses_of_tirex,
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimators_give_what_they_give_on_numpy(name):
    """They capture steps by themselves, with the same bits as steps one by one, which are there for
    the asking.
    """
    found = []
    launched = []
    for options in ({}, {"graph": False}):
        with gpu.counted() as counted:
            found.append(ESTIMATES[name](backend="cupy", **options))
        launched.append(counted.of("graphs"))
    np.testing.assert_array_equal(*found)
    assert launched[0] > launched[1] == 0
    np.testing.assert_allclose(found[0], ESTIMATES[name](backend="numpy"), rtol=2e-3, atol=2e-4)


def test_the_main_job(monkeypatch, tmp_path):
    # whose threads wait for nobody, which takes less time here
    monkeypatch.setenv("XLSTM_CUDA_PATH", "pointwise")
    monkeypatch.setattr(
        sys,
        "argv",
        ["xlstm", "train", "--backend", "cupy", "--epochs", "1", "--output", str(tmp_path / "run")],
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("xlstm", run_name="__main__")
    assert not ended.value.code
    assert (tmp_path / "run" / "model.safetensors").exists()
