"""Arrays of other libraries as pieces of our parameters: layouts, checks against a checkpoint, and assembly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks, cores
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import Params
from xlstm.interop.shards import Shards
from xlstm.training import checkpoint

Host = np.ndarray[Any, Any]
Shape = tuple[int, ...]
LAST = {"W": "weight", "w": "weight", "b": "bias"}  # their endings of names by ours

AHEAD = 4  # arrays for each thread that are read together


class Layout(NamedTuple):
    """The layout of an array there: ours is divided into `fine` axes, which are permuted and joined to `there`."""

    fine: Shape
    order: Shape
    there: Shape

    @property
    def same(self) -> bool:
        """Whether numbers lie there in the order that they have in ours."""
        return self.order == tuple(range(len(self.order)))

    def write(self, array: Host) -> Host:
        """Return an array of ours in their layout."""
        return array.reshape(self.fine).transpose(self.order).reshape(self.there)

    def read(self, array: Host, shape: Shape) -> Host:
        """Return an array of theirs in our layout and shape."""
        return array.reshape([self.fine[k] for k in self.order]).transpose(np.argsort(self.order)).reshape(shape)


class Piece(NamedTuple):
    """Some rows of a parameter of ours, as an array of theirs, whose shape is `layout.there`."""

    name: str
    rows: slice
    layout: Layout


def below(names: Sequence[str], heights: Sequence[int], rest: Shape) -> list[Piece]:
    """Return arrays of theirs that lie one below the other in ours, each of so many rows of shape `rest`."""
    found, start = [], 0
    for name, height in zip(names, heights, strict=True):
        shape = (height, *rest)
        found.append(Piece(name, slice(start, start + height), Layout(shape, tuple(range(len(shape))), shape)))
        start += height
    return found


def check(pieces: Mapping[str, list[Piece]], shards: Shards, spare: Iterable[str] = ()) -> None:
    """Raise ValueError unless a checkpoint has the arrays of these pieces in their shapes, and none beside `spare`."""
    expected = {piece.name: piece.layout.there for some in pieces.values() for piece in some}
    for name, shape in expected.items():
        if name not in shards.shapes:
            raise ValueError(f"{shards.path}: {name} is missing, expected it in shape {shape}")
        if shards.shapes[name] != shape:
            raise ValueError(f"{shards.path}: {name} has shape {shards.shapes[name]}, expected {shape}")
    surplus = [name for name in shards.shapes if name not in expected and name not in spare]
    if surplus:
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        raise ValueError(f"{shards.path}: {surplus[0]}{more} is surplus, the configuration has no place for it")


def params(
    pieces: Mapping[str, list[Piece]],
    shards: Shards,
    shapes: Mapping[str, checks.Dims],
    backend: str | Backend | None,
    dtype: str | None,
) -> Params:
    """Read parameters of these shapes from a checkpoint that is checked, a few arrays at a time by several threads."""
    chosen = backend_of(backend, dtype or (backend.dtype if isinstance(backend, Backend) else shards.dtype))
    size, names = cores.threads(), list(pieces)
    found: Params = {}
    with ThreadPoolExecutor(min(size, cores.usable())) as pool:
        for k in range(0, len(names), AHEAD * size):
            some = names[k : k + AHEAD * size]
            arrays = pool.map(lambda n: _assembled(shards, pieces[n], shapes[n], chosen.dtype), some)
            found |= {n: chosen.asarray(array) for n, array in zip(some, arrays, strict=True)}
    return found


def written(pieces: Mapping[str, list[Piece]], arrays: Mapping[str, Host]) -> dict[str, Host]:
    """Return arrays under our names, such as parameters or their gradients, as they are there."""
    return {
        piece.name: piece.layout.write(np.asarray(arrays[name])[piece.rows])
        for name, some in pieces.items()
        for piece in some
    }


def _assembled(shards: Shards, pieces: list[Piece], dims: checks.Dims, dtype: str) -> Any:
    """Return a parameter of ours made of its pieces, in the dtype asked for and never twice in memory.

    One that lies in its file as it is here stays there until it is used.
    """
    shape = tuple(n or 0 for n in dims.values())
    whole = None if len(pieces) == 1 else np.empty(shape, dtype=dtype)
    for piece in pieces:
        found = shards.read(piece.name)
        checkpoint.finite(shards.path, {piece.name: found}, dtype)  # of a copy: all of a mapping would come to stay
        if whole is None:
            if piece.layout.same and found.dtype.name == dtype and (lying := shards.mapped(piece.name)) is not None:
                return lying.reshape(shape)
            return np.ascontiguousarray(piece.layout.read(found, shape), dtype=dtype)
        whole[piece.rows] = found
    return whole
