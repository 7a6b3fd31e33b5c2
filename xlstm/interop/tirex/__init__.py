"""Checkpoints of the published forecasters TiRex-1 and TiRex-2, without PyTorch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import pytorch, reading
from xlstm.data.pytorch import TorchFile
from xlstm.data.tensors import Tensors
from xlstm.interop import pieces
from xlstm.interop.shards import Shards, config_beside, files_of, places, write
from xlstm.interop.tirex import names
from xlstm.interop.tirex.config import config_of, model_of
from xlstm.models.tirex import TiRex, TiRex2

CONFIGS = ("config.json", "model-config.yaml", "config.yaml")
PICKLED = (".ckpt", ".pt", ".pth")
HYPER = "hyper_parameters"


@reading.brief()
def load(
    path: str | os.PathLike[str], *, backend: str | Backend | None = None, dtype: str | None = None
) -> tuple[TiRex | TiRex2, Params]:
    """Read TiRex-1 or TiRex-2 from a published checkpoint.

    Parameters
    ----------
    path : path
        A folder with `model.safetensors` or `model.ckpt`, or such a file. The configuration is `config.json` or
        `model-config.yaml` beside it, for a file `NAME.safetensors` also `NAME_config.json`; the checkpoint of TiRex-1
        (`.ckpt`) has its own. Only tensors and plain values of a `.ckpt` are read, and nothing is executed. Arrays are
        read one at a time, under any of the names that the published packages have for them. Those of a safetensors
        file may stay in it until they are used: it may be replaced, but nobody may change it in its place meanwhile.
    backend : str or Backend, optional
        Where the parameters are put: a name as for `xlstm.backend`, by default "auto".
    dtype : str, optional
        The dtype of the parameters; by default that of the checkpoint, and float32 for narrower ones.

    Returns
    -------
    model : TiRex or TiRex2
    params : dict of str to array

    Raises
    ------
    OSError, ValueError, TypeError
        There is no such checkpoint, it is damaged, arrays are missing, surplus, misshapen or not finite, copies of an
        array differ, or a key of the configuration is unknown. Names and shapes are checked before anything is read.
    """
    path = checks.path("load", "path", path)
    file = path / "model.ckpt" if path.is_dir() and not list(path.glob("*.safetensors*")) else path
    if file.suffix in PICKLED and file.is_file():
        pickled = TorchFile(file)
        shards, config = Shards(file, [pickled], names.canonical), _own_config(pickled)
    else:
        shards, config = Shards(path, map(Tensors, files_of(path, " or model.ckpt")), names.canonical), None
    config = config_beside(path, CONFIGS) if config is None else config
    model = model_of(config, f"{path}: config", most=len(shards.shapes))
    theirs = names.pieces_of(model)
    pieces.check(theirs, shards)
    return model, pieces.params(theirs, shards, model.shapes, backend, dtype)


def save(path: str | os.PathLike[str], model: TiRex | TiRex2, params: Params) -> None:
    """Write a checkpoint of TiRex-1 or TiRex-2 with the names and the configuration of the published packages.

    Parameters
    ----------
    path : path
        A folder, which gets `model.safetensors` and `config.json`, as the package of TiRex-2 reads them; a file
        `NAME.safetensors`, which gets `NAME_config.json` beside it; or for TiRex-1 a file `NAME.ckpt`, as its package
        reads it. Each file is written whole or not at all.
    model : TiRex or TiRex2
    params : dict
        Its parameters, on any backend.

    Raises
    ------
    ValueError, TypeError
        The package cannot express the model, or the parameters are not those of the model.
    OSError
        The folder cannot be written to, or a file cannot be replaced.
    """
    path = checks.path("save", "path", path)
    checks.instance((TiRex, TiRex2), "a TiRex or a TiRex2")("save", "model", model)
    model.namespace(params, {})
    config = config_of(model)
    arrays = pieces.written(names.pieces_of(model), {name: to_numpy(p) for name, p in params.items()})
    if path.suffix in PICKLED:
        if not isinstance(model, TiRex):
            raise ValueError(f"save: path is {path}, expected a folder or NAME.safetensors for a TiRex2")
        pytorch.save(path, {HYPER: config}, {names.pickled(name): a for name, a in arrays.items()})
        return
    file, beside = places(path)
    write(file, arrays, {beside: json.dumps(config, indent=2)})


def _own_config(pickled: TorchFile) -> Mapping[str, Any] | None:
    """Return the configuration that a checkpoint of TiRex-1 holds, or None where it holds none."""
    hyper = pickled.content.get(HYPER)
    if not isinstance(hyper, dict) or "model_config" not in hyper:
        return None
    try:
        return {name: pytorch.plain(hyper[name]) for name in ("model_config", "train_ctx_len") if name in hyper}
    except ValueError as error:
        raise ValueError(f"{pickled.path}: {HYPER} are no configuration ({error})") from error
