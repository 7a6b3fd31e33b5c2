"""Recurrent layers: LSTM, GRU, plain RNN, sLSTM, minLSTM and minGRU, in stacks and in both
directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xlstm.arrays import checks
from xlstm.cells import gru, lstm, lstm_options, minimal, rnn, slstm
from xlstm.cells.cell import Cell
from xlstm.cells.linear_scan import LinearCell
from xlstm.layers import initializers
from xlstm.layers.gated import Recurrent


@dataclass(frozen=True, kw_only=True, repr=False)
class LSTM(Recurrent):
    """Long short-term memory: one layer or several, in one direction or both.

    The layer is a frozen description and holds no arrays: `init` makes the parameters, a dict.
    Those of layer k are `{k}.Wx` (4H, D), `{k}.Wh` (4H, P) and `{k}.b` (4H,), with rows in gate
    order i o f g; in the reverse direction their names begin with `{k}.reverse.`. Options add `bh`
    (4H,), `Whr` (P, H), `p` (3H,) in order i o f, `gx`, `gh` (4H,), and `gc`, `bc` (H,).

    Parameters
    ----------
    input_size : int
        Width D of the input.
    hidden_size : int
        Width H of the cell, and of the hidden state where there is no projection.
    num_layers : int
        Number of stacked layers; each reads the hidden states of the one below, of both directions.
    bidirectional : bool
        Run in both directions of time. y has the forward hidden states first.
    reverse : bool
        Run in the reverse direction only. y keeps its places in time.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...). States and `saved` do not change.
    bias, recurrent_bias : bool
        Whether there is a bias `b` of Wx x, and another one, `bh`, of Wh h. By default the second
        is there only where it is not redundant: in a GRU with `reset_after`. PyTorch and ONNX
        always have both.
    dropout : float
        Rate of dropout between layers.
    recurrent_dropout : float
        Rate of dropout of h before Wh, with one mask for all steps (Gal & Ghahramani 2016).
    zoneout : float or (float, float)
        Rate at which units of h and of c keep their old value (Krueger et al. 2017). Outside
        training each unit is the mean of old and new that this makes on average.
    layer_norm : bool
        Normalise Wx x, Wh h and, in an LSTM, the cell (Ba et al. 2016, eqs. 20 to 22), with 1e-5
        added to each variance as `torch.nn.LayerNorm` does.
    clip : float, optional
        Bound of the pre-activations of gates, as ONNX has it.
    activations : str or tuple of str, optional
        Functions of the gates, the candidate and the output, by default ("sigmoid", "tanh",
        "tanh"). A GRU has those of the gates and the candidate, an RNN has one. Where the
        directions differ, there are twice as many. The names are those in
        `xlstm.cells.activations.GATE_ACTIVATIONS`, to which `register` adds; parameters are written
        as in "hard_sigmoid(0.2, 0.5)".
    initializer : {"uniform", "glorot", "lecun", "notebook"}
        "uniform": U(-1/sqrt(H), 1/sqrt(H)), as `torch.nn.LSTM`. "glorot": Glorot's uniform for
        inputs, orthogonal Wh, zero bias but 1 for the forget gate, as Keras. "lecun": N(0,
        1/inputs), zero bias. "notebook": input weights N(0, 2/(D+H)), recurrent weights N(0, 1/H),
        zero bias.
    recompute : bool
        Keep only the states of every step for `backward`, which rematerialises the gates from one
        product over all steps. This takes less memory between the passes and some more time, and
        excludes zoneout, recurrent_dropout, layer_norm and proj_size.
    proj_size : int
        Width P of a linear projection of the hidden state (Sak et al. 2014), as `torch.nn.LSTM`; 0
        for none.
    peepholes : bool
        Gates i and f see the old cell state, o sees the new one (Gers & Schmidhuber 2000).
    coupled_input_forget : bool
        f = 1 - i, so that there are three gates, i o g (Greff et al. 2017).
    cell_clip : float, optional
        Bound of the cell state.
    forget_bias : float, optional
        Initial bias of the forget gate (Jozefowicz et al. 2015), by default what the initializer
        gives.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> lstm = xlstm.LSTM(input_size=1, hidden_size=50)
    >>> params = lstm.init(seed=0, backend="numpy")
    >>> y, (h, c), saved = lstm.forward(params, np.ones((12, 3, 1), dtype="float32"))
    >>> y.shape, h.shape, saved.gates.shape
    ((12, 3, 50), (1, 3, 50), (12, 4, 3, 50))

    Two layers in both directions, over sequences of different lengths:

    >>> lstm = xlstm.LSTM(1, 50, 2, bidirectional=True)
    >>> x = np.ones((12, 3, 1), dtype="float32")
    >>> y, (h, c), saved = lstm.forward(lstm.init(backend="numpy"), x, lengths=[7, 12, 0])
    >>> y.shape, h.shape, saved["1.reverse"].c.shape
    ((12, 3, 100), (4, 3, 50), (12, 3, 50))
    """

    proj_size: int = 0
    peepholes: bool = False
    coupled_input_forget: bool = False
    cell_clip: float | None = None
    forget_bias: float | None = None

    CELL = lstm_options.Cell

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"LSTM: proj_size is {self.proj_size}, expected less than hidden_size,"
                f" {self.hidden_size}"
            )
        if self.coupled_input_forget or not self.bias:
            why = "coupled_input_forget and bias=False exclude it"
            if self.forget_bias is not None:
                raise ValueError(f"LSTM: forget_bias is {self.forget_bias}, but {why}")

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Widths of h and c."""
        return self.proj_size or self.hidden_size, self.hidden_size

    def _cell(self, activations: tuple[str, ...]) -> Cell:
        cell = super()._cell(activations)
        plain = cell == lstm_options.Cell() and not self.peepholes and not self.layer_norm
        return lstm.Cell() if plain else cell

    def _shapes(self, D: dict[str, int]) -> dict[str, checks.Dims]:
        H = self.hidden_size
        shapes = super()._shapes(D)
        if self.proj_size:
            shapes["Whr"] = {"P": self.proj_size, "H": H}
        if self.peepholes:
            looking = self._gates - 1
            shapes["p"] = {f"{looking}H": looking * H}
        if self.layer_norm:
            shapes |= {"gc": {"H": H}, "bc": {"H": H}}
        return shapes

    def _draw(self, name: str, rng: np.random.Generator, shape: initializers.Shape) -> Any:
        values = super()._draw(name, rng, shape)
        forget_bias = self.forget_bias
        if forget_bias is None and self.initializer == "glorot" and not self.coupled_input_forget:
            forget_bias = 1.0
        if forget_bias is not None and name in ("b", "bh"):
            H = self.hidden_size
            values[2 * H : 3 * H] = forget_bias if name == "b" else 0.0
        return values


@dataclass(frozen=True, kw_only=True, repr=False)
class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014), with the options of `LSTM` and one more: h = (1 - z)
    n + z h0.

    Parameters are `{k}.Wx` (3H, D), `{k}.Wh` (3H, H) and `{k}.b` (3H,), and with `reset_after` also
    `{k}.bh` (3H,), with rows in gate order z r n.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recurrent_bias, layer_norm, recompute : bool
        As in `LSTM`.
    dropout, recurrent_dropout, zoneout, clip, initializer, activations
        As in `LSTM`.
    reset_after : bool
        Apply the reset gate to the product, n = tanh(Wx x + b + r (Wh h0 + bh)), as cuDNN, PyTorch
        and by default Keras do, instead of to the state, n = tanh(Wx x + b + Wh (r h0)), as the
        paper and by default ONNX do. Without it there are no layer_norm and no recompute.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> gru = xlstm.GRU(3, 8, num_layers=2)
    >>> y, (h,), saved = gru.forward(gru.init(backend="numpy"), np.ones((12, 5, 3), dtype="float32"))
    >>> y.shape, h.shape, saved["1"].gates.shape
    ((12, 5, 8), (2, 5, 8), (12, 3, 5, 8))
    """

    reset_after: bool = True

    CELL = gru.Cell

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reset_after:
            self._refuse("reset_after=False excludes it", "layer_norm", "recompute")

    def _cell(self, activations: tuple[str, ...]) -> Cell:
        return (gru.Cell if self.reset_after else gru.ResetBefore)(activations, self.clip)


@dataclass(frozen=True, kw_only=True, repr=False)
class RNN(Recurrent):
    """A plain recurrent layer (Elman 1990), h = tanh(Wx x + Wh h0 + b), with the options of `LSTM`.

    Parameters are `{k}.Wx` (H, D), `{k}.Wh` (H, H) and `{k}.b` (H,).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recurrent_bias, layer_norm, recompute : bool
        As in `LSTM`.
    dropout, recurrent_dropout, zoneout, clip, initializer
        As in `LSTM`.
    activations : str
        "tanh" by default, "relu", or another of `xlstm.cells.activations.GATE_ACTIVATIONS`, to
        which `register` adds.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> rnn = xlstm.RNN(3, 8, activations="relu")
    >>> y, (h,), saved = rnn.forward(rnn.init(backend="numpy"), np.ones((12, 5, 3), dtype="float32"))
    >>> y.shape, h.shape
    ((12, 5, 8), (1, 5, 8))
    """

    CELL = rnn.Cell


@dataclass(frozen=True, kw_only=True, repr=False)
class sLSTM(Recurrent):  # noqa: N801
    """LSTM with exponential gates and a normaliser (Beck et al. 2024, xLSTM, section 2.2).

    It has those options of `LSTM` that have a meaning for it, and some of its own. Parameters are
    `{k}.Wx` (4H, D), `{k}.Wh` (4, N, K, K) and `{k}.b` (4H,) with gates in order i f z o; K = H / N
    is the width of a head, and Wh[g, n] goes from the h of head n to its gate g. The state is (h,
    c, n, m), each (L, B, H): c and n are divided by exp(m), and m is -inf before the first step.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recompute : bool
        As in `LSTM`.
    dropout, recurrent_dropout, initializer
        As in `LSTM`.
    recurrent_bias, layer_norm, zoneout, clip, activations
        An sLSTM has none of these: other values than the defaults are refused.
    num_heads : int
        Number N of heads: the recurrent weight is block-diagonal, so that heads see one another in
        the next layer only.
    forget_gate : {"sigmoid", "exponential"}
        f = sigmoid(f~), or exp(f~).
    forget_bias : float or "powerlaw"
        Initial bias of f; by default 5 - 12 (k / (K - 1))^0.3 for the unit k of a head, as in the
        published package. Other biases are 0 at first.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> slstm = xlstm.sLSTM(3, 8, num_heads=2)
    >>> y, (h, c, n, m), saved = slstm.forward(slstm.init(backend="numpy"), np.ones((12, 5, 3), dtype="float32"))
    >>> y.shape, n.shape, saved.gates.shape
    ((12, 5, 8), (1, 5, 8), (12, 4, 5, 8))
    """

    num_heads: int = 1
    forget_gate: str = "sigmoid"
    forget_bias: float | str = "powerlaw"

    CELL = slstm.Cell
    CHECKS: ClassVar = {"forget_bias": checks.word_or("powerlaw", checks.finite)}
    HEADED = ("hidden_size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse("an sLSTM has none", "recurrent_bias", "zoneout", "layer_norm")

    def _shapes(self, D: dict[str, int]) -> dict[str, checks.Dims]:
        K = self.hidden_size // self.num_heads
        return super()._shapes(D) | {"Wh": {"4": 4, "N": self.num_heads, "K": K, "K ": K}}

    def _draw(self, name: str, rng: np.random.Generator, shape: initializers.Shape) -> Any:
        if name == "Wh":
            G, N, K, _ = shape
            heads = [Recurrent._draw(self, name, rng, (G * K, K)) for _ in range(N)]
            return np.stack([W.reshape(G, K, K) for W in heads], axis=1)
        if name != "b":
            return super()._draw(name, rng, shape)
        K = self.hidden_size // self.num_heads
        forget = initializers.powerlaw(K) if isinstance(self.forget_bias, str) else self.forget_bias
        return initializers.slstm_bias(self.num_heads, K, forget)


@dataclass(frozen=True, kw_only=True, repr=False)
class minGRU(Recurrent):  # noqa: N801
    """Minimal gated recurrent units (Feng et al. 2024), h = (1 - z) h0 + z n, whose gate does not
    see h.

    Without a product of h the recurrence is linear, and all steps are one scan over time (see
    `xlstm.LinearCell`). Parameters are `{k}.Wx` (2H, D) and `{k}.b` (2H,), with rows in gate order
    z n. The state is (h,). It is 0 before the first step in both forms, so that the first h is z n;
    an initial state is h0 itself, while minGRU-pytorch takes it for a pre-activation, of which h0
    is g.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recompute : bool
        As in `LSTM`.
    dropout, zoneout, initializer
        As in `LSTM`. With zoneout the layer runs step by step.
    recurrent_bias, recurrent_dropout, layer_norm, clip, activations
        The layer has none of these: other values than the defaults are refused.
    log_space : bool
        The form for logarithms: n = g(Wx x + b), where g(x) is x + 0.5 from 0 on and sigmoid(x)
        below, so that h stays positive. Without it n = Wx x + b.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> mingru = xlstm.minGRU(3, 8)
    >>> y, (h,), saved = mingru.forward(mingru.init(backend="numpy"), np.ones((12, 5, 3), dtype="float32"))
    >>> y.shape, h.shape, saved.gates.shape
    ((12, 5, 8), (1, 5, 8), (12, 2, 5, 8))
    """

    log_space: bool = True

    CELL = minimal.MinGRU


@dataclass(frozen=True, kw_only=True, repr=False)
class minLSTM(Recurrent):  # noqa: N801
    """Minimal LSTM (Feng et al. 2024), h = f h0 + i n, whose gates do not see h.

    f = sigmoid(f~) and i = sigmoid(i~) are divided by their sum. Parameters are `{k}.Wx` (3H, D) and
    `{k}.b` (3H,), with rows in gate order f i n. State, options and their meanings are those of
    `minGRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recompute : bool
        As in `LSTM`.
    dropout, zoneout, initializer
        As in `LSTM`.
    recurrent_bias, recurrent_dropout, layer_norm, clip, activations
        The layer has none of these: other values than the defaults are refused.
    log_space : bool
        As in `minGRU`.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> minlstm = xlstm.minLSTM(3, 8, log_space=False)
    >>> y, (h,), saved = minlstm.forward(minlstm.init(backend="numpy"), np.ones((12, 5, 3), dtype="float32"))
    >>> y.shape, h.shape, saved.gates.shape
    ((12, 5, 8), (1, 5, 8), (12, 3, 5, 8))
    """

    log_space: bool = True

    CELL = minimal.MinLSTM


# Layers by the names that interop and files have for them.
KINDS: dict[str, type[LSTM] | type[GRU] | type[RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}

# Gated layers by name, those of the library first.
LAYERS: dict[str, type[Recurrent]] = {
    layer.__name__: layer for layer in (LSTM, GRU, RNN, sLSTM, minLSTM, minGRU)
}

# The names of cells that models and estimators take, which no cell of one's own may have.
CELLS = ("lstm", "gru", "rnn", "slstm", "minlstm", "mingru", "mlstm", "xlstm")


@dataclass(frozen=True, kw_only=True, repr=False)
class Custom(Recurrent):
    """The base of the layers that `register_cell` makes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the layer by its name and its options."""
        return _made, (type(self).__name__, self.__getstate__())


def register_cell(cell: type[Cell], name: str | None = None) -> type[Recurrent]:
    """Make a layer of a gated cell, and register it.

    The layer has the options of `xlstm.LSTM` where they have a meaning, and the fields of the cell
    as options of its own. It runs in every engine that can trace the cell, and in the reference
    engine otherwise; it can be checked with `xlstm.gradcheck`, trained, saved and loaded with
    `xlstm.models`, and timed with `xlstm bench`.

    Parameters
    ----------
    cell : subclass of xlstm.Cell
        A frozen dataclass whose fields have defaults.
    name : str, optional
        The name of the layer, by default that of the cell's class.

    Returns
    -------
    class
        A subclass of the base of `xlstm.LSTM`, made with `(input_size, hidden_size, num_layers=1,
        *, ...)`.

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
        raise TypeError(
            f"{where}: cell is {checks.shown(cell)}, expected a frozen dataclass derived from"
            " xlstm.Cell"
        )
    name = checks.text(where, "name", cell.__name__ if name is None else name)
    if not name.isidentifier():
        raise ValueError(
            f"{where}: name is {checks.shown(name)}, expected a name that a class can have"
        )
    # the class may be defined once more, as when a file or a notebook's cell runs again
    before = LAYERS[name].CELL if name in LAYERS else cell
    is_other = (before.__module__, before.__qualname__) != (cell.__module__, cell.__qualname__)
    if is_other or name in CELLS:
        raise ValueError(f"{where}: the name {name} is taken by another layer")
    has_gates = getattr(cell, "GATES", ())
    if not has_gates or "h" not in cell.STATES[:1] or len(cell.REST) != len(cell.STATES):
        raise ValueError(
            f"{where}: {name} needs GATES, STATES that begin with h, and a value in REST for each"
            " state"
        )
    is_linear = issubclass(cell, LinearCell)
    base = LinearCell if is_linear else Cell
    own = ("coefficients", "coefficients_bwd") if is_linear else ("gates", "gates_bwd")
    for function in own:
        if getattr(cell, function) is getattr(base, function):
            raise ValueError(f"{where}: {name} has no {function}, expected {' and '.join(own)}")
    options = []
    for field in dataclasses.fields(cell):
        if field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: the field {field.name} of {name} has no default")
        if field.name not in ("activations", "clip"):
            options.append((field.name, field.type, dataclasses.field(default=field.default)))
    namespace = {"CELL": cell, "__doc__": cell.__doc__, "__module__": cell.__module__}
    layer_class: Any = dataclasses.make_dataclass(
        name, options, bases=(Custom,), namespace=namespace, frozen=True, kw_only=True, repr=False
    )
    LAYERS[name] = layer_class
    return layer_class


def _made(name: str, options: Mapping[str, Any]) -> Recurrent:
    if name not in LAYERS:
        raise ValueError(
            f"the cell of the layer {name} is not registered: import the module that calls"
            " register_cell"
        )
    return LAYERS[name](**options)
