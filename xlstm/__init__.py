"""xlstm: the LSTM family with every gradient written by hand, on NumPy, CuPy and PyTorch.

>>> import xlstm
>>> lstm = xlstm.LSTM(input_size=1, hidden_size=50)

Layers
    LSTM, GRU, RNN      gated layers with all their options, in stacks and in both directions
    sLSTM, mLSTM        the two layers of the xLSTM paper
    minLSTM, minGRU     layers whose gates do not see h: one scan computes all steps
    Linear              y = x W^T + b
    Embedding           a table with a row for each symbol
    ExponentialSmoothing        Holt-Winters with learned coefficients
    Cell, register_cell a gated cell of your own, and a layer made of it
    LinearCell          a cell whose recurrence is linear, h = a h0 + b
    activations         the activations of gates; `register` adds your own

Blocks and models
    mLSTMBlock, sLSTMBlock          residual blocks
    xLSTMStack, xLSTMLarge          stacks of these blocks
    xLSTMLanguageModel              tokens in, logits out, text generated
    models                          SequenceModel, ESRNN, save and load

Training
    training            train and evaluate
    distributed         the processes that mpiexec or srun started, as one group
    losses, optim       losses with their gradients; optimisers and schedules
    precision           float16, bfloat16 and TF32 on a GPU
    checkpoint          arrays in files
    gradcheck           compare a backward pass with finite differences
    jvp, hvp            Jacobian-vector and Hessian-vector products

Data and forecasts
    data, series        windows and batches; series from files
    estimators          fit, predict and score
    plots               pictures of models and of their training

Backends
    backend, Backend, BackendError      the array library and device of new arrays
    available_backends                  the backends that run here, and why the others do not
    cuda                                kernels for recurrent layers on a GPU
    workspace                           memory kept between calls; `release` gives it back
    batch_invariant                     the same bits for a sequence in every batch

Other libraries
    interop             weights of PyTorch, Keras, ONNX and the published xLSTM packages
"""

from xlstm.core import process_signals  # noqa: F401  # isort: skip (first: signals during imports, those of Python too)

import importlib
from typing import Any

from xlstm.arrays.backend import Backend, available_backends, backend
from xlstm.arrays.convert import BackendError
from xlstm.cells.cell import Cell
from xlstm.cells.linear_scan import LinearCell
from xlstm.core.places import attribute
from xlstm.core.version import __version__
from xlstm.layers.embedding import Embedding
from xlstm.layers.linear import Linear
from xlstm.layers.recurrent import GRU, LSTM, RNN, minGRU, minLSTM, register_cell, sLSTM
from xlstm.testing import gradcheck

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Backend",
    "BackendError",
    "Cell",
    "Embedding",
    "ExponentialSmoothing",
    "Linear",
    "LinearCell",
    "__version__",
    "activations",
    "available_backends",
    "backend",
    "batch_invariant",
    "checkpoint",
    "cuda",
    "data",
    "distributed",
    "estimators",
    "gradcheck",
    "hvp",
    "interop",
    "jvp",
    "losses",
    "mLSTM",
    "mLSTMBlock",
    "minGRU",
    "minLSTM",
    "models",
    "optim",
    "plots",
    "precision",
    "register_cell",
    "sLSTM",
    "sLSTMBlock",
    "series",
    "training",
    "workspace",
    "xLSTMLanguageModel",
    "xLSTMLarge",
    "xLSTMStack",
]

# Imported on first use, so that `import xlstm` stays quick.
_NAMES = {
    "ExponentialSmoothing": "layers.smoothing",
    "batch_invariant": "arrays.invariance",
    "hvp": "arrays.tangents",
    "jvp": "arrays.tangents",
    "mLSTM": "layers.matrix_memory",
    "mLSTMBlock": "layers.blocks.stack",
    "sLSTMBlock": "layers.blocks.stack",
    "xLSTMStack": "layers.blocks.stack",
    "xLSTMLarge": "layers.blocks.large",
    "xLSTMLanguageModel": "models.language",
}


def __getattr__(name: str) -> Any:
    """Import a name or a module on first use."""
    if name in __all__ and name not in _NAMES:
        return importlib.import_module(f"xlstm.{name}")
    return attribute(__name__, _NAMES, name)


def __dir__() -> list[str]:
    """Return the public names, including those that are not imported yet."""
    return sorted(__all__)
