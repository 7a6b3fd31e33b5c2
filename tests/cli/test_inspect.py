"""`xlstm inspect`, as a user meets it: files, numbers and one-line errors."""

import json
import os

import numpy as np
import pytest

import xlstm
from tests.cli.commands import write_files
from xlstm import models
from xlstm.cli.inspect import read
from xlstm.cli.sources import load_model
from xlstm.data.table import write_table
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel

PICTURES = ("gradients", "memory", "parameters", "saturation")


@pytest.fixture(name="run")
def _run(run):
    return lambda command, *args, code=0: run(f"inspect {command}", *args, code=code)


def files(*names):
    return sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))


@pytest.fixture
def table(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 2))
    np.savetxt(tmp_path / "rows.csv", rows, "%.9f", ",", header="a,b", comments="")
    return rows


@pytest.fixture
def model(tmp_path):
    model = models.SequenceModel(xlstm.LSTM(2, 4), 1)
    params = model.init(seed=0, backend="numpy", dtype="float64")
    models.save(tmp_path / "m", model, params)
    return model, params


def test_a_forecaster_over_its_series(run, tmp_path):
    write_files(tmp_path)
    forecaster = Forecaster(window=12, hidden_size=3, epochs=1, backend="numpy", name="\u03bb")
    forecaster.fit(np.arange(400.0) % 7).save(tmp_path / "f")
    result = run("f s.csv -o deep/er")
    assert sorted(os.listdir(tmp_path / "deep/er")) == files("gates-recurrent.0", *PICTURES)
    assert "parameters: 64 in 5 arrays\n" in result.output


def test_numbers_as_json_are_those_of_the_model(run, tmp_path, model, table):
    layer, params = model
    result = run("m rows.csv --json")
    found = json.loads(result.stdout)
    assert not (tmp_path / "xlstm-inspect").exists()
    assert set(found) == {"model", "parameters", "saturation", "memory", "gradients"}
    assert [row["name"] for row in found["parameters"]] == list(params)
    _, _, saved = layer.forward(params, table[:, None], train=False, keep=True)
    forget = saved["recurrent.0"].gates[:, 2].mean(axis=(0, 1))
    np.testing.assert_allclose([row["forget"] for row in found["memory"]], forget, rtol=1e-8)
    assert {row["of"]: len(row["norms"]) for row in found["gradients"]} == {
        "x": 30,
        "h": 29,
        "c": 29,
    }
    assert set(json.loads(run("m --json").stdout)) == {"model", "parameters"}
    # the forget gate of unit 0 is 1, and its time constant infinite
    params["recurrent.0.b"][8] = 100.0
    models.save(tmp_path / "m", layer, params)
    assert json.loads(run("m rows.csv --json").stdout)["memory"][0]["steps"] is None


def test_classifiers(run, tmp_path):
    """The data are the first sequence, which the network sees scaled."""
    values = 100 + np.random.default_rng(0).normal(size=(100, 4))
    ids = np.repeat(np.arange(20), 5)
    kinds = np.where(ids % 2, "b", "a")
    write_table(
        "c.csv",
        {"id": ids, "kind": kinds} | {name: values[:, k].tolist() for k, name in enumerate("wxyz")},
    )
    classifier = SequenceClassifier(hidden_size=3, epochs=1, backend="numpy")
    classifier.fit(values.reshape(20, 5, 4), kinds[::5])
    classifier.save(tmp_path / "m", {"features": [*"wxyz"], "label": "kind", "sequence": "id"})
    rows = json.loads(run("m c.csv --json").stdout)["gradients"]
    assert [len(row["norms"]) for row in rows] == [5, 4, 4]
    x = read(load_model("inspect", tmp_path / "m"), tmp_path / "c.csv", None, 30)
    assert x.shape == (5, 1, 4)
    assert abs(x).max() < 9


def test_tokens_of_language_models(run, tmp_path):
    model = xlstm.xLSTMLanguageModel(xlstm.GRU(4, 4), vocab_size=5, batch_first=False)
    models.save(tmp_path / "l", model, model.init(backend="numpy"))
    tokens = "1 2 3 4 " * 20
    (tmp_path / "tokens.txt").write_text(tokens)
    options = {
        "hidden_size": 4,
        "embedding_size": 3,
        "steps": 3,
        "batch_size": 4,
        "length": 16,
        "backend": "numpy",
    }
    TextModel(**options).fit(tokens).save("t")
    for name in "lt":
        found = json.loads(run(name, "tokens.txt", "--json", "--steps", 10).stdout)
        assert len(found["gradients"][0]["norms"]) == 9


def test_what_a_model_has_no_numbers_of_is_said(run, tmp_path, table):
    both = xlstm.LSTM(2, 3, bidirectional=True)
    models.save(tmp_path / "b", both, both.init(backend="numpy"))
    output = run("b rows.csv -o both").output
    assert "no gradients: LSTM(2, 3, bidirectional=True) has a reverse direction" in output
    assert not (tmp_path / "both" / "gradients.png").exists()


WRONG = {
    "rows.csv": "rows.csv: not a readable safetensors file",
    "m three.csv": "three.csv: has 3 columns of numbers (a, b, c), x of the model has D = 2",
    "m gap.csv": "gap.csv: has gaps, expected numbers",
    "m rows.csv --column a": "m: is a model, which takes no --column",
    "l high.txt": "token",
}


@pytest.mark.parametrize("command", WRONG)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, model, table, command):
    (tmp_path / "three.csv").write_text("a,b,c\n" + "1,2,3\n" * 9)
    (tmp_path / "gap.csv").write_text("a,b\n" + "1,2\n" * 9 + "1,\n")
    (tmp_path / "high.txt").write_text("1 2 3 9")

    language = xlstm.xLSTMLanguageModel(xlstm.GRU(4, 4), vocab_size=5)
    models.save(tmp_path / "l", language, language.init(backend="numpy"))
    before = sorted(os.listdir(tmp_path))
    refused = run(command, code=2).stderr
    assert WRONG[command] in refused
    assert (refused[:7], refused.count("\n")) == ("error: ", 1)
    assert sorted(os.listdir(tmp_path)) == before
