"""cuBLAS by its definition, as `tests/ctargets.py` has it, counted."""

from typing import Any

from cupy._counts import record

from tests import ctargets


class Cublas(ctargets.Cublas):
    def gemmStridedBatchedEx(self, *args: Any) -> None:  # noqa: N802
        if not all(type(a) is int for a in args):
            raise TypeError(f"cuBLAS takes numbers of Python, got {[type(a) for a in args]}")
        record("products", f"{args[20]} x ({args[4]}, {args[5]}) @ ({args[5]}, {args[3]})")
        super().gemmStridedBatchedEx(*args)
