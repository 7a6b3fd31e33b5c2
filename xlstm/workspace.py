"""Memory of large arrays on the CPU, which is kept between calls; `release` gives it back."""

from xlstm.arrays.workspace import release

__all__ = ["release"]
