"""Layers of users' own cells: once a cell is registered, its layer has all that the layers of the library have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from xlstm.arrays import checks
from xlstm.cells.cell import Cell
from xlstm.layers.gated import Recurrent
from xlstm.layers.recurrent import GRU, LSTM, RNN, sLSTM

# Gated layers by name, those of the library first.
LAYERS: dict[str, type[Recurrent]] = {layer.__name__: layer for layer in (LSTM, GRU, RNN, sLSTM)}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Custom(Recurrent):
    """The base of the layers that `register_cell` makes."""

    CELL: ClassVar[type[Cell]]
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # fields of the cell that other layers do not have as options

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {field.name for field in dataclasses.fields(self.CELL)}  # type: ignore[arg-type]
        for option, given in self._used("activations", "clip").items():
            if option not in known:
                raise ValueError(f"{type(self).__name__}: {option} is {given!r}, but its cell has no field {option}")
        if not self.CELL.RECURRENT:
            for option, given in self._used("recurrent_bias", "recurrent_dropout", "layer_norm").items():
                raise ValueError(f"{type(self).__name__}: {option} is {given!r}, but its cell has no product of h")
        self._cell(tuple(self.activations or self.ACTIVATIONS))  # a cell may check its options

    def _cell(self, activations: tuple[str, ...]) -> Cell:
        options = {name: getattr(self, name) for name in self.OPTIONS}
        known = {field.name for field in dataclasses.fields(self.CELL)}  # type: ignore[arg-type]
        given = {"activations": activations[: len(self.ACTIVATIONS)], "clip": self.clip}
        return self.CELL(**options, **{name: value for name, value in given.items() if name in known})

    def _needs_recurrent_bias(self) -> bool:
        return self.CELL.BIASES == 2

    def _shapes(self, D: dict[str, int]) -> dict[str, checks.Dims]:
        found = super()._shapes(D)
        if not self.CELL.RECURRENT:
            del found["Wh"]
        H = self.hidden_size
        return found | {name: {f"{rows}H": rows * H} for name, rows in self.CELL.PARAMETERS.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the layer by its name and its options."""
        return _made, (type(self).__name__, self.__getstate__())


def register_cell(cell: type[Cell], name: str | None = None) -> type[Recurrent]:
    """Make a layer of a gated cell, and register it.

    The layer has the options of `xlstm.LSTM` where they have a meaning, and the fields of the cell as options of its
    own. It runs in every engine that can trace the cell, and in the reference engine otherwise; it can be checked with
    `xlstm.gradcheck`, trained, saved and loaded with `xlstm.models`, and timed with `xlstm bench`.

    Parameters
    ----------
    cell : subclass of xlstm.Cell
        A frozen dataclass whose fields have defaults.
    name : str, optional
        The name of the layer, by default that of the cell's class.

    Returns
    -------
    class
        A subclass of the base of `xlstm.LSTM`, made with (input_size, hidden_size, num_layers=1, *, ...).

    Raises
    ------
    TypeError
        `cell` is not such a class.
    ValueError
        The name is taken by another layer, or a field has no default.

    Examples
    --------
    See `docs/cells.md`, which has two cells of fewer than 40 lines each.
    """
    where = "register_cell"
    if not (isinstance(cell, type) and issubclass(cell, Cell) and dataclasses.is_dataclass(cell)):
        raise TypeError(f"{where}: cell is {checks.shown(cell)}, expected a frozen dataclass derived from xlstm.Cell")
    name = checks.text(where, "name", cell.__name__ if name is None else name)
    if not name.isidentifier():
        raise ValueError(f"{where}: name is {checks.shown(name)}, expected a name that a class can have")
    before = LAYERS.get(name)
    if before is not None and getattr(before, "CELL", None) is not cell and not _same(before, cell):
        raise ValueError(f"{where}: the name {name} is taken by another layer")
    states, gates = getattr(cell, "STATES", ()), getattr(cell, "GATES", ())
    if not gates or not states or states[0] != "h" or len(cell.REST) != len(states):
        raise ValueError(f"{where}: {name} needs GATES, STATES that begin with h, and a value in REST for each state")
    options: list[tuple[str, Any, Any]] = []
    activations: tuple[str, ...] = ()
    for field in dataclasses.fields(cell):
        if field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: the field {field.name} of {name} has no default")
        if field.name == "activations":
            activations = tuple(field.default)
        elif field.name != "clip":
            options.append((field.name, field.type, dataclasses.field(default=field.default)))
    namespace = {
        "CELL": cell,
        "STATES": states,
        "REST": cell.REST,
        "ACTIVATIONS": activations,
        "OPTIONS": tuple(option for option, _, _ in options),
        "__doc__": cell.__doc__,
        "__module__": cell.__module__,
    }
    made: Any = dataclasses.make_dataclass(
        name, options, bases=(Custom,), namespace=namespace, frozen=True, kw_only=True, repr=False
    )
    LAYERS[name] = made
    layer: type[Recurrent] = made
    return layer


def _same(layer: type[Recurrent], cell: type[Cell]) -> bool:
    """Return whether a layer's cell is this class defined once more, as when a file or a notebook's cell runs again."""
    before = getattr(layer, "CELL", None)
    return before is not None and (before.__module__, before.__qualname__) == (cell.__module__, cell.__qualname__)


def _made(name: str, options: Mapping[str, Any]) -> Recurrent:
    if name not in LAYERS:
        raise ValueError(f"the cell of the layer {name} is not registered: import the module that calls register_cell")
    return LAYERS[name](**options)
