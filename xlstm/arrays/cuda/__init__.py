"""The operations of arrays on CUDA: kernels, graphs, and what a card does not do."""
