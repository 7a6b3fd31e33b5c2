"""Recurrent layers on an NVIDIA GPU, in kernels made from the cells; see `cuda_engine.py`."""

from xlstm.arrays.cuda.kernel_fallback import CudaError
from xlstm.engines.cuda.choice import PATHS, PRECISIONS, Choice, use

__all__ = ["PATHS", "PRECISIONS", "Choice", "CudaError", "use"]
