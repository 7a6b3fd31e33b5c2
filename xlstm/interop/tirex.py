"""Checkpoints of the published forecasters TiRex-1 and TiRex-2, without PyTorch.

The sLSTM's projections named igate and fgate are swapped: the one named fgate feeds the input gate. Recurrent kernels
and biases have the gates' true names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import pytorch, reading
from xlstm.data.pytorch import TorchFile
from xlstm.data.tensors import Tensors
from xlstm.interop import published
from xlstm.interop.published import Host, Layout, Pieces, Shape, Shards, config_beside, files_of, places
from xlstm.interop.tirex_config import config_of, model_of
from xlstm.models.tirex import TiRex, TiRex2

CONFIGS = ("config.json", "model-config.yaml", "config.yaml")
PICKLED = (".ckpt", ".pt", ".pth")
HYPER = "hyper_parameters"

EDGES = {
    f"{ours}.{part}": f"{ours}_patch_embedding.{part}_layer"
    for ours in ("input", "output")
    for part in ("hidden", "output", "residual")
}
GATES = {ours: f"{theirs}gate" for ours, theirs in zip("ifzo", "fizo", strict=True)}
KERNEL, BIAS = "_recurrent_kernel_", "_bias_"
FEED_FORWARD = {"ffn.up": "ffn.proj_up_gate ffn.proj_up", "ffn.down": "ffn.proj_down"}

# By our name within a block the name of theirs, or of several that lie one below the other in ours.
FIRST = {
    "norm": "norm_slstm",
    **{ours: f"slstm_layer.{theirs}" for ours, theirs in GATES.items()},
    "cell.Wh": f"slstm_layer.slstm_cell.{KERNEL}",
    "cell.b": f"slstm_layer.slstm_cell.{BIAS}",
    "outnorm": "slstm_layer.group_norm",
    "ffn_norm": "norm_ffn",
    **FEED_FORWARD,
}
SECOND = {
    "norm": "time_mixer.norm_lstm",
    # of an sLSTM
    **{ours: f"time_mixer.fwd_cell.{theirs}" for ours, theirs in GATES.items()},
    "cell.Wh": f"time_mixer.fwd_cell.{KERNEL}",
    "cell.b": f"time_mixer.fwd_cell.{BIAS}",
    # of an mLSTM
    "qkvo": " ".join(f"time_mixer.fwd_cell.{name}" for name in ("q", "k", "v", "ogate_preact")),
    "gates": "time_mixer.fwd_cell.igate_preact time_mixer.fwd_cell.fgate_preact",
    "down": "time_mixer.fwd_cell.out_proj",
    # of both
    "combination": "time_mixer.combination",
    "ffn_norm": "time_mixer.norm_ffn",
    **{ours: " ".join(f"time_mixer.{name}" for name in theirs.split()) for ours, theirs in FEED_FORWARD.items()},
    "mixer.norm": "variate_mixer.norm_attn",
    **{f"mixer.{name}": f"variate_mixer.attn.W{name.upper()}" for name in "qkvo"},
    "mixer.ffn_norm": "variate_mixer.norm_ffn",
    "mixer.up": "variate_mixer.ffn.wi",
    "mixer.down": "variate_mixer.ffn.wo",
}
OUTNORM = {True: "time_mixer.fwd_cell.group_norm", False: "time_mixer.fwd_cell.multihead_norm"}  # sLSTM or mLSTM
STACK = "block_stack."  # before names of blocks and of the last norm in the pickled checkpoint of TiRex-1


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
        shards, config = Shards(file, [pickled], canonical), _own_config(pickled)
    else:
        shards, config = Shards(path, map(Tensors, files_of(path, " or model.ckpt")), canonical), None
    config = config_beside(path, CONFIGS) if config is None else config
    model = model_of(config, f"{path}: config", most=len(shards.shapes))
    theirs = _pieces(model)
    published.check(theirs, shards)
    return model, published.params(theirs, shards, model.shapes, backend, dtype)


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
    arrays = exported(model, {name: to_numpy(p) for name, p in params.items()})
    if path.suffix in PICKLED:
        if not isinstance(model, TiRex):
            raise ValueError(f"save: path is {path}, expected a folder or NAME.safetensors for a TiRex2")
        pytorch.save(path, {HYPER: config}, {_pickled(name): a for name, a in arrays.items()})
        return
    file, beside = places(path)
    published.write(file, arrays, {beside: json.dumps(config, indent=2)})


def _own_config(pickled: TorchFile) -> Mapping[str, Any] | None:
    """Return the configuration that a checkpoint of TiRex-1 holds, or None where it holds none."""
    hyper = pickled.content.get(HYPER)
    if not isinstance(hyper, dict) or "model_config" not in hyper:
        return None
    try:
        return {name: reading.plain(hyper[name]) for name in ("model_config", "train_ctx_len") if name in hyper}
    except ValueError as error:
        raise ValueError(f"{pickled.path}: {HYPER} are no configuration ({error})") from error


def exported(model: TiRex | TiRex2, arrays: Mapping[str, Host]) -> dict[str, Host]:
    """Return arrays under our names, such as parameters or their gradients, as they are there."""
    return published.exported(_pieces(model), arrays)


def _pickled(name: str) -> str:
    """Return the name of an array in the pickled checkpoint of TiRex-1."""
    return name if name.startswith(tuple(EDGES.values())) else STACK + name


def canonical(name: str) -> str:
    """Return the name that stands for all names of an array in checkpoints."""
    name = name.removeprefix(STACK).replace(".rev_cell.", ".fwd_cell.")
    name = re.sub(r"\.recurrent_kernel$", f".{KERNEL}", name)
    return re.sub(r"_cell\.bias$", f"_cell.{BIAS}", name)


def _pieces(model: TiRex | TiRex2) -> Pieces:
    """Return where each of our parameters is there."""
    first = isinstance(model, TiRex)
    names = {part: [name] for part, name in EDGES.items()} | {"norm": ["out_norm" if first else "stack_out_norm"]}
    kernels = {name.removesuffix("cell.Wh"): dims for name, dims in model.shapes.items() if name.endswith(".cell.Wh")}
    for k in range(model.num_blocks):
        ours = f"blocks.{k}."
        table = FIRST if first else {**SECOND, "outnorm": OUTNORM[ours in kernels]}
        names |= published.block(ours, f"blocks.{k}." if first else f"stack.{k}.", table)

    def layout(ours: str, theirs: str, shape: Shape) -> Layout | None:
        if ".cell." not in ours:
            return None
        _, N, K, _ = (n or 0 for n in kernels[ours.partition("cell.")[0]].values())
        if ours.endswith(".Wh"):  # (4, N, K out, K in)
            return Layout(shape, (1, 3, 0, 2), (N, K, 4 * K) if first else (N, K, 4, K))
        return Layout((4, N, K), (1, 0, 2), shape if first else (N, 4, K))

    return published.pieces_of(model.shapes, names, model.size, layout)
