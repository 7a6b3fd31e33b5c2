"""The recurrent layers of a Keras model, from its objects or from a file, each with its weights and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from xlstm.interop import hdf5
from xlstm.interop.common import Host, floating, kind_by_shape

CLASSES = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
# The groups of a file in which the cells of a layer lie, by whether the layer is bidirectional.
PARTS = {False: ("",), True: ("forward_layer/", "backward_layer/")}
# Our name of each of Keras' activations.
ACTIVATIONS = {
    **{name: name for name in ("sigmoid", "tanh", "relu", "linear", "selu", "softsign", "softplus", "exponential")},
    "elu": "elu(1.0)",
    "leaky_relu": "leaky_relu(0.2)",
    "hard_sigmoid": f"hard_sigmoid({1 / 6!r}, 0.5)",
}
CONTAINERS = ("Sequential", "Functional", "Model")
# Layers that may lie between those of a stack, since outside training they do nothing.
PASSING = ("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "ActivityRegularization", "InputLayer")


class Level(NamedTuple):
    """A recurrent layer of Keras: its weights by direction, and its options as ours are named."""

    name: str
    kind: str
    weights: list[list[Host]]
    options: dict[str, Any]
    follows: bool = True  # whether its input is the output of the level before, as far as the source shows


class _Item(NamedTuple):
    """A layer of any class in a model, or a model in a model."""

    about: dict[str, Any]  # its class and configuration
    inner: list[_Item] | None  # the layers of a model
    weights: Callable[[bool], list[list[Host]]]  # by direction, given whether there are two


def in_objects(source: Any) -> list[Level]:
    """Return the recurrent layers of a Keras layer, model, or list of layers."""
    several = isinstance(source, list | tuple)
    in_order = several or type(source).__name__ == "Sequential"
    levels = _levels(map(_object, source if several else getattr(source, "layers", [source])), in_order)
    if not levels and not several and not hasattr(source, "layers"):
        raise ValueError(f"from_keras: {source.name} is a {type(source).__name__}, expected LSTM, GRU or SimpleRNN")
    return levels


def in_file(path: Path, told: dict[str, Any]) -> list[Level]:
    """Return the recurrent layers in a `.keras` or `.weights.h5` file; `told` are options that the latter lacks."""
    try:
        with hdf5.opened(path) as (root, config):
            return _in_groups(root, told) if config is None else _in_config(root, config)
    except ValueError as error:
        words = str(error).removeprefix("from_keras: ").removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {words}") from error


def _levels(items: Iterable[_Item], in_order: bool) -> list[Level]:
    """Return the recurrent layers among items; `in_order` says that each item runs on the output of the one before."""
    levels: list[Level] = []
    follows = True
    for item in items:
        if item.inner is not None:
            levels += _levels(item.inner, item.about["class_name"] == "Sequential")
            follows = False
        elif described := _described(item.about):
            kind, both, options = described
            levels.append(Level(item.about["config"]["name"], kind, item.weights(both), options, follows or not levels))
            follows = in_order
        elif item.about["class_name"] not in PASSING:
            follows = False
    return levels


def _object(layer: Any) -> _Item:
    """Return what is needed of a layer or model of Keras."""
    if not hasattr(layer, "get_config") or not hasattr(layer, "get_weights"):
        raise TypeError(f"from_keras: got a {type(layer).__name__}, expected a Keras layer, arrays or a path")

    def weights(both: bool) -> list[list[Host]]:
        arrays = [floating("from_keras", layer.name, array) for array in layer.get_weights()]
        if not arrays:
            raise ValueError(f"from_keras: {layer.name} has no weights, expected a layer that is built")
        n = len(arrays) // 2
        return [arrays[:n], arrays[n:]] if both else [arrays]

    inner = list(map(_object, layer.layers)) if hasattr(layer, "layers") else None
    config = layer.get_config() if inner is None else {}
    return _Item({"class_name": type(layer).__name__, "config": config}, inner, weights)


def _in_config(root: dict[str, Any], config: Any) -> list[Level]:
    """Return the recurrent layers of a `.keras` file, in the order of its configuration."""
    try:
        if isinstance(config["class_name"], str) and "layers" not in config["config"]:
            raise ValueError(f"the model is a {config['class_name']}, expected Sequential or Functional")
        return _levels(_configured(root, config), config["class_name"] == "Sequential")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{hdf5.CONFIG} is not Keras' ({type(error).__name__}: {error})") from error


def _configured(root: dict[str, Any], config: dict[str, Any]) -> list[_Item]:
    """Return the layers of a model by its configuration; its weights lie in the groups of `root`."""
    items: list[_Item] = []
    used: dict[str, int] = {}
    for about in config["config"]["layers"]:
        base = snake(about["class_name"])
        count = used[base] = used.get(base, -1) + 1
        key = f"{base}_{count}" if count else base

        def weights(both: bool, key: str = key) -> list[list[Host]]:
            return [_weights(_group(root, "layers", key), key, part) for part in PARTS[both]]

        container = about["class_name"] in CONTAINERS
        items.append(_Item(about, _configured(_group(root, "layers", key), about) if container else None, weights))
    return items


def _in_groups(groups: dict[str, Any], told: dict[str, Any], path: str = "") -> list[Level]:
    """Return the recurrent layers of a `.weights.h5` file by its groups; those of one class in their order.

    The name that Keras keeps in an attribute is not read, since HDF5 hangs on a damaged one.
    """
    levels: list[Level] = []
    # lstm_2 comes before lstm_10
    for key in sorted(groups, key=lambda key: [(int(n or 0), text) for text, n in re.findall(r"(\D*)(\d{0,9})", key)]):
        group = groups[key]
        if not isinstance(group, dict):
            continue
        name = path if key == "layers" else f"{path}/{key}".lstrip("/")
        both = "forward_layer" in group and "backward_layer" in group
        cell = group.get("cell")
        if both or (isinstance(cell, dict) and cell.get("vars")):
            weights = [_weights(group, name, part) for part in PARTS[both]]
            shape = weights[0][1].shape
            kind = kind_by_shape(shape[1], shape[0]) if len(shape) == 2 else None
            if kind is None:
                expected = "expected (H, 4H), (H, 3H) or (H, H)"
                raise ValueError(f"from_keras: {name}: recurrent_kernel has shape {shape}, {expected}")
            levels.append(Level(name, kind, weights, told))
        else:
            levels += _in_groups(group, told, name)
    return levels


def _described(about: dict[str, Any]) -> tuple[str, bool, dict[str, Any]] | None:
    """Return the kind of a recurrent layer, whether it has both directions, and its options; None of other layers."""
    config, both, back = about["config"], about["class_name"] == "Bidirectional", None
    name = config["name"]
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
    if back is not None:
        other = back["config"]
        same = all(other.get(key) == config.get(key) for key in ("units", "use_bias", "reset_after"))
        if not same or CLASSES.get(back["class_name"]) != kind or not other["go_backwards"]:
            raise ValueError(
                f"from_keras: {name} has a backward_layer of {back['class_name']} that is not its layer backwards"
            )
        options["activations"] += _activations(name, kind, other)
    return kind, both, options


def _activations(name: str, kind: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Return our names of a layer's activations."""
    keys = ("activation",) if kind == "rnn" else ("recurrent_activation", "activation")
    for key in keys:
        if not isinstance(config[key], str) or config[key] not in ACTIVATIONS:
            raise ValueError(f"from_keras: {name} has {key} {config[key]!r}, expected one of {', '.join(ACTIVATIONS)}")
    chosen = tuple(ACTIVATIONS[config[key]] for key in keys)
    return (*chosen, chosen[1]) if kind == "lstm" else chosen


def _weights(group: dict[str, Any], name: str, part: str) -> list[Host]:
    """Return the arrays of one layer and direction in a file."""
    where = f"{name}/{part}cell/vars"
    arrays = _group(group, *part.split("/")[:-1], "cell", "vars")
    if set(arrays) not in ({"0", "1"}, {"0", "1", "2"}):
        there = ", ".join(arrays) or "none"
        raise ValueError(f"from_keras: {where} has arrays {there}, expected 0, 1 and perhaps 2")
    return [hdf5.array(f"{where}/{key}", arrays[key]) for key in sorted(arrays)]


def _group(group: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a group in groups."""
    for name in names:
        if not isinstance(group.get(name), dict):
            there = ", ".join(group) or "nothing"
            raise ValueError(f"from_keras: the file has no group {'/'.join(names)}, found {there}")
        group = group[name]
    return group


def snake(name: str) -> str:
    """Return the name of a group that Keras makes of the name of a class."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
