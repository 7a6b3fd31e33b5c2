"""Runs on several ranks that fail, or are stopped: what is said, how soon, and that they go on as before."""

import platform
import signal

import pytest

from tests.launcher import Job, needed
from tests.test_mpi import ABORTED, SOON
from xlstm.training import folder as folders

RUN = """
from xlstm import losses, optim, training
from xlstm.data import Windows
rng = np.random.default_rng(0)
lstm = xlstm.LSTM(3, 4, num_layers=2, dropout=0.25)
data = Windows(rng.normal(size=(30, 5, 3)), rng.normal(size=(30, 5, 4)), batch_size=5, every_step=True)
def fit(folder=None, **options):
    params = lstm.init(seed=0, backend=xlstm.backend("numpy", dtype="float64"))
    how = {"epochs": 3, "resume": folder is not None, **options}
    return training.train(lstm, params, data, optim.adam(1e-2), checkpoints=folder, every=4, group=group, **how)
"""
GOES_ON = """
found, whole = fit(FOLDER).params, fit().params
assert all((found[name] == whole[name]).all() for name in whole)
now("same")
"""


def run(folder, code, ranks=3):
    return Job(ranks, f"FOLDER = {str(folder)!r}\n{RUN}{code}", XLSTM_COMPILE="0")


def newest(folder):
    """The number of steps of the newest checkpoint."""
    return folders.Folder(folder, 1).newest().about["total"]


def goes_on(folder):
    """Whether the run ends with the bits of one that was never stopped."""
    job = run(folder, GOES_ON).end()
    assert (job.status, job.err) == (0, "")
    return len(job.numbers("same")) == 3


@needed
def test_an_error_of_a_rank_ends_the_run_after_the_last_sound_step(tmp_path):
    code = """
def loss(y, target, mask):
    loss.calls = getattr(loss, "calls", 0) + 1
    if loss.calls == 8 and group.rank == 1:
        now("fails")
        raise KeyError("of rank 1")
    return losses.mse(y, target, mask)
fit(FOLDER, loss=loss)
"""
    job = run(tmp_path, code).end()
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    assert f"xlstm: rank 1 of 3 (host {platform.node()}) failed, the job ends: KeyError: 'of rank 1'\n" in job.err
    assert (job.err.count("xlstm: rank"), job.err.count("Traceback")) == (1, 1)
    assert newest(tmp_path) == 7


@needed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_mpiexec_stops_all_ranks_after_the_same_step(number, tmp_path):
    code = """
def slowly(progress):
    time.sleep(0.1)
    if progress.total == 3:
        now("third")
fit(FOLDER, callbacks=[slowly])
"""
    job = run(tmp_path, code)
    job.wait_for("third")
    job.send(number)
    job.end()
    assert job.status not in (0, *ABORTED[1:])
    assert job.seconds("sent") < SOON
    assert job.err.count("train: stopped after epoch 1, step ") == 1 + (number == signal.SIGINT)  # said, and raised
    assert job.err.count("Traceback") == (number == signal.SIGINT)
    assert "failed" not in job.err
    assert 3 <= newest(tmp_path) < 6
    assert number == signal.SIGINT or goes_on(tmp_path)


@needed
def test_a_full_disk_of_rank_0_is_a_warning(tmp_path):
    code = """
import resource
def fills_it(progress):
    if progress.total == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
fit(FOLDER, callbacks=[fills_it])
now("end")
"""
    job = run(tmp_path, code).end()
    assert job.status == 0
    assert len(job.numbers("end")) == 3
    assert job.err.count("training goes on, and the next checkpoint tries again") == 1
    assert job.err.count("RuntimeWarning") == 2
    assert newest(tmp_path) == 4
    assert goes_on(tmp_path)
