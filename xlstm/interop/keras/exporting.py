"""A layer, or a layer with a linear head, as weights of Keras 3."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import writing
from xlstm.interop import refusal
from xlstm.interop.keras import hdf5
from xlstm.interop.keras.names import ACTIVATIONS, CLASSES, ORDER, PARTS, Host, reordered, snake
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.models.sequence import SequenceModel

# What Keras does not have, with the value that means it is not there.
ABSENT = {
    "proj_size": 0,
    "peepholes": False,
    "coupled_input_forget": False,
    "cell_clip": None,
    "clip": None,
    "layer_norm": False,
}


def to_keras(
    layer: LSTM | GRU | RNN | SequenceModel, params: Params, path: str | os.PathLike[str] | None = None
) -> list[Host]:
    """Weights in the order of Keras' `get_weights()`, for `set_weights()`, and as a file for `load_weights()`.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SequenceModel
        Each layer of a stack is a Keras layer of its own, Bidirectional where there are both directions; the
        head of a model is a Dense layer.
    params : dict of str to array
        Its parameters, on any backend.
    path : path, optional
        A `.weights.h5` file to write, whole or not at all, for a Sequential model of these layers.

    Returns
    -------
    list of numpy.ndarray
        The same bits. Where Keras has one bias, a second one is added to it; where it has two, one that the
        layer does not have is zero.

    Raises
    ------
    ValueError
        The layer has an option that Keras does not, or parameters are missing, surplus or misshapen.
    OSError
        The file cannot be written.
    """
    if isinstance(layer, SequenceModel):
        layer.check(params)
        recurrent, layer_params = layer.recurrent, layer.below("recurrent", params)
        head = [np.ascontiguousarray(to_numpy(params["head.W"]).T), to_numpy(params["head.b"])]
    elif isinstance(layer, LSTM | GRU | RNN):
        recurrent, layer_params, head = layer, params, []
    else:
        raise TypeError(f"to_keras: layer is a {type(layer).__name__}, expected an LSTM, GRU, RNN or SequenceModel")
    refusal.kind("to_keras", recurrent)
    _refuse(recurrent)
    checks.params("to_keras", layer_params, recurrent.shapes)
    host = {name: to_numpy(array) for name, array in layer_params.items()}
    kind = type(recurrent).__name__.lower()
    groups: dict[str, Any] = {}
    arrays: list[Host] = []
    both = len(recurrent.directions) == 2
    base = "bidirectional" if both else snake({ours: theirs for theirs, ours in CLASSES.items()}[kind])
    for k in range(recurrent.num_layers):
        group: dict[str, Any] = {"vars": {}}
        for direction, part in zip(recurrent.directions, PARTS[both], strict=True):
            weights = _to_arrays(recurrent, host, f"{k}.{direction}")
            inner = {"vars": {}, "cell": {"vars": {str(i): a for i, a in enumerate(weights)}}}
            group |= {part.rstrip("/"): inner} if both else inner
            arrays += weights
        groups[f"{base}_{k}" if k else base] = group
    if head:
        groups["dense"] = {"vars": {str(i): a for i, a in enumerate(head)}}
    if path is not None:
        writing.write(path, hdf5.written({"layers": groups, "vars": {}}))
    return arrays + head


def _to_arrays(layer: LSTM | GRU | RNN, params: dict[str, Host], prefix: str) -> list[Host]:
    """Weights of one layer and direction as Keras has them."""
    order = np.argsort(ORDER[type(layer).__name__.lower()])
    Wx, Wh, b, bh = (params.get(f"{prefix}{name}") for name in ("Wx", "Wh", "b", "bh"))
    assert Wx is not None
    assert Wh is not None
    found = [Wx.T, Wh.T]
    if b is not None:
        second = np.zeros_like(b) if bh is None else bh
        found.append(np.stack((b, second)) if getattr(layer, "reset_after", False) else b + second)
    return [np.ascontiguousarray(reordered(array, order)) for array in found]


def _refuse(layer: LSTM | GRU | RNN) -> None:
    """Raise ValueError if the layer computes what Keras' cannot."""
    refusal.options("to_keras", "Keras", layer, ABSENT)
    if layer.reverse and layer.num_layers > 1:
        raise ValueError("to_keras: reverse is True in a stack, which Keras cannot express: it flips y of every layer")
    chosen = layer.activations or ()
    n = len(layer.ACTIVATIONS)
    theirs = set(ACTIVATIONS.values())
    if (
        not set(chosen) <= theirs
        or chosen[:n] != chosen[-n:]
        or (len(chosen) > 2 and n == 3 and chosen[1] != chosen[2])
    ):
        raise ValueError(
            f"to_keras: activations are {chosen}, which Keras cannot express, expected the same for candidate and "
            f"output and for both directions, from {', '.join(sorted(theirs))}"
        )
