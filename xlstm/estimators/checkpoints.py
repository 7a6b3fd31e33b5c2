"""The pretrained model of an estimator: that of a checkpoint, or one that is given with its parameters."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.convert import dtype_text
from xlstm.arrays.namespace import Params
from xlstm.interop import tirex
from xlstm.models.tirex import TiRex, TiRex2


def model_of(where: str, given: Any) -> tuple[TiRex | TiRex2, Params]:
    """Return the model of an estimator with the parameters checkpoint, backend, dtype, model and params.

    Raises
    ------
    OSError, ValueError, TypeError
        There is neither a checkpoint nor a model with parameters, or both; or the checkpoint is none.
    """
    if given.checkpoint is None:
        if given.model is None or given.params is None:
            raise ValueError(f"{where}: there is no checkpoint, expected one, or model and params")
        checks.instance((TiRex, TiRex2), "a TiRex or a TiRex2")(where, "model", given.model)
        return given.model, given.params
    if given.model is not None or given.params is not None:
        raise ValueError(f"{where}: there are a checkpoint and model or params, expected one of the two")
    dtype = None if given.dtype is None else dtype_text(where, given.dtype)
    return tirex.load(given.checkpoint, backend=given.backend, dtype=dtype)
