"""Checkpoints of TiRex-1 and TiRex-2: names, layouts, configurations and files, and what is wrong
with some.
"""

import collections
import json
import mmap
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.attacks.damage import checkpoint_of_torch
from tests.conftest import DATA
from tests.interop.bits import same_bits
from xlstm.interop import tirex
from xlstm.models import TiRex2

FIRST = DATA / "tirex1" / "a"
SECOND = DATA / "tirex2" / "a"
ALIASES = json.loads((SECOND / "aliases.json").read_text())


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def written(folder, arrays, config):
    """A folder with these arrays and this configuration."""
    folder.mkdir(exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(os.name == "nt", reason="there all parameters are read")
def test_parameters_stay_in_their_file_until_they_are_used(tmp_path):
    """Those that lie there as they do here, in the dtype that is asked for; changes do not reach
    the file.
    """
    folder = written(tmp_path / "here", load_file(SECOND / "model.safetensors"), config_of(SECOND))
    before = (folder / "model.safetensors").read_bytes()
    model, params = tirex.load(folder, backend="numpy")
    lying = {name for name, a in params.items() if isinstance(origin(a), mmap.mmap)}
    assert {"blocks.0.mixer.q.W", "blocks.0.combination.W", "input.hidden.b"} <= lying
    assert not {
        name
        for name in lying
        if name.endswith((".qkvo.W", ".up.W", ".cell.Wh")) and "mixer" not in name
    }
    assert not any(
        isinstance(origin(a), mmap.mmap) for a in tirex.load(folder, dtype="float64")[1].values()
    )
    params["blocks.0.mixer.q.W"][:] = 0.0
    assert (folder / "model.safetensors").read_bytes() == before
    tirex.save(folder, model, params)  # in the place of the file that the parameters lie in
    same_bits(tirex.load(folder, backend="numpy")[1], params)


def origin(a):
    """The object whose memory an array has."""
    while isinstance(a, np.ndarray) and a.base is not None:
        a = a.base
    return a.obj if isinstance(a, memoryview) else a


def test_aliases(tmp_path):
    """Each name of an array by itself, and all of them."""
    _, params = tirex.load(SECOND, backend="numpy")
    arrays = load_file(SECOND / "model.safetensors")
    config = config_of(SECOND)
    other = {theirs: alias for alias, theirs in ALIASES.items()}
    copies = {**arrays, **{alias: arrays[theirs] for alias, theirs in ALIASES.items()}}
    older = {name.replace("_bias_", "bias"): a for name, a in arrays.items()}
    for some in ({other.get(name, name): a for name, a in arrays.items()}, copies, older):
        assert some.keys() != arrays.keys()
        same_bits(tirex.load(written(tmp_path / "x", some, config), backend="numpy")[1], params)
    name = "stack.1.time_mixer.rev_cell.recurrent_kernel"
    words = r"is another array than stack\.1\.time_mixer\.fwd_cel"
    for array in (copies[name] + 1, copies[name][:1]):
        with pytest.raises(ValueError, match=rf"{name} {words}"):
            tirex.load(written(tmp_path / "x", {**copies, name: array}, config))


def test_checkpoint_of_lightning(tmp_path):
    """As its trainer writes it, and as a folder of the hub has it."""
    torch = pytest.importorskip("torch")
    model, params = tirex.load(FIRST, backend="numpy")
    arrays = load_file(FIRST / "ckpt_state_dict.safetensors")
    state = collections.OrderedDict((name, torch.from_numpy(a)) for name, a in arrays.items())
    state._metadata = {"": {"version": 1}}
    adam = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1e-3}],
    }
    whole = {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "optimizer_states": [adam],
    }
    whole |= {
        "callbacks": {},
        "hparams_name": "kwargs",
        "hyper_parameters": {**config_of(FIRST), "lr": 0.1},
    }
    torch.save(whole, tmp_path / "model.ckpt")
    for path in (tmp_path / "model.ckpt", tmp_path):
        again, found = tirex.load(path, backend="numpy")
        assert again == model
        same_bits(found, params)


def test_keys_that_may_be_missing_or_change_nothing(tmp_path):
    arrays = load_file(SECOND / "model.safetensors")
    config = config_of(SECOND)
    model, _ = tirex.load(SECOND, backend="numpy")
    for name in ("use_qk_norm", "tta_diff", "tta_sign_flip", "device"):
        del config[name]
    # in which the package ignores what it does not know
    for name in ("scaler_cfg", "stack_out_norm_config"):
        config[name]["colour"] = 1
    del config["stack_out_norm_config"]["eps"]
    config["act_func"] = "torch.nn.modules.activation.SiLU"
    config |= {
        "matmul_precision": "high",
        "postprocessor_cfg": {"a": 1},
        "use_flex_attention": None,
    }
    config["rnn_backend"] = "x"
    for template in config["stack_config"]["templates"].values():
        template["time_mixer"]["num_slstm_heads"] = None
        template["colour"] = 1
    assert tirex.load(written(tmp_path / "x", arrays, config), backend="numpy")[0] == model


def nested(config, path, value):
    """Set a value in dicts in dicts."""
    *outer, last = path.split("/")
    for name in outer:
        config = config[name]
    config[last] = value


@pytest.mark.parametrize(
    ("folder", "path", "value", "message"),
    [
        (FIRST, "model_config/output_patch_size", 8, "output_patch_size is 8"),
        (SECOND, "num_blocks", 3, "recipe has 2 blocks"),
        (SECOND, "act_func", "os.system.SiLU", "act_func is 'os.system.SiLU'"),
        (SECOND, "tokenizer_cfg/input_patch_stride", 2, "input_patch_stride is 2"),
        (SECOND, "stack_config/recipe", ["slstm_attn", "x"], r"recipe\[1\] is 'x'"),
        (SECOND, "stack_config/templates/slstm_attn/time_mixer/model_type", "lstm", "is 'lstm'"),
    ],
)
def test_bad_configurations_are_named(tmp_path, folder, path, value, message):
    config = config_of(folder)
    nested(config, path, value)
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, TypeError), match=message):
        tirex.load(tmp_path, backend="numpy")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in it"):
        tirex.load(tmp_path)
    shutil.copy(FIRST / "model.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match="no configuration beside it"):
        tirex.load(tmp_path)
    content = {"hyper_parameters": {"model_config": {1: 2}}}
    (tmp_path / "model.ckpt").write_bytes(checkpoint_of_torch({}, content))
    with pytest.raises(ValueError, match="hyper_parameters are no configuration"):
        tirex.load(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.ckpt", {}, r"expected a folder or NAME\.safetensors"),
        ("x", {"ffn_proj_factor": 1.0}, "ffn_proj_factor is"),
        ("x", {"activation": "sigmoid"}, "activation is 'sigmoid'"),
    ],
)
def test_what_theirs_cannot_express_is_refused(tmp_path, name, options, message):
    model = TiRex2(16, [("slstm", 2, 2)], patch_size=2, context=4, horizon=2, **options)
    with pytest.raises((TypeError, ValueError), match=f"save: .*{message}"):
        tirex.save(tmp_path / name, model, model.init(backend="numpy"))
    assert not list(tmp_path.iterdir())
