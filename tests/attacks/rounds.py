"""The calls that have to work once a layer or a model is accepted, and their sound arguments."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import xlstm
from xlstm.arrays.convert import to_numpy
from xlstm.layers.linear import Embedding
from xlstm.layers.sequence import SequenceLayer
from xlstm.models import model_files
from xlstm.models.sequence import SequenceModel

T, B = 3, 2
Call = tuple[Callable[..., Any], dict[str, Any], Callable[[Any, dict[str, Any]], None]]


def small(made: Any) -> bool:
    """Whether to run it costs next to nothing, and gives finite numbers."""
    values = [getattr(made, f.name) for f in dataclasses.fields(made)]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    inner = [v for v in values if dataclasses.is_dataclass(v)]
    deep = max((getattr(made, name, 1) for name in ("num_layers", "num_blocks")), default=1)
    sizes = [n for n in numbers if isinstance(n, int)]
    factors = [getattr(made, name, 1) for name in ("proj_factor", "ffn_proj_factor")]
    if "exponential" in (getattr(made, "activations", None) or ()):
        return False  # what it gives may be infinite
    return max(sizes, default=1) <= 64 and deep <= 8 and max(factors) <= 8 and all(small(v) for v in inner)


def finite(tree: Any) -> bool:
    """Whether every number is finite."""
    if isinstance(tree, dict):
        return all(finite(v) for v in tree.values())
    if isinstance(tree, tuple | list):
        return all(finite(v) for v in tree)
    return tree is None or bool(np.all(np.isfinite(to_numpy(tree))))


def same_shapes(one: Any, two: Any) -> bool:
    """Whether two nestings of tuples have arrays of the same shapes."""
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(same_shapes(a, b) for a, b in zip(one, two, strict=True))
    return tuple(one.shape) == tuple(two.shape)


def inputs(made: Any) -> tuple[str, Any, Any]:
    """The name of the input, an input, and one of a single step."""
    rng = np.random.default_rng(0)
    if isinstance(made, xlstm.xLSTMLanguageModel):
        tokens = rng.integers(0, made.vocab_size, (T, B))
        return "x", tokens.T.copy() if made.batch_first else tokens, tokens[0]
    if not isinstance(made, SequenceLayer):
        return "x", rng.standard_normal((T, B, made.input_size)).astype("float32"), None
    x = rng.standard_normal((T, B, made.input_size)).astype("float32")
    return "x", np.swapaxes(x, 0, 1).copy() if made.batch_first else x, x[0]


def forwards(made: Any) -> bool:
    """Whether there is a step: it goes forward in time only."""
    return hasattr(made, "step") and made.directions == ("",)


def follow(made: Any) -> None:
    """Everything that can be done with a layer, a part or a model; results are finite and of the right shapes."""
    params = made.init(1, "numpy")
    assert finite(params)
    options = json.loads(json.dumps({f.name: getattr(made, f.name) for f in dataclasses.fields(made)}, default=str))
    if not isinstance(made, SequenceModel | xlstm.xLSTMLanguageModel):
        again = type(made)(**options)
        assert again == made
        assert hash(again) == hash(made)
    if isinstance(made, Embedding):
        rows, saved = made.forward(params, np.zeros((T, B), dtype="int64"))
        grads, none = made.backward(params, saved, rows)
        assert none is None
        assert finite((rows, grads))
        return
    _, x, one = inputs(made)
    if not isinstance(made, SequenceLayer):
        y, saved = made.forward(params, x)
        grads, dx = made.backward(params, saved, y)
        assert dx.shape == x.shape
        assert finite((y, grads, dx))
        return
    lengths = [T, 1]
    y, state, saved = made.forward(params, x, lengths=lengths, seed=1)
    grads, dx, dstate = made.backward(params, saved, y)
    assert finite((y, grads, dx))
    assert grads.keys() == params.keys()
    assert all(grads[n].shape == p.shape for n, p in params.items())
    assert dx is None or dx.shape == x.shape
    assert same_shapes(state, dstate)
    y, state, _ = made.forward(params, x, state, train=False)
    assert finite(y)
    if forwards(made):
        z, after = made.step(params, one, state)
        assert finite(z)
        assert same_shapes(state, after)
    layer = getattr(made, "recurrent", getattr(made, "backbone", made))
    if type(layer).__name__ in model_files.LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            model_files.save(path, made, params)
            again, weights = model_files.load(path, "numpy")
        assert again == made
        assert all(np.array_equal(weights[n], p) for n, p in params.items())


def calls(made: Any) -> dict[str, Call]:
    """The calls that a layer or a model has, their sound arguments, and what is to hold of their results."""
    params = made.init(1, "numpy")
    found: dict[str, Call] = {"init": (made.init, {"seed": 0, "backend": "numpy"}, all_finite)}
    if not isinstance(made, SequenceLayer):
        _, x, _ = inputs(made)
        y, saved = made.forward(params, x)
        found["forward"] = made.forward, {"params": params, "x": x}, first_finite
        found["backward"] = made.backward, {"params": params, "saved": saved, "dy": y}, all_finite
        return found
    name, x, one = inputs(made)
    y, state, saved = made.forward(params, x, seed=1)
    dstate = None if getattr(made, "last", False) else made.backward(params, saved, y)[2]
    found["forward"] = made.forward, {"params": params, name: x, "state": state, "seed": 1}, first_finite
    found["backward"] = made.backward, {"params": params, "saved": saved, "dy": y, "dstate": dstate}, first_finite
    if forwards(made):
        found["step"] = made.step, {"params": params, name: one, "state": state}, first_finite
    if hasattr(made, "generate"):
        found["generate"] = made.generate, {"params": params, "prompt": [[1, 2]], "max_tokens": 3}, first_finite
    return found


def all_finite(found: Any, arguments: dict[str, Any]) -> None:
    assert finite(found)


def first_finite(found: Any, arguments: dict[str, Any]) -> None:
    """The arrays of y and state; saved is no array."""
    assert finite(found[0])
