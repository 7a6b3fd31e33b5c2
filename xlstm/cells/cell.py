"""The base class of all gated cells: those of this package and those that you write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.activations import ALPHA_BETA, Activation, Pair, clamp, clamp_bwd, pair, parse


class Cell:
    """A gated cell: one time step of a recurrent layer, forward and backward, element by element.

    Derive a frozen dataclass from it, whose fields are the options of the cell, and write `gates`
    and `gates_bwd`. `xlstm.register_cell` then makes a layer of it; docs/cells.md shows complete
    cells.

    A cell sees one step at a time:

    - zx and zh, each (G, H, B): the products of the weights with the input x and with the hidden
      state h, biases included. Each of the G gates has one row, `z[k, ...]`. Always index so, since
      axes of time may follow the gate axis.
    - the states before the step, each (H, B).

    Both functions must be pure, must use only arithmetic and functions of the array namespace `xp`,
    and must not branch on values. Then they run on every array library and, traced, in every
    engine.

    Attributes
    ----------
    GATES : tuple of str
        Names of the gates, in the order of the rows of the weights.
    STATES : tuple of str
        Names of the states, "h" first. All states have the width H.
    REST : tuple of float
        The value of each state before the first step.
    PARAMETERS : dict of str to int
        Names of the cell's own parameters, and the number of rows of each. A parameter is (rows *
        H,) in the layer. `gates`, `derivatives` and `gates_bwd` get it by name, as (rows, H, 1), or
        as (H, 1) if it has one row.
    SHARES : tuple of str
        Names of the gates whose values are shares, from 0 to 1. Only pictures use it.
    RECURRENT : bool
        Whether the hidden state has a weight Wh. If False, the layer has no Wh, and zh is zero.
    BIASES : int
        2 if, by default, the products with x and with h have a bias each; 1 if one bias serves
        both.
    activations : tuple of str
        Declare this field if the activations of the cell can be chosen.
    clip : float, optional
        Declare this field if the pre-activations of the cell can be bounded.

    Examples
    --------
    This cell keeps a fixed share of its state:

    >>> from dataclasses import dataclass
    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> import xlstm
    >>> class Nothing(NamedTuple):
    ...     pass
    >>> @dataclass(frozen=True)
    ... class LeakyCell(xlstm.Cell):
    ...     share: float = 0.9
    ...     GATES = ("n",)
    ...     RECURRENT = False
    ...
    ...     def gates(self, xp, zx, zh, h0):
    ...         return self.share * h0 + (1 - self.share) * zx[0, ...], Nothing()
    ...
    ...     def gates_bwd(self, xp, saved, dh):
    ...         dzx = ((1 - self.share) * dh)[None, ...]
    ...         return dzx, dzx, self.share * dh
    >>> layer = xlstm.register_cell(LeakyCell, "LeakyUnit")(3, 8, share=0.5)
    >>> y, (h,) = layer(layer.init(backend="numpy"), np.ones((5, 2, 3), "float32"))
    >>> y.shape, h.shape
    ((5, 2, 8), (1, 2, 8))
    """

    GATES: ClassVar[tuple[str, ...]]
    STATES: ClassVar[tuple[str, ...]] = ("h",)
    REST: ClassVar[tuple[float, ...]] = (0.0,)
    PARAMETERS: ClassVar[dict[str, int]] = {}
    SHARES: ClassVar[tuple[str, ...]] = ()
    RECURRENT: ClassVar[bool] = True
    BIASES: ClassVar[int] = 1

    activations: tuple[Any, ...] = ()
    clip: float | None = None

    def gates(
        self, xp: Namespace, zx: Array, zh: Array, *state: Array, **own: Array
    ) -> tuple[Any, ...]:
        """Run one step.

        Parameters
        ----------
        xp : namespace
            The functions of the array library, such as `xp.tanh`.
        zx, zh : array (G, H, B)
            The products of the weights with x and with h, biases included.
        *state : arrays (H, B)
            The states before the step, in the order of STATES.
        **own : arrays
            The cell's own parameters by name.

        Returns
        -------
        *state : arrays (H, B)
            The states after the step.
        saved : NamedTuple
            The values that `gates_bwd` needs. Each field is an array (rows, H, B) or (H, B), or
            None.
        """
        raise NotImplementedError

    def gates_bwd(self, xp: Namespace, saved: Any, *dstate: Array, **own: Array) -> tuple[Any, ...]:
        """Compute the gradients of one step from the upstream gradients of its states.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        saved : NamedTuple
            The result of `derivatives`, which by default is `saved` of `gates`.
        *dstate : arrays (H, B)
            The gradients with respect to the states after the step.
        **own : arrays
            The cell's own parameters by name.

        Returns
        -------
        dzx, dzh : array (G, H, B)
            The gradients with respect to zx and zh. Return the same array twice if the cell uses
            only the sum of zx and zh. dzx may have more rows after those of the gates, which are
            kept for `own_bwd`.
        *dstate0 : arrays (H, B)
            The gradients with respect to the states before the step. The first is None if h0 enters
            through zh alone.
        """
        raise NotImplementedError

    def derivatives(self, xp: Namespace, saved: Any, *carry: Array, **own: Array) -> Any:
        """Compute the part of the derivative that needs no upstream gradient, for many steps at
        once.

        `gates_bwd` gets the result in place of `saved`, one step at a time.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        saved : NamedTuple
            The `saved` of `gates`, with an axis of time before H.
        *carry : arrays (k, H, B)
            Every state except h, before each of k steps.
        **own : arrays
            The cell's own parameters by name.

        Returns
        -------
        NamedTuple
            By default `saved`.
        """
        return saved

    def activated(self, xp: Namespace, saved: Any) -> Array:
        """Return the values of all gates, in the order of GATES.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        saved : NamedTuple
            The `saved` of `gates`.

        Returns
        -------
        array (G, ...)
            By default, the fields of `saved` with the names in GATES.
        """
        return xp.stack([getattr(saved, gate) for gate in self.GATES])

    def retained(self, xp: Namespace, saved: Any) -> Array | None:
        """Return the share of the old state that each unit keeps at a step, for pictures.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        saved : NamedTuple
            The `saved` of `gates`.

        Returns
        -------
        array (H, ...) or None
            By default None, for a cell without such a share.
        """
        return None

    def own_bwd(
        self, xp: Namespace, dz: Array, saved: Any, *carry: Array, **own: Array
    ) -> dict[str, Array]:
        """Return the gradients with respect to the cell's own parameters, summed over steps and
        sequences.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        dz : array (rows, k, H, B)
            The gradient with respect to zx at k steps, with all rows that `gates_bwd` returned.
        saved : NamedTuple
            The `saved` of `gates`, with an axis of time before H.
        *carry : arrays (k, H, B)
            Every state except h, before each of k steps.
        **own : arrays
            The cell's own parameters by name.

        Returns
        -------
        dict of str to array
            The gradients by name, in the shapes of the parameters; axes of length 1 may be left
            out.
        """
        return {}

    def weights(self, xp: Namespace, w: Params) -> Params:
        """Return the weights that a step uses, by their last names.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        w : dict of str to array
            The weights of the layer.

        Returns
        -------
        dict of str to array
            By default `w`.
        """
        return w

    def weights_bwd(self, xp: Namespace, w: Params, grads: Params) -> Params:
        """Return the gradients with respect to the layer's weights, from those with respect to
        `weights(xp, w)`.

        Parameters
        ----------
        xp : namespace
            The functions of the array library.
        w : dict of str to array
            The weights of the layer.
        grads : dict of str to array
            The gradients with respect to `weights(xp, w)`.

        Returns
        -------
        dict of str to array
            By default `grads`.
        """
        return grads

    @cached_property
    def OWN(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the arrays that the functions of the cell get beside products and states."""
        return tuple(self.PARAMETERS)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the options alone."""
        return self._fields

    # Options that are numbers, such as `clip`, change results but not operations. Code that is made
    # from a trace of a cell takes them as arguments. So it is compiled once for all their values.

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Options that are numbers, by name: fields, and parameters of activations, such as
        `alpha0` of the first one.
        """
        numbers = {
            name: float(value)
            for name, value in self._fields.items()
            if type(value) in (int, float)
        }
        for k, (_, values) in enumerate(self._activations):
            numbers |= {
                f"{name}{k}": value for name, value in zip(ALPHA_BETA, values, strict=False)
            }
        return numbers

    @cached_property
    def form(self) -> Self:
        """The cell with 1 for each number; cells of the same form share compiled code."""
        return self.given(dict.fromkeys(self.numbers, 1.0))

    def given(self, numbers: Mapping[str, Any]) -> Self:
        """Return the cell with new values of all its `numbers`, which may also be arrays or
        symbols.

        Parameters
        ----------
        numbers : dict of str to number, array or symbol
            A value for each name in `numbers`.

        Returns
        -------
        Cell
        """
        changed: dict[str, Any] = {
            name: value for name, value in numbers.items() if name in self._fields
        }
        if self._activations:
            changed["activations"] = tuple(
                Activation(
                    name,
                    tuple(numbers[f"{parameter}{k}"] for parameter in ALPHA_BETA[: len(values)]),
                )
                for k, (name, values) in enumerate(self._activations)
            )
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def _activate(self, xp: Namespace, k: int, z: Array) -> Array:
        """Apply activation k to pre-activations, which `clip` bounds first."""
        return self._pairs[k].fwd(xp, z if self.clip is None else clamp(xp, z, self.clip))

    def _activate_bwd(self, xp: Namespace, k: int, dy: Array, z: Array | None, y: Array) -> Array:
        """Return dz from dy for y = _activate(z); z is None if `_kept` left it out."""
        if z is None or self.clip is None:
            return self._pairs[k].bwd(xp, dy, z, y)
        return clamp_bwd(xp, self._pairs[k].bwd(xp, dy, clamp(xp, z, self.clip), y), z, self.clip)

    def _kept(self, z: Array) -> Array | None:
        """Return the pre-activations if the backward pass needs them, else None; it does with
        `clip`, and for some activations.
        """
        return (
            z
            if self.clip is not None or any(activation.from_input for activation in self._pairs)
            else None
        )

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @cached_property
    def _activations(self) -> tuple[Activation, ...]:
        return tuple(parse(text) for text in self.activations)

    @cached_property
    def _pairs(self) -> tuple[Pair, ...]:
        return tuple(pair(activation) for activation in self._activations)


def check_results(cell: Cell, function: str, results: Any, *states: str) -> None:
    """Raise TypeError unless a function of a cell returned its states and a NamedTuple."""
    parts = results if states and isinstance(results, tuple | list) else (results,)
    if len(parts) != len(states) + 1 or not hasattr(parts[-1], "_fields"):
        expected = ", ".join((*states, "a NamedTuple"))
        raise TypeError(
            f"{type(cell).__name__}: {function} returned {checks.shown(results)}, expected"
            f" {expected}"
        )


class Summed(Cell):
    """A cell that uses only the sum of the products with x and with h, so that one bias serves
    both.
    """

    def weights(self, xp: Namespace, w: Params) -> Params:
        """Return the weights with bh added to b."""
        if "bh" not in w:
            return w
        return {name: p + w["bh"] if name == "b" else p for name, p in w.items() if name != "bh"}

    def weights_bwd(self, xp: Namespace, w: Params, grads: Params) -> Params:
        """Return the gradients; the gradient with respect to bh is a copy of that with respect to
        b.
        """
        return {**grads, "bh": xp.asarray(grads["b"], copy=True)} if "bh" in w else grads
