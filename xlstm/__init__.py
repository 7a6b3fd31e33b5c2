"""xlstm: the LSTM family with every gradient written by hand, on NumPy and CuPy.

>>> import xlstm
>>> lstm = xlstm.LSTM(input_size=1, hidden_size=50)
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import Any

from xlstm.arrays.backend import Backend, BackendError, backend, usable
from xlstm.cli import interrupts  # noqa: F401 (first: signals during the imports that take long)
from xlstm.layers.linear import Linear
from xlstm.layers.recurrent import GRU, LSTM, RNN, sLSTM
from xlstm.testing import gradcheck

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

# Imported on first use, so that `import xlstm` stays quick: names, and modules by their public names.
_NAMES = {
    "mLSTM": "layers.mlstm",
    "mLSTMBlock": "layers.blocks.mlstm",
    "sLSTMBlock": "layers.blocks.slstm",
    "xLSTMStack": "layers.blocks.stack",
    "xLSTMLarge": "layers.blocks.large",
    "xLSTMLanguageModel": "models.language",
}
_MODULES = {
    "checkpoint": "training.checkpoint",
    "cuda": "engines.cuda",
    "losses": "training.losses",
    "optim": "training.optimizers",
    "precision": "training.precision",
    "series": "data.series",
}


def __getattr__(name: str) -> Any:
    """Names and modules on first use."""
    if name in _NAMES:
        return getattr(importlib.import_module(f"xlstm.{_NAMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"xlstm.{_MODULES.get(name, name)}")
    raise AttributeError(f"module 'xlstm' has no attribute {name!r}")


class _PublicModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `import xlstm.optim` give the module that `xlstm.optim` is."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, last = name.rpartition(".")
        return importlib.machinery.ModuleSpec(name, self) if package == "xlstm" and last in _MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        sys.modules[module.__name__] = getattr(sys.modules["xlstm"], module.__name__.rpartition(".")[2])


sys.meta_path.append(_PublicModules())
