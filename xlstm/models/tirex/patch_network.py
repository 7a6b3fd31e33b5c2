"""The network of both versions of TiRex: from patches of a series to the next patch's quantiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from xlstm.arrays import checks, invariance
from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Namespace, Params, namespace
from xlstm.data.host import Values
from xlstm.layers.blocks.block import MULTIPLE, Backbone, ResidualFeedForward, round_up
from xlstm.layers.module import Backward, Forward, Parts
from xlstm.layers.sequence import Derivatives, Scanned, State
from xlstm.losses import pinball
from xlstm.models.tirex import items, prediction
from xlstm.models.tirex.fine_tuning import PatchWindows
from xlstm.models.tirex.streaming import Stream
from xlstm.models.tirex.transforms import Scaler
from xlstm.models.tirex.variates import Groups, take
from xlstm.recurrence.packing import Span
from xlstm.training import LowRank, Trained, optimizers, train

BODY = ("input.*", "blocks.*", "norm.*")  # all parameters before the last layer
WEIGHTS = ("all", "head", "adapters")
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class PatchNetwork(Backbone):
    """The base class of both models: a residual layer, blocks, an RMSNorm and a residual layer.

    A token is a patch of P values, with zero for missing ones, and P marks, 1 for each value that
    is present and 0 for others. y of token t holds Q quantiles of each value of patch t + 1.
    """

    if TYPE_CHECKING:
        patch_size: int
        context: int
        quantiles: Sequence[float]
        input_ff_size: int
        ffn_proj_factor: float

    CHECKS: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(
            ("patch_size", "input_ff_size", "output_ff_size", "context", "horizon"), checks.size
        ),
        "quantiles": checks.rising(1),
        "ffn_proj_factor": checks.above_0,
        "rounding": checks.optional(checks.choice(["bfloat16"])),
        "norm_eps": checks.optional(checks.divisor),
        **dict.fromkeys(("qk_norm", "arcsinh", "binary", "sign_flip", "differencing"), checks.flag),
        "scale_eps": checks.non_negative,
    }
    COVARIATES: ClassVar[bool] = False  #: whether a forecast takes covariates
    horizon: int = 0  #: steps that are forecast at least
    _symbol = "2P"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "horizon"):
            steps = getattr(self, name)
            if steps % self.patch_size:
                expected = f"a multiple of patch_size, {self.patch_size}"
                raise ValueError(f"{type(self).__name__}: {name} is {steps}, expected {expected}")
        self._ffn_size  # noqa: B018 (this checks it)

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
    def context_tokens(self) -> int:
        """Number of tokens of the context and the horizon, for which files of ONNX are."""
        tokens: int = (self.context + self.horizon) // self.patch_size
        return tokens

    @property
    def _ffn_size(self) -> int:
        """Width of the blocks' feed-forward layers; raises ValueError if it is 0 or too large."""
        size = round_up(math.floor(self.ffn_proj_factor * self.size), MULTIPLE)
        return int(checks.size(type(self).__name__, "ffn_proj_factor * size", size))

    @cached_property
    def parts(self) -> Parts:
        D = self.size
        U = self.input_ff_size
        V = getattr(self, "output_ff_size", U)
        options = {"activation": getattr(self, "activation", "relu")}
        first = ResidualFeedForward(self.input_size, U, D, **options)
        last = ResidualFeedForward(D, V, self.output_size, **options)
        return {"input": first, **super().parts, "output": last}

    def scan(self, p: Params, x: Array, state: State, span: Span) -> Scanned:
        run = Forward(self, span.xp, p, span)
        h, end, saved = super().scan(p, run("input", x), state, span)
        return self._parted(span.xp, run("output", h)), end, run.kept | saved

    def scan_bwd(
        self, p: Params, saved: Any, dy: Array, dstate: State | None, span: Span
    ) -> Derivatives:
        run = Backward(self, span.xp, p, saved, span)
        dh = run("output", span.xp.reshape(dy, (span.T, span.B, self.output_size)))
        run.final("output")
        dblocks, dh, start = super().scan_bwd(p, saved, dh, dstate, span)
        dx = run("input", dh)
        return dblocks | run.grads, dx, start

    def hidden(
        self, params: Params, tokens: Array, state: Any = None, **rows: Any
    ) -> tuple[list[Array], State]:
        """Return the output of every block, for inference; the layers after the last block do not
        run.

        Parameters
        ----------
        params : dict
        tokens : array (B, T, 2P)
        state : tuple, optional
        **rows
            groups, targets and known, as for `TiRex2.forward`.

        Returns
        -------
        levels : list of arrays (B, T, D)
            The input of the first block, and the output of each block.
        state : tuple
        """
        groups = self._groups(tokens, **rows)
        invariance.refuse(type(self).__name__, "the rows of a forecast run together")
        params, x, start, span = self.begin(params, tokens, state, groups=groups)
        run = Forward(self, span.xp, params, span)
        h = run("input", x)
        ends = []
        levels = [self._swap(span.xp, h)]
        for k, before in enumerate(start):
            h, end = run(f"blocks.{k}", h, before)
            levels.append(self._swap(span.xp, h))
            ends.append(end)
        return levels, tuple(ends)

    @property
    def scaler(self) -> Scaler:
        """The scaler of the network's windows."""
        return Scaler()

    def calibrated(self, q: Values) -> Values:
        """Return quantiles (R, H, Q) with the calibration of a forecast, for rows that are not
        differences.
        """
        return q

    def warn(self, where: str, horizon: int) -> None:
        """Warn in the name of the method `where` if the model was trained for fewer steps."""

    def embed(self, params: Params, series: Any, *, batch_size: int = 64) -> Values:
        """Return the embeddings of series, as features for other models.

        The outputs of each block are averaged over the tokens that hold values of a series, and
        divided by their norm. The results of all blocks and variates of a series are concatenated,
        and scaled to mean 0 and variance 1. The published package of TiRex-1 makes its classifiers'
        features this way.

        Parameters
        ----------
        params : dict of str to array
        series : array (L,), (S, L) or (S, V, L), or list of arrays (L,) or (V, L)
            The series; the network sees each variate separately. NaN is a missing value. Only the
            last `context` values count.
        batch_size : int
            The most rows that the network sees at once.

        Returns
        -------
        array (S, num_blocks * V * D), or (num_blocks * V * D,) of one series
            float64, on the host.

        Raises
        ------
        TypeError, ValueError
            `series` are not series, `params` are not the model's parameters, or series differ in
            their number of variates.
        """
        where = f"{type(self).__name__}.embed"
        batch_size = checks.size(where, "batch_size", batch_size)
        read = items.read_arrays(where, series, 2)
        features = prediction.features(where, self, params, read.rows, batch_size)
        return features[0] if read.single else features

    def loss(self, y: Array, target: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Return the mean pinball loss at the model's quantiles, and its gradient with respect to
        y.

        Parameters
        ----------
        y : array (B, T, Q, P)
        target : array (B, T, P)
            The values of the patch after each token, scaled as its window.
        mask : bool array (B, T, P), or array of weights, optional
            The values that count, or their weights.

        Returns
        -------
        loss : 0-d array
        dy : array (B, T, Q, P)

        Raises
        ------
        ValueError, TypeError
            As for `losses.pinball`.
        """
        xp = namespace(type(self).__name__, {"y": y})
        value, dy = pinball(xp.permute_dims(y, (0, 1, 3, 2)), target, mask, self.quantiles)
        return value, xp.permute_dims(dy, (0, 1, 3, 2))

    def fine_tune(
        self,
        params: Params,
        series: Any,
        *,
        past: Any = None,
        future: Any = None,
        weights: str = "all",
        horizon: int | None = None,
        rank: int = 8,
        epochs: int = 10,
        learning_rate: float = 1e-4,
        batch_size: int = 32,
        stride: int | None = None,
        validation_fraction: float = 0.2,
        seed: int = 0,
        **options: Any,
    ) -> Trained:
        """Fine-tune the model on series, with the pinball loss of the patch after each token.

        Parameters
        ----------
        params : dict of str to array
            The pretrained parameters, which stay unchanged.
        series : array (L,) or (S, L), or list of arrays (L,)
            As for `forecast`; for TiRex-2 also items (V, L) of several targets. The model sees each
            series or item separately.
        past, future : array, or list, optional
            Covariates of TiRex-2, as for its `forecast`; `future` may end with the series. The
            targets of an item see its covariates, as in a forecast.
        weights : {"all", "head", "adapters"}
            The weights to train: all parameters, the layer after the last block, or low-rank
            changes of all matrices (`training.LowRank`). Weights of TiRex-2 that the data do not
            use have no gradient and stay as they are: the variate mixers if every item has one row,
            and `combination` if no covariate is known in advance.
        horizon : int, optional
            Steps that the model learns to forecast, by default a patch; see `PatchWindows`.
        rank : int
            Rank of the low-rank changes.
        epochs : int
            Passes over all windows.
        learning_rate : float
            The learning rate of Adam.
        batch_size : int
            Windows in a batch. A window has a row for each target and covariate of its item.
        stride : int, optional
            Values between the ends of two successive windows; by default a patch.
        validation_fraction : float
            The share at the end of each series that is held out for validation. The result has the
            parameters of the epoch with the lowest validation loss; with 0, the last parameters.
        seed : int
        **options
            Further arguments of `training.train`, such as `patience`, `clip`, `callbacks` and
            `checkpoints`.

        Returns
        -------
        Trained
            Its `params` hold all parameters of the model, with adapters merged into them.

        Raises
        ------
        TypeError, ValueError
            An argument is out of range, series are too short, or covariates do not fit.
        FloatingPointError, OSError, Interrupted, Terminated
            As for `training.train`.
        """
        where = f"{type(self).__name__}.fine_tune"
        self.namespace(params, {})
        checks.choice(WEIGHTS)(where, "weights", weights)
        share = checks.rate(where, "validation_fraction", validation_fraction)
        _, whole = items.read_items(where, self, series, past, future)
        sizes: dict[str, Any] = {"horizon": horizon, "stride": stride, "batch_size": batch_size}
        cuts = []
        first = []
        for item in whole:
            L = item.target.shape[1]
            cuts.append(L - int(share * L))
            first.append(item.until(cuts[-1]))
        data = PatchWindows(self, first, **sizes)
        later = PatchWindows(self, whole, since=cuts, **sizes) if share else None
        optimizer = optimizers.adam(learning_rate)
        if weights == "head":
            optimizer = optimizers.by_name(dict.fromkeys(BODY), optimizer)
        options |= {"epochs": epochs, "validation": later, "seed": seed}
        if weights != "adapters":
            return train(self, params, data, optimizer, **options)
        matrices = [name for name in params if name.endswith((".W", ".Wh"))]
        adapters = LowRank(self, params, rank, names=matrices)
        trained = train(adapters, adapters.init(seed), data, optimizer, **options)
        return dataclasses.replace(trained, params=adapters.merged(trained.params))

    def stream(self, params: Params, series: Any, *, renew: int | None = None) -> Stream:
        """Return a `Stream`, which takes new values of series and forecasts after any of them."""
        return Stream(self, params, series, renew)

    def _groups(self, x: Array) -> Groups | None:
        """Return the groups of the rows of x (B, T, 2P)."""
        return None

    def read(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        tokens: slice = slice(None),
        rows: Any = None,
        groups: Groups | None = None,
    ) -> Array:
        """Return y for some tokens of some rows, (R, S, Q, P), for inference.

        After the last block has mixed time, only these are computed.

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
            The rows that belong together.

        Raises
        ------
        ValueError, TypeError
            As for `forward`.
        """
        invariance.refuse(type(self).__name__, "the rows of a forecast run together")
        params, x, start, span = self.begin(params, x, state, groups=groups)
        run = Forward(self, span.xp, params, span)
        top = self.num_blocks - 1
        h = run("input", x)
        for k in range(top):
            h, _ = run(f"blocks.{k}", h, start[k])
        block = self.blocks[top]
        within = Forward(block, span.xp, self.below(f"blocks.{top}", params), span)
        h, _ = block.over_time(within, h, start[top])
        h = block.at_each_step(within, h[tokens, ...])
        h = h if rows is None else take(span.xp, h, rows)
        h = run("norm", h) if "norm" in self.parts else h
        return self._swap(span.xp, self._parted(span.xp, run("output", h)))

    def _parted(self, xp: Namespace, y: Array) -> Array:
        """Return (..., Q P) as (..., Q, P)."""
        return xp.reshape(y, (*y.shape[:-1], len(self.quantiles), self.patch_size))

    def output_dims(self, T: int, B: int) -> checks.Dims:
        return {"B": B, "T": T, "Q": len(self.quantiles), "P": self.patch_size}
