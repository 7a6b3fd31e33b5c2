"""Layers put together, and kept in files."""

from xlstm.models.files import load, save
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SavedModel, SequenceModel

__all__ = ["SavedModel", "SequenceModel", "load", "save", "xLSTMLanguageModel"]
