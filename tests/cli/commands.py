"""Commands that train small models in little time, and the files that they read."""

import numpy as np

from xlstm.data.series import bundled
from xlstm.data.table import write_table

TEXT = ["train", "text", "a.txt", "--backend", "numpy", "--hidden-size", 8, "--embedding-size", 4, "--batch-size", 4]
TEXT += ["--length", 8, "--steps", 12, "--sample", 5]
CLASSES = ["train", "classify", "long.csv", "--label", "kind", "--sequence", "id", "--backend", "numpy"]
CLASSES += ["--hidden-size", 8, "--epochs", 2]
SMALL = ["--hidden-size", 8, "--batch-size", 4, "--length", 8]
QUICK = ["--epochs", 1, "--window", 12, "--hidden-size", 3, "--backend", "numpy"]
SERIES = ["train", "forecast", bundled("sunspots"), *QUICK]
VERSE = "the cat sat on the mat and saw a rat. " * 30


def steps_of_sequences(seed=0):
    """60 sequences of two classes, which rise and fall."""
    rng = np.random.default_rng(seed)
    columns = {"id": [], "kind": [], "day": [], "x": [], "y": []}
    for k in range(60):
        for t in range(rng.integers(4, 9)):
            row = (f"s{k}", ("down", "up")[k % 2], f"2024-01-{t + 1:02}", (2 * (k % 2) - 1) * t, rng.normal())
            for name, cell in zip(columns, row, strict=True):
                columns[name].append(cell)
    return columns


def write_files(folder):
    """Write a text and a table of sequences with labels."""
    (folder / "a.txt").write_text(VERSE)
    write_table(folder / "long.csv", steps_of_sequences())
