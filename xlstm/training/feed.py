"""Batches on their way to a model: of any iterable, checked on the host, put on its device, with
axes in its order.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_like
from xlstm.arrays.cached import cached_property
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, Params, namespace
from xlstm.arrays.ranks.groups import Group
from xlstm.data.batches import (
    EXPECTED,
    Batch,
    Batches,
    is_input,
    mask_of_steps,
    time_first,
    within_lengths,
)
from xlstm.data.host import finite, numbers
from xlstm.data.shards import Shard
from xlstm.losses import mse
from xlstm.precision import Mixed
from xlstm.training.parallel import added

Loss = Callable[..., tuple[Array, Array]]
Metric = Callable[[Array, Array], Any]
ITERABLE = checks.accepted(
    lambda value: isinstance(value, Iterable) and not isinstance(value, str | Mapping), EXPECTED
)
MODEL = checks.having("forward", "backward", expected="a model or a layer")


class Inputs(NamedTuple):
    """A batch as the model takes it."""

    x: Array
    target: Array
    mask: Array | None
    fresh: bool  # start from the initial state
    options: dict[str, Any]  # those of the batch, and lengths where sequences differ in length
    weight: float  # number of targets that count, or the sum of their weights
    host: Batch
    total: float  # the weight of the whole batch, of which other ranks may have a part


def loss_of(where: str, model: Any, loss: Loss | None) -> Loss:
    """Return the loss to train a model with: `loss`, else the model's own, else the mean squared
    error.
    """
    chosen: Loss = checks.function(
        where, "loss", getattr(model, "loss", mse) if loss is None else loss
    )
    return chosen


def metrics_of(where: str, metrics: Any) -> Mapping[str, Metric]:
    """Return the metrics that are given, or a dict without any; TypeError unless they are functions
    by their names.
    """
    given = {} if metrics is None else metrics
    found: Mapping[str, Metric] = checks.instance(Mapping, "a dict of name to function")(
        where, "metrics", given
    )
    for name, metric in found.items():
        checks.function(where, f"metrics[{name!r}]", metric)
    return found


def batches_of(where: str, name: str, model: Any, data: Any) -> Batches:
    """Return data as they are, or an iterable of batches or pairs as data for a model; TypeError
    for all else.
    """
    if hasattr(data, "batches") and hasattr(data, "__len__") and not isinstance(data, type):
        return data  # type: ignore[no-any-return]
    return Iterated(ITERABLE(where, name, data), every_step=not getattr(model, "last", False))


@dataclass(frozen=True)
class Iterated:
    """The batches of an iterable, such as a list or a `DataLoader` of PyTorch, whose entries are
    pairs or a `Batch`.

    The arrays or tensors of a pair (x, target) have the sequences first, as in `Windows`: x is (B,
    T, D), or tokens (B, T). A pair begins from the initial state. With a generator of random
    numbers a list of independent batches is shuffled, and so are the examples of a `DataLoader`
    whose sampler draws them, which gets a generator for each epoch; all else keeps its order.

    Parameters
    ----------
    data : iterable
        An iterator can be gone through once.
    every_step : bool
        Targets of pairs have a time axis, (B, T, ...) instead of (B, ...).

    Raises
    ------
    TypeError
        The data are not iterable; or, once it is its turn, an entry is neither a pair nor a
        `Batch`.
    ValueError
        Once it is its turn: the shapes of a pair do not go together.
    """

    data: Iterable[Any]
    every_step: bool = True

    def __post_init__(self) -> None:
        checks.fields(self, data=ITERABLE, every_step=checks.flag)

    @property
    def once(self) -> bool:
        """Whether the data cannot begin anew."""
        return isinstance(self.data, Iterator)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, or the largest number there is where the data
        do not tell.
        """
        try:
            return len(self.data)  # type: ignore[arg-type]
        except TypeError:
            # a DataLoader has a method for its length, which says so if there is none
            return checks.COUNTED

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, in an order that `rng` decides where it can."""
        data: Any = self.data
        if isinstance(data, list | tuple):
            if rng is not None and all(not isinstance(one, Batch) or one.fresh for one in data):
                data = [data[k] for k in rng.permutation(len(data))]
        elif hasattr(getattr(data, "sampler", None), "generator"):
            drawn: Any = sys.modules["torch"].Generator()
            data.sampler.generator = drawn.manual_seed(
                0 if rng is None else int(rng.integers(2**63))
            )
        for number, one in enumerate(data, 1):
            yield one if isinstance(one, Batch) else self._batch(f"batch {number}", one)

    def _batch(self, where: str, pair: Any) -> Batch:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError(
                f"train: {where} is {checks.shown(pair)}, expected a pair (x, target) or an"
                " xlstm.data.Batch"
            )
        x, target = (
            numbers(f"train: {where}", name, one)
            for name, one in zip(("x", "target"), pair, strict=True)
        )
        if x.ndim == 2 and x.dtype.kind == "f":  # examples without time
            return Batch(x, target, None, True)
        axes = 2 if self.every_step else 1
        if not is_input(x, 3) or x.shape[:axes] != target.shape[:axes]:
            leading = "(B, T, ...)" if self.every_step else "(B, ...)"
            shapes = f"x of shape {x.shape} and target of shape {target.shape}"
            raise ValueError(
                f"train: {where} has {shapes}, expected (B, T, D), or tokens (B, T), and {leading}"
            )
        return Batch(time_first(x), time_first(target) if self.every_step else target, None, True)


@dataclass(frozen=True)
class Feed:
    """The way of batches into a model: onto its device, with time and sequences in its order.

    Attributes
    ----------
    model : object
    home : Backend
        The backend of the weights and of the targets.
    low : Backend
        The backend of x: the same, or in mixed precision one of a lower dtype.
    """

    model: Any
    home: Backend
    low: Backend

    @classmethod
    def of(cls, where: str, model: Any, params: Params, precision: Mixed | None = None) -> Feed:
        """Return the feed of a model, by default in the precision of its parameters."""
        MODEL(where, "model", model)
        namespace(where, checks.mapping(where, params, "params"))
        backend = backend_like(next(iter(params.values())))
        return cls(model, backend, backend if precision is None else precision.below(backend))

    def batches(
        self,
        data: Batches,
        where: str,
        each: str,
        rng: np.random.Generator | None = None,
        skip: int = 0,
    ) -> Iterator[Inputs]:
        """Yield one epoch without its first `skip` batches; errors call it `where`, and a batch
        `each` and its number.

        Raises
        ------
        ValueError
            There is no batch or none with a target that counts, or numbers are not finite or do not
            fit the dtype.
        """
        number = 0
        counted = float(skip)
        for number, batch in enumerate(data.batches(rng), 1):
            if number <= skip:
                continue
            inputs = self.inputs(batch, f"{where}{each} {number}")
            lengths = batch.lengths if batch.part is None else batch.part.lengths
            counted += inputs.total * (lengths is None or bool(np.any(lengths)))
            yield inputs
        if number == 0:
            raise ValueError(f"{where}: the data yield no batches")
        if counted == 0:
            raise ValueError(
                f"{where}: the data have no target that counts; masks leave out all, or lengths are"
                " all 0"
            )

    def check(self, where: str, batch: Batch, everything: bool = False) -> None:
        """Raise ValueError unless x and the targets that count are finite on their backends.

        Arrays on a device are left alone, since reading them would wait for it, and so are targets
        that a mask leaves out, unless `everything` is to be checked.
        """
        counts = (
            None if batch.lengths is None else within_lengths(batch.lengths, *batch.x.shape[:2])
        )
        if everything or isinstance(batch.x, np.ndarray):
            finite(where, "x", to_numpy(batch.x), self.low.dtype, counts)
        if everything or isinstance(batch.target, np.ndarray):
            counts = None if everything or batch.mask is None else to_numpy(batch.mask) != 0
            finite(where, "target", to_numpy(batch.target), self.home.dtype, counts)

    def forward(
        self, params: Params, inputs: Inputs, state: Any, train: bool, **masks: Any
    ) -> tuple[Array, Any, Any]:
        """Run the model: y, the final state, and what it keeps for `backward`."""
        if not self._goes_through_time:
            y, saved = self.model.forward(params, inputs.x)
            return y, None, saved
        start = None if inputs.fresh else state
        y, state, saved = self.model.forward(
            params, inputs.x, start, train=train, **inputs.options, **masks
        )
        return y, state, saved

    @cached_property
    def _goes_through_time(self) -> bool:
        """Whether the model takes a state, unlike `Linear`."""
        try:
            inspect.signature(self.model.forward).bind("params", "x", "state")
        except TypeError:
            return False
        return True

    def inputs(self, batch: Batch, where: str) -> Inputs:
        """Return a batch as the model takes it; raises TypeError if it is none, and ValueError as
        `check` does.
        """
        if not isinstance(batch, Batch):
            raise TypeError(
                f"{where}: the batch is {checks.shown(batch)}, expected an xlstm.data.Batch"
            )
        for name in ("x", "target", "mask", "lengths"):
            checks.unmasked(where, name, getattr(batch, name))
        batch = batch._replace(mask=self._mask(batch))
        self.check(where, batch)
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that do not count may overflow
            x = self.low.asarray(batch.x)
            target = self.home.asarray(batch.target)
        weight = math.prod(target.shape)
        mask = None
        if batch.mask is not None:
            weight = float(np.sum(to_numpy(batch.mask))) * math.prod(
                target.shape[batch.mask.ndim :]
            )
            mask = self.home.asarray(batch.mask)
        if getattr(self.model, "batch_first", False):
            x = self._swapped(x)
            if not getattr(self.model, "last", False):  # whose targets have no time axis
                target = self._swapped(target)
                mask = None if mask is None else self._swapped(mask)
        options = {
            **(batch.options or {}),
            **({} if batch.lengths is None else {"lengths": batch.lengths}),
        }
        total = float(weight) if batch.part is None else batch.part.total
        return Inputs(x, target, mask, batch.fresh, options, float(weight), batch, total)

    def _mask(self, batch: Batch) -> Any:
        """Return the mask (T, B, ...) without targets past the end of a sequence."""
        whole = batch.lengths is None and (batch.mask is None or batch.mask.ndim > 1)
        if whole or getattr(self.model, "last", False):
            return batch.mask
        return mask_of_steps(batch.mask, batch.lengths, *batch.x.shape[:2])

    def _swapped(self, array: Array) -> Array:
        """Return (T, B, ...) as (B, T, ...)."""
        return self.home.xp.permute_dims(array, (1, 0, *range(2, array.ndim)))


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
    """Return the mean loss over all of `data`, with the state carried as in training.

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
        `stopped() -> bool` says after a batch whether nobody needs the result any more, which is
        NaN then.
    group : Group, optional
        The ranks that share each batch; all of them return the same.
    metrics : dict of str to callable, optional
        As for `train`.

    Returns
    -------
    float, or (float, dict of str to float)
        The loss, and with `metrics` also these.

    Raises
    ------
    ValueError
        `data` yields no batch or none with a target that counts, or numbers in a batch are not
        finite or do not fit into the dtype.
    TypeError
        `metrics` is no dict of functions, or a metric returns no numbers.
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
    for ends, *sums in parts if group is None else added(group, parts):
        totals += sums
        if ends:
            return math.nan
    weight, value, count, *measured = totals.tolist()
    mean = value / weight
    if metrics is None:
        return mean
    return mean, {name: one / count for name, one in zip(measures, measured, strict=True)}


def _sums(
    feed: Feed,
    params: Params,
    data: Batches,
    loss: Loss,
    metrics: Mapping[str, Metric],
    stopped: Callable[[], bool],
) -> Iterator[tuple[float, ...]]:
    """Yield of each batch whether nobody needs the result, its weight, its loss times that, and
    `_measured`.
    """
    state = None
    for batch in feed.batches(data, "evaluate", ": batch"):
        value = 0.0
        measured = [0.0] * (1 + len(metrics))
        if batch.host.x.shape[1]:  # a rank may have no sequence
            with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the result
                y, state, _ = feed.forward(params, batch, state, train=False)
                value = float(loss(y, batch.target, batch.mask)[0])
            measured = _measured(metrics, y, batch) if metrics else measured
        yield stopped(), batch.weight, batch.weight * value if batch.weight else 0.0, *measured


def _measured(metrics: Mapping[str, Metric], y: Array, batch: Inputs) -> list[float]:
    """Return the number of targets that count, and the mean of each metric over them, times that
    number.
    """
    target = batch.target
    if batch.mask is not None:
        xp = namespace("evaluate", {"y": y})
        there = xp.astype(batch.mask, xp.bool)
        y = y[there]
        target = target[there]
    found = [float(math.prod(target.shape))]
    for name, metric in metrics.items():
        made = metric(y, target) if found[0] else 0.0
        # a loss also returns its gradient
        values = to_numpy(made[0] if isinstance(made, tuple) and made else made)
        if values.dtype.kind not in "biuf" or not values.size:
            raise TypeError(
                f"evaluate: metrics[{name!r}] returned {checks.shown(made)}, expected numbers"
            )
        found.append(found[0] * float(np.mean(values)))
    return found
