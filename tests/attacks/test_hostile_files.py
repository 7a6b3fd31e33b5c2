"""Hostile files by name: each is refused for what it is, in bounded time and memory."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

import xlstm
from tests.attacks.bounds import refusal
from tests.attacks.damage import opened, safetensors, sealed, tokenizer, zipped
from xlstm.data import reading, text
from xlstm.estimators import Forecaster
from xlstm.interop import nxai
from xlstm.interop.keras import from_keras, to_keras
from xlstm.interop.torch import from_torch
from xlstm.models import TiRex2, model_files

LONG_NUMBER = "1" + "0" * 400
DEEP = "[" * 100_000


def refused(call, path, words):
    """Refused for the reason that is expected."""
    error = refusal(call, os.path.getsize(path))
    assert error is not None
    assert words in str(error), str(error)


def array(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "length beyond the file": (
        (2**63).to_bytes(8, "little") + b"{}",
        "not a readable safetensors file",
    ),
    "long header": (lambda: safetensors(b"{" + b" " * (9 << 20) + b"}"), "expected at most"),
    "deep header": (safetensors(DEEP.encode()), "not a readable safetensors file"),
    "unknown dtype": (
        safetensors({"a": array([8], dtype="F8_E4M3")}, bytes(8)),
        "a: dtype is 'F8_E4M3', expected one",
    ),
    "large shape": (
        safetensors({"a": array([10**18])}, bytes(8)),
        "not a readable safetensors file",
    ),
    "empty large shape": (
        safetensors({"a": array([0, 10**18, 10**18], [0, 0])}),
        "which no array can have",
    ),
    "too long": (safetensors({"a": array()}, bytes(12)), "file not fully covered"),
    "long name": (
        safetensors({"x" * 100_000: array(dtype="F8_E4M3", shape=[8])}, bytes(8)),
        "xxx ... ",
    ),
    "control characters": (
        safetensors({"\x1b[2J": array(dtype="F8_E4M3", shape=[8])}, bytes(8)),
        r"\x1b[2J",
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(tmp_path, name):
    blob, words = SAFETENSORS[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(blob() if callable(blob) else blob)
    for read in (
        model_files.load,
        lambda path: from_torch(path, "lstm"),
        lambda path: nxai.load(path, {}),
    ):
        refused(lambda read=read: read(path), path, words)


def test_thousands_of_empty_arrays(tmp_path):
    """As many as there are blocks in a configuration beside them."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors({f"a{k}": array([0], [0, 0]) for k in range(3000)}))
    config = {
        "vocab_size": 5,
        "embedding_dim": 8,
        "num_blocks": 1000,
        "num_heads": 2,
        "slstm_at": "all",
    }
    refused(lambda: nxai.load(path, config), path, "is missing")
    refused(
        lambda: nxai.load(path, {**config, "num_blocks": 60_000}),
        path,
        "num_blocks is 60000, expected at most",
    )


LSTM = {"layer": "LSTM", "options": {"input_size": 2, "hidden_size": 3}, "head": None}
STACK = {"layer": "xLSTMStack", "options": {"size": 8, "num_blocks": 1}, "head": None}


def described(about, **options):
    """A description with other options."""
    return json.dumps({**about, "options": {**about["options"], **options}})


TWO = TiRex2(
    4, [("slstm", 1, 1)], patch_size=2, quantiles=(0.5,), input_ff_size=3, context=8, horizon=4
)
MANY_BLOCKS = {
    "layer": "TiRex2",
    "options": {**TWO.__getstate__(), "recipe": [["slstm", 1, 1]] * 9999},
    "head": None,
}
MODELS = {
    "many blocks": (
        json.dumps(MANY_BLOCKS),
        "blocks of recipe is 9999, expected a model of at most 3",
    ),
    "deep": (DEEP, "nested more than"),
    "options are a list": (
        '{"layer": "LSTM", "options": []}',
        "options: is [], expected an object",
    ),
    "unknown option": (described(LSTM, wings=2), "unexpected keyword argument 'wings'"),
    "a billion layers": (
        described(LSTM, num_layers=10**9),
        "num_layers is 1000000000, expected a model of at most 3 arrays",
    ),
    "large factor": (described(STACK, proj_factor=1e308), "not a sound model"),
    "head without width": (
        json.dumps({**LSTM, "head": {}}),
        "missing 1 required positional argument: 'output_size'",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_descriptions_of_models(tmp_path, name):
    about, words = MODELS[name]
    if name not in ("deep", "number"):
        about = f'{{"version": 2, "kind": "model", "config": {about}, "digest": ""}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(
        sealed(to_bytes(xlstm.LSTM(2, 3).init(backend="numpy"), metadata={"xlstm": about}))
    )
    refused(lambda: model_files.load(path), path, words)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    layer = xlstm.LSTM(2, 3)
    params = layer.init(backend="numpy")
    params["0.b"][1] = value
    model_files.save(tmp_path / "m", layer, params)
    refused(lambda: model_files.load(tmp_path / "m"), tmp_path / "m", "0.b is not finite")
    (tmp_path / "t").write_bytes(
        to_bytes({"weight_ih_l0": np.full((12, 2), value), "weight_hh_l0": np.ones((12, 3))})
    )
    refused(
        lambda: from_torch(tmp_path / "t", "lstm"), tmp_path / "t", "weight_ih_l0 is not finite"
    )
    to_keras(xlstm.LSTM(2, 3, batch_first=True), params, tmp_path / "k.weights.h5")
    refused(
        lambda: from_keras(tmp_path / "k.weights.h5"), tmp_path / "k.weights.h5", "is not finite"
    )


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    path = tmp_path_factory.mktemp("forecaster") / "f"
    Forecaster(hidden_size=3, window=4, epochs=1, backend="numpy").fit(
        np.sin(np.arange(60.0))
    ).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"hidden_size": 3', '"hidden_size": 300000', "has shape"),
        ('"name": ""', '"name": [[]]', "not a sound forecaster"),
        (
            '"settings": {"dict": {',
            '"settings": {"dict": {"x": 1, ',
            "unexpected keyword argument 'x'",
        ),
        (
            '"series_names_": null',
            '"series_names_": [null]',
            "series_names_[0] is None, expected a string",
        ),
        ('"series_names_": null', '"series_names_": ["a", "b"]', "scaling.units has shape"),
        ('"settings": {', '"settings": [], "now": {', "settings: is [], expected an object"),
        ('"tree": {', '"tree": [], "now": {', "tree is [], expected an object"),
        ('"array": "fitted.ranks"', '"array": "fitted.rank"', "is not one of the values"),
        ('"params": {"dict": {', '"params": {"tuple": [], "other": {', "file: params is "),
        ('"season_": 6', '"season_": -1', "season_ is -1"),
        ('"horizon": 1', '"horizon": 2', "ranks has shape"),
    ],
)
def test_descriptions_of_forecasters(forecaster, tmp_path, old, new, words):
    header, data = opened(forecaster)
    about = header["__metadata__"]["xlstm"]
    assert old in about
    header["__metadata__"]["xlstm"] = about.replace(old, new, 1)
    path = tmp_path / "f"
    path.write_bytes(sealed(safetensors(header, data)))
    refused(lambda: Forecaster.load(path, "numpy"), path, words)


SEASONS = "expected at most two rising whole numbers from 2 to"
ROWS = "rows, expected a whole number from 1 to"
NUMBERS = [
    *(("linear_seasons", [value], SEASONS) for value in (0, -3, 2.5, 1e19, 1e300)),
    ("linear_seasons", [6, 4], SEASONS),
    ("linear_seasons", range(2, 12), SEASONS),
    ("smoothing", [1e300, 0, 0, 9, *[0.5] * 5], "smoothing has seasons of [1e+300] steps"),
    ("smoothing", [0, 0, 0], "smoothing has 3 numbers"),
    *(("smoothing", [0, 0, 0, rows, *[0.5] * 4], ROWS) for rows in (0, -1, 1.5, 1e300)),
    ("theta", [0, 0, 0, np.nan, *[0.5] * 4], "theta is not finite"),
    ("power", [-3], "power has -3, expected numbers above 0"),
    ("candidates", [0, 1, 1], "candidates has 0, expected numbers above 0"),
    ("spread", [[-1]], "spread has -1, expected numbers above 0"),
    ("intervals.spread", [[0]], "intervals.spread has 0, expected numbers above 0"),
    ("intervals.scales", [[0], [1]], "intervals.scales has 0, expected numbers above 0"),
    ("intervals.levels", [[*range(8), 5]], "intervals.levels falls by 2"),
    ("scaling.units", [[0]], "scaling.units has 0, expected numbers above 0"),
    *(("ranks", [[[rank]]], "ranks has 1 rows with other numbers") for rank in (-1, 1)),
    ("ranks", np.empty((0, 1, 1)), "ranks has 0 rows"),
]


@pytest.mark.parametrize(("name", "numbers", "words"), NUMBERS)
def test_numbers_of_forecasters(forecaster, tmp_path, name, numbers, words):
    arrays = from_bytes(forecaster)
    assert f"fitted.{name}" in arrays
    arrays[f"fitted.{name}"] = np.array(numbers, np.float64)
    path = tmp_path / "f"
    path.write_bytes(sealed(to_bytes(arrays, opened(forecaster)[0]["__metadata__"])))
    refused(lambda: Forecaster.load(path, "numpy"), path, words)


def test_any_number_of_coefficients_is_used_a_piece_at_a_time(forecaster, tmp_path):
    """An autoregression may look back further than any series."""
    arrays = from_bytes(forecaster)
    for name in ("fitted.linear_baseline", "fitted.test.linear_baseline"):
        arrays[name] = np.zeros((1, 1, 1 << 19))
    path = tmp_path / "f"
    path.write_bytes(sealed(to_bytes(arrays, opened(forecaster)[0]["__metadata__"])))
    model = Forecaster.load(path, "numpy")
    for use in (model.predict_quantiles, model.score):
        tracemalloc.start()
        try:
            use(np.sin(np.arange(60.0)))
            assert tracemalloc.get_traced_memory()[1] < 10 * path.stat().st_size
        finally:
            tracemalloc.stop()


def test_weights_that_the_dtype_does_not_hold(tmp_path):
    """They would be infinite without a word."""
    layer = xlstm.LSTM(2, 3)
    params = layer.init(backend="numpy", dtype="float64")
    params["0.b"][1] = 1e300
    model_files.save(tmp_path / "m", layer, params)
    assert model_files.load(tmp_path / "m", "numpy")[1]["0.b"][1] == 1e300
    words = "0.b is not finite in float32"
    refused(lambda: model_files.load(tmp_path / "m", "numpy", "float32"), tmp_path / "m", words)


def changed(**changes):
    """A configuration of the large model."""
    return json.dumps({**nxai.config_of(LARGE), **changes})


LARGE = xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(8, 1, 2, chunk_size=64, ffn_size=64), 7)
CONFIGS = {
    "deep": (DEEP, "nested more than"),
    "long number": (changed().replace("64", LONG_NUMBER), "a whole number has more than 40 digits"),
    "infinite factor": (changed(qk_dim_factor="X").replace('"X"', "1e999"), "a number is inf"),
    "many layers": (
        changed(model_type="xlstm", num_hidden_layers=10**9),
        "num_blocks is 1000000000, expected at most",
    ),
    "key twice": ('{"vocab_size": 5, "vocab_size": 6}', "key 'vocab_size' is there twice"),
    "long text": (changed(model_type="x" * 100_000), "model_type is 'xxx"),
    "long": (lambda: f"[{'[],' * 20_000_000}[]]", "is longer than"),
}
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 20)
)
YAML = {
    "deep": ("[" * 50_000, "not readable YAML"),
    "aliases that multiply": (ALIASES, "it has more values than are taken"),
    "alias of itself": ("a: &a [*a]", "nested more than"),
    "key is a number": ("1: 2", "a key is no text"),
    "merge": ("<<: {a: 1}", "key '<<' is unknown"),
    "large exponent": ("dropout: 1e999", "a number is inf"),
    "long": ("a: 1\n" * 400_000, "is longer than"),
}
INDEXES = {
    "no map": ("{}", "weight_map is None"),
    "other folder": ('{"weight_map": {"a": "../model.safetensors"}}', "no such file"),
    "long name": (json.dumps({"weight_map": {"a": "x" * 100_000}}), "File name too long"),
}
BESIDE = {"config.json": CONFIGS, "config.yaml": YAML, "model.safetensors.index.json": INDEXES}


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, table in BESIDE.items() for name in table]
)
def test_files_beside_arrays(tmp_path, file, name):
    content, words = BESIDE[file][name]
    content = content() if callable(content) else content
    if not file.startswith("model"):
        (tmp_path / "model.safetensors").write_bytes(
            to_bytes({f"a{k}": np.ones(1) for k in range(9)})
        )
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: nxai.load(tmp_path, backend="numpy"), path, words)


def test_deep_yaml_is_read_no_deeper_than_the_bound():
    for levels in (reading.DEEPEST, reading.DEEPEST + 1):
        assert reading.from_yaml("a", b"[" * levels + b"]" * levels) == json.loads(
            "[" * levels + "]" * levels
        )
    for deep in (b"[" * 66, b"- " * 66, b"{a: " * 66):
        with pytest.raises(
            ValueError, match=r"^a: not readable YAML \(it is nested more than 64 deep\)$"
        ):
            reading.from_yaml("a", deep)


def test_yaml_as_it_is_written(tmp_path):
    """Numbers that YAML 1.1 takes for text, anchors, comments and quotes."""
    nxai.save(tmp_path, LARGE, LARGE.init(backend="numpy"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    others = {
        name: value
        for name, value in config.items()
        if name not in ("eps", "norm_eps", "v_dim_factor")
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in others.items()]
    lines += ["eps: &small 1e-6  # small", "norm_eps: *small", "'v_dim_factor': 1."]
    (tmp_path / "config.yaml").write_text("\n".join(lines) + "\n")
    backbone = nxai.load(tmp_path, backend="numpy")[0].backbone
    assert (backbone.eps, backbone.norm_eps, backbone.v_size) == (1e-6, 1e-6, 8)


def layered(file):
    """The group of an LSTM's weights, without its kernel."""
    group = file.create_group("layers/lstm/cell/vars")
    group["1"], group["2"] = np.ones((3, 12), "float32"), np.ones(12, "float32")
    return group


def kernel(shape=(2, 12), dtype="float32", **options):
    """Fill in a dataset."""
    return lambda group: group.create_dataset("0", shape, dtype, **options)


def link(other):
    return lambda group: group.__setitem__("0", other)


def declared(dims, dtype=h5py.h5t.IEEE_F32LE):
    return lambda group: h5py.h5d.create(group.id, b"0", dtype, h5py.h5s.create_simple(dims))


def virtual(group):
    layout = h5py.VirtualLayout((2, 12), "float32")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (2, 12))
    group.create_virtual_dataset("0", layout)


def stream(group):
    """A small array whose compressed piece unpacks to far more than it declares."""
    dataset = kernel(chunks=(2, 12), compression="gzip")(group)
    dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**24)))


def many_names(group):
    for k in range(4100):
        h5py.h5g.create(group.id, f"x{k}".encode())


PIECES = "does not lie in one piece in the file"
HDF5 = {
    "declared size": (
        declared((10**6, 10**6)),
        "its arrays declare 4000000000192 bytes, the file has",
    ),
    "inflating stream": (stream, PIECES),
    "nothing written": (kernel(), PIECES),
    "virtual": (virtual, PIECES),
    "external data": (kernel(external=[("/etc/hostname", 0, 96)]), PIECES),
    "soft link in a cycle": (link(h5py.SoftLink("/layers")), "there is no LSTM, GRU or SimpleRNN"),
    "texts": (kernel(dtype=h5py.string_dtype()), "has dtype object"),
    "times": (declared((2, 12), h5py.h5t.UNIX_D32LE), "No NumPy equivalent"),
    "deep groups": (lambda group: group.create_group("0" + "/0" * 1000), "or more than 16 levels"),
    "many arrays": (many_names, "more than 4096 groups and arrays"),
}


@pytest.mark.parametrize("name", HDF5)
def test_hdf5(tmp_path, name):
    fill, words = HDF5[name]
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        fill(layered(file))
    refused(lambda: from_keras(path), path, words)


def test_hdf5_attributes_and_cycles_are_not_followed(tmp_path):
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w", libver="latest") as file:
        group = layered(file)
        group["0"] = np.ones((2, 12), "float32")
        group["again"] = group.parent  # a cycle
        group.attrs["name"] = np.zeros(10**6)
        file.attrs["name"] = "x" * 10**6
    refusal(lambda: from_keras(path), os.path.getsize(path))


DENSE = {"class_name": "Dense", "config": {"name": "d"}}
MANY_LAYERS = {"class_name": "Sequential", "config": {"layers": [DENSE] * 20_000}}
KERAS = {
    "deep": (DEEP, "nested more than"),
    "list": ("[]", "config.json is not Keras'"),
    "many layers": (json.dumps(MANY_LAYERS), "there is no LSTM, GRU or SimpleRNN"),
}


@pytest.mark.parametrize("name", KERAS)
def test_configurations_of_keras(tmp_path, name):
    config, words = KERAS[name]
    with h5py.File(tmp_path / "h5", "w") as file:
        layered(file)
    path = tmp_path / "m.keras"
    path.write_bytes(zipped(config.encode(), (tmp_path / "h5").read_bytes()))
    refused(lambda: from_keras(path), path, words)


def replacing(times, name="normalizer", part="normalizers"):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return tokenizer(**{name: {"type": "Sequence", part: [step] * times}})


def model(kind, **options):
    return tokenizer(model={"type": kind, **options})


PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
SPECIAL = {"id": "x", "ids": [0] * 1000, "tokens": ["x"] * 1000}
PAIR = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
LONG_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [PAIR[0], *[{"SpecialToken": {"id": "x", "type_id": 0}}] * 10_000],
    "pair": PAIR,
    "special_tokens": {"x": SPECIAL},
}
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
ADDED = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
BYTES = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 40}
LONG_TOKENS = [{"id": k, "content": f"{k}" + "x" * 8000, **ADDED} for k in range(1000)]
TOKENIZERS = {
    "panic": (tokenizer(normalizer=PANIC), "not a readable tokenizer"),
    "deep": (DEEP, "nested more than"),
    "normalizer doubles": (replacing(40), "may make a text more than"),
    "decoder doubles": (replacing(40, "decoder", "decoders"), "may make a text more than"),
    "bytes of bytes": (tokenizer(pre_tokenizer=BYTES), "may make a text more than"),
    "long template": (tokenizer(post_processor=LONG_TEMPLATE), "it adds more than 1000 tokens"),
    "long added tokens": (tokenizer(added_tokens=LONG_TOKENS), "its added tokens have"),
    "no unk_token": (model("WordLevel", vocab={"a": 0}, unk_token="x"), "cannot encode the prompt"),
    "slow pattern": (tokenizer(pre_tokenizer=SLOW), "cannot encode the prompt"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(tmp_path, name):
    content, words = TOKENIZERS[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused(lambda: text.codec(tmp_path).encode("a b " + "a" * 30 + "b"), path, words)


def test_prompts_are_neither_padded_nor_cut(tmp_path):
    padding = {
        "strategy": {"Fixed": 20_000_000},
        "direction": "Right",
        "pad_to_multiple_of": 20_000_000,
    }
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"}
    truncation = {"max_length": 1, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer(padding=padding, truncation=truncation)))
    found = []
    assert (
        refusal(lambda: found.extend(text.codec(tmp_path).encode("a b c")), os.path.getsize(path))
        is None
    )
    assert found == [0, 1, 2]
