"""A layer, or a layer with a linear head, as weights of Keras 3."""

from __future__ import annotations

import os

import numpy as np

from xlstm.arrays.namespace import Params
from xlstm.data import writing
from xlstm.interop.common import Host, Layer, inverse, prepared, reordered
from xlstm.interop.keras import hdf5
from xlstm.interop.keras.names import ACTIVATIONS, CLASSES, ORDER, PARTS, snake
from xlstm.models.sequence import SequenceModel

# Options that Keras lacks, and the values that mean they are not used.
ABSENT = {"proj_size": 0, "peepholes": False, "coupled_input_forget": False, "clip": None}


def to_keras(layer: Layer | SequenceModel, params: Params, path: str | os.PathLike[str] | None = None) -> list[Host]:
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
    exported = prepared("to_keras", "Keras", layer, params, ABSENT)
    recurrent, _, head = exported
    _refuse(recurrent)
    classes = {ours: theirs for theirs, ours in CLASSES.items()}
    base = "bidirectional" if recurrent.bidirectional else snake(classes[type(recurrent).__name__.lower()])
    items: dict[str, Host | None] = {"vars": None}
    arrays: list[Host] = []

    def add(path: str, some: list[Host]) -> None:
        arrays.extend(some)
        items.update({f"{path}/{k}": array for k, array in enumerate(some)})

    for k in range(recurrent.num_layers):
        group = f"layers/{base}_{k}" if k else f"layers/{base}"
        for direction, part in zip(recurrent.directions, PARTS[recurrent.bidirectional], strict=True):
            add(f"{group}/{part}cell/vars", _arrays(recurrent, exported.part(k, direction)))
            items[f"{group}/{part}vars"] = None
        if recurrent.bidirectional:
            items[f"{group}/vars"] = None
    if head is not None:
        add("layers/dense/vars", [np.ascontiguousarray(head[0].T), head[1]])
    if path is not None:
        writing.write(path, hdf5.written(items))
    return arrays


def _arrays(layer: Layer, weights: dict[str, Host]) -> list[Host]:
    """Return the weights of one layer and direction as Keras has them."""
    order = inverse(ORDER[type(layer).__name__.lower()])
    found = {name: reordered(array, order) for name, array in weights.items()}
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
