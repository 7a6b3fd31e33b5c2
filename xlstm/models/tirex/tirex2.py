"""TiRex-2, a forecaster with sLSTM and mLSTM blocks, in which related series see each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Array, Params
from xlstm.arrays.random import Seed
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.layers.module import Saved
from xlstm.layers.norm import RMSNorm
from xlstm.layers.sequence import State
from xlstm.models.tirex import items, prediction, transforms
from xlstm.models.tirex.items import Forecast, HorizonWarning, Item
from xlstm.models.tirex.patch_network import QUANTILES, PatchNetwork
from xlstm.models.tirex.prediction import PrefixStateCache
from xlstm.models.tirex.transforms import Scaler
from xlstm.models.tirex.variates import NORM_EPS, Groups, mLSTMVariates, sLSTMVariates


class Mixers(NamedTuple):
    """The description of a block of `TiRex2`.

    Attributes
    ----------
    cell : {"slstm", "mlstm"}
        The cell that mixes time.
    num_heads, variate_heads : int
        The number of heads of the cell, and of the variate mixer.
    """

    cell: str
    num_heads: int = 4
    variate_heads: int = 4


@dataclass(frozen=True)
class TiRex2(PatchNetwork):
    """TiRex-2: sLSTM and mLSTM blocks over patches of one series, or of several that belong
    together (2026).

    Parameters are those of `TiRex`, and in each block also `combination.W` (D, 2D) and the
    `VariateMixer` under `mixer.`. A block with an mLSTM has `qkvo.W`, `gates.W`, `gates.b`,
    `outnorm.w` and `down.W` in place of the sLSTM's parameters. The state is a tuple of the blocks'
    states: ((), (h, c, n, m)) for an sLSTM, and (C, n, m) for an mLSTM, whose m is 0 before the
    first step.

    Parameters
    ----------
    size : int
        Width D of the blocks.
    recipe : sequence of (cell, num_heads, variate_heads)
        The blocks, the first at the input; see `Mixers`.
    patch_size : int
        Number P of values in a patch.
    quantiles : sequence of float
        The levels of the predicted quantiles, in rising order.
    input_ff_size, output_ff_size : int
        Widths of the hidden layers at the input and at the output.
    activation : {"silu", "relu", "gelu", "square_relu", "sigmoid", "selu"}
        Activation of these layers and of the variate mixers.
    ffn_proj_factor : float
        Relative width of the blocks' feed-forward layers: this times D, rounded down, then up to a
        multiple of 64.
    context, horizon : int
        Numbers of values in a forecast's window: `context` past values, then `horizon` missing
        ones, the longest horizon that the network was trained for. Both are multiples of
        `patch_size`.
    norm_eps : float, optional
        Number that the norm after the last block adds to the mean square; None leaves out this
        norm.
    qk_norm : bool
        Whether the variate mixers normalise queries and keys.
    arcsinh, binary : bool
        Whether a forecast takes the arcsinh of scaled values, and whether it leaves rows of zeros
        and ones as they are.
    scale_eps : float
        The least scale of a row.
    sign_flip, differencing : bool
        Defaults of `forecast`: whether to average with the forecast of the negated series, and
        whether to forecast a series with a trend by its differences.
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

    COVARIATES: ClassVar[bool] = True
    _has_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        where = "TiRex2"
        super().__post_init__()
        entries = checks.several(
            where, "recipe", self.recipe, "a (cell, num_heads, variate_heads) per block", most=2**16
        )
        if not entries:
            raise ValueError(f"{where}: recipe is empty, expected a block or more")
        recipe = []
        for k, entry in enumerate(entries):
            name = f"recipe[{k}]"
            if not isinstance(entry, tuple | list) or not 1 <= len(entry) <= len(Mixers._fields):
                expected = f"expected ({', '.join(Mixers._fields)})"
                raise ValueError(f"{where}: {name} is {checks.shown(entry)}, {expected}")
            mixers = Mixers(*entry)
            checks.choice(("slstm", "mlstm"))(where, f"{name}.cell", mixers.cell)
            for part in Mixers._fields[1:]:
                n = checks.size(where, f"{name}.{part}", getattr(mixers, part))
                checks.heads(where, n, f"{name}.{part}", size=self.size)
            if mixers.cell == "mlstm":
                half = {"half of size": self.size // 2}
                checks.heads(where, mixers.num_heads, f"{name}.num_heads", **half)
            recipe.append(mixers)
        object.__setattr__(self, "recipe", tuple(recipe))

    @property
    def num_blocks(self) -> int:  # type: ignore[override]
        """Number of blocks."""
        return len(self.recipe)

    @cached_property
    def blocks(self) -> list[Any]:
        return [
            self._made(
                sLSTMVariates if cell == "slstm" else mLSTMVariates,
                index=k,
                num_blocks=self.num_blocks,
                ffn_size=self._ffn_size,
                num_heads=num_heads,
                variate_heads=variate_heads,
                head_eps=NORM_EPS,
                head_residual=False,
                qk_size=self.size // 2,
                v_size=self.size,
                gate_cap=15.0,
                bias=False,
                chunk_size=None,
                norm_eps=NORM_EPS,
                eps=1e-6,
                rest=0.0,
            )
            for k, (cell, num_heads, variate_heads) in enumerate(self.recipe)
        ]

    @property
    def scaler(self) -> Scaler:
        return Scaler(self.arcsinh, self.binary, self.scale_eps)

    def calibrated(self, q: Values) -> Values:
        return transforms.calibrated(q)

    def warn(self, where: str, horizon: int) -> None:
        if horizon > self.horizon:
            warnings.warn(
                f"{where}: horizon is {horizon}, and the model was trained for {self.horizon} steps"
                " at most; those after them may be poor",
                HorizonWarning,
                stacklevel=3,
            )

    @property
    def norm(self) -> Any:
        return None if self.norm_eps is None else RMSNorm(self.size, eps=self.norm_eps)

    def forward(
        self,
        params: Params,
        x: Array,
        state: Any = None,
        train: bool = True,
        *,
        lengths: Any = None,
        resets: Any = None,
        cu_seqlens: Any = None,
        seed: Seed | None = None,
        keep: bool | None = None,
        groups: Any = None,
        targets: Any = None,
        known: Any = None,
        batch_invariant: bool | None = None,
    ) -> tuple[Array, State, Saved | None]:
        """Run over a batch of rows of tokens.

        Parameters
        ----------
        params : dict
        x : array (B, T, 2P)
            Tokens.
        state, train, lengths, resets, cu_seqlens, seed, keep, batch_invariant
            As for `LSTM.forward`.
        groups : whole numbers (B,), optional
            The group of each row. Rows with the same number see each other; by default each row is
            alone.
        targets : bool (B,), optional
            Whether each row is a target. Other rows are covariates, which do not see targets. By
            default all are targets.
        known : bool (B,), optional
            Whether the future of each row is known. Such rows are also read from the end to the
            beginning. By default none is known.

        Returns
        -------
        y : array (B, T, Q, P)
        state : tuple
        saved : Saved or None

        Raises
        ------
        ValueError, TypeError
            As for `LSTM.forward`. Or `groups`, `targets` or `known` do not fit, or are combined
            with `lengths` or resets.
        """
        together = self._groups(x, groups, targets, known)
        if together is not None and lengths is not None:
            raise ValueError("TiRex2: lengths and groups, targets or known exclude one another")
        return super().forward(
            params,
            x,
            state,
            train,
            lengths=lengths,
            resets=resets,
            cu_seqlens=cu_seqlens,
            seed=seed,
            keep=keep,
            groups=together,
            batch_invariant=batch_invariant,
        )

    def _groups(
        self, x: Array, groups: Any = None, targets: Any = None, known: Any = None
    ) -> Groups | None:
        if groups is None and targets is None and known is None:
            return None
        if not getattr(x, "shape", ()):  # forward refuses it
            return None
        return Groups.of("TiRex2", x.shape[0], groups, targets, known)

    def forecast(
        self,
        params: Params,
        series: Any,
        horizon: int,
        *,
        past: Any = None,
        future: Any = None,
        quantiles: Any = None,
        batch_size: int | None = None,
        sign_flip: bool | None = None,
        differencing: bool | None = None,
        pad_context: bool = True,
        starts: PrefixStateCache | None = None,
        targets: str | Sequence[str] | None = None,
        series_id: str | None = None,
        later: Any = None,
    ) -> Forecast:
        """Return forecasts of one or several targets with covariates, without any training on them.

        The network sees the last `context` values of each row, scaled by their mean and standard
        deviation, and predicts all steps at once. In one item, targets see all rows, and covariates
        see only covariates. Items do not influence each other.

        Parameters
        ----------
        params : dict
        series : array (L,), (B, L) or (B, V, L), or list of arrays (L,) or (V, L), or table
            Numbers of any kind; NaN, None and infinity are missing values. (V, L) is an item of V
            targets. In a list, lengths and numbers of targets may differ. A table of pandas, Polars
            or PyArrow is one item, whose targets are its columns of numbers, or several items with
            `series_id`. Rows missing between dates count as missing values.
        horizon : int
            Number H of steps to forecast. If it exceeds the model's `horizon`, for which it was
            trained, there is a `HorizonWarning`.
        past : array (L,) or (P, L), or list, optional
            Covariates that are known as far as the series: an array for one series, or a list with
            an array or None for each of several. With a table: names of columns.
        future : array (N,) or (F, N), or list, optional
            Covariates that are known in advance. N is L + H or more, and values after L + H are
            ignored. With a table: names of columns.
        quantiles : list of float, optional
            The levels, by default those that the model was trained for. Other levels are
            interpolated linearly and may not lie outside of the trained range.
        batch_size : int, optional
            The most rows that the network sees at once, unless one item has more; by default 16 on
            a CPU and 512 on a GPU. At the published size, a CPU with 4 instead of 16 needs 45 MB
            less memory and a quarter more time.
        sign_flip : bool, optional
            Average this forecast with the forecast of the negated series, which takes twice the
            time. By default the model's `sign_flip` decides.
        differencing : bool, optional
            Forecast the differences of targets with a trend, and sum them. By default the model's
            `differencing` decides.
        pad_context : bool
            Give the network windows of full width. With False, windows are only as wide as the
            longest series of the call needs; all forecasts then depend slightly on that width.
        starts : PrefixStateCache, optional
            A cache of states that earlier calls with the same parameters have computed.
        targets : list of str, optional
            With a table: the columns to forecast, by default all without another role.
        series_id : str, optional
            With a table: the column that names the series of each row.
        later : table, optional
            With a table: the columns `future` for the rows to forecast, in any order if they have
            dates.

        Returns
        -------
        Forecast
            `quantiles` and `mean` have the axes of the series, with (H, Q) and (H,) in place of L:
            (V, H, Q) for an item of V targets. They are float64 on the host, and lists if items
            differ in their number of targets. Quantiles may cross. For a table, both are tables of
            its library with the dates that follow; names of quantiles' columns end with the level.

        Raises
        ------
        ValueError, TypeError
            A series is empty or has values beyond 1e150, covariates have the wrong length, an
            option is out of range, or parameters do not belong to the model. A column is not in the
            table, has two roles or does not hold numbers, or dates have no common step.
        ImportError
            The series are a table, and the package narwhals is not installed.

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
        where = "TiRex2"
        horizon = checks.size(where, "horizon", horizon)
        levels = transforms.levels_of(where, quantiles, self.quantiles)
        if items.is_table(where, series, targets=targets, series_id=series_id, later=later):
            roles = Roles(targets, past, future, None, series_id)
            return items.forecast_table(
                self,
                params,
                series,
                horizon,
                roles,
                later,
                quantiles=levels,
                batch_size=batch_size,
                sign_flip=sign_flip,
                starts=starts,
                differencing=differencing,
                pad_context=pad_context,
            )
        flip = checks.flag(where, "sign_flip", self.sign_flip if sign_flip is None else sign_flip)
        differencing = self.differencing if differencing is None else differencing
        checks.flag(where, "differencing", differencing)
        checks.flag(where, "pad_context", pad_context)
        read, whole = items.read_items(where, self, series, past, future, horizon)
        if flip:
            opposite = transforms.opposite(self.quantiles)
        cache = PrefixStateCache.of(where, self, params, starts)
        self.warn(where, horizon)
        context = self.context
        if not pad_context:
            context = min(context, max(row.shape[1] for row in read.rows))
        trends = [
            np.array([differencing and transforms.has_trend(row) for row in item.target])
            for item in whole
        ]
        sizes = (horizon, context, batch_size)
        q = self._quantiles(cache, whole, trends, *sizes)
        if flip:
            negated = [Item(*(-rows for rows in item)) for item in whole]
            flipped = self._quantiles(cache, negated, trends, *sizes)
            q = [(a - b[..., opposite]) / 2 for a, b in zip(q, flipped, strict=True)]
        return read.forecast(q, self.quantiles, levels)

    def _quantiles(
        self,
        cache: PrefixStateCache,
        series: Sequence[Item],
        trends: Sequence[Any],
        horizon: int,
        context: int,
        batch_size: int | None,
    ) -> list[Values]:
        """Return quantiles (V, H, Q) of each item; targets with a trend, which `trends` marks, are
        forecast by their differences.
        """
        seen = []
        for item, trend in zip(series, trends, strict=True):
            target = np.where(trend[:, None], transforms.changes(item.target), item.target)
            seen.append(item._replace(target=target))
        predicted = prediction.predict(cache, seen, [horizon] * len(seen), context, batch_size)
        results = []
        for q, item, trend in zip(predicted, series, trends, strict=True):
            results.append(self.calibrated(q))
            results[-1][trend] = transforms.summed(q[trend], item.target[trend])
        return results
