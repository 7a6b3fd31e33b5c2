"""ESRNN: exponential smoothing with a recurrent network that corrects its forecasts."""

from __future__ import annotations

import functools
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Params
from xlstm.layers.in_parts import in_parts, in_parts_bwd
from xlstm.layers.module import Backward, Forward, Parts
from xlstm.layers.sequence import Derivatives, Scanned, SequenceLayer, State
from xlstm.layers.smoothing import ExponentialSmoothing
from xlstm.models.sequence import SequenceModel, sequence_model
from xlstm.recurrence.packing import Span


@dataclass(frozen=True)
class ESRNN(SequenceLayer):
    """Exponential smoothing and a recurrent network, trained together (after Smyl 2020).

    The network's inputs are covariates, and the one-step errors and trends of smoothing in units of
    `scale`. Its head adds a correction to each forecast of smoothing. The correction is zero before
    training, so the untrained model is Holt-Winters.

    The gradient of a loss with respect to the coefficients of smoothing has two parts: one passes
    through the forecasts of smoothing, the other through the network's inputs.

    Parameters of `ExponentialSmoothing` begin with `smoothing.`; parameters of the network, a
    `SequenceModel`, begin with `network.`. The state is a pair, the state of smoothing and the
    state of the network. `initial_state` makes one from the beginning of a series.

    Parameters
    ----------
    horizon : int
        Number H of values to forecast after every step. x is (T, B, 1 + C), the series first and
        then covariates, and y is (T, B, H).
    hidden_size : int
        Width of the network's layers; 0 leaves out the network.
    trend, periods, multiplicative
        As for `ExponentialSmoothing`.
    scale : float
        The unit of errors and corrections, such as the mean absolute difference between successive
        values; with `multiplicative`, between their logarithms.
    covariates : int
        Number C of covariates.
    cell : {"lstm", "gru", "rnn", "slstm", "minlstm", "mingru", "mlstm", "xlstm"}
    num_layers : int
    dropout : float
        Rate of dropout between the network's layers.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.models import ESRNN
    >>> model = ESRNN(horizon=4, hidden_size=8, periods=(12,))
    >>> params = model.init(seed=0, backend="numpy", dtype="float64")
    >>> x = np.sin(np.arange(48) * np.pi / 6)[:, None, None]  # (T, B, 1)
    >>> y, state = model(params, x, model.initial_state(x))
    >>> y.shape
    (48, 1, 4)
    """

    horizon: int
    hidden_size: int = 0
    _: KW_ONLY
    trend: str = "damped"
    periods: tuple[int, ...] = ()
    multiplicative: bool = False
    scale: float = 1.0
    covariates: int = 0
    cell: str = "lstm"
    num_layers: int = 1
    dropout: float = 0.0

    CHECKS: ClassVar = {
        **ExponentialSmoothing.CHECKS,
        "hidden_size": checks.size_or_0,
        "covariates": checks.size_or_0,
        "scale": checks.divisor,
    }
    _output_symbol = "H"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.covariates and not self.hidden_size:
            raise ValueError(
                f"ESRNN: covariates is {self.covariates}, but hidden_size is 0, and only a network"
                " has them"
            )
        _ = self.parts  # checks their options

    @property
    def input_size(self) -> int:
        """Width of x."""
        return 1 + self.covariates

    @property
    def output_size(self) -> int:
        """Width of y, the horizon."""
        return self.horizon

    @cached_property
    def smoothing(self) -> ExponentialSmoothing:
        """The layer that smooths the series."""
        return self._made(ExponentialSmoothing)  # type: ignore[no-any-return]

    @cached_property
    def network(self) -> SequenceModel:
        """The network that corrects forecasts."""
        return sequence_model(
            "ESRNN",
            self.cell,
            2 + self.covariates,
            self.horizon,
            last=False,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout=self.dropout,
        )

    @cached_property
    def parts(self) -> Parts:
        parts = {"smoothing": self.smoothing}
        return parts | {"network": self.network} if self.hidden_size else parts

    @cached_property
    def states(self) -> State:
        """The leaves of the states of smoothing and of the network."""
        return tuple(part.states for part in self.parts.values())

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Draw initial parameters, with zeros in the head."""
        params = super().draw(rng)
        for name, values in params.items():
            if name.startswith("network.head."):
                values[:] = 0.0
        return params

    def initial_state(self, x: Array, lengths: Any = None) -> State:
        """Return a state before the first step: that of `ExponentialSmoothing`, and None for the
        network.

        Parameters
        ----------
        x : array (T, B, 1 + C)
        lengths : whole numbers (B,), optional

        Returns
        -------
        tuple

        Raises
        ------
        ValueError, TypeError
            As for `ExponentialSmoothing`.
        """
        return self.smoothing.initial_state_of(self, x, lengths), *[None] * (len(self.parts) - 1)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        if span.cut:
            return in_parts(span, self.states, functools.partial(self.scan, p), [x], state)
        xp = span.xp
        run = Forward(self, xp, p, span, masked=False)
        smoothing = self.smoothing
        smoothed = smoothing.smooth(self.below("smoothing", p), x[..., :1], state[0], span)
        y = smoothing.ahead(xp, smoothed)
        ends = [smoothing.final_state(smoothed, span)]
        if self.hidden_size:
            errors = smoothed.errors[..., None] / self.scale
            trends = smoothed.states[1][1:, ..., None] / self.scale
            seen = xp.concat((errors, trends, x[..., 1:]), axis=-1)  # (1)
            correction, end = run("network", seen, state[1])  # (2)
            y = y + self.scale * correction  # (3)
            ends.append(end)
        y = smoothing.in_units(xp, y)  # (4)
        run.keep(smoothing=smoothed, y=y)
        return y, tuple(ends), run.kept

    def scan_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        if span.cut:
            by_grid = functools.partial(self.scan_bwd, p)
            return in_parts_bwd(span, self.states, by_grid, saved, dy, dstate)
        xp = span.xp
        run = Backward(self, xp, p, saved, span, masked=False)
        smoothing = self.smoothing
        smoothed = saved["smoothing"]
        dends = (None, None) if dstate is None else dstate
        starts = []
        dx = []
        dy = smoothing.in_units_bwd(dy, saved["y"])  # (4)
        dstates, dphi = smoothing.ahead_bwd(xp, smoothed, dy)  # (3)
        derrors = xp.zeros_like(smoothed.errors)
        if self.hidden_size:
            dcorrection = self.scale * dy  # (3)
            dseen, start = run("network", dcorrection, dends[1])  # (2)
            derrors = dseen[..., 0] / self.scale
            dtrend = dstates[1][1:, ...]  # (1)
            dtrend += dseen[..., 1] / self.scale  # (1)
            starts.append(start)
            dx.append(dseen[..., 2:])
        p = self.below("smoothing", p)
        dsmoothing, dseries, start = smoothing.smooth_bwd(
            p, smoothed, dstates, derrors, dphi, dends[0], span
        )
        grads = run.grads | {f"smoothing.{name}": g for name, g in dsmoothing.items()}
        return grads, xp.concat((dseries, *dx), axis=-1), (start, *starts)
