"""Benchmarks. Nothing imports this package; times are ratios measured side by side in one run."""

import os

# Benchmarks run every kernel, also on a card whose kernels no check has found right.
os.environ.setdefault("XLSTM_CUDA_CHECK", "0")
