"""Estimators with fit, predict and score, and pictures of their forecasts."""

from xlstm.estimators.forecaster import Forecaster, Score, SeriesError, Settings

__all__ = ["Forecaster", "Score", "SeriesError", "Settings"]
