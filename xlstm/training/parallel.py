"""Steps on several ranks: the loss and the gradients of all ranks are one sum, and all that follows
is on that sum.

Each rank has its own columns of a batch, and its share of the targets. It writes its loss and its
gradients, times that share, into a flat buffer, which begins with a head of few numbers. The sum of
the buffers is the loss and the gradient of the whole batch, with the same bits on every rank, so
that all ranks do the same with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks, foreach
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.cuda.cuda_graph import capturing
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.arrays.ranks.groups import Group, OtherRankError, Part, odd_ranks
from xlstm.training.callbacks import Callback, Clip, has
from xlstm.training.optimizers import ByRules, Optimizer, OptimState, Slots, norm_of

Update = Callable[..., tuple[Params, OptimState]]
# parameters from which on an optimiser is shared; with fewer its time does not matter
LEAST = 1 << 20
# The bits of whole numbers that sums in a dtype leave exact, where they are fewer than 23.
BITS = {"float16": 10, "bfloat16": 7}
# The sum of the shares of all ranks is 1 up to rounding; it may differ from 1 by this.
SHARES = 0.01
ROOM = 16  # numbers before the gradients, so that these begin where a line of the cache does


class LossAndGradients(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes
    ----------
    loss : 0-d array
    carried : tuple or None
        The state of the model at the end of the batch.
    used : dict of str to array
        The weights that the model was run with.
    grads : dict of str to array
    norm : 0-d array
        The norm of the gradients.
    """

    loss: Array
    carried: Any
    used: Params
    grads: Params
    norm: Array


class Head(NamedTuple):
    """The first numbers of the buffer.

    Attributes
    ----------
    loss : float
        NaN where a rank has failed.
    squares : float
        The sum of the squares of the rank's gradients, where these are not summed with the head.
    status : float
        0 from a rank that takes the step, 1 where its data have ended, more than there are ranks
        where it has failed.
    share : float
        The share of the rank in the targets of the batch; all shares are 1 together.
    signal, stop : float
        Above 0 where a rank has received a signal, or has been asked to stop by a callback.
    check : float
        A number of the rank's batches and learning rates so far; the sum of all is 0 where these
        are the same.
    """

    loss: Any
    squares: Any
    status: Any
    share: Any
    signal: Any
    stop: Any
    check: Any


class AllReduce:
    """A rank's part in the sums of all ranks, and the numbers that they agreed on in the last one.

    Attributes
    ----------
    error : Exception or None
        An error of this rank, which makes the next sum fail on all ranks, or one that all have
        raised together.
    where : str
        The name of the step.
    ended : bool
        There is no batch for it, as the data of this rank have ended.
    signal, stop : bool
        The numbers that this rank tells the others in the next sum.
    agreed : Head
        The head of the last sum that the host has looked at.
    noted : dict of str to object
        All that ranks are to have in common in this step, as errors call it.
    """

    def __init__(self, group: Group, home: Backend, params: Params) -> None:
        if home.name not in ("numpy", "cupy"):
            raise BackendError(
                f"TrainStep: group is given, which needs arrays of NumPy or CuPy, the backend is {home}"
            )
        self.group = group
        self.home = home
        self.error: Exception | None = None
        self.signal = self.stop = False
        self.shapes = {name: p.shape for name, p in params.items()}
        # numbers of a rank, with equal parts
        self.each = -(-sum(p.size for p in params.values()) // group.size)
        self.buffer: Array = home.asarray(np.zeros(ROOM + self.each * group.size))
        self.head = self.buffer[:ROOM]
        self.grads = self.named(self.buffer[ROOM:])
        self.agreed = Head(*[0.0] * len(Head._fields))
        self.noted: dict[str, Any] = {}
        self.checksum = 0  # of all that was noted so far
        self.where = ""
        self.ended = False

    def named(self, flat: Array) -> Params:
        """Return the arrays that lie behind each other in a flat one, by the names of
        parameters.
        """
        arrays = Params()
        at = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            arrays[name] = flat[at : at + size].reshape(shape)
            at += size
        return arrays

    def reduce(
        self, own: LossAndGradients, head: Head, local: bool, share: Any = 1.0
    ) -> LossAndGradients:
        """Return the loss, the gradients and the norm of the whole batch.

        Parameters
        ----------
        own : LossAndGradients
            Those of the rank's part.
        head : Head
            Its last numbers, from `share` on, are used.
        local : bool
            Sum the head alone. The gradients are those of the own part then, and the square of the
            norm is the sum of the squares of all parts.
        share : float or 0-d array
            The factor of the own gradients.
        """
        if self.error is not None:
            self._refuse(local)
        else:
            if not isinstance(head.share, float):
                loss = fuse(self.home.xp, _shared, own.loss, own.loss, head.share)
            else:  # the mean may be NaN where no target counts
                loss = own.loss * head.share if head.share else 0.0
            squares = (own.norm * head.share) ** 2 if local else 0.0
            for k, number in enumerate(head._replace(loss=loss, squares=squares)):
                self.head[k] = number
            if not local:
                self._fill(own.grads, share)
        if not local:
            grads, norm = self._summed()
            return own._replace(loss=self.head[0], grads=grads, norm=norm)
        self.group.sum(self.head)
        xp = self.home.xp
        grads = own.grads or {name: xp.zeros_like(place) for name, place in self.grads.items()}
        return own._replace(loss=self.head[0], grads=grads, norm=xp.sqrt(self.head[1]))

    def mean(self, sums: Params, total: Any) -> tuple[Params, Array]:
        """Return the sums of gradients of all ranks, divided by the total number of targets, and
        their norm.
        """
        self._fill(sums, 1 / total)
        return self._summed(ROOM)

    def updated(
        self, update: Update, params: Params, grads: Params, moments: OptimState, *how: Any
    ) -> tuple[Params, OptimState]:
        """Return the parameters and the state of the optimiser after an update."""
        return update(params, grads, moments, *how)

    def part_of(self, moments: OptimState) -> OptimState:
        """Return the moments that this rank keeps, of all of them."""
        return moments

    def whole_of(self, moments: OptimState) -> OptimState:
        """Return the moments of all ranks together, of which each has those that it keeps."""
        return moments

    def slots_like(self, moments: OptimState, params: Params) -> Slots:
        """Return arrays with the names, shapes and dtypes of the moments of all ranks together."""
        return moments.slots

    def _summed(self, start: int = 0) -> tuple[Params, Array]:
        """Sum the buffer from `start` on; return the gradients, and their norm."""
        self.group.sum(self.buffer[start:])
        return self.grads, norm_of(self.home.xp, self.grads)

    def note(self, part: Part, rates: tuple[float, ...]) -> None:
        """Note what ranks are to have in common in a step: its batch and the learning rates of its
        update.
        """
        self.noted = {
            "number of sequences": part.B,
            "number of targets": part.total,
            "checksum of order and targets": part.checksum,
            "learning rate": rates,
        }
        # The hash of numbers is the same in all processes.
        self.checksum = hash((self.checksum, *self.noted.values()))

    @property
    def check(self) -> float:
        """The number of this rank for `Head.check`, small enough for exact sums."""
        most = 2 ** BITS.get(self.home.dtype, 23) // self.group.size
        number = self.checksum % max(1, most)
        return float(number * (self.group.size - 1) if self.group.rank == 0 else -number)

    def fail(self, local: bool, then_all: bool) -> None:
        """Take part in the sum of a step that this rank cannot take, or in both of them."""
        self._refuse(local and not then_all)
        self.group.sum(self.head if local else self.buffer)
        if then_all:
            self.group.sum(self.buffer[ROOM:])

    def told(self, place: str, what: Any = None) -> list[Any]:
        """Return what all ranks tell at a place; raises the error of a rank on all of them."""
        with together(self):
            return told(self.group, place, self.error, what)

    def look(self) -> None:
        """Wait for the last sum, and see what has been agreed; raises the error of a rank on all of
        them.
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
        """Let ranks that had no sequence in a batch, and drew no masks, go on with the generator of
        the last rank.
        """
        if self.group.size > part.B:
            masks.bit_generator.state = self.group.tell(masks.bit_generator.state)[-1]

    def _refuse(self, local: bool) -> None:
        """Put zeros into the buffer, and a failure into its head."""
        (self.head if local else self.buffer)[...] = 0.0
        self.head[0] = math.nan
        self.head[2] = 1.0 + self.group.size * (self.error is not None)

    def _fill(self, grads: Params, share: Any) -> None:
        """Put the share of gradients into the buffer, on CuPy by one launch; zeros where there are
        none.
        """
        if not grads:
            self.buffer[ROOM:] = 0.0
        else:
            columns = [[arrays[name] for name in self.grads] for arrays in (grads, self.grads)]
            foreach.apply(self.home.xp, _shared, columns, (share,), (1,))


class Sharded(AllReduce):
    """The sums of ranks of which each updates a part of the weights and keeps its moments alone
    (ZeRO-1).

    After Rajbhandari et al. 2020. The buffer of gradients is cut into equal parts, of which each
    rank gets the sum of one; the new weights are put together again. This sends as many bytes as
    one sum of the whole, and takes a rank's share of the time and of the memory of the optimiser.
    Rules work element by element, so a part of an array is as good as a whole.
    """

    def __init__(self, group: Group, home: Backend, params: Params) -> None:
        super().__init__(group, home, params)
        # This rank's part of the gradients, and then of the new weights.
        self.part: Array = np.empty(self.each, self.buffer.dtype)
        self.slots: dict[str, list[str]] = {}  # the parameters that have a moment, by slot
        # For each array in the part: its places in the array, and in the part.
        self.places: dict[str, tuple[slice, slice]] = {}
        first = group.rank * self.each
        at = 0
        for name, p in params.items():
            start = max(at, first)
            end = min(at + p.size, first + self.each)
            if start < end:
                self.places[name] = slice(start - at, end - at), slice(start - first, end - first)
            at += p.size

    def cut(self, arrays: Params) -> Params:
        """Return the parts of arrays that this rank has, flat."""
        return {
            name: arrays[name].reshape(-1)[there]
            for name, (there, _) in self.places.items()
            if name in arrays
        }

    def part_of(self, moments: OptimState) -> OptimState:
        """Return copies of the parts of moments that this rank has, in the slots that have one."""
        self.slots = {slot: list(arrays) for slot, arrays in moments.slots.items()}
        copies: Slots = {}
        for slot, arrays in moments.slots.items():
            if parts := self.cut(arrays):
                copies[slot] = {name: a.copy() for name, a in parts.items()}
        return moments._replace(slots=copies)

    def gathered(self, parts: Params) -> Params:
        """Return arrays of the parts of all ranks."""
        for name, a in parts.items():
            self.part[self.places[name][1]] = a
        whole = np.empty(self.each * self.group.size, self.part.dtype)
        self.group.gather_parts(self.part, whole)
        return self.named(whole)

    def whole_of(self, moments: OptimState) -> OptimState:
        whole: Slots = {}
        for slot, names in self.slots.items():
            arrays = self.gathered(moments.slots.get(slot, {}))
            whole[slot] = {name: arrays[name] for name in names}
        return moments._replace(slots=whole)

    def slots_like(self, moments: OptimState, params: Params) -> Slots:
        return {slot: {name: params[name] for name in names} for slot, names in self.slots.items()}

    def updated(
        self, update: Update, params: Params, grads: Params, moments: OptimState, *how: Any
    ) -> tuple[Params, OptimState]:
        new, after = update(self.cut(params), grads, moments, *how)
        return params | self.gathered(new), after

    def fail(self, local: bool, then_all: bool) -> None:
        self._refuse(True)
        self.group.sum(self.head)

    def _summed(self, start: int = 0) -> tuple[Params, Array]:
        if start == 0:
            self.group.sum(self.head)
            self.look()  # before parts are summed, in which a rank that has failed takes no part
        self.group.sum_part(self.buffer[ROOM:], self.part)
        grads = {name: self.part[place] for name, (_, place) in self.places.items()}
        norm = norm_of(np, grads) if grads else 0.0
        squares = np.asarray(norm, np.float64).reshape(1) ** 2
        self.group.sum(squares)
        return grads, np.sqrt(squares[0]).astype(self.part.dtype)


def all_reduce(
    group: Group, home: Backend, params: Params, optimizer: Optimizer, callbacks: Iterable[Callback]
) -> AllReduce:
    """Return the sums over ranks: `Sharded` for many weights on a CPU where nobody needs whole
    gradients, else `AllReduce`.
    """
    moving = {name: p for name, p in params.items() if not optimizer.frozen(name)}
    needs_whole = any(
        has(callback, "gradients") and not (isinstance(callback, Clip) and callback.value is None)
        for callback in callbacks
    )
    shares = group.size > 1 and home.name == "numpy" and isinstance(optimizer, ByRules)
    many = sum(p.size for p in moving.values()) >= max(LEAST, group.size)
    kind = Sharded if shares and many and not needs_whole else AllReduce
    return kind(group, home, moving)


def _shared(xp: Namespace, g: Array, place: Array, share: Any) -> Array:
    # Gradients without any target that counts may be NaN.
    return xp.where(share > 0, share * g, xp.zeros_like(g))


@contextlib.contextmanager
def together(ranks: AllReduce | None) -> Iterator[None]:
    """Note an error that all ranks raise at the same place, so that they can do more together."""
    try:
        yield
    except Exception as error:
        if ranks is not None and not isinstance(error, ApartError):
            ranks.error = error
        raise


@contextlib.contextmanager
def held(ranks: AllReduce | None) -> Iterator[None]:
    """Keep an error of this rank until all come together; raise it without others, and while a
    graph is captured.
    """
    try:
        yield
    except Exception as error:
        if ranks is None or capturing() is not None:
            raise
        ranks.error = error


class ApartError(RuntimeError):
    """Ranks have come together at different places of the program."""


class Said(NamedTuple):
    """The words of a rank where all come together: the place in words, its error, and what else it
    tells.
    """

    place: str
    problem: str | None
    what: Any


def told(group: Group, place: str, error: Exception | None, what: Any = None) -> list[Any]:
    """Return what all ranks tell at a place; raise the error of this rank, or name another rank
    that has one.
    """
    problem = None if error is None else f"{type(error).__name__}: {error}"
    every = group.tell(Said(place, problem, what))
    for rank, said in enumerate(every):
        there = said.place if isinstance(said, Said) else "`tell`"
        if there != place:
            raise ApartError(
                f"rank {rank} of {group.size} is at {there}, rank {group.rank} at {place}; all"
                " ranks are to go through the same steps"
            ) from error
    if error is not None:
        raise error
    for rank, said in enumerate(every):
        if said.problem is not None:
            raise OtherRankError(f"rank {rank} of {group.size} cannot go on: {said.problem}")
    return [said.what for said in every]


def same(
    group: Group,
    where: str,
    settings: dict[str, Any] | None,
    beside: Any = None,
    error: Exception | None = None,
) -> Any:
    """Return what rank 0 tells beside its settings; ValueError where a rank has other settings than
    most ranks.
    """
    every = told(group, "the comparison of settings", error, (settings, beside))
    for name in every[0][0]:
        values = [of_rank.get(name) for of_rank, _ in every]
        common, odd = odd_ranks(values)
        if odd:
            difference = different(name, values[odd[0]], common, f" of rank {odd[0]}")
            raise ValueError(f"{where}: {difference} as on other ranks")
    return every[0][1]


def different(name: str, there: Any, expected: Any, of: str = "") -> str:
    """Return in words how a setting differs: a dict by its first such entry, texts from shortly
    before the place on.
    """
    if isinstance(there, dict) and isinstance(expected, dict):
        for key in {**expected, **there}:
            if there.get(key) != expected.get(key):
                return different(f"{name}[{key!r}]", there.get(key), expected.get(key), of)
    if isinstance(there, str) and isinstance(expected, str):
        common = os.path.commonprefix((there, expected))  # noqa: RUF071 (of texts, not of paths)
        start = max(0, len(common) - 32)
        there = there[start:]
        expected = expected[start:]
    return f"{name}{of} is {checks.shown(there)}, expected {checks.shown(expected)}"


def checksum(arrays: Iterable[Array | None]) -> int:
    """Return a number that tells arrays apart."""
    number = 0
    for a in arrays:
        if a is not None:
            number = zlib.crc32(np.ascontiguousarray(to_numpy(a)).data, number)
    return number
