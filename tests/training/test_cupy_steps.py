"""Steps of training whose decisions a GPU makes: with and without a wait, captured or not, the same
bits.
"""

from __future__ import annotations

import copy
import functools
import gc
import itertools

import numpy as np
import pytest

import xlstm
from tests import gpu
from tests.registry import agree
from xlstm import losses
from xlstm.arrays import capture, constants
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.data import Streams, Windows
from xlstm.models.sequence import SequenceModel
from xlstm.precision import Mixed
from xlstm.recurrence import packing
from xlstm.training import (
    Callback,
    Clip,
    LowRank,
    ReduceOnPlateau,
    TrainStep,
    graphs,
    optimizers,
    steps,
    train,
)

cupy = gpu.needed()


def windows(count=8, T=3, wrong=None, lengths=None):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, T, 2))
    target = rng.standard_normal((count, T, 3))
    if wrong is not None:
        target[wrong] = 3e38  # its square is not finite in float32
    return Windows(x, target, every_step=True, batch_size=2, lengths=lengths)


def lengths(count):
    """Batches of two sequences, some of which have lengths that come again."""
    given = [[4, 3], [4, 4], [3, 2], [4, 3], [4, 4], [4, 3], [1, 4], [4, 3], [4, 4]]
    return windows(2 * count, 4, lengths=np.concatenate(given[:count]))


def wave():
    return Streams(np.sin(np.arange(64))[:, None], np.zeros((64, 3)), 2, 4)


def cut():
    """A batch of another shape within a stream."""
    batches = list(wave().batches())
    return [
        *batches[:5],
        batches[5]._replace(x=batches[5].x[:2], target=batches[5].target[:2]),
        *batches[6:],
    ]


LSTM = SequenceModel(xlstm.LSTM(2, 4, 2, dropout=0.25), 3)
PLAIN = SequenceModel(xlstm.LSTM(2, 4), 3)
RESETS = [
    batch._replace(options={"resets": np.eye(3, 2, k % 3) > 0})
    for k, batch in enumerate(windows(18).batches())
]
MEMORY = SequenceModel(xlstm.mLSTM(2, 4), 3)
WAVE = SequenceModel(xlstm.LSTM(1, 4), 3)
ADAM = optimizers.by_name(
    {"head.b": optimizers.sgd(lambda step: 0.1 / (1 + step), 0.9)}, optimizers.adam(1e-2)
)
# A model, its batches, an optimizer, options of a step, and graphs: of each shape and place among
# those of an update, but for those that do not come again.
CASES = {
    "clipping": (LSTM, windows(), ADAM, {"callbacks": [Clip(norm=0.1, value=0.05)]}, 1),
    "accumulated": (LSTM, windows(24), ADAM, {"accumulate": 6}, 3),
    "float16": (
        LSTM,
        windows(),
        ADAM,
        {"precision": Mixed("float16", 2.0**24, every=2), "callbacks": [Clip(1.0)]},
        1,
    ),
    "float16, accumulated": (
        LSTM,
        windows(),
        ADAM,
        {"precision": Mixed("float16", 2.0**20, 1.5), "accumulate": 2},
        2,
    ),
    "lengths": (LSTM, lengths(9), ADAM, {}, 4),
    "resets": (LSTM, RESETS, ADAM, {"precision": Mixed("float16")}, 3),
    "a small batch in the middle": (WAVE, cut(), ADAM, {}, 3),
}


@pytest.fixture
def backend():
    return xlstm.backend("cupy")


@pytest.fixture
def captures(monkeypatch):
    """A list that grows with each capture that is begun."""
    begun = []
    capture = graphs.Recorder.capture
    monkeypatch.setattr(
        graphs.Recorder, "capture", lambda *given: begun.append(given) or capture(*given)
    )
    return begun


def arrays(state):
    """All arrays of a state."""
    slots = {
        f"{slot} {name}": a
        for slot, moments in state.moments.slots.items()
        for name, a in moments.items()
    }
    return state.params | slots | {f"sum of {name}": a for name, a in (state.sums or {}).items()}


def taken(made, data, params, epochs=2):
    """The state after all batches, and the losses, norms and updates."""
    state = made.init(params, seed=1)
    found = []
    for _ in range(epochs):
        for k, batch in enumerate(data if isinstance(data, list) else data.batches()):
            state, how = made(state._replace(carried=None) if k == 0 else state, batch)
            found.append(how)
    return made.settle(state), [[float(a) for a in how] for how in found]


def all_steps(made, params, data, seen=lambda k, state: None, seed=0):
    """Take a step with each batch, of which `seen` is told before."""
    state = made.init(params, seed)
    for k, batch in enumerate(data.batches(), 1):
        seen(k, state)
        state, _ = made(state, batch, f"step {k}")
    return state


def same(found, expected):
    state, steps = found
    other, others = expected
    np.testing.assert_array_equal(steps, others)
    for name in ("scaling", "weight", "batches", "updates"):
        assert getattr(state, name) == getattr(other, name)
    assert state.moments.step == other.moments.step
    agree(arrays(state), arrays(other))


class Waits(optimizers.Optimizer):
    """An optimiser of one's own, which steps wait for."""

    def __init__(self, optimizer):
        self.init = optimizer.init
        self.update = optimizer.update
        self.frozen = optimizer.frozen


@pytest.mark.parametrize("case", CASES)
def test_the_device_decides_as_the_host_does(backend, case):
    """Decisions of the host, and those of the device with a wait for each step and without,
    captured or not.
    """
    model, data, optimizer, options, captured = CASES[case]
    params = model.init(0, backend)
    host = taken(TrainStep(model, Waits(optimizer), **options), data, params)
    if case.startswith("float16"):
        assert any(not updated for *_, updated in host[1])  # some steps were left out
    for wait, graph in itertools.product((True, False), repeat=2):
        found = taken(TrainStep(model, optimizer, wait=wait, graph=graph, **options), data, params)
        same(found, host)
        assert len(found[0].runtime.graphs.captured if graph else ()) == captured * graph
    agree(params, model.init(0, backend))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_steps_on_two_devices_in_turn(dtype):
    """Handles, constants and graphs are those of the device that is current."""
    made = TrainStep(LSTM, ADAM, graph="auto")
    devices = [cupy.cuda.Device(k) for k in (0, 1)]
    states = {}
    for device in devices:
        with device:
            states[device.id] = made.init(LSTM.init(0, xlstm.backend("cupy", dtype=dtype)), 1)
    for batch in lengths(9).batches():
        for device in devices:
            with device:
                states[device.id] = made(states[device.id], batch)[0]
    with devices[1]:
        params = {name: to_numpy(p) for name, p in states[1].params.items()}
    agree(states[0].params, params)
    assert {p.device.id for p in states[1].params.values()} == {1}
    assert all(state.runtime.graphs.captured for state in states.values())
    with pytest.raises(ValueError, match="device 1, which is not the current one, 0"):
        made(states[1], batch)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}], ids=str)
def test_a_loss_that_is_not_finite_stops_training_later(backend, options, graph):
    """Nothing changes after it, though the host counts on."""
    data = windows(12, wrong=6)
    params = LSTM.init(0, backend)
    before = {}

    def seen(k, state):
        if k == 4:
            before.update(
                {name: to_numpy(a) for name, a in arrays(state._replace(sums=None)).items()}
            )

    made = TrainStep(LSTM, ADAM, wait=False, graph=graph, **options)
    state = all_steps(made, params, data, seen)
    agree(arrays(state._replace(sums=None)), before)
    with pytest.raises(
        FloatingPointError, match=r"^step 4: the loss or the norm of the gradient is not finite"
    ):
        made.settle(state)


@pytest.mark.parametrize(
    "options", [{}, {"precision": Mixed("float16")}, {"accumulate": 2}], ids=str
)
@pytest.mark.parametrize("fresh", [True, False])
def test_training_goes_on_after_a_batch_that_is_left_out(backend, options, fresh):
    """The state before a step that could not be taken is good for the next one, also where graphs
    change its arrays.
    """
    batches = [
        batch._replace(fresh=fresh) for batch in windows(24, wrong=[0, 5, 12, 13, 20]).batches()
    ]
    found = []
    for graph in (False, True):
        made = TrainStep(PLAIN, ADAM, graph=graph, **options)
        how = []
        errors = []
        state = made.init(made.model.init(0, backend))
        for k, batch in enumerate(batches):
            try:
                state, one = made(state, batch, f"step {k}")
                how.append(one)
            except FloatingPointError as error:
                errors.append(str(error))
        found.append((state, how, errors))
    (state, how, errors), (other, others, expected) = found[1], found[0]
    assert errors == expected
    assert [error.split(":")[0] for error in errors] == [f"step {k}" for k in (0, 2, 6, 10)]
    same((state, how), (other, others))
    assert state.runtime.graphs.captured


def test_a_step_that_could_not_be_taken_is_not_forgotten(backend):
    """Without waits the steps after it were not taken either, so that its error comes again."""
    made = TrainStep(LSTM, ADAM, wait=False, graph=True)
    batch = next(iter(windows(wrong=0).batches()))
    state, _ = made(made.init(LSTM.init(0, backend)), batch, "step 1")
    for ask in (
        lambda: made.settle(state),
        lambda: TrainStep(LSTM, ADAM, graph=True)(state, batch, "step 2"),
    ):
        with pytest.raises(FloatingPointError, match=r"^step 1: "):
            ask()


def test_steps_of_another_kind_are_captured_anew(backend):
    """Two objects that share a state: each has its own optimiser and its own graphs."""
    found = []
    batch = next(iter(windows().batches()))
    for graph in (False, True):
        first, second = (
            TrainStep(LSTM, optimizers.adam(rate), graph=graph) for rate in (0.5, 0.01)
        )
        third = TrainStep(LSTM, optimizers.adam(0.02))
        state = first.init(LSTM.init(0, backend))
        for made in (first, first, first, second, second, second, third, second):
            state, _ = made(state, batch)
        found.append(state)
    agree(arrays(found[1]), arrays(found[0]))


def test_the_number_of_graphs_is_bounded(backend, monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 1)
    monkeypatch.setattr(graphs, "SEEN", 2)
    data = lengths(9)
    params = LSTM.init(0, backend)
    found = taken(TrainStep(LSTM, ADAM, graph=True), data, params, 1)
    same(found, taken(TrainStep(LSTM, ADAM), data, params, 1))
    bounded = found[0].runtime.graphs
    assert (len(bounded.captured), len(bounded.seen)) == (1, 2)


@pytest.mark.parametrize(
    ("model", "batch"),
    [(LSTM, next(lengths(1).batches())), (MEMORY, RESETS[0])],
)
def test_memory_that_others_drop_stays(backend, model, batch):
    """Indices of lengths, of resets and constants lie in caches, from which other calls push them
    out.
    """
    params = model.init(0, backend)
    found = []
    recent = packing._recent
    caches = (*vars(recent).values(), constants._made, constants._copied)
    for graph in (True, False):
        made = TrainStep(model, ADAM, graph=graph)
        state = made.init(params)
        for k in range(5):
            if k == 3:
                for cache in caches:
                    cache.cache_clear()
            state, _ = made(state, batch)
        found.append(arrays(state))
    agree(*found)


def test_a_state_of_before_goes_on(backend):
    """A state with arrays of its own is put where graphs read it, its weights, moments and
    counts.
    """
    made = TrainStep(LSTM, ADAM, graph=True)
    params = LSTM.init(0, backend)
    plain = TrainStep(LSTM, ADAM)
    batches = list(windows().batches())
    state = made.init(params)
    other = plain.init(params)
    for batch in batches[:4]:
        state, _ = made(state, batch)
    other, _ = plain(other, batches[0])
    state = other._replace(runtime=state.runtime, masks=copy.deepcopy(other.masks))
    for batch in batches[1:4]:
        state, how = made(state, batch)
        other, expected = plain(other, batch)
        assert how == expected
    agree(arrays(state), arrays(other))


RUNS = {
    "averaged": ({"averaging": 0.9, "clip": 1.0}, windows()),
    "validated": ({"validation": windows(2), "patience": 2}, windows()),
    "plateau": ({"validation": windows(2)}, windows()),
    "accumulated": ({"accumulate": 2, "precision": Mixed("float16", 2.0**24)}, windows()),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_captured_run_is_the_run(backend, tmp_path, captures, case):
    """With its losses, best weights, averages, checkpoints and schedules, also where it goes on
    from a checkpoint.
    """
    options, data = RUNS[case]
    model = SequenceModel(xlstm.LSTM(next(iter(data.batches())).x.shape[-1], 4, 2, dropout=0.25), 3)
    params = model.init(0, backend)
    found = []
    for graph in (False, "auto"):
        plateau = ReduceOnPlateau(0.05, patience=0, threshold=0.5) if case == "plateau" else None
        given = {"callbacks": [plateau]} if plateau else {}
        optimizer = optimizers.adam(plateau or optimizers.cosine(0.05, 20))
        given |= options
        run = functools.partial(
            train, model, params, data, optimizer, checkpoints=tmp_path / str(graph), graph=graph
        )
        run(steps=3, **given)
        found.append(run(epochs=2, resume=True, **given))
    assert captures
    one, other = found
    assert one.losses == other.losses
    assert (one.validations, one.best_epoch, one.skipped) == (
        other.validations,
        other.best_epoch,
        other.skipped,
    )
    agree(one.params, other.params)


def test_weights_that_a_callback_keeps_stay(backend, captures):
    kept = []
    trained = train(LSTM, LSTM.init(0, backend), windows(), ADAM, epochs=2, progress=kept.append)
    assert len(captures) == 1
    values = [to_numpy(now.params["head.W"]) for now in kept]
    assert all(np.any(a != b) for a, b in itertools.pairwise(values))
    np.testing.assert_array_equal(values[-1], to_numpy(trained.params["head.W"]))


class Reads(Callback):
    """A callback that waits for the device."""

    def gradients(self, grads, norm):
        return {} if float(norm) < 0 else grads


class Times(Callback):
    """A callback that multiplies as CuPy does by itself."""

    def gradients(self, grads, norm):
        return {name: g @ (g.T @ g) if g.ndim == 2 else g for name, g in grads.items()}


class Changes(Callback):
    """A callback that gives other gradients than it takes."""

    def __init__(self, change):
        self.change = change

    def gradients(self, grads, norm):
        return self.change(dict(grads))


WRONG = {
    "a dtype": lambda grads: grads | {"head.W": grads["head.W"].astype("float64")},
    "one left out": lambda grads: {name: g for name, g in grads.items() if name != "head.b"},
}


@pytest.mark.parametrize("case", WRONG)
def test_gradients_of_a_callback_that_do_not_fit_are_refused(case):
    """With the error of NumPy."""
    errors = []
    batch = next(iter(windows().batches()))
    ways = [("numpy", {}), ("cupy", {}), ("cupy", {"wait": False}), ("cupy", {"graph": True})]
    for name, options in ways:
        made = TrainStep(LSTM, ADAM, callbacks=[Changes(WRONG[case])], **options)
        state = made.init(LSTM.init(0, name))
        with pytest.raises((TypeError, ValueError), match=r"head\.[Wb]|float64|empty") as found:
            made(state, batch)
        errors.append((type(found.value), str(found.value)))
    assert len(set(errors)) == 1


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("callback", "words"), [(Reads(), "is capturing"), (Times(), "cuBLAS API")]
)
def test_a_step_that_cannot_be_captured_says_so(backend, callback, words):
    """There is one warning, and steps go on without graphs."""
    made, plain = (
        TrainStep(LSTM, ADAM, graph=graph, callbacks=[callback]) for graph in (True, False)
    )
    params = LSTM.init(0, backend)
    with pytest.warns(
        RuntimeWarning, match=f"^TrainStep: graph is True, but a step cannot be captured .*{words}"
    ) as caught:
        found = taken(made, windows(), params)
    assert len(caught) == 1
    assert not cupy.cuda.get_current_stream().is_capturing()
    same(found, taken(plain, windows(), params))


def test_what_cannot_have_graphs_is_refused(backend):
    with pytest.raises(BackendError, match="the backend is numpy"):
        TrainStep(LSTM, ADAM, graph=True).init(LSTM.init(0, "numpy"))
    with pytest.raises(ValueError, match="optimizer"):
        TrainStep(LSTM, Waits(ADAM), graph=True)
    rng = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(ValueError, match="MT19937"):
        all_steps(TrainStep(LSTM, ADAM, graph=True), LSTM.init(0, backend), windows(), seed=rng)


class Own(xlstm.LSTM):
    """A layer that may do another thing in each step."""


def own_loss(y, target, mask):
    return losses.mse(y, target, mask)


# Arguments of `train` that are other than with graphs.
EAGER = {
    "a loss": {"loss": functools.partial(own_loss)},
    "a callback": {"callbacks": [Changes(lambda grads: grads)]},
    "a layer": {"model": SequenceModel(Own(2, 4), 3)},
    "an optimizer": {"optimizer": Waits(ADAM)},
    "a generator": {"seed": np.random.Generator(np.random.MT19937(0))},
    "NumPy": {},
}


@pytest.mark.parametrize("case", EAGER)
def test_by_itself_a_run_is_captured_where_it_can_be(case, captures):
    """Elsewhere it goes on without a word."""
    given = {"model": LSTM, "data": windows(), "optimizer": ADAM, "epochs": 1} | EAGER[case]
    train(params=given["model"].init(0, "numpy" if case == "NumPy" else "cupy"), **given)
    assert not captures


def test_a_layer_of_a_user_is_found_below_adapters(backend):
    layer = Own(2, 4)
    assert not steps.is_ours(LowRank(layer, layer.init(0, backend), 2))


def test_a_capture_for_which_there_is_too_little_memory_gives_back_all_that_it_had(backend):
    """There is one warning, and training goes on without graphs."""
    params = LSTM.init(0, backend)
    pool = cupy.cuda.MemoryPool()
    known = []
    used = []

    def taken(size):
        if capture.capturing():
            known.append(pool.used_bytes())
            if len(known) > 9:
                raise cupy.cuda.memory.OutOfMemoryError(size, 0, 0)
        return pool.malloc(size)

    expected = train(LSTM, params, windows(), ADAM, epochs=2, graph=False)
    with (
        cupy.cuda.using_allocator(taken),
        pytest.warns(RuntimeWarning, match="^TrainStep: graph is auto, but a st") as said,
    ):
        found = train(
            LSTM,
            params,
            windows(),
            ADAM,
            epochs=2,
            progress=lambda now: used.append(pool.used_bytes()),
        )
    assert len(said) == 1
    assert used[-1] < 2**20 < min(known)  # the workspace of cuBLAS is larger
    assert found.losses == expected.losses
    agree(found.params, expected.params)
    del found
    gc.collect()
    assert pool.used_bytes() == 0
