"""Training steps on several ranks: ranks sum loss and gradients, and all continue from the same
sum.

Each rank has its own columns of a batch, and so a share of the targets. It writes its loss and its
gradients, times that share, into a flat buffer, which begins with a short head. The sum of all
buffers holds the loss and the gradients of the whole batch. It has the same bits on every rank, so
all ranks take the same step. Between machines, ranks sum the buffer bucket by bucket: they sum the
last layers' buckets while the backward pass still computes the first layers' gradients.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xlstm.arrays import foreach
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.fuse import fuse
from xlstm.arrays.groups import Alone, Group, Part, collected
from xlstm.arrays.namespace import HALVES, Array, Namespace, Params
from xlstm.training.agreement import same, together, told
from xlstm.training.buffer import ROOM, Bucket, Layout, zeros
from xlstm.training.callbacks import Callback, Clip, has
from xlstm.training.halved import Halved
from xlstm.training.optimizers import ByRules, Optimizer, OptimState, Slots, norm_of
from xlstm.training.state import Head, LossAndGradients

Update = Callable[..., tuple[Params, OptimState]]
# number of parameters above which ranks share the optimiser; below it, its time does not matter
LEAST = 1 << 20
NOWHERE = (slice(0), slice(0))
# Bytes of a bucket that is summed while other gradients are still being computed. More ranks send
# more messages for each bucket, so buckets are larger from 2 * FEW ranks on.
BUCKET = 1 << 24
FEW = 64
# The bits of whole numbers that a dtype sums exactly, if fewer than 23.
BITS = {"float16": 10, "bfloat16": 7}
# The sum of the shares of all ranks may differ from 1 by this much, because of rounding.
SHARES = 0.01


class AllReduce:
    """A rank's side of the sums over all ranks, with the numbers that the last sum agreed on.

    Parameters
    ----------
    group : Group
    home : Backend
        The backend of the parameters.
    params : dict of str to array
        The parameters that are not frozen.
    halved : bool
        Whether ranks exchange gradients as bfloat16.

    Attributes
    ----------
    error : Exception or None
        An error of this rank, which makes the next sum fail on all ranks; or an error that all
        ranks have raised together.
    where : str
        The name of the step.
    ended : bool
        Whether the data of this rank have ended, so that it has no batch for the step.
    signal, stop : bool
        Whether this rank reports a signal, or a request to stop, in the next sum.
    agreed : Head
        The head of the last sum that the host has looked at.
    noted : dict of str to object
        The values that must be equal on all ranks in this step, by the names that errors give them.
    overlaps : bool
        Whether buckets are summed while other gradients are still being computed. This saves time
        between machines, where a rank would otherwise wait for sums.
    """

    sums_parts = False  # whether a rank gets only the sums of its part of the gradients

    def __init__(self, group: Group, home: Backend, params: Params, halved: bool = False) -> None:
        if home.name not in ("numpy", "cupy"):
            raise BackendError(
                f"TrainStep: group is given, which needs arrays of NumPy or CuPy, the backend is {home}"
            )
        self.group = group
        self.home = home
        self.error: Exception | None = None
        self.signal = self.stop = False
        self.overlaps = group.machines > 1
        itemsize = zeros(home, 1).itemsize
        shapes = {name: p.shape for name, p in params.items()}
        in_buckets = self.overlaps or halved  # halves are made of what the cache holds
        most = bucket_bytes(group.size) // itemsize if in_buckets else None
        self.layout = Layout(shapes, group.size, most)
        self.buffer: Array = zeros(home, self.layout.size)
        self.halved = Halved(group, home, self.layout) if halved else None
        self.head: Array = self.buffer[:ROOM]
        if self.sums_parts or halved:  # it is summed by itself, and need not have their dtype
            self.head = zeros(home, ROOM, "float64")
        self.grads = self.layout.named(self.buffer)
        self.waits: list[Callable[[], None]] = []  # one for each bucket whose sum has begun
        self.agreed = Head(*[0.0] * len(Head._fields))
        self.noted: dict[str, Any] = {}
        self.checksum = 0  # of everything noted so far
        self.where = ""
        self.ended = False

    def reduce(
        self, own: LossAndGradients, head: Head, local: bool, share: Any = 1.0
    ) -> LossAndGradients:
        """Return the loss, the gradients and the norm of the whole batch.

        Parameters
        ----------
        own : LossAndGradients
            The loss and gradients of the rank's part.
        head : Head
            The rank's head; only its last numbers, from `share` on, are used.
        local : bool
            Sum the head alone. The result then has the gradients of this rank's part; the square of
            its norm is the sum of the squares of all parts.
        share : float or 0-d array
            The factor of this rank's gradients.
        """
        if self.error is not None:
            own = own._replace(grads={})
            head = self._refusal()
        else:
            if not isinstance(head.share, float):
                loss = fuse(self.home.xp, _shared, own.loss, own.loss, head.share)
            else:  # the mean may be NaN if no target counts
                loss = own.loss * head.share if head.share else 0.0
            squares = (own.norm * head.share) ** 2 if local else 0.0
            head = head._replace(loss=loss, squares=squares)
        if not local:
            grads, norm = self._summed(own.grads, share, head)
            return own._replace(loss=self.head[0], grads=grads, norm=norm)
        self._sum_head(head)
        xp = self.home.xp
        grads = own.grads or {name: xp.zeros_like(place) for name, place in self.grads.items()}
        return own._replace(loss=self.head[0], grads=grads, norm=xp.sqrt(self.head[1]))

    def mean(self, sums: Params, total: Any) -> tuple[Params, Array]:
        """Return the sums of gradients over all ranks, divided by the total number of targets, and
        their norm.
        """
        return self._summed(sums, 1 / total, None)

    def early(
        self, share: Any, used: Params, prepared: Callable[[Params], Params]
    ) -> Callable[[Params, Params], None]:
        """Return a function for `announced` that begins the sum of a bucket as soon as its
        gradients are ready.

        All ranks sum buckets in the same order, from the last parameters to the first. The first
        bucket waits for `reduce`.

        Parameters
        ----------
        share : float or 0-d array
            As for `reduce`.
        used : dict of str to array
            The weights that the model runs with.
        prepared : callable
            A function that turns gradients into the gradients to sum, for example scaled ones.
        """
        names = {id(used[name]): name for name in self.grads}
        arrived = Params()

        def announce(p: Params, grads: Params) -> None:
            for name, g in grads.items():
                if (full := names.get(id(p.get(name)))) is not None:
                    arrived[full] = g
            buckets = self.layout.buckets
            while len(self.waits) < len(buckets) - 1:
                bucket = buckets[-1 - len(self.waits)]
                if not all(name in arrived for name in bucket.names):
                    return
                own = prepared({name: arrived.pop(name) for name in bucket.names})
                self._begin(bucket, own, share)

        return announce

    def end_sums(self) -> None:
        """Wait for sums that a step began before it was interrupted or could not be captured."""
        while self.waits:
            with contextlib.suppress(Exception):
                self.waits.pop()()

    def init(self, optimizer: Optimizer, params: Params) -> OptimState:
        """Return this rank's part of an optimiser's state before its first update."""
        return optimizer.init(params)

    def updated(
        self, update: Update, params: Params, grads: Params, moments: OptimState, *how: Any
    ) -> tuple[Params, OptimState]:
        """Return the parameters and the state of the optimiser after an update."""
        return update(params, grads, moments, *how)

    def part_of(self, name: str, moment: Array) -> Array:
        """Return the part of a moment that this rank keeps, a view of it."""
        return moment

    def whole_of(self, moments: OptimState) -> OptimState:
        """Return the moments of all ranks on rank 0, and on other ranks their own; the group's
        `collect` gathers them.
        """
        return moments

    def slots_like(self, moments: OptimState, params: Params) -> Slots:
        """Return arrays with the shapes and dtypes of this rank's parts of all moments."""
        return moments.slots

    def note(self, part: Part, rates: tuple[float, ...]) -> None:
        """Note the values that must be equal on all ranks in a step: its batch and its learning
        rates.
        """
        self.noted = {
            "number of sequences": part.B,
            "number of targets": part.total,
            # with that of earlier steps, whose difference `check` may have missed
            "checksum of order and data": hash((self.checksum, part.checksum)),
            "learning rate": rates,
        }
        # The hash of numbers is the same in all processes.
        self.checksum = hash((self.checksum, *self.noted.values()))

    @property
    def check(self) -> float:
        """This rank's number for `Head.check`, small enough for exact sums."""
        most = 2 ** BITS.get(self.home.dtype, 23) // self.group.size
        number = self.checksum % max(1, most)
        return float(number * (self.group.size - 1) if self.group.rank == 0 else -number)

    def fail(self, local: bool, then_all: bool) -> None:
        """Take part in the sum, or both sums, of a step that this rank cannot take.

        Residuals stay as they are, since at the end of an epoch no rank takes the step.
        """
        refusal = self._refusal()
        before = [residual.copy() for residual in self.residuals]
        if local:
            self._sum_head(refusal)
        if then_all or not local:
            self._summed({}, 0.0, None if local else refusal)
        for residual, old in zip(self.residuals, before, strict=True):
            residual[...] = old

    def told(self, place: str, what: Any = None) -> list[Any]:
        """Return the values that all ranks send at a place; if one has an error, all ranks raise
        it.
        """
        with together(self):
            return told(self.group, place, self.error, what)

    def look(self) -> None:
        """Wait for the last sum and read what ranks agreed on; if one has an error, all ranks raise
        it.
        """
        self.agreed = agreed = Head(*to_numpy(self.head)[: len(Head._fields)].tolist())
        if agreed.status not in (0, self.group.size):
            if self.error is None and self.ended:
                self.error = ValueError(
                    f"{self.where}: its data have ended, those of other ranks have not"
                )
            self.told("a step")
        elif agreed.status == 0 and (
            agreed.check or (agreed.share and abs(agreed.share - 1) > SHARES)
        ):
            with together(self):
                same(self.group, self.where, self.noted)
                raise ValueError(
                    f"{self.where}: the shares of ranks in its targets sum to {agreed.share:g},"
                    " expected 1; do all ranks have the same data, in the same order?"
                )

    def same_masks(self, masks: np.random.Generator, part: Part) -> None:
        """Give the last rank's generator to ranks that drew no masks, having no sequence in a
        batch.
        """
        if self.group.size > part.B:
            masks.bit_generator.state = self.group.tell(masks.bit_generator.state)[-1]

    @property
    def residuals(self) -> list[Array]:
        """The residuals of this rank's bfloat16 gradients, if it has any."""
        return [] if self.halved is None else self.halved.residuals

    def forget_residuals(self) -> None:
        """Drop the residuals, which a step that does not count has changed."""
        for residual in self.residuals:
            residual[...] = 0.0

    def _refusal(self) -> Head:
        """Return the head of a rank that cannot take a step."""
        status = 1.0 + self.group.size * (self.error is not None)
        return Head(math.nan, 0.0, status, 0.0, 0.0, 0.0, 0.0)

    def _put_head(self, head: Head) -> None:
        for k, number in enumerate(head):
            self.head[k] = number

    def _sum_head(self, head: Head) -> None:
        self._put_head(head)
        self.group.sum(self.head)

    def _summed(self, grads: Params, share: Any, head: Head | None) -> tuple[Params, Array]:
        """Sum the buckets whose sums have not begun, and a head; return the gradients and their
        norm.
        """
        for bucket in self.layout.buckets[len(self.layout.buckets) - len(self.waits) - 1 :: -1]:
            self._begin(bucket, grads, share, head)
        while self.waits:
            self.waits.pop()()
        return self._result(head)

    def _begin(self, bucket: Bucket, grads: Params, share: Any, head: Head | None = None) -> None:
        """Fill a bucket with a share of the gradients, or with zeros if there are none, and begin
        its sum.

        The head, if there is one, is summed with the first bucket.
        """
        if not grads:
            self.buffer[bucket.place] = 0.0
        else:
            columns = [[arrays[name] for name in bucket.names] for arrays in (grads, self.grads)]
            foreach.apply(self.home.xp, _shared, columns, (share,), (1,))
        if self.halved is not None:
            self.halved.send(self._go, self.buffer, bucket)
        else:
            self._send(bucket, head)

    def _send(self, bucket: Bucket, head: Head | None) -> None:
        """Begin the sum of a bucket."""
        start = bucket.place.start
        if head is not None and start == ROOM:
            self._put_head(head)
            start = 0
        self._go(self.group.sum, self.buffer[start : bucket.place.stop])

    def _go(self, function: Callable[..., None], *arrays: Array) -> None:
        """Run an operation of all ranks, in the background if that saves time, else at once."""
        later = self.group.later if self.overlaps else Alone().later
        self.waits.append(later(function, *arrays))

    def _result(self, head: Head | None) -> tuple[Params, Array]:
        """Return the gradients and their norm once all buckets have arrived."""
        if self.halved is not None:
            for bucket in self.layout.buckets:
                self.halved.share_sums(self.halved.sum_up(bucket), self.buffer, bucket)
            if head is not None:
                self._sum_head(head)
        return self.grads, norm_of(self.home.xp, self.grads)


class Sharded(AllReduce):
    """An `AllReduce` in which each rank updates a part of the weights and keeps only that part's
    moments (ZeRO-1).

    It follows Rajbhandari et al. 2020. The buckets of gradients are cut into equal parts, and each
    rank gets the sum of one part. Then all ranks gather the new weights. This sends as many bytes
    as one sum of the whole, and needs only a rank's share of the optimiser's time and memory. The
    rules work element by element, so they can update a part of an array.
    """

    sums_parts = True

    def __init__(self, group: Group, home: Backend, params: Params, halved: bool = False) -> None:
        super().__init__(group, home, params, halved)
        # This rank's part of the gradients, and then of the new weights.
        self.part: Array = zeros(home, self.layout.each)
        # The parameters that this rank has a part of: where it lies in the parameter, and in the
        # rank's part.
        self.places = self.layout.parts(group.rank)
        self.names: dict[str, list[str]] = {}  # the parameters that have a moment, by slot

    def init(self, optimizer: Optimizer, params: Params) -> OptimState:
        assert isinstance(optimizer, ByRules)
        by_slot = optimizer.by_slot(params)
        self.names = {slot: [*arrays] for slot, arrays in by_slot.items()}
        slots: Slots = {}
        for slot, arrays in by_slot.items():
            if parts := self._cut(arrays):
                slots[slot] = {name: self.home.xp.zeros_like(a) for name, a in parts.items()}
        return OptimState(0, slots)

    def updated(
        self, update: Update, params: Params, grads: Params, moments: OptimState, *how: Any
    ) -> tuple[Params, OptimState]:
        new, after = update(self._cut(params), grads, moments, *how)
        for name, a in new.items():
            self.part[self.places[name][1]] = a
        _, _, in_place, _ = how
        whole = self.buffer if in_place else self.home.xp.empty_like(self.buffer)
        for bucket in self.layout.buckets:
            self.group.gather_parts(self.part[bucket.part], whole[bucket.place])
        arrays = self.layout.named(whole)
        if not in_place:
            return params | arrays, after
        for name, a in arrays.items():
            params[name][...] = a
        return params, after

    def part_of(self, name: str, moment: Array) -> Array:
        if moment.shape != self.layout.shapes.get(name):
            return moment  # it comes from a damaged file
        there, _ = self.places.get(name, NOWHERE)
        return moment.reshape(-1)[there]

    def slots_like(self, moments: OptimState, params: Params) -> Slots:
        return {
            slot: {name: self.part_of(name, params[name]) for name in names}
            for slot, names in self.names.items()
        }

    def whole_of(self, moments: OptimState) -> OptimState:
        layout = self.layout
        whole: Slots = {}
        part = np.empty(layout.each, self.buffer.dtype)
        for slot, names in self.names.items():
            for name, a in moments.slots.get(slot, {}).items():
                part[self.places[name][1]] = to_numpy(a)
            of_all = collected(self.group, part)
            if of_all is not None:
                flat = np.empty(layout.size, part.dtype)
                for bucket in layout.buckets:
                    flat[bucket.place] = of_all[:, bucket.part].reshape(-1)
                arrays = layout.named(flat)
                whole[slot] = {name: arrays[name] for name in names}
        return moments._replace(slots=whole) if self.group.rank == 0 else moments

    def _cut(self, arrays: Params) -> Params:
        """Return this rank's parts of arrays, flat."""
        return {
            name: arrays[name].reshape(-1)[there]
            for name, (there, _) in self.places.items()
            if name in arrays
        }

    def _send(self, bucket: Bucket, head: Head | None) -> None:
        self._go(self.group.sum_part, self.buffer[bucket.place], self.part[bucket.part])

    def _result(self, head: Head | None) -> tuple[Params, Array]:
        xp = self.home.xp
        if self.halved is not None:
            for bucket in self.layout.buckets:
                self.part[bucket.part] = self.halved.sum_up(bucket)
        grads = {name: self.part[place] for name, (_, place) in self.places.items()}
        squares = norm_of(xp, grads) ** 2 if grads else 0.0
        if head is not None:
            self._sum_head(head._replace(squares=squares))
            total = self.head[1]
        else:
            sums = zeros(self.home, 1, "float64")
            sums[0] = squares
            self.group.sum(sums)
            total = sums[0]
        return grads, xp.astype(xp.sqrt(total), self.part.dtype)


def all_reduce(
    group: Group,
    home: Backend,
    params: Params,
    optimizer: Optimizer,
    callbacks: Iterable[Callback],
    halved: bool,
) -> AllReduce:
    """Return a `Sharded` for many weights if nothing needs whole gradients, otherwise an
    `AllReduce`.
    """
    moving = {name: p for name, p in params.items() if not optimizer.frozen(name)}
    needs_whole = any(
        has(callback, "gradients") and not (type(callback) is Clip and callback.value is None)
        for callback in callbacks
    )
    # moments of 16-bit weights are not divided
    shares = group.size > 1 and isinstance(optimizer, ByRules) and home.dtype not in HALVES
    many = sum(p.size for p in moving.values()) >= max(LEAST, group.size)
    kind = Sharded if shares and many and not needs_whole else AllReduce
    return kind(group, home, moving, halved)


def bucket_bytes(ranks: int) -> int:
    """Return the largest size, in bytes, of a bucket of several parameters."""
    return BUCKET * max(1, ranks // FEW)


def _shared(xp: Namespace, g: Array, place: Array, share: Any) -> Array:
    # Gradients without any target that counts may be NaN.
    return xp.where(share > 0, share * g, xp.zeros_like(g))
