"""The backends that tests run on.

A test that takes `be` runs once on each: NumPy with read-only inputs, which exposes in-place
writes; array-api-strict on its second device, which exposes whatever only a GPU would; PyTorch on
the CPU; CuPy where a GPU is usable. A backend that cannot run here has no tests, and a line at the
end of the run says why. pytest refuses to begin where XLSTM_TEST_REQUIRE names one in the
environment; of mpi and dask that it names, tests fail where they are missing.

XLSTM_TEST_BACKENDS names the backends that are tested. On NumPy a layer runs in one of several
ways, by its size and by what is installed (`division` in `numba_engine.py`); sizes in tests are
small, so `force` lets them take the others.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from xlstm.arrays import cores
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.numba import jit, numba_engine

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests/golden"
# Numbers of the notebook that the library began as, by the widths of its input and its state.
NOTEBOOK = {
    "d1_h50": DATA / "seed_lstm_d1_h50.npz",
    "d3_h8": Path(xlstm.__file__).parent / "data/datasets/notebook.npz",
}
PACKAGES = {"numpy": "numpy", "strict": "array_api_strict", "torch": "torch", "cupy": "cupy"}
REQUIRED = os.environ.get("XLSTM_TEST_REQUIRE", "").split(",")


def unusable(name: str) -> str:
    """Return why a backend cannot run here; nothing where it can. Only CuPy may be installed and
    not work.
    """
    if importlib.util.find_spec(PACKAGES[name]) is None:
        return f"{PACKAGES[name]} is not installed"
    try:
        if name == "cupy":
            xlstm.backend(name)
    except BackendError as error:
        return str(error)
    return ""


ASKED = os.environ.get("XLSTM_TEST_BACKENDS", "numpy,strict,torch,cupy").split(",")
MISSING = {name: reason for name in ASKED if (reason := unusable(name))}
BACKENDS = [name for name in ASKED if name not in MISSING]

collect_ignore_glob = [] if "cupy" in BACKENDS else ["*test_cupy_*.py", "*test_cuda_on_cpu.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cover",
        type=int,
        metavar="K",
        help=(
            "run only so many cases of each test that every K values of its parameters which go"
            " together do so in one; of 0, one case of each test"
        ),
    )


def pytest_configure() -> None:
    """Refuse to begin without a required backend, and let SIGINT interrupt.

    A process that was started with SIGINT ignored, as by nohup or in the background of a script,
    would hand that on to all that tests start.
    """
    if missing := [f"{name}: {reason}" for name, reason in MISSING.items() if name in REQUIRED]:
        raise pytest.UsageError(
            f"XLSTM_TEST_REQUIRE names what cannot run here: {'; '.join(missing)}"
        )
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once which backends were not tested, and why, and each reason for which tests were
    skipped.
    """
    for reason in MISSING.values():
        terminalreporter.write_line(f"not tested here: {reason}")
    skipped = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a covering array of the cases of each test, as `--cover` says, and none for a CuPy that
    is missing.
    """
    strength = config.getoption("--cover")
    cases: dict[str, dict[Any, list[Hashable]]] = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        values = [(name, id(value)) for name, value in params.items()]
        if "cupy" in BACKENDS or not needs_cupy(item.name, params):
            cases.setdefault(item.nodeid.partition("[")[0], {})[item] = values
    kept = {
        item
        for same in cases.values()
        for item in (same if strength is None else covering(same, strength))
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def needs_cupy(name: str, params: dict[str, Any]) -> bool:
    """Return whether a parameter of a test is "cupy", or its name ends in "_on_cupy"."""
    values = [value for value in params.values() if isinstance(value, str)]
    return "cupy" in values or name.partition("[")[0].endswith("_on_cupy")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there before tests: it took half of the time of
    some of them.
    """
    gc.collect()
    gc.freeze()


def covering(cases: dict[Any, list[Hashable]], strength: int) -> list[Any]:
    """Return those of cases, each with its values, that a greedy search chooses: the first of those
    that add most.
    """
    left = {
        case: set(itertools.combinations(values, min(strength, len(values))))
        for case, values in cases.items()
    }
    missing = set().union(*left.values())
    chosen = []
    while missing:
        best = max(left, key=lambda case: len(left[case] & missing))
        missing -= left.pop(best)
        chosen.append(best)
    return chosen


# Thresholds with which even the smallest batch is divided, or the products of each step are shared
# out.
COMPILED = {"parts": {"COLUMNS": 1}, "shared": {"STEP": 1, "NEAR": 0}}


def force(plan_name: str, patch: pytest.MonkeyPatch, count: int = 2) -> None:
    """Let even the smallest batch run in `count` threads."""
    for name, value in COMPILED[plan_name].items():
        patch.setattr(numba_engine, name, value)
    patch.setattr(numba_engine, "LARGE", 0)
    patch.setenv(cores.VARIABLE, str(count))


class Later:
    """A package that is imported when a name of it is used."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks for marks of its own at whatever a module has
            raise AttributeError(name)
        return getattr(importlib.import_module(self._package), name)


def later(package: str) -> Any:
    """A large package for a module of tests, which is skipped where the package is not installed.

    Every process of pytest-xdist imports all modules of tests; the package is only in the memory of
    those that run tests of it.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
    return Later(package)


class ReadOnly(Backend):
    """NumPy whose arrays cannot be written to."""

    def asarray(self, values, dtype=None):
        array = np.array(super().asarray(values, dtype))
        array.flags.writeable = False
        return array


def make_backend(name: str, dtype: str = "float64") -> Backend:
    if name == "numpy":
        numpy = xlstm.backend("numpy", dtype=dtype)
        return ReadOnly(numpy.name, numpy.xp, numpy.device, dtype)
    if name == "strict":
        strict = pytest.importorskip("array_api_strict")
        return Backend("array_api_strict", strict, strict.Device("device1"), dtype)
    try:
        return xlstm.backend(name, dtype=dtype)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(params=BACKENDS)
def be(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend that makes float64 arrays; the reference engine runs on tensors themselves, not on
    views of them.
    """
    with engine.use(ARRAY_API.name) if request.param == "torch" else contextlib.nullcontext():
        yield make_backend(request.param)


@pytest.fixture(autouse=True, scope="session")
def cuda() -> None:
    """Where CuPy runs on a CPU, new memory holds NaN, and nothing is launched on memory that was
    given back.
    """
    if "cupy" in BACKENDS and not cuda_on_cpu.missing():
        cuda_on_cpu.watch()


@pytest.fixture
def refused() -> None:
    """For a test that asks for what CUDA refuses."""


@pytest.fixture(autouse=True)
def legal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing that a test asks of CUDA would be refused, or go wrong, on a card."""
    if (
        "cupy" not in BACKENDS
        or cuda_on_cpu.missing()
        or request.module.__name__ == "tests.test_cuda_on_cpu"
    ):
        yield
        return
    with cuda_on_cpu.counted() as found:
        yield
    assert not found.problems or "refused" in request.fixturenames, found.problems


@pytest.fixture(params=["cupy"])
def xp(request: pytest.FixtureRequest) -> Any:
    """The namespace of CuPy, for tests of what is there alone."""
    return make_backend(request.param).xp


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave loops uncompiled, for tests of many options whose subject is not the loop: compiling
    each takes seconds.
    """
    monkeypatch.setenv("XLSTM_COMPILE", "0")


# The bytes of vectors and a dtype: AVX2, NEON and AVX-512, with vectors of 2, 4, 8 and 16 numbers.
# Tiles of as many are alike in either dtype, and other combinations take time to compile.
@pytest.fixture(
    params=[(32, "float32"), (16, "float64"), (64, "float32"), (32, "float64")], ids=str
)
def vectors(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, str]]:
    """Code for vectors of so many bytes, whatever the processor has, and a dtype for which a test
    compiles it.
    """
    from xlstm.engines.numba import llvm

    monkeypatch.setenv(llvm.VARIABLE, str(request.param[0]))
    monkeypatch.setenv(jit.VARIABLE, "1")
    llvm.shape.cache_clear()
    yield request.param
    llvm.shape.cache_clear()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command of the command line in an empty folder, check its exit code, and return the
    result.

    The first argument may hold several words; `text` is on standard input.
    """
    from typer.testing import CliRunner

    from xlstm.cli.app import app

    def run(command: Any, *args: Any, code: int = 0, text: str | None = None) -> Any:
        result = CliRunner().invoke(app, [*str(command).split(), *map(str, args)], text)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        assert result.exit_code == code, result.output + str(result.exception)
        return result

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(7))
