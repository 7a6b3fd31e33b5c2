"""Steps of training whose decisions a GPU makes, on the stand-in for CuPy: with and without a wait, the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import xlstm
from tests import standin
from xlstm.arrays.convert import to_numpy
from xlstm.data import Streams, Windows
from xlstm.models.sequence import SequenceModel
from xlstm.training import Clip, Step, optimizers, step
from xlstm.training.precision import Mixed

if not standin.asked_for():
    pytest.skip(f"the stand-in for CuPy is not in place ({standin.VARIABLE}=1 puts it there)", allow_module_level=True)


def windows(count=12, T=5, wrong=None):
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((count, T, 2)), rng.standard_normal((count, T, 3))
    if wrong is not None:
        target[wrong] = 3e38  # its square is not finite in float32
    return Windows(x, target, every_step=True, batch_size=2)


def tokens():
    given = np.arange(121) % 7
    return Streams(given[:-1], given[1:], 2, 10)


LSTM = SequenceModel(xlstm.LSTM(2, 4, 2, dropout=0.25), 3)
LANGUAGE = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 2, [1], 2), 7)
ADAM = optimizers.by_name({"head.b": optimizers.sgd(lambda step: 0.1 / (1 + step), 0.9)}, optimizers.adam(1e-2))
CASES = {
    "Adam, dropout": (LSTM, windows(), ADAM, {}),
    "clipping": (LSTM, windows(), ADAM, {"callbacks": [Clip(norm=0.1, value=0.05)]}),
    "accumulated": (LSTM, windows(), ADAM, {"accumulate": 2}),
    "float16": (LSTM, windows(), ADAM, {"precision": Mixed("float16", 2.0**24, every=2), "callbacks": [Clip(1.0)]}),
    "float16, accumulated": (LSTM, windows(), ADAM, {"precision": Mixed("float16", 2.0**24, 1.5), "accumulate": 2}),
    "bfloat16": (LSTM, windows(), optimizers.rmsprop(1e-3, momentum=0.5), {"precision": Mixed("bfloat16")}),
    "language model": (LANGUAGE, tokens(), optimizers.adamw(1e-2), {"callbacks": [Clip(1.0)]}),
}


@pytest.fixture
def backend():
    return xlstm.backend("cupy")


def arrays(state):
    """All arrays of a state on the host, and its numbers."""
    slots = {f"{slot} {name}": a for slot, moments in state.moments.slots.items() for name, a in moments.items()}
    sums = {f"sum of {name}": a for name, a in (state.sums or {}).items()}
    found = {name: to_numpy(a) for name, a in (state.params | slots | sums).items()}
    return found, (state.moments.step, state.scaling, state.weight, state.batches, state.updates)


def taken(made, data, params, epochs=2):
    """The state after all batches, and the losses, norms and updates."""
    state, found = made.init(params, seed=1), []
    for _ in range(epochs):
        for k, batch in enumerate(data.batches()):
            state, how = made(state._replace(carried=None) if k == 0 else state, batch)
            found.append(how)
    return made.settle(state), [[float(a) for a in how] for how in found]


def all_steps(made, params, data, seen=lambda k: None):
    """Take a step with each batch."""
    state = made.init(params)
    for k, batch in enumerate(data.batches(), 1):
        state, _ = made(state, batch, f"step {k}")
        seen(k)


def same(found, expected):
    (state, steps), (other, others) = found, expected
    np.testing.assert_array_equal(steps, others)
    (one, numbers), (two, expected_numbers) = arrays(state), arrays(other)
    assert numbers == expected_numbers
    assert one.keys() == two.keys()
    for name, a in one.items():
        np.testing.assert_array_equal(a, two[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_device_decides_as_the_host_does(backend, case):
    """Decisions of the host, those of the device with a wait for each step, and without one."""
    model, data, optimizer, options = CASES[case]
    params = model.init(0, backend)
    host = taken(Step(model, optimizer._replace(parts=None), **options), data, params)
    same(taken(Step(model, optimizer, **options), data, params), host)
    same(taken(Step(model, optimizer, wait=False, **options), data, params), host)
    if "float16" in case and "b" not in case:
        assert any(not updated for *_, updated in host[1])  # some steps were left out


def test_a_step_without_a_wait_does_not_wait(backend):
    made = Step(LSTM, ADAM, wait=False, callbacks=[Clip(1.0)])
    state, batch = made.init(LSTM.init(0, backend)), next(iter(windows().batches()))
    state, _ = made(state, batch)
    with standin.counted() as found:
        for _ in range(3):
            state, how = made(state, batch)
    assert (found.waits, found.to_host) == (0, 0)
    with standin.counted() as found:
        assert float(how.loss) > 0
    assert (found.waits, found.to_host) == (1, 1)


@pytest.mark.parametrize("options", [{}, {"precision": Mixed("float16")}, {"accumulate": 3}], ids=str)
def test_a_loss_that_is_not_finite_stops_training_later(backend, options):
    """Nothing changes after it, and the error is that of a step that waits."""
    data, params = windows(wrong=6), LSTM.init(0, backend)
    made = Step(LSTM, ADAM, wait=False, **options)
    state = made.init(params)
    for k, batch in enumerate(data.batches(), 1):
        before = state
        state, _ = made(state, batch, f"step {k}")
        if k == 4:
            last = before
    there = arrays(state)[0]
    for name, a in arrays(last._replace(sums=None))[0].items():
        np.testing.assert_array_equal(there[name], a, err_msg=name)
    with pytest.raises(FloatingPointError, match=r"^step 4: loss is inf, .*(not finite|overflows)") as later:
        made.settle(state)
    waiting = Step(LSTM, ADAM, **options)
    with pytest.raises(FloatingPointError) as at_once:
        all_steps(waiting, params, data)
    assert str(later.value) == str(at_once.value)


def test_it_stops_by_itself_before_long(backend, monkeypatch):
    monkeypatch.setattr(step, "AHEAD", 3)
    made = Step(LSTM, ADAM, wait=False)
    asked = []
    with pytest.raises(FloatingPointError, match=r"^step 2: "):
        all_steps(made, LSTM.init(0, backend), windows(wrong=2), asked.append)
    assert asked == [1, 2, 3]


def test_other_libraries_wait():
    made, params = Step(LSTM, ADAM, wait=False), LSTM.init(0, "numpy")
    _, how = made(made.init(params), next(iter(windows().batches())))
    assert isinstance(how.loss, float)
    assert how.updated is True
