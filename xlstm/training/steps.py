"""One training step: forward, loss, backward, and an update of the parameters.

A step is two functions of the state: `TrainStep._gradients` and `TrainStep._update`. On CuPy both
only queue work on the GPU, and a CUDA graph can capture them. Elsewhere the host decides between
them whether the step counts.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks, compiled
from xlstm.arrays.cached import cached_property
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.fuse import compiles
from xlstm.arrays.groups import GROUP, Group, checksum
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.arrays.random import Seed, generator, of_part
from xlstm.data.batches import Batch
from xlstm.layers.announcements import announced
from xlstm.layers.module import STREAM
from xlstm.precision import Mixed, Scaling, after, lowered, raised
from xlstm.training.adapters import LowRank
from xlstm.training.agreement import held, same
from xlstm.training.callbacks import Callback, has
from xlstm.training.feed import Feed, Inputs, Loss, loss_of
from xlstm.training.optimizers import ByRules, Optimizer, each, norm_of
from xlstm.training.state import (
    Decided,
    Head,
    HostScalars,
    LossAndGradients,
    Runtime,
    StepState,
    Taken,
    decide_on_device,
    read,
)

AHEAD = 32  # the most steps that the host queues on a GPU before it checks their results


def graph_choice(where: str, name: str, value: Any) -> bool | str:
    """Return the checked option whether to capture steps: True, False or "auto"."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value == "auto":
        return value
    raise ValueError(f"{where}: {name} is {checks.shown(value)}, expected True, False or 'auto'")


# The checks of a step's options.
OPTIONS: dict[str, checks.Kind] = {
    "optimizer": checks.instance(Optimizer, "one of xlstm.optim, such as optim.adam(1e-3)"),
    "precision": checks.optional(checks.instance(Mixed, "None or an xlstm.precision.Mixed")),
    "accumulate": checks.count,
    "wait": checks.flag,
    "graph": graph_choice,
    "group": checks.optional(GROUP),
    "gradients": checks.optional(checks.choice(("bfloat16",))),
}


@dataclass(frozen=True)
class TrainStep:
    """One training step, for a loop of your own; `training.train` runs these steps.

    Each batch continues from the state of the batch before it, unless a batch is `fresh`. Gradients
    stop at the border of a batch: truncated backpropagation through time.

    Parameters
    ----------
    model : object
        Any model or layer; `training.train` says what it needs.
    optimizer : Optimizer
    loss : callable, optional
        `loss(y, target, mask) -> (loss, dy)`; by default the model's own `loss`, or else
        `losses.mse`.
    precision : Mixed, optional
        Mixed precision of the forward and backward passes.
    callbacks : list of Callback
        Callbacks that change gradients, such as `Clip`; their other methods are not called.
    accumulate : int
        Number of batches between two updates of the parameters. An update uses the mean gradient
        over all their targets.
    wait : bool
        Wait for the loss and the norm of each step. If False, a step on CuPy is only queued:
        `loss`, `norm` and `updated` are arrays on the GPU. An error of a step then shows in
        `settle`, or 32 steps later, and nothing changes after the step that failed. Steps always
        wait with other libraries, with an optimiser of your own, and when gradients are scaled, as
        in float16.
    graph : bool or "auto"
        Capture steps in CUDA graphs on CuPy. A step is then one launch, with the same bits. This
        begins with the third batch of the same kind: with the same shapes, lengths, options, start
        (fresh or not) and place in an update (see `accumulate`). Each step changes the arrays of
        the state before it, so copy arrays that you keep. The Python code of the loss, the model
        and a callback's `gradients` does not run in a launch: numbers that it computed on the host
        at capture stay. "auto" captures if that is possible and no code of your own takes part;
        otherwise it takes steps one by one.
    group : Group, optional
        The ranks that train together, as `distributed.group()` returns them. `distributed.Shard`
        gives each rank its part of every batch. Loss, gradients and update are computed over the
        whole batch. `init` takes the weights of rank 0.
    gradients : {"bfloat16"}, optional
        Send gradients between ranks as bfloat16, with half the bytes of float32, and sum them in
        float32, so that they keep its range. Rounding leaves residuals, which are added in the next
        step. By default ranks send gradients in the dtype of the weights. A single process sends
        none.

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
    >>> step = training.TrainStep(lstm, optim.adam(1e-2))
    >>> state = step.init(lstm.init(backend="numpy"))
    >>> data = Windows(np.ones((8, 5, 1)), np.ones((8, 5, 4)), every_step=True)
    >>> for batch in data.batches():
    ...     state, taken = step(state, batch)
    >>> taken.updated
    True
    """

    model: Any
    optimizer: Optimizer
    _: KW_ONLY
    loss: Loss | None = None
    precision: Mixed | None = None
    callbacks: Iterable[Callback] = ()
    accumulate: int = 1
    wait: bool = True
    graph: bool | str = False
    group: Group | None = None
    gradients: str | None = None

    def __post_init__(self) -> None:
        checks.fields(self, **OPTIONS)
        if self.graph is True and not isinstance(self.optimizer, ByRules):
            raise ValueError("TrainStep: graph is True, which needs an optimizer of xlstm.optim")
        object.__setattr__(self, "loss", loss_of("TrainStep", self.model, self.loss))

    def init(self, params: Params, seed: Seed = 0) -> StepState:
        """Return the state before the first step.

        Parameters
        ----------
        params : dict of str to array
            Starting weights, which stay unchanged. Training runs on their library and device.
        seed : int or numpy.random.Generator
            It decides the masks of dropout and zoneout.

        Returns
        -------
        StepState

        Raises
        ------
        TypeError, ValueError, BackendError
            `params` are not parameters of a model, or do not support the `precision`.
        """
        params = from_foreign("train", params)
        runtime = Runtime(Feed.of("train", self.model, params, self.precision))
        feed = runtime.feed
        if compiles(feed.home.xp):
            compiled.module("cupy.check").first_training(feed.low.dtype, feed.home.dtype)
        elif self.graph is True:
            raise BackendError(
                "TrainStep: graph is True, which needs arrays of CuPy on CUDA, the backend is"
                f" {feed.home}"
            )
        scaling = Scaling() if self.precision is None else self.precision.init()
        masks = generator(seed, stream=STREAM) if getattr(self.model, "random", False) else None
        if self.group is not None:
            # Ranks compare frozen weights, since no rank sends them.
            frozen = self.model.params if isinstance(self.model, LowRank) else {}
            settings = {
                **self.settings,
                "backend": feed.home.name,
                "parameters": {name: f"{p.dtype} {p.shape}" for name, p in params.items()},
                "checksum of the weights that stay": checksum(frozen.values()),
            }
            drawn_by = None if masks is None else masks.bit_generator.state
            drawn_by = same(self.group, "train", settings, drawn_by)
            if masks is not None:  # ranks may have been given different generators
                masks.bit_generator.state = drawn_by
            xp = feed.home.xp
            params = {name: xp.asarray(p, copy=True, order="C") for name, p in params.items()}
            self.group.share(list(params.values()))
            halved = self.gradients is not None and self.group.size > 1
            runtime.ranks = compiled.module("ranks.steps").all_reduce(
                self.group, feed.home, params, self.optimizer, self.callbacks, halved
            )
            moments = runtime.ranks.init(self.optimizer, params)
        else:
            moments = self.optimizer.init(params)
        return StepState(
            params, moments, None, scaling, None, 0.0, 0, 0, masks, Decided(), (), runtime
        )

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
            The loss, a parameter or a gradient is not finite (with `precision`, even at the least
            scale).
        ValueError
            Numbers of the batch are not finite or do not fit into the dtype. Or the batch is a
            rank's part and there is no group, or the reverse.
        OtherRankError
            Another rank of the group could not take the step.
        """
        ranks = state.runtime.ranks
        if ranks is None:
            inputs = self._inputs(state, batch, where)
        else:
            common = self._common_inputs(state, ranks, batch, where)
            if common is None:
                return self._refused(state, ranks, where)
            inputs = common
        if self._decides_on_device(state):
            new, taken = self._enqueue(state, inputs, where)
        else:
            state = self.settle(state)
            is_last = state.batches + 1 == self.accumulate
            numbers = self.optimizer._numbers(state.updates) if is_last else ()
            scalars = self._scalars(state, inputs)
            passed = self._all_gradients(state, inputs, scalars)
            if ranks is not None:
                ranks.look()
            loss = float(passed.loss)
            norm = float(passed.norm)
            finite = math.isfinite(norm)
            if not math.isfinite(loss) or not (finite or scalars.forgiven):
                raise self._failure(state, inputs, where, passed)
            decided = Decided(loss, norm, counts=float(finite))
            new = state._replace(carried=passed.carried, decided=decided)
            if finite:
                new = self._update(new, passed, scalars, numbers)
            new, taken = self._settled(state, new, inputs, decided)
        if ranks is not None and state.masks is not None and inputs.host.part is not None:
            ranks.same_masks(state.masks, inputs.host.part)
        return new, taken

    def settle(self, state: StepState) -> StepState:
        """Wait for all queued steps, and return the state with their numbers on the host.

        Parameters
        ----------
        state : StepState

        Returns
        -------
        StepState

        Raises
        ------
        FloatingPointError
            A step could not be taken; the error names it.
        """
        if not state.pending:
            return state
        if state.runtime.ranks is not None:
            state.runtime.ranks.look()
        failed = int(read(state.decided).failed)
        if failed:
            raise FloatingPointError(
                f"{state.pending[failed - 1]}: the loss or the norm of the gradient is not finite;"
                " where steps wait, the error says why"
            )
        return state._replace(pending=())

    def _update(
        self,
        state: StepState,
        passed: LossAndGradients,
        scalars: HostScalars,
        numbers: Any,
        counts: Array | None = None,
        in_place: bool = False,
    ) -> StepState:
        """Return the state after a step with these gradients; its counts are still those before the
        step.

        On a device nothing here waits, and a graph can capture it. Three inputs lie on that device:
        `scalars`, the optimiser's `numbers`, and `counts`, which says whether the gradients are
        used. With `in_place`, parameters, moments and sums of gradients change in-place.
        """
        ranks = state.runtime.ranks
        grads = passed.grads
        norm = passed.norm
        if self.accumulate > 1:
            # the first batch of an update ignores the sums before it
            first = state.batches == 0
            columns = [grads, grads if state.sums is None else state.sums]
            into = (1,) if in_place and state.sums is not None else ()
            factors = (scalars.targets,) if counts is None else (scalars.targets, counts)
            (sums,) = each(grads, _weighted, columns, factors, into, first=first)
            state = state._replace(sums=sums)
            if state.batches + 1 < self.accumulate:
                return state
            if ranks is not None and self.sums_locally:
                grads, norm = ranks.mean(sums, scalars.total)
            else:
                (grads,) = each(sums, _mean, [sums], (scalars.total,))
                norm = norm_of(state.runtime.feed.home.xp, grads)
        for callback in self.callbacks if grads else ():  # a rank may have no part of the gradients
            grads = callback.gradients(grads, norm)
        update = self.optimizer._apply
        if ranks is not None:
            update = functools.partial(ranks.updated, update)
        how = (numbers, counts, in_place, not self._is_ours)
        params, moments = update(state.params, grads, state.moments, *how)
        return state._replace(params=params, moments=moments)

    def _gradients(
        self,
        state: StepState,
        inputs: Inputs,
        scalars: HostScalars,
        share: float | Array = 1.0,
        normed: bool = True,
        early: Callable[..., Any] | None = None,
    ) -> LossAndGradients:
        """Return the loss of a batch and a share of its gradients, with their norm if it is needed.

        `early(used, prepared)` returns a function that receives gradients as soon as they are
        final. `used` are the weights of the pass, and `prepared` is applied to the gradients.
        """
        feed = state.runtime.feed
        scale = scalars.scale if self.scales else 1.0
        masks = {} if state.masks is None else {"seed": of_part(state.masks, inputs.host.part)}
        used = state.params
        # modules of this package keep the dtype of the weights
        casts = self.precision is not None or not self._is_ours
        with np.errstate(over="ignore", invalid="ignore"):  # errors name it later
            if self.precision is not None:
                used = lowered(used, feed.low.dtype)
            y, carried, saved = feed.forward(used, inputs, state.carried, train=True, **masks)
            y = raised(y, feed.home.dtype) if casts else y
            loss, dy = self.loss(y, inputs.target, inputs.mask)  # type: ignore[misc]
            dy = lowered(dy, feed.low.dtype, scale * share) if casts else dy

            def prepared(grads: Params) -> Params:
                return raised(grads, feed.home.dtype, scale) if casts else grads

            with announced(None if early is None else early(used, prepared)):
                grads = self.model.backward(used, saved, dy)[0]
            grads = prepared(self.optimizer._moving(grads))
            norm = norm_of(feed.home.xp, grads) if normed else None
        return LossAndGradients(loss, carried, used, grads, norm)

    def _all_gradients(
        self, state: StepState, inputs: Inputs, scalars: HostScalars
    ) -> LossAndGradients:
        """Return the loss and the gradients of the batch of all ranks; this rank adds its part."""
        ranks = state.runtime.ranks
        if ranks is None:
            return self._gradients(state, inputs, scalars)
        ranks.end_sums()
        share = scalars.share
        # Scaled gradients are multiplied by the share early, so that they overflow as in the whole
        # batch.
        before, late = (share, 1.0) if self.scales else (1.0, share)
        own = None
        early = None
        # a user's model may change gradients that its layers have announced
        if ranks.overlaps and not self.sums_locally and is_ours(self.model):
            early = functools.partial(ranks.early, late)
        if ranks.error is None and 0 not in inputs.host.x.shape:
            with held(ranks):
                own = self._gradients(
                    state, inputs, scalars, before, self.sums_locally, early=early
                )
        if own is None:  # there is no sequence in the part, or the step cannot be taken
            zero = ranks.home.xp.zeros_like(ranks.head[0])
            carried = None if ranks.error is None else state.carried
            own = LossAndGradients(zero, carried, state.params, {}, zero)
        head = Head(0.0, 0.0, 0.0, share, scalars.signal, scalars.stop, scalars.check)
        with np.errstate(over="ignore", invalid="ignore"):
            summed: LossAndGradients = ranks.reduce(own, head, self.sums_locally, late)
        return summed

    def _enqueue(self, state: StepState, inputs: Inputs, where: str) -> tuple[StepState, Taken]:
        """Queue a step on a GPU, which makes the step's decisions; wait for it if steps wait."""
        waits = self.wait or self.scales
        if waits or len(state.pending) == AHEAD:
            state = self.settle(state)
        runtime = state.runtime
        home = runtime.feed.home
        if isinstance(state.decided, Decided):
            state = state._replace(decided=home.asarray(np.array(state.decided), "float64"))
        drawn_by = None if state.masks is None else state.masks.bit_generator.state
        numbers = self.optimizer._numbers(state.updates)
        scalars = np.array([*self._scalars(state, inputs), *numbers])
        masks = state.masks
        can_draw = masks is None or isinstance(masks.bit_generator, np.random.PCG64)
        if (can_draw and self._is_ours) if self.graph == "auto" else self.graph:
            if runtime.graphs is None or not runtime.graphs.hold(self, state):
                # Another state from the same `init` keeps its graphs.
                runtime = dataclasses.replace(
                    runtime, graphs=compiled.module("cupy.graphs").Graphs(self, state)
                )
                state = state._replace(runtime=runtime)
            new = runtime.graphs.take(state, inputs, scalars)
        else:
            new = self.take_on_device(state, inputs, home.asarray(scalars, "float64"))
        if waits:
            decided = read(new.decided)
            if runtime.ranks is not None:
                runtime.ranks.look()
            if decided.failed:
                if runtime.graphs is not None:  # the next step uses their arrays, too
                    new.decided[...] = 0.0
                if state.masks is not None:  # draw the same masks again
                    state = state._replace(masks=copy.deepcopy(state.masks))
                    state.masks.bit_generator.state = drawn_by  # type: ignore[union-attr]
                # the state before is unchanged: repeat the step on the host to find the error
                passed = self._all_gradients(state, inputs, self._scalars(state, inputs))
                if runtime.ranks is not None:
                    runtime.ranks.look()
                raise self._failure(state, inputs, where, passed)
            return self._settled(state, new, inputs, decided)
        # graphs change the array of decisions
        decided = new.decided if runtime.graphs is None else home.xp.asarray(new.decided, copy=True)
        loss, norm, _, counts = decided
        new = self._counted(new, inputs, pending=(*state.pending, where))
        return new, Taken(loss, norm, counts if new.batches == 0 else False)

    def take_on_device(
        self, state: StepState, inputs: Inputs, numbers: Array, in_place: bool = False
    ) -> StepState:
        """Return the state after a step that the device decides.

        `numbers` are the numbers of `HostScalars`, then the optimiser's.
        """
        width = len(HostScalars._fields)
        scalars = HostScalars(*numbers[:width])
        passed = self._all_gradients(state, inputs, scalars)
        xp = state.runtime.feed.home.xp
        decided = decide_on_device(xp, state.decided, passed.loss, passed.norm, scalars)
        state = state._replace(carried=passed.carried, decided=decided)
        *_, counts = decided
        return self._update(state, passed, scalars, list(numbers[width:]), counts, in_place)

    def _settled(
        self, state: StepState, new: StepState, inputs: Inputs, decided: Decided
    ) -> tuple[StepState, Taken]:
        """Return the state after a step from `state` to `new` whose result the host knows."""
        loss, norm, _, counts = decided
        scaling = state.scaling
        if self.scales:
            scaling = after(self.precision, scaling, math.isfinite(norm)) or scaling
        if counts:
            new = self._counted(new, inputs, scaling=scaling)
            return new, Taken(loss, norm, new.batches == 0)
        if state.runtime.ranks is not None:
            state.runtime.ranks.forget_residuals()
        moments = new.moments
        if moments is not state.moments:  # a GPU has changed no array
            moments = moments._replace(step=state.moments.step)
        new = new._replace(moments=moments, sums=state.sums, scaling=scaling)
        return new, Taken(loss, norm, False)

    def _counted(self, state: StepState, inputs: Inputs, **changes: Any) -> StepState:
        """Return the state with the counts after a successful step, and with other changes."""
        if state.batches + 1 < self.accumulate:
            weight = state.weight + inputs.total
            return state._replace(weight=weight, batches=state.batches + 1, **changes)
        return state._replace(
            updates=state.updates + 1, sums=None, weight=0.0, batches=0, **changes
        )

    def _failure(
        self, state: StepState, inputs: Inputs, where: str, passed: LossAndGradients
    ) -> FloatingPointError:
        """Return the error of a step that cannot be taken; raise an error of its batch or of
        another rank.
        """
        feed = state.runtime.feed
        ranks = state.runtime.ranks
        with held(ranks):
            # a loss of the user's may read targets that a mask leaves out
            batch = inputs.host if is_ours(self.loss) else inputs.host._replace(mask=None)
            feed.check(where, batch, everything=True)
        if ranks is not None:
            ranks.told("a step")
        lower = ""
        if self.precision is not None:
            lower = f" in {feed.low.dtype} at a loss scale of {state.scaling.scale:g}"
        loss = float(passed.loss)
        arrays = {f"parameter {name}": p for name, p in passed.used.items()}
        arrays |= {f"gradient of {name}": g for name, g in passed.grads.items()}
        bad = [name for name, a in arrays.items() if not np.all(np.isfinite(to_numpy(a)))]
        if bad:
            problem = (
                f"{bad[0]} is not finite{lower}; a smaller learning rate, clipping or a wider dtype"
                " may help"
            )
        elif math.isfinite(loss):
            problem = (
                "the norm of the gradient overflows; clipping values or a wider dtype may help"
            )
        else:
            problem = (
                "though every parameter and gradient is finite: are there targets out of range?"
            )
        return FloatingPointError(f"{where}: loss is {loss:g}, {problem}")

    def _scalars(self, state: StepState, inputs: Inputs) -> HostScalars:
        """Return the numbers that the host gives a step."""
        forgiven = self.scales and after(self.precision, state.scaling, False) is not None
        scalars = HostScalars(
            number=len(state.pending) + 1,
            scale=state.scaling.scale,
            forgiven=forgiven,
            targets=inputs.weight if self.sums_locally else inputs.total,
            total=state.weight + inputs.total or 1.0,
        )
        ranks = state.runtime.ranks
        if ranks is None:
            return scalars
        return scalars._replace(
            share=inputs.weight / (inputs.total or 1.0),
            signal=float(ranks.signal),
            stop=float(ranks.stop),
            check=ranks.check,
        )

    def _inputs(self, state: StepState, batch: Any, where: str) -> Inputs:
        """Return a batch in the form that the model takes."""
        feed = state.runtime.feed
        inputs: Inputs = batch if isinstance(batch, Inputs) else feed.inputs(batch, where)
        part = inputs.host.part
        if (part is None) != (self.group is None):
            raise ValueError(
                f"{where}: the batch is {'whole' if part is None else 'a part'}, expected"
                " batches of distributed.Shard where the step has a group, and only there"
            )
        return inputs

    def _common_inputs(
        self, state: StepState, ranks: Any, batch: Batch | Inputs | None, where: str
    ) -> Inputs | None:
        """Return this rank's part of a batch, noted for all ranks, or None if it cannot take the
        step.

        If the data of this rank have ended, the run has no batch.
        """
        ranks.where = where
        ranks.ended = batch is None
        if ranks.error is None and batch is not None:
            with held(ranks):
                inputs = self._inputs(state, batch, where)
                assert inputs.host.part is not None
                ranks.note(inputs.host.part, self.optimizer._rates(state.updates))
                return inputs
        return None

    def _refused(self, state: StepState, ranks: Any, where: str) -> tuple[StepState, Taken]:
        """Tell all ranks that this one cannot take the step; raise its error, now or when steps are
        settled.
        """
        if len(state.pending) == AHEAD:
            self.settle(state)
        on_device = self._decides_on_device(state)
        batches = (state.batches + 1) % self.accumulate
        # a GPU sums before the host looks
        ranks.fail(self.sums_locally, self.sums_locally and batches == 0 and on_device)
        if self.wait or self.scales or not on_device:
            ranks.look()
        state = state._replace(pending=(*state.pending, where), batches=batches)
        return state, Taken(math.nan, math.nan, False)

    def _decides_on_device(self, state: StepState) -> bool:
        """Return whether the GPU makes the decisions of a step."""
        return compiles(state.runtime.feed.home.xp) and isinstance(self.optimizer, ByRules)

    @cached_property
    def scales(self) -> bool:
        """Whether gradients are scaled, so that a step may be left out."""
        return self.precision is not None and self.precision.scales

    @cached_property
    def sums_locally(self) -> bool:
        """Whether ranks sum gradients only once an update; scaled gradients may overflow in any
        batch.
        """
        return self.group is not None and self.accumulate > 1 and not self.scales

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the numbers of a step."""
        callbacks = []
        for callback in self.callbacks:
            if has(callback, "gradients", "weights", "state"):
                ours = type(callback).__module__ == Callback.__module__
                # a user's callback may have a repr that changes
                callbacks.append(text_of(callback) if ours else type(callback).__name__)
        return {
            "model": (
                text_of(self.model)
                if dataclasses.is_dataclass(self.model)
                else type(self.model).__name__
            ),
            "precision": None if self.precision is None else repr(self.precision),
            "accumulate": self.accumulate,
            "gradients": self.gradients,
            "optimizer": text_of(self.optimizer),
            "loss function": text_of(getattr(self.loss, "__func__", self.loss)),
            "callbacks": callbacks,
        }

    @cached_property
    def _is_ours(self) -> bool:
        """Whether all host code of a step belongs to this package."""
        callbacks = [callback for callback in self.callbacks if has(callback, "gradients")]
        return all(map(is_ours, (self.model, self.loss, self.optimizer, *callbacks)))


def text_of(value: Any) -> str:
    """Return the repr of a setting without the parts that may differ: memory addresses, and the
    length of a cosine.
    """
    text = re.sub(r"(?<=function _cosine) at 0x\w+>, steps=\d+| at 0x\w+", "", repr(value))
    return text.replace("'weight_decay'", "'decay'")  # as existing checkpoints have it


def _weighted(
    xp: Namespace, g: Array, sums: Array, weight: Any, *counts: Array, first: bool
) -> Array:
    added = weight * g if first else sums + weight * g
    if not counts:
        return added
    return xp.where(counts[0] > 0, added, xp.zeros_like(sums) if first else sums)


def _mean(xp: Namespace, sums: Array, total: Any) -> Array:
    return sums / total


def is_ours(value: Any) -> bool:
    """Return whether a function or object, and every part of a module, belongs to this package.

    Code of this package asks a GPU for the same work each time it runs; a user's code need not.
    """
    code = value.func if isinstance(value, functools.partial) else value
    if not str(getattr(code, "__module__", "")).startswith(f"{__name__.partition('.')[0]}."):
        return False
    inner = getattr(code, "model", None)  # the model in a `LowRank`
    parts = getattr(code, "parts", {}).values()
    return (inner is None or is_ours(inner)) and all(map(is_ours, parts))
