"""LSTM, GRU and RNN weights under PyTorch's names: state dicts, and safetensors files, without PyTorch.

PyTorch's rows are in gate order i f g o (ours i o f g) and r z n (ours z r n), and it has two biases.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, Params
from xlstm.data import reading
from xlstm.data.tensors import Tensors
from xlstm.interop import refusal
from xlstm.layers.recurrent import GRU, KINDS, LSTM, RNN
from xlstm.models.sequence import SequenceModel
from xlstm.training import checkpoint

Host = np.ndarray[Any, Any]
# Where each of our gates stands among PyTorch's.
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
NAMES = {"Wx": "weight_ih", "Wh": "weight_hh", "b": "bias_ih", "bh": "bias_hh", "Whr": "weight_hr"}
# What PyTorch does not have, with the value that means it is not there.
ABSENT = {
    "reverse": False,
    "peepholes": False,
    "coupled_input_forget": False,
    "cell_clip": None,
    "clip": None,
    "layer_norm": False,
    "reset_after": True,
}


@reading.brief()
def from_torch(
    state_dict_or_path: Mapping[str, Any] | str | os.PathLike[str],
    kind: str,
    *,
    activation: str = "tanh",
    batch_first: bool = False,
    prefix: str = "",
) -> tuple[LSTM | GRU | RNN, Params]:
    """A layer and its parameters from the weights of a `torch.nn.LSTM`, `GRU` or `RNN`.

    Layers, directions, sizes, projection and biases are read from names and shapes.

    Parameters
    ----------
    state_dict_or_path : dict of str to tensor or array, or path
        As from `module.state_dict()`, or a safetensors file of it. Pickled files are refused.
    kind : {"lstm", "gru", "rnn"}
    activation : {"tanh", "relu"}
        `nonlinearity` of a `torch.nn.RNN`, which its weights do not show.
    batch_first : bool
        As of the module, which its weights do not show.
    prefix : str
        What stands before the names of this module, such as "encoder.lstm."; others are not looked at.

    Returns
    -------
    layer : LSTM, GRU or RNN
        With `recurrent_bias` where there are biases, since PyTorch has two.
    params : dict of str to numpy.ndarray
        The same bits; float16 becomes float32.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError, TypeError
        Weights are missing, surplus, misshapen, of several dtypes or of another kind of module; the file is
        no safetensors file; the kind or activation is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.interop.torch import from_torch
    >>> state_dict = {"weight_ih_l0": np.ones((12, 2)), "weight_hh_l0": np.ones((12, 3))}
    >>> layer, params = from_torch(state_dict, "lstm")
    >>> layer.input_size, layer.hidden_size, layer.bias
    (2, 3, False)
    """
    if kind not in KINDS:
        raise ValueError(f"from_torch: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if activation not in ("tanh", "relu") or (activation == "relu" and kind != "rnn"):
        raise ValueError(f"from_torch: activation is {activation!r}, expected tanh, or relu of an rnn")
    given = _read(state_dict_or_path, prefix)
    layer = _layer(given, kind, activation, batch_first)
    params: Params = {}
    order = ORDER[type(layer).__name__]
    expected = checks.few(map(_name, layer.shapes))
    for name, dims in layer.shapes.items():
        theirs = _name(name)
        if theirs not in given:
            raise ValueError(f"from_torch: {prefix}{theirs} is missing, expected {expected}")
        checks.shape("from_torch", f"{prefix}{theirs}", given[theirs], dims)
        params[name] = np.array(given[theirs]) if name.endswith("Whr") else _rows(given[theirs], order)
    surplus = sorted(set(given) - set(map(_name, layer.shapes)))
    if surplus:
        raise ValueError(f"from_torch: {prefix}{surplus[0]} is unknown, expected {expected}")
    dtypes = {str(p.dtype) for p in params.values()}
    if len(dtypes) > 1:
        raise TypeError(f"from_torch: weights are of dtypes {', '.join(sorted(dtypes))}, expected one")
    return layer, params


@reading.brief()
def kind_of(path: str | os.PathLike[str], prefix: str = "") -> str:
    """The kind of module whose weights a safetensors file holds, by the shape of its recurrent weights.

    Raises
    ------
    ValueError
        The shape fits none, or as `from_torch` raises.
    """
    shapes = {name.removeprefix(prefix): s for name, s in _opened(Path(path)).shapes.items() if name.startswith(prefix)}
    if "weight_hr_l0" in shapes:
        return "lstm"
    shape = shapes.get("weight_hh_l0", ())
    for kind, layer in KINDS.items():
        if len(shape) == 2 and shape[0] == len(ORDER[layer.__name__]) * shape[1]:
            return kind
    if not shape:
        raise ValueError(f"{path}: {prefix}weight_hh_l0 is missing, found {checks.few(sorted(shapes)) or 'nothing'}")
    raise ValueError(f"{path}: {prefix}weight_hh_l0 has shape {shape}, expected (4H, H), (3H, H) or (H, H)")


@reading.brief()
def described(path: str | os.PathLike[str]) -> dict[str, str]:
    """What `xlstm export` wrote beside the weights in a safetensors file: kind, batch_first, activation."""
    return _opened(Path(path)).metadata


def to_torch(layer: LSTM | GRU | RNN | SequenceModel, params: Params) -> dict[str, Host]:
    """Weights under PyTorch's names, for `module.load_state_dict` or a safetensors file.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SequenceModel
        Of a model the names are `recurrent.weight_ih_l0`, ..., `head.weight` and `head.bias`.
    params : dict of str to array
        Its parameters, on any backend.

    Returns
    -------
    dict of str to numpy.ndarray
        The same bits. A recurrent bias that the layer does not have is zero, since PyTorch has two.

    Raises
    ------
    ValueError
        The layer has an option that PyTorch does not, or parameters are missing, surplus or misshapen.
    """
    if isinstance(layer, SequenceModel):
        layer.check(params)
        weights = to_torch(layer.recurrent, layer.below("recurrent", params))
        found = {f"recurrent.{name}": array for name, array in weights.items()}
        return {
            **found,
            "head.weight": np.array(to_numpy(params["head.W"])),
            "head.bias": np.array(to_numpy(params["head.b"])),
        }
    if not isinstance(layer, LSTM | GRU | RNN):
        raise TypeError(f"to_torch: layer is a {type(layer).__name__}, expected an LSTM, GRU, RNN or SequenceModel")
    _refuse(layer)
    checks.params("to_torch", params, layer.shapes)
    order = np.argsort(ORDER[type(layer).__name__])
    found = {}
    for name, array in params.items():
        host = to_numpy(array)
        found[_name(name)] = np.array(host) if name.endswith("Whr") else _rows(host, order)
    if layer.bias and not layer.recurrent_bias:
        biases = [name for name in found if name.startswith("bias_ih")]
        found |= {name.replace("bias_ih", "bias_hh"): np.zeros_like(found[name]) for name in biases}
    return found


def _refuse(layer: LSTM | GRU | RNN) -> None:
    """Raise ValueError if the layer computes what PyTorch's cannot."""
    refusal.options("to_torch", "PyTorch", layer, ABSENT)
    if layer.activations is not None and (not isinstance(layer, RNN) or set(layer.activations) != {"relu"}):
        raise ValueError(f"to_torch: activations are {layer.activations}, which PyTorch cannot express")


def _layer(given: dict[str, Host], kind: str, activation: str, batch_first: bool) -> LSTM | GRU | RNN:
    """The layer that names and shapes describe; they are not all checked yet."""
    first = {}
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in given:
            raise ValueError(f"from_torch: {name} is missing, found {checks.few(sorted(given)) or 'nothing'}")
        if given[name].ndim != 2:
            raise ValueError(f"from_torch: {name} has shape {given[name].shape}, expected two axes")
        first[name] = given[name].shape
    (rows, D), (_, P) = first["weight_ih_l0"], first["weight_hh_l0"]
    gates = len(ORDER[KINDS[kind].__name__])
    projected = "weight_hr_l0" in given
    H = rows // gates
    if rows % gates or not H or (not projected and H != P):
        raise ValueError(
            f"from_torch: weight_ih_l0 {(rows, D)} and weight_hh_l0 {first['weight_hh_l0']} are not of kind {kind!r}, "
            f"expected ({gates}H, D) and ({gates}H, H)"
        )
    numbers = [int(match[1]) for name in given if (match := re.fullmatch(r"weight_ih_l(\d{1,6})", name))]
    options: dict[str, Any] = {"proj_size": P} if projected and kind == "lstm" else {}
    if activation != "tanh":
        options["activations"] = activation
    bias = "bias_ih_l0" in given
    return KINDS[kind](
        D,
        H,
        len(numbers),
        bidirectional="weight_ih_l0_reverse" in given,
        batch_first=batch_first,
        bias=bias,
        recurrent_bias=bias,
        **options,
    )


def _read(source: Mapping[str, Any] | str | os.PathLike[str], prefix: str) -> dict[str, Host]:
    """The weights whose names begin with the prefix, on the host, without it."""
    if isinstance(source, Mapping):
        found = {str(name): array for name, array in source.items() if str(name).startswith(prefix)}
        for name, array in found.items():
            if not hasattr(array, "shape"):
                raise TypeError(f"from_torch: {name} is a {type(array).__name__}, expected a tensor or an array")
        return {name.removeprefix(prefix): _host(name, array) for name, array in found.items()}
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"from_torch: got a {type(source).__name__}, expected a state dict or a path")
    file = _opened(Path(source))
    names = [name for name in file.shapes if name.startswith(prefix)]
    for name in names:
        if file.dtypes[name] not in ("F16", "F32", "F64"):
            raise TypeError(f"from_torch: {name} is {file.dtypes[name]}, expected F32 or F64")
    arrays = {name.removeprefix(prefix): _host(name, array) for name, array in file.read(names).items()}
    checkpoint.finite(source, arrays)
    return arrays


def _opened(path: Path) -> Tensors:
    """A safetensors file; pickles are refused before anything reads them."""
    start = b""
    if path.is_file():
        with path.open("rb") as raw:
            start = raw.read(9)
    # A safetensors file has the length of its header, then its header, a JSON object.
    if start[8:] != b"{" and start[:1] in (b"P", b"\x80"):
        raise ValueError(
            f"{path}: a pickled file, which can run code when it is read; "
            "save it with safetensors.torch.save_file(module.state_dict(), path) instead"
        )
    return Tensors(path)


def _host(name: str, array: Array) -> Host:
    """A floating-point array on the host, float16 widened."""
    if str(array.dtype).endswith("bfloat16"):
        raise TypeError(f"from_torch: {name} is bfloat16, which NumPy does not have, expected float32 or float64")
    host = to_numpy(array)
    if host.dtype == np.float16:
        return host.astype(np.float32)
    if host.dtype not in (np.float32, np.float64):
        raise TypeError(f"from_torch: {name} is {host.dtype}, expected float32 or float64")
    return host


def _name(ours: str) -> str:
    """ "1.reverse.Wx" -> "weight_ih_l1_reverse"."""
    k, *direction, last = ours.split(".")
    return f"{NAMES[last]}_l{k}{'_reverse' if direction else ''}"


def _rows(array: Host, order: Any) -> Host:
    """Blocks of rows, one for each gate, in another order."""
    blocks = array.reshape((len(order), array.shape[0] // len(order), *array.shape[1:]))
    return np.ascontiguousarray(blocks[list(order)]).reshape(array.shape)
