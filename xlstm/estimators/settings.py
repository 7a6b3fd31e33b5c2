"""Settings of a forecaster, and its scaling."""

from __future__ import annotations

from dataclasses import dataclass

from xlstm.arrays import checks
from xlstm.data.preparation import Scaler
from xlstm.training import precision as precisions

CHECKS: dict[str, checks.Kind] = {
    **dict.fromkeys(("window", "horizon", "hidden_size", "batch_size"), checks.size),
    **dict.fromkeys(("epochs", "patience"), checks.count),
    **dict.fromkeys(("learning_rate", "clip"), checks.above_0),
    **dict.fromkeys(("weight_decay", "averaging"), checks.non_negative),
    "seed": checks.seed_number,
    "precision": checks.optional(checks.choice(precisions.NAMES)),
}


@dataclass(frozen=True)
class Settings:
    """How a `Forecaster` is built and trained.

    Attributes
    ----------
    window : int
        Steps it looks back.
    horizon : int
        Steps ahead that are predicted at once.
    hidden_size : int
        Units of the LSTM.
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
    """

    window: int = 48
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

    def __post_init__(self) -> None:
        for name, kind in CHECKS.items():
            object.__setattr__(self, name, kind("Forecaster", name, getattr(self, name)))
        if self.window < 2:
            raise ValueError(f"Forecaster: window is {self.window}, expected 2 or more: it looks at differences")
        if self.averaging >= 1:
            raise ValueError(f"Forecaster: averaging is {self.averaging}, expected less than 1")


@dataclass(frozen=True)
class Scalers:
    """Scaling of what the model sees, `past`, and of what it predicts, `future`."""

    past: Scaler
    future: Scaler
