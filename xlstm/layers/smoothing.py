"""Exponential smoothing: level, trend and seasons of a series, and forecasts from them after every step."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays import checks, constants
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.fuse import compiles, fuse
from xlstm.arrays.gather import add_rows
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, reshape
from xlstm.cells.activations import sigmoid, sigmoid_bwd
from xlstm.layers.initializers import constant
from xlstm.layers.module import Weight
from xlstm.layers.sequence import Derivatives, Leaf, SequenceLayer, State
from xlstm.recurrence.packing import Span

TRENDS = ("none", "linear", "damped")
LEAST = 10  # values that an initial state is fitted to, at least, where there are so many
LEAST_PHI = 0.8  # with less a trend is over after a few steps
# Coefficients before training; each is a share from 0 to 1 of the range that it has.
SHARES = {"alpha": 0.3, "beta": 0.1, "phi": 0.8, "gamma": 0.2}


class Coefficients(NamedTuple):
    """The coefficients of smoothing, (1,) each, or their gradients."""

    alpha: Array
    beta: Array
    phi: Array
    gammas: tuple[Array, ...]


class Smoothed(NamedTuple):
    """The states of smoothing before each of T steps and, in the last row, after all of them.

    Row t of a season of m steps is what it adds to the value of step t, so there are m rows more than steps.
    """

    level: Array  # (T + 1, B)
    trend: Array  # (T + 1, B)
    errors: Array  # (T, B), those of forecasts by one step
    seasons: tuple[Array, ...]  # (T + m, B) for each period m
    c: Coefficients
    x: Array | None = None  # (T, B)
    y: Array | None = None  # (T, B, H)


def _periods(where: str, name: str, value: Any) -> tuple[int, ...]:
    """Return the lengths of seasons, two at most, as a tuple of whole numbers from 2 up."""
    given = checks.several(where, name, value, "a tuple of whole numbers", 2)
    return tuple(checks.whole(2, checks.LARGEST)(where, f"{name}[{k}]", m) for k, m in enumerate(given))


@dataclass(frozen=True)
class ExponentialSmoothing(SequenceLayer):
    """Exponential smoothing (Holt-Winters) of a series, whose coefficients are learned.

    After each step it forecasts the next `horizon` values from a level l, a trend b and seasons s, which it corrects by
    its error e of one step (Hyndman & Athanasopoulos, "Forecasting: principles and practice", ch. 8; two seasons as in
    Taylor 2003)::

        e = x - (l0 + phi b0 + s0)
        l = l0 + phi b0 + alpha e
        b = phi b0 + beta e
        s = s0 + gamma e
        y_h = l + (phi + ... + phi^h) b + s_h

    Parameters of a layer are `alpha`, `beta`, `phi` (1,) and `gamma` (S,) for S seasons, before a sigmoid. Its share of
    a range is the coefficient: alpha is in 0 to 1, beta in 0 to alpha, gamma in 0 to 1 - alpha, and phi in 0.8 to 1.
    The state is (level, trend, season, ...), (B,), (B,) and (m, B) for a season of m steps, whose first row is that of
    the next step. A missing state is zero; `initial_state` makes one from the beginning of a series.

    Parameters
    ----------
    horizon : int
        Number H of values ahead that are forecast. x is (T, B, 1), and y (T, B, H).
    trend : {"damped", "linear", "none"}
        Whether the trend gets smaller by phi with every step, stays (phi is 1), or is not there.
    periods : tuple of int
        Steps of a season, or of two, such as (12,) or (24, 168).
    multiplicative : bool
        Smooth the logarithm of the series, so that trend and seasons are factors; its values are above 0.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> layer = xlstm.ExponentialSmoothing(horizon=3, periods=(4,))
    >>> params = layer.init(backend="numpy", dtype="float64")
    >>> x = np.tile([1.0, 2.0, 3.0, 6.0], 5)[:, None, None]  # (T, B, 1)
    >>> y, state = layer(params, x, layer.initial_state(x))
    >>> y[-1, 0].round(6)
    array([1., 2., 3.])
    """

    horizon: int = 1
    _: KW_ONLY
    trend: str = "damped"
    periods: tuple[int, ...] = ()
    multiplicative: bool = False

    CHECKS: ClassVar = {
        "horizon": checks.size,
        "trend": checks.choice(TRENDS),
        "periods": _periods,
        "multiplicative": checks.flag,
    }
    _output_symbol = "H"

    @property
    def input_size(self) -> int:
        """Width of x, which is 1."""
        return 1

    @property
    def output_size(self) -> int:
        """Width of y, the horizon."""
        return self.horizon

    @property
    def weights(self) -> dict[str, Weight]:
        there = {"alpha": 1, "beta": self.trend != "none", "phi": self.trend == "damped", "gamma": len(self.periods)}
        logits = {name: float(np.log(share / (1 - share))) for name, share in SHARES.items()}
        return {name: ({"S": int(n)}, constant(logits[name])) for name, n in there.items() if n}

    @functools.cached_property
    def states(self) -> State:
        """The leaves of level, trend and seasons."""
        seasons = (Leaf(f"season of {m}", {"m": m}, {}) for m in self.periods)
        return Leaf("level", {}, {}), Leaf("trend", {}, {}), *seasons

    def initial_state(self, x: Array, lengths: Any = None) -> State:
        """Return a state before the first step, from two seasons at the beginning of each series, 10 values at least.

        Level, trend and seasons, which add up to 0, are a least-squares fit. No gradient goes through it.

        Parameters
        ----------
        x : array (T, B, 1)
        lengths : whole numbers (B,), optional
            As for `forward`.

        Returns
        -------
        tuple of array
        """
        values = to_numpy(x)[..., 0].astype("float64")  # (T, B)
        ends = np.full(values.shape[1], len(values)) if lengths is None else to_numpy(lengths)
        first = [max(LEAST, 2 * max(self.periods, default=0))] * len(ends)
        series = [values[: min(n, k), b] for b, (n, k) in enumerate(zip(ends, first, strict=True))]
        fitted = [self._fitted(np.log(one) if self.multiplicative else one) for one in series]
        return tuple(like(np.stack(part, axis=-1), x) for part in zip(*fitted, strict=True))

    def _fitted(self, series: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Return level, trend and seasons before the first value of a series, fitted to all of it."""
        steps = np.arange(len(series))
        columns = [np.ones((len(series), 1)), (steps[:, None] + 1.0) * (self.trend != "none")]
        columns += [(steps[:, None] % m == np.arange(m)) - 1 / m for m in self.periods]
        found = np.linalg.lstsq(np.concatenate(columns, axis=1), series)[0]
        level, trend, *seasons = np.split(found, np.cumsum([1, 1, *self.periods])[:-1])
        return [level[0], trend[0], *seasons]

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        kept = self.smooth(p, x, state, span)
        y = self.in_units(span.xp, self.ahead(span.xp, kept))
        return y, self.final_state(kept, span), kept._replace(y=y)

    def scan_bwd(self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span) -> Derivatives:
        d = self.ahead_bwd(span.xp, kept, self.in_units_bwd(dy, kept.y))
        return self.smooth_bwd(p, kept, d, dstate, span)

    def in_units(self, xp: Namespace, y: Array) -> Array:
        """Return forecasts in the units of the series."""
        return xp.exp(y) if self.multiplicative else y  # (14)

    def in_units_bwd(self, dy: Array, y: Array) -> Array:
        """Differentiate `in_units`."""
        return dy * y if self.multiplicative else dy  # (14)

    def coefficients(self, xp: Namespace, p: Params) -> Coefficients:
        """Return the coefficients that parameters stand for."""
        share = {name: sigmoid(xp, p[name]) for name in p}  # (1)
        alpha = share["alpha"]  # (2)
        beta = alpha * share["beta"] if "beta" in p else xp.zeros_like(alpha)  # (3)
        phi = (
            LEAST_PHI + (1 - LEAST_PHI) * share["phi"] if "phi" in p else xp.full_like(alpha, self.trend != "none")
        )  # (4)
        gammas = [(1 - alpha) * share["gamma"][k : k + 1] for k in range(len(self.periods))]  # (5)
        return Coefficients(alpha, beta, phi, tuple(gammas))

    def coefficients_bwd(self, xp: Namespace, p: Params, d: Coefficients) -> Params:
        """Differentiate `coefficients`: gradients of the parameters."""
        share = {name: sigmoid(xp, p[name]) for name in p}
        dshare, dalpha = {}, d.alpha
        if "beta" in p:
            dshare["beta"] = share["alpha"] * d.beta  # (3)
            dalpha = dalpha + share["beta"] * d.beta  # (3)
        if "phi" in p:
            dshare["phi"] = (1 - LEAST_PHI) * d.phi  # (4)
        if "gamma" in p:
            dgamma = xp.concat(d.gammas)
            dshare["gamma"] = (1 - share["alpha"]) * dgamma  # (5)
            dalpha = dalpha - xp.sum(share["gamma"] * dgamma)  # (5)
        dshare["alpha"] = dalpha  # (2)
        return {name: sigmoid_bwd(xp, dshare[name], p[name], share[name]) for name in p}  # (1)

    def smooth(self, p: Params, x: Array, state: State, span: Span) -> Smoothed:
        """Return the states of x (T, B, 1) at every step."""
        xp, c = span.xp, self.coefficients(span.xp, p)
        x = span.mask(x, 1.0)[..., 0]  # a logarithm is finite past the end, too
        if self.multiplicative and xp is np and not np.all(x > 0):
            raise ValueError(f"{type(self).__name__}: x has {np.min(x)}, expected values above 0 with multiplicative")
        series = xp.log(x) if self.multiplicative else x  # (6)
        step = functools.partial(fuse, xp, _step) if compiles(xp) else functools.partial(_step, xp)
        levels, trends = [state[0]], [state[1]]
        seasons, errors = [_rows(season) for season in state[2:]], []
        for t in range(span.T):
            now = (season[t] for season in seasons)
            error, level, trend, *later = step(series[t, ...], levels[t], trends[t], *c[:3], *c.gammas, *now)
            errors.append(error)
            levels.append(level)
            trends.append(trend)
            for season, new in zip(seasons, later, strict=True):
                season.append(new)
        return Smoothed(*map(xp.stack, (levels, trends, errors)), tuple(map(xp.stack, seasons)), c, x)

    def smooth_bwd(self, p: Params, kept: Smoothed, d: Smoothed, dstate: State | None, span: Span) -> Derivatives:
        """Return gradients of the parameters, of x and of the initial state from d, those of all states and errors."""
        xp, c, dc = span.xp, kept.c, d.c
        for rows, end in zip((d.level, d.trend, *d.seasons), dstate or (), strict=dstate is not None):
            _add_at_end(span, rows, end)
        step = functools.partial(fuse, xp, _step_bwd) if compiles(xp) else functools.partial(_step_bwd, xp)
        levels, trends, errors, seasons = _rows(d.level), _rows(d.trend), _rows(d.errors), list(map(_rows, d.seasons))
        damped = []
        for t in range(span.T - 1, -1, -1):
            later = [season[t + m] for season, m in zip(seasons, self.periods, strict=True)]
            errors[t], dtrend, level, trend, *now = step(
                errors[t], levels[t + 1], trends[t + 1], *c[:3], *c.gammas, *later
            )
            damped.append(dtrend)
            levels[t], trends[t] = levels[t] + level, trends[t] + trend
            for season, new in zip(seasons, now, strict=True):
                season[t] = season[t] + new
        dlevel, dtrend, dx = xp.stack(levels), xp.stack(trends), xp.stack(errors)
        dseasons = list(map(xp.stack, seasons))
        dalpha = _total(xp, dlevel[1:, ...], kept.errors)  # (9)
        dbeta = _total(xp, dtrend[1:, ...], kept.errors)  # (10)
        dgammas = [_total(xp, d[m:, ...], kept.errors) for d, m in zip(dseasons, self.periods, strict=True)]  # (11)
        dphi = dc.phi + _total(xp, xp.stack(damped[::-1]), kept.trend[:-1, ...])  # (7)
        grads = self.coefficients_bwd(xp, p, Coefficients(dalpha, dbeta, dphi, tuple(dgammas)))
        start = dlevel[0, ...], dtrend[0, ...], *(d[:m, ...] for d, m in zip(dseasons, self.periods, strict=True))
        dx = dx / kept.x if self.multiplicative else dx  # (6)
        return grads, dx[..., None], start

    def final_state(self, kept: Smoothed, span: Span) -> State:
        """Return the state at the end of each sequence."""
        level, trend = (_at_end(span, rows)[0, ...] for rows in (kept.level, kept.trend))
        return level, trend, *(_at_end(span, rows) for rows in kept.seasons)

    def ahead(self, xp: Namespace, kept: Smoothed) -> Array:
        """Return forecasts y (T, B, H) after every step, of the logarithm if it is what is smoothed."""
        T, level, trend = kept.errors.shape[0], kept.level[1:, ...], kept.trend[1:, ...]
        found = []
        for h, slope in enumerate(self._slopes(xp, kept.c.phi)):
            y = level + slope * trend  # (13)
            for season, m in zip(kept.seasons, self.periods, strict=True):
                y = y + season[1 + h % m : 1 + h % m + T, ...]  # (13)
            found.append(y)
        return xp.stack(found, axis=-1)

    def ahead_bwd(self, xp: Namespace, kept: Smoothed, dy: Array) -> Smoothed:
        """Differentiate `ahead`: gradients of all states, and of phi, which nothing else has added to yet."""
        dlevel, dtrend, *dseasons = (xp.zeros_like(rows) for rows in (kept.level, kept.trend, *kept.seasons))
        T, phi, slopes = dy.shape[0], kept.c.phi, self._slopes(xp, kept.c.phi)
        dphi = dslope = xp.zeros_like(phi)
        dlevel[1:, ...] = xp.sum(dy, axis=-1)  # (13)
        for h in range(self.horizon - 1, -1, -1):
            d = dy[..., h]
            dtrend[1:, ...] += slopes[h] * d  # (13)
            for dseason, m in zip(dseasons, self.periods, strict=True):
                dseason[1 + h % m : 1 + h % m + T, ...] += d  # (13)
            dslope = dslope + _total(xp, d, kept.trend[1:, ...])  # (13)
            dphi = dphi + dslope * (1 + slopes[h - 1] if h else 1)  # (12)
            dslope = phi * dslope  # (12)
        zero = xp.zeros_like(phi)
        c = Coefficients(zero, zero, dphi, ())
        return Smoothed(dlevel, dtrend, xp.zeros_like(kept.errors), tuple(dseasons), c)

    def _slopes(self, xp: Namespace, phi: Array) -> list[Array]:
        """Return by how many trends the level is higher after each step of the horizon."""
        found = [phi]  # (12)
        for _ in range(self.horizon - 1):
            found.append(phi * (1 + found[-1]))  # (12)
        return found


def _step(
    xp: Namespace, x: Array, level0: Array, trend0: Array, alpha: Array, beta: Array, phi: Array, *seasonal: Array
) -> tuple[Array, ...]:
    """Return the error of a step and the new level, trend and seasons; `seasonal` is all gammas, then all seasons."""
    gammas, seasons = seasonal[: len(seasonal) // 2], seasonal[len(seasonal) // 2 :]
    damped = phi * trend0  # (7)
    expected = level0 + damped  # (7)
    error = x - expected  # (8)
    for season in seasons:
        error = error - season  # (8)
    level = expected + alpha * error  # (9)
    trend = damped + beta * error  # (10)
    return error, level, trend, *(s + gamma * error for gamma, s in zip(gammas, seasons, strict=True))  # (11)


def _step_bwd(
    xp: Namespace, derror: Array, dlevel: Array, dtrend: Array, alpha: Array, beta: Array, phi: Array, *seasonal: Array
) -> tuple[Array, ...]:
    """Differentiate `_step`: gradients of x, of the damped trend, and of the old level, trend and seasons."""
    gammas, dseasons = seasonal[: len(seasonal) // 2], seasonal[len(seasonal) // 2 :]
    derror = derror + alpha * dlevel + beta * dtrend  # (9) (10)
    for gamma, dseason in zip(gammas, dseasons, strict=True):
        derror = derror + gamma * dseason  # (11)
    dlevel0 = dlevel - derror  # (9) (8)
    ddamped = dtrend + dlevel0  # (10) (7)
    dtrend0 = phi * ddamped  # (7)
    return derror, ddamped, dlevel0, dtrend0, *(dseason - derror for dseason in dseasons)  # (11) (8)


def _rows(a: Array) -> list[Array]:
    """Return the rows of an array."""
    return [a[k, ...] for k in range(a.shape[0])]


def _total(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the sum of a * b as an array (1,)."""
    return reshape(xp.sum(a * b), (1,))


def _at_end(span: Span, rows: Array) -> Array:
    """Return those of rows (T + n, B) that come after the last step of each sequence, (n, B)."""
    if span.full:
        return span.xp.asarray(rows[span.T :, ...], copy=True)
    n = rows.shape[0] - span.T
    return reshape(span.xp.take(reshape(rows, (-1,)), _places(span, rows), axis=0), (n, span.B))


def _add_at_end(span: Span, drows: Array, dend: Array) -> None:
    """Differentiate `_at_end`: add to drows."""
    n = drows.shape[0] - span.T
    if span.full:
        drows[span.T :, ...] += dend
    else:
        d = add_rows(span.xp, _places(span, drows), reshape(dend, (n * span.B, 1)), drows.shape[0] * span.B)
        drows += reshape(d, tuple(drows.shape))


def _places(span: Span, rows: Array) -> Array:
    """Return where the rows after the last step of all sequences are among rows (T + n, B) as one axis."""
    steps = span.lengths + np.arange(rows.shape[0] - span.T)[:, None]
    return constants.copied(span.xp, (steps * span.B + np.arange(span.B)).ravel(), device_of(rows))
