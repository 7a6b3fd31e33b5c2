"""Shared steps for PyTorch, Keras and ONNX: checks of layers and arrays, gate orders, stacks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.layers.recurrent import GRU, KINDS, LSTM, RNN
from xlstm.models.sequence import SequenceModel

Host = np.ndarray[Any, Any]
Layer = LSTM | GRU | RNN
GATE_COUNTS = {"lstm": 4, "gru": 3, "rnn": 1}


def part(layer: Layer, arrays: Mapping[str, Any], k: int, direction: str) -> dict[str, Any]:
    """Return the arrays of layer k in one direction, by their last names."""
    names = layer.names[f"{k}.{direction}"[:-1]]
    return {last: arrays[name] for last, name in names.items()}


def one_direction(
    layer: Layer, arrays: Mapping[str, Any], k: int, direction: str
) -> tuple[Any, dict[str, Any]]:
    """Return layer k in one direction as a layer that runs forward in time, and its arrays."""
    forward = replace(
        layer,
        input_size=layer.output_size if k else layer.input_size,
        activations=layer.cells[direction].activations or None,
        num_layers=1,
        bidirectional=False,
        reverse=False,
        dropout=0.0,
    )
    weights = part(layer, arrays, k, direction)
    return forward, {f"0.{name}": array for name, array in weights.items()}


def prepared(
    who: str, library: str, model: Any, params: Params, absent: Sequence[str]
) -> tuple[Layer, dict[str, Host], tuple[Host, Host] | None]:
    """Return a model's parts for export: the recurrent layer, its weights on the host, and the head
    or None.

    The head is W (O, directions * H) and b (O,). `who` is the caller, for errors.

    `absent` are options that the library lacks. No library has layer_norm, cell_clip or zoneout,
    which changes inference too. It raises TypeError if the layer is not an LSTM, GRU or RNN. It
    raises ValueError if the layer uses an option that the library lacks, or if parameters do not
    fit.
    """
    whole = isinstance(model, SequenceModel)
    layer = model.recurrent if whole else model
    if not isinstance(layer, LSTM | GRU | RNN):
        raise TypeError(
            f"{who}: layer is a {type(layer).__name__}, expected an LSTM, GRU, RNN or SequenceModel"
            " of one of them"
        )
    for name in ("inputs", "symbols"):
        if getattr(model, name, None) is not None:
            raise ValueError(
                f"{who}: {name} is {getattr(model, name)}, expected None: {library} gets no layer"
                " before the recurrent one"
            )
    for name, value in layer._used(*absent, "layer_norm", "cell_clip", "zoneout").items():
        raise ValueError(
            f"{who}: {name} is {value}, which {library} cannot express, expected a layer without it"
        )
    checks.params(type(model).__name__, params, model.shapes)
    host = {name: to_numpy(array) for name, array in params.items()}
    head = (host.pop("head.W"), host.pop("head.b")) if whole else None
    return layer, {name.removeprefix("recurrent."): a for name, a in host.items()}, head


def package(name: str, message: str) -> Any:
    """Import an optional package; raise ImportError with a message that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(message) from error


def floating(where: str, name: str, array: Any) -> Host:
    """Return floating-point numbers on the host, float16 as float32; raise TypeError for others."""
    if not hasattr(array, "shape"):
        raise TypeError(
            f"{where}: {name} is a {type(array).__name__}, expected a tensor or an array"
        )
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype not in ("float16", "float32", "float64"):
        raise TypeError(f"{where}: {name} has dtype {dtype}, expected float32 or float64")
    host = to_numpy(array)
    return host.astype(np.float32) if dtype == "float16" else host


def kind_by_shape(where: str, name: str, shape: tuple[int, ...]) -> str:
    """Return the kind of a layer by the shape of its recurrent weights, H and gates * H.

    It raises ValueError if the shape fits no kind.
    """
    for kind, gates in GATE_COUNTS.items():
        if len(shape) == 2 and max(shape) == gates * min(shape):
            return kind
    raise ValueError(f"{where}: {name} has shape {shape}, expected H and 4H, 3H or H")


def one_dtype(where: str, params: Params) -> None:
    """Raise TypeError unless all arrays have the same dtype."""
    dtypes = sorted({str(array.dtype) for array in params.values()})
    if len(dtypes) > 1:
        raise TypeError(f"{where}: weights are of dtypes {', '.join(dtypes)}, expected one")


def reordered(array: Host, order: Sequence[int] | Host) -> Host:
    """Return a copy of weights or biases (G*H, ...) with block `order[k]` of `array` as block k of
    rows.
    """
    blocks = array.reshape((len(order), -1, *array.shape[1:]))
    return blocks.take(order, axis=0).reshape(array.shape)


def single(kind: str, arrays: Sequence[dict[str, Host]], **options: Any) -> tuple[Layer, Params]:
    """Return a layer with `num_layers=1` and its parameters, from each direction's arrays by last
    names.
    """
    first = arrays[0]
    options |= {
        "bidirectional": len(arrays) == 2,
        "bias": "b" in first,
        "recurrent_bias": "bh" in first,
    }
    layer = KINDS[kind](first["Wx"].shape[1], first["Wh"].shape[1], **options)
    return layer, {
        name: weights[last]
        for names, weights in zip(layer.names.values(), arrays, strict=True)
        for last, name in names.items()
    }


def stacked(
    where: str, names: Sequence[str], layers: Sequence[tuple[Layer, Params]], follow: bool = True
) -> tuple[Layer, Params]:
    """Return layers of these names, each with its parameters, as one layer with `num_layers`.

    It raises ValueError unless the layers are alike, each is as wide as the input of the next, and
    they `follow` each other in the source. It raises TypeError if dtypes differ.
    """
    first, _ = layers[0]
    params: Params = {}
    for k, (layer, weights) in enumerate(layers):
        width = first.output_size if k else first.input_size
        if layer != replace(first, input_size=width) or (k > 0 and not follow):
            raise ValueError(
                f"{where}: the layers form no stack, name one of them: {checks.few(names)}"
            )
        params |= {f"{k}{name[1:]}": array for name, array in weights.items()}
    one_dtype(where, params)
    return replace(first, num_layers=len(layers)), params
