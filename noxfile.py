"""Sessions for contributors and CI: plain `nox` checks style and types, tests, compares backends, and builds.

Versions of tools live in the dependency groups of pyproject.toml. CI has 12 minutes on two cores, so it runs a covering
array of the cases of each test (`--cover` in tests/conftest.py); `nox -s full` runs all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"  # plain pip: it finds a CPU build of PyTorch where uv takes a CUDA one
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")


def runs(version: str) -> bool:
    """Whether the command pythonX.Y is there and runs: a shim may stand for a Python that is not installed."""
    command = shutil.which(f"python{version}")
    return command is not None and subprocess.run([command, "--version"], capture_output=True).returncode == 0


LOWEST = "3.11"  # the lowest Python that the project declares, for the lowest versions of packages
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in ("3.11", "3.12", "3.13", "3.14") if version != HERE and runs(version)]
nox.options.sessions = ["lint", "types", "tests", "cupy", *(["pythons"] if OTHERS else []), "lowest", "build"]

# Two processes; one that is done takes tests from the other, which has begun with those that come after it in the list:
# so most files, and what they compile and import, stay in one process.
PYTEST = ["pytest", "-n", "2", "--dist", "worksteal", "-q"]
# Threads of BLAS and of PyTorch spin while they wait, on the core of the other process: a third of all time.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
RECURRENT = [f"tests/test_{name}.py" for name in ("lstm", "slstm", "lengths", "recurrent", "training")]
# With others that compile many loops these run in processes of their own: compiled code stays in memory.
LOOPS = ("compiled", "chains", "packed", "vector_lengths", "bounds", "engines", "activations", "custom_cells", "module")
COMPILING = [*RECURRENT, *(f"tests/test_{name}.py" for name in LOOPS)]
# The environment of every path that recurrent layers of NumPy arrays can take beside the usual one.
PATHS = [
    {"XLSTM_COMPILE": "0", "XLSTM_NUM_THREADS": "1"},
    {"XLSTM_COMPILE": "0", "XLSTM_TEST_PLAN": "parts"},
    {"XLSTM_COMPILE": "1", "XLSTM_TEST_PLAN": "parts"},
    {"XLSTM_COMPILE": "1", "XLSTM_TEST_PLAN": "shared"},
]
# Another version of Python or of a package changes what a line of code does, not how options go together: each value is
# tested once, and other backends need no second run. Loops are compiled by the tests of them alone, which do so for
# every option but do not compare the paths again. Benchmarks are not installed by users, and run in an environment of
# their own.
VERSIONS = [
    *("--cover", "1"),
    "--deselect=tests/test_compiled.py::test_every_path_gives_the_same_numbers",
    "--deselect=tests/test_vector_lengths.py::test_options",
    *(f"--ignore=tests/test_{name}.py" for name in ("bench", "bench_gpu", "bench_mains", "bench_tasks")),
]
STANDIN = {"XLSTM_TEST_STANDIN": "1", "XLSTM_TEST_BACKENDS": "cupy", "XLSTM_TEST_REQUIRE": "cupy"}
NUMPY = {**ALONE, "XLSTM_TEST_BACKENDS": "numpy", "XLSTM_COMPILE": "0"}


def group(*names: str) -> list[str]:
    """Requirements of dependency groups."""
    return [requirement for name in names for requirement in nox.project.dependency_groups(PROJECT, name)]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and that imports go downwards only."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types in xlstm."""
    session.install("-e", ".", *group("types"))
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on NumPy, array-api-strict and PyTorch on the CPU, and on CuPy where a GPU is usable; then parity.

    Every two values of the parameters of a test go together in one of its cases. Recurrent layers are tested again on
    every other path of NumPy arrays: loops not compiled, on one thread, and the work divided among threads as it is for
    large layers. There each value occurs in one case, since tests/test_compiled.py compares the paths on every option.
    """
    install_all(session)
    run_all(session, "--cover", "2")
    if session.posargs:
        return
    on_every_path(session, "--cover", "1")
    session.run("python", "-m", "tests.parity", "--brief", "--processes", "2", env={**ALONE, "XLSTM_COMPILE": "0"})


@nox.session
def cupy(session: nox.Session) -> None:
    """Whatever takes CuPy arrays, on a CuPy that is acted out on the CPU (`tests/standin`); kernels are made by g++."""
    session.install("--no-compile", "-e", ".[fast]", *group("test", "torch", "bench", "device"))
    tests = session.posargs or ["-k", "cupy or standin"]
    session.run(*PYTEST, "--cover", "2", *tests, env={**ALONE, **STANDIN})


@nox.session
def full(session: nox.Session) -> None:
    """Every case of every test, and every case of what recurs on every path."""
    install_all(session)
    run_all(session)
    if not session.posargs:
        on_every_path(session)


def install_all(session: nox.Session) -> None:
    """Install the project and everything that any test uses; files are compiled when they are imported."""
    session.install("--no-compile", "-e", ".[fast]", *group("test", "torch", "bench", "device"))


def run_all(session: nox.Session, *arguments: str) -> None:
    """Run all tests, or those that the command line of nox names."""
    if session.posargs:
        session.run(*PYTEST, *arguments, *session.posargs, env=ALONE)
    else:
        session.run(*PYTEST, *arguments, *COMPILING, env=ALONE)
        session.run(*PYTEST, *arguments, *(f"--ignore={path}" for path in COMPILING), env=ALONE)


def on_every_path(session: nox.Session, *arguments: str) -> None:
    """Run the tests of recurrent layers on NumPy arrays once in the environment of each path, with threads of BLAS."""
    for path in PATHS:
        environment = {**path, "XLSTM_TEST_BACKENDS": "numpy"}
        session.run(*PYTEST, *arguments, *RECURRENT, env=environment)


@nox.session(python=OTHERS)
def pythons(session: nox.Session) -> None:
    """The tests with the newest NumPy on every other Python of this machine; those that need PyTorch stay on one."""
    session.install("--no-compile", "-e", ".[fast]", *group("test"))
    session.run(*PYTEST, *VERSIONS, *session.posargs, env=NUMPY)


@nox.session(python=LOWEST if HERE == LOWEST or LOWEST in OTHERS else HERE)
def lowest(session: nox.Session) -> None:
    """The tests with the lowest declared version of every package that users install.

    Old packages use what newer packages below them have deprecated.
    """
    project = PROJECT["project"]
    declared = [project["dependencies"], *project["optional-dependencies"].values()]
    # Not in a folder for temporary files: what tests keep in such a folder, kernels made by g++, serves all sessions.
    constraints = session.cache_dir / "lowest.txt"
    lines = [re.sub(">=", "==", package) for packages in declared for package in packages if "[" not in package]
    constraints.write_text("\n".join(lines))
    project = ".[fast,plot,keras,onnx,text,tables]"
    session.install("--no-compile", "-e", project, "-c", str(constraints), *group("runner"))
    session.run(*PYTEST, *VERSIONS, "-W", "ignore::DeprecationWarning", *session.posargs, env=NUMPY)


@nox.session
def parity(session: nox.Session) -> None:
    """Every pair of usable backends side by side on the same inputs; `tests` does this at its end."""
    session.install("--no-compile", "-e", ".", *group("test", "torch"))
    session.run("python", "-m", "tests.parity", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Times beside those of other libraries, written to bench/results/<machine>.json."""
    session.install("-e", ".[fast]", *group("bench"))
    # The published packages have the import name of this project.
    peer = str(Path(session.create_tmp()).resolve() / "published")
    session.install("--target", peer, "--upgrade", "--no-deps", "xlstm>=2.0.6", "mlstm_kernels>=2.0.6")
    session.run("python", "-m", "bench", *session.posargs, env={"XLSTM_BENCH_PEER": peer})


@nox.session
def gpu(session: nox.Session) -> None:
    """The GPU check within 8 minutes: the card, tests on CuPy, parity, times beside others', the main job."""
    cuda = os.environ.get("XLSTM_CUDA", "cuda12")
    session.install("-e", f".[{cuda},fast]", *group("test", "torch", "bench"))
    session.install("--no-deps", "mlstm_kernels>=2.0.6")
    session.run("python", "-m", "bench.gpu", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The kernels under compute-sanitizer, on a CUDA machine: memory out of bounds and races."""
    session.install("-e", f".[{os.environ.get('XLSTM_CUDA', 'cuda12')}]")
    session.run("python", "-m", "bench.sanitize", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel; in clean environments the wheel runs the main job, and trains without typer and rich."""
    session.install(*group("build"))
    room = Path(session.create_tmp()).resolve()
    dist, clean = room / "dist", room / "clean"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (wheel,) = dist.glob("*.whl")
    python = str(clean / "bin" / "python")
    session.run("python", "-m", "venv", "--clear", str(clean))
    session.run(python, "-m", "pip", "install", "--quiet", str(wheel), external=True)
    with session.chdir(room):
        session.run(str(clean / "bin" / "xlstm"), "train", external=True)
        session.run("python", "-m", "venv", "--clear", str(clean))
        bare = ["numpy", "array-api-compat", "safetensors", "threadpoolctl"]
        session.run(python, "-m", "pip", "install", "--quiet", *bare, external=True)
        session.run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), external=True)
        session.run(python, "-c", TRAIN_BARE, external=True)


TRAIN_BARE = """
from xlstm.estimators import Forecaster, Settings
from xlstm.series import bundled, read_csv
values = read_csv(bundled("sunspots")).values
forecaster = Forecaster(Settings(epochs=2)).fit(values)
print("two epochs with nothing but NumPy and three small packages: RMSE", forecaster.score(values).model)
"""
