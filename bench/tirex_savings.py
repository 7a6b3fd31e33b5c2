"""The work that forecasts of TiRex leave out, and the time with it, at the published sizes with random weights.

python -m bench.tirex_savings [--rounds N] [--json FILE]

Each case is a whole forecast in float32, timed in turn as it is and as it would be without one of the savings that
docs/tirex.md names. Both give the same forecasts but for rounding, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from bench import run
from xlstm.cli.bench import interleave
from xlstm.models import TiRex, TiRex2
from xlstm.models.tirex import PrefixStateCache, transforms
from xlstm.models.tirex.patch_network import PatchNetwork

RECIPE = [("mlstm", 4, 4), ("slstm", 4, 4)] * 6
AGREE = 1e-4  # of the largest value
Forecast = Callable[[], Any]


def all_tokens(
    self: PatchNetwork, params: Any, x: Any, state: Any, tokens: Any, rows: Any = None, groups: Any = None
) -> Any:
    """Return what `read` does, by a forward pass of all tokens and rows."""
    y = READ(self, params, x, state, slice(None), None, groups)[:, tokens]
    return y if rows is None else y[rows]


READ = PatchNetwork.read


def without(forecast: Forecast, target: Any, name: str, other: Any) -> Forecast:
    """Return a forecast with a function replaced."""

    def call() -> Any:
        with mock.patch.object(target, name, other):
            return forecast()

    return call


def cases() -> dict[str, tuple[Forecast, Forecast]]:
    """Return forecasts by name, as they are and without a saving."""
    rng = np.random.default_rng(0)
    long, short = rng.normal(size=(64, 2048)).cumsum(axis=1), rng.normal(size=(64, 256)).cumsum(axis=1)
    mixed = [rng.normal(size=n).cumsum() for n in rng.integers(32, 2048, 64)]
    found: dict[str, tuple[Forecast, Forecast]] = {}
    for name, model, horizon in (("TiRex-1", TiRex(512, 12), 32), ("TiRex-2", TiRex2(512, RECIPE), 320)):
        params = model.init(0, "numpy")

        def of(
            series: Any, model: Any = model, params: Any = params, horizon: int = horizon, **options: Any
        ) -> Forecast:
            return lambda: model.forecast(params, series, options.get("steps", horizon), **options.get("more", {}))

        for words, series in (("64 series of 256 values", short), ("64 series of 32 to 2048 values", mixed)):
            all_at_once = without(of(series), transforms, "leading", lambda *_: 0)
            found[f"{name}, {words}: late starts"] = of(series), all_at_once
        kept = PrefixStateCache(model, params)
        found[f"{name}, a series of 256 values: kept states"] = of(short[0], more={"starts": kept}), of(short[0])
        found[f"{name}, 64 series: outputs of some tokens"] = (
            of(long),
            without(of(long), PatchNetwork, "read", all_tokens),
        )
        if name == "TiRex-1":
            one = of(long[0], steps=320)
            found["TiRex-1, 10 windows of a series: one batch"] = one, of(long[0], steps=320, more={"batch_size": 1})
    return found


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("tirex savings")
    for name, (own, other) in cases().items():
        found, expected = own().quantiles, other().quantiles
        assert np.max(np.abs(found - expected)) <= AGREE * np.max(np.abs(expected)), name
        timings = interleave({"xlstm": own, "without it": other}, options.rounds)
        run.finish("tirex savings", name, timings, options.json)


if __name__ == "__main__":
    main()
