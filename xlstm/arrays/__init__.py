"""Which library and device hold the numbers, and the operations that depend on it.

`backend` chooses a library, `namespace` finds that of arrays, `convert` moves values, `random`
draws them, `checks` checks arguments. `fuse` and `matmul` run as kernels of their own on CuPy.
`cores` serves NumPy on a CPU. `optional_imports` imports CuPy and PyTorch and tries the GPU.
`cuda/` has what CuPy alone needs, `ranks/` the processes that train together.
"""
