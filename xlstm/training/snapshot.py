"""The contents of a run's checkpoint, and how a run goes on from them."""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.data.batches import Batches
from xlstm.training import optimizers, trees
from xlstm.training.callbacks import Callback, MovingAverage, has
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
            if isinstance(there, str) and isinstance(value, str):  # what is shown begins shortly before they differ
                same = next((k for k, (a, b) in enumerate(zip(there, value, strict=False)) if a != b), 32)
                start = max(0, same - 32)
                there, value = there[start:], value[start:]
            is_not = f"its {name} is {checks.shown(there)}, expected {checks.shown(value)}"
            raise ValueError(f"train: {found.path} is of another run: {is_not}")
    home = run.state.feed.home
    try:
        held = trees.unpack(found.value, found.arrays, lambda a, dtype: backend_of(home, dtype).asarray(a))
        _check(run, held, found.about["total"])
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
    except (LookupError, ArithmeticError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{found.path}: not a sound checkpoint ({type(error).__name__}: {error})") from error
    run.order_before = run.order.bit_generator.state
    if run.folder is not None and found.path.parent == run.folder.path:
        run.folder.saved, run.saved_at = run.total, (run.epoch, run.done, run.ended)


def _check(run: Run, held: dict[str, Any], total: int) -> None:
    """Raise KeyError, TypeError, AttributeError or ValueError unless the values of a checkpoint can be a run's."""
    state, (scale, good) = run.state, held["scaling"]
    for name, kind, value in (
        ("scale", checks.above_0, scale),
        ("good", checks.size_or_0, good),
        ("moments step", checks.size_or_0, held["moments"]["step"]),
        ("weight", checks.non_negative, held["weight"]),
        ("batches", checks.size_or_0, held["batches"]),
    ):
        kind("its values", name, value)
    _check_alike("moments", held["moments"]["slots"], state.moments.slots)
    for name in ("params", "best", "judged"):
        _check_alike(name, held[name], state.params)
    if held["sums"] is not None:
        _check_alike("sums", held["sums"], {name: state.params[name] for name in held["sums"]})
    for callback, kept in zip(_remembering(run), held["callbacks"], strict=True):
        if isinstance(callback, MovingAverage):
            _check_alike("mean", kept["mean"], state.params)
    for name, count in (("losses", total), ("validations", held["validations"].size)):
        _check_alike(name, held[name], np.broadcast_to(0.0, count))


def _check_alike(name: str, found: Any, like: Any) -> None:
    """Raise ValueError unless `found` is a dict with the names of `like`, or an array of its shape and dtype."""
    if isinstance(like, dict):
        if not isinstance(found, dict) or found.keys() != like.keys():
            raise ValueError(f"{name} is {checks.shown(found)}, expected a dict of {checks.few(like)}")
        for key in like:
            _check_alike(f"{name} {key}", found[key], like[key])
    elif getattr(found, "shape", None) != like.shape or found.dtype != like.dtype:
        raise ValueError(f"{name} is {checks.shown(found)}, expected {checks.shown(like)}")


def finite(number: float) -> float | None:
    """Return a number for JSON, which has no infinity."""
    return number if math.isfinite(number) else None


def _settings(run: Run) -> dict[str, Any]:
    """Return what decides the numbers of a run, apart from the arrays."""
    step = run.step
    return {
        "model": _text(step.model) if dataclasses.is_dataclass(step.model) else type(step.model).__name__,
        "parameters": {name: list(p.shape) for name, p in run.state.params.items()},
        "dtype": run.state.feed.home.dtype,
        "precision": None if step.precision is None else repr(step.precision),
        "accumulate": step.accumulate,
        "seed": run.seed,
        "optimizer": _text(getattr(step.optimizer.init, "__self__", step.optimizer.init)),
        "loss function": _text(getattr(step.loss, "__func__", step.loss)),
        "callbacks": [
            _text(callback) if type(callback).__module__ == Callback.__module__ else type(callback).__name__
            for callback in run.callbacks
            if has(callback, "gradients", "weights", "state")  # the repr of a user's callback may change
        ],
        "moments": sorted(run.state.moments.slots),
        "steps": len(run.data),
        **run.first_batches,
    }


def _text(value: Any) -> str:
    """Return the repr of a setting without what may differ: addresses in memory, and the length of a cosine."""
    return re.sub(r"(?<=function _cosine) at 0x\w+>, steps=\d+| at 0x\w+", "", repr(value))


def first_batch(data: Batches | None) -> str | None:
    """Return a number that tells data apart, if there are some: it is made of their first batch in order."""
    if data is None:
        return None
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
    return [callback for callback in run.callbacks if has(callback, "state")]
