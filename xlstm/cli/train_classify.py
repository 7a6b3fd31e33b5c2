"""`xlstm train classify`: a classifier of the sequences in a table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from xlstm.cli import folders, judging, labelled
from xlstm.cli.console import Report
from xlstm.cli.options import JsonOption, reads_tables, with_settings
from xlstm.data.table import Dialect
from xlstm.estimators import SequenceClassifier

SETTINGS = {
    "cell": "lstm, gru, rnn, slstm, mlstm, xlstm, or the name of a registered cell.",
    "hidden_size": "Units of each recurrent layer.",
    "num_layers": "Recurrent layers.",
    "bidirectional": "Read sequences in both directions.",
    "dropout": "Rate of dropout between layers.",
    "standardize": "Bring features to mean 0 and deviation 1.",
    "epochs": "Passes over the sequences, at most.",
    "patience": "Epochs without a better validation loss before training stops.",
    "batch_size": "Sequences of a batch.",
    "learning_rate": "Learning rate of AdamW.",
    "weight_decay": "Weight decay of AdamW.",
    "clip": "Limit of the global norm of the gradient.",
    "averaging": "Decay of the moving average of weights that is judged and kept.",
    "validation_fraction": "Share of the training part that decides when to stop.",
    "seed": "Initial weights, parts that are held out, and order of batches.",
    "precision": "float16, bfloat16 or tf32 while training, on a GPU.",
    "backend": "auto, numpy, cupy or torch.",
    "dtype": "float32 or float64.",
}


@reads_tables
@with_settings(SequenceClassifier, SETTINGS)
def train_classify(
    context: typer.Context,
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    label: Annotated[str, typer.Option("--label", help="Column of labels.")],
    sequence: Annotated[
        str | None,
        typer.Option("--sequence", help="Column that names the sequence of a row; else each row is a sequence."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns of features, A,B,C; all others if left out.")
    ] = None,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", min=0, max=0.9, help="Share of the sequences that is held out.")
    ] = 0.2,
    output: folders.OutputOption = Path("xlstm-classify"),
    resume: folders.ResumeOption = False,
    as_json: JsonOption = False,
    *,
    dialect: Dialect,
    **settings: Any,
) -> None:
    """Train a classifier of sequences, and show its accuracy on sequences that were held out.

    With --sequence each row is a step of a sequence, in order of time. Without it each row is a sequence of numbers.
    """
    layout = labelled.Layout.of(table, label, sequence, columns, dialect)
    data = labelled.read(table, layout, dialect)
    assert data.labels is not None
    rows, test = labelled.held_out(data.labels, test_fraction, settings["seed"])
    report = Report(as_json)
    with folders.run(context, output, resume) as fit:
        made, learn = partial(SequenceClassifier, **settings), folders.learn(data.part(rows), data.labels[rows])
        model = fit(made, learn, partial(SequenceClassifier.save, note=layout.as_dict()))
        trained, saved = model.trained_, output / folders.MODEL
        report.print(f"trained: {model.n_iter_} epochs on {len(rows)} sequences in {trained.seconds:.1f} s")
        report.print(f"model: {saved}")
        values: dict[str, Any] = {"model": str(saved), "epochs": model.n_iter_, "seconds": trained.seconds}
        if len(test):
            values |= judging.classification(report, data.labels[test], model.predict(data.part(test)), model.classes_)
        report.finish(**values, unsaved=trained.unsaved)
