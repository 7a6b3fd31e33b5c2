"""Estimators with fit, predict and score, and pictures of their forecasts."""

from xlstm.data.host import SeriesError
from xlstm.estimators.base import NotFittedError
from xlstm.estimators.features import TiRexFeatures
from xlstm.estimators.forecaster import Forecaster
from xlstm.estimators.pretraining import TiRexTrainer
from xlstm.estimators.scores import Errors, Score
from xlstm.estimators.sequence import SequenceClassifier, SequenceRegressor
from xlstm.estimators.settings import Settings
from xlstm.estimators.textmodel import TextModel
from xlstm.estimators.zero_shot import ZeroShotForecaster

__all__ = [
    "Errors",
    "Forecaster",
    "NotFittedError",
    "Score",
    "SequenceClassifier",
    "SequenceRegressor",
    "SeriesError",
    "Settings",
    "TextModel",
    "TiRexFeatures",
    "TiRexTrainer",
    "ZeroShotForecaster",
]
