"""Checkpoints of the published xLSTM packages, of block stacks and of the large architecture, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.data.tensors import Tensors
from xlstm.interop import pieces
from xlstm.interop.nxai import names
from xlstm.interop.nxai.config import config_of, model_of
from xlstm.interop.shards import Shards, config_beside, files_of, places, write
from xlstm.layers.blocks.backbone import xLSTMStack
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.models.language import xLSTMLanguageModel

STYLES = ("xlstm", "transformers")


@reading.brief()
def load(
    path: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    backend: str | Backend | None = None,
    dtype: str | None = None,
) -> tuple[xLSTMLanguageModel, Params]:
    """Read a language model from a published checkpoint.

    Parameters
    ----------
    path : path
        A safetensors file, or a folder with `model.safetensors` or shards of it, whose arrays have the names of the
        package `xlstm` (block stacks and `xLSTMLarge`, weights single or fused) or of `xLSTMForCausalLM` in
        transformers. Arrays are read one at a time, and may stay in their file until they are used: it may be
        replaced, but nobody may change it in its place meanwhile.
    config : dict, optional
        The configuration, as the package or transformers has it. By default it is read from `config.json` or
        `config.yaml` beside the checkpoint, or for a file `NAME.safetensors` also from `NAME_config.json`.
    backend : str or Backend, optional
        Where the parameters are put: a name as for `xlstm.backend`, by default "auto".
    dtype : str, optional
        The dtype of the parameters; by default that of the checkpoint, and float32 for narrower ones.

    Returns
    -------
    model : xLSTMLanguageModel
        `model.forward(params, tokens)` with tokens (B, T) gives logits (B, T, V).
    params : dict of str to array

    Raises
    ------
    OSError, ValueError, TypeError
        There is no such checkpoint, it is damaged, arrays are missing, surplus, misshapen or not finite, or a key of
        the configuration is unknown. Names and shapes are checked before anything is read.
    """
    path = Path(path)
    shards = Shards(path, map(Tensors, files_of(path)))
    large = any(name.startswith("backbone.") for name in shards.shapes)
    found = config_beside(path, instead=", or config=") if config is None else config
    model, style = model_of(found, most=len(shards.shapes), large=large)
    theirs = names.pieces(model, style, shards.shapes)
    pieces.check(theirs, shards, {names.HEAD, names.embedding_of(model, style)} if model.tied else ())
    if model.tied and not _same_head(model, style, shards):
        model = dataclasses.replace(model, tied=False)
        theirs = names.pieces(model, style, shards.shapes)
    return model, pieces.params(theirs, shards, model.shapes, backend, dtype)


def save(path: str | os.PathLike[str], model: xLSTMLanguageModel, params: Params, *, style: str = "xlstm") -> None:
    """Write a checkpoint that the published package loads, or with `style="transformers"` transformers.

    Parameters
    ----------
    path : path
        A folder, which gets `model.safetensors`, `config.json` and, for an `xLSTMLarge` in the style of the package,
        the `config.yaml` that its loader reads; or a file `NAME.safetensors`, which gets `NAME_config.json` beside
        it. Each is written whole or not at all. They are replaced once all are on the disk; if the system refuses to
        replace one of them, those before it are new already.
    model : xLSTMLanguageModel
        Its backbone is an `xLSTMStack` or `xLSTMLarge`.
    params : dict
        Its parameters, on any backend.
    style : {"xlstm", "transformers"}
        The package whose names and configuration are written.

    Raises
    ------
    ValueError, TypeError
        The other package cannot express the model, or the parameters are not those of the model.
    OSError
        The folder cannot be written to, or a file cannot be replaced.
    """
    checks.choice(STYLES)("save", "style", style)
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, xLSTMStack | xLSTMLarge):
        raise TypeError(f"save: model is {model!r}, expected an xLSTMLanguageModel of an xLSTMStack or xLSTMLarge")
    model.namespace(params, {})
    config = config_of(model, style)
    arrays = names.written(model, style, {name: to_numpy(p) for name, p in params.items()})
    file, beside = places(Path(path))
    texts = {beside: json.dumps(config, indent=2)}
    if beside.name == "config.json" and style == "xlstm" and isinstance(backbone, xLSTMLarge):
        texts[beside.with_name("config.yaml")] = _yaml(config)
    write(file, arrays, texts)


def _yaml(config: Mapping[str, Any]) -> str:
    """Return a configuration without others in it as YAML, where 1e-06 would be a string."""
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
    return re.sub(r"(: \d+)e", r"\1.0e", lines)


def _same_head(model: xLSTMLanguageModel, style: str, shards: Shards) -> bool:
    """Say whether the head of a tied model is the embedding; transformers 5 keeps them apart whatever it is told."""
    embedding = names.embedding_of(model, style)
    both = {names.HEAD, embedding} <= set(shards.shapes)
    if not both or np.array_equal(shards.read(names.HEAD), shards.read(embedding)):
        return True
    if style == "transformers" and shards.shapes[names.HEAD] == shards.shapes[embedding]:
        return False
    raise ValueError(f"{shards.path}: {names.HEAD} is another array than {embedding}, expected the same as it is tied")
