"""TiRex-1 and TiRex-2 as ONNX: onnxruntime computes what the networks here compute."""

import numpy as np
import pytest

from tests.conftest import DATA, later
from xlstm.cli import export_import
from xlstm.interop import tirex
from xlstm.models import TiRex, model_files

onnxruntime = later("onnxruntime")
from xlstm.interop.onnx import to_onnx  # noqa: E402

GOLDEN = [f"tirex{k}/{name}" for k in (1, 2) for name in "abc"]


def run(given, tokens):
    """The output of onnxruntime."""
    given = given if isinstance(given, str) else given.SerializeToString()
    (y,) = onnxruntime.InferenceSession(given).run(["y"], {"tokens": tokens})
    return y


def same(found, expected):
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0) <= 1e-5 * np.max(np.abs(expected), initial=1)


@pytest.mark.parametrize("name", GOLDEN)
def test_networks_follow_ours(rng, name):
    model, params = tirex.load(DATA / name, backend="numpy")
    T = (model.context + getattr(model, "horizon", 0)) // model.patch_size
    proto = to_onnx(model, params)
    for B in (1, 3):
        tokens = rng.standard_normal((B, T, model.input_size), dtype=np.float32)
        same(run(proto, tokens), model(params, tokens)[0])


@pytest.mark.parametrize("opset", [14, 18, 21])
def test_other_opsets_and_numbers_of_tokens(rng, opset):
    model, params = tirex.load(DATA / "tirex2" / "b", backend="numpy")
    tokens = rng.standard_normal((2, 5, model.input_size), dtype=np.float32)
    proto = to_onnx(model, params, opset=opset, tokens=5)
    assert proto.opset_import[0].version == opset
    same(run(proto, tokens), model(params, tokens)[0])


def test_networks_of_many_chunks_narrow_heads_and_rounding(rng):
    """More tokens than a chunk of the mLSTM has, heads that are multiplied together, and the package's rounding."""
    model, params = tirex.load(DATA / "tirex2" / "c", backend="numpy")
    tokens = rng.standard_normal((2, 130, model.input_size), dtype=np.float32)
    same(run(to_onnx(model, params, tokens=130), tokens), model(params, tokens)[0])
    options = {"patch_size": 2, "quantiles": (0.2, 0.5), "input_ff_size": 5, "context": 6}
    model = TiRex(24, 1, 8, **options)
    params = {n: rng.normal(0.3, 0.5, a.shape).astype("f4") for n, a in model.init(backend="numpy").items()}
    tokens = rng.standard_normal((2, 3, 4), dtype=np.float32)
    same(run(to_onnx(model, params), tokens), model(params, tokens)[0])
    rounded = TiRex(24, 1, 8, rounding="bfloat16", **options)
    y = model(params, tokens)[0]
    found = run(to_onnx(rounded, params), tokens)
    assert np.max(np.abs(found - rounded(params, tokens)[0])) < np.max(np.abs(found - y))


def test_files_and_the_command_line(tmp_path, rng):
    model, params = tirex.load(DATA / "tirex1" / "c", backend="numpy")
    tokens = rng.standard_normal((2, 7, model.input_size), dtype=np.float32)
    model_files.save(tmp_path / "model.safetensors", model, params)
    export_import.export_file(tmp_path / "model.safetensors", "onnx", tmp_path / "m.onnx")
    same(run(str(tmp_path / "m.onnx"), tokens), model(params, tokens)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 0}, "tokens is 0, expected 1 or more"),
        ({"lengths": True}, "lengths is True, expected False: the tokens of a TiRex are fixed"),
        ({"params": {"a": np.ones(1)}}, r"parameter input\.hidden\.W is missing"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    model, params = tirex.load(DATA / "tirex1" / "c", backend="numpy")
    with pytest.raises(ValueError, match=message):
        to_onnx(**{"layer": model, "params": params, **arguments})
