"""The mean loss of a model over data, and metrics of its outputs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import Group, odd_ranks
from xlstm.arrays.namespace import Array, Params, namespace
from xlstm.data.batches import Batches
from xlstm.data.shards import Shard
from xlstm.training.agreement import told
from xlstm.training.feed import Feed, Inputs, Loss, batches_of, loss_of

Metric = Callable[[Array, Array], Any]
METRICS = checks.instance(Mapping, "a dict of name to function")


def metrics_of(where: str, metrics: Any) -> Mapping[str, Metric]:
    """Return the given metrics, or an empty dict; raise TypeError unless they are functions of
    `(y, target)` by name.
    """
    functions: Mapping[str, Metric] = METRICS(where, "metrics", {} if metrics is None else metrics)
    for name, metric in functions.items():
        checks.function(where, f"metrics[{name!r}]", metric)
        with contextlib.suppress(ValueError):  # some functions in C do not show their signature
            signature = inspect.signature(metric)
            try:
                signature.bind("y", "target")
            except TypeError:
                raise TypeError(
                    f"{where}: metrics[{name!r}] takes {str(signature)[: checks.SHOWN]}, expected"
                    " (y, target)"
                ) from None
    return functions


def evaluate(
    model: Any,
    params: Params,
    data: Batches | Iterable[Any],
    loss: Loss | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    group: Group | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Any:
    """Return the mean loss over all of `data`, and metrics if you give any.

    The state is carried from batch to batch as in training.

    Parameters
    ----------
    model : object
        As for `train`.
    params : dict of str to array
    data : Batches, or an iterable of batches or pairs
        As for `train`.
    loss : callable, optional
        As for `train`.
    stopped : callable, optional
        `stopped() -> bool` is called after each batch. If it returns True, evaluation ends and the
        result is NaN.
    group : Group, optional
        The ranks that share each batch. All ranks return the same result.
    metrics : dict of str to callable, optional
        As for `train`.

    Returns
    -------
    float, or (float, dict of str to float)
        The mean loss; with `metrics` also a dict of their values.

    Raises
    ------
    ValueError
        `data` yields no batch, or no target counts, or a batch has numbers that are not finite or
        do not fit into the dtype.
    TypeError
        `metrics` is not a dict of functions, or a metric does not return numbers.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm import training
    >>> from xlstm.data import Windows
    >>> lstm = xlstm.LSTM(1, 4)
    >>> data = Windows(np.ones((8, 5, 1)), np.ones((8, 5, 4)), every_step=True)
    >>> errors = {"error": lambda y, target: abs(y - target)}
    >>> loss, metrics = training.evaluate(lstm, lstm.init(backend="numpy"), data, metrics=errors)
    >>> loss > 0, list(metrics)
    (True, ['error'])
    """
    measures = metrics_of("evaluate", metrics)
    checks.function("evaluate", "stopped", stopped)
    feed = Feed.of("evaluate", model, params)
    data = batches_of("evaluate", "data", model, data)
    loss = loss_of("evaluate", model, loss)
    if group is not None and not isinstance(data, Shard):
        data = Shard(data, group)
    totals = np.zeros(3 + len(measures))
    parts = _sums(feed, params, data, loss, measures, stopped)
    for _, ends, *sums in parts if group is None else _added(group, parts):
        totals += sums
        if ends:
            return math.nan
    weight, value, count, *measured = totals.tolist()
    mean = value / weight
    if metrics is None:
        return mean
    return mean, {name: value / count for name, value in zip(measures, measured, strict=True)}


def _added(group: Group, parts: Iterator[tuple[float, ...]]) -> Iterator[tuple[float, ...]]:
    """Yield the sums over all ranks of the numbers that each rank yields; all ranks raise an error
    of one.
    """
    for number in itertools.count(1):
        error = own = None
        try:
            own = next(parts, None)
        except Exception as problem:
            error = problem
        every = told(group, "evaluation", error, own)
        if every.count(None) == group.size:
            return
        if None in every:
            rank = every.index(None)
            raise ValueError(
                f"evaluate: the data of rank {rank} have ended, those of other ranks have not"
            )
        checksums, *sums = zip(*every, strict=True)
        _, odd = odd_ranks(checksums)
        if odd:
            raise ValueError(
                f"evaluate: batch {number} of rank {odd[0]} is another than that of other ranks;"
                " expected the whole data on all ranks, in the same order"
            )
        yield 0, *map(sum, sums)


def _sums(
    feed: Feed,
    params: Params,
    data: Batches,
    loss: Loss,
    metrics: Mapping[str, Metric],
    stopped: Callable[[], bool],
) -> Iterator[tuple[float, ...]]:
    """Yield for each batch its checksum, whether to stop, the weight, the loss times the weight, and
    the numbers of `_measured`.
    """
    state = None
    for batch in feed.batches(data, "evaluate", ": batch"):
        value = 0.0
        measured = [0.0] * (1 + len(metrics))
        if 0 not in batch.host.x.shape:  # a rank may have no sequence
            with np.errstate(over="ignore", invalid="ignore"):  # the result shows it
                y, state, _ = feed.forward(params, batch, state, train=False)
                value = float(loss(y, batch.target, batch.mask)[0])
            measured = _measured(metrics, y, batch) if metrics else measured
        checksum = 0 if batch.host.part is None else batch.host.part.checksum
        total = batch.weight * value if batch.weight else 0.0
        yield checksum, stopped(), batch.weight, total, *measured


def _measured(metrics: Mapping[str, Metric], y: Array, batch: Inputs) -> list[float]:
    """Return the number of targets that count, and that number times the mean of each metric."""
    target = batch.target
    if batch.mask is not None:
        xp = namespace("evaluate", {"y": y})
        counts = xp.astype(batch.mask, xp.bool)
        y = y[counts]
        target = target[counts]
    count = float(math.prod(target.shape))
    sums = [count]
    for name, metric in metrics.items():
        result = metric(y, target) if count else 0.0
        # a loss also returns its gradient
        values = to_numpy(result[0] if isinstance(result, tuple) and result else result)
        if values.dtype.kind not in "biuf" or not values.size:
            raise TypeError(
                f"evaluate: metrics[{name!r}] returned {checks.shown(result)}, expected numbers"
            )
        sums.append(count * float(np.mean(values)))
    return sums
