"""Layers put together, and kept in files."""

from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.sequence import SavedModel, SequenceModel, load, save

__all__ = ["SavedModel", "SequenceModel", "load", "save", "xLSTMLanguageModel"]
