"""Estimators with fit, predict and score."""

from xlstm.data.host import SeriesError
from xlstm.estimators.base import NotFittedError
from xlstm.estimators.comparison import Comparison, ModelScore, compare
from xlstm.estimators.evaluation import Errors, Score
from xlstm.estimators.forecaster import Forecaster
from xlstm.estimators.predictor import Settings
from xlstm.estimators.sequence_estimators import SequenceClassifier, SequenceRegressor
from xlstm.estimators.text_model import TextModel
from xlstm.estimators.tirex_estimators import TiRexFeatures, ZeroShotForecaster

__all__ = [
    "Comparison",
    "Errors",
    "Forecaster",
    "ModelScore",
    "NotFittedError",
    "Score",
    "SequenceClassifier",
    "SequenceRegressor",
    "SeriesError",
    "Settings",
    "TextModel",
    "TiRexFeatures",
    "ZeroShotForecaster",
    "compare",
]
