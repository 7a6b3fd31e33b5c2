"""SequenceModel: a recurrent layer with a linear head, from a sequence to a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xlstm.arrays import checks, constants, fuse
from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Namespace, Params, device_of
from xlstm.layers.blocks.block import Backbone, Block
from xlstm.layers.blocks.stack import xLSTMStack
from xlstm.layers.embedding import Embedding
from xlstm.layers.gated import Recurrent
from xlstm.layers.linear import Linear
from xlstm.layers.matrix_memory import mLSTM
from xlstm.layers.module import Backward, Forward, Parts
from xlstm.layers.recurrent import CELLS, LAYERS, Custom
from xlstm.layers.sequence import Derivatives, Scanned, SequenceLayer, State, WithState, complete
from xlstm.recurrence.packing import Span


def layer(where: str, name: str, value: Any) -> Any:
    """Return a checked layer or stack for a model; refuse a model, which has a head already."""
    if not isinstance(value, SequenceLayer) or hasattr(value, "head"):
        expected = "an xLSTMStack, xLSTMLarge, LSTM, GRU, RNN, sLSTM or mLSTM"
        raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected {expected}")
    return value


@dataclass(frozen=True)
class SequenceModel(SequenceLayer):
    """A recurrent layer with a linear head, from a sequence to a prediction.

    Names of the layer's parameters begin with `recurrent.`, and of the head's with `head.`. State
    and arguments are the layer's. y is the prediction, (T, B, O), or (B, O) with `last`.

    With `symbols`, x holds whole numbers from 0 to V - 1: (T, B), or (B, T) with `batch_first`, and
    (B,) in `step`. They have no gradient, so `backward` returns None in its place. A symbol out of
    range raises ValueError on the host, and gives NaN on a GPU. Padding may have any value.
    Initial rows of the embedding are N(0, 1), as in `torch.nn.Embedding`, and N(0, 2 / (5 D))
    before layers that begin with a norm.

    Parameters
    ----------
    recurrent : LSTM, GRU, RNN, sLSTM, minLSTM, minGRU, mLSTM, xLSTMStack or xLSTMLarge
        The recurrent layer, or a stack of layers.
    output_size : int
        Width O of the prediction.
    last : bool
        Predict once, at the end of the sequence, instead of at every step. Gated layers such as
        LSTM and minGRU predict from the last layer's final hidden state (of both directions).
        Others predict from y of the last step; a sequence of length 0 then gives the head's bias.
    inputs : int, optional
        Width D of x. If given, a linear layer under `input.` maps x to the width of the recurrent
        layer.
    symbols : int, optional
        Number V of symbols. If given, x holds symbols, and an `Embedding` under `embedding.` maps
        them to the width of the recurrent layer.
    embedding_dropout : float
        Rate of dropout of embedded symbols.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm.models import SequenceModel
    >>> model = SequenceModel(xlstm.LSTM(4, 8), 3, last=True, symbols=11)
    >>> params = model.init(backend="numpy")
    >>> x = np.array([[1, 10], [2, 3], [0, 0]])  # (T, B): two sequences of up to three symbols
    >>> y, state, saved = model.forward(params, x, lengths=[3, 2])
    >>> y.shape
    (2, 3)
    """

    recurrent: Any
    output_size: int
    last: bool = False
    inputs: int | None = None
    symbols: int | None = None
    embedding_dropout: float = 0.0

    CHECKS: ClassVar = {
        "recurrent": layer,
        "inputs": checks.optional(checks.size),
        "symbols": checks.optional(checks.size),
    }
    _output_symbol = "O"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs is not None and self.symbols is not None:
            raise ValueError(
                f"SequenceModel: inputs is {self.inputs} and symbols {self.symbols}, expected one"
                " of them, as symbols have no width"
            )
        if self.embedding_dropout and self.symbols is None:
            raise ValueError(
                f"SequenceModel: embedding_dropout is {self.embedding_dropout}, expected 0.0 as"
                " symbols is None"
            )

    @property
    def batch_first(self) -> bool:
        return self.recurrent.batch_first  # type: ignore[no-any-return]

    @property
    def directions(self) -> tuple[str, ...]:
        return self.recurrent.directions  # type: ignore[no-any-return]

    @property
    def input_size(self) -> int:
        """Width of x; symbols have none."""
        if self.symbols is not None:
            raise AttributeError("SequenceModel: x holds symbols, which have no width")
        return self.recurrent.input_size if self.inputs is None else self.inputs

    @cached_property
    def head(self) -> Linear:
        """The linear layer from hidden state to prediction."""
        return Linear(self.recurrent.output_size, self.output_size)

    @cached_property
    def parts(self) -> Parts:
        parts = {"recurrent": self.recurrent, "head": self.head}
        if self.symbols is not None:
            return {"embedding": embedding_before(self.recurrent, self.symbols), **parts}
        if self.inputs is not None:
            return {"input": Linear(self.inputs, self.recurrent.input_size), **parts}
        return parts

    @cached_property
    def before(self) -> str:
        """The name of the part before the layer, or "" if there is none."""
        return next(iter(self.parts)).replace("recurrent", "")

    @property
    def states(self) -> State:
        """The leaves of the state of the layer."""
        return self.recurrent.states  # type: ignore[no-any-return]

    def run(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        run = Forward(self, span.xp, p, span, masked=False)
        if self.before:
            x = span.mask(x)
            x = run(self.before, x)
            if self.embedding_dropout:
                x = run.dropped("mask", x, self.embedding_dropout)
        y, end = run("recurrent", x, state)
        if self.last:
            # The hidden state after the last step is in the final state, so its gradient is added
            # there.
            has_final = isinstance(self.recurrent, Recurrent)
            y = self._final(span.xp, end[0], span.keep) if has_final else _at_end(y, span)
        y = run("head", y)
        return y if self.last else span.mask(y), end, run.kept

    def run_bwd(
        self, p: Params, saved: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> Derivatives:
        xp = span.xp
        run = Backward(self, xp, p, saved, span, masked=False)
        if dy is None:
            dy = span.zeros(self.output_size, p)
            dy = dy[0, ...] if self.last else dy
        elif not self.last:
            dy = span.mask(dy)
        dh = run("head", dy)
        run.final("head")
        if self.last and isinstance(self.recurrent, Recurrent):
            if dstate is None:
                dstate = complete("backward", xp, "dstate", None, self.states, span.B, p, zero=True)
            dstate = (dstate[0] + self._final_bwd(xp, dh), *dstate[1:])
            dh = None
        elif self.last:
            dh = _at_end_bwd(dh, span)
        dx, start = run("recurrent", dh, dstate)
        if self.before:
            if self.embedding_dropout:
                dx = run.dropped("mask", dx)
            dx = run(self.before, dx)
        return run.grads, dx, start

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> WithState:
        run = Forward(self, xp, p)
        x = run(self.before, x) if self.before else x
        y, end = self.recurrent.run_step(xp, self.below("recurrent", p), x, state)
        return run("head", y), end

    def output_dims(self, T: int, B: int) -> checks.Dims:
        return {"B": B, "O": self.output_size} if self.last else super().output_dims(T, B)

    def _final(self, xp: Namespace, h: Array, keep: bool) -> Array:
        """Return final hidden states (L, B, P) of the last layer side by side, (B, directions * P).

        Saving them takes a copy, since the caller may change the final state.
        """
        last = h[h.shape[0] - len(self.directions) :, ...]
        y = xp.reshape(xp.permute_dims(last, (1, 0, 2)), (h.shape[1], self.recurrent.output_size))
        return xp.asarray(y, copy=True) if keep else y

    def _final_bwd(self, xp: Namespace, d: Array) -> Array:
        """Return the gradient with respect to all final hidden states (L, B, P), given `_final`'s
        gradient.
        """
        directions = len(self.directions)
        B = d.shape[0]
        last = xp.permute_dims(xp.reshape(d, (B, directions, d.shape[1] // directions)), (1, 0, 2))
        return xp.concat((*[xp.zeros_like(last)] * (self.recurrent.num_layers - 1), last))


def _at_end(y: Array, span: Span) -> Array:
    """Return y (T, B, H) at the last step of each sequence, (B, H); zero for an empty one."""
    xp = span.xp
    B = span.B
    rows = np.maximum(span.lengths - 1, 0) * B + np.arange(B)
    flat = xp.reshape(y, (span.T * B, y.shape[2]))
    end = xp.take(flat, constants.copied(xp, rows, device_of(y)), axis=0)
    if np.all(span.lengths > 0):
        return end
    there = constants.copied(xp, span.lengths[:, None] > 0, device_of(y))
    return fuse.where(xp, there, end, xp.zeros_like(end))


def _at_end_bwd(d: Array, span: Span) -> Array:
    """Return the gradient with respect to y (T, B, H), given `_at_end`'s gradient (B, H)."""
    xp = span.xp
    at = constants.copied(xp, np.arange(span.T)[:, None] == span.lengths - 1, device_of(d))
    return fuse.where(xp, at[:, :, None], d[None, ...], xp.zeros_like(d[None, ...]))


def embedding_before(layer: Any, symbols: int, tied: bool = False) -> Embedding:
    """Return an embedding of `symbols` symbols before a layer.

    Its initial rows are small if a norm follows, or if they are `tied` to a head.
    """
    std = None if tied or isinstance(layer, Backbone | Block) else 1.0
    return Embedding(symbols, layer.input_size, std=std)


def layer_of(
    where: str,
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> SequenceLayer:
    """Return the recurrent layers of a cell.

    Layers of "xlstm" take and return vectors of width `hidden_size`.

    Parameters
    ----------
    where : str
        The caller; errors begin with its name.
    cell : {"lstm", "gru", "rnn", "slstm", "minlstm", "mingru", "mlstm", "xlstm"}
        The cell; also the name of a registered cell. "xlstm" is a stack of `num_layers` blocks: the
        second is an sLSTM block, and the others are mLSTM blocks.
    input_size, hidden_size, num_layers : int
    bidirectional : bool
        Whether to run in both directions; not for "mlstm" and "xlstm".
    dropout : float
    options : dict
        Further options of the layer.

    Returns
    -------
    SequenceLayer

    Raises
    ------
    ValueError, TypeError
        The cell is unknown, or it does not have one of the options.
    """
    gated = {
        name if issubclass(kind, Custom) else name.lower(): kind for name, kind in LAYERS.items()
    }
    checks.choice(dict.fromkeys((*CELLS, *gated)))(where, "cell", cell)
    options["dropout"] = dropout
    if cell in gated:
        options["bidirectional"] = bidirectional
    elif bidirectional:
        raise ValueError(
            f"{where}: bidirectional is True, but cell {cell!r} goes forward in time only"
        )
    try:
        if cell == "xlstm":
            options.setdefault("slstm_at", [1] if num_layers > 1 else [])
            return xLSTMStack(hidden_size, num_layers, **options)
        kind: Any = gated.get(cell, mLSTM)
        return kind(input_size, hidden_size, num_layers, **options)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: cell {cell!r} cannot be made: {error}") from error


def sequence_model(
    where: str,
    cell: str,
    input_size: int,
    output_size: int,
    last: bool,
    symbols: int | None = None,
    dropout: float = 0.0,
    **sizes: Any,
) -> SequenceModel:
    """Return recurrent layers with a linear head.

    Parameters
    ----------
    where, cell, input_size
        As for `layer_of`.
    output_size : int
    last : bool
        Predict once, at the end of a sequence.
    symbols : int, optional
        The number of symbols, if x holds symbols; their embedding is `input_size` wide.
    dropout : float
        Rate of dropout between layers, and of embedded symbols.
    sizes : dict
        The other arguments of `layer_of`.

    Returns
    -------
    SequenceModel
    """
    of_symbols = 0.0
    if symbols is not None:
        of_symbols = dropout
        # a single layer refuses it
        dropout = dropout if sizes.get("num_layers", 1) > 1 or cell == "xlstm" else 0.0
    layer = layer_of(where, cell, input_size, dropout=dropout, **sizes)
    inputs = input_size if cell == "xlstm" and symbols is None else None
    return SequenceModel(layer, output_size, last, inputs, symbols, of_symbols)
