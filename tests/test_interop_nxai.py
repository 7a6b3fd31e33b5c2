"""Published xLSTM checkpoints: their numbers, their files, and what is wrong with some."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xlstm
from tests.conftest import DATA
from tests.docs import blocks
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


def test_large_model_follows_the_package():
    golden = np.load(NXAI / "large_io.npz")
    config = json.loads((NXAI / "large_config.json").read_text())
    model, params = nxai.load(NXAI / "large.safetensors", config, backend="numpy")
    logits, _, _ = model.forward(params, golden["tokens"], train=False)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)
    P, n = golden["prompt"].shape[1], golden["greedy"].shape[1]
    tokens, _ = model.generate(params, golden["prompt"], n)
    np.testing.assert_array_equal(tokens[:, P:], golden["greedy"])


def test_transformers_checkpoint_follows_transformers():
    """A sharded checkpoint that transformers wrote, and its logits."""
    golden = np.load(DATA / "transformers" / "io.npz")
    model, params = nxai.load(DATA / "transformers", backend="numpy")
    logits, _, _ = model.forward(params, golden["tokens"], train=False)
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["block_stack", "large"])
def test_there_and_back_are_the_same_bits(tmp_path, name):
    model, params = nxai.load(NXAI / f"{name}.safetensors", backend="numpy")
    nxai.save(tmp_path / "out", model, params)
    expected, found = load_file(NXAI / f"{name}.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    again, same = nxai.load(tmp_path / "out", backend="numpy")
    assert again == model
    assert all(np.array_equal(same[key], value) for key, value in params.items())
    nxai.save(tmp_path / "one.safetensors", model, params)
    assert nxai.load(tmp_path / "one.safetensors", backend="numpy")[0] == model


def test_shards_fused_weights_and_narrow_dtypes(tmp_path):
    """As several files with an index, in bfloat16, with products fused."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    model, params = nxai.load(NXAI / "large.safetensors", backend="numpy")
    arrays = load_file(NXAI / "large.safetensors")
    fused = {k: v for k, v in arrays.items() if ".blocks." not in k}
    for k in range(2):
        block = f"backbone.blocks.{k}"
        rows = {
            "mlstm_layer.qkv_opreact": ["mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact"],
            "mlstm_layer.ifgate_preact": ["mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"],
            "ffn.proj_up_gate_z": ["ffn.proj_up_gate", "ffn.proj_up"],
        }
        used = set()
        for name, parts in rows.items():
            for last in ("weight", "bias"):
                some = [f"{block}.{part}.{last}" for part in parts if f"{block}.{part}.{last}" in arrays]
                used |= set(some)
                if some:
                    fused[f"{block}.{name}.{last}"] = np.concatenate([arrays[one] for one in some])
        fused |= {n: a for n, a in arrays.items() if n.startswith(block) and n not in used}
    narrow = {name: torch.from_numpy(a.copy()).bfloat16() for name, a in fused.items()}
    listed = sorted(narrow)
    weight_map = {}
    for j in range(3):
        file = f"model-0000{j + 1}-of-00003.safetensors"
        save_torch({name: narrow[name] for name in listed[j::3]}, tmp_path / file)
        weight_map |= dict.fromkeys(listed[j::3], file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text((NXAI / "large_config.json").read_text())
    again, found = nxai.load(tmp_path, backend="numpy")
    assert again == model
    for name, value in params.items():
        assert found[name].dtype == np.float32
        expected = torch.from_numpy(value).bfloat16().float().numpy()
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_kernels_of_cuda(tmp_path):
    """The recurrent kernel and bias of an sLSTM in CUDA's layout."""
    _, params = nxai.load(NXAI / "block_stack.safetensors", backend="numpy")
    arrays = load_file(NXAI / "block_stack.safetensors")
    cell = "xlstm_block_stack.blocks.1.xlstm.slstm_cell"
    R, b = arrays[f"{cell}._recurrent_kernel_"].reshape(2, 4, 8, 8), arrays[f"{cell}._bias_"].reshape(4, 2, 8)
    arrays[f"{cell}._recurrent_kernel_"] = np.ascontiguousarray(R.transpose(0, 3, 1, 2)).reshape(2, 8, 32)
    arrays[f"{cell}._bias_"] = np.ascontiguousarray(b.swapaxes(0, 1)).ravel()
    save_file(arrays, tmp_path / "model.safetensors")
    config = json.loads((NXAI / "block_stack_config.json").read_text())
    _, found = nxai.load(tmp_path, config, backend="numpy")
    assert all(np.array_equal(found[key], value) for key, value in params.items())


def test_configurations_of_the_package():
    """Nested as the package has them, feed-forward layers left out, all blocks of one kind."""
    config = {
        "vocab_size": 9,
        "embedding_dim": 32,
        "num_blocks": 3,
        "context_length": 64,
        "slstm_at": [1],
        "mlstm_block": {"mlstm": {"num_heads": 2, "proj_factor": 1.5, "conv1d_kernel_size": 3}},
        "slstm_block": {"slstm": {"num_heads": 4, "backend": "cuda"}, "feedforward": {"act_fn": "relu^2"}},
        "tie_weights": True,
    }
    model, style = nxai.model_of(config)
    assert style == "xlstm"
    assert model.tied
    assert model.backbone == xlstm.xLSTMStack(
        32,
        3,
        [1],
        2,
        proj_factor=1.5,
        conv_kernel_size=3,
        slstm_conv_kernel_size=4,
        slstm_num_heads=4,
        ffn_activation="square_relu",
        eps=1e-6,
    )
    assert nxai.model_of(nxai.config_of(model))[0] == model
    only, _ = nxai.model_of({**config, "mlstm_block": None, "slstm_block": {"slstm": {}, "feedforward": None}})
    assert only.backbone.slstm_at == (0, 1, 2)
    assert only.backbone.ffn_proj_factor == 0


def test_older_configurations_of_transformers():
    """As of models that were trained before transformers 5."""
    config = {
        **{"model_type": "xlstm", "vocab_size": 23, "embedding_dim": 32, "num_blocks": 2, "num_heads": 2},
        **{"add_embedding_dropout": False, "add_forward_backend_padding": False, "add_post_blocks_norm": True},
        **{"add_post_norm": False, "add_qk_norm": False, "cell_norm_eps": 1e-6, "head_dim": 16, "norm_eps": 1e-6},
        **{"igate_bias_init_range": -10.0, "mlstm_round_up_to_multiple_of": 64, "torch_dtype": "float32"},
        **{"forward_backend_name": "chunkwise", "id2label": {"0": "a"}, "return_dict": True, "max_length": 20},
    }
    model, style = nxai.model_of(config)
    assert style == "transformers"
    assert (model.backbone.qk_size, model.backbone.ffn_size, model.tied) == (16, 128, False)
    with pytest.raises(ValueError, match="add_qk_norm is True, which xlstm cannot express, expected False"):
        nxai.model_of({**config, "add_qk_norm": True})
    with pytest.raises(ValueError, match=r"cell_norm_eps is 0\.1, which"):
        nxai.model_of({**config, "cell_norm_eps": 0.1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "key 'colour' is unknown, expected some of num_blocks, embedding_dim"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"slstm_at": [3]}, "slstm_at has 3, expected 0 to 2"),
        ({"slstm_ffn_act": "tanh"}, "slstm_ffn_act is 'tanh', expected one of gelu"),
        ({"num_heads": 3}, "num_heads"),
        ({"slstm_at": 5}, "slstm_at is 5, expected numbers of blocks or 'all'"),
        ({"tie_weights": "no"}, "tie_weights is 'no', expected True or False"),
        ({"embedding_dim": "16"}, "embedding_dim is '16', expected a whole number"),
        ({"mlstm_proj_factor": "two"}, "mlstm_proj_factor is 'two', expected a number"),
        ({"mlstm_block": {"mlstm": {}}}, "expected some of|is unknown"),
        ({"model_type": "mamba"}, "model_type is 'mamba', expected 'xlstm'"),
        ({"mlstm_block": {"mlstm": {"wings": 2}}}, "expected some of|is unknown"),
    ],
)
def test_bad_configurations_are_named(change, message):
    config = json.loads((NXAI / "block_stack_config.json").read_text())
    with pytest.raises((ValueError, TypeError), match=message):
        nxai.load(NXAI / "block_stack.safetensors", {**config, **change}, backend="numpy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("lm_head.weight"), r"lm_head.weight is missing, expected it in shape \(11, 16\)"),
        (lambda a: a.update(extra=np.zeros(2)), "extra is surplus"),
        (lambda a: a.update({"lm_head.weight": np.zeros((3, 16))}), r"has shape \(3, 16\), expected \(11, 16\)"),
        (lambda a: a["lm_head.weight"].__setitem__((0, 0), np.nan), "lm_head.weight is not finite"),
        (lambda a: a.update({"lm_head.weight": np.zeros((11, 16), "int32")}), "lm_head.weight has dtype I32, expected"),
    ],
)
def test_bad_checkpoints_are_named(tmp_path, change, message):
    arrays = {name: a.copy() for name, a in load_file(NXAI / "block_stack.safetensors").items()}
    change(arrays)
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((NXAI / "block_stack_config.json").read_text())
    with pytest.raises(ValueError, match=message):
        nxai.load(tmp_path, backend="numpy")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        nxai.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in it, expected model\.safetensors"):
        nxai.load(tmp_path)
    save_file({"a": np.zeros(2, "float32")}, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no configuration beside it"):
        nxai.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        nxai.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        nxai.load(tmp_path)


def test_what_theirs_cannot_express_is_refused(tmp_path):
    for model in (
        xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2), 5),
        xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2, eps=1e-6), 5, logit_cap=3.0),
        xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(8, 1, 2), 5, tied=True),
    ):
        with pytest.raises(ValueError, match="save: "):
            nxai.save(tmp_path / "x", model, model.init(backend="numpy"))
    assert not (tmp_path / "x").exists()
    with pytest.raises(TypeError, match="expected an xLSTMLanguageModel"):
        nxai.save(tmp_path / "x", xlstm.LSTM(1, 1), {})


@pytest.mark.parametrize(
    ("name", "tied", "post_norm_bias", "cap"),
    [
        ("4.57-bias", False, False, 30.0),
        ("4.57-uncapped", False, None, None),
        ("5.24-bias", False, False, 30.0),
        ("5.24-tied", False, None, 30.0),  # the head is another array, though tie_word_embeddings is true
    ],
)
def test_options_of_transformers_follow_transformers(tmp_path, name, tied, post_norm_bias, cap):
    """Checkpoints that it wrote, and its logits; those with biases also have `add_out_norm` false, which it ignores."""
    golden = np.load(DATA / "transformers" / name / "io.npz")
    model, params = nxai.load(DATA / "transformers" / name, backend="numpy")
    assert (model.tied, model.logit_cap) == (tied, cap)
    assert (model.backbone.post_norm, model.backbone.post_norm_bias) == (True, post_norm_bias)
    logits, _, _ = model.forward(params, golden["tokens"], train=False)
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=2e-5)
    if cap is not None:  # transformers 5 would not take it
        nxai.save(tmp_path, model, params, style="transformers")
        expected = load_file(DATA / "transformers" / name / "model.safetensors")
        found = load_file(tmp_path / "model.safetensors")
        assert {key: a.shape for key, a in found.items()} == {key: a.shape for key, a in expected.items()}
        assert all(np.array_equal(found[key], a) for key, a in expected.items())


def _large(**options):
    lm = {name: options.pop(name) for name in ("tied", "logit_cap", "embedding_dropout") if name in options}
    size, blocks = options.pop("size", 8), options.pop("num_blocks", 1)
    heads = options.pop("num_heads", 2)
    return xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(size, blocks, heads, **options), 11, **{"logit_cap": 30.0, **lm})


def _random(model):
    """Parameters that are all other than at the beginning, where biases are 0 and gains 1."""
    rng = np.random.default_rng(2)
    return {name: rng.normal(0.5, 0.5, a.shape) for name, a in model.init(backend="numpy", dtype="float64").items()}


@pytest.mark.parametrize("style", nxai.STYLES)
def test_default_chunk_size_is_saved(tmp_path, style):
    """As no key at all, for which theirs takes its own."""
    model = _large()
    assert model.backbone.chunk_size is None
    nxai.save(tmp_path, model, model.init(backend="numpy"), style=style)
    assert "chunk_size" not in json.loads((tmp_path / "config.json").read_text())
    assert nxai.load(tmp_path, backend="numpy")[0] == model


def test_head_of_a_tied_model_is_written_for_transformers(tmp_path):
    """Transformers 4.57 ties them, and 5 draws a head that is missing; both are right where it is the embedding."""
    model = _large(tied=True)
    params = model.init(backend="numpy")
    nxai.save(tmp_path, model, params, style="transformers")
    arrays = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(arrays["lm_head.weight"], arrays["backbone.embeddings.weight"])
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    for gone in (None, "lm_head.weight", "backbone.embeddings.weight"):
        save_file({name: a for name, a in arrays.items() if name != gone}, tmp_path / "model.safetensors")
        again, same = nxai.load(tmp_path, backend="numpy")
        assert again == model
        assert all(np.array_equal(same[name], a) for name, a in params.items())
    save_file({**arrays, "token_embedding.weight": arrays["lm_head.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"token_embedding\.weight is surplus"):
        nxai.load(tmp_path, backend="numpy")


def test_head_of_a_tied_block_stack_is_the_embedding(tmp_path):
    """The package cannot write another."""
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2, eps=1e-6), 5, tied=True)
    nxai.save(tmp_path, model, model.init(backend="numpy"))
    arrays = load_file(tmp_path / "model.safetensors")
    arrays["lm_head.weight"] = arrays["lm_head.weight"] + 1
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight is another array than token_embedding.weight, expected the"):
        nxai.load(tmp_path, backend="numpy")


# By the style a value of each option other than the usual: those that are written, and others with the reason.
FITS = [
    *({"num_heads": 1}, {"size": 49, "qk_size": 1, "num_heads": 1, "ffn_size": 5}),  # 1 / 49 * 49 is less than 1
    *({"qk_size": 6}, {"v_size": 12}, {"ffn_size": 77}, {"gate_cap": 2}, {"norm_eps": 0.1}, {"eps": 1}),
    *({"chunk_size": 5}, {"logit_cap": 2}),
]
PACKAGE_ONLY = [{"gate_cap": None}, {"logit_cap": None}, {"bias": True}, {"bias": True, "post_norm": False}]
TRANSFORMERS_ONLY = [{"tied": True}, {"bias": True, "post_norm_bias": False}]
NO_BIAS = "post_norm_bias is True, expected False as"
WRITTEN = [
    *(("xlstm", options, None) for options in (*FITS, *PACKAGE_ONLY, {"post_norm": False})),
    ("xlstm", {"post_norm_bias": True}, f"{NO_BIAS} the package has all"),
    ("xlstm", {"bias": True, "post_norm_bias": False}, "post_norm_bias is False, expected True as the package has"),
    ("xlstm", {"tied": True}, "has no tied head"),
    *((style, {"embedding_dropout": 0.1}, "embedding_dropout is 0.1") for style in nxai.STYLES),
    *(("transformers", options, None) for options in (*FITS, *TRANSFORMERS_ONLY)),
    *(("transformers", {cap: None}, f"{cap} is None, expected a number") for cap in ("gate_cap", "logit_cap")),
    *(("transformers", {name: True}, f"{NO_BIAS} transformers has none") for name in ("bias", "post_norm_bias")),
    ("transformers", {"post_norm": False}, "post_norm is False, expected True"),
]


@pytest.mark.parametrize(("style", "options", "reason"), WRITTEN, ids=str)
def test_options_of_large_models_are_written_or_refused(tmp_path, style, options, reason):
    """A checkpoint holds the whole model, so that no option is lost without a word."""
    model = _large(**options)
    params = _random(model)
    if reason is not None:
        with pytest.raises(ValueError, match=f"save: .*{reason}"):
            nxai.save(tmp_path / "x", model, params, style=style)
        assert not (tmp_path / "x").exists()
        return
    nxai.save(tmp_path, model, params, style=style)
    again, same = nxai.load(tmp_path, backend="numpy")
    tokens = np.arange(22).reshape(2, 11) % 11
    expected, found = (m.forward(p, tokens, train=False)[0] for m, p in ((model, params), (again, same)))
    np.testing.assert_array_equal(found, expected)
    assert again.backbone == model.backbone
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("norm_eps", "eps", "gate_soft_cap", "output_logit_soft_cap", "qk_dim_factor"):
        assert config[name] is None or type(config[name]) is float, name  # transformers 5 takes no whole number


def test_every_option_is_in_the_list():
    listed = {name for _, options, _ in WRITTEN for name in options} | {"num_blocks"}
    fields = {f.name for kind in (xlstm.xLSTMLarge, xlstm.xLSTMLanguageModel) for f in dataclasses.fields(kind)}
    assert fields - listed == {"backbone", "vocab_size", "batch_first"}


def test_cache_of_transformers_is_off_where_it_would_fail(tmp_path):
    """It takes widths of states to be multiples of 64."""
    for size, fits in ((8, False), (128, True)):
        model = _large(size=size)
        nxai.save(tmp_path, model, model.init(backend="numpy"), style="transformers")
        assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is fits


def test_loader_of_the_package_finds_its_configuration(tmp_path):
    """In YAML, whose numbers have a point."""
    yaml = pytest.importorskip("yaml")
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(np.int64(8), 1, 2, eps=1e-6), np.int64(5), logit_cap=1e30)
    nxai.save(tmp_path, model, model.init(backend="numpy"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    assert (config["eps"], config["output_logit_soft_cap"]) == (1e-6, 1e30)
    (tmp_path / "config.json").unlink()
    assert nxai.load(tmp_path, backend="numpy")[0] == model


def test_large_model_of_few_keys_is_known_by_its_arrays():
    """Its configuration could be that of a block stack."""
    config = json.loads((NXAI / "large_config.json").read_text())
    few = {name: config[name] for name in ("embedding_dim", "num_heads", "num_blocks", "vocab_size")}
    model, params = nxai.load(NXAI / "large.safetensors", few, backend="numpy")
    golden = np.load(NXAI / "large_io.npz")
    logits, _, _ = model.forward(params, golden["tokens"], train=False)
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)


def test_dropout_of_feed_forward_layers_is_theirs(tmp_path):
    """The package has a rate of its own for them, 0 by default."""
    for dropout, given, expected in ((0.2, None, None), (0.2, 0.0, 0.0), (0.0, 0.3, 0.3), (0.2, 0.2, None)):
        stack = xlstm.xLSTMStack(8, 2, [1], 2, eps=1e-6, dropout=dropout, ffn_dropout=given)
        model = xlstm.xLSTMLanguageModel(stack, 5)
        nxai.save(tmp_path, model, model.init(backend="numpy"))
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["slstm_block"]["feedforward"]["dropout"] == (dropout if given is None else given)
        assert config["context_length"] > 0  # the package takes none without it
        assert nxai.load(tmp_path, backend="numpy")[0].backbone.ffn_dropout == expected
    del config["slstm_block"]["feedforward"]["dropout"]
    assert nxai.model_of({**config, "dropout": 0.1})[0].backbone.ffn_dropout == 0.0
    for block in (None, {"slstm": {}, "feedforward": None}):
        only = {**config, "dropout": 0.1, "slstm_at": [] if block is None else [1], "slstm_block": block}
        assert nxai.model_of(only)[0].backbone.ffn_dropout is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slstm": {"input_shape": "SBGNH"}}, "slstm_block.slstm: input_shape is 'SBGNH', which xlstm cannot express"),
        ({"slstm": {"output_shape": "SBNH"}}, "output_shape is 'SBNH', which xlstm cannot express, expected 'BNSH'"),
        ({"feedforward": {"bias": True}}, "slstm_block.feedforward: bias is True, which xlstm cannot express, expect"),
        ({"feedforward": {"dropout": None}}, "dropout is None, expected a number"),
    ],
)
def test_options_of_slstm_blocks_are_refused(change, message):
    config = {"vocab_size": 9, "embedding_dim": 8, "mlstm_block": {}, "slstm_block": change, "slstm_at": [0]}
    with pytest.raises((ValueError, TypeError), match=message):
        nxai.model_of(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected True or False"),
        ({"inference_state_dtype": "bfloat16"}, "inference_state_dtype is 'bfloat16', which xlstm cannot express"),
        ({"norm_eps": None}, "norm_eps is None, expected a number"),
        ({"qk_dim_factor": None}, "qk_dim_factor is None, expected a number"),
        ({"num_heads": None}, "num_heads is None, expected a whole number"),
    ],
)
def test_bad_configurations_of_transformers_are_named(change, message):
    config = json.loads((DATA / "transformers" / "config.json").read_text())
    with pytest.raises((ValueError, TypeError), match=message):
        nxai.model_of({**config, **change})


def test_convolutions_that_the_package_fails_at_are_refused(tmp_path):
    """Those of one step, but only in blocks that there are."""
    for options, fails in (
        ({"conv_kernel_size": 1}, True),
        ({"conv_kernel_size": 1, "slstm_at": [0], "slstm_conv_kernel_size": 2}, False),
        ({"slstm_at": [0], "slstm_conv_kernel_size": 1}, True),
        ({"slstm_conv_kernel_size": 1}, False),
    ):
        model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 1, num_heads=2, eps=1e-6, **options), 5)
        if fails:
            with pytest.raises(ValueError, match="save: conv_kernel_size is 1, expected 2 or more"):
                nxai.save(tmp_path, model, model.init(backend="numpy"))
        else:
            nxai.save(tmp_path, model, model.init(backend="numpy"))


def test_the_block_of_the_page_runs(tmp_path, monkeypatch):
    (block,) = (b for b in blocks(DATA.parents[1] / "docs" / "interop.md") if "nxai.save" in b)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(block, found)
    assert found["tokens"].shape == (1, 8)
