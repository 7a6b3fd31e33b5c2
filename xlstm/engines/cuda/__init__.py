"""Recurrent layers on an NVIDIA GPU: the cells, traced, in kernels for all steps; no formula stands here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm.arrays.backend import Array, Namespace, dtype_name
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.choice import PATHS, PRECISIONS, Choice, choose, use
from xlstm.engines.cuda.launch import CudaError
from xlstm.engines.cuda.run import DevicePass, Kept, heads_of
from xlstm.engines.pointwise import pointwise
from xlstm.engines.runs import Runs

__all__ = ["PATHS", "PRECISIONS", "Choice", "CudaError", "DevicePass", "Kept", "device_pass", "use"]


def device_pass(
    xp: Namespace, cell: Any, Wh: Array, constants: Mapping[str, Array], runs: Runs, obstacle: str
) -> DevicePass | None:
    """What runs a layer's loop in kernels of its own, or None where the array library is to do it.

    Parameters
    ----------
    constants
        Parameters that the cell itself uses, (rows, H, 1), and biases b and bh, (R,).
    obstacle
        What of its options no kernel does, if any.
    """
    runtime = launch.runtime(xp, Wh)
    if runtime is None:
        return None
    own = tuple((name, p.shape[0]) for name, p in constants.items() if name not in ("b", "bh"))
    added = tuple(name for name in constants if name in ("b", "bh"))
    step = None if obstacle else pointwise(cell, own, added)
    why = f"no kernel does {obstacle or 'this cell'}"
    heads, width = heads_of(Wh)
    dtype = dtype_name(Wh.dtype)
    choice = choose("cuda", step, why, dtype, width, heads, runs[0][1], runtime.device)
    if choice.path == "loop" or step is None:
        if dtype == "bfloat16":  # CuPy makes float32 of it in operations with numbers
            reason = why if step is None else "and it was asked for"
            raise TypeError(f"cuda: path 'loop' has no bfloat16, {reason}; expected float16 or float32")
        return None
    return DevicePass(xp, runtime, choice, step, Wh, constants, cell.numbers, runs)
