"""Whether results of a sequence are asked for that do not depend on its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from xlstm.arrays import checks

is_on: ContextVar[bool] = ContextVar("batch_invariant", default=False)


@contextlib.contextmanager
def batch_invariant(enabled: bool = True) -> Iterator[None]:
    """Make results of each sequence independent of the batch that it is in, bit for bit.

    In this context every layer, block, stack and model that goes through time computes as with the
    argument `batch_invariant=True` of its `forward`, also where an estimator or a sampler calls it.
    A call's own argument comes first.

    Parameters
    ----------
    enabled : bool
        False switches it off within another context.

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
    """Raise ValueError in a context for what cannot be so."""
    if is_on.get():
        raise ValueError(f"{where}: batch_invariant is True, expected False, as {why}")
