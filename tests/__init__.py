"""Tests."""

import os

# Tests run every kernel, also on a card whose kernels no check has found right.
os.environ.setdefault("XLSTM_CUDA_CHECK", "0")
# MKL, in PyTorch, gives the same bits wherever in memory its arrays lie.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
