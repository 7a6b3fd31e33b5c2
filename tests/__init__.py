"""Tests."""

import os

# Tests run every kernel, also on a card whose kernels no check has found right.
os.environ.setdefault("XLSTM_CUDA_CHECK", "0")
