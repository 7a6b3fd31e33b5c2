"""Training steps as CUDA graphs, one for each shape of a batch: a step is one launch."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import random_kernels
from xlstm.arrays.cuda.cuda_graph import CudaGraph, Recorder
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, leaves, namespace
from xlstm.arrays.trees import mapped
from xlstm.training.feed import Inputs
from xlstm.training.state import StepState

MOST = 8  # graphs of a run; batches of further shapes run without one
SEEN = 64  # shapes seen before that are remembered
MASKS = 1024  # the most that a step draws


@dataclass
class _Captured:
    """A graph, the arrays of the batch that it reads, and the source of its masks."""

    graph: CudaGraph
    inputs: Inputs
    start: Any  # the model's state, which it reads at its start and writes at its end
    sizes: list[int]


class Graphs:
    """The graphs of a run, and the arrays that they read and write in place.

    The first step with a shape compiles its kernels. The second step with that shape is captured
    afterwards, and later ones launch the graph.
    """

    def __init__(self, owner: Any, state: StepState) -> None:
        # The owner of the captured steps holds everything that they read, such as frozen weights.
        self.owner = owner
        self.home = state.runtime.feed.home
        xp = self.home.xp
        self.params = _copied(state.params, "C")
        self.slots = _copied(state.moments.slots, "C")
        self.sums = _copied(state.sums, "C")
        self.decided = xp.asarray(state.decided, copy=True)
        self.scalars: Array = None
        self.states: Array = None  # of the masks' generator
        if state.masks is not None:
            if not isinstance(state.masks.bit_generator, np.random.PCG64):
                kind = type(state.masks.bit_generator).__name__
                raise ValueError(
                    f"TrainStep: graph is True and seed a generator with {kind}, expected one with PCG64"
                )
            self.states = self.home.asarray(np.zeros((MASKS, random_kernels.STATE), np.uint64))
        self.places: dict[Hashable, Any] = {}  # where states of the model lie, by their shapes
        self.captured: dict[Hashable, _Captured] = {}
        self.seen: dict[Hashable, None] = {}
        self.recorder: Recorder | None = (
            None  # None where steps cannot be captured, and once a step could not be
        )
        try:
            self.recorder = Recorder()
        except Exception as error:
            if owner.graph is True:
                raise
            self._refused(error)

    def hold(self, owner: Any, state: StepState) -> bool:
        """Return whether a state's arrays belong to this object, and its steps to `owner`."""
        same = state.params is self.params and state.moments.slots is self.slots
        return same and owner is self.owner and (state.sums is None or state.sums is self.sums)

    def take(self, state: StepState, inputs: Inputs, scalars: np.ndarray[Any, Any]) -> StepState:
        """Take a step of the owner on this object's arrays, and return the state after it.

        If a step cannot be captured, there is one warning, and steps continue without graphs.

        Parameters
        ----------
        state : StepState
        inputs : Inputs
        scalars : array
            The numbers of `HostScalars`, then the optimiser's numbers, on the host.
        """
        recorder = self.recorder
        if recorder is not None:
            recorder.check()
        state = self._with_arrays(state)
        if self.scalars is None:
            self.scalars = self.home.asarray(np.zeros(scalars.shape), "float64")
        key = self._key(state, inputs)
        if key in self.captured:
            return self._launched(self.captured[key], state, inputs, scalars)
        with contextlib.nullcontext() if recorder is None else recorder.rehearsal():
            after = self._done(state, inputs, self.home.asarray(scalars, "float64"))
        if recorder is not None and key in self.seen and len(self.captured) < MOST:
            try:
                self.captured[key] = self._capture(recorder, state, inputs, after.carried)
            except Exception as error:
                self._refused(error)
        self.seen[key] = None
        if len(self.seen) > SEEN:
            del self.seen[next(iter(self.seen))]
        return after

    def _key(self, state: StepState, inputs: Inputs) -> Hashable:
        """Return a key of everything on the host that decides which kernels a step launches and
        with which numbers.
        """
        lengths = tuple(
            (name, np.asarray(value).tobytes()) for name, value in inputs.options.items()
        )
        # A graph contains this number of the masks' generator.
        increment = state.masks and state.masks.bit_generator.state["state"].get("inc")
        return (
            _kinds((inputs.x, inputs.target, inputs.mask)),
            inputs.fresh,
            lengths,
            _kinds(None if inputs.fresh else state.carried),
            increment,
            state.batches == 0,  # the first batch of an update
            state.batches + 1 == self.owner.accumulate,  # and its last batch
            None if inputs.host.part is None else inputs.host.part.key,
        )

    def _refused(self, error: Exception) -> None:
        """Warn why steps continue without graphs, and free the memory of all captured graphs."""
        warnings.warn(
            f"TrainStep: graph is {self.owner.graph}, but a step cannot be captured"
            f" ({optional_imports.first_line(error)}); steps go on without",
            RuntimeWarning,
            stacklevel=5,
        )
        self.recorder = None
        self.captured.clear()

    def _with_arrays(self, state: StepState) -> StepState:
        """Return a state whose values are copied into this object's arrays."""
        moments = state.moments._replace(slots=self.slots)
        return state._replace(
            params=self.params, moments=moments, decided=self.decided, sums=self.sums
        )

    def _done(self, state: StepState, inputs: Inputs, scalars: Array) -> StepState:
        """Take a step in-place; its decisions are also written in-place."""
        after: StepState = self.owner.take_on_device(state, inputs, scalars, in_place=True)
        self.decided[...] = after.decided
        if self.sums is None:
            self.sums = after.sums
        return self._with_arrays(after)

    def _capture(self, recorder: Recorder, state: StepState, inputs: Inputs, end: Any) -> _Captured:
        """Capture a step that has just been taken and has left the model in the state `end`."""
        if _kinds(end) not in self.places:
            self.places[_kinds(end)] = _copied(end)
        place = self.places[_kinds(end)]
        x, target, mask = _copied((inputs.x, inputs.target, inputs.mask))
        fixed = inputs._replace(x=x, target=target, mask=mask)
        later = None
        if state.masks is not None:
            later = random_kernels.Later(state.masks.bit_generator, self.states, fixed.host.part)
        state = self._with_arrays(state)._replace(
            masks=later, carried=None if state.carried is None else place
        )
        self._leave(place, end)  # compiles the kernels of this copy, too
        graph = recorder.capture(
            lambda: self._leave(place, self._done(state, fixed, self.scalars).carried)
        )
        return _Captured(graph, fixed, place, [] if later is None else later.sizes)

    def _leave(self, place: Any, end: Any) -> None:
        """Copy the model's state after a step into its place, unless the step has failed."""
        _, _, failed, _ = self.decided
        for old, new in zip(leaves(place), leaves(end), strict=True):
            fuse(self.home.xp, _unless_failed, old, new, failed, out=old)

    def _launched(
        self, step: _Captured, state: StepState, inputs: Inputs, scalars: np.ndarray[Any, Any]
    ) -> StepState:
        """Copy all changing inputs into the arrays of a graph, and launch it."""
        # This raises if another device is current.
        namespace("TrainStep", dict([next(iter(state.params.items()))]))
        for name in ("x", "target", "mask"):
            if getattr(inputs, name) is not None:
                getattr(step.inputs, name)[...] = getattr(inputs, name)
        self.scalars[...] = self.home.asarray(scalars, "float64")
        if step.sizes:
            assert state.masks is not None
            states = random_kernels.states(state.masks, step.sizes)
            self.states[: len(step.sizes)] = self.home.asarray(states)
        if not inputs.fresh and state.carried is not None and state.carried is not step.start:
            for old, new in zip(leaves(step.start), leaves(state.carried), strict=True):
                old[...] = new
        step.graph.launch()
        updates = state.moments.step + (state.batches + 1 == self.owner.accumulate)
        return state._replace(carried=step.start, moments=state.moments._replace(step=updates))


def _unless_failed(xp: Namespace, old: Array, new: Array, failed: Any) -> Array:
    return xp.where(failed > 0, old, new)


def _copied(tree: Any, order: str = "K") -> Any:
    """Return copies of the arrays of a tree, by default with their strides."""
    return mapped(tree, lambda _, a: a.copy(order=order))


def _kinds(tree: Any) -> Hashable:
    """Return the shapes and dtypes of the arrays of a tree."""
    return tuple([(tuple(a.shape), str(a.dtype)) for a in leaves(tree)])
