"""Runs on several ranks that fail, or are stopped: what is said, how soon, and that they go on as
before.
"""

import re
import signal

import pytest

from tests.distributed.launcher import Job, needed
from tests.distributed.test_group import ABORTED, FAILED, SOON
from xlstm.training import folder as folders

RUN = """
from xlstm import losses, optim, training
from xlstm.data import Windows
rng = np.random.default_rng(0)
lstm = xlstm.LSTM(3, 4, num_layers=2, dropout=0.25)
data = Windows(rng.normal(size=(30, 5, 3)), rng.normal(size=(30, 5, 4)), batch_size=5, every_step=True)
def fit(folder=None, **options):
    params = lstm.init(seed=0, backend=xlstm.backend("numpy", dtype="float64"))
    how = {"epochs": 3, "every": 4, "resume": folder is not None, **options}
    return training.train(lstm, params, data, optim.adam(1e-2), checkpoints=folder, group=group, **how).params
"""
FAILS = """
def loss(y, target, mask):
    loss.calls = getattr(loss, "calls", 0) + 1
    if loss.calls == 8 and group.rank == 1:
        now("fails")
        raise KeyError("of rank 1")
    return losses.mse(y, target, mask)
fit(FOLDER, loss=loss)
"""
SLOWLY = """
received, sent = os.pipe()
os.set_blocking(sent, False)
signal.set_wakeup_fd(sent)
def slowly(progress):
    if progress.total == 3:
        now("third")
        os.read(received, 1)  # waits for the signal, whatever its handler does
fit(FOLDER, callbacks=[slowly])
"""
FULL = """
import resource
def full(progress):  # no file may be larger than 100 bytes
    if progress.total == 6 and group.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
fit(FOLDER, callbacks=[full])
now("end")
"""
JUDGES = """
def judges(progress):  # on rank 0 alone
    if progress.total == 5:
        now("fails")
        training.evaluate(lstm, progress.params, data, group=group)
fit(callbacks=[judges])
"""
CATCHES = """
class Ends:
    def __len__(self):
        return len(data)
    def batches(self, rng=None):
        for k, batch in enumerate(data.batches(rng)):
            if k < 4 or group.rank != 1:
                yield batch
for options in ({"validation": Ends()}, {"seed": int(group.rank == 2)}):
    try:
        fit(FOLDER if group.rank == 0 else None, **options)
    except (ValueError, distributed.OtherRankError) as error:
        assert group.rank != 0 or "rank 1" in str(error) or "rank 2" in str(error), error
        now("caught")
fit()
now("end")
"""
GOES_ON = """
found, whole = fit(FOLDER), fit()
assert all((found[name] == whole[name]).all() for name in whole)
now("same")
"""


def run(folder, code):
    return Job(3, f"FOLDER = {str(folder)!r}\n{RUN}{code}", XLSTM_COMPILE="0")


def newest(folder):
    """The number of steps of the newest checkpoint."""
    return folders.Folder(folder, 1).newest().about["total"]


def goes_on(folder):
    """Whether the run ends with the bits of one that was never stopped."""
    job = run(folder, GOES_ON).end()
    return (job.status, job.err, len(job.numbers("same"))) == (0, "", 3)


@needed
def test_an_error_of_a_rank_ends_the_run_after_the_last_sound_step(tmp_path):
    job = run(tmp_path, FAILS).end()
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    assert f"{FAILED}KeyError: 'of rank 1'\n" in job.err
    assert (job.err.count("xlstm: rank"), job.err.count("Traceback"), newest(tmp_path)) == (1, 1, 7)


@needed
def test_an_evaluation_on_rank_0_alone_ends_the_job_by_name(tmp_path):
    job = run(tmp_path, JUDGES).end()
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    (said,) = re.findall("^xlstm: .*", job.err, re.MULTILINE)
    expected = (
        r"rank 0, [12] of 3 .* rank . came to (tell|sum) (\d+) and rank . to (tell|sum) \2, so"
        r" neither can end$"
    )
    assert re.search(expected, said), said


@needed
def test_a_program_that_catches_the_errors_of_a_rank_goes_on(tmp_path):
    """The first run has no end of validation on a rank, and the second one another seed."""
    job = run(tmp_path, CATCHES).end()
    assert (job.status, job.err) == (0, "")
    assert len(job.numbers("caught")) == 6
    assert (len(job.numbers("end")), newest(tmp_path)) == (3, 6)


@needed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_mpiexec_stops_all_ranks_after_the_same_step(number, tmp_path):
    job = run(tmp_path, SLOWLY).send(number, after="third")
    assert job.status == (1 if number == signal.SIGINT else 128 + number)
    assert job.seconds("sent") < SOON
    # said, and raised
    assert job.err.count("train: stopped after epoch 1, step ") == 1 + (number == signal.SIGINT)
    assert job.err.count("Traceback") == (number == signal.SIGINT)
    assert "failed" not in job.err
    assert 3 <= newest(tmp_path) < 6
    assert number == signal.SIGINT or goes_on(tmp_path)


@needed
def test_a_full_disk_of_rank_0_is_a_warning(tmp_path):
    job = run(tmp_path, FULL).end()
    assert (job.status, len(job.numbers("end"))) == (0, 3)
    assert job.err.count("training goes on, and the next checkpoint tries again") == 1
    assert (job.err.count("RuntimeWarning"), newest(tmp_path)) == (2, 4)
    assert goes_on(tmp_path)


MEMORY = """
import tracemalloc
from xlstm import optim, training
from xlstm.training.parallel import Sharded
from xlstm.training.ranks import RunRanks
lstm = xlstm.LSTM(128, 256, num_layers=3)
params = lstm.init(backend="numpy")
whole = sum(p.nbytes for p in params.values())
step = training.TrainStep(lstm, optim.adam(1e-3), group=group)
def most(function, *args):
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    result = function(*args)
    return result, (tracemalloc.get_traced_memory()[1] - before) / whole
tracemalloc.start()
state, init = most(step.init, params)
ranks = RunRanks(state.runtime.ranks, lstm, False)
assert isinstance(ranks.reduce, Sharded)
# weights, a buffer for all gradients, and a part of these and of two moments
assert init < 1.02 * (2 + 3 / group.size), init
saved, saving = most(ranks.whole, state, 1)
if group.rank == 0:
    assert {len(arrays) for arrays in saved.moments.slots.values()} == {len(params)}
else:
    assert saving < 1.02 / group.size, saving
now("end")
"""


@needed
def test_ranks_have_their_share_of_moments_alone():
    """Also while those are gathered for a checkpoint: the others need room for one more part."""
    job = Job(4, MEMORY).end()
    assert (job.status, job.err, len(job.numbers("end"))) == (0, "", 4)
