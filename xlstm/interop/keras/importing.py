"""LSTM, GRU and SimpleRNN of Keras 3 as a layer and its parameters: layers, lists of arrays, and files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.interop.keras import hdf5
from xlstm.interop.keras.names import ACTIVATIONS, CLASSES, ORDER, PARTS, Arrays, Host, snake
from xlstm.interop.keras.stack import Level, assemble
from xlstm.layers.recurrent import GRU, KINDS, LSTM, RNN

CONTAINERS = ("Sequential", "Functional", "Model")
# Layers that may lie between those of a stack: outside training they do nothing.
PASSING = ("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "ActivityRegularization", "InputLayer")


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
) -> tuple[LSTM | GRU | RNN, Params]:
    """A layer and its parameters from a Keras layer, its weights, or a file.

    Layers come with `batch_first`, as Keras has x. A stack of equal layers becomes one with `num_layers`.

    Parameters
    ----------
    source : layer, sequence of arrays, or path
        An LSTM, GRU, SimpleRNN, or Bidirectional of one; a model, of which the recurrent layers are taken;
        arrays as of `get_weights()`; a `.keras` or `.weights.h5` file.
    kind : {"lstm", "gru", "rnn"}, optional
        Needed for arrays; otherwise what the source must be.
    name : str, optional
        The layer to take where there are several; in a `.weights.h5` file that of its group, such as "lstm_1".
    bidirectional, reverse, activations, reset_after : optional
        Options of the layer where the source is arrays or a `.weights.h5` file, which do not show them (the
        file does show `bidirectional`, and biases `reset_after`). Nor does such a file show what lies between
        layers: those that fit each other are taken for a stack.

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
    if kind is not None and kind not in KINDS:
        raise ValueError(f"from_keras: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    told: dict[str, Any] = {"reverse": reverse, "activations": activations}
    if reset_after is not None:
        told["reset_after"] = reset_after
    arrays = isinstance(source, list | tuple) and all(hasattr(a, "shape") for a in source)
    shows = not arrays and (not isinstance(source, str | os.PathLike) or str(source).endswith(".keras"))
    if shows and (bidirectional or reverse or activations is not None or reset_after is not None):
        raise ValueError("from_keras: options are told for arrays and .weights.h5 files only, this source shows them")
    if isinstance(source, str | os.PathLike):
        levels = _from_file(Path(source), told)
    elif arrays:
        levels = _from_arrays(source, kind, bidirectional, told)
    else:
        levels = _from_objects(source)
    if name is not None:
        levels = [level for level in levels if level.name == name] or _none(name, levels)
    return assemble(levels, kind)


def _from_objects(source: Any) -> list[Level]:
    """Recurrent layers of a Keras layer, model, or list of layers."""
    layers = source if isinstance(source, list | tuple) else getattr(source, "layers", [source])
    levels: list[Level] = []
    follows = True
    for layer in layers:
        if not hasattr(layer, "get_config") or not hasattr(layer, "get_weights"):
            raise TypeError(f"from_keras: got a {type(layer).__name__}, expected a Keras layer, arrays or a path")
        if hasattr(layer, "layers"):
            levels += _from_objects(layer)
            follows = False
            continue
        about = {"class_name": type(layer).__name__, "config": layer.get_config()}
        kind, both, options = _described(about) or ("", False, {})
        if kind:
            weights = [_host(layer.name, w) for w in layer.get_weights()]
            if not weights:
                raise ValueError(f"from_keras: {layer.name} has no weights, expected a layer that is built")
            n = len(weights) // 2
            parts: list[Arrays] = [weights[:n], weights[n:]] if both else [weights]
            levels.append(Level(layer.name, kind, parts, options, follows or not levels))
            follows = type(source).__name__ in ("Sequential", "list", "tuple")
        elif source is layer:
            raise ValueError(f"from_keras: {layer.name} is a {type(layer).__name__}, expected LSTM, GRU or SimpleRNN")
        elif type(layer).__name__ not in PASSING:
            follows = False
    return levels


def _from_arrays(arrays: Arrays, kind: str | None, both: bool, told: dict[str, Any]) -> list[Level]:
    """Levels of arrays as of `get_weights()`, of one layer or of a stack."""
    if kind is None:
        raise ValueError(f"from_keras: arrays do not show their kind, expected one of {', '.join(KINDS)}")
    hosts = [_host(f"array {k}", a) for k, a in enumerate(arrays)]
    gates, directions = len(ORDER[kind]), 2 if both else 1
    for n in (3, 2):
        sets = [hosts[k : k + n] for k in range(0, len(hosts), n)]
        biased = all(s[-1].shape in ((s[1].shape[-1],), (2, s[1].shape[-1])) for s in sets if len(s) == 3)
        if len(hosts) and len(hosts) % (n * directions) == 0 and (n == 2 or biased):
            break
    else:
        shapes = ", ".join(str(a.shape) for a in hosts)
        raise ValueError(
            f"from_keras: arrays have shapes {shapes or '()'}, expected (D, {gates}H), (H, {gates}H) and perhaps a bias"
            f" for each layer{' and direction' if both else ''}"
        )
    levels = [sets[k : k + directions] for k in range(0, len(sets), directions)]
    return [Level(f"layer {k}", kind, list(level), dict(told)) for k, level in enumerate(levels)]


def _from_file(path: Path, told: dict[str, Any]) -> list[Level]:
    try:
        with hdf5.opened(path) as (root, config):
            return _from_groups(root, told) if config is None else _from_config(root, config)
    except ValueError as error:
        words = str(error).removeprefix("from_keras: ").removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {words}") from error


def _from_groups(groups: dict[str, Any], told: dict[str, Any], path: str = "") -> list[Level]:
    """Recurrent layers of a `.weights.h5` file, by its groups; those of one class in their order.

    The name that Keras keeps in an attribute is not read, since HDF5 hangs on a damaged one.
    """
    levels: list[Level] = []
    for key in sorted(groups, key=_natural):
        group = groups[key]
        if not isinstance(group, dict):
            continue
        name = path if key == "layers" else f"{path}/{key}".lstrip("/")
        both = "forward_layer" in group and "backward_layer" in group
        cell = group.get("cell")
        if both or (isinstance(cell, dict) and cell.get("vars")):
            weights = [_weights(group, name, part) for part in PARTS[both]]
            levels.append(Level(name, _kind(name, weights[0]), weights, dict(told)))
        else:
            levels += _from_groups(group, told, name)
    return levels


def _natural(key: str) -> list[tuple[int, str]]:
    """Sorts lstm_2 before lstm_10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d{0,9})", key)]


def _from_config(root: dict[str, Any], config: Any) -> list[Level]:
    """Recurrent layers of a `.keras` file, in the order of its configuration."""
    try:
        if isinstance(config["class_name"], str) and "layers" not in config["config"]:
            raise ValueError(f"the model is a {config['class_name']}, expected Sequential or Functional")
        layers = config["config"]["layers"]
        levels: list[Level] = []
        used: dict[str, int] = {}
        follows = True
        for about in layers:
            base = snake(about["class_name"])
            used[base] = used.get(base, -1) + 1
            key = f"{base}_{used[base]}" if used[base] else base
            if about["class_name"] in CONTAINERS:
                levels += _from_config(_group(root, "layers", key), about)
                follows = False
                continue
            kind, both, options = _described(about) or ("", False, {})
            if kind:
                group = _group(root, "layers", key)
                weights = [_weights(group, key, part) for part in PARTS[both]]
                levels.append(Level(about["config"]["name"], kind, weights, options, follows or not levels))
                follows = config["class_name"] == "Sequential"
            elif about["class_name"] not in PASSING:
                follows = False
        return levels
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{hdf5.CONFIG} is not Keras' ({type(error).__name__}: {error})") from error


def _described(about: dict[str, Any]) -> tuple[str, bool, dict[str, Any]] | None:
    """Kind, whether in both directions, and options of a recurrent layer, from its class and configuration."""
    config, both = about["config"], about["class_name"] == "Bidirectional"
    name, back = config["name"], None
    if both:
        if config["merge_mode"] != "concat":
            raise ValueError(f"from_keras: {name} has merge_mode {config['merge_mode']!r}, expected 'concat'")
        about, back = config["layer"], config.get("backward_layer")
        config = about["config"]
    kind = CLASSES.get(about["class_name"])
    if kind is None:
        if both:
            raise ValueError(f"from_keras: {name} wraps a {about['class_name']}, expected LSTM, GRU or SimpleRNN")
        return None
    if both and config["go_backwards"]:
        raise ValueError(f"from_keras: {name} has go_backwards=True inside Bidirectional, expected False")
    options: dict[str, Any] = {"reverse": config["go_backwards"], "activations": _activations(name, kind, config)}
    if kind == "gru":
        options["reset_after"] = config["reset_after"]
    if both and back is not None:
        other = back["config"]
        for key in ("units", "use_bias", "reset_after"):
            if (
                other.get(key) != config.get(key)
                or CLASSES.get(back["class_name"]) != kind
                or not other["go_backwards"]
            ):
                raise ValueError(
                    f"from_keras: {name} has a backward_layer of {back['class_name']} that is not its layer backwards"
                )
        options["activations"] += _activations(name, kind, other)
    return kind, both, options


def _activations(name: str, kind: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Our names of a layer's activations."""
    keys = ("activation",) if kind == "rnn" else ("recurrent_activation", "activation")
    for key in keys:
        if not isinstance(config[key], str) or config[key] not in ACTIVATIONS:
            raise ValueError(f"from_keras: {name} has {key} {config[key]!r}, expected one of {', '.join(ACTIVATIONS)}")
    chosen = tuple(ACTIVATIONS[config[key]] for key in keys)
    return (*chosen, chosen[1]) if kind == "lstm" else chosen


def _host(where: str, array: Any) -> Host:
    """A floating-point array on the host; float16 becomes float32."""
    host = to_numpy(array)
    if host.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"from_keras: {where} has dtype {host.dtype}, expected float32 or float64")
    return host.astype(np.float32) if host.dtype == np.float16 else host


def _weights(group: dict[str, Any], name: str, part: str) -> Arrays:
    """The arrays of one layer and direction in a file."""
    where = f"{name}/{part}cell/vars"
    found = _group(group, *part.split("/")[:-1], "cell", "vars")
    if set(found) not in ({"0", "1"}, {"0", "1", "2"}):
        there = ", ".join(found) or "none"
        raise ValueError(f"from_keras: {where} has arrays {there}, expected 0, 1 and perhaps 2")
    return [hdf5.array(f"{where}/{key}", found[key]) for key in sorted(found)]


def _kind(name: str, weights: Arrays) -> str:
    """The kind of layer, by the shape of its recurrent kernel."""
    shape = weights[1].shape
    for kind, order in ORDER.items():
        if len(shape) == 2 and shape[1] == len(order) * shape[0]:
            return kind
    raise ValueError(f"from_keras: {name}: recurrent_kernel has shape {shape}, expected (H, 4H), (H, 3H) or (H, H)")


def _group(group: dict[str, Any], *names: str) -> dict[str, Any]:
    """A group in groups."""
    for name in names:
        if not isinstance(group.get(name), dict):
            there = ", ".join(group) or "nothing"
            raise ValueError(f"from_keras: the file has no group {'/'.join(names)}, found {there}")
        group = group[name]
    return group


def _none(name: str, levels: list[Level]) -> list[Level]:
    there = ", ".join(level.name for level in levels) or "none"
    raise ValueError(f"from_keras: there is no recurrent layer {name!r}, found {there}")
