"""Derivatives of every layer, block and model along a direction, and those of its gradients.

The gradients themselves are compared with finite differences in `test_contract.py`.
"""

import numpy as np
import pytest

import xlstm
from tests.conftest import BACKENDS, make_backend
from tests.registry import EVERY, TABLE, given, takes_tokens, through_time
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.trees import leaves_by_path, mapped, replaced

LENGTHS = [3, 0, 5]
# Arrays of array-api-strict refuse operators with all objects but their own.
CASES = [(name, layer) for name in BACKENDS if name != "strict" for layer in EVERY]
CASES += [("numpy", layer) for layer in TABLE if layer not in EVERY]
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}  # central, of fourth order


class Pair:
    """The outputs of a layer and the gradients of <outputs, w>, both functions of its arguments."""

    def __init__(self, layer, be, rng, cut=False):
        self.layer = layer
        self.rng = rng
        self.arguments = given(layer, be, rng)
        self.resets = rng.random(self.arguments[1].shape[:2]) < 0.3 if cut else None
        self.differentiable = list(self.arguments)
        if takes_tokens(layer):
            self.differentiable[1] = None
        self.w = self.direction(self.outputs(*self.arguments))

    def direction(self, tree):
        return mapped(tree, lambda _, a: like(self.rng.standard_normal(tuple(a.shape)), a))

    def forward(self, params, x, state):
        if not through_time(self.layer):
            y, saved = self.layer.forward(params, x)
            return (y, ()), saved
        options = {"lengths": LENGTHS, "resets": self.resets, "seed": 3}
        y, end, saved = self.layer.forward(params, x, state, **options)
        return (y, end), saved

    def outputs(self, *arguments):
        return self.forward(*arguments)[0]

    def gradients(self, *arguments):
        dy, dend = self.w
        saved = self.forward(*arguments)[1]
        return self.layer.backward(arguments[0], saved, dy, *([dend] if dend else []))


def flat(tree):
    """All numbers of a tree side by side, in the order of its paths."""
    leaves = leaves_by_path(tree)
    return np.concatenate([to_numpy(leaves[path]).ravel() for path in sorted(leaves)])


def close(a, b, tolerance, size):
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(size), 1e-3)


@pytest.mark.parametrize(("be", "layer"), CASES, indirect=["be"])
def test_products_are_those_of_the_gradients(be, layer, rng):
    """w' J v is v' (w' J), and u' H v is v' H u: exact identities, without finite differences."""
    pair = Pair(layer, be, rng)
    u, v = (pair.direction(pair.differentiable) for _ in range(2))
    along = xlstm.jvp(pair.outputs, pair.arguments, v)[1]
    gradients, hv = xlstm.jvp(pair.gradients, pair.arguments, v)
    hu = xlstm.jvp(pair.gradients, pair.arguments, u)[1]
    u, v, hu, hv = (flat(tree) for tree in (u, v, hu, hv))
    close(
        flat(along) @ flat(pair.w), flat(gradients) @ v, 1e-12, np.abs(flat(gradients)) @ np.abs(v)
    )
    close(u @ hv, v @ hu, 1e-12, np.abs(u) @ np.abs(hv))


@pytest.mark.parametrize(
    ("layer", "cut"),
    [(layer, False) for layer in TABLE] + [(layer, True) for layer in filter(through_time, EVERY)],
)
def test_products_are_differences_of_gradients(layer, cut, rng):
    pair = Pair(layer, make_backend("numpy"), rng, cut)
    v = pair.direction(pair.differentiable)
    hv = flat(xlstm.jvp(pair.gradients, pair.arguments, v)[1])
    arrays = leaves_by_path(pair.arguments)
    directions = leaves_by_path(v)

    def moved(step):
        new = {path: arrays[path] + step * d for path, d in directions.items()}
        return flat(pair.gradients(*replaced(pair.arguments, arrays | new)))

    errors = []
    for step in STEPS:  # a kink may be within the reach of the largest one
        difference = sum(weight / step * moved(k * step) for k, weight in STENCIL.items())
        errors.append(np.linalg.norm(hv - difference) / max(np.linalg.norm(hv), 1e-3))
    assert min(errors) < 1e-8


@pytest.mark.parametrize(("be", "layer"), CASES, indirect=["be"])
def test_arguments_without_tangents_are_constants(be, layer, rng):
    pair = Pair(layer, be, rng)
    v = pair.direction(pair.differentiable)
    params = [{name: d if name == own else None for name, d in v[0].items()} for own in v[0]]
    alone = [*((p, None, None) for p in params), (None, v[1], None), (None, None, v[2])]
    parts = [flat(xlstm.jvp(pair.gradients, pair.arguments, d)[1]) for d in alone]
    whole = flat(xlstm.jvp(pair.gradients, pair.arguments, v)[1])
    close(sum(parts), whole, 1e-11, whole)
    saved = pair.forward(*pair.arguments)[1]  # without tangents: backward is linear in dy
    cotangents = pair.w if pair.w[1] else pair.w[:1]
    gradients, along = xlstm.jvp(
        lambda *d: layer.backward(pair.arguments[0], saved, *d), cotangents, cotangents
    )
    close(flat(along), flat(gradients), 1e-14, flat(gradients))


@pytest.mark.parametrize("k", [1, 5, 6, 8])
def test_third_derivatives_do_not_depend_on_the_order_of_directions(k, rng):
    pair = Pair(EVERY[k], make_backend("numpy"), rng)
    u, v = (pair.direction(pair.differentiable) for _ in range(2))

    def third(u, v):
        def along(*arguments):
            return xlstm.jvp(pair.gradients, arguments, v)[1]

        return flat(xlstm.jvp(along, pair.arguments, u)[1])

    close(third(u, v), third(v, u), 1e-12, third(u, v))
