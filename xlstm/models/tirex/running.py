"""The network of a TiRex over tokens on the host: late starts, and outputs of some tokens and rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Params, device_of, namespace_of
from xlstm.data.host import Values
from xlstm.layers.state import Leaf, State
from xlstm.models.tirex.variates import Groups

# Rows at once by default: with 4 a CPU takes 1.2 times as long, and 30 to 45 MB less; with 32 hardly less time.
FEW, MANY = 16, 512


class Starts:
    """States of a network after tokens without any value, each computed once.

    They hold as long as the parameters do: one object is for parameters that nobody changes in place.

    Parameters
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
    kept : bool
        Whether the object is there for several calls.
    """

    def __init__(self, model: Any, params: Params, kept: bool = True) -> None:
        model.namespace(params, {})  # checks them
        self.model, self.params, self.kept = model, params, kept
        self.like = next(iter(params.values()))
        self._found: dict[bool, dict[int, State]] = {False: {}, True: {}}

    @classmethod
    def checked(cls, where: str, model: Any, params: Params, given: Starts | None) -> Starts:
        """Return the given object, if there is one for this model and these parameters, or a new one."""
        if given is None:
            return cls(model, params, kept=False)
        checks.instance(cls, "a Starts")(where, "starts", given)
        if given.model != model or given.params is not params:
            raise ValueError(f"{where}: starts is that of another model or of other parameters")
        return given

    def batch(self, given: int | None) -> int:
        """Return how many rows the network sees at once: as many as are given, else few on a CPU, and many on a GPU."""
        if given is not None:
            return given
        return FEW if "cpu" in str(device_of(self.like)).lower() else MANY

    def after(self, count: int, rows: int, grouped: bool = False) -> State | None:
        """Return the state of `rows` rows after `count` tokens; `grouped` ones are rows of groups of two or more."""
        if count == 0:
            return None
        known = self._found[grouped]
        if count not in known:
            before = max((n for n in known if n < count), default=0)
            tokens = np.zeros((1 + grouped, count - before, self.model.input_size))
            groups = {"groups": np.zeros(2, dtype=np.int64)} if grouped else {}
            state = _repeated(known[before], self.model.states, 1 + grouped) if before else None
            known[count] = self.model.forward(self.params, like(tokens, self.like), state, False, **groups)[1]
        return _repeated(known[count], self.model.states, rows)


def outputs(
    starts: Starts, tokens: Values, state: State | None, some: slice, rows: Any = None, **groups: Any
) -> Values:
    """Return what the network makes of tokens on the host, in float64.

    Parameters
    ----------
    starts : Starts
        It has the model and the parameters.
    tokens : array (B, T, 2P)
    state : tuple or None
        The state before the first token.
    some : slice
        The tokens whose outputs are asked for.
    rows : bool array (B,), optional
        The rows whose outputs are asked for; all by default.
    groups : dict
        The arguments of `TiRex2.forward` that say which rows belong together.

    Returns
    -------
    array (R, S, P, Q)
    """
    foreach = Groups.of(type(starts.model).__name__, len(tokens), **groups) if groups else None
    chosen = None if rows is None else np.flatnonzero(rows)
    y = starts.model.read(starts.params, like(tokens, starts.like), state, some, chosen, foreach)
    return to_numpy(y).astype(np.float64).swapaxes(2, 3)


def _repeated(state: State, leaves: State, rows: int) -> State:
    """Return a state of so many rows, each of which is as the first one of another state."""
    found: list[Any] = []
    for part, leaf in zip(state, leaves, strict=True):
        if not isinstance(leaf, Leaf):
            found.append(_repeated(part, leaf, rows))
            continue
        xp, shape = namespace_of(part), (*leaf.before.values(), rows, *leaf.after.values())
        zeros = xp.zeros(shape, dtype=part.dtype, device=device_of(part))
        found.append(zeros + part[(*(slice(None) for _ in leaf.before), slice(0, 1), ...)])
    return tuple(found)
