"""Steps on several ranks whose arrays lie on a GPU: threads of one process here, which share it."""

import numpy as np
import pytest

import xlstm
from tests import gpu
from tests.ranks import together
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import OtherRankError
from xlstm.data import Shard, Windows
from xlstm.precision import Mixed
from xlstm.training import Clip, Step, optimizers
from xlstm.training.steps import AHEAD

cupy = gpu.needed()
RNG = np.random.default_rng(0)
MODEL = xlstm.LSTM(2, 4, 2, dropout=0.25, zoneout=(0.1, 0.2))
LENGTHS = RNG.integers(1, 6, 26)
DATA = Windows(RNG.normal(size=(26, 5, 2)), RNG.normal(size=(26, 5, 4)), batch_size=7, every_step=True, lengths=LENGTHS)
CASES = {
    "clipping": {"callbacks": [Clip(norm=0.1, value=0.05)]},
    "accumulated": {"accumulate": 3},
    "without a wait": {"wait": False},
    "float16": {"precision": Mixed("float16", 2.0**10, every=2)},
    "float16, accumulated": {"precision": Mixed("float16", 2.0**10), "accumulate": 2},
    "bfloat16": {"precision": Mixed("bfloat16")},
}


def taken(group, data=DATA, **options):
    """The state after three epochs, and the losses and whether each step counted."""
    step, found = Step(MODEL, optimizers.adam(1e-3), group=group, **options), []
    dtype = "float32" if "precision" in options else "float64"
    state, rng = step.init(MODEL.init(0, xlstm.backend("cupy", dtype=dtype)), seed=1), np.random.default_rng(2)
    for _ in range(3):
        for batch in (data if group is None else Shard(data, group)).batches(rng):
            state, how = step(state, batch)
            found.append((float(how.loss), bool(how.updated)))
    return step.settle(state), np.array(found)


@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_one_process(case):
    expected, losses = taken(None, **CASES[case])
    low = CASES[case].get("precision")
    tolerance = 1e-10 if low is None else 2e-3
    several = [one for size in (1, 3) for one in together(size, lambda group: taken(group, **CASES[case]))]
    for state, found in several:
        np.testing.assert_array_equal(found[:, 1], losses[:, 1])
        np.testing.assert_allclose(found[:, 0], losses[:, 0], rtol=tolerance)
        assert state.scaling == expected.scaling
        for name, p in expected.params.items():
            np.testing.assert_allclose(to_numpy(state.params[name]), to_numpy(p), rtol=0, atol=tolerance)


def test_a_step_that_overflows_on_one_rank_is_left_out_on_all():
    """A gradient that overflows within a part may do so at a larger scale than in the whole batch."""

    def run(group):
        state, found = taken(group, precision=Mixed("float16", 2.0**24))
        return state.scaling, found[:, 1].tolist(), [to_numpy(p).tobytes() for p in state.params.values()]

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
        step = Step(MODEL, optimizers.adam(1e-3), group=group, wait=wait, accumulate=accumulate)
        if accumulate > 1:  # the next batch ends an update
            state = step.settle(step(state, batch)[0])
        if group.rank == 1:
            batch = batch._replace(x=batch.x[..., :1] if where == "the model" else np.full_like(batch.x, np.nan))
        before = [to_numpy(p).tobytes() for p in state.params.values()]
        error = ValueError if group.rank == 1 else OtherRankError
        for _ in range(0 if wait else AHEAD):
            state, _ = step(state, batch)
        with pytest.raises(error, match="x has shape" if where == "the model" else r"x\[0, 0, 0\] is nan"):
            step(state, batch)
        assert [to_numpy(p).tobytes() for p in state.params.values()] == before

    together(2, run)
