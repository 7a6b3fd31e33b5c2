"""TiRex-1 and TiRex-2, forecasters that need no training on a series."""

from xlstm.models.tirex.network import Mixers, TiRex, TiRex2

__all__ = ["Mixers", "TiRex", "TiRex2"]
