"""How a recurrence runs: compiled loops, CUDA kernels, threads."""
