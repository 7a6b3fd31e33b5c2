"""SequenceModel: a sequence in, a prediction out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Namespace, Params, device_of
from xlstm.layers.gated import Recurrent
from xlstm.layers.linear import Linear
from xlstm.layers.saved import Saved
from xlstm.layers.sequence import SequenceLayer
from xlstm.layers.state import Span, State, complete

SavedModel = Saved  # the name that it had


@dataclass(frozen=True)
class SequenceModel(SequenceLayer):
    """A recurrent layer with a linear head.

    Parameters are those of the layer under `recurrent.` and of the head under `head.`. State and arguments are those of
    the layer; y is the prediction, (T, B, O), or (B, O) with `last`. Past the end of a sequence the prediction is the
    head's bias; `training.train` lets it not count.

    Parameters
    ----------
    recurrent : LSTM, GRU, RNN, sLSTM, mLSTM, xLSTMStack or xLSTMLarge
        The layer, or layers.
    output_size : int
        Width O of the prediction.
    last : bool
        Predict once, from the last layer's final hidden state (of both directions), instead of at every step. Only
        with a layer that has one: LSTM, GRU, RNN and sLSTM.
    """

    recurrent: Any
    output_size: int
    last: bool = False

    _output_symbol = "O"

    def __post_init__(self) -> None:
        checks.fields(self, recurrent=layer)
        super().__post_init__()
        if self.last and not isinstance(self.recurrent, Recurrent):
            raise ValueError(
                f"SequenceModel: last needs a hidden state, recurrent has none: {checks.shown(self.recurrent)}"
            )

    @property
    def batch_first(self) -> bool:
        return bool(self.recurrent.batch_first)

    @property
    def directions(self) -> tuple[str, ...]:
        return self.recurrent.directions  # type: ignore[no-any-return]

    @property
    def input_size(self) -> int:
        return int(self.recurrent.input_size)

    @functools.cached_property
    def head(self) -> Linear:
        """The linear layer from hidden state to prediction."""
        return Linear(self.recurrent.output_size, self.output_size)

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        return {"recurrent": self.recurrent, "head": self.head}

    @property
    def states(self) -> State:
        return self.recurrent.states  # type: ignore[no-any-return]

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        y, end, recurrent = self.recurrent.run(self.below("recurrent", p), x, state, span)
        # The hidden state after the last step is the final state: its gradient goes in there.
        y, head = self.head.apply(span.xp, self.below("head", p), self._final(span.xp, end[0]) if self.last else y)
        return y, end, {"recurrent": recurrent, "head": head}

    def run_bwd(
        self, p: Params, kept: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        xp = span.xp
        grads: Params = {}
        if dy is None:
            dy = span.zeros(self.output_size, p)
            dy = dy[0, ...] if self.last else dy
        dh: Array | None = self.through_bwd(xp, "head", p, kept, dy, grads)
        if self.last:
            if dstate is None:
                dstate = complete("backward", xp, "dstate", None, self.states, span.B, p, zero=True)
            dstate, dh = (dstate[0] + self._final_bwd(xp, dh), *dstate[1:]), None
        found, dx, start = self.recurrent.run_bwd(self.below("recurrent", p), kept["recurrent"], dh, dstate, span)
        return grads | {f"recurrent.{name}": g for name, g in found.items()}, dx, start

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> tuple[Array, State]:
        y, end = self.recurrent.run_step(xp, self.below("recurrent", p), x, state)
        return self.head.apply(xp, self.below("head", p), y)[0], end

    def _output_dims(self, T: int, B: int) -> checks.Dims:
        return {"B": B, "O": self.output_size} if self.last else super()._output_dims(T, B)

    def _swap(self, xp: Namespace, array: Array) -> Array:
        return super()._swap(xp, array) if array.ndim == 3 else array

    def _final(self, xp: Namespace, h: Array) -> Array:
        """Return final hidden states (L, B, P) of the last layer side by side, (B, directions * P)."""
        last = h[h.shape[0] - len(self.directions) :, ...]
        return xp.reshape(xp.permute_dims(last, (1, 0, 2)), (h.shape[1], self.recurrent.output_size))

    def _final_bwd(self, xp: Namespace, d: Array) -> Array:
        """Return the gradient of all final hidden states (L, B, P) from that of `_final`."""
        directions, B = len(self.directions), d.shape[0]
        last = xp.permute_dims(xp.reshape(d, (B, directions, d.shape[1] // directions)), (1, 0, 2))
        rest = (self.recurrent.num_layers - 1) * directions
        return xp.concat((xp.zeros((rest, *last.shape[1:]), dtype=d.dtype, device=device_of(d)), last))


def layer(where: str, name: str, value: Any) -> Any:
    """Return a layer or a stack that a model can be made of; a model, which has a head, is refused."""
    if not isinstance(value, SequenceLayer) or hasattr(value, "head"):
        expected = "an xLSTMStack, xLSTMLarge, LSTM, GRU, RNN, sLSTM or mLSTM"
        raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
    return value
