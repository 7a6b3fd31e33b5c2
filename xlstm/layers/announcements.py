"""Gradients that are final before a backward pass ends, such as those of its last layers: whoever waits
for them is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from xlstm.arrays.namespace import Params

# A function of some parameters and of their gradients, which the backward pass of a layer calls as
# soon as these are final, before that of the layers below. Ranks begin to sum them then.
_on_gradients: ContextVar[Callable[[Params, Params], None] | None] = ContextVar(
    "_on_gradients", default=None
)


@contextlib.contextmanager
def announced(function: Callable[[Params, Params], None] | None) -> Iterator[None]:
    """Have a function called with parameters and their gradients, or none where gradients are not
    final in the block.
    """
    before = _on_gradients.set(function)
    try:
        yield
    finally:
        _on_gradients.reset(before)


def announce(p: Params, grads: Params) -> None:
    """Tell that these gradients of some of the parameters are final."""
    function = _on_gradients.get()
    if function is not None:
        function(p, grads)
