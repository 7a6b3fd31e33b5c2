"""The calls that have to work once a layer or a model is accepted, and their sound arguments."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import xlstm
from tests.registry import has_file, input_of, steps, through_time
from xlstm.arrays.convert import to_numpy
from xlstm.models import model_files

T = 3
B = 2


def small(made):
    """Whether to run it costs next to nothing, and gives finite numbers."""
    values = [getattr(made, f.name) for f in dataclasses.fields(made)]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    inner = [v for v in values if dataclasses.is_dataclass(v)]
    deep = max((getattr(made, name, 1) for name in ("num_layers", "num_blocks")), default=1)
    sizes = [n for n in numbers if isinstance(n, int)]
    factors = [getattr(made, name, 1) for name in ("proj_factor", "ffn_proj_factor")]
    if "exponential" in (getattr(made, "activations", None) or ()) or getattr(
        made, "multiplicative", False
    ):
        return False  # what it gives may be infinite, or it takes positive inputs alone
    return (
        max(sizes, default=1) <= 64
        and deep <= 8
        and max(factors) <= 8
        and all(small(v) for v in inner)
    )


def finite(tree):
    """Whether every number is finite."""
    if isinstance(tree, dict):
        return all(finite(v) for v in tree.values())
    if isinstance(tree, tuple | list):
        return all(finite(v) for v in tree)
    return tree is None or bool(np.all(np.isfinite(to_numpy(tree))))


def follow(made):
    """Everything that can be done with a layer, a part or a model, and its file."""
    for function, arguments, check in calls(made).values():
        check(function(**arguments), arguments)
    if has_file(made):
        params = made.init(1, "numpy")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            model_files.save(path, made, params)
            again, weights = model_files.load(path, "numpy")
        assert again == made
        assert all(np.array_equal(weights[n], p) for n, p in params.items())


def calls(made):
    """The calls that a layer or a model has, their sound arguments, and what is to hold of their
    results.
    """
    params = made.init(1, "numpy")
    found = {"init": (made.init, {"seed": 0, "backend": "numpy"}, all_finite)}
    x = input_of(made, xlstm.backend("numpy"), np.random.default_rng(0), T, B)
    if hasattr(made, "vocab_size"):
        x = x % made.vocab_size
    if not through_time(made):
        y, saved = made.forward(params, x)
        found["forward"] = made.forward, {"params": params, "x": x}, first_finite
        found["backward"] = made.backward, {"params": params, "saved": saved, "dy": y}, gradients
        return found
    y, state, saved = made.forward(params, x, seed=1)
    dstate = None if getattr(made, "last", False) else made.backward(params, saved, y)[2]
    beginning = {"params": params, "x": x, "state": state, "seed": 1, "lengths": [T, 1]}
    found["forward"] = made.forward, beginning, first_finite
    found["backward"] = (
        made.backward,
        {"params": params, "saved": saved, "dy": y, "dstate": dstate},
        gradients,
    )
    if steps(made):
        one = x[:, 0] if made.batch_first else x[0]
        found["step"] = made.step, {"params": params, "x": one, "state": state}, first_finite
    if hasattr(made, "generate"):
        found["generate"] = (
            made.generate,
            {"params": params, "prompt": [[0, made.vocab_size - 1]], "max_tokens": 3},
            first_finite,
        )
    return found


def all_finite(found, arguments):
    assert finite(found)


def first_finite(found, arguments):
    """The arrays of y and state; saved is no array."""
    assert finite(found[0])


def gradients(found, arguments):
    """Each parameter has a gradient of its shape, or one for each sequence."""
    grads = found[0]
    params = arguments["params"]
    outer = (B,) if arguments.get("per_sequence", False) else ()
    assert finite(found[:2])
    shapes = {n: (*outer, *p.shape) for n, p in params.items()}
    assert {n: g.shape for n, g in grads.items()} == shapes
