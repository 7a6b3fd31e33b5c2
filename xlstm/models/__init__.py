"""Models made of layers, and their files."""

from typing import Any

from xlstm.core.places import attribute
from xlstm.layers.summary import summary
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.model_files import load, save
from xlstm.models.sequence import SequenceModel

__all__ = ["ESRNN", "HorizonWarning", "SequenceModel", "TiRex", "TiRex2"]
__all__ += ["load", "save", "summary", "xLSTMLanguageModel"]

# Forecasters, which are imported on first use.
_NAMES = {
    "ESRNN": "esrnn",
    "HorizonWarning": "tirex.items",
    "TiRex": "tirex.tirex1",
    "TiRex2": "tirex.tirex2",
}


def __getattr__(name: str) -> Any:
    """Import a forecaster on first use."""
    return attribute(__name__, _NAMES, name)
