"""Commands that train small models in little time, and the files that they read."""

import functools
from shlex import split

import numpy as np
import pytest
from typer.testing import CliRunner

from xlstm.cli.app import app
from xlstm.data.table import write_table

TEXT = split(
    "train text a.txt --backend numpy --hidden-size 8 --embedding-size 4 --batch-size 4 --length 8"
    " --sample 5"
)
TEXT += ["--steps", "12"]
CLASSES = split(
    "train classify long.csv --label kind --sequence id --backend numpy --hidden-size 8 --epochs 2"
)
QUICK = split("--epochs 1 --window 12 --hidden-size 3 --backend numpy")
SERIES = ["train", "forecast", "s.csv", *QUICK, "--batch-size", "32"]
VERSE = "the cat sat on the mat and saw a rat. " * 30


def steps_of_sequences(seed=0):
    """60 sequences of two classes, which rise and fall."""
    rng = np.random.default_rng(seed)
    columns = {"id": [], "kind": [], "day": [], "x": [], "y": []}
    for k in range(60):
        for t in range(rng.integers(4, 9)):
            row = (
                f"s{k}",
                ("down", "up")[k % 2],
                f"2024-01-{t + 1:02}",
                (2 * (k % 2) - 1) * t,
                rng.normal(),
            )
            for name, cell in zip(columns, row, strict=True):
                columns[name].append(cell)
    return columns


def write_files(folder):
    """Write a text, a table of sequences with labels, and a series whose column has a name beyond
    ASCII.
    """
    (folder / "a.txt").write_text(VERSE)
    write_table(folder / "long.csv", steps_of_sequences())
    write_table(folder / "s.csv", {"\u03bb": [k % 7 for k in range(400)]})


def trainer(folder, commands):
    """A function that trains in a folder by the command of a name, once; the folder of the run and
    what was printed.
    """

    @functools.cache
    def trained(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            result = CliRunner().invoke(app, [*commands[name], "-o", name])
        assert result.exit_code == 0, result.output
        return folder / name, result

    return trained
