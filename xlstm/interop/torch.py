"""Layers in PyTorch programs, and weights under PyTorch's names.

`module` makes a `torch.nn.Module` of any layer or model. `from_torch` and `to_torch` convert
modules, state dicts and files of LSTM, GRU and RNN; dicts and files without PyTorch. PyTorch's rows
are in gate order i f g o (here i o f g) and r z n (here z r n), and it has two biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.data.pytorch import PICKLED, TorchFile
from xlstm.data.tensors import Tensors
from xlstm.interop.common import (
    Host,
    Layer,
    floating,
    kind_by_shape,
    one_dtype,
    prepared,
    reordered,
)
from xlstm.layers.recurrent import GRU, KINDS, RNN
from xlstm.models.sequence import SequenceModel

__all__ = ["from_torch", "module", "to_torch"]

# The position of each gate of this library among PyTorch's gates.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
NAMES = {"Wx": "weight_ih", "Wh": "weight_hh", "b": "bias_ih", "bh": "bias_hh", "Whr": "weight_hr"}
OPTIONS = ("batch_first", "dropout", "nonlinearity")  # of modules, which their weights do not show
ABSENT = ("reverse", "peepholes", "coupled_input_forget", "clip")  # options that PyTorch lacks


def module(layer_or_model: Any, params: Params | None = None, seed: int = 0) -> Any:
    """Return a layer or a model as a `torch.nn.Module` that runs xlstm's forward and backward
    passes.

    Call the module with x, and by name with the initial `state`, `lengths` of the sequences, and
    `resets` or `cu_seqlens`, as for the layer's `forward`. It returns y and the final state; a
    layer without a state returns y alone. Gradients flow to x, the parameters and the initial
    state. In training mode, masks of dropout are drawn from PyTorch's random numbers.

    The module's parameters have xlstm's names, and share memory with the arrays that xlstm reads;
    `arrays()` returns these arrays.

    Gradients can be differentiated again, to any order: with `create_graph`, in forward-mode AD,
    and by `grad`, `jvp`, `vmap`, `jacrev`, `jacfwd` and `hessian` of `torch.func`. If `vmap` maps
    gradients with respect to parameters without `requires_grad`, as `functional_call` takes them,
    one backward pass runs for all sequences. Otherwise `vmap` runs one sequence after another.

    Tensors are read without a copy: on a CPU as NumPy arrays, and on a CUDA device as CuPy arrays
    on PyTorch's current stream. Within `torch.autocast`, x and the state are cast to the dtype of
    the parameters. `torch.compile`, `torch.export`, `torch.jit.trace` and `make_fx` see one
    operator, `xlstm::forward`. On the device "meta", parameters and tensors have only shapes, as
    with `torch.nn.LSTM`.

    Parameters
    ----------
    layer_or_model : Module
        Anything with `init`, `forward` and `backward`: a layer, a block, a stack or a model.
    params : dict of str to array or tensor, optional
        The parameters. The module shares their memory if PyTorch can write to it; arrays of JAX are
        copied. By default they are drawn.
    seed : int
        Seed of the drawn parameters, which are float32 on PyTorch's default device.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError, ValueError
        `layer_or_model` is not a layer or model, `params` are not its parameters, or a parameter
        has the name of an attribute of `torch.nn.Module`, such as "forward", or a tangent.

        A call raises the errors of the layer's `forward`, and TypeError if parameters are float16
        or bfloat16 on a CPU. It raises RuntimeError for forward-mode AD within forward-mode AD.
        Programs made by `torch.compile`, `torch.export` and similar tools raise RuntimeError for
        second derivatives and for dual tensors.

    Examples
    --------
    >>> import torch, xlstm
    >>> from xlstm.interop.torch import module
    >>> lstm = module(xlstm.LSTM(3, 8))
    >>> y, (h, c) = lstm(torch.ones(5, 2, 3))
    >>> y.sum().backward()
    >>> sorted(name for name, p in lstm.named_parameters() if p.grad is not None)
    ['0.Wh', '0.Wx', '0.b']
    """
    from xlstm.interop.torch_module import LayerModule

    return LayerModule(layer_or_model, params, seed)


@reading.brief()
def from_torch(
    state_dict_or_path: Any,
    kind: str | None = None,
    *,
    activation: str | None = None,
    batch_first: bool | None = None,
    prefix: str = "",
) -> tuple[Layer, Params]:
    """Convert a `torch.nn.LSTM`, `GRU` or `RNN`, or its weights, to a layer and its parameters.

    The names and shapes of the weights determine layers, directions, sizes, projection and biases.
    A module also has `batch_first`, `dropout` and `nonlinearity`, which a state dict lacks.

    Parameters
    ----------
    state_dict_or_path : module, dict of str to tensor or array, or path
        The module, or with a `prefix` a module that it is a part of; or a state dict as from
        `module.state_dict()`, or its file: a safetensors file, or a file of `torch.save`, also a
        checkpoint of Lightning, which has it under `state_dict`. Only tensors and plain values are
        read from a file.
    kind : {"lstm", "gru", "rnn"}, optional
        The kind of the module; by default the shapes of the weights determine it.
    activation : {"tanh", "relu"}, optional
        `nonlinearity` of a `torch.nn.RNN`, which its weights do not show. By default it comes from
        the module, or from a file of `xlstm export`, or is tanh.
    batch_first : bool, optional
        `batch_first` of the module, which its weights do not show. By default it comes from the
        module, or from such a file, or is False.
    prefix : str
        The prefix of this module's weights, such as "encoder.lstm."; other weights are ignored.

    Returns
    -------
    layer : LSTM, GRU or RNN
        The layer. If there are biases, it has `recurrent_bias`, since PyTorch has two biases. Its
        `dropout` is that of the module or of a file of `xlstm export`, or 0 for other weights.
    params : dict of str to numpy.ndarray
        The parameters, with the same bits; float16, and bfloat16 from a file, become float32.

    Raises
    ------
    OSError
        There is no such file.
    ValueError, TypeError
        Weights are missing, surplus or misshapen, have several dtypes, or belong to another kind of
        module. A module does not show `batch_first`, as a traced one. The file is damaged or holds
        something else. The kind or activation is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.interop.torch import from_torch
    >>> state_dict = {"weight_ih_l0": np.ones((12, 2)), "weight_hh_l0": np.ones((12, 3))}
    >>> layer, params = from_torch(state_dict, "lstm")
    >>> layer.input_size, layer.hidden_size, layer.bias
    (2, 3, False)
    """
    checks.optional(checks.choice(KINDS))("from_torch", "kind", kind)
    weights, about = _read(state_dict_or_path, prefix)
    first = [f"{prefix}weight_ih_l0", f"{prefix}weight_hh_l0"]
    for name in first:
        if name not in weights:
            raise ValueError(
                f"from_torch: {name} is missing, found {checks.few(sorted(weights)) or 'nothing'}"
            )
        checks.shape("from_torch", name, weights[name], {"gates*H": None, "size": None})
    (rows, D), (_, P) = (weights[name].shape for name in first)
    projected = f"{prefix}weight_hr_l0" in weights
    kind = kind or ("lstm" if projected else kind_by_shape("from_torch", first[1], (rows, P)))
    if activation is None:
        activation = about.get("activation", about.get("nonlinearity", "tanh"))
    if batch_first is None:
        batch_first = str(about.get("batch_first")) == "True"
    if activation not in ("tanh", "relu") or (activation == "relu" and kind != "rnn"):
        raise ValueError(
            f"from_torch: activation is {activation!r}, expected tanh, or relu of an rnn"
        )
    has_bias = f"{prefix}bias_ih_l0" in weights
    options: dict[str, Any] = {
        "bidirectional": f"{prefix}weight_ih_l0_reverse" in weights,
        "batch_first": batch_first,
        "bias": has_bias,
        "recurrent_bias": has_bias,
        "activations": None if activation == "tanh" else activation,
    }
    if projected and kind == "lstm":
        options["proj_size"] = P
    layers = sum(bool(re.fullmatch(r"weight_ih_l\d{1,6}", name[len(prefix) :])) for name in weights)
    if layers > 1:  # PyTorch ignores dropout otherwise
        options["dropout"] = float(about.get("dropout", 0))
    layer = KINDS[kind](D, rows // len(ORDER[kind]), layers, **options)
    theirs = {name: prefix + _name(name) for name in layer.shapes}
    checks.params(
        "from_torch", weights, {theirs[name]: dims for name, dims in layer.shapes.items()}
    )
    one_dtype("from_torch", weights)
    return layer, {name: _rows(name, weights[theirs[name]], ORDER[kind]) for name in layer.shapes}


def to_torch(layer: Layer | SequenceModel, params: Params) -> dict[str, Host]:
    """Convert parameters to PyTorch's names, for `module.load_state_dict` or a safetensors file.

    The names and arrays do not show `batch_first`, `dropout` and the `nonlinearity` of an RNN: give
    them to the constructor of PyTorch's module.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SequenceModel
        The layer, or a model, whose names become `recurrent.weight_ih_l0`, ..., `head.weight` and
        `head.bias`.
    params : dict of str to array
        Its parameters, on any backend.

    Returns
    -------
    dict of str to numpy.ndarray
        The weights, with the same bits. If the layer has no recurrent bias, it is zero, since
        PyTorch has two biases.

    Raises
    ------
    ValueError
        The layer has an option that PyTorch lacks, or parameters are missing, surplus or misshapen.
    TypeError
        The layer is of another kind.

    Examples
    --------
    >>> import xlstm
    >>> from xlstm.interop.torch import to_torch
    >>> gru = xlstm.GRU(3, 8)
    >>> sorted(to_torch(gru, gru.init(backend="numpy")))
    ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
    """
    recurrent, weights, head = prepared("to_torch", "PyTorch", layer, params, ABSENT)
    functions = recurrent.activations
    if functions is not None and (not isinstance(recurrent, RNN) or set(functions) != {"relu"}):
        raise ValueError(f"to_torch: activations are {functions}, which PyTorch cannot express")
    if isinstance(recurrent, GRU) and not recurrent.reset_after:
        raise ValueError("to_torch: reset_after is False, which PyTorch cannot express")
    order = np.argsort(ORDER[type(recurrent).__name__.lower()])
    theirs = {_name(name): _rows(name, array, order) for name, array in weights.items()}
    if not recurrent.recurrent_bias:
        theirs |= {
            name.replace("bias_ih", "bias_hh"): np.zeros_like(array)
            for name, array in theirs.items()
            if name.startswith("bias_ih")
        }
    if head is None:
        return theirs
    named = {f"recurrent.{name}": array for name, array in theirs.items()}
    return {**named, "head.weight": head[0].copy(), "head.bias": head[1].copy()}


def _read(source: Any, prefix: str) -> tuple[dict[str, Host], Mapping[str, Any]]:
    """Return the weights whose names begin with the prefix, on the host, and the attributes of
    their module or the metadata of a file.
    """
    if hasattr(source, "named_modules"):
        weights, _ = _read(source.state_dict(), prefix)
        # the same part may have several names
        parts = dict(source.named_modules(remove_duplicate=False))
        part = parts.get(prefix.removesuffix("."))
        about = {name: getattr(part, name) for name in OPTIONS if hasattr(part, name)}
        if f"{prefix}weight_ih_l0" in weights and "batch_first" not in about:
            raise TypeError(
                f"from_torch: a {type(source).__name__} does not show batch_first, expected a"
                " torch.nn.LSTM, GRU or RNN, or its state_dict()"
            )
        return weights, about
    if isinstance(source, Mapping):
        return {
            str(name): floating("from_torch", str(name), array)
            for name, array in source.items()
            if str(name).startswith(prefix)
        }, {}
    path = checks.path("from_torch", "state_dict_or_path", source)
    file = TorchFile(path) if path.suffix in PICKLED else Tensors(path)
    names = [name for name in file.shapes if name.startswith(prefix)]
    arrays = {name: floating("from_torch", name, array) for name, array in file.read(names).items()}
    checkpoint.finite(source, arrays)
    return arrays, getattr(file, "metadata", {})


def _name(ours: str) -> str:
    """Return PyTorch's name of a parameter: "1.reverse.Wx" is "weight_ih_l1_reverse"."""
    k, *direction, last = ours.split(".")
    return f"{NAMES[last]}_l{k}{'_reverse' if direction else ''}"


def _rows(name: str, array: Host, order: Any) -> Host:
    """Return a copy with the blocks of gates in another order; a projection has no gates."""
    return array.copy() if name.endswith("Whr") else reordered(array, order)
