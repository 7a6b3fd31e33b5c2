"""Arrays: the library and device that hold the numbers, and operations that depend on these.

`backend` chooses a library, `namespace` finds the library of arrays, `convert` moves values,
`random` draws them, and `checks` checks arguments. On CuPy, `fuse` and `matmul` run kernels of
their own. `cores` counts threads for NumPy on a CPU. `optional_imports` imports CuPy and PyTorch
and tests the GPU. `cuda/` serves CuPy alone, `ranks/` the processes that train together.
"""
