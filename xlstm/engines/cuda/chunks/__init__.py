"""The chunkwise mLSTM in kernels of its own: gates, states, and what is within a chunk.

`arrays.cuh` and `tiles.cuh` have what the kernels share: their arrays, and products of matrices in shared memory.
"""
