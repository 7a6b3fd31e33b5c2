"""`xlstm train text`: a language model of a text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from xlstm.cli import folders, judging
from xlstm.cli.console import Report
from xlstm.cli.options import JsonOption, with_settings
from xlstm.data import reading
from xlstm.estimators import TextModel

LONGEST = 1 << 32  # bytes of a text
SETTINGS = {
    "cell": "lstm, gru, rnn, slstm, mlstm, xlstm, or the name of a registered cell.",
    "hidden_size": "Units of each recurrent layer.",
    "embedding_size": "Width of the embedding of a token.",
    "num_layers": "Recurrent layers.",
    "dropout": "Rate of dropout of embeddings and between layers.",
    "tokens": "characters, bytes, or a tokenizer.json.",
    "batch_size": "Parallel streams.",
    "length": "Tokens of each stream in a batch.",
    "steps": "Batches in all.",
    "learning_rate": "Learning rate of AdamW.",
    "weight_decay": "Weight decay of AdamW.",
    "schedule": "constant, or cosine down to a tenth of the learning rate.",
    "clip": "Limit of the global norm of the gradient.",
    "averaging": "Decay of the moving average of weights that is kept.",
    "validation_fraction": "Share of the text at its end that is held out.",
    "seed": "Initial weights and masks of dropout.",
    "precision": "float16, bfloat16 or tf32 while training, on a GPU.",
    "backend": "auto, numpy, cupy or torch.",
    "dtype": "float32 or float64.",
    "every": "Batches between two checkpoints; by default one after each pass over the text.",
}


@with_settings(TextModel, SETTINGS)
def train_text(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Text in UTF-8.")],
    output: folders.OutputOption = Path("xlstm-text"),
    resume: folders.ResumeOption = False,
    sample: Annotated[int, typer.Option(min=0, help="Tokens of the sample that is shown at the end.")] = 200,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Train a language model on a text, and show the loss on its held-out end and a sample."""
    whole = read(file)
    report = Report(as_json)
    with folders.run(context, output, resume) as fit:
        model = fit(partial(TextModel, **settings), folders.learn(whole), TextModel.save)
        trained, nats = model.trained_, model.held_out_
        report.print(f"trained: {len(trained.losses)} batches in {trained.seconds:.1f} s")
        judged = {} if nats is None else judging.text(report, model.codec_, nats, "held out")
        report.print(f"model: {output / folders.MODEL}")
        text = model.generate(whole[:1], sample, seed=model.seed) if sample else ""
        if text:
            report.print(f"sample:\n{text}")
        values = {"model": str(output / folders.MODEL), "steps": len(trained.losses), "seconds": trained.seconds}
        report.finish(**values, **judged, unsaved=trained.unsaved, sample=text)


def read(file: Path) -> str:
    """Return the text of a file; ValueError if it is empty or no UTF-8."""
    try:
        found = reading.content(file, LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not found:
        raise ValueError(f"{file}: the file is empty, expected a text")
    return found
