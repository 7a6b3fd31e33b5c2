"""Optimisers for groups of parameters, which are told apart by their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.training.rules import Optimizer, OptimState, Parts


def by_name(rules: Mapping[str, Optimizer | None], otherwise: Optimizer) -> Optimizer:
    """Make an optimiser that treats parameters by their names: some at rates of their own, some not at all.

    Parameters
    ----------
    rules : dict of str to Optimizer or None
        Patterns of names, such as `"embedding.*"`, as of `fnmatch`; the first one that matches a name decides. None
        freezes parameters: they stay as they are, and their gradients do not count in the norm that is clipped.
    otherwise : Optimizer
        For all other parameters.

    Returns
    -------
    Optimizer

    Raises
    ------
    TypeError
        Something is no optimiser.
    ValueError
        `init` finds no parameter for a pattern.

    Examples
    --------
    >>> from xlstm.optim import adam, sgd
    >>> optimizer = by_name({"embedding.*": None, "head.*": sgd(0.1)}, adam(1e-3))
    >>> optimizer.frozen("embedding.W")
    True
    """
    kind = checks.instance(Optimizer, "an optimiser, or None to freeze parameters")
    for pattern, optimizer in checks.mapping("by_name", rules, "rules").items():
        checks.optional(kind)("by_name", f"rules[{checks.shown(pattern)}]", optimizer)
    kind("by_name", "otherwise", otherwise)
    made = _ByName((*rules.items(), ("*", otherwise)))
    optimizers = [optimizer for _, optimizer in made.rules if optimizer is not None]
    whole = all(optimizer.parts for optimizer in optimizers)
    parts = Parts(sum(made.widths), made.numbers, made.apply) if whole else None
    rates = [optimizer.schedules for optimizer in optimizers]
    return Optimizer(made.init, made.update, made.frozen, parts, sum(rates, ()) if all(rates) else ())


@dataclass(frozen=True)
class _ByName:
    """Optimisers by patterns of names; the moments of the k-th are kept as `k.slot`."""

    rules: tuple[tuple[str, Optimizer | None], ...]

    def place(self, name: str) -> int:
        """Return the number of the rule that decides for a parameter."""
        return next(k for k, (pattern, _) in enumerate(self.rules) if fnmatch.fnmatchcase(name, pattern))

    def frozen(self, name: str) -> bool:
        optimizer = self.rules[self.place(name)][1]
        return optimizer is None or optimizer.frozen(name)

    def init(self, params: Params) -> OptimState:
        checks.mapping("by_name", params)
        slots: dict[str, Params] = {}
        for k, (pattern, optimizer) in enumerate(self.rules):
            part = {name: p for name, p in params.items() if self.place(name) == k}
            if not part and k < len(self.rules) - 1:
                raise ValueError(f"by_name: no parameter matches {checks.shown(pattern)} first: {checks.few(params)}")
            if part and optimizer is not None:
                slots |= {f"{k}.{slot}": found for slot, found in optimizer.init(part).slots.items()}
        return OptimState(0, slots)

    def update(self, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        new = dict(params)
        slots: dict[str, Params] = {}
        for k, optimizer, part, given, own in self._divided(params, grads, state.slots):
            updated, after = optimizer.update(part, given, OptimState(state.step, own))
            new |= updated
            slots |= {f"{k}.{slot}": found for slot, found in after.slots.items()}
        return new, OptimState(state.step + 1, slots)

    @property
    def widths(self) -> list[int]:
        """How many numbers each rule has."""
        return [0 if optimizer is None else _parts(optimizer).width for _, optimizer in self.rules]

    def numbers(self, step: int) -> tuple[float, ...]:
        """Return the numbers of all optimisers, one after the other."""
        return tuple(n for _, optimizer in self.rules if optimizer is not None for n in _parts(optimizer).numbers(step))

    def apply(
        self, params: Params, grads: Params, slots: dict[str, Params], numbers: Sequence[Any], *how: Any
    ) -> tuple[Params, dict[str, Params]]:
        """Update by the numbers of all optimisers."""
        new, found = dict(params), dict[str, Params]()
        for k, optimizer, part, given, own in self._divided(params, grads, slots):
            mine = numbers[sum(self.widths[:k]) : sum(self.widths[: k + 1])]
            updated, after = _parts(optimizer).apply(part, given, own, mine, *how)
            new |= updated
            found |= {f"{k}.{slot}": moments for slot, moments in after.items()}
        return new, found

    def _divided(
        self, params: Params, grads: Params, slots: dict[str, Params]
    ) -> Iterator[tuple[int, Optimizer, Params, Params, dict[str, Params]]]:
        """Yield each optimiser that has something to do with its parameters, their gradients and its moments."""
        for k, (_, optimizer) in enumerate(self.rules):
            part = {name: p for name, p in params.items() if self.place(name) == k}
            if not part or optimizer is None:
                continue
            own = {name.removeprefix(f"{k}."): s for name, s in slots.items() if name.startswith(f"{k}.")}
            yield k, optimizer, part, {name: grads[name] for name in part if name in grads}, own


def _parts(optimizer: Optimizer) -> Parts:
    assert optimizer.parts is not None
    return optimizer.parts
