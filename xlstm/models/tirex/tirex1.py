"""TiRex-1, a forecaster with sLSTM blocks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.namespace import Params
from xlstm.data.panels import Roles
from xlstm.layers.norm import RMSNorm
from xlstm.models.tirex import items, prediction, transforms
from xlstm.models.tirex.items import Forecast, HorizonWarning
from xlstm.models.tirex.patch_network import QUANTILES, PatchNetwork
from xlstm.models.tirex.prediction import PrefixStateCache
from xlstm.models.tirex.variates import NORM_EPS, TiRexBlock

FORGET_LIMIT = 15.0  # bound of the pre-activation of the forget gate


@dataclass(frozen=True)
class TiRex(PatchNetwork):
    """TiRex-1: sLSTM blocks with feed-forward layers over patches of a series (Auer et al. 2025).

    Parameters are `input.` (`hidden`, `output`, `residual`, each with `W` and `b`), `blocks.{k}.`,
    `norm.w` and `output.`. Each block has `norm.w`, `i.W f.W z.W o.W` (N, K, K), `cell.Wh` (4, N,
    K, K), `cell.b` (4D,), `outnorm.w`, `ffn_norm.w`, `ffn.up.W` (2U, D) and `ffn.down.W` (D, U).
    The state is a tuple of the blocks' states, ((), (h, c, n, m)), with arrays (B, D).

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
        The levels of the predicted quantiles, in rising order, with 0.5 among them.
    input_ff_size : int
        Width of the hidden layers at the input and at the output.
    ffn_proj_factor : float
        Relative width of the feed-forward layers: U is this times D, rounded down, then up to a
        multiple of 64.
    context : int
        Number of past values that the network sees for a forecast, a multiple of `patch_size`.
    rounding : {"bfloat16"}, optional
        Round within the sLSTM as the published package does on a CPU; this needs float32. Gradients
        ignore the rounding.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0.5 not in self.quantiles:
            raise ValueError(
                f"TiRex: quantiles is {checks.shown(self.quantiles)}, expected 0.5 among them"
            )

    @cached_property
    def blocks(self) -> list[Any]:
        return [
            self._made(
                TiRexBlock,
                index=k,
                ffn_size=self._ffn_size,
                head_eps=1e-5,
                head_residual=True,
                forget_limit=FORGET_LIMIT,
                rounded=self.rounding is not None,
            )
            for k in range(self.num_blocks)
        ]

    @property
    def norm(self) -> Any:
        return RMSNorm(self.size, eps=NORM_EPS)

    def forecast(
        self,
        params: Params,
        series: Any,
        horizon: int,
        *,
        quantiles: Any = None,
        batch_size: int | None = None,
        rollout: int = 1,
        resample: str | None = None,
        starts: PrefixStateCache | None = None,
        targets: str | Sequence[str] | None = None,
        series_id: str | None = None,
    ) -> Forecast:
        """Return forecasts of series, without any training on them.

        The network sees the last `context` values of a series, scaled by their mean and standard
        deviation, and predicts a patch. For later patches, it sees these values followed by missing
        ones: a forecast is never fed back. Beyond a horizon of `context` steps the network sees no
        value, and there is a `HorizonWarning`.

        Parameters
        ----------
        params : dict
        series : array (L,) or (B, L), or list of arrays (L,), or table
            Numbers of any kind; NaN, None and infinity are missing values. In a list, lengths may
            differ. In a table of pandas, Polars or PyArrow, each column of numbers is a series, or
            several series with `series_id`. Rows missing between dates count as missing values.
        horizon : int
            Number H of steps to forecast.
        quantiles : list of float, optional
            The levels, by default those that the model was trained for. Other levels are
            interpolated linearly and may not lie outside of the trained range.
        batch_size : int, optional
            The most windows that the network sees at once; by default 16 on a CPU and 512 on a GPU.
            At the published size, a CPU with 4 instead of 16 needs 30 MB less memory and a fifth
            more time.
        rollout : int
            The most patches predicted from one window. More than 1 is faster for long horizons, but
            less exact; the published package calls it `max_accelerated_rollout_steps`.
        resample : {"frequency"}, optional
            Forecast long series at a lower rate, as the published package does. This applies to
            series of 2000 values or more with a period of more than 64 steps, if the horizon is 100
            or more.
        starts : PrefixStateCache, optional
            A cache of states that earlier calls with the same parameters have computed.
        targets : list of str, optional
            With a table: the columns to forecast, by default all.
        series_id : str, optional
            With a table: the column that names the series of each row.

        Returns
        -------
        Forecast
            `quantiles` (H, Q) or (B, H, Q) and `mean` (H,) or (B, H), as float64 on the host.
            Quantiles may cross. For a table, both are tables of its library with the dates that
            follow; names of quantiles' columns end with the level.

        Raises
        ------
        ValueError, TypeError
            A series is empty or has values beyond 1e150, an option is out of range, or parameters
            do not belong to the model. A column is not in the table, has two roles or does not hold
            numbers, or dates have no common step.
        ImportError
            The series are a table, and the package narwhals is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from xlstm.models import TiRex
        >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
        >>> found = model.forecast(model.init(backend="numpy"), np.sin(np.arange(100) / 5), horizon=6)
        >>> found.quantiles.shape, found.mean.shape
        ((6, 9), (6,))
        """
        where = "TiRex"
        horizon = checks.size(where, "horizon", horizon)
        levels = transforms.levels_of(where, quantiles, self.quantiles)
        if items.is_table(where, series, targets=targets, series_id=series_id):
            roles = Roles(targets, series_id=series_id)
            return items.forecast_table(
                self,
                params,
                series,
                horizon,
                roles,
                None,
                quantiles=levels,
                batch_size=batch_size,
                rollout=rollout,
                resample=resample,
                starts=starts,
            )
        rollout = checks.size(where, "rollout", rollout)
        resample = checks.optional(checks.choice(("frequency",)))(where, "resample", resample)
        read, whole = items.read_items(where, self, series)
        cache = PrefixStateCache.of(where, self, params, starts)
        rates = []
        slow = []
        for item in whole:
            row = item.target[0]
            rates.append(1.0 if resample is None else transforms.rate_of(row, horizon))
            slow.append(item._replace(target=transforms.downsampled(row, rates[-1])[None]))
        steps = [math.ceil(horizon * rate) for rate in rates]
        last = -(-max(steps) // self.patch_size) - 1
        if (last - last % rollout) * self.patch_size >= self.context:
            warnings.warn(
                f"TiRex: the last steps come from windows of {self.context} values that hold none"
                " of the series, and know neither its level nor its scale",
                HorizonWarning,
                stacklevel=2,
            )
        predicted = prediction.predict(cache, slow, steps, self.context, batch_size, rollout)
        q = [
            transforms.upsampled(forecast[0], rate, horizon)[None]
            for forecast, rate in zip(predicted, rates, strict=True)
        ]
        return read.forecast(q, self.quantiles, levels)
