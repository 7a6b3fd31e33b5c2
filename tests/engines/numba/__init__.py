"""Tests of loops and products that Numba compiles."""
