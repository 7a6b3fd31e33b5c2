"""xlstm: the LSTM family with every gradient written by hand, on NumPy and CuPy.

>>> import xlstm
>>> lstm = xlstm.LSTM(input_size=1, hidden_size=50)
"""

import importlib
from typing import Any

from xlstm.backend import Backend, BackendError, backend, usable
from xlstm.gradcheck import gradcheck
from xlstm.layers.backbone import xLSTMLarge, xLSTMStack
from xlstm.layers.blocks import mLSTMBlock, sLSTMBlock
from xlstm.layers.linear import Linear
from xlstm.layers.mlstm import mLSTM
from xlstm.layers.recurrent import GRU, LSTM, RNN, sLSTM

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Backend",
    "BackendError",
    "Linear",
    "__version__",
    "backend",
    "checkpoint",
    "data",
    "estimators",
    "gradcheck",
    "interop",
    "losses",
    "mLSTM",
    "mLSTMBlock",
    "models",
    "optim",
    "sLSTM",
    "sLSTMBlock",
    "series",
    "training",
    "usable",
    "xLSTMLanguageModel",
    "xLSTMLarge",
    "xLSTMStack",
]


def __getattr__(name: str) -> Any:
    """Submodules, and what needs them, on first use, so that `import xlstm` stays quick."""
    if name == "xLSTMLanguageModel":
        return importlib.import_module("xlstm.language").xLSTMLanguageModel
    if name in __all__:
        return importlib.import_module(f"xlstm.{name}")
    raise AttributeError(f"module 'xlstm' has no attribute {name!r}")
