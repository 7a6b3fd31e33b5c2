"""A layer, or a layer with a linear head, as weights of Keras 3."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xlstm.arrays.backend import Params
from xlstm.data import writing
from xlstm.interop import common
from xlstm.interop.common import Host, Layer
from xlstm.interop.keras import hdf5
from xlstm.interop.keras.names import ACTIVATIONS, CLASSES, ORDER, PARTS, snake
from xlstm.layers.recurrent import GRU, LSTM, RNN
from xlstm.models.sequence import SequenceModel

# Options that Keras lacks, and the values that mean they are not used.
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
    """Return weights in the order of Keras' `get_weights()`, for `set_weights()`, and write a file of them.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SequenceModel
        Each layer of a stack is a Keras layer of its own, Bidirectional where there are both directions; the
        head of a model is a Dense layer.
    params : dict of str to array
        Its parameters, on any backend.
    path : path, optional
        A `.weights.h5` file, written whole or not at all, that `load_weights()` of a Sequential model of these
        layers reads.

    Returns
    -------
    list of numpy.ndarray
        The same bits. Where Keras has one bias, a second one is added to it; where it has two, one that the
        layer does not have is zero.

    Raises
    ------
    ValueError
        The layer has an option that Keras lacks, or parameters are missing, surplus or misshapen.
    TypeError
        The layer is of another kind.
    OSError
        The file cannot be written.
    """
    exported = common.exported("to_keras", "Keras", layer, params, ABSENT)
    recurrent, _, head = exported
    _refuse(recurrent)
    groups: dict[str, Any] = {}
    arrays: list[Host] = []
    both = recurrent.bidirectional
    classes = {ours: theirs for theirs, ours in CLASSES.items()}
    base = "bidirectional" if both else snake(classes[type(recurrent).__name__.lower()])
    for k in range(recurrent.num_layers):
        group: dict[str, Any] = {"vars": {}}
        for direction, part in zip(recurrent.directions, PARTS[both], strict=True):
            some = _arrays(recurrent, exported.part(k, direction))
            inner = {"vars": {}, "cell": {"vars": _numbered(some)}}
            group |= {part.rstrip("/"): inner} if both else inner
            arrays += some
        groups[f"{base}_{k}" if k else base] = group
    if head is not None:
        dense = [np.ascontiguousarray(head[0].T), head[1]]
        groups["dense"] = {"vars": _numbered(dense)}
        arrays += dense
    if path is not None:
        writing.write(path, hdf5.written({"layers": groups, "vars": {}}))
    return arrays


def _numbered(arrays: list[Host]) -> dict[str, Host]:
    return {str(k): array for k, array in enumerate(arrays)}


def _arrays(layer: Layer, weights: dict[str, Host]) -> list[Host]:
    """Return the weights of one layer and direction as Keras has them."""
    order = common.inverse(ORDER[type(layer).__name__.lower()])
    found = {name: common.reordered(array, order) for name, array in weights.items()}
    arrays = [np.ascontiguousarray(found["Wx"].T), np.ascontiguousarray(found["Wh"].T)]
    if "b" in found:
        b, bh = found["b"], found.get("bh", np.zeros_like(found["b"]))
        arrays.append(np.stack((b, bh)) if getattr(layer, "reset_after", False) else b + bh)
    return arrays


def _refuse(layer: Layer) -> None:
    """Raise ValueError if the layer has directions or activations that Keras cannot express."""
    if layer.reverse and layer.num_layers > 1:
        raise ValueError("to_keras: reverse is True in a stack, which Keras cannot express: it flips y of every layer")
    chosen, n, theirs = layer.activations or (), len(layer.ACTIVATIONS), set(ACTIVATIONS.values())
    same = chosen[:n] == chosen[-n:] and (n < 3 or chosen[1:2] == chosen[2:3])
    if not same or not set(chosen) <= theirs:
        raise ValueError(
            f"to_keras: activations are {chosen}, which Keras cannot express, expected the same for candidate and "
            f"output and for both directions, from {', '.join(sorted(theirs))}"
        )
