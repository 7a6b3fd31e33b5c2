"""A TiRex of one's own, trained on synthetic series."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Self

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.estimators import base
from xlstm.estimators.base import Estimator
from xlstm.interop import tirex
from xlstm.models.tirex import SyntheticPatches, TiRex
from xlstm.training import Callback, Interrupted, Terminated, Trained
from xlstm.training.schedules import cosine

JUDGED = 8  # batches of synthetic series that validation looks at
SCHEDULES = ("constant", "cosine")
CHECKS: dict[str, checks.Kind] = {
    **{name: base.CHECKS[name] for name in ("batch_size", "learning_rate", "weight_decay", "clip", "averaging")},
    **{name: base.CHECKS[name] for name in ("seed", "precision", "resume")},
    **dict.fromkeys(("steps", "every"), checks.count),
    "schedule": checks.choice(SCHEDULES),
}


class TiRexTrainer(Estimator):
    """A trainer of a `TiRex` on synthetic series, which gives a forecaster for any series.

    It shows the way from random weights to a checkpoint. A model that is to compete with the published one needs their
    size, real series, and far more time.

    Parameters
    ----------
    size, num_blocks, num_heads, patch_size, input_ff_size : int
        Options of `TiRex`.
    context_length : int
        Its option `context`.
    horizon : int
        Steps to learn to forecast at once.
    batch_size : int
        Series of a batch.
    steps : int
        Batches in all.
    every : int
        Batches between two looks at the validation loss, on series that are no part of training, and checkpoints.
    learning_rate : float
    weight_decay : float
        Decay of AdamW.
    schedule : {"cosine", "constant"}
        Cosine goes down to a tenth of the learning rate.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of weights that is kept.
    seed : int
        Initial weights, and series.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training on a GPU.
    backend : str or Backend, optional
    dtype : {"float32", "float64"}
    callbacks : list of Callback
    checkpoints : path, optional
        Folder of the run.
    resume : bool
        Go on with the run in that folder.

    Attributes
    ----------
    model_ : TiRex
    params_ : dict of str to array
    trained_ : Trained
    """

    model_: TiRex
    params_: Any
    trained_: Trained

    def __init__(
        self,
        *,
        size: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        patch_size: int = 16,
        input_ff_size: int = 128,
        context_length: int = 256,
        horizon: int = 64,
        batch_size: int = 32,
        steps: int = 1000,
        every: int = 100,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        schedule: str = "cosine",
        clip: float = 1.0,
        averaging: float = 0.99,
        seed: int = 0,
        precision: str | None = None,
        backend: str | Backend | None = None,
        dtype: str = "float32",
        callbacks: Iterable[Callback] = (),
        checkpoints: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.size, self.num_blocks, self.num_heads = size, num_blocks, num_heads
        self.patch_size, self.input_ff_size, self.context_length = patch_size, input_ff_size, context_length
        self.horizon, self.batch_size, self.steps, self.every = horizon, batch_size, steps, every
        self.learning_rate, self.weight_decay, self.schedule = learning_rate, weight_decay, schedule
        self.clip, self.averaging, self.seed, self.precision = clip, averaging, seed, precision
        self.backend, self.dtype, self.callbacks = backend, dtype, callbacks
        self.checkpoints, self.resume = checkpoints, resume

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Train.

        Parameters
        ----------
        X, y : object, optional
            They are not used.

        Returns
        -------
        TiRexTrainer
            Itself.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range.
        FloatingPointError
            Training diverged.
        Interrupted, Terminated
            A signal ended training after a step; the trainer has what was best so far.
        """
        where = type(self).__name__
        for name, kind in CHECKS.items():
            kind(where, name, getattr(self, name))
        model = TiRex(
            self.size,
            self.num_blocks,
            self.num_heads,
            patch_size=self.patch_size,
            input_ff_size=self.input_ff_size,
            context=self.context_length,
        )
        home, rate = backend_of(self.backend, self.dtype), self.learning_rate
        data = SyntheticPatches(model, self.every, self.horizon, self.batch_size)
        try:
            trained = base.learn(
                self,
                model,
                model.init(self.seed, home),
                data,
                home,
                None if self.schedule == "constant" else cosine(rate, self.steps, rate / 10),
                steps=self.steps,
                validation=SyntheticPatches(model, JUDGED, self.horizon, self.batch_size),
                callbacks=self.callbacks,
                checkpoints=self.checkpoints,
                resume=self.resume,
            )
        except (Interrupted, Terminated) as error:
            self._take(model, error.trained)
            raise
        self._take(model, trained)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a checkpoint, which `xlstm.interop.tirex.load` reads.

        Parameters
        ----------
        path : path
            A folder, or a file `NAME.safetensors`, beside which `NAME_config.json` is written.

        Raises
        ------
        NotFittedError, OSError
            There is no model yet, or a file cannot be written.
        """
        self._check_fitted()
        tirex.save(path, self.model_, self.params_)

    def _take(self, model: TiRex, trained: Trained) -> None:
        self.model_, self.params_, self.trained_ = model, trained.params, trained
