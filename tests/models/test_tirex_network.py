"""The networks of TiRex-1 and TiRex-2: gradients, recorded numbers of the packages, groups, engines, errors."""

import dataclasses

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.tirex import error, golden, gradients, rows, tokens, written
from xlstm.arrays.convert import to_numpy
from xlstm.cells.slstm import to_bfloat16
from xlstm.engines import engine
from xlstm.engines.numba import jit
from xlstm.models import TiRex, TiRex2
from xlstm.models.tirex.variates import Groups

FILES = ("tirex1/a", "tirex1/b", "tirex1/c", "tirex2/a", "tirex2/b", "tirex2/c")
FIRST = TiRex(4, 2, 2, patch_size=2, quantiles=(0.2, 0.5), input_ff_size=3, context=8)
SIZES = {"patch_size": 2, "quantiles": (0.5,), "input_ff_size": 3, "output_ff_size": 5, "context": 8, "horizon": 4}
SECOND = TiRex2(4, [("mlstm", 2, 2), ("slstm", 1, 1)], **SIZES)
GROUPS = {
    "groups": [7, 1, 7, 3, 1, 3, 3, 2],
    "targets": [True, True, False, True, True, False, False, True],
    "known": [False, False, True, False, False, True, False, False],
}


def inputs_of(model, be, rng, B=3, T=4):
    """Random parameters and tokens."""
    params = {name: be.asarray(p + 0.5 * rng.standard_normal(p.shape)) for name, p in model.draw(rng).items()}
    return params, be.asarray(rng.standard_normal((B, T, model.input_size)))


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.usefixtures("interpreted")
def test_gradient_of_groups(rng, qk_norm):
    """Gradients of y by every parameter, and of y and the states by tokens and the states before.

    Rows are alone, in groups, and known. Gradients of states by parameters are checked without groups, in
    `tests/layers/test_contract.py`.
    """
    model = TiRex2(4, SECOND.recipe, qk_norm=qk_norm, norm_eps=None, activation="gelu", **SIZES)
    params, x = inputs_of(model, make_backend("numpy"), rng, 8, 3)
    _, end = model(params, x)

    def of_params(params):
        y, _, saved = model.forward(params, x, end, **GROUPS)
        return y, (params, saved)

    def of_rest(x, state):
        y, end, saved = model.forward(params, x, state, **GROUPS)
        return (y, end), (params, saved)

    xlstm.gradcheck(of_params, lambda saved, dy: model.backward(*saved, dy)[:1], (params,), directions=1)
    if qk_norm:  # which changes nothing in the ways of states
        xlstm.gradcheck(of_rest, lambda saved, d: model.backward(*saved, *d)[1:], (x, end), directions=1)


def test_backends_agree_on_groups(be, rng):
    """The output and every gradient are NumPy's, with rows of a group in any order."""
    params, x = inputs_of(SECOND, make_backend("numpy"), rng, 8)
    found = []
    for backend in (make_backend("numpy"), be):
        here = {name: backend.asarray(p) for name, p in params.items()}
        y, _, saved = SECOND.forward(here, backend.asarray(x), **GROUPS)
        grads, dx, _ = SECOND.backward(here, saved, y)
        found.append([to_numpy(a) for a in (y, dx, *grads.values())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("which", FILES)
def test_activations_are_those_of_the_package(be, which):
    model, params, io = golden(which, be)
    suffix = "_f64" if "tirex1" in which else ""
    x = be.asarray(tokens(io["tokens_f64" if suffix else "scaled"], model.patch_size))
    given = {} if suffix else rows(io)
    levels, _ = model.hidden(params, x, **given)
    for k, level in enumerate(levels):
        name = f"block{k - 1}{suffix}" if k else f"embed{suffix}"
        assert error(to_numpy(level), io[name]) < (1e-10 if io[name].dtype == np.float64 else 1e-6), name
    if f"head{suffix}" in io:
        y, _, _ = model.forward(params, x, train=False, **given)
        expected = io[f"head{suffix}"]
        assert error(to_numpy(y), expected) < (1e-10 if expected.dtype == np.float64 else 1e-6)


@pytest.mark.parametrize("which", ["tirex1/a", "tirex2/a"])
def test_gradients_are_those_of_the_package(be, which):
    model, params, io = golden(which, be)
    first = "tirex1" in which
    x = be.asarray(tokens(io["tokens_f64" if first else "scaled"], model.patch_size))
    y, _, saved = model.forward(params, x, **({} if first else rows(io)))
    grads, dx, _ = model.backward(params, saved, be.asarray(io["dhead"].reshape(y.shape)))
    if first:
        assert error(to_numpy(dx), io["dinput_f64"]) < 1e-10
    found = written(model, {name: to_numpy(g) for name, g in grads.items()})
    expected = gradients(which)
    assert set(found) == set(expected)
    for name, grad in expected.items():
        assert np.max(abs(found[name] - grad)) < 1e-8 * np.max(abs(grad)), name


@pytest.mark.parametrize("which", ["tirex1/a", "tirex1/b", "tirex1/c"])
def test_rounding_is_that_of_the_package(be, which):
    """Forecasts within a rounding that falls the other way; the exact ones are farther off.

    CuPy's products and exp have other last bits than those of the other libraries, so that a rounding more falls so.
    """
    single = make_backend("strict" if be.name == "array_api_strict" else be.name, "float32")
    model, params, io = golden(which, single, "float32")
    expected = io[f"q_h{model.patch_size}_bf16"]
    x = single.asarray(tokens(io["tokens_f64"], model.patch_size))
    errors = []
    for rounding in ("bfloat16", None):
        same = TiRex(**{**model.__getstate__(), "rounding": rounding})
        y = same.read(params, x, tokens=slice(-1, None))
        q = to_numpy(y)[:, 0, ...].swapaxes(1, 2) * io["scale_f64"][:, None] + io["loc_f64"][:, None]
        errors.append(error(q, expected))
    assert errors[0] < (1e-3 if be.name == "cupy" else 5e-4)
    assert 2e-3 < errors[1] < 2e-2


def test_rounding_to_bfloat16(be, rng):
    """PyTorch's, for numbers of all sizes and for those between two; and it goes with float32 alone."""
    torch = pytest.importorskip("torch")
    x = (rng.standard_normal(2000) * np.exp(8 * rng.standard_normal(2000))).astype(np.float32)
    between = (x.view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)
    x = np.concatenate((x, between, [0.0]), dtype=np.float32)
    found = to_numpy(to_bfloat16(be.xp, be.asarray(x, "float32")))
    np.testing.assert_array_equal(found, torch.from_numpy(x).bfloat16().float().numpy())
    model = TiRex(**{**FIRST.__getstate__(), "rounding": "bfloat16"})
    with pytest.raises(TypeError, match=r"rounding: arrays are .*float64, expected float32"):
        model(*inputs_of(model, be, rng))


@pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
@pytest.mark.parametrize("rounding", [None, "bfloat16"])
def test_the_network_is_compiled(monkeypatch, rng, rounding):
    """It takes Numba by itself, also with the limit of f and with rounding, and gives the reference's numbers."""
    monkeypatch.delenv(jit.VARIABLE, raising=False)
    be = make_backend("numpy", "float32" if rounding else "float64")
    model = TiRex(**{**FIRST.__getstate__(), "rounding": rounding})
    params, x = inputs_of(model, be, rng)
    b = params["blocks.0.cell.b"].copy()
    b[4:8] += 15  # so that the limit of f matters to about half of them
    params["blocks.0.cell.b"] = b
    y, _, saved = model.forward(params, x)
    assert saved["blocks.0.cell"].tape.engine.name == "numba"
    grads, dx, _ = model.backward(params, saved, y)
    found = {"y": y, "dx": dx, **grads}
    with engine.use("array_api"):
        y, _, saved = model.forward(params, x)
        grads, dx, _ = model.backward(params, saved, y)
    for name, a in {"y": y, "dx": dx, **grads}.items():
        assert np.max(abs(found[name] - a)) <= (1e-2 if rounding else 1e-11) * np.max(abs(a)), name


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
def test_outputs_of_some_tokens_and_rows(be, rng, model):
    """They are those of a whole pass, also from a state."""
    params, x = inputs_of(model, be, rng, 8)
    given = GROUPS if model is SECOND else {}
    groups = Groups.of("", 8, **given) if given else None
    state = None
    for _ in range(2):
        expected, end, _ = model.forward(params, x, state, train=False, **given)
        y = model.read(params, x, state, slice(1, 3), np.array([4, 1]), groups)
        np.testing.assert_allclose(to_numpy(y), to_numpy(expected)[[4, 1], 1:3], rtol=1e-12, atol=1e-13)
        state = end


def test_who_sees_whom(rng):
    """Rows alone are as without groups; covariates see no target, targets see all; the order of rows is free."""
    be = make_backend("numpy")
    params, x = inputs_of(SECOND, be, rng, 8)
    alone, _ = SECOND(params, x)
    y, _, _ = SECOND.forward(params, x, **GROUPS)
    same = [b for b in range(8) if np.allclose(y[b], alone[b], rtol=1e-12, atol=1e-12)]
    assert same == [7]
    changed = {}
    for b in range(8):
        other = x.copy()
        other[b] += 1
        z, _, _ = SECOND.forward(params, other, **GROUPS)
        changed[b] = [k for k in range(8) if not np.allclose(z[k], y[k], rtol=1e-9, atol=1e-9)]
    assert changed == {0: [0], 1: [1, 4], 2: [0, 2], 3: [3], 4: [1, 4], 5: [3, 5, 6], 6: [3, 5, 6], 7: [7]}
    order = rng.permutation(8)
    z, _, _ = SECOND.forward(params, x[order], **{name: np.asarray(v)[order] for name, v in GROUPS.items()})
    np.testing.assert_allclose(z, y[order], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": [0, 1]}, r"groups has shape \(2,\), expected whole numbers \(B,\) = \(3,\)"),
        ({"groups": [0.0, 1.0, 1.0]}, r"groups has dtype float64, expected whole numbers"),
        ({"targets": [1, 0, 1]}, "targets has dtype int64, expected truth values"),
        ({"known": "yes"}, "known"),
        ({"known": [True] * 3, "lengths": [1, 2, 3]}, "lengths and groups, targets or known exclude one another"),
    ],
)
def test_groups_that_do_not_fit_are_named(rng, given, message):
    params, x = inputs_of(SECOND, make_backend("numpy"), rng)
    with pytest.raises((TypeError, ValueError), match=f"TiRex2: {message}"):
        SECOND.forward(params, x, **given)


def test_other_models_refuse_groups(rng):
    params, x = inputs_of(FIRST, make_backend("numpy"), rng)
    with pytest.raises(TypeError, match=r"TiRex: groups is \[0, 0, 1\], expected None"):
        FIRST.forward(params, x, groups=[0, 0, 1])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (FIRST, {"num_heads": 3}, "TiRex: size is 4, expected a multiple of num_heads, 3"),
        (FIRST, {"context": 7}, "TiRex: context is 7, expected a multiple of patch_size, 2"),
        (FIRST, {"quantiles": (0.1, 0.9)}, "TiRex: quantiles is .*, expected 0.5 among them"),
        (FIRST, {"quantiles": (0.5, 0.1)}, "TiRex: quantiles is .*, expected rising numbers between 0 and 1"),
        (FIRST, {"quantiles": (0.5, 1.0)}, r"TiRex: quantiles\[1\] is 1.0, expected"),
        (FIRST, {"ffn_proj_factor": 1e-9}, "TiRex: ffn_proj_factor . size is 0, expected"),
        (FIRST, {"rounding": "float16"}, "TiRex: rounding is 'float16', expected one of bfloat16"),
        (SECOND, {"recipe": []}, "TiRex2: recipe is empty, expected a block or more"),
        (SECOND, {"recipe": ["slstm"]}, r"recipe\[0\] is 'slstm', expected \(cell, num_heads, variate_heads\)"),
        (SECOND, {"recipe": [("lstm", 1, 1)]}, r"recipe\[0\].cell is 'lstm', expected one of slstm, mlstm"),
        (SECOND, {"recipe": [("slstm", 3, 1)]}, r"size is 4, expected a multiple of recipe\[0\].num_heads, 3"),
        (SECOND, {"recipe": [("mlstm", 4, 1)]}, r"half of size is 2, expected a multiple of recipe\[0\].num_heads, 4"),
        (SECOND, {"recipe": [("slstm", 1, 0)]}, r"recipe\[0\].variate_heads is 0, expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(model, **options)
