"""`xlstm runs`: runs compared by their histories and options, also by those that are damaged."""

import json
import shutil

import pytest

from tests.cli.commands import TEXT, VERSE, trainer, write_files
from xlstm.estimators import TextModel

# A run that has validated twice.
HISTORY = """{"total": 1, "epoch": 1, "loss": 2.0, "norm": 1.0, "seconds": 0.5}
{"total": 1, "epoch": 1, "validation": 0.25, "seconds": 0.7}
{"total": 2, "epoch": 2, "validation": 0.5, "seconds": 1.0}
"""
GRU = [*TEXT, "--cell", "gru", "--steps", "9"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_files(folder)
    return trainer(folder, {"one": TEXT, "two": GRU})


@pytest.fixture
def runs(run, tmp_path, trained):
    """The command; in the folder of the test there are two runs."""
    write_files(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(trained(name)[0], tmp_path / "r" / name)
    return lambda command, **options: run(f"runs {command}", **options)


def rows_of(result):
    return json.loads(result.stdout, parse_constant=pytest.fail)


def test_runs_are_compared(runs, tmp_path):
    (tmp_path / "r/three").mkdir()
    (tmp_path / "r/three/history.jsonl").write_text(HISTORY)
    one, three, two = rows_of(runs("r --json"))
    expected = {"run": "r/three", "steps": 2, "epoch": 2, "loss": 2.0, "best": 0.25, "best_epoch": 1, "seconds": 1.0}
    assert three == {**expected, "settings": {}}
    assert (one["run"], one["steps"], one["settings"]["cell"]) == ("r/one", 12, "lstm")
    assert (two["run"], two["steps"], two["settings"]["cell"]) == ("r/two", 9, "gru")
    lines = runs("r/one r/two").stdout.splitlines()
    heading = next(line.split() for line in lines if "run" in line)
    assert heading[-2:] == ["cell", "steps"]
    assert "embedding-size" not in heading
    assert next(line.split() for line in lines if "r/two" in line)[-2:] == ["gru", "9"]


def test_curves_of_runs(runs, tmp_path):
    pytest.importorskip("matplotlib")
    runs("r --plot curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "ends in '.txt'" in runs("r --plot curves.txt", code=2).stderr


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("history.jsonl", '{"total": ' + "[" * 100_000),
        ("history.jsonl", '{"total": 1, "loss": 1' + "0" * 40_000 + "}"),
        ("options.toml", "a = " + "[" * 100_000),
        ("options.toml", "x" * (2 << 20)),
        ("options.toml", "\xff"),
    ],
    ids=lambda value: value[:16],
)
def test_hostile_files_of_runs(runs, run, file, text):
    """The run is left out with a word, and its training goes on from a checkpoint."""
    with open(f"r/two/{file}", "ab") as damaged:
        damaged.write(f"{text}\n".encode("latin-1"))
    result = runs("r --json")
    assert [row["run"] for row in rows_of(result)] == ["r/one"]
    assert result.stderr.startswith(f"note: r/two/{file}: ")
    assert len(result.stderr) < 300
    run(*GRU, "--steps", 15, "-o", "r/two", "--resume")
    assert [row["steps"] for row in rows_of(runs("r --json"))] == [12, 15]


def test_runs_as_json_have_no_nan(runs, tmp_path):
    with open("r/one/history.jsonl", "a") as file:
        file.write('{"total": 13, "epoch": NaN, "loss": NaN, "validation": NaN, "seconds": Infinity}\n')
    (tmp_path / "r/one/options.toml").write_text("rate = nan\nmost = [inf]\nday = 2024-01-31\n")
    (row,) = rows_of(runs("r/one --json"))
    assert (row["steps"], *(row[name] for name in ("epoch", "loss", "best", "seconds"))) == (13, *[None] * 4)
    assert row["settings"] == {"rate": None, "most": [None], "day": "2024-01-31"}
    assert runs("r/one").stdout.splitlines()[-2].split() == ["r/one", "13", "-", "-", "-", "-", "-"]


def test_runs_from_python(runs, tmp_path):
    sizes = {"hidden_size": 4, "embedding_size": 4, "batch_size": 2, "length": 4, "steps": 2, "backend": "numpy"}
    TextModel(**sizes, checkpoints=tmp_path / "there").fit(VERSE)
    (row,) = rows_of(runs("there --json"))
    assert row["steps"] == 2
    assert row["settings"]["model"].startswith("xLSTMLanguageModel(")
