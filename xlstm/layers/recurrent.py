"""Recurrent layers: LSTM, GRU, RNN, sLSTM, minLSTM and minGRU, in stacks and both directions."""

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
from xlstm.engines.pointwise import pointwise
from xlstm.layers import initializers
from xlstm.layers.gated import Recurrent


@dataclass(frozen=True, kw_only=True, repr=False)
class LSTM(Recurrent):
    """Long short-term memory: one layer or several, in one direction or both.

    The layer is a frozen description and holds no arrays; `init` returns the parameters as a dict.
    Layer k has `{k}.Wx` (4H, D), `{k}.Wh` (4H, P) and `{k}.b` (4H,), with rows in the gate order i
    o f g. P is the width of the hidden state. In the reverse direction the names begin with
    `{k}.reverse.`.

    Options add parameters. `recurrent_bias` adds `bh` (4H,), `proj_size` adds `Whr` (P, H), and
    `peepholes` adds `p` (3H,) in the order i o f. `layer_norm` adds `gx` and `gh` (4H,), and `gc`
    and `bc` (H,).

    Parameters
    ----------
    input_size : int
        Width D of the input.
    hidden_size : int
        Width H of the cell state, and of the hidden state if there is no projection.
    num_layers : int
        Number of stacked layers; each reads the hidden states of the layer below, in both
        directions.
    bidirectional : bool
        Run in both directions of time. In y the forward hidden states come first.
    reverse : bool
        Run in the reverse direction only. y stays in the order of x.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...). States and `saved` do not change.
    bias, recurrent_bias : bool
        Whether there are a bias `b`, added to Wx x, and a second bias `bh`, added to Wh h. By
        default there is a second bias only if it is not redundant: in a GRU with `reset_after`.
        PyTorch and ONNX always have both.
    dropout : float
        Rate of dropout between layers.
    recurrent_dropout : float
        Rate of dropout of h before Wh, with the same mask at all steps (Gal & Ghahramani 2016).
    zoneout : float or (float, float)
        Rate at which units of h and of c keep their old value (Krueger et al. 2017). Outside
        training each unit takes its expected value, the average of old and new value weighted by
        the rate.
    layer_norm : bool
        Normalise Wx x, Wh h and, in an LSTM, the cell state (Ba et al. 2016, eqs. 20 to 22). As in
        `torch.nn.LayerNorm`, 1e-5 is added to each variance.
    clip : float, optional
        Bound of the pre-activations of gates, as in ONNX.
    activations : str or tuple of str, optional
        Functions of the gates, the candidate and the output, by default ("sigmoid", "tanh",
        "tanh"). A GRU takes two, for the gates and the candidate; an RNN takes one. If the
        directions differ, give twice as many. The names are the keys of
        `xlstm.cells.activations.GATE_ACTIVATIONS`; `register` adds your own. Write parameters as in
        "hard_sigmoid(0.2, 0.5)".
    initializer : {"uniform", "glorot", "lecun", "notebook"}
        The distribution of initial parameters. "uniform", as in `torch.nn.LSTM`: U(-1/sqrt(H),
        1/sqrt(H)). "glorot", as in Keras: Glorot's uniform distribution for input weights,
        orthogonal Wh, and biases of 0, except 1 for the forget gate. "lecun": weights N(0,
        1/inputs) and biases of 0. "notebook": input weights N(0, 2/(D+H)), recurrent weights N(0,
        1/H) and biases of 0.
    recompute : bool
        Keep only the states of every step; `backward` recomputes the gates from one product over
        all steps. This takes less memory between the passes and somewhat more time. It excludes
        zoneout, recurrent_dropout, layer_norm and proj_size.
    proj_size : int
        Width P of a linear projection of the hidden state (Sak et al. 2014), as in `torch.nn.LSTM`;
        0 for none.
    peepholes : bool
        Let gates i and f see the old cell state, and gate o the new one (Gers & Schmidhuber 2000).
    coupled_input_forget : bool
        Compute f = 1 - i, which leaves three gates, i o g (Greff et al. 2017).
    cell_clip : float, optional
        Bound of the cell state.
    forget_bias : float, optional
        Initial bias of the forget gate (Jozefowicz et al. 2015); by default `initializer` sets it.

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
    """Gated recurrent units (Cho et al. 2014): h = (1 - z) n + z h0.

    Layer k has the parameters `{k}.Wx` (3H, D), `{k}.Wh` (3H, H) and `{k}.b` (3H,), and with
    `reset_after` also `{k}.bh` (3H,). Their rows are in the gate order z r n. All options except
    `reset_after` are as in `LSTM`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recurrent_bias, layer_norm, recompute : bool
        As in `LSTM`.
    dropout, recurrent_dropout, zoneout, clip, initializer, activations
        As in `LSTM`.
    reset_after : bool
        If True, apply the reset gate to the product, n = tanh(Wx x + b + r (Wh h0 + bh)), as in
        cuDNN, PyTorch and, by default, Keras. If False, apply it to the state, n = tanh(Wx x + b +
        Wh (r h0)), as in the paper and, by default, ONNX. False excludes layer_norm and recompute.

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
    """A plain recurrent layer (Elman 1990): h = tanh(Wx x + Wh h0 + b).

    Layer k has the parameters `{k}.Wx` (H, D), `{k}.Wh` (H, H) and `{k}.b` (H,). Options are as in
    `LSTM`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recurrent_bias, layer_norm, recompute : bool
        As in `LSTM`.
    dropout, recurrent_dropout, zoneout, clip, initializer
        As in `LSTM`.
    activations : str
        "tanh" by default, "relu", or another key of `xlstm.cells.activations.GATE_ACTIVATIONS`;
        `register` adds your own.

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

    Layer k has the parameters `{k}.Wx` (4H, D), `{k}.Wh` (4, N, K, K) and `{k}.b` (4H,), with gates
    in the order i f z o. K = H / N is the width of a head, and Wh[g, n] maps the h of head n to its
    gate g.

    The state is (h, c, n, m), each (L, B, H). c and n are stored divided by exp(m), and m is -inf
    before the first step.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recompute : bool
        As in `LSTM`.
    dropout, recurrent_dropout, initializer
        As in `LSTM`.
    recurrent_bias, layer_norm, zoneout, clip, activations
        An sLSTM has none of these, and raises ValueError for values other than the defaults.
    num_heads : int
        Number N of heads. The recurrent weight is block-diagonal, so heads see one another only in
        the next layer.
    forget_gate : {"sigmoid", "exponential"}
        f = sigmoid(f~), or exp(f~).
    forget_bias : float or "powerlaw"
        Initial bias of f; by default 5 - 12 (k / (K - 1))^0.3 for the unit k of a head, as in the
        published package. All other biases begin at 0.

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
    """Minimal gated recurrent units (Feng et al. 2024): h = (1 - z) h0 + z n.

    The gate does not see h, so the recurrence is linear and one scan over time computes all steps
    (see `xlstm.LinearCell`). Layer k has the parameters `{k}.Wx` (2H, D) and `{k}.b` (2H,), with
    rows in the gate order z n.

    The state is (h,). Before the first step it is 0 in both forms, so the first h is z n. An
    initial state is h0 itself. In minGRU-pytorch it is a pre-activation p instead, and h0 = g(p).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recompute : bool
        As in `LSTM`.
    dropout, zoneout, initializer
        As in `LSTM`. With zoneout the layer runs step by step, not as one scan.
    recurrent_bias, recurrent_dropout, layer_norm, clip, activations
        The layer has none of these, and raises ValueError for values other than the defaults.
    log_space : bool
        If True, n = g(Wx x + b), where g(x) is x + 0.5 for x >= 0 and sigmoid(x) below. This form
        suits logarithms: h stays positive. If False, n = Wx x + b.

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
    """Minimal LSTM (Feng et al. 2024): h = f h0 + i n.

    The gates do not see h. f = sigmoid(f~) and i = sigmoid(i~) are divided by their sum. Layer k
    has the parameters `{k}.Wx` (3H, D) and `{k}.b` (3H,), with rows in the gate order f i n. State
    and options are as in `minGRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `LSTM`.
    bidirectional, reverse, batch_first, bias, recompute : bool
        As in `LSTM`.
    dropout, zoneout, initializer
        As in `LSTM`.
    recurrent_bias, recurrent_dropout, layer_norm, clip, activations
        The layer has none of these, and raises ValueError for values other than the defaults.
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

    The layer has the options of `xlstm.LSTM` that apply to the cell, and the fields of the cell as
    options of its own. It runs in every engine that can trace the cell, and otherwise in the
    reference engine. You can check it with `xlstm.gradcheck`, train it, save and load it with
    `xlstm.models`, and time it with `xlstm bench`.

    Parameters
    ----------
    cell : subclass of xlstm.Cell
        A frozen dataclass whose fields have defaults.
    name : str, optional
        The name of the layer, by default the name of the cell's class.

    Returns
    -------
    class
        The layer's class, with the same base as `xlstm.LSTM`. Call it with `(input_size,
        hidden_size, num_layers=1, *, ...)`.

    Raises
    ------
    TypeError
        `cell` is not a subclass of `xlstm.Cell`, or its functions do not return what they should.
    ValueError
        Another layer has the name, or a field has no default.

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
    # the class may be defined again, as when a file or a cell of a notebook runs again
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
    own = tuple((name, rows if rows > 1 else None) for name, rows in cell.PARAMETERS.items())
    pointwise(cell(), own, ())  # it checks the results of `gates`
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
