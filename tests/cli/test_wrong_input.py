"""Wrong input to the command line is refused in one line, with exit code 2, and leaves files as
they were.
"""

import os
from shlex import split

import numpy as np
import pytest
import typer

from tests.cli.commands import VERSE, write_files
from xlstm.cli import sources
from xlstm.cli.app import app
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel

SMALL = split("--backend numpy --hidden-size 8 --batch-size 4 --length 8")
LAYOUT = {"features": ["x", "y"], "label": "kind", "sequence": "id"}


@pytest.fixture(autouse=True)
def files(tmp_path):
    """A text, a table and a series in the folder of a test."""
    write_files(tmp_path)


WRONG = {
    "nosuch": "No such command 'nosuch'",
    "train nosuch.csv": "error: nosuch.csv: No such file or directory",
    "train nan.csv": "nan.csv: line 3, column v holds 'nan'",
    "train long.csv --target z": "long.csv: column 'z' is not in the header",
    "predict series long.csv --future-file few.csv": "few.csv: no column is known in advance",
    "train -o empty": "error: empty/model.safetensors: not saved, Not a directory",
    "train -o there --resume": (
        "error: there: holds no run to resume; `xlstm train KIND` begins one"
    ),
    "train big.csv": "error: v, day 2001-10-08: Forecaster: values[280] is 1e+300",
    "train forecast s.csv -o there": (
        "there: holds a run already; --resume goes on with it, --overwrite replaces it, and --output"
    ),
    "train forecast s.csv -o there --resume --overwrite": (
        "train: --resume goes on with the run that --overwrite replaces, expected one of them"
    ),
    "train forecast s.csv -o there --resume": "is of another run",
    "train -": "train: reads a file more than once, expected one, not - for standard input",
    "predict series -": "-: the file is empty, expected a header line and rows",
    "predict series big.csv --quantiles .5,a": "--quantiles is '.5,a', expected numbers such as",
    "train forecast s.csv --quantiles nan": "train: --quantiles[0] is nan, expected 0 < --quant",
    "train forecast s.csv --quantiles 0.5": "--quantiles is 0.5, expected two or more levels, which",
    "train text -": "train: reads a file more than once, expected one, not - for standard input",
    "train text binary": "binary: not UTF-8 text (invalid start byte at byte 0)",
    "train text a.txt -o busy": "busy/model.safetensors: not saved, it is not a regular file",
    "train text a.txt --graph yes": "train: graph is 'yes', expected one of auto, on, off",
    "train text a.txt --graph on": "TrainStep: graph is True, which needs arrays of CuPy",
    "train classify few.csv --label kind": (
        "no class has enough sequences to hold out 20%, the largest"
    ),
    "train classify gap.csv --label kind": "gap.csv: column 'x' is empty in row 2",
    "train classify mixed.csv --label kind --sequence id": "sequence 's' has labels a, b",
    "evaluate text a.txt --column x": "text: is a text model, which takes no --column",
    "evaluate classes relabelled.csv": (
        "relabelled.csv: label 'left' is not one of those that classes knows"
    ),
    "evaluate plain long.csv": (
        "plain: says nothing of a table, expected a model of `xlstm train classify`"
    ),
    "predict there/step-000000002.safetensors long.csv": (
        "kind is 'training', which is for xlstm train --resume"
    ),
    "generate series --prompt a": "kind is 'forecaster', which is for xlstm predict, forecast,",
    "import weights.pt": "weights.pt: not read without PyTorch (BadZipFile: File is not a zip file)",
    "info --card h100": "info: --card goes with --explain",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of models and a run, made once."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {
        "hidden_size": 4,
        "embedding_size": 4,
        "batch_size": 2,
        "length": 4,
        "steps": 2,
        "backend": "numpy",
    }
    TextModel(**sizes, checkpoints=folder / "there").fit(VERSE).save(folder / "text")
    classifier = SequenceClassifier(hidden_size=4, epochs=1, backend="numpy")
    classifier.fit(np.arange(24.0).reshape(4, 3, 2), ["down", "up"] * 2)
    classifier.save(folder / "plain")
    classifier.save(folder / "classes", LAYOUT)

    forecaster = Forecaster(
        window=4, horizon=2, hidden_size=2, epochs=1, backend="numpy", name="sunspots"
    )
    forecaster.fit(np.sin(np.arange(60.0))).save(folder / "series")
    return folder


DAYS = np.datetime64("2001-01-01") + np.arange(300)
FILES = {
    **{
        "empty": "",
        "nan.csv": "date,v\n2001,1\n2002,nan\n2003,3\n",
        "weights.pt": "PK\x03\x04 of torch.save",
    },
    **{"few.csv": "kind,x\na,1\nb,2\n", "gap.csv": "kind,x\na,1\nb,\nb,3\n"},
    **{"mixed.csv": "id,kind,x\ns,a,1\ns,b,2\n", "relabelled.csv": "id,kind,x,y\ns,left,1,2\n"},
    "big.csv": (
        "day,v\n" + "".join(f"{day},{1e300 if k == 280 else k % 7}\n" for k, day in enumerate(DAYS))
    ),
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(run, tmp_path, models, command):
    for name in ("text", "plain", "classes", "series"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    (tmp_path / "there").symlink_to(models / "there")
    (tmp_path / "busy/model.safetensors").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    before = sorted(os.listdir(tmp_path))
    args = command.split()
    words = WRONG[command]
    if command.startswith("train text"):
        args += SMALL
    elif args[0] == "train" and len(args) > 2:
        args += ["--backend", "numpy"]
    result = run(*args, code=2)
    *notes, error = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert len(notes) == ("torn" in args)
    assert result.stdout == "" or words == "is of another run"  # found after the first lines
    assert sorted(os.listdir(tmp_path)) == before


def test_kinds_name_commands_that_there_are():
    known = {*typer.main.get_command(app).commands}
    named = {name for commands in sources.COMMANDS.values() for name in commands}
    assert {name.split()[0] for name in named} <= known
