"""Which library and device hold the numbers, and the operations that depend on it.

`backend` chooses a library, `namespace` finds that of arrays, `convert` moves values, `random`
draws them, `checks` checks arguments. `fuse` and `matmul` run as kernels of their own on CuPy.
`blas`, `cores` and `workspace` serve NumPy on a CPU. `probe` imports CuPy and PyTorch and tries the
GPU.
"""
