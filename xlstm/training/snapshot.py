"""The contents of a run's checkpoint, and how a run goes on from them."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.data.batches import Batches
from xlstm.training import optimizers, trees
from xlstm.training.callbacks import Callback
from xlstm.training.folder import Checkpoint
from xlstm.training.precision import Scaling

if TYPE_CHECKING:
    from xlstm.training.run import Run

PLACES = ("epoch", "done", "best_epoch", "skipped", "ended")  # where a run stands


def tree(run: Run) -> dict[str, Any]:
    """Return the arrays and numbers from which a run goes on."""
    state = run.state
    return {
        "params": state.params,
        "moments": {"step": state.moments.step, "slots": state.moments.slots},
        "carried": state.carried,
        "scaling": list(state.scaling),
        "sums": state.sums,
        "weight": state.weight,
        "batches": state.batches,
        "masks": None if state.masks is None else state.masks.bit_generator.state,
        "order": run.order_before if run.done else run.order.bit_generator.state,
        "best": run.best,
        "judged": run.judged,
        "losses": np.array(run.losses),
        "validations": np.array(run.validations),
        "callbacks": [callback.state() for callback in _remembering(run)],
    }


def about(run: Run) -> dict[str, Any]:
    """Return what a checkpoint says of its run: first what a run that goes on has to share."""
    return {
        **_settings(run),
        **{name: getattr(run, name) for name in (*PLACES, "epochs")},
        "total": run.total,
        "updates": run.state.updates,
        "seconds": run.seconds,
        "loss": finite(run.losses[-1]) if run.losses else None,
        "best": run.lowest if run.validations else None,
    }


def restore(run: Run, found: Checkpoint) -> None:
    """Let a run go on from a checkpoint.

    Raises
    ------
    ValueError
        The checkpoint is one of another run, or damaged.
    """
    for name, value in _settings(run).items():
        there = found.about.get(name)
        if there != value:
            expected = f"expected {checks.shown(value)}"
            raise ValueError(f"train: {found.path} is of another run: its {name} is {checks.shown(there)}, {expected}")
    home = run.state.feed.home
    try:
        held = trees.unpack(found.value, found.arrays, lambda a, dtype: backend_of(home, dtype).asarray(a))
        run.state = run.state._replace(
            params=held["params"],
            moments=optimizers.OptimState(held["moments"]["step"], held["moments"]["slots"]),
            carried=held["carried"],
            scaling=Scaling(*held["scaling"]),
            sums=held["sums"],
            weight=held["weight"],
            batches=held["batches"],
            updates=found.about["updates"],
        )
        if run.state.masks is not None:
            run.state.masks.bit_generator.state = held["masks"]
        run.order.bit_generator.state = held["order"]
        run.best, run.judged = held["best"], held["judged"]
        run.losses, run.validations = held["losses"].tolist(), held["validations"].tolist()
        for name in PLACES:
            setattr(run, name, found.about[name])
        run.lowest = min(run.validations, default=math.inf)
        for callback, state in zip(_remembering(run), held["callbacks"], strict=True):
            callback.restore(state)
        run.start -= found.about["seconds"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{found.path}: not a sound checkpoint ({type(error).__name__}: {error})") from error
    run.order_before = run.order.bit_generator.state
    if run.folder is not None and found.path.parent == run.folder.path:
        run.folder.saved, run.saved_at = run.total, (run.epoch, run.done, run.ended)


def finite(number: float) -> float | None:
    """Return a number for JSON, which has no infinity."""
    return number if math.isfinite(number) else None


def _settings(run: Run) -> dict[str, Any]:
    """Return what decides the numbers of a run, apart from the arrays."""
    step = run.step
    return {
        "model": repr(step.model) if dataclasses.is_dataclass(step.model) else type(step.model).__name__,
        "parameters": {name: list(p.shape) for name, p in run.state.params.items()},
        "dtype": run.state.feed.home.dtype,
        "precision": None if step.precision is None else repr(step.precision),
        "accumulate": step.accumulate,
        "callbacks": [type(callback).__name__ for callback in _remembering(run)],
        "moments": sorted(run.state.moments.slots),
        "steps": len(run.data),
        "validation": run.validation is not None,
        "first batch": run.first_batch,
    }


def first_batch(data: Batches) -> str:
    """Return a number that tells data apart: it is made of their first batch in order."""
    batches = data.batches()
    first = next(iter(batches), None)
    found = 0
    for array in () if first is None else (first.x, first.target, first.lengths, *(first.options or {}).values()):
        if array is not None:
            found = zlib.crc32(np.ascontiguousarray(to_numpy(array)).tobytes(), found)
    if isinstance(batches, Generator):
        batches.close()
    return f"{found:08x}"


def _remembering(run: Run) -> list[Callback]:
    """Return the callbacks that have a state."""
    return [callback for callback in run.callbacks if type(callback).state is not Callback.state]
