"""A layer or a model as functions of arrays in a fixed order, for libraries with autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Params, leaves
from xlstm.layers.embedding import Embedding
from xlstm.layers.module import Module
from xlstm.layers.sequence import Leaf, SequenceLayer, State, flat, nested

Shape = tuple[int, ...]


class Bridge:
    """A layer or a model that takes parameters and states as sequences of arrays.

    Parameters
    ----------
    where : str
        The caller; errors begin with its name.
    layer : Module
        Anything with `init`, `forward` and `backward`: a layer, a block, a stack or a model.
    kind : type
        The class that `layer` must have.

    Attributes
    ----------
    layer : Module
    name : str
        The name of the layer's class, for errors.
    names : tuple of str
        Names of the parameters, in order.
    leaves : tuple of Leaf
        The arrays of a state, in order; empty if the layer has no state.
    inputs : int
        The number of arrays in x, the parameters and the initial state together.

    Raises
    ------
    TypeError
        `layer` is not of this class.
    """

    def __init__(self, where: str, layer: Any, kind: type[Module] = Module) -> None:
        checks.instance(kind, f"a {kind.__name__}, such as an LSTM")(where, "layer", layer)
        self.layer: Any = layer
        self.name = type(layer).__name__
        self.names = tuple(layer.shapes)
        self.has_state = isinstance(layer, SequenceLayer)
        self._states: State = layer.states if self.has_state else ()
        self.leaves: tuple[Leaf, ...] = tuple(leaves(self._states, Leaf))
        self.inputs = 1 + len(self.names) + len(self.leaves)

    def params(self, arrays: Sequence[Array]) -> Params:
        """Return the parameters by name."""
        return dict(zip(self.names, arrays, strict=True))

    def flat(self, state: Any) -> list[Array | None]:
        """Return the arrays of a state in order, with None for missing ones.

        Raises
        ------
        ValueError, TypeError
            The state is not nested like the layer's state.
        """
        return [array for _, _, array in flat(self.name, "state", state, self._states)]

    def state(self, arrays: Sequence[Array | None]) -> State:
        """Return a state, nested like the layer's, made of arrays in order."""
        return nested(self._states, iter(arrays))

    def shapes(self, x: Array) -> list[Shape]:
        """Return the shapes of y and of the state's arrays, for x or anything with its shape.

        Raises
        ------
        ValueError, TypeError
            x has a wrong number of axes, or a wrong width.
        """
        layer = self.layer
        if not self.has_state:
            return [
                (
                    (*x.shape, layer.size)
                    if isinstance(layer, Embedding)
                    else (*x.shape[:-1], layer.output_size)
                )
            ]
        outer = ("B", "T") if layer.batch_first else ("T", "B")
        width = {"D": layer.input_size} if hasattr(layer, "input_size") else {}  # tokens have none
        checks.shape(self.name, "x", x, {**dict.fromkeys(outer), **width})
        size = dict(zip(outer, x.shape, strict=False))
        y = layer.output_dims(size["T"], size["B"])
        return [
            tuple(dims.values()) for dims in (y, *(leaf.dims(size["B"]) for leaf in self.leaves))
        ]

    def forward(
        self, params: Sequence[Array], x: Array, state: Sequence[Array | None] = (), **options: Any
    ) -> tuple[list[Array], Any]:
        """Run the layer's forward pass.

        Parameters
        ----------
        params : sequence of arrays
            The parameters, in the order of `names`.
        x : array
            As for the layer's `forward`.
        state : sequence of arrays and None
            The initial state, in the order of `leaves`. None for an array, or an empty sequence,
            means the state before the first step.
        **options
            `train`, `lengths`, `resets`, `cu_seqlens`, `seed` and `keep`, as for the layer's
            `forward`, if it has a state.

        Returns
        -------
        outputs : list of arrays
            y and the arrays of the final state.
        saved
            The values that `backward` needs, or None if nothing is saved.

        Raises
        ------
        ValueError, TypeError
            As for the layer's `forward`.
        """
        named = self.params(params)
        if not self.has_state:
            keep = options.pop("keep", True)
            y, saved = self.layer.forward(named, x)
            return [y], saved if keep else None
        y, end, saved = self.layer.forward(
            named, x, self.state(state) if state else None, **options
        )
        return [y, *leaves(end)], saved

    def backward(
        self,
        params: Sequence[Array],
        saved: Any,
        dy: Array | None,
        dstate: Sequence[Array | None] = (),
        **options: Any,
    ) -> tuple[list[Array], Array | None, list[Array]]:
        """Run the layer's backward pass.

        Parameters
        ----------
        params : sequence of arrays
            The parameters, as for `forward`.
        saved
            The values that `forward` saved; you can use them more than once.
        dy : array or None
            The upstream gradient, with respect to y. Only a layer with a state takes None, for
            zero.
        dstate : sequence of arrays and None
            Gradients with respect to the final state. None for an array, or an empty sequence,
            means zero.
        **options
            `per_sequence`, as for the layer's `backward`, if it has a state.

        Returns
        -------
        grads : list of arrays
            Gradients with respect to `params`, in the same order.
        dx : array or None
            The gradient with respect to x, or None if x holds tokens.
        dstate : list of arrays
            Gradients with respect to the initial state.

        Raises
        ------
        ValueError, TypeError
            As for the layer's `backward`.
        """
        named = self.params(params)
        start: State = ()
        if self.has_state:
            end = None if all(d is None for d in dstate) else self.state(dstate)
            grads, dx, start = self.layer.backward(named, saved, dy, end, **options)
        else:
            grads, dx = self.layer.backward(named, saved, dy)
        return [grads[name] for name in self.names], dx, list(leaves(start))
