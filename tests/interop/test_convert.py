"""Model files in and out of other libraries' formats, from Python and from the command line."""

import importlib

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

import xlstm
from tests.conftest import DATA
from tests.interop.bits import same_bits
from tests.registry import alone, make
from xlstm.cli import export_import
from xlstm.cli.app import app
from xlstm.estimators import Forecaster
from xlstm.interop import nxai, tirex
from xlstm.models import model_files
from xlstm.models.sequence import SequenceModel

EXTRAS = {"onnx": "onnx", "keras": "h5py", "torch": "safetensors"}


def saved(tmp_path, model):
    params = model.init(0, "numpy")
    model_files.save(tmp_path / "net.safetensors", model, params)
    return tmp_path / "net.safetensors", params


@pytest.mark.parametrize(
    ("published", "name"),
    [
        *((nxai, f"nxai/{name}.safetensors") for name in ("block_stack", "large")),
        *((tirex, f"tirex{k}/{name}/model.safetensors") for k in (1, 2) for name in "abc"),
    ],
    ids=str,
)
def test_published_checkpoints_come_back_with_the_same_bits(tmp_path, published, name):
    path = DATA / name if published is nxai else (DATA / name).parent
    model, params = published.load(path, backend="numpy")
    for place, file in (("out", "out/model.safetensors"), ("one.safetensors", "one.safetensors")):
        published.save(tmp_path / place, model, params)
        same_bits(
            safetensors.numpy.load_file(tmp_path / file), safetensors.numpy.load_file(DATA / name)
        )
        again, found = published.load(tmp_path / place, backend="numpy")
        assert again == model
        same_bits(found, params)


@pytest.mark.parametrize("to", EXTRAS)
def test_there_and_back(tmp_path, to):
    """A stack goes out and comes back from the command line with the same bits and names."""
    pytest.importorskip(EXTRAS[to])
    layer = xlstm.GRU(2, 3, 2, bidirectional=True, batch_first=to == "keras")
    source, params = saved(tmp_path, layer)
    result = CliRunner().invoke(app, ["export", str(source), "--to", to])
    assert result.exit_code == 0, result.output
    assert f"holds: {layer}" in result.output
    written = str(tmp_path / f"net{export_import.SUFFIXES[to]}")
    back = tmp_path / "back"
    result = CliRunner().invoke(app, ["import", written, "-o", str(back), "--kind", "gru"])
    assert result.output == f"wrote: {back}\nholds: {layer}\n"
    again, found = model_files.load(back, "numpy")
    assert again == layer
    same_bits(found, params)


def test_an_export_for_pytorch_remembers_what_weights_do_not_show(tmp_path):
    options = {"batch_first": True, "dropout": 0.25}
    source, _ = saved(tmp_path, xlstm.RNN(3, 5, 2, activations="relu", **options))
    written = tmp_path / "net.torch.safetensors"
    foreign = tmp_path / "foreign.v2.safetensors"
    export_import.export(source, "torch")
    export_import.import_(written)
    layer, _ = model_files.load(tmp_path / "net.model.safetensors", "numpy")
    assert layer == xlstm.RNN(3, 5, 2, activations="relu", recurrent_bias=True, **options)
    safetensors.numpy.save_file(safetensors.numpy.load_file(written), foreign)
    export_import.import_(foreign, activation="relu")
    layer, _ = model_files.load(tmp_path / "foreign.v2.model.safetensors", "numpy")
    assert layer == xlstm.RNN(3, 5, 2, activations="relu", recurrent_bias=True)


@pytest.mark.parametrize("to", EXTRAS)
def test_a_forecaster_is_exported_with_its_head(tmp_path, to):
    pytest.importorskip(EXTRAS[to])
    sizes = {"epochs": 1, "hidden_size": 4, "window": 12, "backend": "numpy"}
    forecaster = Forecaster(candidates=["linear", "network"], **sizes).fit(
        np.sin(np.arange(200) / 5)
    )
    forecaster.save(tmp_path / "model.safetensors")
    export_import.export(tmp_path / "model.safetensors", to, tmp_path / "out")
    assert forecaster.params_["head.b"].tobytes() in (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["export", "net.safetensors", "--to", "tflite"],
            "export: --to is 'tflite', expected one of onnx, torch, keras",
        ),
        (
            ["export", "net.safetensors", "--to", "torch", "-o", "net.safetensors"],
            "is the file that is read",
        ),
        (
            ["export", "peephole.safetensors", "--to", "torch"],
            "peepholes is True, which PyTorch cannot express",
        ),
        (["import", "plain.safetensors"], "weight_ih_l0 is missing, found a"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, monkeypatch, arguments, words):
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, xlstm.LSTM(2, 3))
    peephole = xlstm.LSTM(2, 3, peepholes=True)
    model_files.save("peephole.safetensors", peephole, peephole.init(0, "numpy"))
    safetensors.numpy.save_file({"a": np.zeros(2)}, "plain.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("library", ["torch", "keras"])
def test_what_others_do_not_have_is_refused(library):
    """Other layers, and a linear layer before."""
    pytest.importorskip(EXTRAS[library])
    write = getattr(importlib.import_module(f"xlstm.interop.{library}"), f"to_{library}")
    for model, words in (
        (xlstm.sLSTM(2, 4), "layer is a sLSTM, expected an LSTM, GRU, RNN"),
        (SequenceModel(xlstm.LSTM(4, 4), 2, inputs=3), f"to_{library}: inputs is 3, expected None"),
        (
            SequenceModel(xlstm.LSTM(4, 4), 2, symbols=3),
            f"to_{library}: symbols is 3, expected None",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            write(model, model.init(0, "numpy"))


SHARED = {
    "num_layers",
    "batch_first",
    "bias",
    "recurrent_bias",
    "dropout",
    "recurrent_dropout",
    "recompute",
}
WRITTEN = {
    "torch": {"proj_size"},
    "keras": {"reset_after", "direction"},
}


@pytest.mark.parametrize("library", EXTRAS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_each_option_is_written_or_refused_by_name(kind, library):
    pytest.importorskip(EXTRAS[library])
    write = getattr(importlib.import_module(f"xlstm.interop.{library}"), f"to_{library}")
    for options in alone(kind)[1:]:
        name, value = next(iter(options.items()))
        layer = make(kind, options)
        params = layer.init(0, "numpy")
        if (
            library == "onnx"
            or name in SHARED | WRITTEN[library]
            or value in ("bidirectional", "relu")
        ):
            assert write(layer, params)
            continue
        option = value if name == "direction" else name
        with pytest.raises(
            ValueError, match=rf"to_{library}: {option} (is|are) .*, which .* cannot express"
        ):
            write(layer, params)
