"""The state of a layer that goes through time, and `Span`, the steps and sequences of one call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xlstm.arrays import checks, constants, fuse
from xlstm.arrays.backend import Portable
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, widened
from xlstm.recurrence.packing import Packing

State: TypeAlias = "tuple[Any, ...]"  # it holds arrays, or the states of parts
ALIGNED = 64  # elements between the beginnings of arrays that are made together
CONTAINERS = (tuple, list)  # what a state is taken in; a stream checks it at every step


class Leaf(NamedTuple):
    """One array of a state: its shape is the sizes of `before`, then B, then the sizes of `after`."""

    name: str
    before: dict[str, int]
    after: dict[str, int]
    rest: float = 0.0  # its value before the first step
    wide: bool = False  # whether it is float32 where parameters are float16 or bfloat16

    def dims(self, B: int | None) -> checks.Dims:
        """Return the sizes for a batch of B by their letters."""
        return {**self.before, "B": B, **self.after}


class Span(Portable):
    """The steps and sequences of one call, which are the same for all parts of a layer.

    There are B sequences of T steps each, or of fewer where the packing has lengths. `rng` draws the masks, where there
    are any; `keep` says whether to keep what the backward pass needs. `groups` tells which sequences belong together,
    for the layers that let them see each other.
    """

    def __init__(
        self,
        xp: Namespace,
        packing: Packing,
        rng: np.random.Generator | None = None,
        keep: bool = False,
        groups: Any = None,
    ) -> None:
        self.xp, self.rng, self.keep, self.groups = xp, rng, keep, groups
        self.rest = False  # whether the state is the same for all sequences, that before the first step
        self.packing, self.T, self.B = packing, packing.T, packing.B
        self.full = packing.lengths is None and packing.steps == packing.T  # every sequence has T steps

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Lengths of the sequences, (B,)."""
        return self.packing.ends

    def mask(self, x: Array, value: float = 0.0) -> Array:
        """Return x (T, B, ...) with `value` past the end of each sequence."""
        if self.full:
            return x
        xp = self.xp
        there = xp.reshape(self.packing.inside(xp, x), (self.T, self.B, *(1,) * (x.ndim - 2)))
        return fuse.where(xp, there, x, constants.number(xp, value, x.dtype, device_of(x)))

    def zeros(self, width: int, params: Params) -> Array:
        """Return zeros (T, B, width) of the dtype and on the device of parameters."""
        like = next(iter(params.values()))
        return self.xp.zeros((self.T, self.B, width), dtype=like.dtype, device=device_of(like))


def complete(
    where: str,
    xp: Namespace,
    what: str,
    state: Any,
    leaves: State,
    B: int,
    params: Params,
    zero: bool = False,
    outer: bool = True,
) -> State:
    """Check the shapes of a state against `leaves`, and fill in the arrays that are missing.

    Parameters
    ----------
    where, what : str
        The names of the layer and of the argument, for errors.
    state : tuple or None
        The state that is given; None in place of it, or of any part, means the value before the first step.
    leaves : tuple
        The `Leaf` of every array, nested as the state is.
    params : dict
        Arrays of the dtype and on the device that missing ones get.
    zero : bool
        Whether missing arrays are zero, as those of gradients are.
    outer : bool
        Whether this is the whole state, and not a part of one.
    """
    if state is not None:
        _check_container(where, what, state, leaves)
    found: list[Any] = []
    like, later = next(iter(params.values())), xp is not np and fuse.compiles(xp)
    for k, leaf in enumerate(leaves):
        part = None if state is None else state[k]
        if not isinstance(leaf, Leaf):
            found.append(complete(where, xp, f"{what}[{k}]", part, leaf, B, params, zero, False))
            continue
        shape = (*leaf.before.values(), B, *leaf.after.values())
        if part is None and later:
            part = Missing(shape, 0.0 if zero else leaf.rest, widened(xp, like.dtype) if leaf.wide else like.dtype)
        elif part is None:
            dtype = widened(xp, like.dtype) if leaf.wide else like.dtype
            rest, home = 0.0 if zero else leaf.rest, {"dtype": dtype, "device": like.device}
            # NumPy makes zeros in a sixth of the time.
            part = xp.full(shape, rest, **home) if rest else xp.zeros(shape, **home)
        elif getattr(part, "shape", None) != shape:
            checks.shape(where, f"{what} {leaf.name}", part, leaf.dims(B))
        found.append(part)
    return _filled(xp, tuple(found), like) if outer and later else tuple(found)


class Missing(NamedTuple):
    """An array that is to be made."""

    shape: tuple[int, ...]
    value: float
    dtype: Any


def _filled(xp: Namespace, state: State, like: Array) -> State:
    """Return a state with the arrays that were missing: parts of one array, filled by one launch, for each value."""
    sizes: dict[Any, int] = {}  # by value and dtype

    def place(part: Any) -> Any:
        if not isinstance(part, Missing):
            return tuple(place(p) for p in part) if isinstance(part, tuple) else part
        start = sizes.get(part[1:], 0)
        size = math.prod(part.shape)
        sizes[part[1:]] = start + -(-size // ALIGNED) * ALIGNED
        return part, slice(start, start + size)

    def filled(part: Any) -> Any:
        if isinstance(part, tuple) and part and isinstance(part[0], Missing):
            (shape, *kind), where = part
            return xp.reshape(rooms[tuple(kind)][where], shape)
        return tuple(filled(p) for p in part) if isinstance(part, tuple) else part

    placed, home = place(state), device_of(like)
    rooms = {kind: xp.full((size,), kind[0], dtype=kind[1], device=home) for kind, size in sizes.items()}
    return filled(placed)  # type: ignore[no-any-return]


def arrays_of(where: str, what: str, state: Any, leaves: State) -> dict[str, Array]:
    """Return the arrays of a state that are not missing, by the names that errors use."""
    return dict(_walk(where, what, state, leaves))


def wide_names(what: str, leaves: State) -> frozenset[str]:
    """Return the names, as in `arrays_of`, of the arrays that may be wider than parameters."""
    found: set[str] = set()
    for k, leaf in enumerate(leaves):
        if not isinstance(leaf, Leaf):
            found |= wide_names(f"{what}[{k}]", leaf)
        elif leaf.wide:
            found.add(f"{what} {leaf.name}")
    return frozenset(found)


def _walk(where: str, what: str, state: Any, leaves: State) -> Iterator[tuple[str, Array]]:
    if state is None:
        return
    _check_container(where, what, state, leaves)
    for k, (leaf, part) in enumerate(zip(leaves, state, strict=True)):
        if not isinstance(leaf, Leaf):
            yield from _walk(where, f"{what}[{k}]", part, leaf)
        elif part is not None:
            yield f"{what} {leaf.name}", part


def _check_container(where: str, what: str, state: Any, leaves: State) -> None:
    """Raise unless a state is a tuple, or a list, of as many entries as there are leaves."""
    is_one = isinstance(state, CONTAINERS)
    if is_one and len(state) == len(leaves):
        return
    names = ", ".join(leaf.name if isinstance(leaf, Leaf) else "(...)" for leaf in leaves)
    expected = f"expected a tuple ({names}{',' if len(leaves) == 1 else ''})"
    if is_one:
        raise ValueError(f"{where}: {what} has {len(state)} entries, {expected}")
    raise TypeError(f"{where}: {what} is a {type(state).__name__}, {expected}")


class Saved:
    """The values that `forward` keeps for `backward`, readable by name.

    `saved["1.reverse"]` holds the values of the second layer's reverse direction, `saved["blocks.0.cell"]` those of the
    cell of a block: a part has the name that its parameters begin with. In a recurrent layer `.gates`, `.c` and `.h`
    are every gate, cell state and hidden state, time first; past the end of a sequence they are zero. With one layer
    and direction, `saved.gates`, `saved.c` and `saved.h` will do.

    `saved` refers to arrays of the call, such as x and y: do not change those in place before `backward`.
    """

    def __init__(self, layer: Any, shape: tuple[int, ...] | None, kept: Any, span: Span | None = None) -> None:
        self.layer, self.shape, self.kept, self.span = layer, shape, kept, span

    def names(self) -> list[str]:
        """Return the names of the parts that `saved[...]` takes."""
        return list(self._known())

    def __getitem__(self, name: str | int) -> Any:
        """Return the values that a part kept.

        Raises
        ------
        KeyError
            There is no such part, or it keeps nothing.
        """
        known = self._known()
        if str(name) not in known:
            raise KeyError(f"saved: there is no layer {name!r}, only {checks.few(known)}")
        return known[str(name)]

    def __getattr__(self, name: str) -> Any:
        """Return a value that was kept under a name of its own."""
        if name.startswith("_"):
            raise AttributeError(name)
        if isinstance(self.kept, Mapping):
            if name not in self.kept:
                raise AttributeError(f"saved: {name} is not kept, only {checks.few(self.kept)}")
            return self[name] if name in self.layer.parts else self.kept[name]
        return getattr(self.kept, name)

    def _known(self) -> dict[str, Any]:
        """Return the values that all parts, and parts of parts, kept, by dotted names."""
        found: dict[str, Any] = {}
        for name, kept in self.layer.pieces(self.kept).items():
            part = self.layer.parts.get(name)
            view = Saved(part, None, kept, self.span)
            found[name] = view if hasattr(part, "scan") else kept  # a layer that goes through time has parts to read
            if part is not None:
                found |= {f"{name}.{rest}": value for rest, value in view._known().items()}
        return found
