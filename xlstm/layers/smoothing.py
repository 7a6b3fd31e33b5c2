"""Exponential smoothing: level, trend and seasons of a series, and forecasts after every step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.fuse import walk
from xlstm.arrays.gather import add_rows
from xlstm.arrays.namespace import Array, Namespace, Params, namespace, reshape
from xlstm.arrays.rows import column_sums
from xlstm.cells.activations import sigmoid, sigmoid_bwd
from xlstm.layers.in_parts import in_parts, in_parts_bwd
from xlstm.layers.initializers import constant
from xlstm.layers.module import Weights
from xlstm.layers.sequence import Derivatives, Leaf, Scanned, SequenceLayer, State
from xlstm.recurrence.packing import Packing, Span

TRENDS = ("none", "linear", "damped")
CYCLES = 3  # seasons that an initial state is fitted to
LEAST = 10  # the fewest values that an initial state is fitted to, if there are so many
# sigmoids of the parameters before training
SHARES = {"alpha": 0.3, "beta": 0.1, "phi": 0.9, "gamma": 0.2}


class Smoothed(NamedTuple):
    """The values that smoothing keeps.

    Row t of a level or trend is its value before step t. Row t of a season is the term it adds to
    the value of step t, so a season of m steps has m rows more than there are steps.
    """

    # level and trend (T + 1, B), and for each period m a season (T + m, B)
    states: tuple[Array, ...]
    errors: Array  # (T, B), errors of one-step forecasts
    coefficients: tuple[Array, ...]  # (1,) each: gamma of each season, alpha, beta, phi
    x: Array  # (T, B)
    y: Array | None = None  # (T, B, H)


def _periods(where: str, name: str, value: Any) -> tuple[int, ...]:
    """Return the lengths of seasons, two at most, as a tuple of whole numbers from 2 up."""
    period = checks.whole(2, checks.LARGEST)
    return tuple(checks.several(where, name, value, "a tuple of whole numbers", period, 2))


@dataclass(frozen=True)
class ExponentialSmoothing(SequenceLayer):
    """Exponential smoothing (Holt-Winters) of a series, with learned coefficients.

    After each step it forecasts the next `horizon` values from a level l, a trend b and seasons s.
    It corrects these by its one-step error e (Hyndman & Athanasopoulos, "Forecasting: principles
    and practice", ch. 8; two seasons as in Taylor 2003)::

        e = x - (l0 + phi b0 + s0)
        l = l0 + phi b0 + alpha e
        b = phi b0 + beta e
        s = s0 + gamma e
        y_h = l + (phi + ... + phi^h) b + s_h

    The parameters are `alpha`, `beta`, `phi` (1,) and `gamma` (S,) for S seasons. Their sigmoids
    give the coefficients: alpha and phi directly, beta as a share of alpha, and gamma as a share of
    1 - alpha.

    The state is (l, b, s, ...): level and trend (1, B), and an array (m, B) for each season of m
    steps. The first row of a season belongs to the next step. A missing state is zero;
    `initial_state` makes one from the beginning of a series.

    Parameters
    ----------
    horizon : int
        Number H of future values to forecast after each step. x is (T, B, 1), and y is (T, B, H).
    trend : {"damped", "linear", "none"}
        The kind of trend: multiplied by phi at every step, constant (phi is 1), or none.
    periods : tuple of int
        The length of one season, or of two, in steps, such as (12,) or (24, 168).
    multiplicative : bool
        Smooth the logarithm of the series, so that trend and seasons are factors. All values must
        be above 0.

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
    def weights(self) -> Weights:
        sizes = {
            "alpha": 1,
            "beta": self.trend != "none",
            "phi": self.trend == "damped",
            "gamma": len(self.periods),
        }
        logits = {name: float(np.log(share / (1 - share))) for name, share in SHARES.items()}
        return {name: ({"S": int(n)}, constant(logits[name])) for name, n in sizes.items() if n}

    @cached_property
    def states(self) -> State:
        """The leaves of level, trend and seasons."""
        names = ("l", "b", *(f"s{m}" for m in self.periods))
        return tuple(Leaf(name, {"m": lag}, {}) for name, lag in zip(names, self.lags, strict=True))

    @property
    def lags(self) -> tuple[int, ...]:
        """The number of steps after which each state's new value is used."""
        return 1, 1, *self.periods

    @property
    def initial_rows(self) -> int:
        """The number of values for the fit of an initial state."""
        return max(LEAST, CYCLES * max(self.periods, default=0))

    def initial_state(self, x: Array, lengths: Any = None) -> State:
        """Return a state before the first step, fitted to the beginning of each series.

        The fit uses three seasons, or 10 values if these are more. Level, trend and seasons are a
        least-squares fit; the values of a season add up to 0. No gradient goes through it.

        Parameters
        ----------
        x : array (T, B, 1)
            The series.
        lengths : whole numbers (B,), optional
            As for `forward`.

        Returns
        -------
        tuple of array
            The state (l, b, s, ...).

        Raises
        ------
        ValueError, TypeError
            A value is not finite, or is 0 or less with `multiplicative`; or `forward` would refuse
            `x` or `lengths`.
        """
        return self.initial_state_of(self, x, lengths)

    def initial_state_of(self, layer: SequenceLayer, x: Array, lengths: Any) -> State:
        """Return `initial_state` for a layer whose x (T, B, D) begins with the series.

        Errors name that layer.
        """
        where = type(layer).__name__
        x = from_foreign(where, x)
        layer._inner(namespace(where, {"x": x}), x)
        ends = Packing.of(where, lengths, *x.shape[:2]).ends
        values = to_numpy(x)[: self.initial_rows, :, 0].astype("float64")
        self._check(values[np.arange(len(values))[:, None] < ends])
        state = np.zeros((sum(self.lags), len(ends)))
        for end in np.unique(ends):
            state[:, ends == end] = self._fitted(values[:end, ends == end])
        return tuple(like(part, x) for part in np.split(state, np.cumsum(self.lags)[:-1]))

    def _check(self, values: np.ndarray[Any, Any]) -> None:
        """Raise unless values of a series are finite, and above 0 if their logarithm is taken."""
        if not isinstance(values, np.ndarray):
            return
        bad = ~np.isfinite(values) | (self.multiplicative & (values <= 0))
        if np.any(bad):
            expected = f"finite values, above 0 if multiplicative, which is {self.multiplicative}"
            raise ValueError(f"{type(self).__name__}: x has {values[bad][0]}, expected {expected}")

    def _fitted(self, series: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return level, trend and seasons (K, B) before the first step, fitted to series (T, B)."""
        steps = np.arange(len(series))[:, None]
        columns = [np.ones_like(steps), (steps + 1) * (self.trend != "none")]
        columns += [(steps % m == np.arange(m)) - 1 / m for m in self.periods]
        series = np.log(series) if self.multiplicative else series
        solution: np.ndarray[Any, Any] = np.linalg.lstsq(np.concatenate(columns, axis=1), series)[0]
        return solution

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        if span.cut:
            return in_parts(span, self.states, functools.partial(self.scan, p), [x], state)
        smoothed = self.smooth(p, x, state, span)
        y = self.in_units(span.xp, self.ahead(span.xp, smoothed))
        return y, self.final_state(smoothed, span), smoothed._replace(y=y)

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        if span.cut:
            by_grid = functools.partial(self.scan_bwd, p)
            return in_parts_bwd(span, self.states, by_grid, kept, dy, dstate)
        dstates, dphi = self.ahead_bwd(span.xp, kept, self.in_units_bwd(dy, kept.y))
        return self.smooth_bwd(
            p, kept, dstates, span.xp.zeros_like(kept.errors), dphi, dstate, span
        )

    def in_units(self, xp: Namespace, y: Array) -> Array:
        """Return forecasts in the units of the series."""
        return xp.exp(y) if self.multiplicative else y  # (13)

    def in_units_bwd(self, dy: Array, y: Array) -> Array:
        """Differentiate `in_units`."""
        return dy * y if self.multiplicative else dy  # (13)

    def coefficients(self, xp: Namespace, p: Params) -> tuple[Array, ...]:
        """Return the coefficients from the parameters, in the order of `Smoothed`."""
        share = {name: sigmoid(xp, p[name]) for name in p}  # (1)
        alpha = share["alpha"]  # (2)
        beta = alpha * share["beta"] if "beta" in p else xp.zeros_like(alpha)  # (3)
        phi = share["phi"] if "phi" in p else xp.full_like(alpha, self.trend != "none")  # (2)
        gammas = ((1 - alpha) * share["gamma"][k : k + 1] for k in range(len(self.periods)))  # (4)
        return *gammas, alpha, beta, phi

    def coefficients_bwd(self, xp: Namespace, p: Params, d: Sequence[Array]) -> Params:
        """Differentiate `coefficients`: return gradients with respect to the parameters."""
        share = {name: sigmoid(xp, p[name]) for name in p}
        *dgammas, dalpha, dbeta, dphi = d
        dshare = {"alpha": dalpha, "phi": dphi}  # (2)
        if "beta" in p:
            dshare["beta"] = share["alpha"] * dbeta  # (3)
            dshare["alpha"] = dshare["alpha"] + share["beta"] * dbeta  # (3)
        if "gamma" in p:
            dgamma = xp.concat(dgammas, axis=-1)
            dshare["gamma"] = (1 - share["alpha"]) * dgamma  # (4)
            dshare["alpha"] = dshare["alpha"] - xp.sum(
                share["gamma"] * dgamma, axis=-1, keepdims=True
            )  # (4)
        return {name: sigmoid_bwd(xp, dshare[name], p[name], share[name]) for name in p}  # (1)

    def smooth(self, p: Params, x: Array, state: State, span: Span) -> Smoothed:
        """Return the states before and after every step of x (T, B, 1)."""
        xp = span.xp
        numbers = self.coefficients(span.xp, p)
        x = span.mask(x, 1.0)[..., 0]  # 1.0 has a finite logarithm past the end, too
        if self.multiplicative:
            self._check(x)
        series = xp.log(x) if self.multiplicative else x  # (5)
        rows = tuple(xp.concat((s, xp.zeros_like(x))) for s in state)
        states, (errors,) = walk(xp, step, ((series,), rows, numbers), self.lags, 1)
        return Smoothed(states, errors, numbers, x)

    def smooth_bwd(
        self, p: Params, kept: Smoothed, dstates: tuple[Array, ...], derrors: Array, dphi: Array, dstate: State | None,
        span: Span,
    ) -> Derivatives:  # fmt: skip
        """Return the gradients with respect to the parameters, x and the initial state.

        The arguments are the upstream gradients of all states, of the errors and of phi. The arrays
        of the states' gradients are overwritten.
        """
        xp = span.xp
        if dstate is not None:
            for d, end in zip(dstates, dstate, strict=True):
                _add_at_end(span, d, end)
        inputs = (derrors,), dstates, kept.coefficients
        dstates, (dx, ddamped) = walk(xp, step_bwd, inputs, self.lags, 2, reverse=True)
        start = []
        gradients = []
        for d, lag in zip(dstates, self.lags, strict=True):
            start.append(d[:lag, ...])
            gradients.append(_total(xp, d[lag:, ...], kept.errors))
        dalpha, dbeta, *dgammas = gradients  # (8) (9) (10)
        dphi = dphi + _total(xp, ddamped, kept.states[1][:-1, ...])  # (6)
        grads = self.coefficients_bwd(xp, p, (*dgammas, dalpha, dbeta, dphi))
        return grads, (dx / kept.x if self.multiplicative else dx)[..., None], tuple(start)  # (5)

    def final_state(self, kept: Smoothed, span: Span) -> State:
        """Return the state at the end of each sequence."""
        return tuple(_at_end(span, rows) for rows in kept.states)

    def ahead(self, xp: Namespace, kept: Smoothed) -> Array:
        """Return forecasts (T, B, H) after every step; with `multiplicative`, of the logarithm."""
        steps = []
        phi = kept.coefficients[-1]
        slope = xp.zeros_like(phi)
        for h in range(self.horizon):
            slope = phi * (1 + slope)  # (11)
            level, trend, *seasons = self._used(kept.states, h)
            steps.append(sum(seasons, level + slope * trend)[..., None])  # (12)
        return xp.concat(steps, axis=-1)

    def ahead_bwd(
        self, xp: Namespace, kept: Smoothed, dy: Array
    ) -> tuple[tuple[Array, ...], Array]:
        """Differentiate `ahead`: return gradients with respect to all states and phi."""
        dstates = tuple(map(xp.zeros_like, kept.states))
        phi = kept.coefficients[-1]
        slope = by_phi = dphi = xp.zeros_like(phi)
        for h in range(self.horizon):
            by_phi = 1 + slope + phi * by_phi  # (11)
            slope = phi * (1 + slope)  # (11)
            d = dy[..., h]
            dlevel, dtrend, *dseasons = self._used(dstates, h)
            dtrend += slope * d  # (12)
            for dused in (dlevel, *dseasons):
                dused += d  # (12)
            dphi = dphi + by_phi * _total(xp, d, kept.states[1][1:, ...])  # (12) (11)
        return dstates, dphi

    def _used(self, states: tuple[Array, ...], h: int) -> list[Array]:
        """Return views of the rows (T, B) of every state used for forecasts h + 1 steps ahead."""
        return [
            rows[1 + h % lag : 1 + h % lag + rows.shape[0] - lag, ...]
            for rows, lag in zip(states, self.lags, strict=True)
        ]


def step(xp: Namespace, x: Array, level0: Array, trend0: Array, *more: Array) -> tuple[Array, ...]:
    """Return the error of a step and the new states.

    `more` is all seasons, all gammas, alpha, beta and phi.
    """
    *seasonal, alpha, beta, phi = more
    seasons, gammas = seasonal[: len(seasonal) // 2], seasonal[len(seasonal) // 2 :]
    damped = phi * trend0  # (6)
    expected = level0 + damped  # (6)
    error = x - sum(seasons, expected)  # (7)
    level = expected + alpha * error  # (8)
    trend = damped + beta * error  # (9)
    new = (s + gamma * error for s, gamma in zip(seasons, gammas, strict=True))  # (10)
    return error, level, trend, *new


def step_bwd(
    xp: Namespace, derror: Array, dlevel: Array, dtrend: Array, *more: Array
) -> tuple[Array, ...]:
    """Differentiate `step`: return gradients with respect to x, damped trend and old states."""
    *seasonal, alpha, beta, phi = more
    dseasons, gammas = seasonal[: len(seasonal) // 2], seasonal[len(seasonal) // 2 :]
    derror = derror + alpha * dlevel + beta * dtrend  # (8) (9)
    derror = sum((gamma * d for gamma, d in zip(gammas, dseasons, strict=True)), derror)  # (10)
    dexpected = dlevel - derror  # (8) (7)
    ddamped = dtrend + dexpected  # (9) (6)
    # (6) (10) (7)
    return derror, ddamped, dexpected, phi * ddamped, *(d - derror for d in dseasons)


def _total(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the sum of a * b over all steps and sequences as an array (1,)."""
    return column_sums(xp, (a * b)[..., None])


def _at_end(span: Span, rows: Array) -> Array:
    """Return the rows (lag, B) of (T + lag, B) that follow the last step of each sequence."""
    if span.full:
        return span.xp.asarray(rows[span.T :, ...], copy=True)
    end = span.xp.take(reshape(rows, (-1,)), span.after(rows), axis=0)
    return reshape(end, (rows.shape[0] - span.T, span.B))


def _add_at_end(span: Span, drows: Array, dend: Array) -> None:
    """Differentiate `_at_end`: add to drows."""
    if span.full:
        end = drows[span.T :, ...]
        end += dend
    else:
        size = drows.shape[0] * span.B
        added = add_rows(span.xp, span.after(drows), reshape(dend, (-1, 1)), size)
        drows += reshape(added, drows.shape)
