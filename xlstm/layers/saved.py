"""Saved: the values that a forward pass keeps, readable by the names of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm.arrays import checks
from xlstm.layers.state import Span


class Saved:
    """The values that `forward` keeps for `backward`, readable by name.

    `saved["1.reverse"]` holds the values of the second layer's reverse direction, `saved["blocks.0.cell"]` those of the
    cell of a block: a part has the name that its parameters begin with. In a recurrent layer `.gates`, `.c` and `.h`
    are every gate, cell state and hidden state, time first; past the end of a sequence they are zero. With one layer
    and direction, `saved.gates`, `saved.c` and `saved.h` will do.

    `saved` refers to arrays of the call, such as x and y: do not change those in place before `backward`.
    """

    def __init__(self, layer: Any, shape: tuple[int, ...] | None, kept: Any, span: Span | None = None) -> None:
        self.layer, self.shape, self.kept, self.span = layer, shape, kept, span

    def names(self) -> list[str]:
        """Return the names of the parts that `saved[...]` takes."""
        return list(self._known())

    def __getitem__(self, name: str | int) -> Any:
        """Return the values that a part kept.

        Raises
        ------
        KeyError
            There is no such part, or it keeps nothing.
        """
        known = self._known()
        if str(name) not in known:
            raise KeyError(f"saved: there is no layer {name!r}, only {checks.few(known)}")
        return known[str(name)]

    def __getattr__(self, name: str) -> Any:
        """Return a value that was kept under a name of its own."""
        if name.startswith("_"):
            raise AttributeError(name)
        if isinstance(self.kept, Mapping):
            if name not in self.kept:
                raise AttributeError(f"saved: {name} is not kept, only {checks.few(self.kept)}")
            return self[name] if name in self.layer.parts else self.kept[name]
        return getattr(self.kept, name)

    def _known(self) -> dict[str, Any]:
        """Return the values that all parts, and parts of parts, kept, by dotted names."""
        found: dict[str, Any] = {}
        for name, kept in self.layer.pieces(self.kept).items():
            part = self.layer.parts.get(name)
            view = Saved(part, None, kept, self.span)
            found[name] = view if hasattr(part, "scan") else kept  # a layer that goes through time has parts to read
            if part is not None:
                found |= {f"{name}.{rest}": value for rest, value in view._known().items()}
        return found
