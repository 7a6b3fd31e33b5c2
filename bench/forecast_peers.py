"""Peers that statsforecast has not, with the interface of its models: ridge regression on lags, and
N-HITS.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np


class Ridge:
    """A forecast of all steps from two seasons of lags, and 24 at least where the series allows it.

    Intervals are the 10 % and the 90 % quantile of what the regression leaves of the values that it
    is fitted to.
    """

    def __init__(self, horizon: int, season: int) -> None:
        self.horizon = horizon
        self.season = season

    def fit(self, y: np.ndarray) -> None:
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.lags = min(max(2 * self.season, 24), max(2, (len(y) - self.horizon) // 3))
        windows = np.lib.stride_tricks.sliding_window_view(y, self.lags + self.horizon)
        x = windows[:, : self.lags]
        target = windows[:, self.lags :]
        self.model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))).fit(x, target)
        self.low, self.high = np.quantile(target - self.model.predict(x), (0.1, 0.9), axis=0)

    def forward(self, y: np.ndarray, h: int, level: Any) -> dict[str, np.ndarray]:
        mean = self.model.predict(y[None, -self.lags :])[0]
        return {"mean": mean, "lo-80": mean + self.low, "hi-80": mean + self.high}


class NHITS:
    """N-HITS (Challu et al. 2023) of neuralforecast on the CPU, as the first steps of its
    documentation take it.

    From there are windows of twice the horizon and 100 steps of training, and from its guide to
    intervals the loss, the pinball loss of the median and of the bounds of 80 % intervals. All else
    is as by default: three stacks of layers of 512 units, 1024 windows a step, the seed 1, and no
    scaling; a forecast starts from the last value. The 1000 steps of the default would take 130 to
    180 s of a core, whatever the length of a series. The median stands for the mean.
    """

    def __init__(self, horizon: int) -> None:
        from neuralforecast import NeuralForecast
        from neuralforecast.losses.pytorch import MQLoss
        from neuralforecast.models import NHITS

        for library in ("pytorch_lightning", "lightning_fabric"):
            logging.getLogger(library).setLevel(logging.ERROR)
        outputs = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options = {
            "max_steps": 100,
            "random_seed": 1,
            "accelerator": "cpu",
            **dict.fromkeys(outputs, False),
        }
        self.forecaster = NeuralForecast(
            [NHITS(horizon, 2 * horizon, loss=MQLoss(level=[80]), **options)], freq=1
        )

    def fit(self, y: np.ndarray) -> None:
        self.forecaster.fit(self.table(y))

    def forward(self, y: np.ndarray, h: int, level: Any) -> dict[str, np.ndarray]:
        forecasts = self.forecaster.predict(self.table(y))
        columns = {"mean": "NHITS-median", "lo-80": "NHITS-lo-80", "hi-80": "NHITS-hi-80"}
        return {key: forecasts[column].to_numpy() for key, column in columns.items()}

    def table(self, y: np.ndarray) -> Any:
        """Return a series as a table of neuralforecast."""
        from pandas import DataFrame

        return DataFrame({"unique_id": "y", "ds": np.arange(len(y)), "y": y})
