"""Recurrent layers on an NVIDIA GPU, in kernels made from the cells; see `cuda_engine.py`."""

from xlstm.engines.cuda.choice import PATHS, PRECISIONS, Choice, use
from xlstm.engines.cuda.launch import CudaError

__all__ = ["PATHS", "PRECISIONS", "Choice", "CudaError", "use"]
