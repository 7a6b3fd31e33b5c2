"""How far streams of a TiRex drift, and how much fine-tuning improves it, on the series of the package.

    xlstm train tirex --steps 3000 --every 250 --output xlstm-tirex
    python -m bench.tirex_learning xlstm-tirex/model.safetensors [--json FILE]

The model is one that `xlstm train tirex` makes. A stream forecasts 32 steps after each of the last 30 % of the values,
and is compared with forecasts from whole windows. Fine-tuning sees the first 80 % of a series, and forecasts of 32
steps, 8 values apart, are judged on the rest. Losses are pinball losses, summed over quantiles, in the units of a
series.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.__main__ import name_of_machine
from xlstm.data.series import bundled, read_csv
from xlstm.interop import tirex

SERIES = ("sunspots", "co2")
HORIZON, APART = 32, 8
STREAMED, FITTED = 0.7, 0.8  # shares of a series at which streams begin, and that fine-tuning sees
RENEWALS = (0, 256, 64, 32)
RATES = {"all": 1e-3, "head": 3e-3, "adapters": 3e-3}
TUNING = {"horizon": HORIZON, "stride": 4, "epochs": 30, "patience": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path, default=Path("bench/results") / f"tirex-learning-{name_of_machine()}.json")
    options = parser.parse_args()
    model, params = tirex.load(options.model, backend="numpy")
    series = {name: read_csv(bundled(name)).values for name in SERIES}
    found = [row for name, values in series.items() for row in streams(name, model, params, values)]
    found += [row for name, values in series.items() for row in tuning(name, model, params, values)]
    Console(width=140).print(shown(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text("".join(json.dumps(one) + "\n" for one in found))
    print(f"results: {options.json}")


def streams(name: str, model: Any, params: Any, values: Any) -> list[dict[str, Any]]:
    """Return the loss of streams, and their mean distance from forecasts of whole windows."""
    ends = range(int(STREAMED * len(values)), len(values) - HORIZON)
    whole, truth = ahead(model, params, values, ends)
    rows = [{"series": name, "what": "whole windows", "distance": 0.0, "loss": pinball(model, whole, truth)}]
    for renew in RENEWALS:
        stream = model.stream(params, values[: ends[0]], renew=renew)
        forecasts, start = [], time.perf_counter()
        for end in ends:
            forecasts.append(stream.forecast(HORIZON).quantiles)
            stream.push(values[end])
        q = np.stack(forecasts)
        rows.append(
            {
                "series": name,
                "what": f"stream, renew={renew}",
                "distance": float(np.mean(abs(q - whole)) / np.nanstd(values)),
                "loss": pinball(model, q, truth),
                "seconds": (time.perf_counter() - start) / len(ends),
            }
        )
    return rows


def tuning(name: str, model: Any, params: Any, values: Any) -> list[dict[str, Any]]:
    """Return the held-out loss before and after fine-tuning."""
    cut = int(FITTED * len(values))
    ends = range(cut, len(values) - HORIZON + 1, APART)
    rows = [{"series": name, "what": "as it was", "loss": pinball(model, *ahead(model, params, values, ends))}]
    for weights, rate in RATES.items():
        start = time.perf_counter()
        tuned = model.fine_tune(params, values[:cut], weights=weights, learning_rate=rate, **TUNING)
        seconds = time.perf_counter() - start
        loss = pinball(model, *ahead(model, tuned.params, values, ends))
        rows.append({"series": name, "what": f"fine-tuned: {weights}", "loss": loss, "seconds": seconds})
    return rows


def ahead(model: Any, params: Any, values: Any, ends: range) -> tuple[Any, Any]:
    """Return quantiles (M, H, Q) after the first values up to each end, and what came (M, H)."""
    rollout = -(-HORIZON // model.patch_size)
    q = model.forecast(params, [values[:end] for end in ends], HORIZON, rollout=rollout).quantiles
    return q, np.stack([values[end : end + HORIZON] for end in ends])


def pinball(model: Any, q: Any, truth: Any) -> float:
    """Return the mean pinball loss of the values that are there, summed over quantiles."""
    e, levels = truth[:, :, None] - q, np.array(model.quantiles)
    return float(np.nanmean(np.sum(np.maximum(levels * e, (levels - 1) * e), axis=-1)))


def shown(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    numbers = ("distance", "loss", "seconds")
    table = Table("series", "what", *numbers)
    for row in rows:
        table.add_row(row["series"], row["what"], *(f"{row[k]:.4g}" if k in row else "" for k in numbers))
    return table


if __name__ == "__main__":
    main()
