"""Configurations of TiRex-1 and TiRex-2 as models of ours, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.checks import shown
from xlstm.interop.published import BLOCKS, Key, Table, anything, factor, few_blocks, options, take, values
from xlstm.models.tirex import Mixers, TiRex, TiRex2

Config = Mapping[str, Any]
FFN_PROJ_FACTOR = 2.6667

ACTIVATIONS = {"SiLU": "silu", "ReLU": "relu", "GELU": "gelu"}  # our names by those of classes of torch.nn
CELLS = {"bi-slstm": "slstm", "bi-mlstm": "mlstm"}


def _activation(where: str, name: str, value: Any) -> str:
    """Return our name of a class of torch.nn, which may be written with its package."""
    path = checks.text(where, name, value)
    last = path.rpartition(".")[2]
    if path != last and not path.startswith("torch.nn."):
        last = path
    return ACTIVATIONS[checks.choice(ACTIVATIONS)(where, name, last)]


def _norm_eps(where: str, name: str, value: Any) -> Any:
    return None if value is None else take(value, OUT_NORM, f"{where}.{name}")["eps"]


# TiRex-1: hyper_parameters of the checkpoint.
BLOCK = Table(
    {
        "num_blocks": Key(checks.depth, "num_blocks"),
        "embedding_dim": Key(checks.size, "size"),
        "num_heads": Key(checks.size, "num_heads"),
        "ffn_proj_factor": Key(checks.above_0, "ffn_proj_factor", FFN_PROJ_FACTOR),
    },
    ignored=None,
)
PATCHES = {name: Key(checks.size, "patch_size") for name in ("input_patch_size", "output_patch_size")}
QUANTILES = {"quantiles": Key(anything, "quantiles"), "input_ff_dim": Key(checks.size, "input_ff_size")}
CONTEXT = {"train_ctx_len": Key(checks.size, "context")}
FIRST = Table({"model_config": Table({**PATCHES, **QUANTILES, "block_kwargs": BLOCK}), **CONTEXT}, ignored=None)
# TiRex-2: its configuration, the templates of its blocks, and the norm of its stack.
SECOND = Table(
    {
        "embedding_dim": Key(checks.size, "size"),
        "num_blocks": Key(checks.depth),
        **PATCHES,
        "tokenizer_cfg": Table(
            {name: Key(checks.optional(checks.size), usual=None) for name in (*PATCHES, "input_patch_stride")}
        ),
        "context_len": Key(checks.size, "context"),
        "future_len": Key(checks.size, "horizon"),
        **QUANTILES,
        "h_expand": Key(checks.above_0),
        "act_func": Key(_activation, "activation"),
        "scaler_cfg": Table(
            {
                "use_arcsinh": Key(checks.flag, "arcsinh", False),
                "binaryaware": Key(checks.flag, "binary", False),
                "eps": Key(checks.non_negative, "scale_eps", 1e-8),
            },
            ignored=None,
        ),
        "stack_config": Table({"templates": Key(anything), "recipe": Key(anything)}),
        "stack_out_norm_config": Key(_norm_eps, "norm_eps", None),
        "use_qk_norm": Key(checks.flag, "qk_norm", True),
        "tta_sign_flip": Key(checks.flag, "sign_flip", False),
        "tta_diff": Key(checks.flag, "differencing", True),
    },
    ignored=("dropout", "device", "matmul_precision", "postprocessor_cfg", "use_flex_attention", "rnn_backend"),
)
TIME: dict[str, Key | Table] = {
    "model_type": Key(checks.choice(CELLS)),
    "embedding_dim": Key(checks.size),
    "num_heads": Key(checks.size, usual=4),
    "num_slstm_heads": Key(checks.optional(checks.size), usual=None),
}
VARIATES = {"embedding_dim": Key(checks.size), "num_heads": Key(checks.size, usual=4)}
TEMPLATE = Table({"time_mixer": Table(TIME), "variate_mixer": Table(VARIATES)}, ignored=None)
OUT_NORM = Table({"eps": Key(checks.divisor, usual=1e-7)}, ignored=None)


def model_of(config: Config, where: str = "config", most: int = BLOCKS) -> TiRex | TiRex2:
    """Return the model that a configuration describes: TiRex-1 with `model_config`, TiRex-2 with `stack_config`.

    Messages call the configuration `where`. It may have `most` blocks, such as the number of arrays in the checkpoint.
    Raise ValueError or TypeError if it is neither, a key is unknown or missing, or a value is none that ours expresses.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: is a {type(config).__name__}, expected a dict")
    if ("model_config" in config) == ("stack_config" in config):
        problem = f"has the keys {checks.few(map(str, config))}"
        raise ValueError(f"{where}: {problem}, expected model_config for TiRex-1 or stack_config for TiRex-2")
    return _first(config, where, most) if "model_config" in config else _second(config, where, most)


def config_of(model: TiRex | TiRex2) -> dict[str, Any]:
    """Return the configuration of a model, the reverse of `model_of`; raise ValueError if theirs cannot express it."""
    return values(model, FIRST) if isinstance(model, TiRex) else _second_config(model)


def _first(config: Config, where: str, most: int) -> TiRex:
    config = take(config, FIRST, where)
    model = config["model_config"]
    few_blocks(f"{where}.model_config.block_kwargs", "num_blocks", model["block_kwargs"]["num_blocks"], most)
    _same(f"{where}.model_config", "output_patch_size", model["output_patch_size"], model["input_patch_size"])
    return TiRex(**options(config, FIRST))


def _second(config: Config, where: str, most: int) -> TiRex2:
    config = take(config, SECOND, where)
    few_blocks(where, "num_blocks", config["num_blocks"], most)
    P, D = config["input_patch_size"], config["embedding_dim"]
    _same(where, "output_patch_size", config["output_patch_size"], P)
    for name, value in config["tokenizer_cfg"].items():
        _same(f"{where}.tokenizer_cfg", name, P if value is None else value, P)
    return TiRex2(
        recipe=_recipe(config, f"{where}.stack_config"),
        **options(config, SECOND),
        output_ff_size=int(D * config["h_expand"]),
        ffn_proj_factor=FFN_PROJ_FACTOR,
    )


def _recipe(config: Config, where: str) -> list[Mixers]:
    """Return the blocks in their order."""
    templates, recipe = (config["stack_config"][name] for name in ("templates", "recipe"))
    if not isinstance(templates, Mapping):
        raise TypeError(f"{where}: templates is {shown(templates)}, expected a dict")
    if not isinstance(recipe, list | tuple) or not all(isinstance(name, str) for name in recipe):
        raise TypeError(f"{where}: recipe is {shown(recipe)}, expected names of templates")
    if len(recipe) != config["num_blocks"]:
        raise ValueError(f"{where}: recipe has {len(recipe)} blocks, expected num_blocks, {config['num_blocks']}")
    known = {
        name: _mixers(template, config["embedding_dim"], f"{where}.{name}") for name, template in templates.items()
    }
    for name in recipe:
        if name not in known:
            raise ValueError(f"{where}: recipe has {shown(name)}, expected some of {checks.few(known)}")
    return [known[name] for name in recipe]


def _mixers(template: Any, size: int, where: str) -> Mixers:
    parts = take(template, TEMPLATE, where)
    time, variates = parts["time_mixer"], parts["variate_mixer"]
    for name, mixer in parts.items():
        _same(f"{where}.{name}", "embedding_dim", mixer["embedding_dim"], size)
    heads = time["num_heads"]
    if time["model_type"] == "bi-slstm" and time["num_slstm_heads"] is not None:
        heads = time["num_slstm_heads"]
    return Mixers(CELLS[time["model_type"]], heads, variates["num_heads"])


def _second_config(model: TiRex2) -> dict[str, Any]:
    if model.ffn_proj_factor != FFN_PROJ_FACTOR:
        raise ValueError(
            f"save: ffn_proj_factor is {model.ffn_proj_factor}, expected that of TiRex-2, {FFN_PROJ_FACTOR}"
        )
    D = model.size
    types = {ours: theirs for theirs, ours in CELLS.items()}
    names, templates = [], {}
    for cell, heads, variate_heads in model.recipe:
        names.append(f"{cell}_{heads}_{variate_heads}")
        time = {"model_type": types[cell], "embedding_dim": D, "num_heads": heads, "num_slstm_heads": heads}
        variates = {"embedding_dim": D, "num_heads": variate_heads}
        templates[names[-1]] = {"time_mixer": time, "variate_mixer": variates, "dropout": 0.0, "eps": 1e-7}
    classes = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    checks.choice(classes)("save", "activation", model.activation)
    return {
        **values(model, SECOND),
        "num_blocks": len(names),
        "tokenizer_cfg": dict.fromkeys((*PATCHES, "input_patch_stride"), model.patch_size),
        "h_expand": factor(D, model.output_ff_size),
        "act_func": classes[model.activation],
        "stack_config": {"templates": templates, "recipe": names},
        "stack_out_norm_config": None if model.norm_eps is None else {"eps": model.norm_eps},
        "dropout": 0.0,
    }


def _same(where: str, name: str, value: int, expected: int) -> None:
    if value != expected:
        raise ValueError(f"{where}: {name} is {shown(value)}, expected the same as the model's, {expected}")
