"""TiRex-2's forecasts: items of several targets with covariates, all steps at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data.host import Values
from xlstm.models.tirex import calibration, rows, windows
from xlstm.models.tirex import quantiles as levels_of
from xlstm.models.tirex.batching import batches
from xlstm.models.tirex.forecast import Forecast, HorizonWarning
from xlstm.models.tirex.rows import Item, Rows
from xlstm.models.tirex.running import Starts, outputs


class Look(NamedTuple):
    """How the network is to see an item.

    Attributes
    ----------
    rows : int
        Rows of a batch that it takes.
    grouped : bool
        Whether it has more rows than that of one target.
    known : bool
        Whether covariates are known in advance.
    lead : int
        Tokens at its beginning that hold no value, and may be left out.
    """

    rows: int
    grouped: bool
    known: bool
    lead: int


class Call:
    """The model and the options of one call.

    Parameters
    ----------
    starts : Starts
    horizon : int
        Steps H to forecast.
    context : int
        Steps before them that the network sees.
    sign_flip, differencing : bool
    """

    def __init__(self, starts: Starts, horizon: int, context: int, sign_flip: bool, differencing: bool) -> None:
        self.starts, self.horizon, self.context, self.differencing = starts, horizon, context, differencing
        model: Any = starts.model
        self.model, self.scaler = model, model.scaler
        self.opposite = calibration.opposite(model.quantiles) if sign_flip else None
        P = model.patch_size
        self.needed = -(-horizon // P)  # patches
        self.ahead = max(model.horizon, self.needed * P)
        self.tokens = -(-(context + self.ahead) // P)
        self.first = self.tokens - 1 - self.ahead // P  # the token that predicts the first patch

    def rows(self, items: Sequence[Item]) -> Rows:
        """Return the rows of items, whole patches of each."""
        found = rows.rows(items, self.horizon, self.ahead, self.context, self.differencing)
        return found._replace(x=windows.whole_patches(found.x, self.model.patch_size))

    def look(self, item: Item) -> Look:
        """Return how the network is to see an item."""
        found = self.rows([item])
        known = bool(np.any(found.known))  # rows that are read backwards need all tokens
        leads = [0 if known else windows.leading(row, self.model.patch_size, self.first) for row in found.x]
        return Look(len(found.x) * (1 if self.opposite is None else 2), len(found.x) > 1, known, min(leads))

    def quantiles(self, items: Sequence[Item], lead: int) -> Values:
        """Return quantiles (V, H, Q) of the targets of items, whose first `lead` tokens hold no value."""
        found = self.rows(items)
        if self.opposite is None:
            return self._one_way(found, lead)
        q, mirrored = np.split(self._one_way(found.mirrored(), lead), 2)
        return (q - mirrored[..., self.opposite]) / 2

    def _one_way(self, found: Rows, lead: int) -> Values:
        """Return quantiles (V, H, Q) of the targets of rows."""
        units = self.scaler.units(found.x)
        tokens = windows.tokens(self.scaler.scaled(found.x, units), self.model.patch_size)
        last = self.first + self.needed
        end = None if np.any(found.known) else last  # nothing later is looked at
        grouped = len(np.unique(found.groups)) < len(tokens)
        state = self.starts.after(lead, len(tokens), grouped)
        some = slice(self.first - lead, last - lead)
        groups = {"groups": found.groups, "targets": found.targets, "known": found.known}
        y = outputs(self.starts, tokens[:, lead:end], state, some, found.targets, **groups)
        q = self.scaler.restored(y, units.of(found.targets)).reshape(len(y), -1, y.shape[-1])[:, : self.horizon]
        made: Values = self.model.calibrated(q)
        made[found.summed] = calibration.summed(q[found.summed], found.latest[found.summed])
        return made


def forecast(
    model: Any,
    params: Params,
    given: Any,
    horizon: int,
    past: Any,
    future: Any,
    levels: Any,
    batch_size: int | None,
    sign_flip: bool | None,
    differencing: bool | None,
    pad_context: bool,
    starts: Starts | None,
) -> Forecast:
    """Run `TiRex2.forecast`, which describes the arguments."""
    where = type(model).__name__
    horizon = checks.size(where, "horizon", horizon)
    batch_size = checks.optional(checks.size)(where, "batch_size", batch_size)
    flip = checks.flag(where, "sign_flip", model.sign_flip if sign_flip is None else sign_flip)
    differ = checks.flag(where, "differencing", model.differencing if differencing is None else differencing)
    pad = checks.flag(where, "pad_context", pad_context)
    levels = levels_of.levels(where, levels, model.quantiles)
    found, items = rows.read(where, model, given, past, future, horizon)
    longest = max(row.shape[1] for row in found.rows)
    starts = Starts.checked(where, model, params, starts)
    call = Call(starts, horizon, model.context if pad else min(model.context, longest), flip, differ)
    warn_beyond(where, model, horizon, 4)
    return Forecast.of(found, _all(call, items, starts.batch(batch_size)), model.quantiles, levels)


def warn_beyond(where: str, model: Any, horizon: int, level: int) -> None:
    """Give a `HorizonWarning`, at a level as for `warnings.warn`, where a model was not trained for so many steps."""
    if horizon > model.horizon:
        beyond = f"horizon is {horizon}, and the model was trained for {model.horizon} steps at most"
        warnings.warn(f"{where}: {beyond}; those after them may be poor", HorizonWarning, stacklevel=level)


def _all(call: Call, items: Sequence[Item], batch_size: int) -> list[Values]:
    """Return quantiles (V, H, Q) of each item, in batches of those whose rows go the same ways."""
    looks = [call.look(item) for item in items]
    leads, sizes = np.array([look.lead for look in looks]), np.array([look.rows for look in looks])
    found: list[Any] = [None] * len(items)
    ways = [(look.known, look.grouped) for look in looks]
    for way in sorted(set(ways)):
        numbers = np.flatnonzero([own == way for own in ways])
        for batch in batches(leads[numbers], sizes[numbers], call.tokens, batch_size, call.starts.kept):
            some = numbers[batch.entries]
            q = call.quantiles([items[k] for k in some], batch.lead)
            ends = np.cumsum([len(items[k].target) for k in some])
            for k, part in zip(some, np.split(q, ends[:-1]), strict=True):
                found[k] = part
    return found
