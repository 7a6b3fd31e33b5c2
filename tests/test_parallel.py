"""Training on several ranks, threads of one process here, ends with the weights of one process."""

import numpy as np
import pytest

from tests.ranks import together
from xlstm import LSTM, optim, training, xLSTMStack
from xlstm.data import Prefetch, Sequences, Streams, Windows
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.models import xLSTMLanguageModel
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
    x = RNG.normal(size=(13, 6, 8))
    yield "accumulate", large, Windows(x, x, batch_size=3, every_step=True), {"accumulate": 3}


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


@pytest.mark.parametrize("size", [1, 2, 3])
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
        progress = lambda now: calls.append(now.total) if name != "one" else None  # noqa: E731
        rate = optim.adam(plateau)
        result = training.train(MODEL, start(MODEL, group), fitted, rate, group=group, progress=progress, **options)
        return result, plateau.scale, seen.seen

    expected, scale, seen = run(None, "one")
    found = together(size, run, "several")
    same([one for one, *_ in found], expected)
    assert [one for _, one, _ in found] == [scale] * size
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
        assert array.dtype == other.arrays[name].dtype
        np.testing.assert_allclose(other.arrays[name], array, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("case", ["carried states", "accumulate", "lengths"])
def test_resume_on_other_numbers_of_ranks(case, first, then, tmp_path):
    """The run is cut within an epoch and within an update; the files are those of one process."""
    model, data, options = CASES[case]

    def run(group, name, last=17, resume=False):
        """Train; the others of a group stop a step later than rank 0 says."""
        stop = lambda now: last < 17 and now.total == last - (group is not None)  # noqa: E731
        files = {"checkpoints": tmp_path / name, "resume": resume}
        return trained(group, model, data, steps=17, progress=stop, **files, **options)

    expected = run(None, "whole")
    run(None, "one", 8)
    together(first, run, "several", 8)
    name = "step-000000008.safetensors"
    alike(read(tmp_path / "one" / name), read(tmp_path / "several" / name))
    one = [run(None, "several", 17, True)] if then == 1 else together(then, run, "several", 17, True)
    same(one, expected)
