"""Model files to and from the formats of other libraries, whole files at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.data import writing
from xlstm.estimators import forecaster as estimators
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.models import files
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SequenceModel
from xlstm.training import checkpoint

SUFFIXES = {"onnx": ".onnx", "torch": ".torch.safetensors", "keras": ".weights.h5"}


def read(path: str | os.PathLike[str]) -> tuple[Any, Params]:
    """The network in a model file, of a forecaster or of `models.save`, on the host.

    Raises
    ------
    OSError, ValueError
        There is no such file, or it holds neither.
    """
    kind = checkpoint.kind_of(path)
    if kind == estimators.KIND:
        forecaster = estimators.Forecaster.load(path, "numpy")
        assert forecaster.params is not None
        return forecaster.model, forecaster.params
    return files.load(path, "numpy")


def language(
    path: str | os.PathLike[str], backend: str | Backend | None = None, dtype: str | None = None
) -> tuple[xLSTMLanguageModel, Params]:
    """A language model, of `models.save` or published: a model file, or a checkpoint as `nxai.load` reads it.

    Raises
    ------
    OSError, ValueError, TypeError
        There is none there, or it is not sound.
    """
    path = Path(path)
    if path.is_file() and checkpoint.is_ours(path):
        model, params = files.load(path, backend, dtype)
        if not isinstance(model, xLSTMLanguageModel):
            raise ValueError(f"{path}: holds {model}, expected a language model")
        return model, params
    from xlstm.interop import nxai

    return nxai.load(path, backend=backend, dtype=dtype)


def units(path: str | os.PathLike[str]) -> str:
    """In what units the network of a forecaster sees and predicts values; nothing for other models."""
    if checkpoint.kind_of(path) != estimators.KIND:
        return ""
    scalers = estimators.Forecaster.load(path, "numpy").scalers
    assert scalers is not None
    seen, predicted = (f"(value - latest value) / {scaler.std!r}" for scaler in (scalers.past, scalers.future))
    return f"x is {seen}, y is {predicted}"


def export_file(
    source: str | os.PathLike[str],
    to: str,
    target: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    state: bool = False,
) -> Path:
    """Write the network of a model file for another library, whole or not at all.

    Parameters
    ----------
    source : path
        Model file.
    to : {"onnx", "torch", "keras"}
        "onnx": a file that onnxruntime runs. "torch": a state dict in safetensors. "keras": weights that a
        Keras model of the same layers loads.
    target : path, optional
        By default beside the source, under its name and a suffix of the format.
    lengths, state : bool
        Whether an ONNX file has inputs for lengths and for initial states.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    ValueError
        The format is unknown, or cannot express the network.
    OSError
        A file cannot be read or written.
    ImportError
        The format's package is not installed.
    """
    if to not in SUFFIXES:
        raise ValueError(f"export: format {to!r} is unknown, expected {', '.join(SUFFIXES)}")
    source = Path(source)
    name = source.name.removesuffix(".safetensors")
    path = source.with_name(f"{name}{SUFFIXES[to]}") if target is None else Path(target)
    _not_itself(source, path)
    if (lengths or state) and to != "onnx":
        raise ValueError(f"export: lengths and state are inputs of an ONNX file, not of one for {to}")
    model, params = read(source)
    if to == "onnx":
        from xlstm.interop.onnx import to_onnx

        to_onnx(model, params, path, lengths=lengths, state=state)
    elif to == "torch":
        from safetensors.numpy import save

        from xlstm.interop.torch import to_torch

        weights = to_torch(model, params)
        layer = model.recurrent if isinstance(model, SequenceModel) else model
        about = {"format": "pt", "kind": type(layer).__name__.lower(), "batch_first": str(layer.batch_first)}
        if layer.activations:
            about["activation"] = layer.activations[0]
        writing.write(path, save(weights, metadata=about))
    else:
        from xlstm.interop.keras import to_keras

        to_keras(model, params, path)
    return path


def import_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    kind: str | None = None,
    name: str = "",
    activation: str | None = None,
) -> tuple[Path, LSTM | GRU | RNN]:
    """Read a recurrent layer, or a stack, from a file of another library and write it as a model file.

    Parameters
    ----------
    source : path
        An ONNX file (.onnx), Keras' (.keras, .weights.h5), or PyTorch's state dict (.safetensors).
    target : path, optional
        By default beside the source, as `<name>.model.safetensors`.
    kind : {"lstm", "gru", "rnn"}, optional
        By default what the file says or its shapes show.
    name : str
        Which layer, where there are others: the name of an ONNX node or Keras layer, or what stands before
        the names of weights in a state dict, such as "encoder.lstm.".
    activation : str, optional
        Of a plain RNN whose file does not say it: a `.weights.h5` file, or a state dict that is not from
        `export_file`. By default "tanh".

    Returns
    -------
    target : Path
        What was written, for `models.load`.
    layer : LSTM, GRU or RNN

    Raises
    ------
    ValueError
        The format is unknown, or the file does not hold what it should.
    OSError
        A file cannot be read or written.
    ImportError
        The format's package is not installed.
    """
    source = Path(source)
    path = source.with_name(f"{_stem(source)}.model.safetensors") if target is None else Path(target)
    if source.suffix == ".onnx":
        from xlstm.interop.onnx import from_onnx

        layer, params = from_onnx(source, name or None)
    elif source.suffix in (".keras", ".h5"):
        from xlstm.interop.keras import from_keras

        layer, params = from_keras(source, kind, name=name or None, activations=activation)
    elif source.suffix == ".safetensors":
        from xlstm.interop.torch import described, from_torch, kind_of

        about = described(source)
        layer, params = from_torch(
            source,
            kind or kind_of(source, name),
            activation=activation or about.get("activation", "tanh"),
            batch_first=about.get("batch_first") == "True",
            prefix=name,
        )
    else:
        raise ValueError(f"{source}: suffix {source.suffix!r} is unknown, expected .onnx, .keras, .h5 or .safetensors")
    if kind is not None and type(layer).__name__.lower() != kind:
        raise ValueError(f"{source}: holds an {type(layer).__name__}, expected {kind!r}")
    _not_itself(source, path)
    files.save(path, layer, params)
    return path, layer


def _stem(path: Path) -> str:
    """The name of a file without what its format puts behind it."""
    for suffix in (*SUFFIXES.values(), ".safetensors", path.suffix):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def _not_itself(source: Path, target: Path) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: is the file that is read, expected another name to write to")
