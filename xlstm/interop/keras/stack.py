"""Recurrent layers of Keras 3, found one by one, as one layer of ours with its parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.interop.keras.names import ORDER, Arrays, reordered
from xlstm.layers.recurrent import GRU, KINDS, LSTM, RNN

WEIGHTS = ("kernel", "recurrent_kernel", "bias")


class Level(NamedTuple):
    """One recurrent layer of Keras: its weights by direction, and what else is known of it."""

    name: str
    kind: str
    weights: list[Arrays]
    options: dict[str, Any]
    follows: bool = True  # whether its input is the output of the level before, as far as the source shows


def assemble(levels: list[Level], kind: str | None) -> tuple[LSTM | GRU | RNN, Params]:
    """One layer of levels that are alike and fit each other."""
    if not levels:
        raise ValueError("from_keras: there is no LSTM, GRU or SimpleRNN")
    for level in levels:
        if kind is not None and level.kind != kind:
            raise ValueError(f"from_keras: {level.name} is of kind {level.kind!r}, expected {kind!r}")
    singles = [_single(level) for level in levels]
    first, _ = singles[0]
    params: Params = {}
    for k, (layer, weights) in enumerate(singles):
        follows = layer.input_size == first.output_size and levels[k].follows
        fits = k == 0 or (follows and not first.reverse)
        if not fits or type(layer) is not type(first) or replace(layer, input_size=first.input_size) != first:
            found = ", ".join(f"{level.name} is {one}" for level, (one, _) in zip(levels, singles, strict=True))
            raise ValueError(f"from_keras: the layers form no stack, name one of them: {found}")
        params |= {f"{k}.{name.removeprefix('0.')}": array for name, array in weights.items()}
    dtypes = {str(p.dtype) for p in params.values()}
    if len(dtypes) > 1:
        raise TypeError(f"from_keras: weights are of dtypes {', '.join(sorted(dtypes))}, expected one")
    return replace(first, num_layers=len(levels)), params


def _single(level: Level) -> tuple[LSTM | GRU | RNN, Params]:
    """The layer and parameters of one level."""
    order, both = ORDER[level.kind], len(level.weights) == 2
    G = len(order)
    kernel, recurrent, *bias = level.weights[0]
    if kernel.ndim != 2 or recurrent.ndim != 2:
        raise ValueError(
            f"from_keras: {level.name}: kernel has shape {kernel.shape} and recurrent_kernel {recurrent.shape}, "
            f"expected (D, {G}H) and (H, {G}H)"
        )
    D, H = kernel.shape[0], recurrent.shape[0]
    options = dict(level.options)
    told = options.get("reset_after")
    if told is not None and (level.kind != "gru" or (bias and told != (bias[0].ndim == 2))):
        raise ValueError(f"from_keras: {level.name}: reset_after is {told}, which its weights contradict")
    after = bool(level.kind == "gru" and (bias[0].ndim == 2 if bias else options.get("reset_after", True)))
    if level.kind == "gru":
        options["reset_after"] = after
    layer = KINDS[level.kind](D, H, bidirectional=both, batch_first=True, bias=bool(bias), **options)
    shapes = ({"D": D, f"{G}H": G * H}, {"H": H, f"{G}H": G * H}, {"2": 2, "3H": 3 * H} if after else {f"{G}H": G * H})
    params: Params = {}
    for direction, weights in zip(layer.directions, level.weights, strict=True):
        if len(weights) != 2 + len(bias):
            raise ValueError(f"from_keras: {level.name} has {len(weights)} arrays, expected {2 + len(bias)}")
        for name, array, dims in zip(WEIGHTS, weights, shapes, strict=False):
            checks.shape("from_keras", f"{level.name}: {name}", array, dims)
        rows = [reordered(array, order) for array in weights]
        found = {"Wx": rows[0].T, "Wh": rows[1].T}
        if bias:
            found |= {"b": rows[2][0], "bh": rows[2][1]} if after else {"b": rows[2]}
        params |= {f"0.{direction}{name}": np.ascontiguousarray(array) for name, array in found.items()}
    return layer, {name: params[name] for name in layer.shapes}
