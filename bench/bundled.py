"""How well the forecaster forecasts the series of the package, beside baselines, and how long it takes.

    python -m bench.bundled [--seeds 0 1 2] [--cell lstm] [--json FILE]

The defaults of `Forecaster` are measured: sunspots 12 months ahead and CO2 52 weeks ahead, with their dates. Errors
are those of `score`, on the last 20 % of a series, by the network that has not seen them. The goals: on sunspots an
RMSE that is at most that of the better of persistence and autoregression 1, 3, 6 and 12 months ahead, in less than 60 s
on two cores; on CO2 52 weeks ahead at most 0.7 of the RMSE of the seasonal naive forecast; and intervals of 80 % that
cover 75 to 85 % of the test part.
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
from xlstm.arrays import cores
from xlstm.cli import info
from xlstm.data.series import bundled, read_csv
from xlstm.estimators import Forecaster

AHEAD = {"sunspots": (1, 3, 6, 12), "co2": (1, 4, 13, 26, 52)}
METHODS = ("model", "persistence", "seasonal", "autoregression")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cell", default="lstm")
    parser.add_argument("--json", type=Path, default=Path("bench/results") / f"bundled-{name_of_machine()}.json")
    options = parser.parse_args()
    found = [measure(name, seed, options.cell) for name in AHEAD for seed in options.seeds]
    for name in AHEAD:
        Console(width=140).print(shown([one for one in found if one["series"] == name]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text("".join(json.dumps(one) + "\n" for one in found))
    print(f"results: {options.json}")


def measure(name: str, seed: int, cell: str, **settings: Any) -> dict[str, Any]:
    """Fit a forecaster to a series and return its score, as JSON has it."""
    series = read_csv(bundled(name))
    dates = series.index
    start = time.perf_counter()
    forecaster = Forecaster(backend="numpy", horizon=max(AHEAD[name]), seed=seed, cell=cell, **settings)
    forecaster.fit(series.values, dates=dates)
    seconds = time.perf_counter() - start
    score = forecaster.score(series.values, dates=dates)
    rows = np.array(AHEAD[name]) - 1
    return {
        "series": name,
        "seed": seed,
        "cell": cell,
        "ahead": list(AHEAD[name]),
        "seconds": round(seconds, 1),
        "epochs": len(forecaster.trained_.validations),
        "best_epoch": forecaster.trained_.best_epoch,
        "linear_baseline": forecaster.linear_baseline_,
        "calendar": forecaster.calendar_,
        "season": score.season,
        "rmse": {method: score.errors[method].rmse[rows].round(4).tolist() for method in METHODS},
        "mase": {method: score.errors[method].mase[rows].round(4).tolist() for method in METHODS},
        "crps": score.crps[rows].round(4).tolist(),
        "coverage": score.coverage[rows].round(4).tolist(),
        "coverage_of_all": round(float(np.mean(score.coverage)), 4),
        "machine": info.processor(),
        "cores": cores.usable(),
    }


def shown(found: list[dict[str, Any]]) -> Table:
    """Return a table of one series: baselines once, and a row for each seed."""
    first = found[0]
    table = Table(title=f"{first['series']}: RMSE (share in the 80 % interval) by steps ahead", title_justify="left")
    for head in ("", *map(str, first["ahead"]), "all", "epochs", "seconds"):
        table.add_column(head, justify="right")
    for method in METHODS[1:]:
        table.add_row(method, *(f"{e:.4g}" for e in first["rmse"][method]))
    for one in found:
        cells = [f"{e:.4g} ({100 * c:.0f} %)" for e, c in zip(one["rmse"]["model"], one["coverage"], strict=True)]
        all_ = f"{100 * one['coverage_of_all']:.0f} %"
        table.add_row(f"{one['cell']}, seed {one['seed']}", *cells, all_, str(one["epochs"]), str(one["seconds"]))
    return table


if __name__ == "__main__":
    main()
