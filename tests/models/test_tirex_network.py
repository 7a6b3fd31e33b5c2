"""The networks of TiRex-1 and TiRex-2: gradients, recorded numbers of the packages, groups,
engines, errors.
"""

import contextlib
import dataclasses

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import params_of
from tests.tirex import FIRST, SECOND, error, golden, gradients, rows, tokens, written
from xlstm.arrays.convert import to_numpy
from xlstm.cells.slstm import to_bfloat16
from xlstm.engines import engine
from xlstm.engines.numba import jit

FILES = ("tirex1/a", "tirex1/b", "tirex1/c", "tirex2/a", "tirex2/b", "tirex2/c")
GROUPS = {
    "groups": [7, 1, 7, 3, 1, 3, 3, 2],
    "targets": [True, True, False, True, True, False, False, True],
    "known": [False, False, True, False, False, True, False, False],
}


def inputs_of(model, be, rng, B=3, T=4):
    return params_of(model, be, rng), be.asarray(rng.standard_normal((B, T, model.input_size)))


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.usefixtures("interpreted")
def test_gradient_of_groups(rng, qk_norm):
    """Gradients of y by every parameter, and of y and the states by tokens and the states before.

    Rows are alone, in groups, and known. Gradients of states by parameters are checked without
    groups, in `tests/layers/test_contract.py`.
    """
    model = dataclasses.replace(SECOND, qk_norm=qk_norm, norm_eps=None, activation="gelu")
    params, x = inputs_of(model, make_backend("numpy"), rng, 8, 3)
    _, end = model(params, x)

    def of_params(params):
        y, _, saved = model.forward(params, x, end, **GROUPS)
        return y, (params, saved)

    def of_rest(x, state):
        y, end, saved = model.forward(params, x, state, **GROUPS)
        return (y, end), (params, saved)

    xlstm.gradcheck(
        of_params, lambda saved, dy: model.backward(*saved, dy)[:1], (params,), directions=1
    )
    if qk_norm:  # which changes nothing in the ways of states
        xlstm.gradcheck(
            of_rest, lambda saved, d: model.backward(*saved, *d)[1:], (x, end), directions=1
        )


@pytest.mark.parametrize("which", FILES)
def test_activations_are_those_of_the_package(be, which):
    model, params, io = golden(which, be)
    suffix = "_f64" if "tirex1" in which else ""
    x = be.asarray(tokens(io["tokens_f64" if suffix else "scaled"], model.patch_size))
    given = {} if suffix else rows(io)
    levels, _ = model.hidden(params, x, **given)
    for k, level in enumerate(levels):
        name = f"block{k - 1}{suffix}" if k else f"embed{suffix}"
        assert error(to_numpy(level), io[name]) < (
            1e-10 if io[name].dtype == np.float64 else 1e-6
        ), name
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

    CuPy's products and exp have other last bits than those of the other libraries, so that a
    rounding more falls so.
    """
    single = make_backend("strict" if be.name == "array_api_strict" else be.name, "float32")
    model, params, io = golden(which, single, "float32")
    expected = io[f"q_h{model.patch_size}_bf16"]
    x = single.asarray(tokens(io["tokens_f64"], model.patch_size))
    errors = []
    for rounding in ("bfloat16", None):
        same = dataclasses.replace(model, rounding=rounding)
        y = same.read(params, x, tokens=slice(-1, None))
        q = (
            to_numpy(y)[:, 0, ...].swapaxes(1, 2) * io["scale_f64"][:, None]
            + io["loc_f64"][:, None]
        )
        errors.append(error(q, expected))
    assert errors[0] < (1e-3 if be.name == "cupy" else 5e-4)
    assert 2e-3 < errors[1] < 2e-2


def test_rounding_to_bfloat16(be, rng):
    """PyTorch's, for numbers of all sizes and for those between two; and it goes with float32
    alone.
    """
    torch = pytest.importorskip("torch")
    x = (rng.standard_normal(2000) * np.exp(8 * rng.standard_normal(2000))).astype(np.float32)
    between = (x.view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)
    x = np.concatenate((x, between, [0.0]), dtype=np.float32)
    found = to_numpy(to_bfloat16(be.xp, be.asarray(x, "float32")))
    np.testing.assert_array_equal(found, torch.from_numpy(x).bfloat16().float().numpy())
    model = dataclasses.replace(FIRST, rounding="bfloat16")
    with pytest.raises(TypeError, match=r"rounding: arrays are .*float64, expected float32"):
        model(*inputs_of(model, be, rng))


@pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
@pytest.mark.parametrize("rounding", [None, "bfloat16"])
def test_the_network_is_compiled(monkeypatch, rng, rounding):
    """It takes Numba by itself, also with the limit of f and with rounding, and gives the
    reference's numbers.
    """
    monkeypatch.delenv(jit.VARIABLE, raising=False)
    model = dataclasses.replace(FIRST, rounding=rounding)
    params, x = inputs_of(model, make_backend("numpy", "float32" if rounding else "float64"), rng)
    params["blocks.0.cell.b"] = params["blocks.0.cell.b"].copy()
    params["blocks.0.cell.b"][4:8] += 15  # so that the limit of f matters to about half of them
    found = []
    for name in (None, "array_api"):
        with engine.use(name) if name else contextlib.nullcontext():
            y, _, saved = model.forward(params, x)
            assert name or saved["blocks.0.cell"].tape.engine.name == "numba"
            grads, dx, _ = model.backward(params, saved, y)
        found.append({"y": y, "dx": dx, **grads})
    for name, a in found[1].items():
        assert np.max(abs(found[0][name] - a)) <= (1e-2 if rounding else 1e-11) * np.max(abs(a)), (
            name
        )


def test_the_order_of_rows_is_free(rng):
    """Those of a group need not lie beside each other, and a row that is alone sees itself
    alone.
    """
    be = make_backend("numpy")
    params, x = inputs_of(SECOND, be, rng, 8)
    y, _, _ = SECOND.forward(params, x, **GROUPS)
    np.testing.assert_allclose(y[7], SECOND(params, x)[0][7], rtol=1e-12, atol=1e-12)  # it is alone
    order = np.argsort(GROUPS["groups"], kind="stable")
    z, _, _ = SECOND.forward(
        params, x[order], **{name: np.asarray(v)[order] for name, v in GROUPS.items()}
    )
    np.testing.assert_allclose(z, y[order], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "given", "name"),
    [
        (SECOND, {"known": [True] * 3, "lengths": [1, 2, 3]}, "lengths"),
        (FIRST, {"groups": [0, 0, 1]}, "groups"),
    ],
)
def test_groups_that_do_not_fit_are_named(rng, model, given, name):
    params, x = inputs_of(model, make_backend("numpy"), rng)
    with pytest.raises((TypeError, ValueError), match=f"{type(model).__name__}: {name}"):
        model.forward(params, x, **given)
