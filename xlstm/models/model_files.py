"""Files of models and layers: save and load them with their parameters."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from typing import Any

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import DType, Params
from xlstm.core.places import imported
from xlstm.data import reading
from xlstm.layers.blocks.block import Backbone
from xlstm.layers.module import Module
from xlstm.layers.recurrent import LAYERS as GATED
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SequenceModel

KIND = "model"
# Where the layers are that files may hold, besides the gated ones; each is imported on first use.
LAYERS = {
    "mLSTM": "xlstm.layers.matrix_memory",
    "xLSTMStack": "xlstm.layers.blocks.stack",
    "xLSTMLarge": "xlstm.layers.blocks.large",
    "mLSTMBlock": "xlstm.layers.blocks.stack",
    "sLSTMBlock": "xlstm.layers.blocks.stack",
    "TiRex": "xlstm.models.tirex.tirex1",
    "TiRex2": "xlstm.models.tirex.tirex2",
    "ExponentialSmoothing": "xlstm.layers.smoothing",
    "ESRNN": "xlstm.models.esrnn",
}
ARRAYS = 8  # the fewest arrays of a block


def save(path: str | os.PathLike[str], model: Module, params: Params) -> None:
    """Save a model or layer with its parameters to a safetensors file.

    The file also holds the model's description. It is written completely or not at all.

    Parameters
    ----------
    path : path
    model : SequenceModel, ESRNN, xLSTMLanguageModel, TiRex, TiRex2, or a layer
    params : dict of str to array

    Raises
    ------
    ValueError
        `params` do not belong to the model.
    TypeError
        `model` is an instance of another class.
    OSError
        The folder cannot be written to.
    """
    config = config_of("save", model)
    model.check(params)
    checkpoint.save(path, params, KIND, config)


@reading.brief()
def load(
    path: str | os.PathLike[str], backend: str | Backend | None = None, dtype: DType | None = None
) -> tuple[Module, Params]:
    """Load a model or layer and its parameters from a file that `save` wrote.

    Parameters
    ----------
    path : path
    backend : str or Backend, optional
        The backend of the parameters, or its name as for `xlstm.backend`; by default "auto".
    dtype : str, optional
        A dtype of NumPy or its name; by default the dtype in the file.

    Returns
    -------
    model : SequenceModel, ESRNN, xLSTMLanguageModel, TiRex, TiRex2, or a layer
    params : dict of str to array

    Raises
    ------
    OSError, ValueError
        The file does not exist, or it does not hold a valid model.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import xlstm
    >>> from xlstm import models
    >>> model = models.SequenceModel(xlstm.GRU(8, 16), output_size=2, last=True)
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "model.safetensors")
    >>> models.save(path, model, model.init(backend="numpy"))
    >>> model, params = models.load(path, backend="numpy")
    >>> model.output_size
    2
    >>> folder.cleanup()
    """
    arrays, config = checkpoint.load(path, KIND)
    with checkpoint.sound(path, KIND):
        model = from_config(config, len(arrays))
        model.check(arrays)
    dtypes = {str(array.dtype) for array in arrays.values()}
    if len(dtypes) != 1:
        raise ValueError(
            f"{path}: parameters are of several dtypes, {', '.join(sorted(dtypes))}, expected one"
        )
    home = backend_of(backend, dtypes.pop() if dtype is None else dtype)
    checkpoint.finite(path, arrays, home.dtype)
    return model, {name: home.asarray(array) for name, array in arrays.items()}


def config_of(where: str, model: Any) -> dict[str, Any]:
    """Return the configuration of a model or layer as JSON values, from which `from_config` makes
    it.

    Raises
    ------
    TypeError
        Files do not support the class of `model`; the error begins with `where`.
    """
    layer: Any = model
    head: dict[str, Any] | None = None
    if isinstance(model, SequenceModel | xLSTMLanguageModel):
        first, *others = fields(model)
        layer = getattr(model, first.name)
        head = {field.name: getattr(model, field.name) for field in others}
    name = type(layer).__name__
    if type(layer) is not _layer(name):
        raise TypeError(
            f"{where}: model is a {type(model).__name__}, expected a SequenceModel, an"
            f" xLSTMLanguageModel, or one of {', '.join([*GATED, *LAYERS])}"
        )
    return {"layer": name, "options": asdict(layer), "head": head}


def _layer(name: str) -> Any:
    """Return the class of a layer by its name, or None if files have no such layer."""
    if name in LAYERS:
        return imported(f"{LAYERS[name]}:{name}")
    return GATED.get(name)


def from_config(config: dict[str, Any], count: int | None = None) -> Module:
    """Return the model or layer of a configuration; `count`, the most arrays that its file can
    hold, bounds its depth.

    Raises
    ------
    ValueError, TypeError
        The layer is unknown, or does not take these options.
    """
    name, options, head = (config.get(key) for key in ("layer", "options", "head"))
    layer_class = _layer(name) if isinstance(name, str) else None
    if layer_class is None:
        names = ", ".join([*GATED, *LAYERS])
        raise ValueError(f"layer is {checks.shown(name)}, expected one of {names}")
    # This comes before names are listed, since a file may declare any number of blocks.
    is_deep = issubclass(layer_class, Backbone)
    depth, least = ("num_blocks", ARRAYS) if is_deep else ("num_layers", 1)
    declared = options.get(depth, options.get("recipe")) if isinstance(options, dict) else None
    if isinstance(declared, list):
        depth = "blocks of recipe"
        declared = len(declared)
    if count is not None and isinstance(declared, int) and declared * least > count:
        raise ValueError(f"{depth} is {declared}, expected a model of at most {count} arrays")
    layer: Any = reading.construct("options", layer_class, options)
    if head is None:
        return layer  # type: ignore[no-any-return]
    of_text = isinstance(head, dict) and "vocab_size" in head
    kind: Any = xLSTMLanguageModel if of_text else SequenceModel
    return reading.construct("head", kind, head, layer)  # type: ignore[no-any-return]
