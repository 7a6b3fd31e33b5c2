"""xlstm: the LSTM family with every gradient written by hand, on NumPy and CuPy.

>>> import xlstm
>>> lstm = xlstm.LSTM(input_size=1, hidden_size=50)
"""

import importlib
from typing import Any

from xlstm import interrupts  # noqa: F401 (first: signals during the imports that take long)
from xlstm.backend import Backend, BackendError, backend, usable
from xlstm.gradcheck import gradcheck
from xlstm.layers.linear import Linear
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
    "cuda",
    "data",
    "estimators",
    "gradcheck",
    "interop",
    "losses",
    "mLSTM",
    "mLSTMBlock",
    "models",
    "optim",
    "precision",
    "sLSTM",
    "sLSTMBlock",
    "series",
    "training",
    "usable",
    "xLSTMLanguageModel",
    "xLSTMLarge",
    "xLSTMStack",
]


# What is imported on first use, so that `import xlstm` stays quick, and where it is.
_LATER = {
    "mLSTM": "layers.mlstm",
    "mLSTMBlock": "layers.mlstm_block",
    "sLSTMBlock": "layers.slstm_block",
    "xLSTMStack": "layers.backbone",
    "xLSTMLarge": "layers.large",
    "xLSTMLanguageModel": "language",
}


def __getattr__(name: str) -> Any:
    """Some names, and submodules."""
    if name in _LATER:
        return getattr(importlib.import_module(f"xlstm.{_LATER[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"xlstm.{name}")
    raise AttributeError(f"module 'xlstm' has no attribute {name!r}")
