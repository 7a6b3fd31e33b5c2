"""LSTM, GRU and SimpleRNN of Keras 3 as a layer and its parameters, and the reverse: layers, arrays and files.

Keras has kernels (D, G*H) with gates in order i f c o (ours i o f g) and z r h (ours z r n), and one bias; a GRU with
`reset_after` has a bias (2, 3H). `reordered` puts the rows of arrays into the order of `ORDER`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data import reading, writing
from xlstm.interop import hdf5
from xlstm.interop.common import Host, Layer, floating, inverse, one_dtype, prepared, reordered, single, stacked
from xlstm.interop.keras_models import ACTIVATIONS, CLASSES, PARTS, Level, in_file, in_objects, snake
from xlstm.layers.recurrent import KINDS
from xlstm.models.sequence import SequenceModel

# The position of each of our gates among Keras'.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2), "rnn": (0,)}
# Options that Keras lacks, and the values that mean they are not used.
ABSENT = {"proj_size": 0, "peepholes": False, "coupled_input_forget": False, "clip": None}
WEIGHTS = ("kernel", "recurrent_kernel", "bias")


@reading.brief()
def from_keras(
    source: Any,
    kind: str | None = None,
    *,
    name: str | None = None,
    bidirectional: bool = False,
    reverse: bool = False,
    activations: str | tuple[str, ...] | None = None,
    reset_after: bool | None = None,
) -> tuple[Layer, Params]:
    """Read a Keras layer, its weights, or a file as a layer and its parameters.

    The layer has `batch_first`, since x is batch first in Keras. A stack of equal layers becomes one layer with
    `num_layers`.

    Parameters
    ----------
    source : layer, sequence of arrays, or path
        An LSTM, GRU, SimpleRNN, or Bidirectional of one; a model, whose recurrent layers are read;
        arrays as from `get_weights()`; a `.keras` or `.weights.h5` file.
    kind : {"lstm", "gru", "rnn"}, optional
        The kind that the source must be. Arrays do not show it, and need it.
    name : str, optional
        The layer to read where there are several; in a `.weights.h5` file the name of its group, such as "lstm_1".
    bidirectional, reverse, activations, reset_after : optional
        Options of a layer whose source does not show them: arrays, or a `.weights.h5` file (which does show
        `bidirectional`, and by its biases `reset_after`). Such a file also does not say what lies between layers, so
        layers whose sizes fit are read as a stack.

    Returns
    -------
    layer : LSTM, GRU or RNN
        A Keras layer with `go_backwards` has `reverse`; Keras returns its y flipped in time.
    params : dict of str to numpy.ndarray
        The same bits; float16 becomes float32.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError, TypeError
        Weights are missing, surplus or misshapen, layers form no stack, a layer has an option that is
        unknown here, or the file is damaged.
    ImportError
        h5py is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.interop.keras import from_keras
    >>> kernel, recurrent_kernel, bias = np.ones((3, 16)), np.ones((4, 16)), np.ones(16)
    >>> layer, params = from_keras([kernel, recurrent_kernel, bias], "lstm")
    >>> layer
    LSTM(3, 4, batch_first=True)
    """
    checks.optional(checks.choice(KINDS))("from_keras", "kind", kind)
    told: dict[str, Any] = {"reverse": reverse, "activations": activations}
    if reset_after is not None:
        told["reset_after"] = reset_after
    is_path = isinstance(source, str | os.PathLike)
    arrays = isinstance(source, list | tuple) and all(hasattr(a, "shape") for a in source)
    shows = str(source).endswith(".keras") if is_path else not arrays
    if shows and (bidirectional or reverse or activations is not None or reset_after is not None):
        raise ValueError("from_keras: options are told for arrays and .weights.h5 files only, this source shows them")
    if is_path:
        levels = in_file(Path(source), told)
    else:
        levels = _in_arrays(source, kind, bidirectional, told) if arrays else in_objects(source)
    if name is not None:
        there = ", ".join(level.name for level in levels) or "none"
        levels = [level for level in levels if level.name == name]
        if not levels:
            raise ValueError(f"from_keras: there is no recurrent layer {name!r}, found {there}")
    return _joined(levels, kind)


def _in_arrays(arrays: Sequence[Host], kind: str | None, both: bool, told: dict[str, Any]) -> list[Level]:
    """Return the layers whose arrays, as from `get_weights()`, follow one another."""
    if kind is None:
        raise ValueError(f"from_keras: arrays do not show their kind, expected one of {', '.join(KINDS)}")
    hosts = [floating("from_keras", f"array {k}", array) for k, array in enumerate(arrays)]
    gates, directions = len(ORDER[kind]), 2 if both else 1
    third = zip(hosts[1::3], hosts[2::3], strict=False)  # biases, if they are as wide as the kernels before them
    biased = all(array.shape in (kernel.shape[-1:], (2, *kernel.shape[-1:])) for kernel, array in third)
    n = 3 if biased and len(hosts) % (3 * directions) == 0 else 2
    if not hosts or len(hosts) % (n * directions):
        shapes = ", ".join(str(a.shape) for a in hosts)
        raise ValueError(
            f"from_keras: arrays have shapes {shapes or '()'}, expected (D, {gates}H), (H, {gates}H) and perhaps a bias"
            f" for each layer{' and direction' if both else ''}"
        )
    sets = [hosts[k : k + n] for k in range(0, len(hosts), n)]
    groups = [sets[k : k + directions] for k in range(0, len(sets), directions)]
    return [Level(f"layer {k}", kind, weights, told) for k, weights in enumerate(groups)]


def _joined(levels: list[Level], kind: str | None) -> tuple[Layer, Params]:
    """Return one layer of levels that are alike and run on one another's output."""
    if not levels:
        raise ValueError("from_keras: there is no LSTM, GRU or SimpleRNN")
    for level in levels:
        if kind is not None and level.kind != kind:
            raise ValueError(f"from_keras: {level.name} is of kind {level.kind!r}, expected {kind!r}")
    singles = [_single(level) for level in levels]
    # Keras flips y of a layer with go_backwards, so that a layer above it would see time in the other direction.
    follow = all(level.follows for level in levels[1:]) and not (singles[0][0].reverse and len(levels) > 1)
    layer, params = stacked("from_keras", [level.name for level in levels], singles, follow)
    one_dtype("from_keras", params)
    return layer, params


def _single(level: Level) -> tuple[Layer, Params]:
    """Return the layer and the parameters of one level."""
    order, (kernel, recurrent, *bias) = ORDER[level.kind], level.weights[0]
    G = len(order)
    for name, array, size in zip(WEIGHTS, level.weights[0], "DH", strict=False):
        checks.shape("from_keras", f"{level.name}: {name}", array, {size: None, f"{G}H": None})
    D, H, options = kernel.shape[0], recurrent.shape[0], dict(level.options)
    told, after = options.get("reset_after"), level.kind == "gru" and bool(bias) and bias[0].ndim == 2
    if told is not None and (level.kind != "gru" or (bias and told != after)):
        raise ValueError(f"from_keras: {level.name}: reset_after is {told}, which its weights contradict")
    if level.kind == "gru":
        options["reset_after"] = after if bias else told is not False
    columns = {f"{G}H": G * H}
    shapes = ({"D": D, **columns}, {"H": H, **columns}, {"2": 2, **columns} if after else columns)
    parts = []
    for weights in level.weights:
        if len(weights) != 2 + len(bias):
            raise ValueError(f"from_keras: {level.name} has {len(weights)} arrays, expected {2 + len(bias)}")
        for name, array, dims in zip(WEIGHTS, weights, shapes, strict=False):
            checks.shape("from_keras", f"{level.name}: {name}", array, dims)
        ours = {"Wx": weights[0].T, "Wh": weights[1].T}
        if bias:
            ours |= zip(("b", "bh"), weights[2], strict=True) if after else {"b": weights[2]}
        parts.append({name: reordered(array, order) for name, array in ours.items()})
    return single(level.kind, parts, batch_first=True, **options)


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
    theirs = {name: reordered(array, order) for name, array in weights.items()}
    arrays = [np.ascontiguousarray(theirs["Wx"].T), np.ascontiguousarray(theirs["Wh"].T)]
    if "b" in theirs:
        b, bh = theirs["b"], theirs.get("bh", np.zeros_like(theirs["b"]))
        arrays.append(np.stack((b, bh)) if getattr(layer, "reset_after", False) else b + bh)
    return arrays


def _refuse(layer: Layer) -> None:
    """Raise ValueError if the layer has directions or activations that Keras cannot express."""
    if layer.reverse and layer.num_layers > 1:
        raise ValueError("to_keras: reverse is True in a stack, which Keras cannot express: it flips y of every layer")
    chosen, n, theirs = layer.activations or (), len(layer.CELL.activations), set(ACTIVATIONS.values())
    same = chosen[:n] == chosen[-n:] and (n < 3 or chosen[1:2] == chosen[2:3])
    if not same or not set(chosen) <= theirs:
        raise ValueError(
            f"to_keras: activations are {chosen}, which Keras cannot express, expected the same for candidate and "
            f"output and for both directions, from {', '.join(sorted(theirs))}"
        )
