"""TiRex-1 and TiRex-2, forecasters that need no training on a series."""

from xlstm.models.tirex.patches import PatchWindows, SyntheticPatches
from xlstm.models.tirex.running import Starts
from xlstm.models.tirex.streaming import Stream
from xlstm.models.tirex.tirex1 import TiRex
from xlstm.models.tirex.tirex2 import Mixers, TiRex2
from xlstm.models.tirex.tuning import Tuned

__all__ = ["Mixers", "PatchWindows", "Starts", "Stream", "SyntheticPatches", "TiRex", "TiRex2", "Tuned"]
