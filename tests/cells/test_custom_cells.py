"""Cells that users write: the two of docs/cells.md with every option, on every engine, in files and
copies.
"""

import copy
import dataclasses
import pickle
from typing import NamedTuple

import numpy as np
import pytest

import xlstm
from tests import registry
from tests.conftest import ROOT, make_backend
from tests.project.markdown import blocks
from xlstm.engines.numba import jit

PAGE = ROOT / "docs" / "cells.md"


@pytest.fixture(scope="module")
def page():
    """The names that the code blocks of the page define."""
    names = {"__name__": "cells_page"}
    for block in blocks(PAGE):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


KINDS = ("LiGRU", "HGRN")
NEEDS_PRODUCT = {"recurrent_dropout", "recurrent_bias", "layer_norm"}
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    {"reverse": True, "batch_first": True},
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.2},
    {"bias": False},
    {"recurrent_bias": True},
    {"recompute": True},
    {"layer_norm": True},
]


def make(page, kind, options):
    if kind == "HGRN" and (refused := NEEDS_PRODUCT & set(options)):
        with pytest.raises(
            ValueError, match=rf"HGRN: {refused.pop()} is .*, but its cell has no product of h"
        ):
            page[kind](3, 4, **options)
        pytest.skip("it has no product of h")
    return page[kind](3, 4, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", [None, [5, 0, 3]])
@pytest.mark.usefixtures("interpreted")
def test_gradient(rng, page, kind, options, lengths):
    layer = make(page, kind, options)
    given = registry.given(layer, make_backend("numpy"), rng)
    registry.check(layer, *given, lengths=lengths, order=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B", [1, 3])
def test_backends_and_engines_agree(be, rng, monkeypatch, page, kind, B):
    """With NumPy without compiled loops; on NumPy those are compared, where Numba is installed."""
    layer = make(page, kind, {"num_layers": 2, "bidirectional": True, "dropout": 0.3})
    lengths = None if B == 1 else [7, 4, 2]
    found = []
    for backend, compiled in ((make_backend("numpy"), "0"), (be, "")):
        monkeypatch.setenv(jit.VARIABLE, compiled)
        arrays = registry.given(layer, backend, np.random.default_rng(0), 7, B)
        found.append(registry.run(layer, *arrays, lengths, seed=1))
    registry.agree(*found, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_copies(tmp_path, page, kind):
    layer = make(page, kind, {"num_layers": 2})
    assert ("0.Wh" in layer.shapes) == (kind == "LiGRU")
    for model in (layer, xlstm.models.SequenceModel(layer, 2)):
        params = model.init(0, "numpy")
        xlstm.models.save(tmp_path / "model.safetensors", model, params)
        again, found = xlstm.models.load(tmp_path / "model.safetensors", "numpy")
        registry.agree(found, params)
        for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other == model
            assert type(other) is type(model)


@dataclasses.dataclass(frozen=True)
class Peeping(xlstm.Cell):
    """h = act(zx + zh + p h0 + shift): an option, an activation that can be chosen, and a parameter
    of its own.
    """

    activations: tuple = ("tanh",)
    clip: float | None = None
    shift: float = 0.5

    GATES = ("h",)
    PARAMETERS = {"p": 1}  # noqa: RUF012

    class Saved(NamedTuple):
        h: object
        z: object
        h0: object

    def gates(self, xp, zx, zh, h0, p):
        z = zx[0, ...] + zh[0, ...] + p * h0 + self.shift
        h = self._activate(xp, 0, z)
        return h, self.Saved(h, self._kept(z), h0)

    def gates_bwd(self, xp, saved, dh, p):
        dz = self._activate_bwd(xp, 0, dh, saved.z, saved.h)[None, ...]
        return dz, dz, p * dz[0, ...]

    def own_bwd(self, xp, dz, saved, p):
        return {"p": xp.sum(dz[0, ...] * saved.h0, axis=(0, 2))}

    def activated(self, xp, saved):
        return saved.h[None, ...]


@pytest.mark.parametrize(
    "options",
    [{}, {"shift": -0.2, "clip": 0.4}, {"activations": "softsign", "zoneout": 0.2}],
    ids=str,
)
@pytest.mark.usefixtures("interpreted")
def test_options_and_parameters_of_a_cell(rng, options):
    layer = xlstm.register_cell(Peeping)(3, 4, num_layers=2, **options)
    assert layer.shapes["1.p"] == {"1H": 4}
    registry.check(layer, *registry.given(layer, make_backend("numpy"), rng), lengths=[5, 1, 3])


@dataclasses.dataclass(frozen=True)
class Averaging(xlstm.LinearCell):
    """h = a h0 + (1 - a) zx with one a for each unit, as in an LRU, which is a parameter."""

    GATES = ("h",)
    PARAMETERS = {"nu": 1}  # noqa: RUF012

    class Saved(NamedTuple):
        a: object
        b: object
        z: object
        h0: object = None

    def coefficients(self, xp, zx, nu):
        z = zx[0, ...]
        a = xp.exp(-xp.exp(nu)) * xp.ones_like(z)
        return self.Saved(a, (1 - a) * z, z)

    def coefficients_bwd(self, xp, saved, da, db, nu):
        a = saved.a
        return xp.stack(((1 - a) * db, -a * xp.exp(nu) * (da - saved.z * db)))

    def own_bwd(self, xp, dz, saved, nu):
        return {"nu": xp.sum(dz[1, ...], axis=(0, 2))}

    def activated(self, xp, saved):
        return saved.z[None, ...]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "zoneout": 0.2}], ids=str)
def test_parameters_of_a_linear_cell(rng, options):
    layer = xlstm.register_cell(Averaging)(3, 4, num_layers=2, **options)
    given = registry.given(layer, make_backend("numpy"), rng)
    registry.check(layer, *given, lengths=[5, 1, 3], order=2)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (
            lambda page: xlstm.register_cell(Peeping, "LSTM"),
            "register_cell: the name LSTM is taken",
        ),
        (
            lambda page: xlstm.register_cell(Peeping, "xlstm"),
            "register_cell: the name xlstm is taken",
        ),
        (lambda page: page["LiGRU"](3, 4, clip=0.5), "LiGRU: clip"),
    ],
)
def test_errors(page, call, name):
    with pytest.raises((TypeError, ValueError), match=name):
        call(page)


@pytest.mark.parametrize(
    ("base", "function", "results", "words"),
    [
        (Peeping, "gates", None, "returned None, expected h, a NamedTuple"),
        (Peeping, "gates", (0.0, None), r"returned \(0.0, None\), expected h, a NamedTuple"),
        (Peeping, "gates", (0, 1, Peeping.Saved(2, 3, 4)), "returned .*, expected h, a NamedTuple"),
        (Averaging, "coefficients", None, "returned None, expected a NamedTuple"),
    ],
)
def test_results_of_a_cell_are_named(base, function, results, words):
    wrong = dataclasses.make_dataclass("Wrong", (), bases=(base,), frozen=True)
    setattr(wrong, function, lambda *arrays, **own: results)
    with pytest.raises(TypeError, match=f"^Wrong: {function} {words}$"):
        xlstm.register_cell(wrong)


@dataclasses.dataclass(frozen=True)
class Narrow(Averaging):
    """Its a has no axis of steps."""

    def coefficients(self, xp, zx, nu):
        saved = super().coefficients(xp, zx, nu=nu)
        return saved._replace(a=xp.exp(-xp.exp(nu)))


@pytest.mark.usefixtures("interpreted")
def test_wrong_linear_cells(rng):
    missing = dataclasses.make_dataclass("Missing", (), bases=(xlstm.LinearCell,), frozen=True)
    missing.GATES = ("h",)
    with pytest.raises(ValueError, match="Missing has no coefficients, expected coefficients and"):
        xlstm.register_cell(missing)
    layer = xlstm.register_cell(Narrow)(3, 4)
    params, x, _ = registry.given(layer, make_backend("numpy"), rng)
    with pytest.raises(ValueError, match=r"Narrow: coefficients has a of shape \(4, 1\)"):
        layer.forward(params, x)
