"""Checkpoints of the published forecasters TiRex-1 and TiRex-2, without PyTorch.

The sLSTM's projections named igate and fgate are swapped: fgate feeds the input gate. Recurrent
kernels and biases have the gates' true names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.data.pytorch import PICKLED, TorchFile
from xlstm.data.tensors import Host, Tensors
from xlstm.data.writing import AnyPath
from xlstm.interop import published
from xlstm.interop.published import Layout, Pieces, Shape, Shards, only, options, values
from xlstm.models.tirex import Mixers, TiRex, TiRex2

__all__ = ["load", "save"]

Config = Mapping[str, Any]

CONFIGS = ("config.json", "model-config.yaml", "config.yaml")
HYPER = "hyper_parameters"

# The package's name for each name here, or several names of arrays that are stacked here. The
# sLSTM's igate and fgate are swapped.
EDGES = {
    "input.hidden": "input_patch_embedding.hidden_layer",
    "input.output": "input_patch_embedding.output_layer",
    "input.residual": "input_patch_embedding.residual_layer",
    "output.hidden": "output_patch_embedding.hidden_layer",
    "output.output": "output_patch_embedding.output_layer",
    "output.residual": "output_patch_embedding.residual_layer",
}
# within a block
FIRST_NAMES = {
    "norm": "norm_slstm",
    "i": "slstm_layer.fgate",
    "f": "slstm_layer.igate",
    "z": "slstm_layer.zgate",
    "o": "slstm_layer.ogate",
    "cell.Wh": "slstm_layer.slstm_cell._recurrent_kernel_",
    "cell.b": "slstm_layer.slstm_cell._bias_",
    "outnorm": "slstm_layer.group_norm",
    "ffn_norm": "norm_ffn",
    "ffn.up": "ffn.proj_up_gate ffn.proj_up",
    "ffn.down": "ffn.proj_down",
}
SECOND_NAMES = {
    "norm": "time_mixer.norm_lstm",
    "combination": "time_mixer.combination",
    "ffn_norm": "time_mixer.norm_ffn",
    "ffn.up": "time_mixer.ffn.proj_up_gate time_mixer.ffn.proj_up",
    "ffn.down": "time_mixer.ffn.proj_down",
    "mixer.norm": "variate_mixer.norm_attn",
    "mixer.q": "variate_mixer.attn.WQ",
    "mixer.k": "variate_mixer.attn.WK",
    "mixer.v": "variate_mixer.attn.WV",
    "mixer.o": "variate_mixer.attn.WO",
    "mixer.ffn_norm": "variate_mixer.norm_ffn",
    "mixer.up": "variate_mixer.ffn.wi",
    "mixer.down": "variate_mixer.ffn.wo",
}
SECOND_SLSTM = {
    **SECOND_NAMES,
    "i": "time_mixer.fwd_cell.fgate",
    "f": "time_mixer.fwd_cell.igate",
    "z": "time_mixer.fwd_cell.zgate",
    "o": "time_mixer.fwd_cell.ogate",
    "cell.Wh": "time_mixer.fwd_cell._recurrent_kernel_",
    "cell.b": "time_mixer.fwd_cell._bias_",
    "outnorm": "time_mixer.fwd_cell.group_norm",
}
CELL = "time_mixer.fwd_cell."
SECOND_MLSTM = {
    **SECOND_NAMES,
    "qkvo": f"{CELL}q {CELL}k {CELL}v {CELL}ogate_preact",
    "gates": f"{CELL}igate_preact {CELL}fgate_preact",
    "down": f"{CELL}out_proj",
    "outnorm": f"{CELL}multihead_norm",
}
# prefix of blocks and of the last norm in the pickled checkpoint of TiRex-1
STACK = "block_stack."

FFN_PROJ_FACTOR = 2.6667

# names here by classes of torch.nn
ACTIVATIONS = {"SiLU": "silu", "ReLU": "relu", "GELU": "gelu"}
CELLS = {"bi-slstm": "slstm", "bi-mlstm": "mlstm"}


# Options here by the packages' names: of TiRex-1, whose configuration is hyper_parameters of its
# checkpoint, and of TiRex-2.
MODEL = published.table("quantiles", input_patch_size="patch_size", input_ff_dim="input_ff_size")
BLOCK = published.table("num_blocks", "num_heads", "ffn_proj_factor", embedding_dim="size")
CONTEXT = published.table(train_ctx_len="context")
SECOND = published.table(
    **MODEL,
    embedding_dim="size",
    context_len="context",
    future_len="horizon",
    use_qk_norm="qk_norm",
    tta_sign_flip="sign_flip",
    tta_diff="differencing",
)
SCALER = published.table(use_arcsinh="arcsinh", binaryaware="binary", eps="scale_eps")
# Other keys of TiRex-2: required keys, and keys that change nothing here or may be missing.
PARTS = (
    "output_patch_size",
    "num_blocks",
    "tokenizer_cfg",
    "h_expand",
    "act_func",
    "scaler_cfg",
    "stack_config",
)
OTHERS = (
    "stack_out_norm_config",
    "dropout",
    "device",
    "matmul_precision",
    "postprocessor_cfg",
    "use_flex_attention",
    "rnn_backend",
)
PATCHES = ("input_patch_size", "output_patch_size", "input_patch_stride")  # of the tokenizer
MIXERS = {
    "time_mixer": ("model_type", "embedding_dim", "num_heads", "num_slstm_heads"),
    "variate_mixer": ("embedding_dim", "num_heads"),
}


@reading.brief()
def load(
    path: AnyPath, *, backend: str | Backend | None = None, dtype: str | None = None
) -> tuple[TiRex | TiRex2, Params]:
    """Load TiRex-1 or TiRex-2 from a published checkpoint.

    Parameters
    ----------
    path : path
        A folder with `model.safetensors` or `model.ckpt`, or such a file. The configuration is
        `config.json` or `model-config.yaml` beside it; for a file `NAME.safetensors`, also
        `NAME_config.json`. The checkpoint of TiRex-1 (`.ckpt`) contains its own. Only tensors and
        plain values of a `.ckpt` are read, and nothing is executed. Arrays are read one at a time,
        under any of the published packages' names. Arrays of a safetensors file may stay in it
        until they are used. Until then, you may replace the file, but do not change it in-place.
    backend : str or Backend, optional
        The backend of the parameters, or its name as for `xlstm.backend`; by default "auto".
    dtype : str, optional
        The dtype of the parameters; by default the checkpoint's dtype, or float32 if that is
        narrower.

    Returns
    -------
    model : TiRex or TiRex2
    params : dict of str to array

    Raises
    ------
    OSError, ValueError, TypeError
        The checkpoint does not exist or is damaged; arrays are missing, surplus, misshapen or not
        finite; copies of an array differ; or a key of the configuration is unknown. Names and
        shapes are checked before anything is read.
    """
    path = checks.path("load", "path", path)
    file = path / "model.ckpt" if path.is_dir() and not list(path.glob("*.safetensors*")) else path
    if file.suffix in PICKLED and file.is_file():
        pickled = TorchFile(file)
        shards = Shards(file, [pickled], canonical)
        config = _own_config(pickled)
    else:
        shards = Shards(path, map(Tensors, published.files_of(path)), canonical)
        config = None
    config = published.config_beside(path, CONFIGS) if config is None else config
    read_config = _first if "model_config" in config else _second
    model = read_config(config, f"{path}: config")
    theirs = _pieces(model)
    published.check(theirs, shards)
    return model, published.params(theirs, shards, model.shapes, backend, dtype)


def save(path: AnyPath, model: TiRex | TiRex2, params: Params) -> None:
    """Save TiRex-1 or TiRex-2 as a checkpoint with the published packages' names and configuration.

    Parameters
    ----------
    path : path
        A folder, or a file `NAME.safetensors`. A folder gets `model.safetensors` and `config.json`,
        as the package of TiRex-2 reads them. A file gets `NAME_config.json` beside it. Each file is
        written completely or not at all.
    model : TiRex or TiRex2
    params : dict
        Its parameters, on any backend.

    Raises
    ------
    ValueError, TypeError
        The package cannot express the model, or the parameters do not belong to the model.
    OSError
        The folder cannot be written to, or a file cannot be replaced.
    """
    path = checks.path("save", "path", path)
    checks.instance((TiRex, TiRex2), "a TiRex or a TiRex2")("save", "model", model)
    model.namespace(params, {})
    config = config_of(model)
    arrays = exported(model, params)
    if path.suffix in PICKLED:
        raise ValueError(f"save: path is {path}, expected a folder or NAME.safetensors")
    published.write(path, arrays, json.dumps(config, indent=2))


def _own_config(pickled: TorchFile) -> Mapping[str, Any] | None:
    """Return the configuration in a checkpoint of TiRex-1, or None if it has none."""
    hyper = pickled.content.get(HYPER)
    if not isinstance(hyper, dict) or "model_config" not in hyper:
        return None
    try:
        return {
            name: reading.plain(hyper[name])
            for name in ("model_config", "train_ctx_len")
            if name in hyper
        }
    except ValueError as error:
        raise ValueError(f"{pickled.path}: {HYPER} are no configuration ({error})") from error


def exported(model: TiRex | TiRex2, arrays: Params) -> dict[str, Host]:
    """Return arrays under this library's names, such as parameters or gradients, in the package's
    layout.
    """
    return published.exported(_pieces(model), arrays)


def canonical(name: str) -> str:
    """Return the one name that stands for all names of an array in checkpoints."""
    name = name.removeprefix(STACK).replace(".rev_cell.", ".fwd_cell.")
    name = re.sub(r"\.recurrent_kernel$", "._recurrent_kernel_", name)
    return re.sub(r"_cell\.bias$", "_cell._bias_", name)


def _pieces(model: TiRex | TiRex2) -> Pieces:
    """Return the package's arrays of which each parameter is made."""
    first = isinstance(model, TiRex)
    names = published.block("", "", EDGES)
    names["norm"] = ["out_norm" if first else "stack_out_norm"]
    for k in range(model.num_blocks):
        ours = f"blocks.{k}."
        table = SECOND_SLSTM if f"{ours}cell.Wh" in model.shapes else SECOND_MLSTM
        if first:
            names |= published.block(ours, ours, FIRST_NAMES)
        else:
            names |= published.block(ours, f"stack.{k}.", table)

    def layout(ours: str, theirs: str, shape: Shape) -> Layout | None:
        if ".cell." not in ours:
            return None
        kernel = f"{ours.rpartition('.')[0]}.Wh"
        _, N, K, _ = (n or 0 for n in model.shapes[kernel].values())
        if ours.endswith(".Wh"):  # (4, N, K out, K in)
            return shape, (1, 3, 0, 2), (N, K, 4 * K) if first else (N, K, 4, K)
        return (4, N, K), (1, 0, 2), shape if first else (N, 4, K)

    return published.pieces_of(model.shapes, names, model.size, layout)


def config_of(model: TiRex | TiRex2) -> dict[str, Any]:
    """Return a model's configuration, the reverse of `model_of`; raise ValueError if the package
    cannot express it.
    """
    if not isinstance(model, TiRex):
        return _second_config(model)
    described = {
        **values(model, MODEL),
        "output_patch_size": model.patch_size,
        "block_kwargs": values(model, BLOCK),
    }
    return {"model_config": described, **values(model, CONTEXT)}


def _first(config: Config, where: str) -> TiRex:
    settings = options(config, where, CONTEXT, required=CONTEXT)
    model = config["model_config"]
    where = f"{where}.model_config"
    required = [*MODEL, "output_patch_size", "block_kwargs"]
    settings |= options(model, where, MODEL, required=required)
    only(where, "output_patch_size", model["output_patch_size"], settings["patch_size"])
    where = f"{where}.block_kwargs"
    required = ["num_blocks", "embedding_dim", "num_heads"]
    settings |= options(model["block_kwargs"], where, BLOCK, required=required)
    published.blocks(where, "num_blocks", settings["num_blocks"])
    return TiRex(**settings)


def _second(config: Config, where: str) -> TiRex2:
    required = [*MODEL, "embedding_dim", "context_len", "future_len", *PARTS]
    settings: dict[str, Any] = {"arcsinh": False, "binary": False}
    settings |= options(config, where, SECOND, PARTS + OTHERS, required=required)
    settings |= options(config["scaler_cfg"], f"{where}.scaler_cfg", SCALER)
    P = settings["patch_size"]
    D = checks.size(where, "embedding_dim", config["embedding_dim"])
    only(where, "output_patch_size", config["output_patch_size"], P)
    for name, value in _named(config["tokenizer_cfg"], f"{where}.tokenizer_cfg", PATCHES).items():
        if value is not None:
            only(f"{where}.tokenizer_cfg", name, value, P)
    norm = config.get("stack_out_norm_config")
    eps = None
    if norm is not None:
        eps = options(norm, f"{where}.stack_out_norm_config", {"eps": "eps"}).get("eps", 1e-7)
    # a class of torch.nn, perhaps written with its package
    name = checks.text(where, "act_func", config["act_func"])
    activation = re.sub(r"^torch\.nn\.(.*\.)?", "", name)
    return TiRex2(
        recipe=_recipe(config, f"{where}.stack_config"),
        **settings,
        norm_eps=eps,
        activation=ACTIVATIONS[checks.choice(ACTIVATIONS)(where, "act_func", activation)],
        output_ff_size=int(D * checks.above_0(where, "h_expand", config["h_expand"])),
        ffn_proj_factor=FFN_PROJ_FACTOR,
    )


def _named(
    config: Any, where: str, names: Sequence[str], required: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the values of a dict that may have only these keys."""
    return options(config, where, published.table(*names), (), required=required)


def _recipe(config: Config, where: str) -> list[Mixers]:
    """Return the blocks in order."""
    keys = ("templates", "recipe")
    most = published.blocks(where, "num_blocks", config["num_blocks"])
    templates, recipe = _named(config["stack_config"], where, keys, required=keys).values()
    options(templates, f"{where}.templates", {})
    D = config["embedding_dim"]
    mixers = {
        name: _mixers(template, D, f"{where}.templates.{name}")
        for name, template in templates.items()
    }
    template = checks.choice(mixers)
    names = checks.several(where, "recipe", recipe, "names of templates", template, most)
    if len(names) < most:
        raise ValueError(f"{where}: recipe has {len(names)} blocks, expected num_blocks, {most}")
    return [mixers[name] for name in names]


def _mixers(template: Any, size: int, where: str) -> Mixers:
    options(template, where, {}, required=MIXERS)
    time, variates = (
        _named(template[name], f"{where}.{name}", keys, keys[:2]) for name, keys in MIXERS.items()
    )
    only(f"{where}.time_mixer", "embedding_dim", time["embedding_dim"], size)
    only(f"{where}.variate_mixer", "embedding_dim", variates["embedding_dim"], size)
    cell = CELLS[checks.choice(CELLS)(f"{where}.time_mixer", "model_type", time["model_type"])]
    heads = time.get("num_slstm_heads") if cell == "slstm" else None
    heads = time.get("num_heads", 4) if heads is None else heads
    return Mixers(cell, heads, variates.get("num_heads", 4))


def _second_config(model: TiRex2) -> dict[str, Any]:
    if model.ffn_proj_factor != FFN_PROJ_FACTOR:
        raise ValueError(
            f"save: ffn_proj_factor is {model.ffn_proj_factor}, expected that of TiRex-2,"
            f" {FFN_PROJ_FACTOR}"
        )
    D = model.size
    types = {ours: theirs for theirs, ours in CELLS.items()}
    names = []
    templates = {}
    for cell, heads, variate_heads in model.recipe:
        name = f"{cell}_{heads}_{variate_heads}"
        names.append(name)
        templates[name] = {
            "time_mixer": {
                "model_type": types[cell],
                "embedding_dim": D,
                "num_heads": heads,
                "num_slstm_heads": heads,
            },
            "variate_mixer": {"embedding_dim": D, "num_heads": variate_heads},
            "dropout": 0.0,
            "eps": 1e-7,
        }
    classes = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    activation = checks.choice(classes)("save", "activation", model.activation)
    return {
        **values(model, SECOND),
        "output_patch_size": model.patch_size,
        "scaler_cfg": values(model, SCALER),
        "num_blocks": len(names),
        "tokenizer_cfg": dict.fromkeys(PATCHES, model.patch_size),
        "h_expand": published.factor(D, model.output_ff_size),
        "act_func": classes[activation],
        "stack_config": {"templates": templates, "recipe": names},
        "stack_out_norm_config": None if model.norm_eps is None else {"eps": model.norm_eps},
        "dropout": 0.0,
    }
