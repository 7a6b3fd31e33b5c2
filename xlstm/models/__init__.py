"""Models made of layers, and their files."""

from xlstm.layers.summary import summary
from xlstm.models.esrnn import ESRNN
from xlstm.models.language import xLSTMLanguageModel
from xlstm.models.model_files import load, save
from xlstm.models.sequence import SequenceModel
from xlstm.models.tirex.items import HorizonWarning
from xlstm.models.tirex.tirex1 import TiRex
from xlstm.models.tirex.tirex2 import TiRex2

__all__ = ["ESRNN", "HorizonWarning", "SequenceModel", "TiRex", "TiRex2"]
__all__ += ["load", "save", "summary", "xLSTMLanguageModel"]
