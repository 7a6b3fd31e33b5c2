"""Ranks whose arrays lie on GPUs: sums by CuPy's module of NCCL, below which `cuda_on_cpu` has a library of its own."""

from __future__ import annotations

import pytest

import cuda_on_cpu
from tests import gpu
from tests.conftest import REQUIRED
from tests.distributed.launcher import INSTALLED, START, Job
from tests.distributed.test_group import ABORTED, SOON, WHOLE

cupy = gpu.needed()
if (not INSTALLED and "mpi" not in REQUIRED) or cuda_on_cpu.missing():
    pytest.skip("it needs mpi4py, mpich and cuda_on_cpu", allow_module_level=True)

GPU = START + "import cupy as xp\nimport cuda_on_cpu\nfrom xlstm.arrays.cuda_graph import Recorder\n"
CAPTURED = """
assert xlstm.backend("cupy").device.id == group.rank  # the GPU of a rank is that of its number
recorder, x, y = Recorder(), xp.ones(10), xp.zeros(10)
def step():
    xp.multiply(x, 2, out=y)
    group.sum(y)
with recorder.rehearsal():
    step()
graph = recorder.capture(step)
for k in range(5):
    x[...] = k + group.rank
    graph.launch()
    assert (y == 2 * (2 * k + 1)).all()
if group.rank == 1:
    now("fails")
    {fails}
graph.launch()
xp.asnumpy(y)
now("end")
"""
TRAIN = """
from xlstm import optim, training
from xlstm.data import Windows
rng = np.random.default_rng(0)
lstm = xlstm.LSTM(3, 4, 2, dropout=0.25)
def data(count, size, lengths=None):
    x, target = rng.normal(size=(count, 5, 3)), rng.normal(size=(count, 5, 4))
    return Windows(x, target, batch_size=size, every_step=True, lengths=lengths)
lengths = np.array([5, 2, 3, 1, 4, 5] * 4)
# Graphs are of each place among the batches of an update; a batch of one sequence leaves rank 0 without any.
cases = [(data(24, 6, lengths), {"accumulate": 3}, 3), (data(3, 1), {"callbacks": [training.Clip(0.1)]}, 1)]
def trained(backend, data, **options):
    step, losses = training.Step(lstm, optim.adam(1e-3), **options), []
    state = step.init(lstm.init(seed=1, backend=xlstm.backend(backend, dtype="float64")), seed=3)
    for _ in range(4):
        for batch in data.batches():
            state, taken = step(state, batch)
            losses.append(float(taken.loss))
    return state, losses
for whole, options, graphs in cases:
    alone, losses = trained("numpy", whole, **options)
    for graph in (False, True):
        state, found = trained("cupy", distributed.Shard(whole, group), graph=graph, group=group, **options)
        assert np.allclose(found, losses, rtol=1e-10, atol=0)
        for name, p in alone.params.items():
            assert np.allclose(xp.asnumpy(state.params[name]), p, rtol=0, atol=1e-10)
        assert state.masks.bit_generator.state == alone.masks.bit_generator.state
        told = group.tell([xp.asnumpy(p).tobytes() for p in state.params.values()])
        assert told[0] == told[1]
    assert len(state.graphs.captured) == graphs
now("end")
"""


def run(code, ranks=2, **environment):
    return Job(ranks, code, start=GPU, CUDA_ON_CPU_DEVICES="2", **environment).end()


@pytest.mark.parametrize("code", [WHOLE + CAPTURED.format(fails="pass"), TRAIN], ids=["sums", "steps"])
def test_two_gpus_also_within_a_graph(code):
    job = run(code)
    assert (job.status, job.err, len(job.numbers("end"))) == (0, "", 2)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("sys.exit()", "left before sum on the GPU 7"),
        ("cuda_on_cpu.library().cuda_on_cpu_set(b'nccl_error', 3); time.sleep(60)", "NCCL_ERROR_INTERNAL_ERROR"),
        ("time.sleep(60)", "did not come to sum on the GPU 7 within 1 s (XLSTM_GROUP_TIMEOUT)"),
    ],
    ids=["leaves", "error of NCCL", "sleeps"],
)
def test_a_rank_whose_gpu_does_not_come_ends_the_job(fails, message):
    job = run(CAPTURED.format(fails=fails), XLSTM_GROUP_TIMEOUT="1" if "TIMEOUT" in message else "")
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    assert "xlstm: rank 1 of 2" in job.err
    assert f" failed, the job ends: {message}" in job.err


def test_two_ranks_on_one_gpu_are_refused():
    job = run("group.sum(xp.ones(3))", ranks=3)
    assert "BackendError: group: ranks [0, 2] have the same GPU (0000:00:00.0 on host " in job.err
    assert (job.status in ABORTED, job.err.count("Traceback")) == (True, 1)
