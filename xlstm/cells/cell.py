"""The protocol of a gated cell, which is the base class of every cell here and of those that users
write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.activations import ALPHA_BETA, Activation, Pair, clamp, clamp_bwd, pair, parse


class Cell:
    """A gated cell: one time step of a recurrent layer, forward and backward, element by element.

    A cell is a frozen dataclass; its fields are its options. It sees one step at a time: zx and zh
    (G, H, B), the products of the weights with the input x and with the hidden state h, biases
    included, one row for each of the G gates; and the states before the step, each (H, B). Both
    functions are pure, use arithmetic and functions of the array namespace `xp` alone, and do not
    branch on values, so that they run on every array library and, traced, in every engine. Index a
    gate as `z[k, ...]`: axes of time may follow the gate axis. `xlstm.register_cell` makes a layer
    of a cell; see docs/cells.md.

    Attributes
    ----------
    GATES : tuple of str
        Names of the gates, in the order of the rows of the weights.
    STATES : tuple of str
        Names of the states, "h" first. All of them have the width H.
    REST : tuple of float
        The value of each state before the first step.
    PARAMETERS : dict of str to int
        Names of the cell's own parameters, and how many rows each has: it is (rows * H,) in the
        layer. `gates`, `derivatives` and `gates_bwd` take them by name, as (rows, H, 1), or (H, 1)
        where there is one row.
    SHARES : tuple of str
        Names of the gates whose values are shares, from 0 to 1, for pictures.
    RECURRENT : bool
        Whether there is a product of h. Without one, zh is zero, and the layer has no Wh.
    BIASES : int
        2 where the products of x and of h have a bias each by default; 1 where one serves both.
    activations : tuple of str
        A field that a cell has where its activations can be chosen.
    clip : float, optional
        A field that a cell has where its pre-activations can be bounded.
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
        zx, zh : array (G, H, B)
            The products of x and of h, biases included.
        *state : arrays (H, B)
            The states before the step, in the order of STATES.
        **own : arrays
            PARAMETERS by name.

        Returns
        -------
        *state : arrays (H, B)
            The states after the step.
        saved : NamedTuple
            The values that `gates_bwd` needs, arrays (rows, H, B) or (H, B), or None.
        """
        raise NotImplementedError

    def gates_bwd(self, xp: Namespace, saved: Any, *dstate: Array, **own: Array) -> tuple[Any, ...]:
        """Differentiate one step.

        Parameters
        ----------
        xp : namespace
        saved : NamedTuple
            From `gates`, or from `derivatives`.
        *dstate : arrays (H, B)
            The gradients of the states after the step.
        **own : arrays
            PARAMETERS by name.

        Returns
        -------
        dzx, dzh : array (G, H, B)
            dzh is dzx itself where both products only enter as their sum. Rows of dzx after those
            of the gates are kept for `own_bwd`.
        *dstate0 : arrays (H, B)
            The gradients of the states before the step; that of h0 is None where h0 enters through
            zh alone.
        """
        raise NotImplementedError

    def derivatives(self, xp: Namespace, saved: Any, *carry: Array, **own: Array) -> Any:
        """Compute the part of the derivative that needs no gradient, for many steps at once.

        `gates_bwd` gets the result, a step at a time, in place of `saved`.

        Parameters
        ----------
        xp : namespace
        saved : NamedTuple
            From `gates`, with an axis of time before H.
        *carry : arrays (k, H, B)
            Every state but h, before each step.
        **own : arrays
            PARAMETERS by name.

        Returns
        -------
        NamedTuple
            By default `saved`.
        """
        return saved

    def activated(self, xp: Namespace, saved: Any) -> Array:
        """Return the values of all gates.

        Parameters
        ----------
        xp : namespace
        saved : NamedTuple

        Returns
        -------
        array (G, ...)
            By default the fields of `saved` that are named in GATES.
        """
        return xp.stack([getattr(saved, gate) for gate in self.GATES])

    def retained(self, xp: Namespace, saved: Any) -> Array | None:
        """Return the share of the old state that each unit keeps at a step, for pictures.

        Parameters
        ----------
        xp : namespace
        saved : NamedTuple

        Returns
        -------
        array (H, ...) or None
            By default None: the cell has no such share.
        """
        return None

    def own_bwd(
        self, xp: Namespace, dz: Array, saved: Any, *carry: Array, **own: Array
    ) -> dict[str, Array]:
        """Return the gradients of PARAMETERS, in their shapes or with axes of length 1 left out.

        Parameters
        ----------
        xp : namespace
        dz : array (rows, k, H, B)
            The gradient of zx at k steps.
        saved : NamedTuple
            From `gates`.
        *carry : arrays (k, H, B)
        **own : arrays

        Returns
        -------
        dict of str to array
        """
        return {}

    def weights(self, xp: Namespace, w: Params) -> Params:
        """Return the weights that a step uses, by their last names; by default they are the
        layer's, `w`.
        """
        return w

    def weights_bwd(self, xp: Namespace, w: Params, grads: Params) -> Params:
        """Return the gradients of the layer's weights `w` from those of `weights(xp, w)`."""
        return grads

    @cached_property
    def OWN(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the arrays that the functions of the cell take besides products and states."""
        return tuple(self.PARAMETERS)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the options alone."""
        return self._fields

    # Options that are numbers, such as `clip`, change the result but not the operations. Code made
    # from a trace of a cell takes them as arguments, so that it is compiled once for all of their
    # values.

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Options that are numbers: fields, and parameters of activations such as `alpha0` of the
        first.
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
        """The cell with 1 for each number: cells of the same form share compiled code."""
        return self.given(dict.fromkeys(self.numbers, 1.0))

    def given(self, numbers: Mapping[str, Any]) -> Self:
        """Return the cell with these values of all its `numbers`; they may be arrays or symbols."""
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
        """Apply activation k to pre-activations, which `clip` bounds."""
        return self._pairs[k].fwd(xp, z if self.clip is None else clamp(xp, z, self.clip))

    def _activate_bwd(self, xp: Namespace, k: int, dy: Array, z: Array | None, y: Array) -> Array:
        """Differentiate y = _activate(z); z is None where `_kept` left it out."""
        if z is None or self.clip is None:
            return self._pairs[k].bwd(xp, dy, z, y)
        return clamp_bwd(xp, self._pairs[k].bwd(xp, dy, clamp(xp, z, self.clip), y), z, self.clip)

    def _kept(self, z: Array) -> Array | None:
        """Return the pre-activations where backward needs them: with `clip`, and for some
        activations.
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


class Summed(Cell):
    """A cell in which the products of x and of h only enter as their sum, so that one bias serves
    both.
    """

    def weights(self, xp: Namespace, w: Params) -> Params:
        """Return the weights with bh added to b."""
        if "bh" not in w:
            return w
        return {name: p + w["bh"] if name == "b" else p for name, p in w.items() if name != "bh"}

    def weights_bwd(self, xp: Namespace, w: Params, grads: Params) -> Params:
        """Return the gradients, with that of b repeated for bh."""
        return {**grads, "bh": xp.asarray(grads["b"], copy=True)} if "bh" in w else grads
