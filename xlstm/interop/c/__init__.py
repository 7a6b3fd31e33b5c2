"""Models as C for a device: a file and its header, with the same formulas as every backend."""

from xlstm.interop.c.c_export import to_c
from xlstm.interop.c.program import CProgram

__all__ = ["CProgram", "to_c"]
