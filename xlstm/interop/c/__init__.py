"""Models as C for a device, one file and its header; the formulas are those of every backend."""

from xlstm.interop.c.c_export import to_c
from xlstm.interop.c.program import CProgram

__all__ = ["CProgram", "to_c"]
