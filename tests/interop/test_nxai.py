"""Published xLSTM checkpoints: their numbers, their files, and what is wrong with some."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xlstm
from tests.conftest import DATA
from tests.interop.bits import same_bits
from xlstm.arrays.convert import to_numpy
from xlstm.interop import nxai

NXAI = DATA / "nxai"


def test_block_stack_follows_the_package(be):
    """Logits, loss and every gradient."""
    golden = np.load(NXAI / "block_stack_io.npz")
    model, params = nxai.load(NXAI / "block_stack.safetensors", backend=be)
    logits, _, saved = model.forward(params, be.asarray(golden["idx"]))
    np.testing.assert_allclose(to_numpy(logits), golden["logits"], rtol=1e-8, atol=1e-8)
    loss, dlogits = model.loss(logits, be.asarray(golden["targets"]))
    np.testing.assert_allclose(float(loss), golden["loss"], rtol=1e-10)
    grads, _, _ = model.backward(params, saved, dlogits)
    found = nxai.exported(model, {name: to_numpy(g) for name, g in grads.items()})
    expected = load_file(NXAI / "block_stack_grads.safetensors")
    assert set(found) == set(expected)
    for name, grad in expected.items():
        np.testing.assert_allclose(found[name], grad, rtol=1e-8, atol=1e-8, err_msg=name)
        assert np.max(np.abs(found[name] - grad)) <= 1e-8 * max(1e-3, np.max(np.abs(grad))), name


LARGE_CONFIG = json.loads((NXAI / "large_config.json").read_text())
FEW = {
    name: LARGE_CONFIG[name] for name in ("embedding_dim", "num_heads", "num_blocks", "vocab_size")
}
RELEASES = DATA / "transformers"


@pytest.mark.parametrize(
    ("path", "recorded", "config", "tolerance"),
    [
        (NXAI / "large.safetensors", NXAI / "large_io.npz", None, 1e-4),
        # the arrays show that it is no block stack
        (NXAI / "large.safetensors", NXAI / "large_io.npz", FEW, 1e-4),
        (RELEASES, RELEASES / "io.npz", None, 1e-4),  # in shards
        *(
            (RELEASES / name, RELEASES / name / "io.npz", None, 2e-5)
            for name in ("4.57-uncapped", "5.24-tied")
        ),
        *(
            (RELEASES / name, RELEASES / name / "io.npz", None, 2e-5)
            for name in ("4.57-bias", "5.24-bias")
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_large_models_follow_the_package_and_transformers(path, recorded, config, tolerance):
    """Logits, greedy tokens, and the bits of files; those with biases have `add_out_norm` false,
    which is ignored.
    """
    golden = np.load(recorded)
    model, params = nxai.load(path, config, backend="numpy")
    logits, _, _ = model.forward(params, golden["tokens"], train=False)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=tolerance)
    if "greedy" in golden:
        P = golden["prompt"].shape[1]
        n = golden["greedy"].shape[1]
        np.testing.assert_array_equal(
            model.generate(params, golden["prompt"], n)[0][:, P:], golden["greedy"]
        )


def test_tied_heads_and_caps_of_transformers(tmp_path):
    """A head that is another array than the embedding makes a model that is not tied, whatever its
    configuration is.
    """
    assert nxai.load(RELEASES / "4.57-uncapped", backend="numpy")[0].logit_cap is None
    model, params = nxai.load(RELEASES / "5.24-tied", backend="numpy")
    assert not model.tied
    arrays = load_file(RELEASES / "5.24-tied" / "model.safetensors")
    arrays["lm_head.weight"] = arrays["backbone.embeddings.weight"]
    shutil.copy(RELEASES / "5.24-tied" / "config.json", tmp_path)
    for gone in (None, "lm_head.weight", "backbone.embeddings.weight"):
        save_file(
            {name: a for name, a in arrays.items() if name != gone}, tmp_path / "model.safetensors"
        )
        model, found = nxai.load(tmp_path, backend="numpy")
        assert model.tied
        same_bits(found, {name: a for name, a in params.items() if name != "head.W"})
    save_file(
        {**arrays, "token_embedding.weight": arrays["lm_head.weight"]},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"no place for token_embedding\.weight"):
        nxai.load(tmp_path, backend="numpy")


def test_narrow_dtypes(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    model, params = nxai.load(NXAI / "large.safetensors", backend="numpy")
    arrays = load_file(NXAI / "large.safetensors")
    narrow = {name: torch.from_numpy(a.copy()).bfloat16() for name, a in arrays.items()}
    save_torch(narrow, tmp_path / "model.safetensors")
    again, found = nxai.load(tmp_path, LARGE_CONFIG, backend="numpy")
    assert again == model
    same_bits(
        found,
        {
            name: torch.from_numpy(value).bfloat16().float().numpy()
            for name, value in params.items()
        },
    )


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import torch
from xlstm.arrays import backend
from xlstm.interop import nxai
backend.HALVES = ()  # a CPU stands in for a GPU
wide, low = (nxai.load(sys.argv[1], backend="torch", dtype=d)[1] for d in ("float32", "bfloat16"))
for name, p in low.items():
    assert p.dtype is torch.bfloat16
    assert torch.equal(p, wide[name].bfloat16())
"""


def test_bfloat16_of_pytorch_needs_no_further_package():
    pytest.importorskip("torch")
    command = [sys.executable, "-c", WITHOUT_ML_DTYPES, NXAI / "large.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_kernels_of_cuda(tmp_path):
    """The recurrent kernel and bias of an sLSTM in CUDA's layout."""
    _, params = nxai.load(NXAI / "block_stack.safetensors", backend="numpy")
    arrays = load_file(NXAI / "block_stack.safetensors")
    cell = "xlstm_block_stack.blocks.1.xlstm.slstm_cell"
    R = arrays[f"{cell}._recurrent_kernel_"].reshape(2, 4, 8, 8)
    b = arrays[f"{cell}._bias_"].reshape(4, 2, 8)
    arrays[f"{cell}._recurrent_kernel_"] = np.ascontiguousarray(R.transpose(0, 3, 1, 2)).reshape(
        2, 8, 32
    )
    arrays[f"{cell}._bias_"] = np.ascontiguousarray(b.swapaxes(0, 1)).ravel()
    save_file(arrays, tmp_path / "model.safetensors")
    _, found = nxai.load(tmp_path, FLAT, backend="numpy")
    same_bits(found, params)


def test_configurations_of_the_package():
    """Nested as the package has them, feed-forward layers left out, all blocks of one kind."""
    config = {
        **{
            "vocab_size": 9,
            "embedding_dim": 32,
            "num_blocks": 3,
            "context_length": 64,
            "slstm_at": [1],
        },
        "mlstm_block": {"mlstm": {"num_heads": 2, "proj_factor": 1.5, "conv1d_kernel_size": 3}},
        "slstm_block": {
            "slstm": {"num_heads": 4, "backend": "cuda"},
            "feedforward": {"act_fn": "relu^2"},
        },
        "tie_weights": True,
    }
    model, style = nxai.model_of(config)
    assert style == "xlstm"
    assert model.tied
    kernels = {"conv_kernel_size": 3, "slstm_conv_kernel_size": 4}
    options = {
        "proj_factor": 1.5,
        "slstm_num_heads": 4,
        "ffn_activation": "square_relu",
        "eps": 1e-6,
    }
    assert model.backbone == xlstm.xLSTMStack(32, 3, [1], 2, **kernels, **options)
    assert nxai.model_of(nxai.config_of(model))[0] == model
    only, _ = nxai.model_of(
        {**config, "mlstm_block": None, "slstm_block": {"slstm": {}, "feedforward": None}}
    )
    assert only.backbone.slstm_at == (0, 1, 2)
    assert only.backbone.ffn_proj_factor == 0
    assert only.backbone.ffn_dropout is None


# As of models that were trained before transformers 5.
OLDER = {
    **{
        "model_type": "xlstm",
        "vocab_size": 23,
        "embedding_dim": 32,
        "num_blocks": 2,
        "num_heads": 2,
    },
    **{
        "add_embedding_dropout": False,
        "add_forward_backend_padding": False,
        "add_post_blocks_norm": True,
    },
    **{
        "add_post_norm": False,
        "add_qk_norm": False,
        "cell_norm_eps": 1e-6,
        "head_dim": 16,
        "norm_eps": 1e-6,
    },
    **{
        "igate_bias_init_range": -10.0,
        "mlstm_round_up_to_multiple_of": 64,
        "torch_dtype": "float32",
    },
    **{
        "forward_backend_name": "chunkwise",
        "id2label": {"0": "a"},
        "return_dict": True,
        "max_length": 20,
    },
}
FLAT = json.loads((NXAI / "block_stack_config.json").read_text())
BLOCKS = {"vocab_size": 9, "embedding_dim": 8, "mlstm_block": {}, "slstm_at": [0]}


def test_older_configurations_of_transformers():
    model, style = nxai.model_of(OLDER)
    backbone = model.backbone
    assert (style, backbone.qk_size, backbone.ffn_size, model.tied) == (
        "transformers",
        16,
        128,
        False,
    )


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (FLAT, {"colour": 1}, "key 'colour' is unknown"),
        (FLAT, {"slstm_ffn_act": "tanh"}, "act_fn is 'tanh'"),
        (BLOCKS, {"mlstm_block": {"mlstm": {"wings": 2}}}, "config.mlstm_block.mlstm: key 'wings'"),
        (BLOCKS, {}, "but there is no slstm_block"),
        (
            BLOCKS,
            {"slstm_block": {"slstm": {"input_shape": "SBGNH"}}},
            "slstm_block.slstm: input_shape",
        ),
        (OLDER, {"weight_mode": "fused"}, "weight_mode is 'fused'"),
        (OLDER, {"add_qk_norm": True}, "add_qk_norm is True"),
        (OLDER, {"cell_norm_eps": 0.1}, "cell_norm_eps is"),
    ],
)
def test_bad_configurations_are_named(config, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        nxai.model_of({**config, **change})


def _large(**options):
    options = {"size": 8, "num_blocks": 1, "num_heads": 2, "logit_cap": 30.0, **options}
    model = {
        name: options.pop(name)
        for name in ("tied", "logit_cap", "embedding_dropout")
        if name in options
    }
    return xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(**options), 11, **model)


def _random(model):
    """Parameters that are all other than at the beginning, where biases are 0 and gains 1."""
    rng = np.random.default_rng(2)
    return {
        name: rng.normal(0.5, 0.5, a.shape)
        for name, a in model.init(backend="numpy", dtype="float64").items()
    }


def test_head_of_a_tied_block_stack_is_the_embedding(tmp_path):
    """The package cannot write another."""
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2, eps=1e-6), 5, tied=True)
    nxai.save(tmp_path, model, model.init(backend="numpy"))
    arrays = load_file(tmp_path / "model.safetensors")
    save_file(
        {**arrays, "lm_head.weight": arrays["lm_head.weight"] + 1}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        ValueError,
        match=r"lm_head.weight is another array than token_embedding.weight, expected the",
    ):
        nxai.load(tmp_path, backend="numpy")


# Options that are written, and models with one that is not.
WRITTEN = [
    # 1 / 49 * 49 < 1
    *({}, {"num_heads": 1}, {"size": 49, "qk_size": 1, "num_heads": 1, "ffn_size": 5}),
    *(
        {"qk_size": 6},
        {"v_size": 12},
        {"ffn_size": 77},
        {"gate_cap": 2},
        {"gate_cap": None},
        {"norm_eps": 0.1},
    ),
    *(
        {"eps": 1},
        {"chunk_size": 5},
        {"logit_cap": 2},
        {"logit_cap": None},
        {"bias": True},
        {"post_norm": False},
    ),
    {"bias": True, "post_norm": False},
]


@pytest.mark.parametrize("options", WRITTEN, ids=str)
def test_options_of_large_models_are_written(tmp_path, options):
    """A checkpoint holds the whole model, so that no option is lost without a word."""
    model = _large(**options)
    params = _random(model)
    nxai.save(tmp_path, model, params)
    again, found = nxai.load(tmp_path, backend="numpy")
    assert again == model
    same_bits(found, params)
    assert ("chunk_size" in json.loads((tmp_path / "config.json").read_text())) == (
        "chunk_size" in options
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_large(post_norm_bias=True), "post_norm_bias is"),
        (_large(bias=True, post_norm_bias=False), "post_norm_bias is"),
        (_large(tied=True), "tied is"),
        (_large(embedding_dropout=0.1), "embedding_dropout is"),
        (xlstm.LSTM(1, 1), "model is LSTM"),
        (xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2, eps=1e-5), 5), "eps=1e-05"),
    ],
)
def test_what_the_packages_do_not_have_is_refused(tmp_path, model, words):
    with pytest.raises((TypeError, ValueError), match=f"save: .*{words}"):
        nxai.save(tmp_path / "x", model, model.init(backend="numpy"))
    assert not list(tmp_path.iterdir())


def test_every_option_is_in_the_list():
    listed = {name for options in WRITTEN for name in options} | {"num_blocks"}
    listed |= {"post_norm_bias", "tied", "embedding_dropout"}  # which are refused
    fields = {
        f.name
        for kind in (xlstm.xLSTMLarge, xlstm.xLSTMLanguageModel)
        for f in dataclasses.fields(kind)
    }
    assert fields - listed == {"backbone", "vocab_size", "batch_first"}


def test_loader_of_the_package_finds_its_configuration(tmp_path):
    """In YAML, whose numbers have a point."""
    yaml = pytest.importorskip("yaml")
    model = xlstm.xLSTMLanguageModel(
        xlstm.xLSTMLarge(np.int64(8), 1, 2, eps=1e-6), np.int64(5), logit_cap=1e30
    )
    nxai.save(tmp_path, model, model.init(backend="numpy"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    assert (config["eps"], config["output_logit_soft_cap"]) == (1e-6, 1e30)
    (tmp_path / "config.json").unlink()
    assert nxai.load(tmp_path, backend="numpy")[0] == model


@pytest.mark.parametrize(
    ("given", "theirs", "expected"), [(None, 0.2, None), (0.0, 0.0, 0.0), (0.2, 0.2, None)]
)
def test_dropout_of_feed_forward_layers_is_theirs(given, theirs, expected):
    """The package has a rate of its own for them, 0 by default."""
    stack = xlstm.xLSTMStack(8, 2, [1], 2, eps=1e-6, dropout=0.2, ffn_dropout=given)
    config = nxai.config_of(xlstm.xLSTMLanguageModel(stack, 5))
    assert config["slstm_block"]["feedforward"]["dropout"] == theirs
    assert config["context_length"] > 0  # the package takes none without it
    assert nxai.model_of(config)[0].backbone.ffn_dropout == expected
    del config["slstm_block"]["feedforward"]["dropout"]
    assert nxai.model_of(config)[0].backbone.ffn_dropout == 0.0
