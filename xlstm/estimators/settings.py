"""Settings of a forecaster."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from xlstm.arrays import checks
from xlstm.training import precision as precisions

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def _or_auto(kind: checks.Kind) -> checks.Kind:
    """Return the check of "auto" or of what `kind` takes."""
    return lambda where, name, value: value if isinstance(value, str) and value == "auto" else kind(where, name, value)


def _quantiles(where: str, name: str, value: Any) -> tuple[float, ...]:
    """Check rising numbers between 0 and 1."""
    expected = "rising numbers between 0 and 1"
    share = checks.real(0, 1, strict=True)
    given = checks.several(where, name, value, expected, 1000)
    found = tuple(share(where, f"{name}[{k}]", one) for k, one in enumerate(given))
    if any(one >= two for one, two in itertools.pairwise(found)):
        raise ValueError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
    return found


CHECKS: dict[str, checks.Kind] = {
    **dict.fromkeys(("horizon", "hidden_size", "batch_size"), checks.size),
    "window": checks.optional(checks.size),
    **dict.fromkeys(("epochs", "patience"), checks.count),
    **dict.fromkeys(("learning_rate", "clip"), checks.above_0),
    **dict.fromkeys(("weight_decay", "averaging"), checks.non_negative),
    **dict.fromkeys(("bidirectional", "refit"), checks.flag),
    **dict.fromkeys(("linear_baseline", "season"), _or_auto(checks.size_or_0)),
    "calendar": _or_auto(checks.flag),
    "seed": checks.seed_number,
    "precision": checks.optional(checks.choice(precisions.NAMES)),
    "least": checks.optional(checks.finite),
    "cell": checks.text,
    "num_layers": checks.depth,
    "dropout": checks.rate,
    "quantiles": _quantiles,
    "scaling": checks.choice(("window", "series")),
}


@dataclass(frozen=True)
class Settings:
    """How a `Forecaster` is built and trained.

    Attributes
    ----------
    window : int, optional
        Steps that the network looks back; by default 48, or half of the training part of the shortest series where that
        is less.
    horizon : int
        Steps ahead that are predicted at once.
    hidden_size : int
        Units of the recurrent layers.
    epochs : int
        Most passes over the training part.
    patience : int
        Epochs without a better validation loss before training stops.
    learning_rate, weight_decay : float
        Options of AdamW.
    batch_size : int
    clip : float
        Limit of the global gradient norm.
    averaging : float
        Decay of the moving average of the weights that is kept.
    seed : int
        Decides initial weights and the order of batches.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training, on a GPU; the weights stay float32. See `xlstm.precision`.
    cell : {"lstm", "gru", "rnn", "slstm", "mlstm", "xlstm"}, or the name of a registered cell
    num_layers : int
    bidirectional : bool
    dropout : float
        Between layers.
    quantiles : list of float
        Quantiles that are predicted beside the mean; without any there are no intervals.
    scaling : {"window", "series"}
        Scale each window by its own changes, or all windows of a series by the usual change in its training part.
    linear_baseline : int or "auto"
        Steps that the linear autoregression looks back to which the network adds; 0 for none. With "auto" validation
        decides.
    season : int or "auto"
        Steps of a season, of which the seasonal naive forecast is made; 0 for none. With "auto" it is found in the
        training part.
    calendar : bool or "auto"
        Look at the time of the year, the week and the day, where there are dates. With "auto" validation decides.
    least : float, optional
        Forecasts and intervals do not go below it, such as 0 for counts and prices.
    refit : bool
        Train once more on all rows, for as many epochs as were best, before anything beyond them is predicted.
    """

    window: Any = None  # int or None; of what is fitted int
    horizon: int = 1
    hidden_size: int = 50
    epochs: int = 100
    patience: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 64
    clip: float = 1.0
    averaging: float = 0.99
    seed: int = 0
    precision: str | None = None
    cell: str = "lstm"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    quantiles: tuple[float, ...] = DECILES
    scaling: str = "window"
    linear_baseline: int | str = "auto"
    season: int | str = "auto"
    calendar: bool | str = "auto"
    least: float | None = None
    refit: bool = True

    def __post_init__(self) -> None:
        for name, kind in CHECKS.items():
            object.__setattr__(self, name, kind("Forecaster", name, getattr(self, name)))
        if self.window is not None and self.window < 2:
            raise ValueError(f"Forecaster: window is {self.window}, expected 2 or more: it looks at differences")
        if self.averaging >= 1:
            raise ValueError(f"Forecaster: averaging is {self.averaging}, expected less than 1")
