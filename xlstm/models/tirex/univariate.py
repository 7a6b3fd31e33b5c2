"""TiRex-1's forecasts: windows of a series, one after another, each of which gives the next patches."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data.host import Values
from xlstm.models.tirex import quantiles as levels_of
from xlstm.models.tirex import resampling, series, windows
from xlstm.models.tirex.batching import batches
from xlstm.models.tirex.forecast import Forecast, HorizonWarning
from xlstm.models.tirex.running import Starts, outputs


class Window(NamedTuple):
    """A look at a series: the patches that are missing at its end by then, and how many more it forecasts."""

    series: int
    ahead: int
    patches: int


def forecast(
    model: Any,
    params: Params,
    given: Any,
    horizon: int,
    levels: Any,
    batch_size: int | None,
    rollout: int,
    resample: str | None,
    starts: Starts | None,
) -> Forecast:
    """Run `TiRex.forecast`, which describes the arguments."""
    where = type(model).__name__
    horizon = checks.size(where, "horizon", horizon)
    batch_size = checks.optional(checks.size)(where, "batch_size", batch_size)
    rollout = checks.size(where, "rollout", rollout)
    resample = checks.optional(checks.choice(("frequency",)))(where, "resample", resample)
    levels = levels_of.levels(where, levels, model.quantiles)
    found = series.read(where, given, 1)
    starts = Starts.checked(where, model, params, starts)
    factors = [1.0 if resample is None else resampling.factor(row[0], horizon) for row in found.rows]
    rows = [resampling.downsampled(row[0], f) for row, f in zip(found.rows, factors, strict=True)]
    steps = [resampling.steps(horizon, f) for f in factors]
    q = _ahead(starts, rows, steps, starts.batch(batch_size), rollout)
    ahead = [resampling.upsampled(one[:n], f, horizon)[None] for one, n, f in zip(q, steps, factors, strict=True)]
    return Forecast.of(found, ahead, model.quantiles, levels)


def _ahead(starts: Starts, rows: list[Values], steps: list[int], batch_size: int, rollout: int) -> list[Values]:
    """Return quantiles (n P, Q) after each row, for as many patches as its steps need."""
    model: Any = starts.model
    P, Q = model.patch_size, len(model.quantiles)
    looks = [look for k, n in enumerate(steps) for look in _looks(k, -(-n // P), rollout)]
    if any(look.ahead * P >= model.context for look in looks):
        blind = f"the last steps come from windows of {model.context} values that hold none of the series"
        warnings.warn(f"{type(model).__name__}: {blind}, and know neither its level nor its scale", HorizonWarning, 4)
    found = [np.empty((-(-n // P) * P, Q)) for n in steps]
    T = model.context // P
    leads = np.array([windows.leading(_seen(model, rows, look), P, T - 1) for look in looks])
    for batch in batches(leads, np.ones_like(leads), T, batch_size, starts.kept):
        some = [looks[k] for k in batch.entries]
        x = np.stack([_seen(model, rows, look) for look in some])
        units = model.scaler.units(x)
        most = max(look.patches for look in some)
        tokens = windows.tokens(model.scaler.scaled(x, units), P)[:, batch.lead :]
        tokens = np.pad(tokens, ((0, 0), (0, most - 1), (0, 0)))
        state = starts.after(batch.lead, len(some))
        y = outputs(starts, tokens, state, slice(-most, None))  # (R, most, P, Q)
        y = model.scaler.restored(y, units)
        for look, one in zip(some, y, strict=True):
            found[look.series][look.ahead * P : (look.ahead + look.patches) * P] = one[: look.patches].reshape(-1, Q)
    return found


def _looks(number: int, patches: int, rollout: int) -> list[Window]:
    """Return the windows that a series needs for so many patches, each of `rollout` of them or of what is left."""
    return [Window(number, done, min(rollout, patches - done)) for done in range(0, patches, rollout)]


def _seen(model: Any, rows: list[Values], look: Window) -> Values:
    """Return the values of a window, (T P,)."""
    return windows.last(rows[look.series], model.context, look.ahead * model.patch_size)
