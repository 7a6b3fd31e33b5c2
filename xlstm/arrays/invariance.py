"""The context in which results of a sequence do not depend on its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from xlstm.arrays import checks

is_on: ContextVar[bool] = ContextVar("batch_invariant", default=False)


@contextlib.contextmanager
def batch_invariant(enabled: bool = True) -> Iterator[None]:
    """Make the results of each sequence independent of the rest of its batch, bit for bit.

    In this context every layer, block, stack and model that goes through time computes as with the
    argument `batch_invariant=True` of its `forward`. This includes calls by an estimator or a
    sampler. An argument of the call itself takes precedence.

    Parameters
    ----------
    enabled : bool
        False switches batch invariance off inside an outer context.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError
        `enabled` is not True or False.
    """
    token = is_on.set(checks.flag("batch_invariant", "enabled", enabled))
    try:
        yield
    finally:
        is_on.reset(token)


def refuse(where: str, why: str) -> None:
    """Raise ValueError inside the context, for a call that cannot be batch-invariant."""
    if is_on.get():
        raise ValueError(f"{where}: batch_invariant is True, expected False, as {why}")
