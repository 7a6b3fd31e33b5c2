"""Time loops compiled for the CPU by Numba."""
