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
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from xlstm.arrays import checks, foreach
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.cuda.cuda_graph import capturing
from xlstm.arrays.fuse import compiles, fuse
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.arrays.ranks.groups import Group, OtherRankError, Part, odd_ranks
from xlstm.training.callbacks import Callback, Clip, has
from xlstm.training.optimizers import ByRules, Optimizer, OptimState, global_norm

if TYPE_CHECKING:
    from xlstm.training.feed import Inputs
    from xlstm.training.graphs import Given
    from xlstm.training.steps import StepState

Update = Callable[[Params, Params, OptimState], tuple[Params, OptimState]]
# parameters from which on an optimiser is shared; with fewer its time does not matter
LEAST = 1 << 20
# of whole numbers that sums in a dtype leave exact, where they are less than 23
BITS = {"float16": 10, "bfloat16": 7}
# by which the shares of all ranks may differ from 1, which they are together, up to rounding
SHARES = 0.01
ROOM = 16  # numbers before the gradients, so that these begin where a line of the cache does


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


class Joint:
    """A rank's share of the sums of all ranks, and the numbers that they agreed on in the last one.

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
                f"Step: group is given, which needs arrays of NumPy or CuPy, the backend is {home}"
            )
        self.group = group
        self.home = home
        self.error: Exception | None = None
        self.signal = self.stop = False
        self.shapes = {name: p.shape for name, p in params.items()}
        # numbers of a rank, with equal parts
        self.each = -(-sum(p.size for p in params.values()) // group.size)
        self.buffer: Array = home.asarray(np.zeros(ROOM + self.each * group.size))
        self.head, self.grads = self.buffer[:ROOM], self.named(self.buffer[ROOM:])
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

    def summed(
        self,
        gradients: Callable[[], Any],
        state: StepState,
        inputs: Inputs,
        given: Given,
        local: bool,
        early: bool,
    ) -> tuple[Array, Any, Params, Params, Array]:
        """Return the loss of the whole batch, the state of the model, the weights it was run with,
        gradients and norm.

        Parameters
        ----------
        gradients : callable
            It returns the first four of them for the own part of the batch.
        state : StepState
        inputs : Inputs
        given : Given
            The numbers that it has for the head, its last ones, are used.
        local : bool
            Sum the head alone. The gradients are those of the own part then, and the square of the
            norm is the sum of the squares of all parts.
        early : bool
            The gradients that `gradients` returns are the share of this rank already.
        """
        xp = self.home.xp
        share = given.share
        if compiles(xp) and isinstance(share, float):
            share = self.home.asarray(np.array(share), "float64")
        value, carried, used, grads = self._own(gradients, state, inputs)
        if self.error is not None:
            self._refuse(local)
        else:
            norm = global_norm(grads) if local and grads else 0.0
            head = Head(_own_share(xp, value, share), (norm * share) ** 2, 0.0, share, *given[-3:])
            for k, number in enumerate(head):
                self.head[k] = number
            if not local:
                self._fill(grads, 1.0 if early else share)
        if local:
            self.group.sum(self.head)
            none = {name: xp.zeros_like(place) for name, place in self.grads.items()}
            return self.head[0], carried, used, grads or none, xp.sqrt(self.head[1])
        grads, norm = self._summed()
        return self.head[0], carried, used, grads, norm

    def mean(self, sums: Params, total: Any) -> tuple[Params, Array]:
        """Return the sums of gradients of all ranks, divided by the total number of targets, and
        their norm.
        """
        self._fill(sums, 1 / total)
        return self._summed(ROOM)

    def updated(
        self, update: Update, params: Params, grads: Params, moments: OptimState
    ) -> tuple[Params, OptimState]:
        """Return the parameters and the state of the optimiser after an update."""
        return update(params, grads, moments)

    def part_of(self, moments: OptimState) -> OptimState:
        """Return the moments that this rank keeps, of all of them."""
        return moments

    def whole_of(self, moments: OptimState) -> OptimState:
        """Return the moments of all ranks together, of which each has those that it keeps."""
        return moments

    def _summed(self, start: int = 0) -> tuple[Params, Array]:
        """Sum the buffer from `start` on; return the gradients, and their norm."""
        self.group.sum(self.buffer[start:])
        return self.grads, global_norm(self.grads)

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
        # of numbers, which is the same in all processes
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
                self._differ()

    def _differ(self) -> NoReturn:
        """Raise ValueError, which names the rank that has had another batch or learning rate than
        most.
        """
        same(self.group, self.where, self.noted)
        shares = f"the shares of ranks in its targets sum to {self.agreed.share:g}, expected 1"
        raise ValueError(
            f"{self.where}: {shares}; do all ranks have the same data, in the same order?"
        )

    def same_masks(self, masks: np.random.Generator, inputs: Inputs) -> None:
        """Let ranks that had no sequence in a batch, and drew no masks, go on with the generator of
        the last rank.
        """
        part = inputs.host.part
        if part is not None and self.group.size > part.B:
            masks.bit_generator.state = self.group.tell(masks.bit_generator.state)[-1]

    def _own(self, gradients: Callable[[], Any], state: StepState, inputs: Inputs) -> Any:
        """Return what `gradients` does; without gradients where this rank has no sequence, or
        cannot take the step.
        """
        if self.error is None and inputs.host.x.shape[1]:
            with held(self):
                return gradients()
        return (
            self.home.xp.zeros_like(self.head[0]),
            None if self.error is None else state.carried,
            state.params,
            {},
        )

    def _refuse(self, local: bool) -> None:
        """Put zeros into the buffer, and a failure into its head."""
        (self.head if local else self.buffer)[...] = 0.0
        self.head[0] = math.nan
        self.head[2] = 1.0 + self.group.size * (self.error is not None)

    def _fill(self, grads: Params, share: Any) -> None:
        """Put the share of gradients into the buffer, on CuPy by one launch; zeros where there are
        none.
        """
        names = list(self.grads)
        xp = self.home.xp
        if not grads:
            self.buffer[ROOM:] = 0.0
        elif compiles(xp):
            columns = [[part[name] for name in names] for part in (grads, self.grads)]
            foreach.apply(xp, _shared, columns, (share,), (1,))
        else:
            for name in names:
                np.multiply(grads[name] if share else 0.0, share, out=self.grads[name])


class Sharded(Joint):
    """The sums of ranks of which each updates a part of the weights and keeps its moments alone
    (ZeRO-1).

    After Rajbhandari et al. 2020. The buffer of gradients is cut into equal parts, of which each
    rank gets the sum of one; the new weights are put together again. This sends as many bytes as
    one sum of the whole, and takes a rank's share of the time and of the memory of the optimiser.
    Rules work element by element, so a part of an array is as good as a whole.
    """

    def __init__(self, group: Group, home: Backend, params: Params) -> None:
        super().__init__(group, home, params)
        # of the gradients, and then of the new weights
        self.part: Array = np.empty(self.each, self.buffer.dtype)
        self.slots: dict[str, list[str]] = {}  # the parameters that have a moment, by slot
        # of what is in it: where it is in an array, and in the part
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
        parts = {slot: self.cut(arrays) for slot, arrays in moments.slots.items()}
        copies = {
            slot: {name: a.copy() for name, a in some.items()}
            for slot, some in parts.items()
            if some
        }
        return moments._replace(slots=copies)

    def gathered(self, parts: Params) -> Params:
        """Return arrays of the parts of all ranks."""
        for name, a in parts.items():
            self.part[self.places[name][1]] = a
        whole = np.empty(self.each * self.group.size, self.part.dtype)
        self.group.gather_parts(self.part, whole)
        return self.named(whole)

    def whole_of(self, moments: OptimState) -> OptimState:
        found = {slot: self.gathered(moments.slots.get(slot, {})) for slot in self.slots}
        whole = {
            slot: {name: found[slot][name] for name in names} for slot, names in self.slots.items()
        }
        return moments._replace(slots=whole)

    def updated(
        self, update: Update, params: Params, grads: Params, moments: OptimState
    ) -> tuple[Params, OptimState]:
        new, after = update(self.cut(params), grads, moments)
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
        squares = np.asarray(global_norm(grads), np.float64) ** 2 if grads else np.zeros(())
        self.group.sum(squares := squares.reshape(1))
        return grads, np.sqrt(squares[0]).astype(self.part.dtype)


def joint_of(
    group: Group, home: Backend, params: Params, optimizer: Optimizer, callbacks: Iterable[Callback]
) -> Joint:
    """Return the sums over ranks: `Sharded` for many weights on a CPU where nobody needs whole
    gradients, else `Joint`.

    Parameters
    ----------
    group : Group
    home : Backend
    params : dict of str to array
    optimizer : Optimizer
    callbacks : list of Callback
    """
    moving = {name: p for name, p in params.items() if not optimizer.frozen(name)}
    whole = any(
        has(one, "gradients") and not (isinstance(one, Clip) and one.value is None)
        for one in callbacks
    )
    many = sum(p.size for p in moving.values()) >= max(LEAST, group.size)
    if (
        many
        and group.size > 1
        and home.name == "numpy"
        and isinstance(optimizer, ByRules)
        and not whole
    ):
        return Sharded(group, home, moving)
    return Joint(group, home, moving)


def _shared(xp: Namespace, g: Array, place: Array, share: Any) -> Array:
    # what has no target that counts may be NaN
    return xp.where(share > 0, share * g, xp.zeros_like(g))


def _own_share(xp: Namespace, value: Array, share: Any) -> Any:
    """Return the share of a loss; 0 where no target counts, whose mean may be NaN."""
    if compiles(xp):
        return fuse(xp, _shared, value, value, share)
    return value * share if share else 0.0


@contextlib.contextmanager
def together(joint: Joint | None) -> Iterator[None]:
    """Note an error that all ranks raise at the same place, so that they can do more together."""
    try:
        yield
    except Exception as error:
        if joint is not None and not isinstance(error, ApartError):
            joint.error = error
        raise


@contextlib.contextmanager
def held(joint: Joint | None) -> Iterator[None]:
    """Keep an error of this rank until all come together; raise it without others, and while a
    graph is captured.
    """
    try:
        yield
    except Exception as error:
        if joint is None or capturing() is not None:
            raise
        joint.error = error


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
    said = group.tell(
        Said(place, None if error is None else f"{type(error).__name__}: {error}", what)
    )
    for rank, one in enumerate(said):
        there = one.place if isinstance(one, Said) else "`tell`"
        if there != place:
            places = f"rank {rank} of {group.size} is at {there}, rank {group.rank} at {place}"
            raise ApartError(f"{places}; all ranks are to go through the same steps") from error
    if error is not None:
        raise error
    for rank, one in enumerate(said):
        if one.problem is not None:
            raise OtherRankError(f"rank {rank} of {group.size} cannot go on: {one.problem}")
    return [one.what for one in said]


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
    several = told(group, "the comparison of settings", error, (settings, beside))
    for name in several[0][0]:
        values = [one.get(name) for one, _ in several]
        common, odd = odd_ranks(values)
        if odd:
            difference = different(name, values[odd[0]], common, f" of rank {odd[0]}")
            raise ValueError(f"{where}: {difference} as on other ranks")
    return several[0][1]


def different(name: str, there: Any, expected: Any, of: str = "") -> str:
    """Return in words how a setting differs: a dict by its first such entry, texts from shortly
    before the place on.
    """
    if isinstance(there, dict) and isinstance(expected, dict):
        for key in {**expected, **there}:
            if there.get(key) != expected.get(key):
                return different(f"{name}[{key!r}]", there.get(key), expected.get(key), of)
    if isinstance(there, str) and isinstance(expected, str):
        same_to = next(
            (k for k, (a, b) in enumerate(zip(there, expected, strict=False)) if a != b), 32
        )
        start = max(0, same_to - 32)
        there = there[start:]
        expected = expected[start:]
    return f"{name}{of} is {checks.shown(there)}, expected {checks.shown(expected)}"


def checksum(params: Params) -> int:
    """Return a number that tells weights apart."""
    number = 0
    for p in params.values():
        number = zlib.crc32(np.ascontiguousarray(to_numpy(p)).data, number)
    return number


def added(group: Group, parts: Iterator[tuple[float, ...]]) -> Iterator[tuple[float, ...]]:
    """Yield the sums over all ranks of the numbers that each yields; an error of one is raised on
    all of them.
    """
    while True:
        error = mine = None
        try:
            mine = next(parts, None)
        except Exception as problem:
            error = problem
        several = told(group, "evaluation", error, mine)
        if several.count(None) == group.size:
            return
        for rank, one in enumerate(several):
            if one is None:
                raise ValueError(
                    f"evaluate: the data of rank {rank} have ended, those of other ranks have not"
                )
        yield tuple(map(sum, zip(*several, strict=True)))


def shared(group: Group, home: Backend, params: Params) -> Params:
    """Return copies of the weights of rank 0."""
    xp = home.xp
    copies = {name: xp.asarray(p, copy=True, order="C") for name, p in params.items()}
    group.share(list(copies.values()))
    return copies
