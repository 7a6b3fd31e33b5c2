"""What contributors and CI run: plain `nox` is lint, types, tests, parity and build.

Versions of tools live in the dependency groups of pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"  # plain pip: it finds a CPU build of PyTorch where uv takes a CUDA one
nox.options.sessions = ["lint", "types", "tests", "parity", "build"]
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")


def group(*names: str) -> list[str]:
    """Requirements of dependency groups."""
    return [requirement for name in names for requirement in nox.project.dependency_groups(PROJECT, name)]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and that imports go downwards only."""
    session.install("-e", ".", *group("lint"))
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
    """The test suite on NumPy, array-api-strict and PyTorch on the CPU, and on CuPy where a GPU is usable."""
    session.install("-e", ".", *group("test", "bench"))
    session.run("pytest", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Every pair of usable backends side by side on the same inputs."""
    session.install("-e", ".", *group("test"))
    session.run("python", "-m", "tests.parity", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Times beside PyTorch's; results are appended to the JSON lines file given as argument."""
    session.install("-e", ".", *group("bench"))
    where = ["--json", session.posargs[0]] if session.posargs else []
    session.run("python", "-m", "bench.training_step", *where)
    session.run("python", "-m", "bench.layers", *where)


@nox.session
def gpu(session: nox.Session) -> None:
    """Everything with CuPy, on a CUDA machine: tests (a missing GPU fails them), parity, and times beside cuDNN's."""
    cuda = os.environ.get("XLSTM_CUDA", "cuda12")
    session.install("-e", f".[{cuda}]", *group("test", "bench"))
    session.run("python", "-m", "bench.gpu", *session.posargs)


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
        bare = ["numpy", "array-api-compat", "safetensors"]
        session.run(python, "-m", "pip", "install", "--quiet", *bare, external=True)
        session.run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), external=True)
        session.run(python, "-c", TRAIN_BARE, external=True)


TRAIN_BARE = """
from xlstm.estimators import Forecaster, Settings
from xlstm.series import bundled, read_csv
values = read_csv(bundled("sunspots")).values
forecaster = Forecaster(Settings(epochs=2)).fit(values)
print("two epochs with nothing but NumPy, array-api-compat and safetensors: RMSE", forecaster.score(values).model)
"""
