"""How all pictures look, as files and in grey, and what is refused."""

import math
import os

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from tests.plots.drawn import LAYERS, B, D, H, T, overlapping, ran
from xlstm import plots
from xlstm.models import SequenceModel
from xlstm.plots import figures

matplotlib = later("matplotlib")


def test_labels_do_not_collide_and_have_two_sizes(interpreted, x, run, tmp_path):
    """Also those between powers of ten, which are there where an axis spans less than one."""
    _, saved = ran(xlstm.LSTM(D, H, 2), x)
    stack = SequenceModel(xlstm.xLSTMStack(8, 2, slstm_at=[1], num_heads=2), 1, inputs=D)
    params, activity = ran(stack, x)
    narrow = plots.networks.GradientNorm("h", "0", np.linspace(0.2, 0.9, 9), 1.1)
    for figure in (
        plots.gates(saved, "1"),
        plots.gradients([narrow]),
        plots.saturation(activity),
        plots.memory(activity),
        # the longest names
        plots.parameters({name: params[name] for name in sorted(params, key=len)[-8:]}),
        plots.gradients(plots.gradient_norms(stack, params, x)),
        plots.curves({"a": tmp_path, "b": run}),
        plots.forecast_errors({"a": np.arange(1.0, 40), "b": np.arange(2.0, 41)}),
    ):
        assert overlapping(figure) == []
        ticks = [tick for axes in figure.axes for tick in axes.yaxis.get_minorticklabels()]
        shown = [
            text for text in [*figure.findobj(matplotlib.text.Text), *ticks] if text.get_text()
        ]
        assert {text.get_fontsize() for text in shown} == {figures.SMALL, figures.TEXT}


@pytest.mark.parametrize(
    ("suffix", "begin"),
    [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")],
    ids=["png", "svg", "pdf"],
)
def test_equal_figures_are_equal_files(tmp_path, suffix, begin):
    for name in "ab":
        plots.save(plots.parameters({"W": np.arange(9.0)}), tmp_path / f"{name}.{suffix}")
    a, b = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert a.startswith(begin)
    assert a == b


def test_names_are_no_formulas(tmp_path):
    name = r"$\price_1$"  # matplotlib knows no such symbol
    plots.save(plots.forecast_errors({name: [1.0, 2.0]}, unit=name, step=name), tmp_path / "a.png")


LSTM = xlstm.LSTM(D, H)
BOTH = xlstm.LSTM(D, H, bidirectional=True)
START = LSTM.init(backend="numpy", dtype="float64")
X = np.random.default_rng(3).normal(size=(T, B, D))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: plots.parameters({"W": np.array([1.0, math.nan])}), "W is"),
        (lambda: plots.parameters({f"{k}": X for k in range(121)}), "121 parameters"),
        (lambda: plots.saturation(ran(LAYERS["rnn"], X)[1]), r"saturation: RNN\(2, 4\)"),
        (lambda: plots.gradient_norms(BOTH, START, X), "reverse direction"),
        (lambda: plots.confusion(["a"], ["c"], ["a", "b"]), "label 'c'"),
        (lambda: plots.confusion(["a"], ["a", "b"]), "truth and predicted"),
        (lambda: plots.forecast_errors({"a": [1.0], "b": [[1.0, 2.0]]}), "one C"),
        (lambda: plots.save(plots.parameters(START), "a.doc"), r"a\.doc"),
        (lambda: plots.save(plots.parameters(START), "absent/a.png"), r"absent/a\.png"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, monkeypatch, call, name):
    """And no file is left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, OSError), match=name):
        call()
    assert os.listdir(tmp_path) == []
