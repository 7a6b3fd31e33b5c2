"""Steps of training as CUDA graphs, one for each shape: a step is one launch."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks, optional_imports, random
from xlstm.arrays.cuda.cuda_graph import CudaGraph, Recorder
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, leaves, namespace
from xlstm.arrays.trees import mapped
from xlstm.training.feed import Inputs
from xlstm.training.state import StepState

MOST = 8  # graphs of a run; batches of other shapes go without
SEEN = 64  # shapes that came before and are remembered
MASKS = 1024  # that a step draws at most


def choice(where: str, name: str, value: Any) -> bool | str:
    """Check whether steps are to be captured: True, False or "auto"."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value == "auto":
        return value
    raise ValueError(f"{where}: {name} is {checks.shown(value)}, expected True, False or 'auto'")


def is_ours(value: Any) -> bool:
    """Return whether a function or an object is of this package, and so are all parts of a module.

    It asks a GPU for the same each time it runs, which code of a user need not do.
    """
    code = value.func if isinstance(value, functools.partial) else value
    if not str(getattr(code, "__module__", "")).startswith(f"{__name__.partition('.')[0]}."):
        return False
    inner = getattr(code, "model", None)  # that of `LowRank`
    parts = getattr(code, "parts", {}).values()
    return (inner is None or is_ours(inner)) and all(map(is_ours, parts))


@dataclass
class _Captured:
    """A graph, the arrays of a batch that it reads, and what it draws masks from."""

    graph: CudaGraph
    inputs: Inputs
    start: Any  # the state of the model that it begins with, and leaves
    sizes: list[int]


class Graphs:
    """The arrays of a run that lie where graphs read and write them, and the graphs.

    A shape that comes for the first time is not captured; when it comes again, it is captured after
    that step, whose kernels are compiled then.
    """

    def __init__(self, owner: Any, state: StepState) -> None:
        # The owner of the captured steps has all that they read, such as frozen weights.
        self.owner = owner
        self.home = state.runtime.feed.home
        xp = self.home.xp
        self.params = _copied(state.params, "C")
        self.slots = _copied(state.moments.slots, "C")
        self.sums = _copied(state.sums, "C")
        self.decided = xp.asarray(state.decided, copy=True)
        self.scalars: Array = None
        self.states: Array = None  # of masks
        if state.masks is not None:
            if not isinstance(state.masks.bit_generator, np.random.PCG64):
                kind = type(state.masks.bit_generator).__name__
                raise ValueError(
                    f"TrainStep: graph is True and seed a generator with {kind}, expected one with PCG64"
                )
            self.states = self.home.asarray(np.zeros((MASKS, random.STATE), np.uint64))
        self.places: dict[Hashable, Any] = {}  # of states of the model, by their shapes
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
        """Return whether the arrays of a state are those of this object, and the steps those of its
        owner.
        """
        same = state.params is self.params and state.moments.slots is self.slots
        return same and owner is self.owner and (state.sums is None or state.sums is self.sums)

    def take(self, state: StepState, inputs: Inputs, scalars: np.ndarray[Any, Any]) -> StepState:
        """Return the state after a step of the owner, whose arrays are those of this object.

        There is one warning where a step cannot be captured; steps go on without graphs then.

        Parameters
        ----------
        state : StepState
        inputs : Inputs
        scalars : array
            The numbers of `HostScalars` and those of the optimiser, on the host.
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
        """Return all that decides which kernels a step launches, and on which numbers of the host
        they depend.
        """
        lengths = tuple(
            (name, np.asarray(value).tobytes()) for name, value in inputs.options.items()
        )
        # A graph has this number of the generator of masks.
        increment = state.masks and state.masks.bit_generator.state["state"].get("inc")
        return (
            _kinds((inputs.x, inputs.target, inputs.mask)),
            inputs.fresh,
            lengths,
            _kinds(None if inputs.fresh else state.carried),
            increment,
            state.batches == 0,  # the first of an update
            state.batches + 1 == self.owner.accumulate,  # and the last
            None if inputs.host.part is None else inputs.host.part.key,
        )

    def _refused(self, error: Exception) -> None:
        """Say why steps go on without graphs, and give back the memory of all that were
        captured.
        """
        warnings.warn(
            f"TrainStep: graph is {self.owner.graph}, but a step cannot be captured"
            f" ({optional_imports.first_line(error)}); steps go on without",
            RuntimeWarning,
            stacklevel=5,
        )
        self.recorder = None
        self.captured.clear()

    def _with_arrays(self, state: StepState) -> StepState:
        """Return a state with the arrays of this object."""
        moments = state.moments._replace(slots=self.slots)
        return state._replace(
            params=self.params, moments=moments, decided=self.decided, sums=self.sums
        )

    def _done(self, state: StepState, inputs: Inputs, scalars: Array) -> StepState:
        """Take a step in place, with what it decides in its place too."""
        after: StepState = self.owner.take_on_device(state, inputs, scalars, in_place=True)
        self.decided[...] = after.decided
        if self.sums is None:
            self.sums = after.sums
        return self._with_arrays(after)

    def _capture(self, recorder: Recorder, state: StepState, inputs: Inputs, end: Any) -> _Captured:
        """Capture a step, which has just been taken and has left the model in the state `end`."""
        if _kinds(end) not in self.places:
            self.places[_kinds(end)] = _copied(end)
        place = self.places[_kinds(end)]
        x, target, mask = _copied((inputs.x, inputs.target, inputs.mask))
        fixed = inputs._replace(x=x, target=target, mask=mask)
        later = None
        if state.masks is not None:
            later = random.Later(state.masks.bit_generator, self.states, fixed.host.part)
        state = self._with_arrays(state)._replace(
            masks=later, carried=None if state.carried is None else place
        )
        self._leave(place, end)  # its kernels are to be compiled, too
        graph = recorder.capture(
            lambda: self._leave(place, self._done(state, fixed, self.scalars).carried)
        )
        return _Captured(graph, fixed, place, [] if later is None else later.sizes)

    def _leave(self, place: Any, end: Any) -> None:
        """Put the state of the model after a step into its place, unless the step could not be
        taken.
        """
        _, _, failed, _ = self.decided
        for old, new in zip(leaves(place), leaves(end), strict=True):
            fuse(self.home.xp, _unless_failed, old, new, failed, out=old)

    def _launched(
        self, step: _Captured, state: StepState, inputs: Inputs, scalars: np.ndarray[Any, Any]
    ) -> StepState:
        """Put everything that changes into the places of a graph, and launch it."""
        # This raises where another device is current.
        namespace("TrainStep", dict([next(iter(state.params.items()))]))
        for name in ("x", "target", "mask"):
            if getattr(inputs, name) is not None:
                getattr(step.inputs, name)[...] = getattr(inputs, name)
        self.scalars[...] = self.home.asarray(scalars, "float64")
        if step.sizes:
            assert state.masks is not None
            states = random.states(state.masks, step.sizes)
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
    """Return copies of the arrays of a tree, by default with the strides that they have."""
    return mapped(tree, lambda _, a: a.copy(order=order))


def _kinds(tree: Any) -> Hashable:
    """Return the shapes and dtypes of arrays."""
    return tuple([(tuple(a.shape), str(a.dtype)) for a in leaves(tree)])
