"""Training on several ranks, threads of one process here, ends with the weights of one process."""

import contextlib
import signal
import threading

import numpy as np
import pytest

from tests.ranks import together
from xlstm import LSTM, Linear, optim, training, xLSTMStack
from xlstm.arrays.groups import OtherRankError
from xlstm.data import Prefetch, Sequences, Shard, Streams, Windows
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.models import TiRex2, xLSTMLanguageModel
from xlstm.models.tirex import PatchWindows
from xlstm.training import loop, parallel
from xlstm.training.folder import read, read_history

RNG = np.random.default_rng(0)
TEXT = RNG.integers(0, 11, 401)
MODEL = LSTM(2, 5, num_layers=2, dropout=0.3, recurrent_dropout=0.2, zoneout=(0.1, 0.1), bidirectional=True)
LENGTHS = RNG.integers(1, 8, 30)
ROWS = [RNG.normal(size=(n, 2)) for n in LENGTHS]


def windows(count, size, outputs=10):
    mask = RNG.random((count, 6)) < 0.7
    mask[:5] = False  # so that all targets of a rank may be masked
    x, target = RNG.normal(size=(count, 6, 2)), RNG.normal(size=(count, 6, outputs))
    return Windows(x, target, mask, batch_size=size, every_step=True)


def cases():
    yield "masks and a batch of 13", MODEL, windows(30, 13), {}
    sequences = Sequences(ROWS, [RNG.normal(size=(n, 10)) for n in LENGTHS], batch_size=7, every_step=True)
    yield "lengths", MODEL, sequences, {}
    yield "fewer sequences than ranks", MODEL, Prefetch(windows(7, 2)), {"callbacks": [training.Clip(0.5)]}
    language = xLSTMLanguageModel(xLSTMStack(8, 2, [1], 2, dropout=0.2), 11, embedding_dropout=0.1)
    yield "carried states", language, Streams.of_tokens(TEXT, 5, 16), {}
    large = xLSTMLarge(8, 2, num_heads=2)
    sizes = {"patch_size": 2, "quantiles": (0.1, 0.5, 0.9), "input_ff_size": 8, "output_ff_size": 8, "context": 16}
    tirex = TiRex2(8, [("mlstm", 2, 2), ("slstm", 2, 2)], horizon=4, **sizes)
    yield "groups", tirex, PatchWindows(tirex, RNG.normal(size=(2, 40)).cumsum(axis=1), batch_size=4), {"steps": 8}
    x = RNG.normal(size=(13, 6, 8))
    yield "accumulate", large, Windows(x, x, batch_size=3, every_step=True), {"accumulate": 3}


DATA, SMALL = windows(30, 13), windows(30, 6)
CASES = {name: rest for name, *rest in cases()}


def start(model, group=None):
    """Return first weights, other ones on each rank: those of rank 0 are to be taken."""
    return model.init(seed=0 if group is None else group.rank, backend="numpy", dtype="float64")


def trained(group, model, data, **options):
    defaults = {"steps": 20, "seed": 1, "group": group}
    return training.train(model, start(model, group), data, optim.adam(1e-3), **defaults | options)


def same(found, expected):
    for one in found:
        np.testing.assert_allclose(one.losses, expected.losses, rtol=1e-10)
        np.testing.assert_allclose(one.validations, expected.validations, rtol=1e-10)
        assert one.best_epoch == expected.best_epoch
        for name, p in expected.params.items():
            np.testing.assert_allclose(one.params[name], p, rtol=0, atol=1e-10)
            assert one.params[name].tobytes() == found[0].params[name].tobytes()


@pytest.fixture
def shared(request, monkeypatch):
    """Whether ranks share the optimiser, which they do for many parameters."""
    if request.param:
        monkeypatch.setattr(parallel, "LEAST", 1)


SHARED = {"indirect": ["shared"], "ids": lambda value: "shared" if value is True else "" if value is False else None}


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(("size", "shared"), [(1, False), (2, False), (3, False), (2, True), (3, True)], **SHARED)
@pytest.mark.parametrize("case", CASES)
def test_weights_and_losses_are_those_of_one_process(case, size):
    model, data, options = CASES[case]
    same(together(size, lambda group: trained(group, model, data, **options)), trained(None, model, data, **options))


class Sees(training.Callback):
    """Remembers where it was called."""

    everywhere = False

    def __init__(self):
        self.seen = []

    def step(self, now):
        self.seen.append(now.total)

    def epoch(self, now):
        self.seen.append(now.validation)


@pytest.mark.parametrize("size", [2, 3])
def test_validation_callbacks_and_files(size, tmp_path):
    """The rate shrinks and the average is judged as in one process; rank 0 alone writes, and calls functions."""
    fitted, held, calls = windows(30, 13), windows(7, 3), []

    def run(group, name):
        plateau, seen = training.ReduceOnPlateau(1e-2, factor=0.5, patience=1), Sees()
        callbacks = [training.MovingAverage(0.9), plateau, training.EarlyStopping(3), seen]
        options = {"validation": held, "epochs": 12, "callbacks": callbacks, "checkpoints": tmp_path / name}
        options["metrics"] = {"error": lambda y, target: abs(y - target)}

        def progress(now):
            if name != "one":
                calls.append(now.total)

        rate = optim.adam(plateau)
        result = training.train(MODEL, start(MODEL, group), fitted, rate, group=group, progress=progress, **options)
        return result, plateau.scale, seen.seen

    expected, scale, seen = run(None, "one")
    found = together(size, run, "several")
    same([one for one, *_ in found], expected)
    assert [one for _, one, _ in found] == [scale] * size
    for one, *_ in found:
        np.testing.assert_allclose(one.metrics["error"], expected.metrics["error"], rtol=1e-9)
    assert len(found[0][2]) == len(seen)
    assert not any(one for *_, one in found[1:])
    assert calls == list(range(1, len(expected.losses) + 1))
    histories = [read_history(tmp_path / name / "history.jsonl") for name in ("one", "several")]
    assert len(histories[0]) == len(histories[1])
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "several")]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith(".safetensors"):
            alike(read(tmp_path / "one" / name), read(tmp_path / "several" / name))


def alike(one, other):
    """Check that two checkpoints have the same description, but for times, and the same arrays up to rounding."""
    assert one.about | {"seconds": 0.0} == other.about | {"seconds": 0.0}
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        found = other.arrays[name]
        if name.startswith("sums."):  # each rank has its own
            found = found.sum(axis=0)
        assert array.dtype == found.dtype
        np.testing.assert_allclose(found, array, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(("first", "then", "shared"), [(2, 1, False), (1, 3, True), (3, 2, True)], **SHARED)
@pytest.mark.parametrize("case", ["carried states", "accumulate", "lengths"])
def test_resume_on_other_numbers_of_ranks(case, first, then, tmp_path):
    """The run is cut within an epoch and within an update; the files are those of one process."""
    model, data, options = CASES[case]

    def run(group, name, last=17, resume=False):
        """Train; the others of a group stop a step later than rank 0 says."""

        def stop(now):
            return last < 17 and now.total == last - (group is not None)

        files = {"checkpoints": tmp_path / name, "resume": resume}
        return trained(group, model, data, steps=17, progress=stop, **files, **options)

    expected = run(None, "whole")
    run(None, "one", 8)
    together(first, run, "several", 8)
    name = "step-000000008.safetensors"
    alike(read(tmp_path / "one" / name), read(tmp_path / "several" / name))
    one = [run(None, "several", 17, True)] if then == 1 else together(then, run, "several", 17, True)
    same(one, expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_resume_within_an_update_gives_the_same_bits(size, tmp_path):
    model, data, options = CASES["accumulate"]

    def run(group, **more):
        return trained(group, model, data, **options | more)

    whole = together(size, run)
    together(size, lambda group: run(group, checkpoints=tmp_path, steps=10))  # two epochs
    cut = together(size, lambda group: run(group, checkpoints=tmp_path, resume=True))
    for one, other in zip(whole, cut, strict=True):
        assert one.losses == other.losses
        for name, p in one.params.items():
            assert p.tobytes() == other.params[name].tobytes()


def idle(number):
    pass


class Watched:
    """Data that call a function with the number of each batch."""

    def __init__(self, data, function=idle):
        self.data, self.function = data, function

    def __len__(self):
        return len(self.data)

    def batches(self, rng=None):
        for k, batch in enumerate(self.data.batches(rng)):
            self.function(k)
            yield batch


class Model(LSTM):
    """A model that calls a function with the number of each pass backward."""

    function, count = staticmethod(idle), 0

    def backward(self, *args, **options):
        object.__setattr__(self, "count", self.count + 1)
        self.function(self.count)
        return super().backward(*args, **options)


def failing(name, mine):
    """Return a model, data and options, of which the named one fails at the third step where it is `mine`."""

    def fails(number, at):
        if mine and number == at:
            raise ERRORS[name][1](ERRORS[name][2])

    model, data, options = Model(2, 10), Watched(SMALL), {}
    if name == "data":
        data.function = lambda k: fails(k, 2)
    elif name == "model":
        object.__setattr__(model, "function", lambda k: fails(k, 3))
    else:
        options["progress"] = lambda now: fails(now.total, 2)
    return model, data, options


ERRORS = {
    "data": (1, OSError, "the disk is gone"),
    "model": (1, MemoryError, "no room"),
    "function": (0, KeyError, "of the user"),
}


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize(("accumulate", "shared"), [(1, False), (2, False), (1, True)], **SHARED)
def test_an_error_of_one_rank_is_raised_on_all_before_the_same_step(case, accumulate, tmp_path):
    """The state of the second step is saved."""
    rank, kind, text = ERRORS[case]

    def run(group):
        model, data, options = failing(case, group.rank == rank)
        options |= {"checkpoints": tmp_path, "accumulate": accumulate}
        try:
            trained(group, model, data, **options)
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    errors = together(3, run)
    for k, error in enumerate(errors):
        assert isinstance(error, kind if k == rank else OtherRankError)
        assert text in str(error)
        assert k == rank or str(error).startswith(f"rank {rank} of 3 cannot go on: {kind.__name__}: ")
    (path,) = tmp_path.glob("step-*")
    assert read(path).about["total"] == 2


def test_errors_in_validation_and_where_nothing_counts():
    data = DATA

    def run(group):
        held = failing("data", group.rank == 1)[1]
        with pytest.raises(OSError if group.rank == 1 else OtherRankError, match="the disk is gone"):
            training.evaluate(MODEL, start(MODEL), held, group=group)
        masked = Windows(data.x, data.target, np.zeros_like(data.mask), every_step=True)
        with pytest.raises(ValueError, match="no target that counts"):
            trained(group, MODEL, masked)
        diverges = Linear(2, 10)
        with pytest.raises(FloatingPointError, match="loss is inf"):
            training.train(diverges, start(diverges), data, optim.sgd(1e30), steps=9, group=group)

    together(2, run)


def test_a_rank_whose_weights_differ_ends_the_run_by_name(tmp_path):
    class Flips(training.Callback):
        def __init__(self, rank):
            self.rank = rank

        def step(self, now):
            if self.rank == 1 and now.total == 3:
                next(iter(now.params.values()))[0] += 1e-15

    def run(group):
        with pytest.raises(RuntimeError, match="after step 6 the weights of rank 1 differ from those of the other"):
            trained(group, MODEL, DATA, checkpoints=tmp_path, every=6, callbacks=[Flips(group.rank)])

    together(3, run)
    assert not list(tmp_path.glob("step-*"))


def test_arguments_that_differ_are_named():
    def run(group, **options):
        return trained(group, MODEL, DATA, **options)

    for name, options in {
        "seed": lambda rank: {"seed": rank},
        "every": lambda rank: {"every": 1 + rank},
        "accumulate": lambda rank: {"accumulate": 1 + rank},
    }.items():
        with pytest.raises(ValueError, match=f"train: {name} of rank 1 is .*, expected that of rank 0, "):
            together(2, lambda group, options=options: run(group, **options(group.rank)))
    with pytest.raises(ValueError, match="first batch of rank 1"):
        together(2, lambda group: trained(group, MODEL, Windows(np.zeros((9, 6, 2)) + group.rank, np.ones((9, 10)))))


def test_steps_take_parts_of_their_group_alone():
    (batch, *_), params = DATA.batches(), start(MODEL)

    def run(group):
        step = training.Step(MODEL, optim.adam(1e-3), group=group)
        alone, part = training.Step(MODEL, optim.adam(1e-3)), next(Shard(DATA, group).batches())
        with pytest.raises(ValueError, match="expected batches of distributed"):
            step(step.init(params), batch)
        with pytest.raises(ValueError, match="expected batches of distributed"):
            alone(alone.init(params), part)

    together(2, run)


@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(where, monkeypatch, tmp_path):
    """It comes to the last rank, in the second step or in the first validation."""
    here = threading.local()
    monkeypatch.setattr(loop, "deferred", lambda: contextlib.nullcontext(here.received))

    def run(group):
        here.received = []

        def arrives(number):
            if group.rank == 2 and number == 1:
                here.received.append(signal.SIGTERM)

        fitted, held = Watched(DATA), Watched(DATA)
        (fitted if where == "step" else held).function = arrives
        with pytest.raises(training.Terminated, match="by signal 15") as caught:
            trained(group, MODEL, fitted, validation=held, checkpoints=tmp_path)
        here.received, held.function, fitted.function = [], idle, idle
        return caught.value, trained(group, MODEL, fitted, validation=held, checkpoints=tmp_path, resume=True)

    here.received = []
    found = together(3, run)
    assert {(error.signal, len(error.trained.losses)) for error, _ in found} == {(signal.SIGTERM, 3)}
    assert not any(error.trained.validations for error, _ in found)
    same([result for _, result in found], trained(None, MODEL, DATA, validation=DATA))


def estimators():
    options = {"dtype": "float64", "backend": "numpy", "learning_rate": 1e-3}
    labels = np.arange(30) % 3
    classifier = SequenceClassifier(hidden_size=6, num_layers=2, epochs=4, batch_size=7, dropout=0.2, **options)
    yield classifier, (ROWS, labels), lambda fitted: fitted.predict_proba(ROWS)
    steps = SequenceClassifier(hidden_size=6, epochs=4, batch_size=7, class_weight="balanced", **options)
    each = [np.cumsum(row[:, 0]) > 0 for row in ROWS]
    yield steps, (ROWS, each), lambda fitted: np.concatenate(fitted.predict_proba(ROWS))
    text = "to be or not to be, that is the question: " * 8
    model = TextModel(hidden_size=8, embedding_size=4, steps=12, batch_size=5, length=8, **options)
    yield model, (text,), lambda fitted: fitted.nats(text)
    series = np.cumsum(np.random.default_rng(1).normal(size=120))
    forecaster = Forecaster(window=6, horizon=2, hidden_size=6, epochs=3, batch_size=11, refit=True, **options)
    yield forecaster, (series,), lambda fitted: fitted.predict_quantiles(series)


@pytest.mark.parametrize("which", range(4))
def test_estimators(which):
    def run(group):
        estimator, data, result = list(estimators())[which]
        return result(estimator.fit(*data, group=group))

    for found in together(2, run):
        np.testing.assert_allclose(found, run(None), rtol=1e-9, atol=1e-10)
