"""One step of training: forward, loss, backward, and an update of the parameters."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks, foreach
from xlstm.arrays.cached import cached_property
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.fuse import compiles, listed
from xlstm.arrays.namespace import Array, Namespace, Params, namespace_of
from xlstm.arrays.random import Seed, generator, of_part
from xlstm.arrays.ranks.groups import GROUP, Group
from xlstm.data.batches import Batch
from xlstm.engines.cuda.check import first_training
from xlstm.layers.module import STREAM
from xlstm.precision import Mixed, Scaling, after, lowered, raised
from xlstm.training import optimizers
from xlstm.training.adapters import LowRank
from xlstm.training.callbacks import Callback, has
from xlstm.training.feed import Feed, Inputs, Loss, loss_of
from xlstm.training.graphs import Decided, Given, Graphs, choice, decide, decision, is_ours
from xlstm.training.optimizers import ByRules, Optimizer
from xlstm.training.parallel import Joint, checksum, held, joint_of, same, shared

OPTIMIZER = checks.instance(Optimizer, "one of xlstm.optim, such as optim.adam(1e-3)")
MIXED = checks.optional(checks.instance(Mixed, "None or an xlstm.precision.Mixed"))
RANKS = checks.optional(GROUP)
NOT_FINITE = "the loss or the norm of the gradient is not finite"
AHEAD = 32  # steps that the host is ahead of a GPU at most, before it looks how they went


class StepState(NamedTuple):
    """All that a step changes.

    Attributes
    ----------
    params : dict of str to array
    moments : OptimState
        The state of the optimiser.
    carried : tuple or None
        The state of the model at the end of the last batch.
    scaling : Scaling
        The scale of gradients in mixed precision.
    sums : dict of str to array, or None
        The gradients accumulated since the last update, each times its number of targets.
    weight : float
        The number of targets that they are of.
    batches : int
        The number of batches that they are of.
    updates : int
        Updates done.
    masks : numpy.random.Generator or None
        Where the masks of dropout and zoneout come from; a step draws from it.
    feed : Feed
        The way of batches onto the device of the parameters.
    device_state : array or None
        Decisions of the GPU, on CuPy; see `Decided`.
    pending : tuple of str
        The names of steps that the host has not looked at yet.
    graphs : Graphs or None
        CUDA graphs of steps, which have the arrays of this state and change them.
    joint : Joint or None
        The sums of the ranks of a group.
    """

    params: Params
    moments: optimizers.OptimState
    carried: Any
    scaling: Scaling
    sums: Params | None
    weight: float
    batches: int
    updates: int
    masks: np.random.Generator | None
    feed: Feed
    device_state: Array | None = None
    pending: tuple[str, ...] = ()
    graphs: Graphs | None = None
    joint: Joint | None = None


class Taken(NamedTuple):
    """How a step went.

    Attributes
    ----------
    loss : float, or 0-d array
        That of its batch; on the GPU where the step did not wait.
    norm : float, or 0-d array
        The norm of the gradient; with a group and `accumulate` the root of the sum of the squares
        of all ranks' parts.
    updated : bool, or 0-d array
        Whether the step changed the parameters.
    """

    loss: float | Array
    norm: float | Array
    updated: bool | Array


@dataclass(frozen=True)
class Step:
    """One step of training, for a loop of your own; `training.train` is made of it.

    The state of a recurrent model is carried from batch to batch unless a batch is `fresh`, and
    gradients stop at the border of a batch: truncated backpropagation through time.

    Parameters
    ----------
    model : object
        Any model or layer; `training.train` says what it needs.
    optimizer : Optimizer
    loss : callable, optional
        `loss(y, target, mask) -> (loss, dy)`; by default the model's own `loss`, or else
        `losses.mse`.
    precision : Mixed, optional
        Arithmetic of forward and backward.
    callbacks : list of Callback
        Only what they do to gradients matters here.
    accumulate : int
        Update the parameters after so many batches, by the mean gradient over all their targets.
    wait : bool
        Wait for the loss and the norm of each step. Without that a step on CuPy is only asked for:
        `loss`, `norm` and `updated` are arrays on the GPU, and whether a step could be taken shows
        in `settle`, or 32 steps later. Nothing changes after a step that could not be taken. Steps
        wait all the same with other libraries, with an optimiser of your own, and where gradients
        are scaled, as in float16.
    graph : bool or "auto"
        Capture steps in CUDA graphs on CuPy: a step is one launch, with the same bits, from the
        third time on that a batch comes with the same shapes, lengths, options, kind of start
        (fresh or not) and place in an update (see `accumulate`). The arrays of a state are changed
        by the step after it, so copy those that you keep. A loss, a model or a callback's
        `gradients` does not run on the host then: the numbers that it made there when the step was
        captured stay. "auto" captures where that is possible, and nothing of it is code of your
        own, and takes steps one by one elsewhere.
    group : Group, optional
        The ranks that train together, as `distributed.group()` returns them. Each is given its part
        of every batch, by `distributed.Shard`; loss and gradients are those of the whole batch, and
        so is all that follows. `init` takes the weights of rank 0.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong kind, or out of range.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm import optim, training
    >>> from xlstm.data import Windows
    >>> lstm = xlstm.LSTM(1, 4)
    >>> step = training.Step(lstm, optim.adam(1e-2))
    >>> state = step.init(lstm.init(backend="numpy"))
    >>> data = Windows(np.ones((8, 5, 1)), np.ones((8, 5, 4)), every_step=True)
    >>> for batch in data.batches():
    ...     state, taken = step(state, batch)
    >>> taken.updated
    True
    """

    model: Any
    optimizer: Optimizer
    loss: Loss | None = field(default=None, kw_only=True)
    precision: Mixed | None = field(default=None, kw_only=True)
    callbacks: Iterable[Callback] = field(default=(), kw_only=True)
    accumulate: int = field(default=1, kw_only=True)
    wait: bool = field(default=True, kw_only=True)
    graph: bool | str = field(default=False, kw_only=True)
    group: Group | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        flags = {"wait": checks.flag, "graph": choice}
        checks.fields(
            self,
            optimizer=OPTIMIZER,
            precision=MIXED,
            accumulate=checks.count,
            group=RANKS,
            **flags,
        )
        if self.graph is True and not isinstance(self.optimizer, ByRules):
            raise ValueError("Step: graph is True, which needs an optimizer of xlstm.optim")
        object.__setattr__(self, "loss", loss_of("Step", self.model, self.loss))

    def init(self, params: Params, seed: Seed = 0) -> StepState:
        """Return the state before the first step.

        Parameters
        ----------
        params : dict of str to array
            Starting weights; they are not changed. Their library and device are used.
        seed : int or numpy.random.Generator
            Decides the masks of dropout and zoneout.

        Returns
        -------
        StepState

        Raises
        ------
        TypeError, ValueError, BackendError
            These are no parameters of a model, or a `precision` does not go with them.
        """
        params = from_foreign("train", params)
        feed = Feed.of("train", self.model, params, self.precision)
        if compiles(feed.home.xp):
            first_training(feed.low.dtype, feed.home.dtype)
        scaling = Scaling() if self.precision is None else self.precision.init()
        masks = generator(seed, stream=STREAM) if getattr(self.model, "random", False) else None
        if self.graph is True and not compiles(feed.home.xp):
            raise BackendError(
                "Step: graph is True, which needs arrays of CuPy on CUDA, the backend is"
                f" {feed.home}"
            )
        joint = None
        if self.group is not None:
            kinds = {name: f"{p.dtype} {p.shape}" for name, p in params.items()}
            # no rank sends these
            kept = self.model.params if isinstance(self.model, LowRank) else {}
            settings = {
                **self._settings,
                "backend": feed.home.name,
                "parameters": kinds,
                "checksum of the weights that stay": checksum(kept),
            }
            drawn_by = same(
                self.group, "train", settings, None if masks is None else masks.bit_generator.state
            )
            if masks is not None:  # each rank may have been given another generator
                masks.bit_generator.state = drawn_by
            params = shared(self.group, feed.home, params)
            joint = joint_of(self.group, feed.home, params, self.optimizer, self.callbacks)
        moments = self.optimizer.init(params)
        moments = moments if joint is None else joint.part_of(moments)
        return StepState(params, moments, None, scaling, None, 0.0, 0, 0, masks, feed, joint=joint)

    def __call__(
        self, state: StepState, batch: Batch | Inputs, where: str = "step"
    ) -> tuple[StepState, Taken]:
        """Take a step.

        Parameters
        ----------
        state : StepState
        batch : Batch
        where : str
            The name of the step in errors.

        Returns
        -------
        state : StepState
        taken : Taken

        Raises
        ------
        FloatingPointError
            The loss, a parameter or a gradient is not finite, with `precision` at the least scale
            too.
        ValueError
            Numbers of the batch are not finite or do not fit into the dtype. The batch is a part of
            a larger one and there is no group, or the reverse.
        OtherRankError
            Another rank of the group could not take the step.
        """
        joint = state.joint
        if joint is None:
            return self._taken(state, self._inputs(state, batch, where), where)
        joint.where = where
        joint.ended = batch is None  # as a run gives where the data of this rank have ended
        if joint.error is None and batch is not None:
            with held(joint):
                batch = self._inputs(state, batch, where)
                assert batch.host.part is not None
                joint.note(batch.host.part, self._rates(state))
        if joint.error is not None or batch is None:
            return self._refused(state, where)
        assert isinstance(batch, Inputs)
        found = self._taken(state, batch, where)
        if state.masks is not None:
            joint.same_masks(state.masks, batch)
        return found

    def _taken(self, state: StepState, inputs: Inputs, where: str) -> tuple[StepState, Taken]:
        """Take a step, or ask a GPU for it."""
        if not self._asks(state):
            return self._watched(state, inputs, where)
        waits = self.wait or self._scales
        if waits or len(state.pending) == AHEAD:
            state = self.settle(state)
        before = None if state.masks is None else state.masks.bit_generator.state
        enqueued = self._enqueued(state, inputs)
        if waits:
            return self._awaited(state, enqueued, inputs, where, before)
        device_state = enqueued.device_state
        if enqueued.graphs is not None:  # which change it
            device_state = state.feed.home.xp.asarray(device_state, copy=True)
        loss, norm, counts = (decision(device_state, name) for name in ("loss", "norm", "counts"))
        after_it = self._counted(enqueued, inputs)._replace(pending=(*state.pending, where))
        return after_it, Taken(loss, norm, counts if after_it.batches == 0 else False)

    def settle(self, state: StepState) -> StepState:
        """Wait for all steps that were asked for, and return the state with the numbers that are
        known then.

        Parameters
        ----------
        state : StepState

        Returns
        -------
        StepState

        Raises
        ------
        FloatingPointError
            One of the steps could not be taken; the error names it.
        """
        if not state.pending:
            return state
        if state.joint is not None:
            state.joint.look()
        failed = int(Decided(*to_numpy(state.device_state).tolist()).failed)
        if failed:
            raise FloatingPointError(
                f"{state.pending[failed - 1]}: {NOT_FINITE}; where steps wait, the error says why"
            )
        return state._replace(pending=())

    @property
    def _scales(self) -> bool:
        """Whether gradients are scaled, so that a step may be left out."""
        return self.precision is not None and self.precision.scales

    def _rates(self, state: StepState) -> tuple[float, ...]:
        """Return the learning rate of each rule of the optimiser, where it has rules."""
        rules = self.optimizer.rules if isinstance(self.optimizer, ByRules) else ()
        return tuple(rule.rate(state.updates) for rule in rules if rule is not None)

    def _asks(self, state: StepState) -> bool:
        """Return whether a GPU makes the decisions of a step."""
        return compiles(state.feed.home.xp) and isinstance(self.optimizer, ByRules)

    @property
    def _local(self) -> bool:
        """Whether gradients are summed over ranks once an update; scaled ones may overflow in any
        batch.
        """
        return self.group is not None and self.accumulate > 1 and not self._scales

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings of a step that decide its numbers."""
        return {
            "model": (
                text_of(self.model)
                if dataclasses.is_dataclass(self.model)
                else type(self.model).__name__
            ),
            "precision": None if self.precision is None else repr(self.precision),
            "accumulate": self.accumulate,
            "optimizer": text_of(self.optimizer),
            "loss function": text_of(getattr(self.loss, "__func__", self.loss)),
            "callbacks": [
                (
                    text_of(callback)
                    if type(callback).__module__ == Callback.__module__
                    else type(callback).__name__
                )
                for callback in self.callbacks
                # the repr of a user's callback may change
                if has(callback, "gradients", "weights", "state")
            ],
        }

    def _inputs(self, state: StepState, batch: Batch | Inputs, where: str) -> Inputs:
        """Return a batch as the model takes it."""
        if isinstance(batch, Inputs):
            return batch
        inputs = state.feed.inputs(batch, where)
        if (batch.part is None) != (self.group is None):
            expected = (
                "expected batches of distributed.Shard where the Step has a group, and only there"
            )
            raise ValueError(
                f"{where}: the batch is {'whole' if batch.part is None else 'a part'}, {expected}"
            )
        return inputs

    def _refused(self, state: StepState, where: str) -> tuple[StepState, Taken]:
        """Tell all ranks that this one cannot take the step; raises its error, at once or when
        steps are settled.
        """
        assert state.joint is not None
        if len(state.pending) == AHEAD:
            self.settle(state)
        batches = (state.batches + 1) % self.accumulate
        # a GPU sums before it looks
        state.joint.fail(self._local, self._local and batches == 0 and self._asks(state))
        if self.wait or self._scales or not self._asks(state):
            state.joint.look()
        return state._replace(pending=(*state.pending, where), batches=batches), Taken(
            math.nan, math.nan, False
        )

    def _captures(self, masks: np.random.Generator | None) -> bool:
        """Return whether steps on a GPU are captured."""
        if self.graph == "auto":
            return self._ours and (
                masks is None or isinstance(masks.bit_generator, np.random.PCG64)
            )
        return bool(self.graph)

    @cached_property
    def _ours(self) -> bool:
        """Whether all that a step runs on the host is of this package."""
        callbacks = [callback for callback in self.callbacks if has(callback, "gradients")]
        return all(map(is_ours, (self.model, self.loss, self.optimizer, *callbacks)))

    def _watched(self, state: StepState, inputs: Inputs, where: str) -> tuple[StepState, Taken]:
        """Take a step whose decisions the host makes."""
        feed = state.feed
        scaling = state.scaling
        given = self._given(state, inputs)
        value, carried, used, grads, norm = self._summed(state, inputs, scaling.scale, given)
        loss, size = map(float, to_numpy(feed.home.xp.stack((value, norm))))
        if state.joint is not None:
            state.joint.look()
        next_scaling = after(self.precision, scaling, math.isfinite(size))
        if next_scaling is None or not math.isfinite(loss):
            with held(state.joint):
                feed.check(where, inputs.host, everything=True)
            if state.joint is not None:
                state.joint.told("a step")
            low = feed.low.dtype
            narrow = (
                "" if self.precision is None else f" in {low} at a loss scale of {scaling.scale:g}"
            )
            raise FloatingPointError(f"{where}: {_diagnosis(loss, used, grads, narrow)}")
        state = state._replace(carried=carried, scaling=next_scaling)
        if not math.isfinite(size):
            return state, Taken(loss, size, False)
        state = self._updated(
            state, grads, norm, (given.total, given.targets), self.optimizer.update
        )
        state = self._counted(state, inputs)
        return state, Taken(loss, size, state.batches == 0)

    def _enqueued(self, state: StepState, inputs: Inputs) -> StepState:
        """Enqueue a step on a GPU; the state after it has the counts from before it."""
        assert isinstance(self.optimizer, ByRules)
        home = state.feed.home
        if state.device_state is None:
            state = state._replace(device_state=home.asarray(np.array(Decided()), "float64"))
        given = np.array([*self._given(state, inputs), *self.optimizer.numbers(state.updates)])
        if not self._captures(state.masks):
            return self._arrays(state._replace(graphs=None), inputs, home.asarray(given, "float64"))
        graphs = state.graphs
        if graphs is None or not graphs.hold(self, state):
            graphs = Graphs(self, state)
        step = functools.partial(self._arrays, in_place=True)
        return graphs.take(step, state, inputs, given)._replace(graphs=graphs)

    def _counted(self, state: StepState, inputs: Inputs) -> StepState:
        """Return the state with the counts after a step that was taken."""
        if state.batches + 1 < self.accumulate:
            return state._replace(weight=state.weight + inputs.total, batches=state.batches + 1)
        return state._replace(updates=state.updates + 1, sums=None, weight=0.0, batches=0)

    def _updated(
        self,
        state: StepState,
        grads: Params,
        norm: Array,
        numbers: Any,
        update: Any,
        in_place: bool = False,
    ) -> StepState:
        """Return the state after an update by the gradients, or with them in its sums where more
        are to come.

        The numbers are that of all targets of the update, that of this batch, and whether it
        counts.
        """
        total, *weights = numbers
        if self.accumulate > 1:
            # the first batch of an update does not look at them
            sums = grads if state.sums is None else state.sums
            into = (1,) if in_place and state.sums is not None else ()
            state = state._replace(
                sums=_each(_weighted, [grads, sums], tuple(weights), into, first=state.batches == 0)
            )
            if state.batches + 1 < self.accumulate:
                return state
            if state.joint is not None and self._local:
                grads, norm = state.joint.mean(state.sums or {}, total)
            else:
                grads = _each(_mean, [state.sums], (total,))
                norm = optimizers.global_norm(grads)
        for callback in self.callbacks:
            grads = callback.gradients(grads, norm)
        arrays = (state.params, grads, state.moments)
        params, moments = (
            update(*arrays) if state.joint is None else state.joint.updated(update, *arrays)
        )
        return state._replace(params=params, moments=moments)

    def _awaited(
        self, state: StepState, enqueued: StepState, inputs: Inputs, where: str, masks: Any
    ) -> tuple[StepState, Taken]:
        """Wait for a step, from `state` to `enqueued`; `masks` are the state of their generator
        before it.
        """
        decided = Decided(*to_numpy(enqueued.device_state).tolist())
        if state.joint is not None:
            state.joint.look()
        # no array of the state before has changed: the step is taken again to see why
        if decided.failed:
            if enqueued.graphs is not None:
                enqueued.device_state[...] = 0.0  # type: ignore[index]
            if state.masks is not None:
                state = state._replace(masks=copy.deepcopy(state.masks))
                state.masks.bit_generator.state = masks  # type: ignore[union-attr]
            self._watched(state, inputs, where)
            raise FloatingPointError(f"{where}: {NOT_FINITE}")
        scaling = after(self.precision, state.scaling, math.isfinite(decided.norm)) or state.scaling
        enqueued = enqueued._replace(scaling=scaling)
        if not decided.counts:
            moments = enqueued.moments._replace(step=state.moments.step)
            return enqueued._replace(moments=moments, sums=state.sums), Taken(
                decided.loss, decided.norm, False
            )
        enqueued = self._counted(enqueued, inputs)
        return enqueued, Taken(decided.loss, decided.norm, enqueued.batches == 0)

    def _arrays(
        self, state: StepState, inputs: Inputs, given: Array, in_place: bool = False
    ) -> StepState:
        """Return the state with its arrays after a step; nothing here waits, and a graph can
        capture it.

        With `in_place` parameters, moments and sums of gradients are changed where they are.
        """
        assert isinstance(self.optimizer, ByRules)
        first = Given(*given[: len(Given._fields)])
        numbers = list(given[len(Given._fields) :])
        loss, carried, _, grads, norm = self._summed(
            state, inputs, first.scale if self._scales else 1.0, first
        )
        device_state = decide(state.feed.home.xp, state.device_state, loss, norm, first)
        counts = decision(device_state, "counts")
        state = state._replace(carried=carried, device_state=device_state)
        update = functools.partial(
            self.optimizer.apply, numbers=numbers, counts=counts, in_place=in_place
        )
        return self._updated(
            state, grads, norm, (first.total, first.targets, counts), update, in_place
        )

    def _given(self, state: StepState, inputs: Inputs) -> Given:
        """Return the numbers that the host gives a step."""
        forgiven = after(self.precision, state.scaling, False) is not None
        numbers = (len(state.pending) + 1, state.scaling.scale, forgiven)
        targets = inputs.weight if self._local else inputs.total
        total = state.weight + inputs.total or 1.0
        if state.joint is None:
            return Given(*numbers, targets, total)
        joint = state.joint
        share = inputs.weight / (inputs.total or 1.0)
        return Given(
            *numbers, targets, total, share, float(joint.signal), float(joint.stop), joint.check
        )

    def _summed(
        self, state: StepState, inputs: Inputs, scale: float | Array, given: Given
    ) -> tuple[Array, Any, Params, Params, Array]:
        """Return what `_gradients` does, with a group that of the whole batch, and the norm of the
        gradient.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named later
            if state.joint is not None:
                early = self._scales  # so that the same gradients overflow as in the whole batch
                own = functools.partial(
                    self._gradients, state, inputs, scale, given.share if early else 1.0
                )
                return state.joint.summed(own, state, inputs, given, self._local, early)
            found = self._gradients(state, inputs, scale)
            return *found, optimizers.global_norm(found[-1])

    def _gradients(
        self, state: StepState, inputs: Inputs, scale: float | Array, share: float | Array = 1.0
    ) -> tuple[Array, Any, Params, Params]:
        """Return the loss, the state of the model at the end, the weights it was run with, and a
        share of gradients.
        """
        feed = state.feed
        dtype = state.feed.home.dtype
        low = state.feed.low.dtype
        masks = {} if state.masks is None else {"seed": of_part(state.masks, inputs.host.part)}
        used = lowered(state.params, low)  # copies in a lower precision, where there is one
        y, carried, saved = feed.forward(used, inputs, state.carried, train=True, **masks)
        value, dy = self.loss(raised(y, dtype), inputs.target, inputs.mask)  # type: ignore[misc]
        grads = self.model.backward(used, saved, lowered(dy, low, scale * share))[0]
        grads = {name: g for name, g in grads.items() if not self.optimizer.frozen(name)}
        return value, carried, used, raised(grads, dtype, scale)


def text_of(value: Any) -> str:
    """Return the repr of a setting without what may differ: addresses in memory, and the length of
    a cosine.
    """
    return re.sub(r"(?<=function _cosine) at 0x\w+>, steps=\d+| at 0x\w+", "", repr(value))


def _diagnosis(loss: float, params: Params, grads: Params, narrow: str) -> str:
    """Return why a step cannot be taken; `narrow` names a lower precision."""
    for what, arrays in {"parameter": params, "gradient of": grads}.items():
        for name, array in arrays.items():
            if not np.all(np.isfinite(to_numpy(array))):
                wider = ", clipping, or float32" if narrow else " or clipping"
                problem = (
                    f"{what} {name} is not finite{narrow}; a smaller learning rate{wider} may help"
                )
                return f"loss is {loss:g}, {problem}"
    if math.isfinite(loss):
        return (
            f"loss is {loss:g}, the norm of the gradient overflows; clipping values or a wider"
            " dtype may help"
        )
    return (
        f"loss is {loss:g} though every parameter and gradient is finite: are there targets out of"
        " range?"
    )


def _each(
    function: Any,
    columns: list[Any],
    numbers: tuple[Any, ...],
    into: tuple[int, ...] = (),
    **options: Any,
) -> Params:
    """Return a function of arrays by name and of numbers, for each name."""
    names = list(columns[0])
    arrays = [[column[name] for name in names] for column in columns]
    results = foreach.apply(namespace_of(arrays[0][0]), function, arrays, numbers, into, **options)
    return {name: listed(result)[0] for name, result in zip(names, results, strict=True)}


def _weighted(
    xp: Namespace, g: Array, sums: Array, weight: Any, *counts: Array, first: bool
) -> Array:
    added = weight * g if first else sums + weight * g
    if not counts:
        return added
    return xp.where(counts[0] > 0, added, xp.zeros_like(sums) if first else sums)


def _mean(xp: Namespace, sums: Array, total: Any) -> Array:
    return sums / total
