"""`xlstm train tirex`: a forecaster of any series, trained on synthetic ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import typer

from xlstm.cli import folders
from xlstm.cli.console import Report
from xlstm.cli.options import JsonOption, with_settings
from xlstm.estimators import TiRexTrainer
from xlstm.models.tirex import SyntheticPatches
from xlstm.training import evaluate

SETTINGS = {
    "size": "Width of the blocks.",
    "num_blocks": "Blocks.",
    "num_heads": "Heads of each block.",
    "patch_size": "Values in a patch.",
    "input_ff_size": "Width of the hidden layers at the input and at the output.",
    "context_length": "Values that the network is given, a multiple of the patch size.",
    "horizon": "Steps to learn to forecast at once.",
    "batch_size": "Series of a batch.",
    "steps": "Batches in all.",
    "every": "Batches between two looks at the validation loss, and checkpoints.",
    "learning_rate": "Learning rate of AdamW.",
    "weight_decay": "Weight decay of AdamW.",
    "schedule": "cosine down to a tenth of the learning rate, or constant.",
    "clip": "Limit of the global norm of the gradient.",
    "averaging": "Decay of the moving average of weights that is kept.",
    "seed": "Initial weights, and series.",
    "precision": "float16, bfloat16 or tf32 while training, on a GPU.",
    "backend": "auto, numpy, cupy or torch.",
    "dtype": "float32 or float64.",
}


@with_settings(TiRexTrainer, SETTINGS)
def train_tirex(
    context: typer.Context,
    output: folders.OutputOption = Path("xlstm-tirex"),
    resume: folders.ResumeOption = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Train a small TiRex on synthetic series, from random weights to a checkpoint that forecasts any series.

    The series have trends, seasons, steps, random walks, noise and gaps. At the end the loss on others of their kind is
    shown. `xlstm forecast` takes the model.
    """
    report = Report(as_json)
    with folders.run(context, output, resume) as fit:
        model = fit(partial(TiRexTrainer, **settings), folders.learn(), TiRexTrainer.save)
        trained, saved = model.trained_, output / folders.MODEL
        report.print(f"trained: {len(trained.losses)} batches in {trained.seconds:.1f} s")
        data = SyntheticPatches(model.model_, 8, model.horizon, model.batch_size)
        loss = evaluate(model.model_, model.params_, data)
        first = evaluate(model.model_, model.model_.init(model.seed, model.backend, model.dtype), data)
        report.print(f"pinball loss on other series: {loss:.4f} in their scaled units; with random weights {first:.4f}")
        report.print(f"model: {saved}")
        values = {"model": str(saved), "steps": len(trained.losses), "seconds": trained.seconds}
        report.finish(**values, loss=loss, random_loss=first, unsaved=trained.unsaved)
