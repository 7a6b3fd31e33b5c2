"""Tests of kernels of CUDA."""
