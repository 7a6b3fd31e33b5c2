"""The way of batches to a model: from any iterable, through checks on the host, to the device."""

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
from xlstm.arrays.groups import Group, Part
from xlstm.arrays.namespace import Array, Params, namespace
from xlstm.data.batches import (
    EXPECTED,
    Batch,
    Batches,
    after,
    is_input,
    mask_of_steps,
    time_first,
    timeless,
    within_lengths,
)
from xlstm.data.host import finite, numbers
from xlstm.data.shards import cut
from xlstm.layers.embedding import within
from xlstm.losses import mse
from xlstm.precision import Mixed

Loss = Callable[..., tuple[Array, Array]]
ITERABLE = checks.accepted(
    lambda value: isinstance(value, Iterable) and not isinstance(value, str | Mapping), EXPECTED
)
MODEL = checks.having("forward", "backward", expected="a model or a layer")


class Inputs(NamedTuple):
    """A batch in the form that the model takes."""

    x: Array
    target: Array
    mask: Array | None
    fresh: bool  # start from the initial state
    options: dict[str, Any]  # of the batch, with lengths if sequences differ in length
    weight: float  # number of targets that count, or the sum of their weights
    host: Batch
    total: float  # the weight of the whole batch, of which other ranks may have a part


def loss_of(where: str, model: Any, loss: Loss | None) -> Loss:
    """Return the loss of a training: `loss`, or the model's own, or the mean squared error."""
    function: Loss = checks.function(
        where, "loss", getattr(model, "loss", mse) if loss is None else loss
    )
    return function


def batches_of(where: str, name: str, model: Any, data: Any) -> Batches:
    """Return data as they are, or wrap an iterable of batches or pairs; raise TypeError for
    anything else.
    """
    if hasattr(data, "batches") and hasattr(data, "__len__") and not isinstance(data, type):
        return data  # type: ignore[no-any-return]
    return Iterated(ITERABLE(where, name, data), every_step=not getattr(model, "last", False))


@dataclass(frozen=True)
class Iterated:
    """The batches of an iterable of pairs or `Batch`, such as a list or a `DataLoader` of PyTorch.

    The arrays or tensors of a pair (x, target) have the sequences first, as in `Windows`: x is (B,
    T, D), or tokens (B, T). A pair begins from the initial state.

    With a generator of random numbers, a list of independent batches is shuffled. If the sampler of
    a `DataLoader` draws its examples, the sampler gets a new generator for each epoch. Everything
    else keeps its order.

    With a group, a `DataLoader` with a `DistributedSampler` yields the parts of its rank. Each
    epoch sets the sampler's epoch to a number that all ranks draw.

    Parameters
    ----------
    data : iterable
        The batches. An iterator can be read only once.
    every_step : bool
        Whether the targets of pairs have a time axis, (B, T, ...) instead of (B, ...).

    Raises
    ------
    TypeError
        When an entry is read: it is neither a pair nor a `Batch`.
    ValueError
        When an entry is read: the shapes of a pair do not match.
    """

    data: Iterable[Any]
    every_step: bool

    @property
    def once(self) -> bool:
        """Whether the data can be read only once."""
        return isinstance(self.data, Iterator)

    @property
    def identity(self) -> str | None:
        """A text that identifies the data if their first batch cannot: ranks have different ones,
        or the data can be read only once.
        """
        if self.sampler is not None:
            return f"{len(self.sampler.dataset)} examples"
        return "unknown" if self.once else None

    @property
    def sampler(self) -> Any:
        """The `DistributedSampler` of a `DataLoader` of PyTorch, or None."""
        batches = getattr(self.data, "batch_sampler", None)
        sampler = getattr(batches, "sampler", getattr(self.data, "sampler", None))
        torch: Any = sys.modules.get("torch")
        of_torch = torch is not None and isinstance(sampler, torch.utils.data.DistributedSampler)
        return sampler if of_torch else None

    def __len__(self) -> int:
        """Return the number of batches in an epoch, or the largest integer if it is unknown."""
        try:
            return len(self.data)  # type: ignore[arg-type]
        except TypeError:
            # A DataLoader always has this method; it raises if the length is unknown.
            return checks.COUNTED

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch; `rng` decides the order if the data can be shuffled."""
        data: Any = self.data
        if isinstance(data, list | tuple):
            carries = any(isinstance(entry, Batch) and not entry.fresh for entry in data)
            if rng is not None and not carries:
                data = [data[k] for k in rng.permutation(len(data))]
        elif hasattr(getattr(data, "sampler", None), "generator"):
            torch: Any = sys.modules["torch"]
            seed = 0 if rng is None else int(rng.integers(2**63))
            data.sampler.generator = torch.Generator().manual_seed(seed)
        for number, entry in enumerate(data, 1):
            if not isinstance(entry, Batch):
                entry = _batch_of(f"train: batch {number}", entry, self.every_step)
            yield entry

    def parts(
        self, group: Group, rng: np.random.Generator | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """Yield the parts of one epoch's batches that a rank has, without the first `skip` batches.

        Raises
        ------
        ValueError
            The sampler of a `DataLoader` belongs to another rank. Or its batches have masks or
            lengths: a rank then does not know how many targets count on the others.
        """
        sampler = self.sampler
        if sampler is not None and (sampler.rank, sampler.num_replicas) != (group.rank, group.size):
            raise ValueError(
                f"Shard: the DistributedSampler is that of rank {sampler.rank} of"
                f" num_replicas={sampler.num_replicas}, expected rank {group.rank} of"
                f" {group.size}, as in the group"
            )
        if sampler is not None:
            sampler.set_epoch(0 if rng is None else int(rng.integers(2**31)))
            order = hash((sampler.epoch, sampler.seed, sampler.shuffle, sampler.drop_last))
        for number, batch in enumerate(after(self, rng, skip), skip):
            if sampler is None:
                yield cut(batch, group, self.every_step, number)
                continue
            for name in ("mask", "lengths"):
                if getattr(batch, name) is not None:
                    raise ValueError(
                        f"Shard: batch {number + 1} of a DistributedSampler has {name}, expected"
                        " none, or a DataLoader of whole batches without that sampler"
                    )
            count = batch.x.shape[0 if timeless(batch.x) else 1]
            own = slice(group.rank * count, (group.rank + 1) * count)
            total = float(math.prod(batch.target.shape)) * group.size
            yield batch._replace(part=Part(total, count * group.size, own, checksum=order))


def _batch_of(where: str, pair: Any, every_step: bool) -> Batch:
    """Return the `Batch` of a pair (x, target) that has the sequences first."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError(
            f"{where} is {checks.shown(pair)}, expected a pair (x, target) or an xlstm.data.Batch"
        )
    x = numbers(where, "x", pair[0])
    target = numbers(where, "target", pair[1])
    if timeless(x):
        return Batch(x, target, None, True)
    axes = 2 if every_step else 1
    if not is_input(x, 3) or x.shape[:axes] != target.shape[:axes]:
        leading = "(B, T, ...)" if every_step else "(B, ...)"
        raise ValueError(
            f"{where} has x of shape {x.shape} and target of shape {target.shape}, expected"
            f" (B, T, D), or tokens (B, T), and {leading}"
        )
    return Batch(time_first(x), time_first(target) if every_step else target, None, True)


@dataclass(frozen=True)
class Feed:
    """A feed that puts batches on the model's device, with time and sequences in its order.

    Attributes
    ----------
    model : object
    home : Backend
        The backend of the weights and the targets.
    low : Backend
        The backend of x: `home`, or in mixed precision one with a lower dtype.
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
        """Yield one epoch without its first `skip` batches.

        Errors name the epoch `where`, and a batch `each` with its number.

        Raises
        ------
        ValueError
            There is no batch, or no target counts, or numbers are not finite or do not fit the
            dtype.
        """
        number = skip
        has_targets = skip > 0
        for number, batch in enumerate(after(data, rng, skip), skip + 1):
            inputs = self.inputs(batch, f"{where}{each} {number}")
            lengths = batch.lengths if batch.part is None else batch.part.lengths
            has_targets |= inputs.total > 0 and (lengths is None or bool(np.any(lengths)))
            yield inputs
        if number == 0:
            raise ValueError(f"{where}: the data yield no batches")
        if not has_targets:
            raise ValueError(
                f"{where}: the data have no target that counts; masks leave out all, or lengths are"
                " all 0"
            )

    def check(self, where: str, batch: Batch, everything: bool = False) -> None:
        """Raise ValueError unless x and the targets that count are finite on their backends, and
        symbols are in range.

        Arrays on a device are checked only with `everything`, since reading them waits for the
        device. Targets that a mask leaves out are not checked.
        """
        steps = None
        if batch.lengths is not None:
            steps = within_lengths(batch.lengths, *batch.x.shape[:2])
        counted = None if batch.mask is None else to_numpy(batch.mask) != 0
        if everything or isinstance(batch.x, np.ndarray):
            x = to_numpy(batch.x)
            finite(where, "x", x, self.low.dtype, steps)
            if (symbols := getattr(self.model, "symbols", None)) is not None:
                within(where, "x", x if steps is None else x * steps, symbols)
        if everything or isinstance(batch.target, np.ndarray):
            finite(where, "target", to_numpy(batch.target), self.home.dtype, counted)

    def forward(
        self, params: Params, inputs: Inputs, state: Any, train: bool, **masks: Any
    ) -> tuple[Array, Any, Any]:
        """Run the model; return y, the final state, and the values saved for `backward`."""
        if not self._goes_through_time:
            y, saved = self.model.forward(params, inputs.x)
            return y, None, saved
        start = None if inputs.fresh else state
        result: tuple[Array, Any, Any] = self.model.forward(
            params, inputs.x, start, train=train, **inputs.options, **masks
        )
        return result

    @cached_property
    def _goes_through_time(self) -> bool:
        """Whether the model takes a state, unlike `Linear`."""
        try:
            inspect.signature(self.model.forward).bind("params", "x", "state")
        except TypeError:
            return False
        return True

    def inputs(self, batch: Batch, where: str) -> Inputs:
        """Return a batch in the form that the model takes.

        It raises TypeError if `batch` is not a `Batch`, and ValueError as `check` does.
        """
        if not isinstance(batch, Batch):
            raise TypeError(
                f"{where}: the batch is {checks.shown(batch)}, expected an xlstm.data.Batch"
            )
        for name in ("x", "target", "mask", "lengths"):
            values = getattr(batch, name)
            if values is not None and type(values) is not np.ndarray:  # which has no mask
                checks.unmasked(where, name, values)
        # whether targets have a time axis
        timed = not getattr(self.model, "last", False) and not timeless(batch.x)
        mask = batch.mask
        if timed and (batch.lengths is not None or (mask is not None and mask.ndim < 2)):
            # The mask leaves out targets beyond the end of a sequence.
            mask = mask_of_steps(mask, batch.lengths, *batch.x.shape[:2])
            batch = batch._replace(mask=mask)
        self.check(where, batch)
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that do not count may overflow
            x = self.low.asarray(batch.x)
            target = self.home.asarray(batch.target)
        weight = float(math.prod(target.shape))
        if mask is not None:
            weight = float(np.sum(to_numpy(mask))) * math.prod(target.shape[mask.ndim :])
            mask = self.home.asarray(mask)
        options = dict(batch.options or {})
        if getattr(self.model, "batch_first", False):
            x = self._swapped(x)
            if options.get("resets") is not None:
                options["resets"] = to_numpy(options["resets"]).T
            if timed:
                target = self._swapped(target)
                mask = None if mask is None else self._swapped(mask)
        if batch.lengths is not None:
            options["lengths"] = batch.lengths
        total = weight if batch.part is None else batch.part.total
        return Inputs(x, target, mask, batch.fresh, options, weight, batch, total)

    def _swapped(self, array: Array) -> Array:
        """Return (T, B, ...) as (B, T, ...)."""
        return self.home.xp.permute_dims(array, (1, 0, *range(2, array.ndim)))
