"""Fine-tuning of a TiRex on series: all weights, the last layer alone, or low-rank adapters."""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data.panels import Roles
from xlstm.models.tirex import series, tables
from xlstm.models.tirex.patches import PatchWindows
from xlstm.training import LowRank, Trained, optimizers, train

TOGETHER = ("*.mixer.*", "*.combination.*")  # parameters that the network does not use for single series
FROZEN = {"all": TOGETHER, "head": ("input.*", "blocks.*", "norm.*"), "adapters": (), "lora": ()}  # by what is trained


class Tuned(NamedTuple):
    """Fine-tuned parameters.

    Attributes
    ----------
    params : dict of str to array
        The parameters of the model; those of adapters are merged.
    trained : Trained
        How training went; `trained.params` are what was trained, of adapters their own parameters.
    """

    params: Params
    trained: Trained


def fine_tune(
    model: Any,
    params: Params,
    given: Any,
    weights: str,
    horizon: int | None,
    rank: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    stride: int | None,
    validation_fraction: float,
    seed: int,
    targets: Any,
    series_id: Any,
    options: dict[str, Any],
) -> Tuned:
    """Run `fine_tune` of a TiRex, which describes the arguments."""
    where = f"{type(model).__name__}.fine_tune"
    model.namespace(params, {})
    checks.choice(FROZEN)(where, "weights", weights)
    share = checks.rate(where, "validation_fraction", validation_fraction)
    if tables.is_one(where, "series", given, targets=targets, series_id=series_id):
        given = tables.Table.of(where, model, given, Roles(targets, series_id=series_id)).columns
    rows = [row[0] for row in series.read(where, given, 1).rows]
    cuts = [len(row) - int(share * len(row)) for row in rows]
    sizes: dict[str, Any] = {"horizon": horizon, "batch_size": batch_size}
    data = PatchWindows(model, [row[:cut] for row, cut in zip(rows, cuts, strict=True)], stride=stride, **sizes)
    later = PatchWindows(model, rows, stride=stride, since=cuts, **sizes) if share else None
    optimizer = optimizers.adamw(learning_rate, weight_decay=weight_decay)
    patterns = [one for one in FROZEN[weights] if fnmatch.filter(params, one)]
    if patterns:
        optimizer = optimizers.by_name(dict.fromkeys(patterns), optimizer)
    adapters = None
    if weights in ("adapters", "lora"):
        unused = {name for one in TOGETHER for name in fnmatch.filter(params, one)}
        matrices = [name for name in params if name.endswith((".W", ".Wh")) and name not in unused]
        adapters = LowRank(model, params, rank, names=matrices)
    learner, start = (model, params) if adapters is None else (adapters, adapters.init(seed))
    trained = train(learner, start, data, optimizer, epochs=epochs, validation=later, seed=seed, **options)
    return Tuned(trained.params if adapters is None else adapters.merged(trained.params), trained)
