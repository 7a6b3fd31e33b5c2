"""The choice of kernels for recurrent layers on an NVIDIA GPU, and of their precision."""

from xlstm.engines.cuda import PATHS, PRECISIONS, Choice, CudaError, use
from xlstm.engines.cuda.check import check

__all__ = ["PATHS", "PRECISIONS", "Choice", "CudaError", "check", "use"]
