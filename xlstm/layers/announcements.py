"""Announcements of gradients that are final before the backward pass ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from xlstm.arrays.namespace import Params

# A function of some parameters and their gradients. The backward pass of a layer calls it once
# these gradients are final, before it goes on to the layers below. Ranks then begin to sum them.
_on_gradients: ContextVar[Callable[[Params, Params], None] | None] = ContextVar(
    "_on_gradients", default=None
)


@contextlib.contextmanager
def announced(function: Callable[[Params, Params], None] | None) -> Iterator[None]:
    """Call `function` with each announcement in a `with` block.

    None announces nothing: gradients are not final inside the block.
    """
    before = _on_gradients.set(function)
    try:
        yield
    finally:
        _on_gradients.reset(before)


def announce(p: Params, grads: Params) -> None:
    """Announce that the gradients of these parameters are final."""
    function = _on_gradients.get()
    if function is not None:
        function(p, grads)
