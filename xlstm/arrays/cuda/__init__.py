"""Operations of arrays on CUDA: kernels, graphs, and fallbacks from broken kernels."""
