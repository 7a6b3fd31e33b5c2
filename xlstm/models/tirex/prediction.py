"""Batched forecasts of a TiRex over windows of many series.

Leading tokens without any value lead every series to the same states, which are computed once. A
batch starts from the state after the leading tokens that all of its rows share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Params, device_of, leaves, namespace_of
from xlstm.cells.normalization import normalize
from xlstm.data.host import Values
from xlstm.layers.sequence import Leaf, State, nested
from xlstm.models.tirex import transforms
from xlstm.models.tirex.items import Item, ItemRows
from xlstm.models.tirex.variates import Groups

# Default rows at once. Relative to 16, a CPU takes 1.2 times as long with 4, and 30 to 45 MB less;
# with 32 it takes hardly less time.
FEW = 16
MANY = 512
# A call takes the time of its steps of rows, plus the time of so many more steps. Measured at the
# published sizes: 44 and 63.
CALL = 50
TINY = 1e-30  # divisor of a block's zero vector


class PrefixStateCache:
    """A cache of a network's states after tokens without any value, each computed once.

    The states are valid for one set of parameters, so do not change these in-place.

    Parameters
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
    kept : bool
        Whether the cache serves several calls, so that states pay off even for a few rows.

    Attributes
    ----------
    like : array
        One of the parameters; states have its library and device.
    """

    def __init__(self, model: Any, params: Params, kept: bool = True) -> None:
        model.namespace(params, {})  # checks them
        self.model = model
        self.params = params
        self.kept = kept
        self.like = next(iter(params.values()))
        self._states: dict[bool, dict[int, State]] = {False: {}, True: {}}

    @classmethod
    def of(
        cls, where: str, model: Any, params: Params, cache: PrefixStateCache | None
    ) -> PrefixStateCache:
        """Return the given cache, checked for this model and these parameters, or a new one."""
        if cache is None:
            return cls(model, params, kept=False)
        checks.instance(cls, "a PrefixStateCache")(where, "starts", cache)
        if cache.model != model or cache.params is not params:
            raise ValueError(f"{where}: starts is that of another model or of other parameters")
        return cache

    @property
    def batch_size(self) -> int:
        """The default number of rows at once: few on a CPU, many on a GPU."""
        return FEW if "cpu" in str(device_of(self.like)).lower() else MANY

    def after(self, count: int, rows: int, grouped: bool = False) -> State | None:
        """Return the state of `rows` rows after `count` tokens; `grouped` rows are in groups of two
        or more.
        """
        if count == 0:
            return None
        states = self._states[grouped]
        R = 1 + grouped
        if count not in states:
            before = max((n for n in states if n < count), default=0)
            tokens = like(np.zeros((R, count - before, self.model.input_size)), self.like)
            start = _repeated(states[before], self.model, R) if before else None
            groups = {"groups": np.zeros(R, np.int64)} if grouped else {}
            states[count] = self.model.forward(self.params, tokens, start, False, **groups)[1]
        return _repeated(states[count], self.model, rows)

    def batches(
        self, leads: Sequence[int], sizes: Sequence[int], batch_size: int, grouped: bool = False
    ) -> Iterator[tuple[list[int], int]]:
        """Yield the indices of entries to run together, and the number of leading tokens to skip.

        Parameters
        ----------
        leads, sizes : whole numbers (N,)
            The number of leading tokens without a value of each entry, and its number of rows.
        batch_size : int
            The most rows of a batch, unless a single entry has more.
        grouped : bool
            Whether the rows of an entry see each other.
        """
        batches: list[list[int]] = []
        room = 0
        for k in np.argsort(leads, kind="stable").tolist():
            if not batches or sizes[k] > room:
                batches.append([])
                room = batch_size
            batches[-1].append(k)
            room -= sizes[k]
        for batch in batches:
            lead = int(leads[batch[0]])
            rows = sum(sizes[k] for k in batch)
            pays = self.kept or lead in self._states[grouped] or lead * rows > CALL + lead
            yield batch, lead if pays else 0


def _repeated(state: State, model: Any, rows: int) -> State:
    """Return a state of `rows` rows, each a copy of the first row of `state`."""
    arrays = []
    for part, leaf in zip(leaves(state), leaves(model.states, Leaf), strict=True):
        xp = namespace_of(part)
        first = xp.zeros(rows, dtype=xp.int64, device=device_of(part))
        arrays.append(xp.take(part, first, axis=len(leaf.before)))
    return nested(state, iter(arrays))


def predict(
    cache: PrefixStateCache,
    series: Sequence[Item],
    steps: Sequence[int],
    context: int,
    batch_size: int | None,
    rollout: int = checks.LARGEST,
) -> list[Values]:
    """Return quantiles (V, steps, Q) of the targets of each item.

    Parameters
    ----------
    cache : PrefixStateCache
        The cache, with the model and the parameters.
    series : sequence of Item
    steps : sequence of int
        Steps to forecast for each item.
    context : int
        Values before these steps in a window, in whole patches.
    batch_size : int, optional
        The most rows at once; it is checked here.
    rollout : int
        The most patches predicted from one window; a later window sees fewer values, by the steps
        predicted before it.
    """
    model: Any = cache.model
    P = model.patch_size
    most = checks.optional(checks.size)(type(model).__name__, "batch_size", batch_size)
    context += -context % P
    first = context // P - 1  # the token whose output is the first of the patches
    counts = [-(-n // P) for n in steps]
    patches = min(rollout, max(counts))
    ahead = max(model.horizon, patches * P)
    windows = [(k, done) for k, n in enumerate(counts) for done in range(0, n, patches)]

    def rows_of(window: int) -> ItemRows:
        k, done = windows[window]
        return ItemRows.of(series[k], steps[k], ahead + done * P, context - done * P)

    # For each window: its index, its leading tokens and its rows.
    kinds: dict[tuple[bool, bool], list[tuple[int, int, int]]] = {}
    for number in range(len(windows)):
        rows = rows_of(number)
        backwards = bool(np.any(rows.known))  # the reverse direction needs all tokens
        lead = 0 if backwards else min(transforms.leading(row, P, first) for row in rows.x)
        size = len(rows.x)
        kinds.setdefault((backwards, size > 1), []).append((number, lead, size))
    outputs: dict[int, Values] = {}
    for (_, grouped), entries in sorted(kinds.items()):
        numbers, leads, sizes = zip(*entries, strict=True)
        for batch, lead in cache.batches(leads, sizes, most or cache.batch_size, grouped):
            parts = [rows_of(numbers[k]) for k in batch]
            run = _run(cache, parts, lead, first, patches)
            outputs |= zip((numbers[k] for k in batch), run, strict=True)
    results: list[list[Values]] = [[] for _ in series]
    for number, (k, _) in enumerate(windows):
        results[k].append(outputs[number])
    return [np.concatenate(q, axis=1)[:, :n] for q, n in zip(results, steps, strict=True)]


def _run(
    cache: PrefixStateCache, parts: Sequence[ItemRows], lead: int, first: int, patches: int
) -> list[Values]:
    """Return quantiles (V, patches P, Q) of windows of one kind, run without their first `lead`
    tokens.

    The output of token `first` is the first patch.
    """
    model: Any = cache.model
    P = model.patch_size
    rows = ItemRows.joined(parts)
    backwards = bool(np.any(rows.known))
    grouped = len(rows.x) > len(parts)
    units = model.scaler.units(rows.x)
    end = None if backwards else first + patches  # later tokens are not needed
    tokens = transforms.tokens(model.scaler.scaled(rows.x, units), P)[:, lead:end]
    groups = None
    if backwards or grouped:
        groups = Groups.of(type(model).__name__, len(tokens), **rows.marks)
    y = model.read(
        cache.params,
        like(tokens, cache.like),
        cache.after(lead, len(tokens), grouped),
        slice(first - lead, first + patches - lead),
        np.flatnonzero(rows.targets),
        groups,
    )
    y = model.scaler.restored(on_host(y), units.of(rows.targets))
    ends = np.cumsum([np.count_nonzero(part.targets) for part in parts])
    return np.split(y.reshape(len(y), -1, y.shape[-1]), ends[:-1])


def on_host(y: Any) -> Values:
    """Return outputs (B, T, Q, P) of the network as float64 on the host, (B, T, P, Q)."""
    return to_numpy(y).astype(np.float64).swapaxes(2, 3)


def features(
    where: str, model: Any, params: Params, series: Sequence[Values], batch_size: int
) -> Values:
    """Return the features of series (V, L), (S, blocks * V * D)."""
    variates = {len(rows) for rows in series}
    if len(variates) > 1:
        raise ValueError(
            f"{where}: series have {sorted(variates)} variates, expected one number of them"
        )
    cache = PrefixStateCache(model, params, kept=False)
    P = model.patch_size
    T = model.context // P
    every = [row for rows in series for row in rows]
    counts = [min(T, -(-len(row) // P)) for row in every]  # tokens that hold values of each row
    x = np.stack([transforms.last(row, model.context) for row in every])
    leads = [
        min(transforms.leading(row, P, T - 1), T - n) for row, n in zip(x, counts, strict=True)
    ]
    means = np.empty((len(x), model.num_blocks, model.size))
    for batch, lead in cache.batches(leads, [1] * len(x), batch_size):
        scaled = model.scaler.scaled(x[batch], model.scaler.units(x[batch]))
        tokens = like(transforms.tokens(scaled, P)[:, lead:], cache.like)
        levels, _ = model.hidden(params, tokens, cache.after(lead, len(batch)))
        for k, level in enumerate(levels[1:]):
            host = to_numpy(level).astype(np.float64)
            means[batch, k] = [
                row[-counts[n] :].mean(axis=0) for row, n in zip(host, batch, strict=True)
            ]
    norms = np.linalg.norm(means, axis=-1, keepdims=True)
    # (S, V, blocks, D)
    unit = (means / np.maximum(norms, TINY)).reshape(len(series), *variates, *means.shape[1:])
    vectors: Values = normalize(np, unit.swapaxes(1, 2).reshape(len(series), -1), -1)[0]
    return vectors
