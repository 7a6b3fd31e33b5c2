"""Ranks whose arrays lie on GPUs: threads of one process that share one, and processes whose sums
are those of NCCL.

Below CuPy's module of NCCL `cuda_on_cpu` has a library of its own.
"""

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu
from tests.distributed.launcher import START, Job, needed
from tests.distributed.test_group import ABORTED, SOON, WHOLE
from tests.ranks import together
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import OtherRankError
from xlstm.data import Shard, Windows
from xlstm.precision import Mixed
from xlstm.training import Clip, TrainStep, optimizers, parallel
from xlstm.training.steps import AHEAD

cupy = gpu.needed()
on_cpu = pytest.mark.skipif(bool(cuda_on_cpu.missing()), reason="two GPUs are those of cuda_on_cpu")
RNG = np.random.default_rng(0)
MODEL = xlstm.LSTM(2, 4, 2, dropout=0.25, zoneout=(0.1, 0.2))
LENGTHS = RNG.integers(1, 6, 26)
DATA = Windows(
    RNG.normal(size=(26, 5, 2)),
    RNG.normal(size=(26, 5, 4)),
    batch_size=7,
    every_step=True,
    lengths=LENGTHS,
)
CASES = {
    "clipping": {"callbacks": [Clip(norm=0.1, value=0.05)]},
    "accumulated": {"accumulate": 3},
    "without a wait": {"wait": False},
    "float16": {"precision": Mixed("float16", 2.0**10, every=2)},
    "bfloat16": {"precision": Mixed("bfloat16")},
}


def taken(group, data=DATA, **options):
    """The state after three epochs, and the losses and whether each step counted."""
    step = TrainStep(MODEL, optimizers.adam(1e-3), group=group, **options)
    found = []
    dtype = "float32" if "precision" in options else "float64"
    state = step.init(MODEL.init(0, xlstm.backend("cupy", dtype=dtype)), seed=1)
    rng = np.random.default_rng(2)
    for _ in range(3):
        for batch in (data if group is None else Shard(data, group)).batches(rng):
            state, how = step(state, batch)
            found.append((float(how.loss), bool(how.updated)))
    return step.settle(state), np.array(found)


@pytest.mark.parametrize("machines", [1, 2])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_one_process(case, shares, machines, monkeypatch):
    """Also where each rank has a part of the moments, and where sums overlap with the backward pass."""
    monkeypatch.setattr(parallel, "LEAST", 1 if shares else 1 << 20)
    monkeypatch.setattr(parallel, "BUCKET", 200)
    expected, losses = taken(None, **CASES[case])
    low = CASES[case].get("precision")
    tolerance = 1e-10 if low is None else 2e-3
    several = [
        one
        for size in (1, 3)
        for one in together(size, lambda group: taken(group, **CASES[case]), machines=machines)
    ]
    for state, found in several:
        np.testing.assert_array_equal(found[:, 1], losses[:, 1])
        np.testing.assert_allclose(found[:, 0], losses[:, 0], rtol=tolerance)
        assert state.scaling == expected.scaling
        for name, p in expected.params.items():
            np.testing.assert_allclose(
                to_numpy(state.params[name]), to_numpy(p), rtol=0, atol=tolerance
            )


def test_a_step_that_overflows_on_one_rank_is_left_out_on_all():
    """A gradient that overflows within a part may do so at a larger scale than in the whole
    batch.
    """

    def run(group):
        state, found = taken(group, precision=Mixed("float16", 2.0**24))
        return (
            state.scaling,
            found[:, 1].tolist(),
            [to_numpy(p).tobytes() for p in state.params.values()],
        )

    first, *others = together(3, run)
    assert others == [first, first]
    assert 0 < sum(first[1]) < len(first[1])


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["the model", "the data"])
def test_an_error_of_one_rank_is_raised_on_all(where, accumulate, wait):
    """Without a wait it comes when steps are settled, on all ranks at the same one."""

    def run(group):
        state, _ = taken(group, wait=wait, accumulate=accumulate)
        batch = next(Shard(DATA, group).batches())
        step = TrainStep(
            MODEL, optimizers.adam(1e-3), group=group, wait=wait, accumulate=accumulate
        )
        if accumulate > 1:  # the next batch ends an update
            state = step.settle(step(state, batch)[0])
        if group.rank == 1:
            batch = batch._replace(
                x=batch.x[..., :1] if where == "the model" else np.full_like(batch.x, np.nan)
            )
        before = [to_numpy(p).tobytes() for p in state.params.values()]
        error = ValueError if group.rank == 1 else OtherRankError
        for _ in range(0 if wait else AHEAD):
            state, _ = step(state, batch)
        with pytest.raises(
            error, match="x has shape" if where == "the model" else r"x\[0, 0, 0\] is nan"
        ):
            step(state, batch)
        assert [to_numpy(p).tobytes() for p in state.params.values()] == before

    together(2, run)


# Processes

GPU = (
    START
    + "import cupy as xp\nimport cuda_on_cpu\nfrom xlstm.arrays.cuda.cuda_graph import Recorder\n"
)
CAPTURED = """
assert xlstm.backend("cupy").device.id == group.rank  # the GPU of a rank is that of its number
recorder, x, (y, z), part = Recorder(), xp.ones(10), xp.zeros((2, 10)), xp.zeros(5)
def step():
    xp.multiply(x, 2, out=y)
    group.sum_part(y, part)
    group.gather_parts(part, y)
    wait = group.later(group.sum, xp.multiply(x, 3, out=z))
    xp.add(y, 1, out=y)
    wait()
    xp.add(y, z, out=y)
with recorder.rehearsal():
    step()
graph = recorder.capture(step)
for k in range(5):
    x[...] = k + group.rank
    graph.launch()
    assert (y == 5 * (2 * k + 1) + 1).all()
if group.rank == 1:
    now("fails")
    {fails}
graph.launch()
xp.asnumpy(y)
now("end")
"""
TRAIN = """
import itertools
from xlstm import optim, training
from xlstm.training import parallel
parallel.BUCKET = 500
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
    step, losses = training.TrainStep(lstm, optim.adam(1e-3), **options), []
    state = step.init(lstm.init(seed=1, backend=xlstm.backend(backend, dtype="float64")), seed=3)
    for _ in range(4):
        for batch in data.batches():
            state, taken = step(state, batch)
            losses.append(float(taken.loss))
    return state, losses
for whole, options, graphs in cases:
    alone, losses = trained("numpy", whole, **options)
    for graph, several in itertools.product((False, True), (1, 2)):
        # Ranks on several machines overlap sums with the backward pass; here they share the optimiser, too.
        group.machines, parallel.LEAST = several, 1 if several > 1 else 1 << 20
        state, found = trained("cupy", distributed.Shard(whole, group), graph=graph, group=group, **options)
        assert np.allclose(found, losses, rtol=1e-10, atol=0)
        for name, p in alone.params.items():
            assert np.allclose(xp.asnumpy(state.params[name]), p, rtol=0, atol=1e-10)
        assert state.masks.bit_generator.state == alone.masks.bit_generator.state
        told = group.tell([xp.asnumpy(p).tobytes() for p in state.params.values()])
        assert told[0] == told[1]
    assert len(state.runtime.graphs.captured) == graphs
    bits = []
    for graph in (False, True):
        options |= {"graph": graph, "group": group, "gradients": "bfloat16"}
        state, found = trained("cupy", distributed.Shard(whole, group), **options)
        assert np.allclose(found, losses, rtol=0.01, atol=0)
        bits.append(xp.asnumpy(state.params["1.Wh"]).tobytes())
    assert bits[0] == bits[1]
now("end")
"""


def job_of(code, ranks=2, **environment):
    return Job(ranks, code, start=GPU, **{"CUDA_ON_CPU_DEVICES": "2", **environment}).end()


@needed
@on_cpu
@pytest.mark.parametrize(
    "code", [WHOLE + CAPTURED.format(fails="pass"), TRAIN], ids=["sums", "steps"]
)
def test_two_gpus_also_within_a_graph(code):
    job = job_of(code)
    assert (job.status, job.err, len(job.numbers("end"))) == (0, "", 2)


@needed
@on_cpu
def test_three_gpus():
    job = job_of(WHOLE, 3, CUDA_ON_CPU_DEVICES="3", CUDA_ON_CPU_LAZY="1")
    assert (job.status, job.err) == (0, "")


@needed
@on_cpu
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("sys.exit()", "left before sum on the GPU 13"),
        (
            "cuda_on_cpu.library().cuda_on_cpu_set(b'nccl_error', 3); time.sleep(60)",
            "NCCL_ERROR_INTERNAL_ERROR",
        ),
        ("time.sleep(60)", "did not come to sum on the GPU 13 within 1 s (XLSTM_GROUP_TIMEOUT)"),
    ],
    ids=["leaves", "error of NCCL", "sleeps"],
)
def test_a_rank_whose_gpu_does_not_come_ends_the_job(fails, message):
    job = job_of(
        CAPTURED.format(fails=fails), XLSTM_GROUP_TIMEOUT="1" if "TIMEOUT" in message else ""
    )
    assert job.status in ABORTED
    assert job.seconds("fails") < SOON
    assert "xlstm: rank 1 of 2" in job.err
    assert f" failed, the job ends: {message}" in job.err


@needed
@on_cpu
def test_two_ranks_on_one_gpu_are_refused():
    job = job_of("group.sum(xp.ones(3))", ranks=3)
    assert "BackendError: group: ranks [0, 2] have the same GPU (0000:00:00.0 on host " in job.err
    assert (job.status in ABORTED, job.err.count("Traceback")) == (True, 1)
