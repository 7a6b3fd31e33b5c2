"""Fine-tuning of a TiRex on series: all weights, the last layer alone, or low-rank adapters."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, NamedTuple

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.data.panels import Roles
from xlstm.models.tirex import rows, tables
from xlstm.models.tirex.patches import PatchWindows
from xlstm.models.tirex.rows import Item
from xlstm.training import LowRank, Trained, optimizers, train

MIXERS, DIRECTIONS = "*.mixer.*", "*.combination.*"  # parameters for rows that belong together, and for known ones
BODY = ("input.*", "blocks.*", "norm.*")  # all before the last layer
WEIGHTS = ("all", "head", "adapters", "lora")


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
    past: Any,
    future: Any,
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
    checks.choice(WEIGHTS)(where, "weights", weights)
    share = checks.rate(where, "validation_fraction", validation_fraction)
    items = _items(where, model, given, past, future, targets, series_id)
    cuts = [one.target.shape[1] - int(share * one.target.shape[1]) for one in items]
    sizes: dict[str, Any] = {"horizon": horizon, "stride": stride, "batch_size": batch_size}
    data = _windows(model, [one.until(cut) for one, cut in zip(items, cuts, strict=True)], **sizes)
    later = _windows(model, items, since=cuts, **sizes) if share else None
    unused = [*([] if data.grouped else [MIXERS]), *([] if data.known else [DIRECTIONS])]
    optimizer = optimizers.adamw(learning_rate, weight_decay=weight_decay)
    chosen = {"all": unused, "head": BODY}.get(weights, ())
    frozen = [one for one in chosen if fnmatch.filter(params, one)]
    if frozen:
        optimizer = optimizers.by_name(dict.fromkeys(frozen), optimizer)
    adapters = None
    if weights in ("adapters", "lora"):
        still = {name for one in unused for name in fnmatch.filter(params, one)}
        matrices = [name for name in params if name.endswith((".W", ".Wh")) and name not in still]
        adapters = LowRank(model, params, rank, names=matrices)
    learner, start = (model, params) if adapters is None else (adapters, adapters.init(seed))
    trained = train(learner, start, data, optimizer, epochs=epochs, validation=later, seed=seed, **options)
    return Tuned(trained.params if adapters is None else adapters.merged(trained.params), trained)


def _items(where: str, model: Any, given: Any, past: Any, future: Any, targets: Any, series_id: Any) -> list[Item]:
    """Return series, of a table or of arrays, with their covariates."""
    beside = {"series": given, "past": past, "future": future}
    if tables.is_one(where, "series", given, targets=targets, series_id=series_id):
        found = tables.Table.of(where, model, given, Roles(targets, past, future, None, series_id)).found
        beside = dict.fromkeys(beside) | tables.arguments(model, [(track, len(track.values)) for track in found], 0)
    return rows.read(where, model, *beside.values())[1]


def _windows(model: Any, items: Sequence[Item], **options: Any) -> PatchWindows:
    """Return windows over items."""
    if not model.COVARIATES:
        return PatchWindows(model, [one.target[0] for one in items], **options)
    past, future = ([one[k] if len(one[k]) else None for one in items] for k in (1, 2))
    return PatchWindows(model, [one.target for one in items], past=past, future=future, **options)
