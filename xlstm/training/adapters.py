"""Low-rank adapters: train small changes of large matrices and leave the matrices as they are (Hu
et al. 2021).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like
from xlstm.arrays.matmul import product
from xlstm.arrays.namespace import Array, Params, namespace_of
from xlstm.arrays.random import Seed, generator
from xlstm.layers.sequence import SequenceLayer

MATRICES = ("*.W", "*.Wx", "*.Wh")
SEQUENCE = checks.instance(SequenceLayer, "a layer or a model that goes through time")


class LowRank:
    """A model that adds a trainable low-rank change to each chosen matrix (LoRA, Hu et al. 2021).

    Each chosen matrix W (..., O, I) becomes W + scale B A, with A (..., rank, I) and B (..., O,
    rank).

    The parameters of this object are the matrices A and B, named `{name}.A` and `{name}.B`. It
    holds all other parameters, and they stay as they are. Train it like any model; `merged` then
    returns parameters for the model itself. B starts at 0, so the model starts unchanged.

    Parameters
    ----------
    model : SequenceLayer
        A layer or model.
    params : dict of str to array
        The model's parameters. `LowRank` does not change them, and you must not either.
    rank : int
        Rank of the changes. It is less than both sides of a matrix; smaller matrices are left out.
    scale : float
        Factor of the changes.
    names : list of str
        Patterns that select matrices by name, in the syntax of `fnmatch`.

    Raises
    ------
    TypeError, ValueError
        The parameters do not belong to the model, or no matrix is chosen.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm.training import LowRank
    >>> lstm = xlstm.LSTM(3, 8)
    >>> adapters = LowRank(lstm, lstm.init(backend="numpy"), rank=2, names=["*.Wh"])
    >>> {name: a.shape for name, a in adapters.init().items()}
    {'0.Wh.A': (2, 8), '0.Wh.B': (32, 2)}
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        rank: int = 8,
        scale: float = 1.0,
        names: Sequence[str] = MATRICES,
    ) -> None:
        where = "LowRank"
        self.model = SEQUENCE(where, "model", model)
        model.namespace(params, {})  # checks them
        self.params = params
        self.rank = checks.size(where, "rank", rank)
        self.scale = checks.above_0(where, "scale", scale)
        patterns = checks.several(where, "names", names, "a list of patterns of names", checks.text)
        self.names = [
            name
            for name, p in params.items()
            if p.ndim >= 2
            and min(p.shape[-2:]) > rank
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if not self.names:
            raise ValueError(
                f"{where}: no matrix of the model has rank {rank} and names {checks.shown(names)},"
                " expected one or more"
            )

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model, such as `batch_first` or `loss`."""
        if name.startswith("_") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def init(self, seed: Seed = 0) -> Params:
        """Draw A from N(0, 1 / I) and fill B with zeros, on the device of the model's parameters.

        Parameters
        ----------
        seed : int or numpy.random.Generator

        Returns
        -------
        dict of str to array
        """
        rng = generator(seed, where="LowRank")
        params: Params = {}
        for name, dims in self.shapes.items():
            shape = tuple(dims.values())
            values = np.zeros(shape)
            if "I" in dims:
                values = rng.standard_normal(shape) / math.sqrt(dims["I"])
            params[name] = like(values, self.params[name.rpartition(".")[0]])
        return params

    def merged(self, params: Params) -> Params:
        """Return the parameters of the model with the changes added.

        Parameters
        ----------
        params : dict of str to array
            The matrices A and B, as `init` returns them.

        Returns
        -------
        dict of str to array
        """
        checks.params("LowRank", params, self.shapes)
        merged = dict(self.params)
        xp = namespace_of(merged[self.names[0]])
        for name in self.names:
            # (1)
            merged[name] = merged[name] + self.scale * product(
                xp, params[f"{name}.B"], params[f"{name}.A"]
            )
        return merged

    @property
    def shapes(self) -> dict[str, dict[str, int]]:
        """The names and shapes of all A and B."""
        shapes: dict[str, dict[str, int]] = {}
        for name in self.names:
            *before, O, I = self.params[name].shape  # noqa: E741
            outer = {f"{' ' * k}N": n for k, n in enumerate(before)}
            shapes[f"{name}.A"] = {**outer, "rank": self.rank, "I": I}
            shapes[f"{name}.B"] = {**outer, "O": O, "rank": self.rank}
        return shapes

    def forward(
        self, params: Params, x: Array, state: Any = None, train: bool = True, **options: Any
    ) -> tuple[Array, Any, Any]:
        """Run the model with the changed matrices; see `LSTM.forward`."""
        used = self.merged(params)
        y, end, saved = self.model.forward(used, x, state, train, **options)
        return y, end, None if saved is None else (used, saved)

    def backward(
        self, params: Params, saved: Any, dy: Array | None, dstate: Any = None, **options: Any
    ) -> tuple[Params, Any, Any]:
        """Return the gradients with respect to A and B, x and the initial state; see
        `LSTM.backward`.
        """
        used, inner = saved
        full, dx, start = self.model.backward(used, inner, dy, dstate, **options)
        xp = namespace_of(params[f"{self.names[0]}.A"])
        grads: Params = {}
        for name in self.names:
            # (1)
            grads[f"{name}.A"] = self.scale * product(
                xp, xp.matrix_transpose(params[f"{name}.B"]), full[name]
            )
            # (1)
            grads[f"{name}.B"] = self.scale * product(
                xp, full[name], xp.matrix_transpose(params[f"{name}.A"])
            )
        return grads, dx, start
