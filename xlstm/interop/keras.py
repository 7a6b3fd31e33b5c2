"""LSTM, GRU and SimpleRNN of Keras 3 as xlstm layers with parameters, and back: layers, arrays,
files.

`layer` makes a Keras layer of any xlstm layer.

Keras has kernels (D, G*H) with gates in order i f c o (here i o f g) and z r h (here z r n), and
one bias; a GRU with `reset_after` has a bias (2, 3H). `reordered` puts the rows of arrays into the
order of `ORDER`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data import reading, writing
from xlstm.data.writing import AnyPath
from xlstm.interop import common, hdf5
from xlstm.interop.common import Host, Layer, floating, kind_by_shape, reordered
from xlstm.layers.recurrent import KINDS
from xlstm.models.sequence import SequenceModel

__all__ = ["from_keras", "layer", "to_keras"]

# The position of each gate of this library among Keras's gates.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2), "rnn": (0,)}
ABSENT = ("proj_size", "peepholes", "coupled_input_forget", "clip")  # options that Keras lacks
WEIGHTS = ("kernel", "recurrent_kernel", "bias")
CLASSES = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
GROUPS = {"lstm": "lstm", "gru": "gru", "rnn": "simple_rnn"}  # names of groups in a file
# The groups of a layer's cells in a file, by whether the layer is bidirectional.
PARTS = {False: ("",), True: ("forward_layer/", "backward_layer/")}
# This library's names of Keras's activations.
ACTIVATIONS = {
    "elu": "elu(1.0)",
    "leaky_relu": "leaky_relu(0.2)",
    "hard_sigmoid": f"hard_sigmoid({1 / 6!r}, 0.5)",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "linear": "linear",
    "selu": "selu",
    "softsign": "softsign",
    "softplus": "softplus",
    "exponential": "exponential",
}
# Options that must be equal in both layers of a Bidirectional.
SHARED = ("units", "use_bias", "activation", "recurrent_activation", "reset_after")
# Layers that may lie within a stack, since they do nothing outside of training.
PASSING = (
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "ActivityRegularization",
    "InputLayer",
)


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
    """Convert a Keras layer, its weights, or a file to a layer and its parameters.

    The layer has `batch_first`, as x in Keras. A stack of equal layers becomes one layer with
    `num_layers`.

    Parameters
    ----------
    source : layer, sequence of arrays, or path
        An LSTM, GRU or SimpleRNN, or a Bidirectional of one of them; a model, whose recurrent
        layers are read; arrays as from `get_weights()`; or a `.keras` or `.weights.h5` file.
    kind : {"lstm", "gru", "rnn"}, optional
        The kind that the source must be. For arrays, you must give it.
    name : str, optional
        The layer to read if there are several; for a `.weights.h5` file the name of its group, such
        as "lstm_1".
    bidirectional, reverse, activations, reset_after : optional
        Options of the layer, for sources that do not record them: arrays, or a `.weights.h5` file.
        (The file does record `bidirectional`, and its biases show `reset_after`.) Nor does such a
        file record the layers in between, so layers whose sizes fit are read as a stack.

    Returns
    -------
    layer : LSTM, GRU or RNN
        The layer. `go_backwards` of Keras becomes `reverse`; Keras returns such a y flipped in
        time.
    params : dict of str to numpy.ndarray
        The same bits; float16 becomes float32.

    Raises
    ------
    OSError
        There is no such file.
    ValueError, TypeError
        Weights are missing, surplus or misshapen, layers do not form a stack, a layer has an option
        that this library lacks, or the file is damaged.
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
    told = {"reverse": reverse, "activations": activations, "reset_after": reset_after}
    is_path = isinstance(source, str | os.PathLike)
    arrays = isinstance(source, list | tuple) and all(hasattr(a, "shape") for a in source)
    shows = str(source).endswith(".keras") if is_path else not arrays
    if shows and (bidirectional or reverse or activations is not None or reset_after is not None):
        raise ValueError(
            "from_keras: options are for arrays and .weights.h5 files only, this source"
            " records them"
        )
    if is_path:
        levels = _in_file(Path(source), told)
    elif arrays:
        levels = _in_arrays(source, kind, bidirectional, told)
    else:
        about = {"class_name": "Sequential", "config": {"layers": [_about(source)]}}
        levels = _levels(about)
    there = ", ".join(level.name for level in levels) or "none"
    levels = [level for level in levels if name in (None, level.name)]
    if not levels:
        raise ValueError(
            f"from_keras: there is no LSTM, GRU or SimpleRNN of name {name!r}, found {there}"
        )
    for level in levels:
        if kind not in (None, level.kind):
            raise ValueError(
                f"from_keras: {level.name} is of kind {level.kind!r}, expected {kind!r}"
            )
    # Keras flips y of a layer with go_backwards, so a layer above it would see reversed time.
    follow = all(level.follows and not level.options["reverse"] for level in levels[1:])
    singles = [_single(level) for level in levels]
    return common.stacked("from_keras", [level.name for level in levels], singles, follow)


def _in_arrays(
    arrays: Sequence[Host], kind: str | None, both: bool, told: dict[str, Any]
) -> list[Level]:
    """Return the layers in a sequence of arrays, as from `get_weights()`."""
    kind = checks.choice(KINDS)("from_keras", "kind", kind)  # which arrays do not show
    hosts = [floating("from_keras", f"array {k}", array) for k, array in enumerate(arrays)]
    gates = len(ORDER[kind])
    directions = 2 if both else 1
    # arrays are biases if they are as wide as the kernels before them
    third = zip(hosts[1::3], hosts[2::3], strict=False)
    biased = all(
        array.shape in (kernel.shape[-1:], (2, *kernel.shape[-1:])) for kernel, array in third
    )
    n = 3 if biased and len(hosts) % (3 * directions) == 0 else 2
    if not hosts or len(hosts) % (n * directions):
        shapes = ", ".join(str(a.shape) for a in hosts)
        raise ValueError(
            f"from_keras: arrays have shapes {shapes or '()'}, expected (D, {gates}H), (H,"
            f" {gates}H) and perhaps a bias for each layer{' and direction' if both else ''}"
        )
    sets = [hosts[k : k + n] for k in range(0, len(hosts), n)]
    groups = [sets[k : k + directions] for k in range(0, len(sets), directions)]
    return [Level(f"layer {k}", kind, weights, told) for k, weights in enumerate(groups)]


def _single(level: Level) -> tuple[Layer, Params]:
    """Return one level as a layer and its parameters."""
    order = ORDER[level.kind]
    kernel, recurrent, *bias = level.weights[0]
    G = len(order)
    D, H = (array.shape[0] if array.ndim else 0 for array in (kernel, recurrent))
    options = dict(level.options)
    told = options.pop("reset_after", None)
    after = level.kind == "gru" and bool(bias) and bias[0].ndim == 2
    if told is not None and (level.kind != "gru" or (bias and told != after)):
        raise ValueError(
            f"from_keras: {level.name}: reset_after is {told}, which its weights contradict"
        )
    if level.kind == "gru":
        options["reset_after"] = after if bias else told is not False
    columns = {f"{G}H": G * H}
    shapes = ({"D": D, **columns}, {"H": H, **columns}, {"2": 2, **columns} if after else columns)
    parts = []
    for weights in level.weights:
        if len(weights) != 2 + len(bias):
            raise ValueError(
                f"from_keras: {level.name} has {len(weights)} arrays, expected {2 + len(bias)}"
            )
        for name, array, dims in zip(WEIGHTS, weights, shapes, strict=False):
            checks.shape("from_keras", f"{level.name}: {name}", array, dims)
        ours = {"Wx": weights[0].T, "Wh": weights[1].T}
        if bias:
            ours |= zip(("b", "bh"), weights[2], strict=True) if after else {"b": weights[2]}
        parts.append({name: reordered(array, order) for name, array in ours.items()})
    return common.single(level.kind, parts, batch_first=True, **options)


class Level(NamedTuple):
    """A recurrent layer of Keras: its weights by direction, and its options under this library's
    names.
    """

    name: str
    kind: str
    weights: list[list[Host]]
    options: dict[str, Any]
    # whether its input is the previous level's output, as far as the source shows
    follows: bool = True


def _about(layer: Any) -> dict[str, Any]:
    """Return the configuration of a layer or model as in a file, with the layer objects in it."""
    if not hasattr(layer, "get_config") or not hasattr(layer, "get_weights"):
        raise TypeError(
            f"from_keras: got a {type(layer).__name__}, expected a Keras layer, arrays or a path"
        )
    inner = getattr(layer, "layers", None)
    config = layer.get_config() if inner is None else {"layers": list(map(_about, inner))}
    return {"class_name": type(layer).__name__, "object": layer, "config": config}


def _in_file(path: Path, told: dict[str, Any]) -> list[Level]:
    """Return the recurrent layers in a `.keras` or `.weights.h5` file; `told` are options that the
    latter lacks.
    """
    try:
        with hdf5.opened(path) as (datasets, config):
            return _in_groups(datasets, told) if config is None else _levels(config, datasets)
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: {hdf5.CONFIG} is not Keras' ({problem})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix('from_keras: ')}") from error


def _levels(
    model: dict[str, Any], datasets: dict[str, Any] | None = None, path: str = ""
) -> list[Level]:
    """Return the recurrent layers of a model, from its configuration.

    The weights are datasets under `path`, or the weights of layer objects in the configuration.
    """
    levels: list[Level] = []
    used: dict[str, int] = {}
    follows = True
    for about in model["config"]["layers"]:
        base = _snake(about["class_name"])
        count = used[base] = used.get(base, -1) + 1
        group = f"{path}layers/{base}_{count}" if count else f"{path}layers/{base}"
        if "layers" in about["config"]:
            levels += _levels(about, datasets, f"{group}/")
            follows = False
        elif described := _described(about):
            kind, both, options = described
            is_built = datasets is None
            weights = _built(about["object"], both) if is_built else _weights(datasets, group, both)
            name = about["config"]["name"]
            levels.append(Level(name, kind, weights, options, follows or not levels))
            # each layer runs on the output of the one before
            follows = model["class_name"] == "Sequential"
        elif about["class_name"] not in PASSING:
            follows = False
    return levels


def _built(layer: Any, both: bool) -> list[list[Host]]:
    """Return the arrays of a Keras layer, by direction."""
    arrays = [floating("from_keras", layer.name, array) for array in layer.get_weights()]
    if not arrays:
        raise ValueError(f"from_keras: {layer.name} has no weights, expected a layer that is built")
    n = len(arrays) // 2
    return [arrays[:n], arrays[n:]] if both else [arrays]


def _in_groups(datasets: dict[str, Any], told: dict[str, Any]) -> list[Level]:
    """Return the recurrent layers of a `.weights.h5` file, in order within each class.

    The name that Keras stores in an attribute is not read, since HDF5 hangs on a damaged attribute.
    """
    groups: dict[str, bool] = {}  # of recurrent layers, and whether they have two directions
    for path in sorted(datasets, key=_numbered):
        if match := re.fullmatch(r"(.+?)/(forward_layer/|backward_layer/)?cell/vars/0", path):
            groups[match[1]] = match[2] is not None
    levels = []
    for group, both in groups.items():
        name = "/".join(part for part in group.split("/") if part != "layers")
        weights = _weights(datasets, group, both)
        kind = kind_by_shape("from_keras", f"{name}: recurrent_kernel", weights[0][1].shape)
        levels.append(Level(name, kind, weights, told))
    return levels


def _numbered(path: str) -> list[tuple[int, str]]:
    """Return a sort key of paths that puts lstm_2 before lstm_10."""
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d{0,9})", path)]


def _described(about: dict[str, Any]) -> tuple[str, bool, dict[str, Any]] | None:
    """Return a recurrent layer's kind, whether it has both directions, and its options; None for
    other layers.
    """
    outer = about["config"]
    both = about["class_name"] == "Bidirectional"
    inner = outer["layer"] if both else about
    name = outer["name"]
    config = inner["config"]
    kind = CLASSES.get(inner["class_name"])
    if both:
        if kind is None or config["go_backwards"] or outer["merge_mode"] != "concat":
            raise ValueError(
                f"from_keras: {name} wraps a {inner['class_name']} with merge_mode"
                f" {outer['merge_mode']!r} and go_backwards {config.get('go_backwards')}, expected"
                " an LSTM, GRU or SimpleRNN with 'concat' and False"
            )
        back = outer.get("backward_layer") or inner
        if back["class_name"] != inner["class_name"] or any(
            back["config"].get(key) != config.get(key) for key in SHARED
        ):
            raise ValueError(
                f"from_keras: {name} has a backward_layer that is not its layer backwards"
            )
    elif kind is None:
        return None
    options = {"reverse": config["go_backwards"], "activations": _activations(name, kind, config)}
    if kind == "gru":
        options["reset_after"] = config["reset_after"]
    return kind, both, options


def _activations(name: str, kind: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Return this library's names of a layer's activations."""
    keys = ("activation",) if kind == "rnn" else ("recurrent_activation", "activation")
    for key in keys:
        if not isinstance(config[key], str) or config[key] not in ACTIVATIONS:
            raise ValueError(
                f"from_keras: {name} has {key} {config[key]!r}, expected one of"
                f" {', '.join(ACTIVATIONS)}"
            )
    functions = tuple(ACTIVATIONS[config[key]] for key in keys)
    return (*functions, functions[1]) if kind == "lstm" else functions


def _weights(datasets: Any, group: str, both: bool) -> list[list[Host]]:
    """Return the arrays of one layer in a file, by direction."""
    weights = []
    for part in PARTS[both]:
        where = f"{group}/{part}cell/vars"
        there = sorted(
            path.removeprefix(f"{where}/") for path in datasets if path.startswith(f"{where}/")
        )
        if there not in (["0", "1"], ["0", "1", "2"]):
            listed = checks.few(there) or "none"
            raise ValueError(
                f"from_keras: {where} has arrays {listed}, expected 0, 1 and perhaps 2"
            )
        weights.append([hdf5.array(f"{where}/{key}", datasets[f"{where}/{key}"]) for key in there])
    return weights


def _snake(name: str) -> str:
    """Return the name of a group, which Keras makes of the name of a class."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def to_keras(
    layer: Layer | SequenceModel, params: Params, path: AnyPath | None = None
) -> list[Host]:
    """Convert parameters to the order of Keras's `get_weights()`, for `set_weights()`; optionally
    write a file.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SequenceModel
        The layer. Each layer of a stack becomes a Keras layer, Bidirectional if it has both
        directions; the head of a model becomes a Dense layer.
    params : dict of str to array
        Its parameters, on any backend.
    path : path, optional
        A `.weights.h5` file to write, completely or not at all. `load_weights()` of a Sequential
        model of these layers reads it.

    Returns
    -------
    list of numpy.ndarray
        The same bits. If Keras has one bias and the layer has two, they are added; if Keras has two
        and the layer has one, the other is zero.

    Raises
    ------
    ValueError
        The layer has an option that Keras lacks, or parameters are missing, surplus or misshapen.
    TypeError
        The layer is of another kind.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.interop.keras import to_keras
    >>> lstm = xlstm.LSTM(3, 8)
    >>> [weights.shape for weights in to_keras(lstm, lstm.init(backend="numpy"))]
    [(3, 32), (8, 32), (32,)]
    """
    recurrent, hosts, head = common.prepared("to_keras", "Keras", layer, params, ABSENT)
    _refuse(recurrent)
    kind = type(recurrent).__name__.lower()
    order = np.argsort(ORDER[kind])
    both = recurrent.bidirectional
    base = f"layers/{'bidirectional' if both else GROUPS[kind]}"
    arrays: dict[str, list[Host]] = {"vars": []}  # of each group of a file
    for k in range(recurrent.num_layers):
        group = f"{base}_{k}" if k else base
        arrays[f"{group}/vars"] = []
        for direction, part in zip(recurrent.directions, PARTS[both], strict=True):
            weights = common.part(recurrent, hosts, k, direction)
            arrays[f"{group}/{part}cell/vars"] = _arrays(recurrent, order, weights)
            arrays[f"{group}/{part}vars"] = []
    if head is not None:
        arrays["layers/dense/vars"] = [np.ascontiguousarray(head[0].T), head[1]]
    if path is not None:
        writing.write(path, hdf5.written(arrays))
    return [array for weights in arrays.values() for array in weights]


def layer(layer: Any, params: Params | None = None, seed: int = 0, **options: Any) -> Any:
    """Return a layer or a model as a `keras.layers.Layer`, trained with xlstm's forward and
    backward passes.

    It runs with Keras's backends jax and torch, through `xlstm.interop.jax.layer` and
    `xlstm.interop.torch.module`. As everywhere in Keras, x and y are batch first, whatever the
    layer's `batch_first` is. Each call starts from the state before the first step, and the final
    state is not returned. If x has a Keras mask, for example from Masking, the layer raises an
    error.

    You can save a model with this layer in a `.keras` file. Before you load it, import
    `xlstm.interop.keras_layer`, so that Keras knows the layer. A file whose layer has more than
    4096 layers or 512 blocks is refused.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, sLSTM, mLSTM, xLSTMStack, SequenceModel, or another with time
    params : dict of str to array, optional
        Its initial parameters; by default those of `layer.init(seed)`.
    seed : int
        Seed of the initial parameters, and of the masks in training.
    **options
        Options of any Keras layer, such as `name`, `trainable`, and `dtype`, "float32" or
        "float64".

    Returns
    -------
    keras.layers.Layer
        The layer. Its dict `params` holds a variable for each parameter, under this library's
        names.

    Raises
    ------
    ImportError
        Keras or its backend is not installed.
    ValueError
        Keras runs on another backend, such as tensorflow, or with another dtype. Or `params` do not
        belong to the layer.
    TypeError
        `layer` is something else.
    """
    try:
        from xlstm.interop.keras_layer import KerasLayer
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        expected = "expected torch or jax (KERAS_BACKEND)"
        raise ImportError(
            f"interop.keras.layer: the backend of Keras is tensorflow, {expected}"
        ) from error
    return KerasLayer(layer, params, seed, **options)


def _arrays(layer: Layer, order: Host, weights: dict[str, Host]) -> list[Host]:
    """Return the weights of one layer and direction in Keras's layout, with gates in this order."""
    theirs = {name: reordered(array, order) for name, array in weights.items()}
    arrays = [np.ascontiguousarray(theirs["Wx"].T), np.ascontiguousarray(theirs["Wh"].T)]
    if "b" in theirs:
        b = theirs["b"]
        bh = theirs.get("bh", np.zeros_like(b))
        arrays.append(np.stack((b, bh)) if getattr(layer, "reset_after", False) else b + bh)
    return arrays


def _refuse(layer: Layer) -> None:
    """Raise ValueError if the layer has directions or activations that Keras cannot express."""
    if layer.reverse and layer.num_layers > 1:
        raise ValueError(
            "to_keras: reverse is True in a stack, which Keras cannot express: it flips y of every"
            " layer"
        )
    functions = layer.activations or ()
    n = len(layer.CELL.activations)
    theirs = set(ACTIVATIONS.values())
    same = functions[:n] == functions[-n:] and (n < 3 or functions[1:2] == functions[2:3])
    if not same or not theirs.issuperset(functions):
        raise ValueError(
            f"to_keras: activations are {functions}, which Keras cannot express, expected the same for"
            f" candidate and output and for both directions, from {', '.join(sorted(theirs))}"
        )
