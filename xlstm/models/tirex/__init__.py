"""TiRex-1 and TiRex-2, pretrained forecasters that need no training on a series."""

from xlstm.models.tirex.fine_tuning import PatchWindows
from xlstm.models.tirex.prediction import PrefixStateCache
from xlstm.models.tirex.streaming import Stream
from xlstm.models.tirex.tirex1 import TiRex
from xlstm.models.tirex.tirex2 import Mixers, TiRex2

__all__ = ["Mixers", "PatchWindows", "PrefixStateCache", "Stream", "TiRex", "TiRex2"]
