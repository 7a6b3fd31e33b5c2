"""A layer or a model by arrays alone, in a fixed order, as libraries with gradients of their own
call functions.
"""

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
    """A layer or a model whose parameters and states are sequences of arrays.

    Parameters
    ----------
    where : str
        The caller, with whose name an error begins.
    layer : Module
        Anything with `init`, `forward` and `backward`: a layer, a block, a stack or a model.
    kind : type
        The class that `layer` has to be of.

    Attributes
    ----------
    layer : Module
    name : str
        The name of its class, for errors.
    names : tuple of str
        Names of the parameters, in the order of their sequence.
    leaves : tuple of Leaf
        The arrays of a state, in the order of their sequence; it is empty where the layer has no
        state.
    inputs : int
        How many arrays x, the parameters and the initial state are.

    Raises
    ------
    TypeError
        `layer` is something else.
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
        """Return parameters by name."""
        return dict(zip(self.names, arrays, strict=True))

    def flat(self, state: Any) -> list[Array | None]:
        """Return the arrays of a state in their order, with None for those that are missing.

        Raises
        ------
        ValueError, TypeError
            The state is not nested as the layer's is.
        """
        return [array for _, _, array in flat(self.name, "state", state, self._states)]

    def state(self, arrays: Sequence[Array | None]) -> State:
        """Return a state, nested as the layer has it, of arrays in their order."""
        return nested(self._states, iter(arrays))

    def shapes(self, x: Array) -> list[Shape]:
        """Return the shape of y, and those of the arrays of the state, for x or anything with its
        shape.

        Raises
        ------
        ValueError, TypeError
            x has another number of axes than the layer takes, or another width.
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
        """Run forward.

        Parameters
        ----------
        params : sequence of arrays
            As many as `names`.
        x : array
            As of the layer's `forward`.
        state : sequence of arrays and None
            The initial state, as many as `leaves`; None, or no array at all, means that before the
            first step.
        **options
            `train`, `lengths`, `resets`, `cu_seqlens`, `seed` and `keep`, as of the layer's
            `forward`, where it has a state.

        Returns
        -------
        outputs : list of arrays
            y and the arrays of the final state.
        saved
            The values that `backward` needs; None where nothing is kept.

        Raises
        ------
        ValueError, TypeError
            As of the layer's `forward`.
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
        """Run backward.

        Parameters
        ----------
        params : sequence of arrays
            Those of `forward`.
        saved
            The values that `forward` kept; they may be used more than once.
        dy : array or None
            The gradient of y. Only a layer with a state takes None, which means zero.
        dstate : sequence of arrays and None
            Gradients of the final state; None, or no array at all, means zero.
        **options
            `per_sequence`, as of the layer's `backward`, where it has a state.

        Returns
        -------
        grads : list of arrays
            As many as `params`.
        dx : array or None
            None where x are tokens.
        dstate : list of arrays
            Gradients of the initial state.

        Raises
        ------
        ValueError, TypeError
            As of the layer's `backward`.
        """
        named = self.params(params)
        start: State = ()
        if self.has_state:
            end = None if all(d is None for d in dstate) else self.state(dstate)
            grads, dx, start = self.layer.backward(named, saved, dy, end, **options)
        else:
            grads, dx = self.layer.backward(named, saved, dy)
        return [grads[name] for name in self.names], dx, list(leaves(start))
