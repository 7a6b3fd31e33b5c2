"""The package as its users see it: its requirements, the time of its import, its public names and
its README.
"""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib

import pytest

import xlstm
from tests.conftest import ROOT
from xlstm.arrays.ranks import nccl

README = (ROOT / "README.md").read_text(encoding="utf-8")

# Packages that nothing imports before they are needed.
PACKAGES = (
    "typer",
    "rich",
    "click",
    "matplotlib",
    "cupy",
    "torch",
    "jax",
    "onnx",
    "h5py",
    "numba",
    "mpi4py",
)

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"blocked {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
TRAIN = """
import numpy as np, xlstm
from xlstm import optim, training, estimators
from xlstm.series import bundled, read_csv
text = bundled("sunspots").read_text()
with open("plain.csv", "w") as file:
    file.writelines(line.partition(",")[2] + "\\n" for line in text.splitlines())
values = read_csv("plain.csv").values
forecaster = estimators.Forecaster(epochs=1, hidden_size=4, window=12, backend="numpy").fit(values)
forecaster.save("model.safetensors")
print(estimators.Forecaster.load("model.safetensors", "numpy").predict(values, 2))
"""


def python(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_training_needs_only_four_packages(tmp_path):
    blocked = [*PACKAGES, "pandas", "narwhals", "pyarrow"]
    result = python(BLOCK.format(blocked=blocked) + TRAIN, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[")


COMMAND = """
from xlstm.cli import main
sys.argv = ["xlstm", "train", "--backend", "numpy", *{}]
main()
"""


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ([], 2, "line 2: dates need pandas.*xlstm-xp\\[tables\\]"),
        (["s.csv"], 0, ""),
    ],
    ids=["with dates", "without dates"],
)
def test_the_command_needs_pandas_for_dates_alone(tmp_path, table, code, words):
    """The extra `cli` does not bring it. The refusal comes before any work."""
    pytest.importorskip("typer")
    (tmp_path / "s.csv").write_text("v\n" + "".join(f"{k % 7}\n" for k in range(99)))
    block = BLOCK.format(blocked=["pandas", "narwhals", "pyarrow"])
    result = python(block + COMMAND.format(table), tmp_path)
    assert result.returncode == code, result.stderr
    assert re.search(words, result.stderr)
    assert (tmp_path / "xlstm-output").exists() == (code == 0)
    assert bool(result.stdout) == (code == 0)


def test_import_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, numpy, array_api_compat; before = set(sys.modules); import xlstm;"
        " print(*sys.modules)"
    )
    loaded = {name.split(".")[0] for name in python(code, tmp_path).stdout.split()}
    assert "xlstm" in loaded
    # as `from numpy import *` would
    assert "numpy.f2py" not in python(code, tmp_path).stdout.split()
    assert not loaded & {*PACKAGES, "safetensors", "threadpoolctl"}


NEEDS = {
    "jax": "jax",
    "torch": "torch",
    "keras": "h5py",
    "onnx_export": "onnxruntime",
    "onnx_import": "onnx",
}
EXAMPLES = [
    path
    for path in sorted((ROOT / "xlstm").rglob("*.py"))
    if "    >>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
    pytest.importorskip(NEEDS.get(path.stem, "numpy"))
    result = doctest.testmod(
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    )
    assert result.attempted > 1
    assert result.failed == 0


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_every_cuda_has_an_extra_for_nccl(cuda):
    """CuPy finds NCCL only in the package of its own version of CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras[f"cuda{cuda}"][0].startswith(f"cupy-cuda{cuda}x")
    assert extras[f"nccl{cuda}"][0].startswith(f"nvidia-nccl-cu{cuda}>=")
    assert f"[nccl{cuda}]" in nccl.INSTALL


def test_ci_runs_the_readme_test_command():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    test = [c for c in commands if c.endswith("nox")]
    assert len(test) == 1
    assert test[0] in ci.splitlines()


def test_version_is_in_the_changelog():
    assert f"## {xlstm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "module",
    ["losses", "optim", "training", "estimators", "plots", "data", "distributed", "models"],
)
def test_functions_document_parameters_and_results(module):
    """In numpydoc's sections: every function that takes arguments, and every one that returns
    something.
    """
    own = getattr(xlstm, module)
    for name in getattr(own, "__all__", dir(own)):
        function = getattr(own, name)
        listed = hasattr(own, "__all__") or getattr(function, "__module__", None) == own.__name__
        if name.startswith("_") or not listed or not inspect.isfunction(function):
            continue
        text = inspect.getdoc(function)
        for parameter in inspect.signature(function).parameters:
            assert re.search(rf"^(\w+, )*{parameter}(, \w+)* : ", text, re.MULTILINE), (
                f"{name}: {parameter}"
            )
        if inspect.signature(function).return_annotation not in (None, "None"):
            assert re.search(r"^Returns\n-------$", text, re.MULTILINE), name


def test_dir_and_docstring_show_every_public_name(tmp_path):
    """Also before any of them is imported."""
    shown = python("import xlstm; print(*dir(xlstm))", tmp_path).stdout.split()
    assert set(shown) == set(xlstm.__all__)
    assert xlstm.__doc__ is not None
    grouped = set(re.findall(r"[\w.]+", xlstm.__doc__))
    assert {name for name in xlstm.__all__ if not name.startswith("_")} <= grouped


def test_the_command_line_says_what_it_needs(tmp_path):
    result = python(
        BLOCK.format(blocked=["typer"]) + "from xlstm.cli import main; main()", tmp_path
    )
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: typer is not installed; pip install 'xlstm-xp[cli]' brings the command line\n"
    )
