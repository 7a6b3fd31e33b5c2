"""Estimators with fit, predict and score, and pictures of their forecasts."""

from xlstm.estimators.forecaster import Forecaster, Score
from xlstm.estimators.settings import Settings
from xlstm.estimators.values import SeriesError

__all__ = ["Forecaster", "Score", "SeriesError", "Settings"]
