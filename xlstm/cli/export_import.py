"""`xlstm export` and `xlstm import`: model files to and from the formats of other libraries, whole files at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from xlstm import checkpoint
from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.cli.console import out
from xlstm.cli.sources import FORECASTER, find_model
from xlstm.data import writing
from xlstm.estimators import Forecaster
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.models import model_files
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SequenceModel

SUFFIXES = {"onnx": ".onnx", "torch": ".torch.safetensors", "keras": ".weights.h5"}
AnyPath = str | os.PathLike[str]


def export(
    model: Annotated[Path, Argument(help="Model file of train forecast, import or models.save.")],
    to: Annotated[str, Option("--to", help="onnx, torch or keras.")],
    output: Annotated[Path | None, Option("--output", "-o", help="By default beside the model.")] = None,
    lengths: Annotated[bool, Option("--lengths", help="ONNX: lengths of sequences are an input.")] = False,
    state: Annotated[bool, Option("--state", help="ONNX: initial states are inputs.")] = False,
) -> None:
    """Write the network of a model for onnxruntime, PyTorch or Keras."""
    model, _ = find_model("export", model)
    out.print(f"wrote: {export_file(model, to, output, lengths=lengths, state=state)}")
    out.print(f"holds: {_read(model)[0]}")


def import_(
    file: Annotated[Path, Argument(help=".onnx, .keras, .weights.h5, or .safetensors of a PyTorch state dict.")],
    kind: Annotated[str | None, Option(help="lstm, gru or rnn; what the file shows if left out.")] = None,
    name: Annotated[str, Option(help="Node, layer, or prefix of names, where the file holds others too.")] = "",
    activation: Annotated[str | None, Option(help="That of a plain RNN whose file does not say it.")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="By default beside FILE.")] = None,
) -> None:
    """Read an LSTM, GRU or RNN from a file of another library and write it as a model file."""
    file, _ = find_model("import", file, foreign=True)
    path, layer = import_file(file, output, kind=kind, name=name, activation=activation)
    out.print(f"wrote: {path}")
    out.print(f"holds: {layer}")


def language(
    path: AnyPath, backend: str | Backend | None = None, dtype: str | None = None
) -> tuple[xLSTMLanguageModel, Params]:
    """Return a language model from a model file, or from a published checkpoint as `nxai.load` reads it."""
    path = Path(path)
    if path.is_file() and checkpoint.is_ours(path):
        model, params = model_files.load(path, backend, dtype)
        if not isinstance(model, xLSTMLanguageModel):
            raise ValueError(f"{path}: holds {model}, expected a language model; xlstm export and inspect take it")
        return model, params
    from xlstm.interop import nxai

    return nxai.load(path, backend=backend, dtype=dtype)


def _read(path: AnyPath) -> tuple[Any, Params]:
    """Return the network in a model file, of a forecaster or of `models.save`, on the host."""
    if checkpoint.kind_of(path) != FORECASTER:
        return model_files.load(path, "numpy")
    forecaster = Forecaster.load(path, "numpy")
    return forecaster.model_, forecaster.params_


def export_file(
    source: AnyPath, to: str, target: AnyPath | None = None, *, lengths: bool = False, state: bool = False
) -> Path:
    """Write the network of a model file for another library, whole or not at all, and return the path.

    Parameters are as for the command: `to` is "onnx" for a file that onnxruntime runs, "torch" for a state dict in
    safetensors, or "keras" for weights that a Keras model of the same layers loads. A network that the format cannot
    express is a ValueError or TypeError.
    """
    if to not in SUFFIXES:
        raise ValueError(f"export: format {to!r} is unknown, expected {', '.join(SUFFIXES)}")
    if (lengths or state) and to != "onnx":
        raise ValueError(f"export: lengths and state are inputs of an ONNX file, not of one for {to}")
    path = _target(Path(source), ".safetensors", SUFFIXES[to], target)
    model, params = _read(source)
    if to == "onnx":
        from xlstm.interop.onnx import to_onnx

        to_onnx(model, params, path, lengths=lengths, state=state)
    elif to == "keras":
        from xlstm.interop.keras import to_keras

        to_keras(model, params, path)
    else:
        from safetensors.numpy import save

        from xlstm.interop.torch import to_torch

        weights = to_torch(model, params)
        layer = model.recurrent if isinstance(model, SequenceModel) else model
        about = {"format": "pt", "kind": type(layer).__name__.lower(), "batch_first": str(layer.batch_first)}
        if layer.activations:
            about["activation"] = layer.activations[0]
        writing.write(path, save(weights, metadata=about))
    return path


def import_file(
    source: AnyPath,
    target: AnyPath | None = None,
    *,
    kind: str | None = None,
    name: str = "",
    activation: str | None = None,
) -> tuple[Path, LSTM | GRU | RNN]:
    """Read a recurrent layer, or a stack, from a file of another library and write it as a model file.

    Parameters are as for the command; returned are the path of the model file and the layer.
    """
    source = Path(source)
    ending = next((e for e in (*SUFFIXES.values(), ".safetensors") if source.name.endswith(e)), source.suffix)
    if source.suffix == ".onnx":
        from xlstm.interop.onnx import from_onnx

        layer, params = from_onnx(source, name or None)
    elif source.suffix in (".keras", ".h5"):
        from xlstm.interop.keras import from_keras

        layer, params = from_keras(source, kind, name=name or None, activations=activation)
    elif source.suffix in (".safetensors", ".pt", ".pth"):  # pickled ones are refused by name
        from xlstm.interop.torch import from_torch

        layer, params = from_torch(source, kind, activation=activation, prefix=name)
    else:
        raise ValueError(f"{source}: suffix {source.suffix!r} is unknown, expected .onnx, .keras, .h5 or .safetensors")
    if kind is not None and type(layer).__name__.lower() != kind:
        raise ValueError(f"{source}: holds an {type(layer).__name__}, expected {kind!r}")
    path = _target(source, ending, ".model.safetensors", target)
    model_files.save(path, layer, params)
    return path, layer


def _target(source: Path, ending: str, suffix: str, target: AnyPath | None) -> Path:
    """Return the file to write, by default one beside the source; ValueError if it is the source."""
    path = source.with_name(source.name.removesuffix(ending) + suffix) if target is None else Path(target)
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{path}: is the file that is read, expected another name to write to")
    return path
