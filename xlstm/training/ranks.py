"""The agreement of a run's ranks between steps: one folder, one checkpoint, the same decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import Alone, Group, checksum, collected, columns, odd_ranks
from xlstm.arrays.namespace import Array, Params, dtype_name, leaves
from xlstm.layers.sequence import Leaf, nested
from xlstm.training.agreement import held, same, together, told
from xlstm.training.feed import Inputs
from xlstm.training.folder import Checkpoint
from xlstm.training.optimizers import Slots
from xlstm.training.state import StepState

STORED = {"bfloat16": "float32"}  # the host's dtypes for dtypes that NumPy lacks


class RunRanks:
    """The ranks of a run; a process without a group is a single rank.

    A rank keeps its errors, signals and callbacks' requests until all ranks meet: in the sum of the
    next step, or in `meets`. So all ranks raise, or stop, at the same place.

    Parameters
    ----------
    reduce : AllReduce or None
    model : object
        The model. It says which axis of its state holds sequences.
    sums_locally : bool
        Whether each rank keeps its own sums of gradients that no update has used yet.
    """

    def __init__(self, reduce: Any, model: Any, sums_locally: bool) -> None:
        self.reduce = reduce
        self.model = model
        self.sums_locally = sums_locally
        self.group: Group = Alone() if reduce is None else reduce.group
        self.first = self.group.rank == 0  # only rank 0 writes files and prints

    def guarded(self, batches: Iterable[Inputs]) -> Iterator[Any]:
        """Yield batches. With other ranks, yield None at their end or after an error, which the
        next sum reports.
        """
        with held(self.reduce):
            yield from batches
        if self.reduce is not None:
            yield None

    def tried(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return a function's result, or None if it fails; all ranks learn of the error when they
        meet.
        """
        with held(self.reduce):
            return function(*args)

    def stops(self, asked: bool, received: list[int]) -> bool:
        """Return whether to stop after a step; the next sum carries a request of one rank to all
        ranks.
        """
        if self.reduce is None:
            return asked or bool(received)
        self.reduce.stop |= bool(asked)
        self.reduce.signal = bool(received)
        return bool(self.reduce.agreed.signal or self.reduce.agreed.stop)

    def meets(self, received: list[int]) -> bool:
        """Return whether to stop between steps; all ranks meet here."""
        asked = bool(received) or (self.reduce is not None and self.reduce.stop)
        return any(self._told("a pause between steps", asked))

    def signal(self, received: list[int]) -> int | None:
        """Return the number of the signal that has stopped the run, if any."""
        every = filter(None, self._told("the end of training", received))
        return next((numbers[0] for numbers in every), None)

    def saves(self, error: Exception) -> bool:
        """Return whether all ranks have raised this error, so that they can write a checkpoint
        together, without the residuals of the step that failed.
        """
        if self.reduce is None:
            return True
        self.reduce.forget_residuals()
        return isinstance(error, FloatingPointError) or error is self.reduce.error

    def of_first(self, value: Callable[[], Any]) -> Any:
        """Return a value that rank 0 computes."""
        return self._told("rank 0's part", self.tried(value) if self.first else None)[0]

    def _told(self, place: str, what: Any) -> list[Any]:
        """Return the values that all ranks send; if one has kept an error, all ranks raise it."""
        return [what] if self.reduce is None else self.reduce.told(place, what)

    def read(self, newest: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """Return the checkpoint that rank 0 reads; other ranks' files are ignored."""
        origin = self.tried(newest) if self.first else None
        if self.reduce is None:
            return origin
        about = None
        if origin is not None:
            kinds = {name: (a.shape, a.dtype) for name, a in origin.arrays.items()}
            about = origin._replace(arrays=kinds)
        of_first: Checkpoint | None = self._told("the checkpoint", about)[0]
        if of_first is None:
            return None
        arrays = {}
        for name, (shape, dtype) in of_first.arrays.items():
            array = np.empty(shape, dtype) if origin is None else origin.arrays.pop(name)
            self.group.share([array])
            kind, _, rest = name.partition(".")
            if kind == "slots":  # a rank may keep only a part of the moments
                _, _, parameter = rest.partition(".")
                part = self.reduce.part_of(parameter, array)
                array = array if part is array else part.copy()
            elif kind == "residuals":  # another number of ranks begins without them
                alike = array.shape[:1] == (self.group.size,)
                array = array[self.group.rank].copy() if alike else array[:0]
            arrays[name] = array
        return of_first._replace(arrays=arrays)

    def same(self, settings: dict[str, Any] | None, beside: Any) -> Any:
        """Return the value that rank 0 sends with its settings; raise ValueError unless all ranks
        have the same settings.
        """
        assert self.reduce is not None
        with together(self.reduce):
            return same(self.group, "train", settings, beside, self.reduce.error)

    def ends(self, params: Params, total: int, asked: bool) -> bool:
        """Return whether any rank asks to end after an epoch; raise RuntimeError if their weights
        differ.
        """
        if self.reduce is None:
            return asked
        every = self._told("the end of an epoch", (checksum(params.values()), asked))
        self._compare([number for number, _ in every], total)
        return any(of_rank for _, of_rank in every)

    def _compare(self, checksums: list[int], total: int) -> None:
        """Raise RuntimeError if the checksums of the ranks' weights differ after a step."""
        _, odd = odd_ranks(checksums)
        if odd:
            raise RuntimeError(
                f"train: after step {total} the weights of rank {', '.join(map(str, odd))} differ"
                " from those of the other ranks; is its memory sound, and its code the same?"
            )

    def whole(self, state: StepState, total: int) -> StepState:
        """Return on rank 0 the state that one process would have, gathered from all ranks.

        It raises RuntimeError if the ranks' weights differ.
        """
        if self.reduce is None:
            return state
        self._compare(
            told(self.group, "a checkpoint", None, checksum(state.params.values())), total
        )
        sums = state.sums
        # Each rank's sums are saved, because their total would be rounded in another order.
        if sums is not None and self.sums_locally:
            home = self.reduce.home
            several = {name: collected(self.group, to_numpy(a)) for name, a in sums.items()}
            sums = {name: home.asarray(a) for name, a in several.items() if a is not None}
        carried = self._whole_carried(self.reduce.home, state.carried)
        moments = self.reduce.whole_of(state.moments)
        return state._replace(carried=carried, sums=sums, moments=moments)

    def residuals(self) -> list[Any]:
        """Return on rank 0 the residuals of all ranks, each (ranks, n)."""
        own = [] if self.reduce is None else self.reduce.residuals
        return [collected(self.group, to_numpy(residual)) for residual in own]

    def restore_residuals(self, residuals: Iterable[Array]) -> None:
        """Continue from the residuals that `read` has returned for this rank, if there are any."""
        own = [] if self.reduce is None else self.reduce.residuals
        for residual, saved in zip(own, residuals, strict=False):
            if saved.size:
                residual[...] = saved

    def _whole_carried(self, home: Backend, carried: Any) -> Any:
        """Return on rank 0 the states of all ranks' sequences, or None if there are none."""
        own = [] if carried is None else list(leaves(carried))
        kinds = [(tuple(a.shape), dtype_name(a.dtype)) for a in own]
        several = told(self.group, "a checkpoint", None, kinds)
        parts = [kinds_of_rank for kinds_of_rank in several if kinds_of_rank]
        if not parts:
            return None
        whole = []
        for k, axis in enumerate(self._axes):
            counts = [kinds[k][0][axis] if kinds else 0 for kinds in several]
            shape, dtype = parts[0][k]
            rest = shape[:axis] + shape[axis + 1 :]
            sequences = np.zeros((max(counts), *rest), STORED.get(dtype, dtype))
            if own:
                sequences[: counts[self.group.rank]] = np.moveaxis(to_numpy(own[k]), axis, 0)
            every = collected(self.group, sequences)
            if every is not None:
                rows = [of_rank[:count] for of_rank, count in zip(every, counts, strict=True)]
                array = np.moveaxis(np.concatenate(rows), 0, axis)
                whole.append(backend_of(home, dtype).asarray(array))
        return nested(self.model.states, iter(whole)) if self.first else None

    def slots(self, state: StepState) -> Slots:
        """Return arrays with the names, shapes and dtypes of the moments that `read` returns."""
        if self.reduce is None:
            return state.moments.slots
        slots: Slots = self.reduce.slots_like(state.moments, state.params)
        return slots

    def part(self, state: StepState) -> StepState:
        """Return this rank's part of a state that `whole` has gathered."""
        if self.reduce is None:
            return state
        # a rank has no part of some parameters
        parts = {
            slot: {name: a for name, a in arrays.items() if a.size}
            for slot, arrays in state.moments.slots.items()
        }
        slots = {slot: arrays for slot, arrays in parts.items() if arrays}
        moments = state.moments._replace(slots=slots)
        return state._replace(carried=self._cut(state.carried), moments=moments)

    def own_sums(self, sums: Params, params: Params) -> Params:
        """Return this rank's sums of gradients; a checkpoint has each rank's sums, or the total."""
        own = {}
        for name, a in sums.items():
            every = a if a.ndim > params[name].ndim else a[None]
            if every.shape[0] == self.group.size:
                own[name] = every[self.group.rank]
            else:
                own[name] = every.sum(axis=0) * (self.first or not self.sums_locally)
        return own

    def _cut(self, carried: Any) -> Any:
        """Return the states of this rank's sequences, or None if it has none."""
        if carried is None:
            return None
        parts = []
        for axis, a in zip(self._axes, leaves(carried), strict=True):
            own = columns(a.shape[axis], self.group)
            parts.append(a.swapaxes(0, axis)[own].swapaxes(0, axis).copy())
        return nested(self.model.states, iter(parts)) if all(part.size for part in parts) else None

    @property
    def _axes(self) -> list[int]:
        """The axis of sequences in each array of the state."""
        states = getattr(self.model, "states", None)
        if states is None:
            raise ValueError(
                f"train: {type(self.model).__name__} has no `states`, expected Leaf objects that"
                " say where sequences lie in it"
            )
        return [len(leaf.before) for leaf in leaves(states, Leaf)]
