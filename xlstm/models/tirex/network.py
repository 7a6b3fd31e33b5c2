"""The networks of TiRex-1 and TiRex-2: patches of a series in, quantiles of the next patch out."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from xlstm.arrays import checks, workspace
from xlstm.arrays.namespace import Array, Namespace, Params, namespace
from xlstm.arrays.random import Seed
from xlstm.data.host import Values
from xlstm.layers.blocks.block import MULTIPLE, round_up
from xlstm.layers.blocks.feedforward import ResidualFeedForward
from xlstm.layers.blocks.stack import Backbone
from xlstm.layers.norm import RMSNorm
from xlstm.layers.saved import Saved
from xlstm.layers.state import Span, State
from xlstm.models.tirex import calibration, embedding, multivariate, tuning, univariate
from xlstm.models.tirex.blocks import TiRexBlock, mLSTMVariates, sLSTMVariates
from xlstm.models.tirex.forecast import Forecast
from xlstm.models.tirex.running import Starts
from xlstm.models.tirex.scaling import RobustScaler, StandardScaler
from xlstm.models.tirex.streaming import Stream
from xlstm.models.tirex.tuning import Tuned
from xlstm.models.tirex.variates import NORM_EPS, Groups, take
from xlstm.training.losses import pinball

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CELLS = ("slstm", "mlstm")


def rising(where: str, name: str, given: Any) -> tuple[float, ...]:
    """Return quantiles, which rise from 0 to 1."""
    found = checks.several(where, name, given, "rising numbers between 0 and 1", checks.LARGEST)
    levels = tuple(checks.real(0.0, 1.0, strict=True)(where, f"{name}[{k}]", q) for k, q in enumerate(found))
    if not levels or any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(f"{where}: {name} is {checks.shown(given)}, expected rising numbers between 0 and 1")
    return levels


class Network(Backbone):
    """The base of both models: a residual layer, blocks, an RMSNorm and a residual layer.

    A token is a patch of P values, zero where one is missing, and P marks, 1 where a value is present and 0 where not.
    y of token t are Q quantiles of each value of patch t + 1.
    """

    if TYPE_CHECKING:
        patch_size: int
        quantiles: Sequence[float]

    CHECKS: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("patch_size", "input_ff_size", "output_ff_size", "context", "horizon"), checks.size),
        "quantiles": rising,
        "ffn_proj_factor": checks.above_0,
        "rounding": checks.optional(checks.choice(["bfloat16"])),
        "norm_eps": checks.optional(checks.divisor),
        **dict.fromkeys(("qk_norm", "arcsinh", "binary", "sign_flip", "differencing"), checks.flag),
        "scale_eps": checks.non_negative,
    }
    _symbol = "2P"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "horizon"):
            steps = getattr(self, name, 0)
            if steps % self.patch_size:
                expected = f"a multiple of patch_size, {self.patch_size}"
                raise ValueError(f"{type(self).__name__}: {name} is {steps}, expected {expected}")

    @property
    def batch_first(self) -> bool:
        return True

    @property
    def input_size(self) -> int:
        """Width 2 P of a token."""
        return 2 * self.patch_size

    @property
    def output_size(self) -> int:
        """Number Q P of the quantiles of a patch."""
        return len(self.quantiles) * self.patch_size

    @property
    def _ends(self) -> tuple[ResidualFeedForward, ResidualFeedForward]:
        """The layers from tokens to x of the first block, and from y of the last one to quantiles."""
        raise NotImplementedError

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        first, last = self._ends
        return {"input": first, **super().parts, "output": last}

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        kept: dict[str, Any] = {}
        h = self.through(span.xp, "input", p, x, kept)
        if not span.keep:
            kept.clear()
        h, end, more = super().scan(p, h, state, span)
        kept |= more
        return self.through(span.xp, "output", p, h, kept), end, kept

    def scan_bwd(
        self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        grads: Params = {}
        dh = self.through_bwd(span.xp, "output", p, kept, dy, grads)
        found, dh, start = super().scan_bwd(p, kept, dh, dstate, span)
        grads |= found
        return grads, self.through_bwd(span.xp, "input", p, kept, dh, grads), start

    def hidden(self, params: Params, tokens: Array, state: Any = None, **rows: Any) -> tuple[list[Array], State]:
        """Run for inference without the layers after the last block, and return the output of every block.

        Parameters
        ----------
        params : dict
        tokens : array (B, T, 2P)
        state : tuple, optional
        **rows
            groups, targets and known, as of `TiRex2.forward`.

        Returns
        -------
        levels : list of arrays (B, T, D)
            What the first block is given, and the output of each block.
        state : tuple
        """
        x, start, span = self._begin(params, tokens, state, groups=self._groups(tokens, **rows))
        workspace.settle(span.xp)
        levels = list(self._levels(params, x, start, span, range(self.num_blocks)))
        return [self._swap(span.xp, h) for h, _ in levels], levels[-1][1]

    def _levels(
        self, p: Params, x: Array, start: State, span: Span, blocks: Iterable[int]
    ) -> Iterator[tuple[Array, State]]:
        """Yield what the first block is given, then the output of each of some blocks, and the states after it."""
        h = self.through(span.xp, "input", p, x, {})
        ends: State = ()
        yield h, ends
        for k in blocks:
            h, end = self.along(f"blocks.{k}", p, h, start[k], span, {})
            ends = (*ends, end)
            yield h, ends

    @property
    def scaler(self) -> Any:
        """The scaler of the windows that the network is given."""
        raise NotImplementedError

    def calibrated(self, q: Values) -> Values:
        """Return quantiles (R, H, Q) of rows that are no differences, as a forecast has them."""
        return q

    def embed(self, params: Params, series: Any, *, batch_size: int = 64) -> Values:
        """Return the embeddings of series, as features for other models.

        The outputs of each block, after the tokens that hold values of a series, are averaged over these tokens and
        divided by their norm; all blocks and variates of a series lie side by side, with mean 0 and variance 1. So the
        published package of TiRex-1 makes the features of its classifiers.

        Parameters
        ----------
        params : dict of str to array
        series : array (L,), (S, L) or (S, V, L), or list of arrays (L,) or (V, L)
            Each variate is by itself. NaN is a missing value; of a longer series the last `context` values count.
        batch_size : int
            Rows that the network sees at once, at most.

        Returns
        -------
        array (S, num_blocks * V * D), or (num_blocks * V * D,) of one series
            float64, on the host.

        Raises
        ------
        TypeError, ValueError
            The series or the parameters are none, or series differ in their number of variates.
        """
        return embedding.embed(self, params, series, batch_size)

    def loss(self, y: Array, target: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Return the mean pinball loss of scaled values at the model's quantiles, and its gradient.

        Parameters
        ----------
        y : array (B, T, Q, P)
        target : array (B, T, P)
            Of each token the values of the next patch, in the units of its window.
        mask : bool array (B, T, P), or array of weights, optional
            Values that count, or how much they do.

        Returns
        -------
        loss : 0-d array
        dy : array (B, T, Q, P)

        Raises
        ------
        ValueError, TypeError
            As of `losses.pinball`.
        """
        xp = namespace(type(self).__name__, {"y": y})
        value, dy = pinball(xp.permute_dims(y, (0, 1, 3, 2)), target, mask, self.quantiles)
        return value, xp.permute_dims(dy, (0, 1, 3, 2))

    def fine_tune(
        self,
        params: Params,
        series: Any,
        *,
        weights: str = "all",
        horizon: int | None = None,
        rank: int = 8,
        epochs: int = 10,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        stride: int | None = None,
        validation_fraction: float = 0.2,
        seed: int = 0,
        **options: Any,
    ) -> Tuned:
        """Train on series, with the pinball loss of the patch after each token.

        Parameters
        ----------
        params : dict of str to array
            They are not changed.
        series : array (L,) or (S, L), or list of arrays (L,)
            NaN is a missing value. Each series is by itself.
        weights : {"all", "head", "adapters"}
            What is trained: all parameters, the layer after the last block, or low-rank changes of all matrices, which
            are `training.LowRank`. Those that single series do not use, in the variate mixers of TiRex-2, stay.
        horizon : int, optional
            Steps to learn to forecast, by default a patch; see `PatchWindows`.
        rank : int
            Rank of the changes.
        epochs : int
            Passes over all windows.
        learning_rate, weight_decay : float
            Of AdamW.
        batch_size : int
        stride : int, optional
            Values from the end of a window to that of the next, by default a patch.
        validation_fraction : float
            The share of each series, at its end, that is not trained on: the parameters are those of the epoch with the
            least loss there. With 0 they are the last ones.
        seed : int
        **options
            Further arguments of `training.train`, such as `patience`, `clip`, `callbacks` and `checkpoints`.

        Returns
        -------
        Tuned

        Raises
        ------
        TypeError, ValueError
            An argument is out of range, or the series are too short.
        FloatingPointError, OSError, Interrupted, Terminated
            As of `training.train`.
        """
        sizes = (weights, horizon, rank, epochs, learning_rate, weight_decay, batch_size, stride)
        return tuning.fine_tune(self, params, series, *sizes, validation_fraction, seed, options)

    def stream(self, params: Params, series: Any, *, renew: int | None = None) -> Stream:
        """Return an object that takes new values of series and forecasts after any of them; see `Stream`."""
        return Stream(self, params, series, renew)

    def _groups(self, x: Array) -> Groups | None:
        """Return the groups of the rows of x (B, T, 2P)."""
        return None

    def run(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        y, end, kept = super().run(p, x, state, span)
        return self._parted(span.xp, y), end, kept

    def run_bwd(
        self, p: Params, kept: Any, dy: Array | None, dstate: State | None, span: Span
    ) -> tuple[Params, Array, State]:
        if dy is not None:
            dy = span.xp.reshape(dy, (*dy.shape[:2], self.output_size))
        return super().run_bwd(p, kept, dy, dstate, span)

    def run_step(self, xp: Namespace, p: Params, x: Array, state: State) -> tuple[Array, State]:
        y, end = super().run_step(xp, p, x, state)
        return self._parted(xp, y), end

    def read(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        tokens: slice = slice(None),
        rows: Any = None,
        groups: Groups | None = None,
    ) -> Array:
        """Return y of some tokens of some rows, (R, S, Q, P), for inference.

        Others are not computed after the last block has mixed time.

        Parameters
        ----------
        params : dict
        x : array (B, T, 2P)
            Tokens.
        state : tuple, optional
            As for `forward`.
        tokens : slice
        rows : whole numbers (R,), optional
            All rows by default.
        groups : Groups, optional
            Which rows belong together.

        Raises
        ------
        ValueError, TypeError
            As for `forward`.
        """
        x, start, span = self._begin(params, x, state, groups=groups)
        xp, top = span.xp, self.num_blocks - 1
        workspace.settle(xp)
        *_, (h, _) = self._levels(params, x, start, span, range(top))
        block, p = self.blocks[top], self.below(f"blocks.{top}", params)
        h, _ = block.over_time(p, h, start[top], span, {})
        h = block.at_each_step(p, h[tokens, ...], span, {})
        h = h if rows is None else take(xp, h, rows)
        for name in ("norm", "output"):
            h = self.through(xp, name, params, h, {}) if name in self.parts else h
        return self._swap(xp, self._parted(xp, h))

    def _parted(self, xp: Namespace, y: Array) -> Array:
        """Return (..., Q P) as (..., Q, P)."""
        return xp.reshape(y, (*y.shape[:-1], len(self.quantiles), self.patch_size))

    def _output_dims(self, T: int, B: int) -> checks.Dims:
        return {"B": B, "T": T, "Q": len(self.quantiles), "P": self.patch_size}


@dataclass(frozen=True)
class TiRex(Network):
    """TiRex-1: sLSTM blocks with feed-forward layers over patches of a series (Auer et al. 2025).

    Parameters are `input.` (`hidden`, `output`, `residual`, with `W` and `b` each), `blocks.{k}.`, `norm.w` and
    `output.`; within a block `norm.w`, `i.W f.W z.W o.W` (N, K, K), `cell.Wh` (4, N, K, K), `cell.b` (4D,),
    `outnorm.w`, `ffn_norm.w`, `ffn.up.W` (2U, D) and `ffn.down.W` (D, U). The state is a tuple of those of the blocks,
    ((), (h, c, n, m)), each array (B, D).

    Parameters
    ----------
    size : int
        Width D of the blocks.
    num_blocks : int
        Number of blocks.
    num_heads : int
        Number N of heads.
    patch_size : int
        Number P of values in a patch.
    quantiles : sequence of float
        The quantiles that are predicted, rising, 0.5 among them.
    input_ff_size : int
        Width of the hidden layers at the input and at the output.
    ffn_proj_factor : float
        The width U of the feed-forward layers is this times D, rounded down, and up to a multiple of 64.
    context : int
        Number of values that the network is given for a forecast, a multiple of `patch_size`.
    rounding : {"bfloat16"}, optional
        Round within the sLSTM as the published package does on a CPU; this takes float32. Gradients are those without
        rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.models import TiRex
    >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
    >>> y, state = model(model.init(backend="numpy"), np.ones((3, 8, 8), dtype="float32"))
    >>> y.shape
    (3, 8, 9, 4)
    """

    size: int
    num_blocks: int
    num_heads: int = 4
    _: KW_ONLY
    patch_size: int = 32
    quantiles: Sequence[float] = QUANTILES
    input_ff_size: int = 2048
    ffn_proj_factor: float = 2.6667
    context: int = 2048
    rounding: str | None = None

    HEADED = ("size",)
    FORGET_LIMIT: ClassVar[float] = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0.5 not in self.quantiles:
            raise ValueError(f"TiRex: quantiles is {checks.shown(self.quantiles)}, expected 0.5 among them")
        feed_forward_size(self)

    @functools.cached_property
    def blocks(self) -> list[Any]:
        options: dict[str, Any] = {"ffn_size": feed_forward_size(self), "head_eps": 1e-5, "head_residual": True}
        options |= {"forget_limit": self.FORGET_LIMIT, "rounded": self.rounding is not None}
        return [self._made(TiRexBlock, index=k, **options) for k in range(self.num_blocks)]

    @property
    def norm(self) -> Any:
        return RMSNorm(self.size, eps=NORM_EPS)

    @property
    def scaler(self) -> StandardScaler:
        return StandardScaler()

    @property
    def _ends(self) -> tuple[ResidualFeedForward, ResidualFeedForward]:
        D, U = self.size, self.input_ff_size
        return ResidualFeedForward(self.input_size, U, D), ResidualFeedForward(D, U, self.output_size)

    def forecast(
        self,
        params: Params,
        series: Any,
        horizon: int,
        *,
        quantiles: Any = None,
        batch_size: int = 512,
        rollout: int = 1,
        resample: str | None = None,
        starts: Starts | None = None,
    ) -> Forecast:
        """Forecast series without any training on them.

        The network sees the last `context` values of a series, in units of their mean and standard deviation, and
        predicts a patch. Later patches follow from the same values and missing ones after them: a forecast is never fed
        back. Beyond a horizon of `context` steps the network sees no value any more.

        Parameters
        ----------
        params : dict
        series : array (L,) or (B, L), or list of arrays (L,)
            Numbers of any kind; NaN, None and infinity are missing values. In a list the lengths may differ.
        horizon : int
            Number H of steps to forecast.
        quantiles : list of float, optional
            Levels, by default those that the model was trained for. Others are interpolated linearly between two of
            those, and may not lie outside of them.
        batch_size : int
            Windows that the network sees at once, at most.
        rollout : int
            Patches that are predicted from one window at most. More than 1 is quicker for long horizons and less exact;
            the published package has it as `max_accelerated_rollout_steps`.
        resample : {"frequency"}, optional
            Forecast a series of 2000 values or more with a period of more than 64 steps at a lower rate, where the
            horizon is 100 or more, as the published package does.
        starts : Starts, optional
            States that earlier calls with the same parameters have computed.

        Returns
        -------
        Forecast
            `quantiles` (H, Q) or (B, H, Q), `mean` (H,) or (B, H), in float64 on the host. Quantiles may cross.

        Raises
        ------
        ValueError, TypeError
            A series is empty or has values beyond 1e150, an option is out of range, or parameters are not those of the
            model.

        Examples
        --------
        >>> import numpy as np
        >>> from xlstm.models import TiRex
        >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
        >>> found = model.forecast(model.init(backend="numpy"), np.sin(np.arange(100) / 5), horizon=6)
        >>> found.quantiles.shape, found.mean.shape
        ((6, 9), (6,))
        """
        return univariate.forecast(self, params, series, horizon, quantiles, batch_size, rollout, resample, starts)


class Mixers(NamedTuple):
    """A block of `TiRex2`: the cell that mixes time, "slstm" or "mlstm", its heads, and those of the variate mixer."""

    cell: str
    num_heads: int = 4
    variate_heads: int = 4


@dataclass(frozen=True)
class TiRex2(Network):
    """TiRex-2: sLSTM and mLSTM blocks over patches of one series, or of several that belong together (2026).

    Parameters are those of `TiRex` with, in each block, `combination.W` (D, 2D) and the `VariateMixer` under `mixer.`;
    a block with an mLSTM has `qkvo.W`, `gates.W`, `gates.b`, `outnorm.w` and `down.W` in the place of the sLSTM's. The
    state is a tuple of those of the blocks, ((), (h, c, n, m)) of an sLSTM and (C, n, m) of an mLSTM, whose m is 0
    before the first step.

    Parameters
    ----------
    size : int
        Width D of the blocks.
    recipe : sequence of (cell, num_heads, variate_heads)
        The blocks, the first at the input; see `Mixers`.
    patch_size : int
        Number P of values in a patch.
    quantiles : sequence of float
        The quantiles that are predicted, rising.
    input_ff_size, output_ff_size : int
        Widths of the hidden layers at the input and at the output.
    activation : {"silu", "relu", "gelu", "square_relu", "sigmoid", "selu"}
        Activation of these layers and of the variate mixers.
    ffn_proj_factor : float
        The width of the feed-forward layers of blocks is this times D, rounded down, and up to a multiple of 64.
    context, horizon : int
        Numbers of values that the network is given for a forecast: those of the past, and missing ones after them,
        which are the longest horizon that it was trained for. Multiples of `patch_size`.
    norm_eps : float, optional
        Number that the norm after the last block adds to the mean square; with None there is no such norm.
    qk_norm : bool
        Whether the variate mixers normalise queries and keys.
    arcsinh, binary : bool
        Whether a forecast gives the network the arcsinh of scaled values, and leaves rows of zeros and ones as they
        are.
    scale_eps : float
        The least scale of a row.
    sign_flip, differencing : bool
        Whether a forecast is by default averaged with that of the negated series, and that of a series with a trend
        made from its differences.
    """

    size: int
    recipe: Sequence[Sequence[Any]]
    _: KW_ONLY
    patch_size: int = 32
    quantiles: Sequence[float] = QUANTILES
    input_ff_size: int = 2048
    output_ff_size: int = 2048
    activation: str = "silu"
    ffn_proj_factor: float = 2.6667
    context: int = 2048
    horizon: int = 320
    norm_eps: float | None = 1e-7
    qk_norm: bool = True
    arcsinh: bool = True
    binary: bool = True
    scale_eps: float = 1e-8
    sign_flip: bool = False
    differencing: bool = True

    def __post_init__(self) -> None:
        where = "TiRex2"
        super().__post_init__()
        given = checks.several(where, "recipe", self.recipe, "a (cell, num_heads, variate_heads) per block", 2**16)
        if not given:
            raise ValueError(f"{where}: recipe is empty, expected a block or more")
        recipe = []
        for k, one in enumerate(given):
            if not isinstance(one, tuple | list) or not 1 <= len(one) <= len(Mixers._fields):
                raise ValueError(f"{where}: recipe[{k}] is {checks.shown(one)}, expected ({', '.join(Mixers._fields)})")
            cell, *heads = Mixers(*one)
            checks.choice(CELLS)(where, f"recipe[{k}].cell", cell)
            for name, n in zip(Mixers._fields[1:], heads, strict=True):
                n = checks.size(where, f"recipe[{k}].{name}", n)
                half = {"half of size": self.size // 2} if cell == "mlstm" and name == "num_heads" else {}
                checks.heads(where, n, f"recipe[{k}].{name}", size=self.size, **half)
            recipe.append(Mixers(cell, *heads))
        object.__setattr__(self, "recipe", tuple(recipe))
        feed_forward_size(self)

    @property
    def num_blocks(self) -> int:  # type: ignore[override]
        """Number of blocks."""
        return len(self.recipe)

    @functools.cached_property
    def blocks(self) -> list[Any]:
        return [self._block(k, *one) for k, one in enumerate(self.recipe)]

    def _block(self, k: int, cell: str, num_heads: int, variate_heads: int) -> Any:
        own: dict[str, Any] = {"index": k, "num_blocks": self.num_blocks, "ffn_size": feed_forward_size(self)}
        own |= {"num_heads": num_heads, "variate_heads": variate_heads}
        if cell == "slstm":
            return self._made(sLSTMVariates, head_eps=NORM_EPS, head_residual=False, **own)
        own |= {"qk_size": self.size // 2, "v_size": self.size, "gate_cap": 15.0, "bias": False, "chunk_size": None}
        return self._made(mLSTMVariates, norm_eps=NORM_EPS, eps=1e-6, rest=0.0, **own)

    @property
    def scaler(self) -> RobustScaler:
        return RobustScaler(self.arcsinh, self.binary, self.scale_eps)

    def calibrated(self, q: Values) -> Values:
        return calibration.calibrated(q)

    @property
    def norm(self) -> Any:
        return None if self.norm_eps is None else RMSNorm(self.size, eps=self.norm_eps)

    @property
    def _ends(self) -> tuple[ResidualFeedForward, ResidualFeedForward]:
        D, kind = self.size, {"activation": self.activation}
        first = ResidualFeedForward(self.input_size, self.input_ff_size, D, **kind)
        return first, ResidualFeedForward(D, self.output_ff_size, self.output_size, **kind)

    def forward(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        train: bool = True,
        *,
        lengths: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
        groups: Any = None,
        targets: Any = None,
        known: Any = None,
    ) -> tuple[Array, State, Saved | None]:
        """Run over a batch of rows of tokens.

        Parameters
        ----------
        params : dict
        x : array (B, T, 2P)
            Tokens.
        state, train, lengths, seed, keep
            As of `LSTM.forward`.
        groups : whole numbers (B,), optional
            The group of each row: rows with the same number see each other. By default each row is alone.
        targets : bool (B,), optional
            Rows that are targets; the others are covariates, which do not see targets. By default all are targets.
        known : bool (B,), optional
            Rows whose future is known, which are also read from the end to the beginning; by default none is.

        Returns
        -------
        y : array (B, T, Q, P)
        state : tuple
        saved : Saved or None

        Raises
        ------
        ValueError, TypeError
            As of `LSTM.forward`; or `groups`, `targets` or `known` do not fit, or come with `lengths`.
        """
        found = self._groups(x, groups, targets, known)
        if found is not None and lengths is not None:
            raise ValueError("TiRex2: lengths and groups, targets or known exclude one another")
        return self._forward(params, x, state, train, lengths, seed, keep, found)

    def _groups(self, x: Array, groups: Any = None, targets: Any = None, known: Any = None) -> Groups | None:
        if groups is None and targets is None and known is None:
            return None
        return Groups.of("TiRex2", x.shape[0] if x.ndim else 0, groups, targets, known)

    def forecast(
        self,
        params: Params,
        series: Any,
        horizon: int,
        *,
        past: Any = None,
        future: Any = None,
        quantiles: Any = None,
        batch_size: int = 512,
        sign_flip: bool | None = None,
        differencing: bool | None = None,
        pad_context: bool = True,
        starts: Starts | None = None,
    ) -> Forecast:
        """Forecast series, of one target or of several with covariates, without any training on them.

        The network sees the last `context` values of each row, in units of their mean and standard deviation, and
        predicts all steps at once. The targets and covariates of one item see each other, but a covariate sees no
        target. Items do not influence each other.

        Parameters
        ----------
        params : dict
        series : array (L,), (B, L) or (B, V, L), or list of arrays (L,) or (V, L)
            Numbers of any kind; NaN, None and infinity are missing values. (V, L) is an item of V targets. In a list
            the lengths and the numbers of targets may differ.
        horizon : int
            Number H of steps to forecast. Beyond the model's `horizon`, for which it was trained, there is a
            `HorizonWarning`.
        past : array (L,) or (P, L), or list, optional
            Covariates that are known as far as the series: one array for one series, a list with an array or None for
            each of several.
        future : array (N,) or (F, N), or list, optional
            Covariates that are known in advance, N of L + H or more; those after L + H are not looked at.
        quantiles : list of float, optional
            Levels, by default those that the model was trained for. Others are interpolated linearly between two of
            those, and may not lie outside of them.
        batch_size : int
            Rows that the network sees at once, at most, unless one item has more.
        sign_flip : bool, optional
            Return the mean of this forecast and of that of the negated series, which takes twice the time. By default
            as the model says.
        differencing : bool, optional
            Forecast the changes of targets with a trend, and sum them up. By default as the model says.
        pad_context : bool
            Give the network windows of full width. With False they are only as wide as the longest series of the call
            needs, on which all forecasts then depend a little.
        starts : Starts, optional
            States that earlier calls with the same parameters have computed.

        Returns
        -------
        Forecast
            `quantiles` and `mean` have the axes of the series, with (H, Q) and (H,) in the place of L: (V, H, Q) for
            an item of V targets. A list of items whose numbers of targets differ gives lists. They are in float64 on
            the host. Quantiles may cross.

        Raises
        ------
        ValueError, TypeError
            A series is empty or has values beyond 1e150, covariates are not as long as they have to be, an option is
            out of range, or parameters are not those of the model.

        Examples
        --------
        >>> import numpy as np
        >>> from xlstm.models import TiRex2
        >>> sizes = dict(patch_size=4, input_ff_size=24, output_ff_size=24, context=32, horizon=8)
        >>> model = TiRex2(16, [("mlstm", 2, 2), ("slstm", 2, 2)], **sizes)
        >>> rng = np.random.default_rng(0)
        >>> params, price = model.init(backend="numpy"), rng.normal(size=36)
        >>> model.forecast(params, rng.normal(size=(2, 30)), 6).quantiles.shape
        (2, 6, 9)
        >>> model.forecast(params, [rng.normal(size=(2, 30))], 6, future=[price]).quantiles.shape
        (1, 2, 6, 9)
        """
        options = (quantiles, batch_size, sign_flip, differencing, pad_context, starts)
        return multivariate.forecast(self, params, series, horizon, past, future, *options)


def feed_forward_size(model: Any) -> int:
    """Return the width of the feed-forward layers of a model's blocks.

    Raises
    ------
    ValueError
        It is 0, or larger than any size may be.
    """
    size = round_up(math.floor(model.ffn_proj_factor * model.size), MULTIPLE)
    checks.size(type(model).__name__, "ffn_proj_factor * size", size)
    return size
