"""The tape of a forward pass: the values that it keeps, under the same names for every engine.

A packed batch is a matrix of rows (N, ...): all sequences at the first step, then all at the
second, and so on. Each step has a row for every sequence that is long enough, the longest first.
Consecutive steps of equal width are a segment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm import workspace  # noqa: F401  # it settles how the C allocator keeps the memory of passes
from xlstm.arrays import constants
from xlstm.arrays.cached import cached_property
from xlstm.arrays.concat import concat
from xlstm.arrays.fuse import compiles, total
from xlstm.arrays.matmul import product
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, reshape, room
from xlstm.arrays.rows import column_sums, per_sequence
from xlstm.cells.cell import Cell
from xlstm.engines.cell_step import Step

Widths = Sequence[tuple[int, int]]  # (steps, width) of each segment, with falling widths


class Segment(NamedTuple):
    """Consecutive steps with equally many sequences."""

    k: int  # steps
    n: int  # sequences
    at: int  # first row of the first step

    def rows(self, t: int) -> slice:
        """Return the rows of step t."""
        start = self.at + t * self.n
        return slice(start, start + self.n)

    def steps(self, rows: Array, start: int, stop: int) -> Array:
        """Return a view (steps, n, ...) of the rows (N, ...) of steps `start` to `stop`."""
        region = rows[self.at + start * self.n : self.at + stop * self.n, ...]
        return reshape(region, (stop - start, self.n, *rows.shape[1:]))


@functools.lru_cache(maxsize=64)
def segments(widths: tuple[tuple[int, int], ...]) -> tuple[Segment, ...]:
    """Return the segments of a batch that have sequences."""
    segments = []
    at = 0
    for k, n in widths:
        if n:
            segments.append(Segment(k, n, at))
            at += k * n
    return tuple(segments)


@functools.lru_cache(maxsize=64)
def starts_of(widths: tuple[tuple[int, int], ...]) -> Array:
    """Return the first row of every step, and the number of rows, as an array (steps + 1,) that
    must not be changed.
    """
    sizes = np.repeat([n for _, n in widths], [k for k, _ in widths])
    return np.append(0, np.cumsum(sizes, dtype=np.int64))


def before(xp: Namespace, hs: Array, widths: Widths) -> Array:
    """Return h before every step (N, P).

    hs has h of the sequences at the first step, followed by h after every step.
    """
    N = sum(k * n for k, n in widths)
    if len(widths) == 1:
        return hs[:N, ...]
    starts = starts_of(tuple(widths))
    n = starts[1:] - starts[:-1]
    starts = starts[:-1]
    # In hs, the rows of step t begin where in y those of step t - 1 begin.
    back = starts - np.concatenate(([0], starts[:-1] + widths[0][1]))
    return xp.take(
        hs, constants.copied(xp, np.arange(N) - np.repeat(back, n), device_of(hs)), axis=0
    )


def beside(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return columns (H, ...) side by side; if only one array has any, it is returned unchanged."""
    some = [a for a in arrays if a.shape[1]] or arrays[:1]
    return some[0] if len(some) == 1 else concat(xp, some, 1)


def with_idle(
    xp: Namespace, ended: Sequence[Array], state: Sequence[Array], first: int
) -> list[Array]:
    """Return the final states of the `first` sequences that have steps, followed by the states of
    the others.
    """
    if state[0].shape[1] == first:
        return list(ended)
    return [beside(xp, (end, s[:, first:])) for end, s in zip(ended, state, strict=True)]


class SegmentTape(NamedTuple):
    """The kept values of the steps of one segment, time first."""

    segment: Segment
    # the states except h, before the first step and after every step, (k + 1, H, n)
    carry: Sequence[Array]
    # the cell's saved arrays (k, rows, H, n) or (k, H, n); None if they have to be computed again
    saved: Any = None
    # with layer_norm, the normalised product with h (k, R, n), and 1 / its deviation
    normal: tuple[Array, ...] = ()
    out: tuple[Array, ...] = ()  # h before its projection (k, H, n)


class Tape:
    """The values that a forward pass over one layer and direction keeps, for the backward pass and
    for reading.

    It refers to the arrays `x` and `y` of the call. Do not change these in-place before `backward`.

    Attributes
    ----------
    step : Step
    x : array (N, D)
        Packed rows of the input.
    hs : array (n + N, P)
        h of the n sequences at the first step, then h after every step. If an engine keeps `h0`
        itself, hs has only h after every step.
    y : array (N, P)
        h after every step.
    kept : list of SegmentTape
        The kept values of each segment.
    normal : (array, array) or None
        With layer_norm, the normalised Wx x (R, N) and 1 / its deviation.
    """

    def __init__(self, engine: Any, step: Step, widths: Widths, x: Array, h0: Array | None) -> None:
        self.engine = engine
        self.step = step
        self.widths = widths
        self.x = x
        self.first = first = widths[0][1] if widths else 0  # sequences of the first step
        ahead = 0 if h0 is None else first
        self.hs = step.xp.empty((ahead + x.shape[0], step.P), dtype=x.dtype, device=x.device)
        if h0 is not None:
            self.hs[:first, :] = h0[:, :first].T
        self.y = self.hs[ahead:, :]  # h after every step
        self.kept: list[SegmentTape] = []
        self.normal: tuple[Array, Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the tape without values that can be computed again."""
        return {name: value for name, value in self.__dict__.items() if name != "h0"}

    @cached_property
    def h0(self) -> Array:
        """h before every step, (N, P); a copy if lengths differ."""
        return before(self.step.xp, self.hs, self.widths)

    @property
    def passed(self) -> Array:
        """h before every step as the recurrent weight gets it, with the mask of recurrent dropout,
        (N, P).
        """
        drop = self.step.masks.drop
        at = 0
        if drop is None:
            return self.h0
        masked = []
        for k, n in self.widths:
            steps = reshape(self.h0[at : at + k * n, :], (k, n, self.step.P)) * drop[:, :n].T
            masked.append(reshape(steps, (k * n, self.step.P)))
            at += k * n
        return masked[0] if len(masked) == 1 else concat(self.step.xp, masked, 0)

    @property
    def out(self) -> Array:
        """h of every step before its projection, (N, H)."""
        return self.rows(lambda kept: kept.out[0], (self.step.H,))

    @property
    def product(self) -> Array:
        """The normalised product with h at every step, (N, R)."""
        return self.rows(lambda kept: kept.normal[0], (self.step.R,))

    @property
    def segments(self) -> list[SegmentTape]:
        """The kept values by segments; values of the cell that were not kept are computed again."""
        return [self.complete(segment_tape) for segment_tape in self.kept]

    def complete(self, kept: SegmentTape) -> SegmentTape:
        """Compute the cell's saved values again from the states before every step, without a
        loop.
        """
        if kept.saved is not None:
            return kept
        step = self.step
        segment = kept.segment
        xp = step.xp
        k = segment.k
        n = segment.n
        zx, _ = step.project(reshape(segment.steps(self.x, 0, k), (k * n, self.x.shape[1])))
        h0 = segment.steps(self.h0, 0, k)  # (k, n, P)
        zh = step.recur(step.Wh, reshape(h0, (k * n, step.P)).T)
        # (G, k, H, n)
        zx, zh = (xp.permute_dims(reshape(z, (-1, step.H, k, n)), (0, 2, 1, 3)) for z in (zx, zh))
        carry = [c[:-1, ...] for c in kept.carry]
        *_, saved = step.cell.gates(xp, zx, zh, xp.permute_dims(h0, (0, 2, 1)), *carry, **step.own)
        return kept._replace(saved=swapped(xp, saved))

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the products a @ b of pairs of matrices over all steps, such as gradients of
        weights.
        """
        return [product(self.step.xp, a, b) for a, b in pairs]

    def add_sum(
        self,
        name: str,
        d: Array,
        grads: Params,
        pairs: dict[str, tuple[Array, Array]],
        factor: Array | None = None,
    ) -> None:
        """Add the sum of d (R, N), or of d times a factor, over all steps to `grads`.

        If a product is faster, put its two factors into `pairs` instead, for `products`.
        """
        xp = self.step.xp
        together = per_sequence.get() is None
        if factor is not None and together:
            grads[name] = total(xp, d, factor)
            return
        d = d if factor is None else d * factor
        if compiles(xp) and together:
            grads[name] = column_sums(xp, d.T)
        else:
            pairs[name] = d, xp.ones((d.shape[1], 1), dtype=d.dtype, device=device_of(d))

    def gates(self) -> Array:
        """Return the value of every gate at every step, (N, G, H), in the order of the cell's
        GATES.
        """
        step = self.step
        xp = step.xp
        return self.rows(
            lambda kept: swap(xp, step.cell.activated(xp, swapped(xp, kept.saved))),
            (step.G, step.H),
        )

    def retained(self) -> Array | None:
        """Return the share of the old state that each unit keeps at every step, (N, H), or None if
        the cell has no such share.
        """
        step = self.step
        xp = step.xp
        cell = step.cell
        if type(cell).retained is Cell.retained:
            return None
        return self.rows(lambda kept: cell.retained(xp, swapped(xp, kept.saved)), (step.H,))

    def state(self, name: str) -> Array:
        """Return a state after every step, (N, P) or (N, H)."""
        names = self.step.cell.STATES
        if name not in names:
            raise AttributeError(f"this cell has no state {name}, only {', '.join(names)}")
        if name == "h":
            return self.y
        k = names.index(name) - 1
        return self.rows(lambda kept: kept.carry[k][1:, ...], (self.step.H,))

    def rows(self, of: Callable[[SegmentTape], Array], shape: tuple[int, ...]) -> Array:
        """Return arrays (k, ..., n) of every segment as rows (N, ...)."""
        xp = self.step.xp
        rows = room(xp, self.x, (self.x.shape[0], *shape))
        for segment_tape in self.segments:
            a = of(segment_tape)
            segment = segment_tape.segment
            a = xp.permute_dims(a, (0, a.ndim - 1, *range(1, a.ndim - 1)))  # (k, n, ...)
            end = segment.at + segment.k * segment.n
            rows[segment.at : end, ...] = reshape(a, (segment.k * segment.n, *shape))
        return rows


class Gradients:
    """The gradients of every step in a backward pass, as columns (rows, N).

    Attributes
    ----------
    arrays : dict of str to array
        Gradients with respect to: "zx", the product with x; "zh", the product with h after
        normalisation and bias, if that gradient differs; "a", with layer_norm, the product with h
        alone; "out", h before its projection.
    """

    def __init__(self, tape: Tape) -> None:
        self.xp = tape.step.xp
        self.like = tape.x
        self.N = tape.x.shape[0]
        # a step of one sequence is a column: stored as a row it is contiguous
        self.flat = tape.first == 1
        self.arrays: dict[str, Array] = {}

    def put(self, name: str, rows: slice, gradient: Array) -> Array:
        """Keep the gradient (G, H, n) or (R, n) of one step, and return it as (R, n)."""
        if gradient.ndim == 3:
            gradient = reshape(gradient, (gradient.shape[0] * gradient.shape[1], gradient.shape[2]))
        columns = self.arrays.get(name)
        if columns is None:
            R = gradient.shape[0]
            shape = (self.N, R) if self.flat else (R, self.N)
            new = room(self.xp, self.like, shape)
            self.arrays[name] = columns = new.T if self.flat else new
        columns[:, rows] = gradient
        return gradient

    def put_products(self, rows: slice, dzx: Array, dzh: Array) -> Array:
        """Keep the gradients with respect to both products, and return the one with respect to the
        product with h.
        """
        dz = self.put("zx", rows, dzx)
        return dz if dzh is dzx else self.put("zh", rows, dzh)


def swapped(xp: Namespace, saved: Any) -> Any:
    """Return the saved arrays of a cell, each after `swap`."""
    return saved._make(None if a is None else swap(xp, a) for a in saved)


def swap(xp: Namespace, array: Array) -> Array:
    """Return a view of (k, G, H, n) as (G, k, H, n), or the reverse; (k, H, n) stays unchanged."""
    return array if array.ndim == 3 else xp.permute_dims(array, (1, 0, 2, 3))
