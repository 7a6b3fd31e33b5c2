"""How well predictions fit, as lines and tables and as values of JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from rich.table import Table

from xlstm.cli.console import Report, uncut
from xlstm.data.text import Bytes, Characters, Codec
from xlstm.plots.results import counted

LARGEST = 700.0  # nats whose perplexity is a number


def classification(report: Report, truth: Any, found: Any, classes: Any) -> dict[str, Any]:
    """Print accuracy and confusion of predicted labels, and return them.

    Parameters
    ----------
    report : Report
    truth, found : array (N,)
    classes : array (C,)
        All labels that occur.
    """
    accuracy, counts = float(np.mean(truth == found)), counted(truth.tolist(), found.tolist(), classes.tolist())
    report.print(f"accuracy: {accuracy:.2%} of {len(truth)} sequences")
    names = [str(label) for label in classes]
    table = Table(title="sequences by label (rows) and predicted label (columns)", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for name, row in zip(names, counts.tolist(), strict=True):
        table.add_row(name, *map(str, row))
    report.print(uncut(table))
    return {"sequences": len(truth), "accuracy": accuracy, "classes": names, "confusion": counts.tolist()}


def text(report: Report, codec: Codec, nats: float, what: str) -> dict[str, Any]:
    """Print the loss of a text, and return it.

    Parameters
    ----------
    report : Report
    codec : Codec
        That of the model.
    nats : float
        The mean of -log p of a token.
    what : str
        The text, in words.
    """
    perplexity = math.exp(nats) if nats < LARGEST else None
    shown = "" if perplexity is None else f", perplexity {perplexity:.4g}"
    unit = "character" if isinstance(codec, Characters) else "byte" if isinstance(codec, Bytes) else "token"
    report.print(f"{what}: {nats:.4f} nats a {unit}{shown}")
    return {"nats": nats, "perplexity": perplexity}
