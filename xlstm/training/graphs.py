"""Steps of training on a GPU: decisions that the host need not wait for, and CUDA graphs, one for
each shape.

The GPU decides whether a step counts, and whether all steps so far could be taken. The state of a
device is a float64 array there with the numbers of `Decided`; a step makes a new one from the last,
and from the numbers that the host gives it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xlstm.arrays import checks, foreach, optional_imports, random
from xlstm.arrays.cuda.cuda_graph import CudaGraph, Recorder
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params, leaves, namespace
from xlstm.training.feed import Inputs

if TYPE_CHECKING:
    from xlstm.training.steps import Step, StepState

MOST = 8  # graphs of a run; batches of other shapes go without
SEEN = 64  # shapes of which it is known that they came before
MASKS = 1024  # that a step draws at most

# the array has the numbers of `Given` and others
Take = Callable[["StepState", Inputs, Array], "StepState"]


def choice(where: str, name: str, value: Any) -> bool | str:
    """Check whether steps are to be captured: True, False or "auto"."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, str) and value == "auto"):
        return value if isinstance(value, str) else bool(value)
    raise ValueError(f"{where}: {name} is {checks.shown(value)}, expected True, False or 'auto'")


def is_ours(value: Any) -> bool:
    """Return whether a function or an object is of this package, and so are all parts of a module.

    It asks a GPU for the same each time it runs, which code of a user need not do.
    """
    made = value.func if isinstance(value, functools.partial) else value
    if not str(getattr(made, "__module__", "")).startswith(f"{__name__.partition('.')[0]}."):
        return False
    held = getattr(made, "model", None)  # that of `LowRank`
    return (held is None or is_ours(held)) and all(
        map(is_ours, getattr(made, "parts", {}).values())
    )


class Decided(NamedTuple):
    """The numbers of a device_state.

    Attributes
    ----------
    loss, norm : float
        Those of the last step.
    failed : float
        The number of the first step that could not be taken, or 0; nothing changes after it.
    counts : float
        Whether the last step's gradients were taken: 1 or 0.
    """

    loss: float = 0.0
    norm: float = 0.0
    failed: float = 0.0
    counts: float = 0.0


class Given(NamedTuple):
    """The numbers that the host gives a step; those of the optimiser come after them.

    Attributes
    ----------
    number : float
        That of the step among those that the host has not looked at, from 1.
    scale : float
        The factor of the gradients.
    forgiven : float
        1 where a step whose gradients are not finite is left out, and 0 where it cannot be taken.
    targets, total : float
        The number of targets of the batch, and of all batches of an update.
    share : float
        The share of a rank in the targets of the batch.
    signal, stop, check : float
        Those of a rank's `Head`.
    """

    number: float
    scale: float
    forgiven: float
    targets: float
    total: float
    share: float = 1.0
    signal: float = 0.0
    stop: float = 0.0
    check: float = 0.0


def decision(device_state: Array, name: str) -> Array:
    """Return a number of a device_state, a 0-d array that lies in it."""
    return device_state[Decided._fields.index(name)]


def decide(xp: Namespace, device_state: Array, loss: Array, norm: Array, given: Given) -> Array:
    """Return the state of the device after a step with this loss and norm of its gradients, from
    one launch.
    """
    after = xp.empty_like(device_state)
    failed = decision(device_state, "failed")
    places = tuple(after[k] for k in range(len(after)))
    fuse(xp, _decisions, loss, norm, given.number, given.forgiven, failed, out=places)
    return after


def _decisions(
    xp: Namespace, loss: Array, norm: Array, number: Array, forgiven: Array, failed: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the numbers of `Decided`, in its order."""
    loss = xp.astype(loss, xp.float64)
    norm = xp.astype(norm, xp.float64)
    finite = _finite(xp, norm)
    sound = _finite(xp, loss) * xp.maximum(finite, forgiven)
    failed = xp.where(failed > 0, failed, (1 - sound) * number)
    return loss, norm, failed, xp.where(failed > 0, xp.zeros_like(failed), finite)


def _finite(xp: Namespace, a: Array) -> Array:
    """Return 1 where a number is finite, else 0."""
    return xp.where(xp.abs(a) <= sys.float_info.max, xp.ones_like(a), xp.zeros_like(a))


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

    def __init__(self, owner: Step, state: StepState) -> None:
        # of the steps that are captured, with all that they read, such as frozen weights
        self.owner = owner
        xp = state.feed.home.xp
        self.home = state.feed.home
        masks = state.masks
        self.params = _copies(xp, state.params)
        self.slots = {slot: _copies(xp, moments) for slot, moments in state.moments.slots.items()}
        self.sums = None if state.sums is None else _copies(xp, state.sums)
        self.device_state = xp.asarray(state.device_state, copy=True)
        self.given: Array = None
        self.states: Array = None  # of masks
        if masks is not None:
            if not isinstance(masks.bit_generator, np.random.PCG64):
                kind = type(masks.bit_generator).__name__
                raise ValueError(
                    f"Step: graph is True and seed a generator with {kind}, expected one with PCG64"
                )
            self.states = self.home.asarray(np.zeros((MASKS, random.STATE), np.uint64))
        self.places: dict[Hashable, Any] = {}  # of states of the model, by their shapes
        self.captured: dict[Hashable, _Captured] = {}
        self.seen: dict[Hashable, None] = {}
        self.most = MOST  # 0 once a step could not be captured
        self.recorder: Recorder | None = None
        try:
            self.recorder = Recorder()
        except Exception as error:
            if owner.graph is True:
                raise
            self._refused(error)

    def hold(self, owner: Step, state: StepState) -> bool:
        """Return whether the arrays of a state are those of this object, and the steps those of its
        owner.
        """
        same = state.params is self.params and state.moments.slots is self.slots
        return same and owner is self.owner and (state.sums is None or state.sums is self.sums)

    def take(
        self, step: Take, state: StepState, inputs: Inputs, given: np.ndarray[Any, Any]
    ) -> StepState:
        """Return the state after a step, whose arrays are those of this object.

        There is one warning where a step cannot be captured; steps go on without graphs then.

        Parameters
        ----------
        step : callable
            `step(state, inputs, given) -> state` changes the arrays of the state in their places,
            but for `device_state` and the state of the model.
        state : StepState
        inputs : Inputs
        given : array
            The numbers of `Given` and those of the optimiser, on the host.
        """
        if self.recorder is not None:
            self.recorder.check()
        state = self._with_arrays(state)
        if self.given is None:
            self.given = self.home.asarray(np.zeros(given.shape), "float64")
        start = None if inputs.fresh else state.carried
        batch = (inputs.x, inputs.target, inputs.mask)
        # first, last of an update
        place = (state.batches == 0, state.batches + 1 == self.owner.accumulate)
        lengths = tuple(
            (name, np.asarray(value).tobytes()) for name, value in inputs.options.items()
        )
        # A graph has this number of the generator of masks.
        increment = (
            None if state.masks is None else state.masks.bit_generator.state["state"].get("inc")
        )
        part = None if inputs.host.part is None else inputs.host.part.key
        key = (_kinds(batch), inputs.fresh, lengths, _kinds(start), increment, place, part)
        if key in self.captured:
            return self._launched(self.captured[key], state, inputs, given)
        with contextlib.nullcontext() if self.recorder is None else self.recorder.rehearsal():
            after = self._done(step, state, inputs, self.home.asarray(given, "float64"))
        if key in self.seen and len(self.captured) < self.most:
            try:
                self.captured[key] = self._capture(step, state, inputs, after.carried)
            except Exception as error:
                self._refused(error)
        self.seen[key] = None
        if len(self.seen) > SEEN:
            del self.seen[next(iter(self.seen))]
        return after

    def _refused(self, error: Exception) -> None:
        """Say why steps go on without graphs, and give back the memory of all that were
        captured.
        """
        problem = (
            f"graph is {self.owner.graph}, but a step cannot be captured"
            f" ({optional_imports.first_line(error)})"
        )
        warnings.warn(f"Step: {problem}; steps go on without", RuntimeWarning, stacklevel=5)
        self.recorder = None
        self.most = 0
        self.captured.clear()

    def _with_arrays(self, state: StepState) -> StepState:
        """Return a state with the arrays of this object."""
        moments = state.moments._replace(slots=self.slots)
        return state._replace(
            params=self.params, moments=moments, device_state=self.device_state, sums=self.sums
        )

    def _done(self, step: Take, state: StepState, inputs: Inputs, given: Array) -> StepState:
        """Take a step in place, with the device_state in its place too."""
        after = step(state, inputs, given)
        self.device_state[...] = after.device_state
        if self.sums is None:
            self.sums = after.sums
        return self._with_arrays(after)

    def _capture(self, step: Take, state: StepState, inputs: Inputs, end: Any) -> _Captured:
        """Capture a step, which has just been taken and has left the model in the state `end`."""
        if _kinds(end) not in self.places:
            self.places[_kinds(end)] = _copied(end)
        place = self.places[_kinds(end)]
        fixed = inputs._replace(
            x=_copied(inputs.x), target=_copied(inputs.target), mask=_copied(inputs.mask)
        )
        later = (
            None
            if state.masks is None
            else random.Later(state.masks.bit_generator, self.states, fixed.host.part)
        )
        state = self._with_arrays(state)._replace(
            masks=later, carried=None if state.carried is None else place
        )
        self._leave(place, end)  # its kernels are to be compiled, too
        assert self.recorder is not None
        graph = self.recorder.capture(
            lambda: self._leave(place, self._done(step, state, fixed, self.given).carried)
        )
        return _Captured(graph, fixed, place, [] if later is None else later.sizes)

    def _leave(self, place: Any, end: Any) -> None:
        """Put the state of the model after a step into its place, unless the step could not be
        taken.
        """
        for old, new in zip(leaves(place), leaves(end), strict=True):
            fuse(
                self.home.xp,
                _unless_failed,
                old,
                new,
                decision(self.device_state, "failed"),
                out=old,
            )

    def _launched(
        self, known: _Captured, state: StepState, inputs: Inputs, given: np.ndarray[Any, Any]
    ) -> StepState:
        """Put everything that changes into the places of a graph, and launch it."""
        # raises where another device is current
        namespace("Step", dict([next(iter(state.params.items()))]))
        for name in ("x", "target", "mask"):
            if getattr(inputs, name) is not None:
                getattr(known.inputs, name)[...] = getattr(inputs, name)
        self.given[...] = self.home.asarray(given, "float64")
        if known.sizes:
            assert state.masks is not None
            self.states[: len(known.sizes)] = self.home.asarray(
                random.states(state.masks, known.sizes)
            )
        if not inputs.fresh and state.carried is not None and state.carried is not known.start:
            for old, new in zip(leaves(known.start), leaves(state.carried), strict=True):
                old[...] = new
        known.graph.launch()
        step = state.moments.step + (state.batches + 1 == self.owner.accumulate)
        return state._replace(carried=known.start, moments=state.moments._replace(step=step))


def _copies(xp: Namespace, arrays: Params) -> Params:
    """Return copies of arrays, each contiguous."""
    whole = [a if a.flags.c_contiguous else a.copy(order="C") for a in arrays.values()]
    return dict(zip(arrays, foreach.copies(xp, whole), strict=True))


def _unless_failed(xp: Namespace, old: Array, new: Array, failed: Any) -> Array:
    return xp.where(failed > 0, old, new)


def _copied(tree: Any) -> Any:
    """Return a copy of a state of a model."""
    if isinstance(tree, tuple | list):
        return tuple(map(_copied, tree))
    return None if tree is None else tree.copy(order="K")


def _kinds(tree: Any) -> Hashable:
    """Return the shapes and dtypes of arrays."""
    if isinstance(tree, tuple | list):
        return tuple(map(_kinds, tree))
    return None if tree is None else (tuple(tree.shape), str(tree.dtype))
