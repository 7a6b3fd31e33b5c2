"""Training on several ranks, threads of one process here, ends with the weights of one process."""

import contextlib
import itertools
import shutil
import signal
import threading

import numpy as np
import pytest

from tests.ranks import together
from tests.tirex import WIDER
from tests.training import runs
from tests.training.runs import Changed
from xlstm import LSTM, Linear, losses, optim, training, xLSTMStack
from xlstm.arrays.groups import OtherRankError
from xlstm.arrays.random import generator
from xlstm.data import Batch, Prefetch, Sequences, Shard, Streams, Windows
from xlstm.estimators import Forecaster, SequenceClassifier, TextModel, baselines
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.models import TiRex2, xLSTMLanguageModel
from xlstm.models.tirex import PatchWindows
from xlstm.training import folder, loop, parallel
from xlstm.training.feed import Iterated
from xlstm.training.folder import read, read_history

RNG = np.random.default_rng(0)
TEXT = RNG.integers(0, 11, 401)
MODEL = LSTM(
    2, 5, num_layers=2, dropout=0.3, recurrent_dropout=0.2, zoneout=(0.1, 0.1), bidirectional=True
)
LENGTHS = RNG.integers(1, 8, 30)
ROWS = [RNG.normal(size=(n, 2)) for n in LENGTHS]


def windows(count, size, outputs=10):
    mask = RNG.random((count, 6)) < 0.7
    mask[:5] = False  # so that all targets of a rank may be masked
    x = RNG.normal(size=(count, 6, 2))
    target = RNG.normal(size=(count, 6, outputs))
    return Windows(x, target, mask, batch_size=size, every_step=True)


def cases():
    yield "masks and a batch of 13", MODEL, windows(30, 13), {}
    sequences = Sequences(
        ROWS, [RNG.normal(size=(n, 10)) for n in LENGTHS], batch_size=7, every_step=True
    )
    yield "lengths", MODEL, sequences, {}
    yield (
        "fewer sequences than ranks",
        MODEL,
        Prefetch(windows(7, 2)),
        {"callbacks": [training.Clip(0.5)]},
    )
    language = xLSTMLanguageModel(xLSTMStack(8, 2, [1], 2, dropout=0.2), 11, embedding_dropout=0.1)
    yield "carried states", language, Streams.of_tokens(TEXT, 5, 16, document_end=3), {}
    large = xLSTMLarge(8, 2, num_heads=2)
    tirex = TiRex2(8, [("mlstm", 2, 2), ("slstm", 2, 2)], horizon=4, **WIDER)
    yield (
        "groups",
        tirex,
        PatchWindows(tirex, RNG.normal(size=(2, 40)).cumsum(axis=1), batch_size=4),
        {"steps": 8},
    )
    x = RNG.normal(size=(13, 8))
    masked = Batch(x, RNG.normal(size=(13, 4)), np.arange(13) > 4, True)
    pairs = [masked, (x[:2], x[:2, :4]), (x[:4], x[4:8, :4])]
    yield "no time axis", Linear(8, 4), pairs, {}
    classes = [(x, RNG.integers(0, 4, 13)), (x[:1], np.array([3])), (x[:8], np.arange(8) % 4)]
    yield "classes", Linear(8, 4), classes, {"loss": losses.cross_entropy}
    x = RNG.normal(size=(13, 6, 8))
    yield "accumulate", large, Windows(x, x, batch_size=3, every_step=True), {"accumulate": 3}


DATA = windows(30, 13)
SMALL = windows(30, 6)
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
    monkeypatch.setattr(parallel, "BUCKET", 500)  # for ranks on several machines
    if request.param:
        monkeypatch.setattr(parallel, "LEAST", 1)


SHARED = {
    "indirect": ["shared"],
    "ids": lambda value: "shared" if value is True else "" if value is False else None,
}


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("size", "shared", "machines"),
    [
        (1, False, 1),
        (2, False, 1),
        (3, False, 1),
        (2, True, 1),
        (3, True, 1),
        (3, False, 2),
        (3, True, 3),
    ],
    **SHARED,
)
@pytest.mark.parametrize("case", CASES)
def test_weights_and_losses_are_those_of_one_process(case, size, machines):
    model, data, options = CASES[case]
    same(
        together(size, lambda group: trained(group, model, data, **options), machines=machines),
        trained(None, model, data, **options),
    )


class Decayed:
    """A model of the user's own, which changes the gradients of one of ours."""

    random = False
    states = LSTM(2, 5, num_layers=3).states

    def __init__(self):
        self.model = LSTM(2, 5, num_layers=3)

    def forward(self, params, x, state=None, train=True, **options):
        return self.model.forward(params, x, state, train, **options)

    def backward(self, params, saved, dy):
        grads, *rest = self.model.backward(params, saved, dy)
        return {name: g + 0.1 * params[name] for name, g in grads.items()}, *rest

    def init(self, **options):
        return self.model.init(**options)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("shared", [False], **SHARED)
def test_a_model_of_ones_own_is_summed_at_the_end():
    """The sum has what the model adds on every rank."""
    data = windows(12, 6, outputs=5)
    same(
        together(2, lambda group: trained(group, Decayed(), data), machines=2),
        trained(None, Decayed(), data),
    )


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("shared", [False, True], **SHARED)
def test_a_step_that_is_interrupted_leaves_no_sums_behind(monkeypatch):
    """It has begun the sums of some buckets."""
    model = LSTM(2, 10, num_layers=3)
    begin = parallel.AllReduce._begin
    here = threading.local()

    def interrupted(reduce, *args):
        begin(reduce, *args)
        if here.interrupts:
            here.interrupts = False
            raise KeyboardInterrupt

    monkeypatch.setattr(parallel.AllReduce, "_begin", interrupted)

    def run(group, interrupts):
        step = training.TrainStep(model, optim.sgd(0.1), group=group)
        state = step.init(start(model))
        first, *others = Shard(DATA, group).batches()
        here.interrupts = interrupts
        if interrupts:
            with pytest.raises(KeyboardInterrupt):
                step(state, first)
        for batch in others:
            state, _ = step(state, batch)
        return [p.tobytes() for p in state.params.values()]

    assert together(2, run, True, machines=2) == together(2, run, False, machines=2)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("shared", [False, True], **SHARED)
@pytest.mark.parametrize("case", CASES)
def test_gradients_that_are_sent_as_bfloat16(case, tmp_path):
    """Residuals come in later steps. Ranks have the same bits, also where the run goes on from a
    checkpoint; another number of ranks drops the residuals there.
    """
    model, data, options = CASES[case]

    def run(group, **more):
        how = {"gradients": "bfloat16", "steps": 20, "seed": 1, "group": group}
        return training.train(
            model, start(model, group), data, optim.sgd(1e-3), **how | options | more
        )

    def ranks(size, name=None, **more):
        files = {} if name is None else {"checkpoints": tmp_path / name, "every": 2}
        return together(size, lambda group: run(group, **files, **more), machines=2)

    before = start(model)
    largest = dict.fromkeys(before, 0.0)

    def watch(now):
        for name, p in now.params.items():
            largest[name] = max(largest[name], np.abs(p - before[name]).max())
            before[name] = p.copy()

    exact = run(None, progress=watch)
    several = ranks(3)
    ranks(3, "cut", progress=lambda now: now.total == 4)  # all stop a step later
    shutil.copytree(tmp_path / "cut", tmp_path / "fewer")
    resumed = ranks(3, "cut", resume=True)
    fewer, _ = ranks(2, "fewer", resume=True)
    for one, other in zip(several, resumed, strict=True):
        for name, p in exact.params.items():
            # A residual is 2^-7 of what a rank sends at most, and so is that of the sum. What ranks
            # send may be larger than their sum, in which signs differ.
            for found in (one, fewer):
                assert np.abs(found.params[name] - p).max() <= 5 * 2 * 2**-7 * largest[name], name
            assert one.params[name].tobytes() == several[0].params[name].tobytes()
            assert one.params[name].tobytes() == other.params[name].tobytes()


def test_residuals_outlive_the_end_of_an_epoch(tmp_path):
    """At its end ranks agree that no batch is left. A run of the steps of one epoch does not ask."""

    def run(group, steps, **more):
        trained(
            group, MODEL, SMALL, steps=steps, gradients="bfloat16", checkpoints=tmp_path, **more
        )
        return read(max(tmp_path.glob("step-*"))).arrays

    steps = len(SMALL)
    whole, _ = together(2, run, 2 * steps)
    shutil.rmtree(tmp_path)
    one, _ = together(2, run, steps)
    resumed, _ = together(2, lambda group: run(group, 2 * steps, resume=True))
    assert np.any(one["residuals.0"])
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def test_a_checkpoint_of_a_version_that_dropped_residuals(tmp_path, monkeypatch):
    how = {"gradients": "bfloat16", "checkpoints": tmp_path}
    together(2, lambda group: trained(group, MODEL, SMALL, steps=5, **how))

    def older(path):
        found = read(path)
        del found.value["dict"]["residuals"]
        arrays = {name: a for name, a in found.arrays.items() if not name.startswith("residuals")}
        assert len(arrays) == len(found.arrays) - 2
        return found._replace(arrays=arrays)

    monkeypatch.setattr(folder, "read", older)
    found = together(2, lambda group: trained(group, MODEL, SMALL, steps=10, resume=True, **how))
    np.testing.assert_allclose(
        found[0].losses, trained(None, MODEL, SMALL, steps=10).losses, rtol=1e-4
    )


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
    """The rate shrinks and the average is judged as in one process; rank 0 alone writes, and calls
    functions.
    """
    held = windows(7, 3)
    calls = []

    def run(group, name):
        plateau = training.ReduceOnPlateau(1e-2, factor=0.5, patience=1)
        seen = Sees()
        callbacks = [training.MovingAverage(0.9), plateau, training.EarlyStopping(3), seen]
        options = {
            "validation": held,
            "epochs": 12,
            "callbacks": callbacks,
            "checkpoints": tmp_path / name,
        }
        options["metrics"] = {"error": lambda y, target: abs(y - target)}

        def progress(now):
            calls.append((name, now.total))

        rate = optim.adam(plateau)
        result = training.train(
            MODEL, start(MODEL, group), DATA, rate, group=group, progress=progress, **options
        )
        return result, plateau.scale, seen.seen

    expected, scale, seen = run(None, "one")
    results, scales, all_seen = zip(*together(size, run, "several"), strict=True)
    same(results, expected)
    assert {*scales} == {scale}
    for one in results:
        np.testing.assert_allclose(one.metrics["error"], expected.metrics["error"], rtol=1e-9)
    assert [len(one) for one in all_seen] == [len(seen), *[0] * (size - 1)]
    assert calls == [
        (name, k + 1) for name in ("one", "several") for k in range(len(expected.losses))
    ]
    one, several = (sorted((tmp_path / name).iterdir()) for name in ("one", "several"))
    assert [path.name for path in one] == [path.name for path in several]
    for path, other in zip(one, several, strict=True):
        if path.suffix == ".safetensors":
            alike(read(path), read(other))
        else:
            assert len(read_history(path)) == len(read_history(other))


def alike(one, other):
    """Check that two checkpoints have the same description, but for times, and the same arrays up
    to rounding.
    """
    assert one.about | {"seconds": 0.0} == other.about | {"seconds": 0.0}
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        found = other.arrays[name]
        if name.startswith("sums."):  # each rank has its own
            found = found.sum(axis=0)
        assert array.dtype == found.dtype
        np.testing.assert_allclose(found, array, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("first", "then", "shared"), [(2, 1, False), (1, 3, True), (3, 2, True)], **SHARED
)
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
    same(
        [run(None, "several", 17, True)] if then == 1 else together(then, run, "several", 17, True),
        expected,
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_resume_within_an_update_gives_the_same_bits(size, tmp_path):
    model, data, options = CASES["accumulate"]

    def run(group, **more):
        return trained(group, model, data, **options | more)

    whole = together(size, run)
    together(size, lambda group: run(group, checkpoints=tmp_path, steps=10))  # two epochs
    for one, other in zip(
        whole,
        together(size, lambda group: run(group, checkpoints=tmp_path, resume=True)),
        strict=True,
    ):
        runs.same(one, other)


class Ends(Changed):
    """Data that end before the batch of a number."""

    def batches(self, rng=None):
        return itertools.islice(self.data.batches(rng), self.function)


def nothing(y, target, mask):
    """A loss that looks at targets that do not count."""
    return losses.mse(y, target, np.ones_like(mask))


FAILURES = {  # the rank that fails, its error, and the steps before it
    "data": (1, OSError, "the disk is gone", 2),
    "model": (1, MemoryError, "no room", 2),
    "function": (0, KeyError, "of the user", 2),
    "validation": (1, OSError, "the disk is gone", 5),
    "validation ends": (
        1,
        ValueError,
        "evaluate: the data of rank 1 have ended, those of other ranks have not",
        5,
    ),
    "data end": (
        1,
        ValueError,
        "train: epoch 1, step 4: its data have ended, those of other ranks have not",
        3,
    ),
    "target is NaN": (
        1,
        ValueError,
        r"train: epoch 1, step 1: target\[2, 5, 3\] is nan, expected finite",
        0,
    ),
}


def failing(case, mine):
    """The options of a run that fails as the case says where it is `mine`."""
    _, kind, text, _ = FAILURES[case]
    options = {"model": MODEL, "data": SMALL}

    def fails(number, at, found=None):
        if mine and number == at:
            raise kind(text)
        return found

    if case in ("data", "validation"):
        options[case] = Changed(SMALL, lambda k, batch: fails(k, 2, batch))
    elif case == "model":
        count = itertools.count()
        options["loss"] = lambda *given: fails(next(count), 2, losses.mse(*given))
    elif case == "function":
        options["progress"] = lambda now: fails(now.total, 2)

    elif case == "validation ends":
        options["validation"] = Ends(SMALL, 2 if mine else None)
    elif case == "data end":
        options["data"] = Ends(SMALL, 3 if mine else None)
    else:
        target = SMALL.target.copy()
        mask = np.ones_like(SMALL.target, bool)
        place = generator(1, stream=1).permutation(30)[15], 2, 3  # of the sequences of rank 1
        target[place] = np.nan
        mask[place] = False
        data = Windows(SMALL.x, SMALL.target, mask, batch_size=30, every_step=True)
        object.__setattr__(data, "target", target)
        options |= {"data": data, "loss": nothing}
    return options


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize(("accumulate", "shared"), [(1, False), (2, False), (1, True)], **SHARED)
def test_an_error_of_one_rank_ends_the_run_on_all_before_the_same_step(case, accumulate, tmp_path):
    """The last sound step is saved, without residuals that the failed step has changed, and a
    program that catches the error can train again.
    """
    rank, kind, text, done = FAILURES[case]

    def run(group):
        options = failing(case, group.rank == rank) | {"gradients": "bfloat16"}
        own = group.rank == rank or case == "validation ends"  # which is an error of each rank
        with pytest.raises(kind if own else OtherRankError, match=text) as caught:
            trained(group, checkpoints=tmp_path, every=9, accumulate=accumulate, **options)
        assert own or str(caught.value).startswith(
            f"rank {rank} of 3 cannot go on: {kind.__name__}: "
        )
        return trained(group, MODEL, SMALL, steps=4)

    same(together(3, run), trained(None, MODEL, SMALL, steps=4))
    (saved,) = map(read, tmp_path.glob("step-*"))
    assert saved.about["total"] == done
    residuals = [a for name, a in saved.arrays.items() if name.startswith("residuals")]
    assert len(residuals) == 2
    assert not any(map(np.any, residuals))


def test_ranks_that_meet_at_different_places_are_told():
    """A callback of rank 0 alone evaluates together with nobody, where the others are at the end of
    an epoch.
    """

    class Judges(training.Callback):
        everywhere = False

        def epoch(self, now):
            training.evaluate(MODEL, now.params, SMALL, group=self.group)

    def run(group):
        callback = Judges()
        callback.group = group
        trained(group, MODEL, SMALL, callbacks=[callback])

    text = (
        "rank 0 of 2 is at evaluation, rank 1 at the end of an epoch; all ranks are to go through"
        " the same steps"
    )
    with pytest.raises(RuntimeError, match=text):
        together(2, run)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_rank_whose_weights_differ_ends_the_run_by_name(checkpoints, tmp_path):
    """They are compared at the end of each epoch, of three steps, and in each checkpoint."""

    class Flips(training.Callback):
        def __init__(self, rank):
            self.rank = rank

        def step(self, now):
            if self.rank == 1 and now.total == 3:
                next(iter(now.params.values()))[0] += 1e-15

    def run(group):
        files = {"checkpoints": tmp_path, "every": 2} if checkpoints else {}
        with pytest.raises(
            RuntimeError, match="after step 3 the weights of rank 1 differ from those of the other"
        ):
            trained(group, MODEL, DATA, callbacks=[Flips(group.rank)], **files)

    together(3, run)
    assert [path.name for path in tmp_path.glob("step-*")] == [
        "step-000000002.safetensors"
    ] * checkpoints


# Options that rank 1 of 3 alone is given, and how the error on all ranks names them.
ODD = {
    "seed": ({"seed": 7}, "seed of rank 1 is 7, expected 1 as on other ranks"),
    "accumulate": ({"accumulate": 2}, "accumulate of rank 1 is 2, expected 1"),
    "first batch": ({"data": windows(30, 13)}, "first batch of rank 1 is "),
    "model": (
        {"model": LSTM(2, 5, num_layers=2, bidirectional=True)},
        "model of rank 1 is .*, expected .*zoneout=",
    ),
    "dtype": (
        {"dtype": "float32"},
        r"parameters\['0.Wx'\] of rank 1 is 'float32 \(20, 2\)', expected 'float64 \(20",
    ),
    "optimizer": ({"optimizer": optim.adam(2e-3)}, "optimizer of rank 1 is .*0.002"),
}


@pytest.mark.parametrize("name", ODD)
def test_arguments_that_differ_are_named(name):
    """The odd rank and the field are named on all ranks, before any weights are sent."""
    given, text = ODD[name]

    def run(group):
        options = {
            "model": MODEL,
            "data": DATA,
            "optimizer": optim.adam(1e-3),
            "dtype": "float64",
            "seed": 1,
        }
        options |= given if group.rank == 1 else {}
        params = options["model"].init(seed=0, backend="numpy", dtype=options.pop("dtype"))
        with pytest.raises(ValueError, match=f"^train: {text}"):
            training.train(params=params, steps=4, group=group, **options)

    together(3, run)


def test_weights_that_an_adapter_keeps_are_compared():
    def run(group):
        base = LSTM(3, 8).init(seed=group.rank, backend="numpy")
        adapters = training.LowRank(LSTM(3, 8), base, rank=2)
        with pytest.raises(
            ValueError, match="train: checksum of the weights that stay of rank 1 is "
        ):
            training.TrainStep(adapters, optim.adam(1e-3), group=group).init(adapters.init())

    together(2, run)


def test_the_folder_and_the_generator_of_rank_0_count(tmp_path):
    """The others name no folder, as users of PyTorch write it; a generator decides masks and the
    order.
    """

    def run(group, name, steps, resume):
        path = tmp_path / name if group is None or group.rank == 0 else None
        return trained(group, MODEL, DATA, steps=steps, checkpoints=path, resume=resume)

    def drawn(group):
        of_rank_0 = group is None or group.rank == 0
        return trained(group, MODEL, DATA, seed=np.random.default_rng(3 if of_rank_0 else None))

    run(None, "one", 7, False)
    together(3, run, "several", 7, False)
    same(together(3, run, "several", 20, True), run(None, "one", 20, True))
    same(together(3, drawn), drawn(None))


def different(name):
    """Return the data and options of a rank that trains with other ones than most."""
    rows = slice(None, -1) if name == "fewer rows" else slice(None)
    target = SMALL.target.copy()
    target[20] += name == "one target"
    x = SMALL.x.copy()
    x[20, -1, 1] += name == "one input"
    data = Windows(x[rows], target[rows], SMALL.mask[rows], batch_size=6, every_step=True)
    others = [*windows(30, 6).batches()]

    def changed(k, batch):
        last_step = np.arange(len(batch.x))[:, None, None] == 5
        later = {"later batches": others[k], "later input": batch._replace(x=batch.x + last_step)}
        return later.get(name, batch) if k > 1 else batch

    batches = data if "one" in name else Changed(data, changed)
    return batches, lambda step: 2e-3 if name == "schedule" and step == 2 else 1e-3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one target", "epoch 1, step 1: checksum of order and data of rank 2 is .* `Shard` takes"),
        ("one input", "epoch 1, step 1: checksum of order and data of rank 2 is "),
        ("later input", "epoch 1, step 3: checksum of order and data of rank 2 is "),
        (
            "later batches",
            "epoch 1, step 3: (number of targets|checksum of order and data) of rank 2 is ",
        ),
        ("fewer rows", "epoch 1, step 1: number of targets of rank 2 is "),
        ("schedule", "epoch [12], step [35]: learning rate of rank 2 is "),
    ],
)
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(("accumulate", "shared"), [(1, False), (2, False), (1, True)], **SHARED)
def test_ranks_that_differ_later_are_named_in_that_step(name, text, accumulate, tmp_path):
    """First batches and all that a run is made of are alike; the last sound step is saved."""

    def run(group):
        data, rate = different(name if group.rank == 2 else "")
        how = {
            "steps": 10,
            "accumulate": accumulate,
            "group": group,
            "checkpoints": tmp_path,
            "seed": 1,
        }
        with pytest.raises(ValueError, match=f"^train: {text}") as caught:
            training.train(MODEL, start(MODEL, group), data, optim.adam(rate), **how)
        return int(str(caught.value).partition("step ")[2].partition(":")[0])

    (failed,) = set(together(3, run))
    assert [read(path).about["total"] for path in tmp_path.glob("step-*")] == [failed - 1]


def test_a_difference_that_shows_a_step_later_is_named(monkeypatch):
    """Few bits of a checksum travel with gradients, and may be alike."""
    whole = parallel.AllReduce.check.fget
    monkeypatch.setattr(
        parallel.AllReduce,
        "check",
        property(lambda reduce: 0.0 if reduce.where.endswith("step 3") else whole(reduce)),
    )

    def run(group):
        data = Changed(SMALL, lambda k, b: b._replace(x=b.x + group.rank) if k == 2 else b)
        text = "train: epoch 1, step 4: checksum of order and data of rank 1 is "
        with pytest.raises(ValueError, match=text):
            trained(group, MODEL, data)

    together(2, run)


def test_steps_take_parts_of_their_group_alone():
    """And no rank may take its targets for fewer than they are, which would weight them too
    much.
    """
    batch = next(DATA.batches())
    params = start(MODEL)

    def run(group):
        step, alone = (
            training.TrainStep(MODEL, optim.adam(1e-3), group=one) for one in (group, None)
        )
        part = next(Shard(DATA, group).batches())
        light = part._replace(mask=part.mask * 0.5) if group.rank else part
        for one, given, words in (
            (step, batch, "expected batches of distributed"),
            (alone, part, "expected batches of distributed"),
            (step, light, r"the shares of ranks in its targets sum to 0\.59\d*, expected 1"),
        ):
            with pytest.raises(ValueError, match=words):
                one(one.init(params), given)

    together(2, run)


@pytest.mark.parametrize("where", ["data", "validation"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(where, monkeypatch, tmp_path):
    """It comes to the last rank, in the second step or in the first validation."""
    here = threading.local()
    monkeypatch.setattr(loop, "deferred", lambda: contextlib.nullcontext(here.received))

    def run(group):
        here.received = []
        options = {"checkpoints": tmp_path, "validation": DATA}

        def arrives(number, batch):
            if group.rank == 2 and number == 1:
                here.received.append(signal.SIGTERM)
            return batch

        sends = {"data": DATA, **options} | {where: Changed(DATA, arrives)}
        with pytest.raises(training.Terminated, match="by signal 15") as caught:
            trained(group, MODEL, **sends)
        here.received = []
        return caught.value, trained(group, MODEL, DATA, resume=True, **options)

    here.received = []
    found = together(3, run)
    assert {(error.signal, len(error.trained.losses)) for error, _ in found} == {
        (signal.SIGTERM, 3)
    }
    assert not any(error.trained.validations for error, _ in found)
    same([result for _, result in found], trained(None, MODEL, DATA, validation=DATA))


def estimators():
    options = {"dtype": "float64", "backend": "numpy", "learning_rate": 1e-3}

    balanced = {"num_layers": 2, "dropout": 0.2, "class_weight": "balanced"}
    steps = SequenceClassifier(hidden_size=6, epochs=4, batch_size=7, **balanced, **options)
    each = [np.cumsum(row[:, 0]) > 0 for row in ROWS]
    yield steps, (ROWS, each), lambda fitted: np.concatenate(fitted.predict_proba(ROWS))
    text = "to be or not to be, that is the question: " * 8
    model = TextModel(hidden_size=8, embedding_size=4, steps=12, batch_size=5, length=8, **options)
    yield model, (text,), lambda fitted: fitted.nats(text)
    series = np.cumsum(np.random.default_rng(1).normal(size=120))
    forecaster = Forecaster(
        window=6, horizon=2, hidden_size=6, epochs=3, batch_size=11, refit=True, **options
    )
    yield forecaster, (series,), lambda fitted: fitted.predict_quantiles(series)


@pytest.mark.parametrize("which", range(3))
def test_estimators(which):
    def run(group):
        estimator, data, result = list(estimators())[which]
        return result(estimator.fit(*data, group=group))

    for found in together(2, run):
        np.testing.assert_allclose(found, run(None), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("which", "owner", "name"),
    [(0, SequenceClassifier, "_class_weights"), (2, baselines, "changes")],
)
def test_rank_0_alone_decides(which, owner, name, monkeypatch):
    """Numbers that other ranks would decide by are disturbed there, and nobody asks for them."""
    computed = getattr(owner, name)
    asked = set()
    here = threading.local()

    def disturbed(*args):
        rank = getattr(here, "rank", 0)
        asked.add(rank)
        return computed(*args) * (1 + 1e-3 * rank)

    def run(group):
        estimator, data, result = list(estimators())[which]
        here.rank = group.rank
        estimator.fit(*data, group=group)
        here.rank = 0
        arrays = [*estimator.params_.values(), result(estimator)]
        return [array.tobytes() for array in arrays], getattr(estimator, "candidate_errors_", None)

    monkeypatch.setattr(owner, name, disturbed)
    first, *others = together(3, run)
    assert others == [first, first]
    assert asked == {0}


def test_an_error_of_rank_0_that_decides_is_raised_on_all():
    def run(group):
        with pytest.raises((ValueError, OtherRankError)) as caught:
            Forecaster(window=6, horizon=2, backend="numpy").fit(np.ones(120), group=group)
        return type(caught.value), str(caught.value)

    (_, text), other = together(2, run)
    assert other == (OtherRankError, f"rank 0 of 2 cannot go on: ValueError: {text}")


def loader(rank, size, drop_last=False, target=DATA.target, **options):
    """A loader of PyTorch for a rank, 3 examples a batch, which a sampler deals to the ranks."""
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(DATA.x), torch.from_numpy(target))
    sampler = torch.utils.data.distributed.DistributedSampler(
        dataset, size, rank, drop_last=drop_last, **options
    )
    return torch.utils.data.DataLoader(dataset, 3, sampler=sampler)


class Joined:
    """The whole batches of the loaders of all ranks."""

    def __init__(self, size, **options):
        self.loaders = [Iterated(loader(k, size, **options), every_step=True) for k in range(size)]

    def __len__(self):
        return len(self.loaders[0])

    def batches(self, rng=None):
        epoch = 0 if rng is None else int(rng.integers(2**31))
        for each in self.loaders:
            each.data.sampler.set_epoch(epoch)
        of_ranks = [each.batches() for each in self.loaders]
        for parts in zip(*of_ranks, strict=True):
            x, target = (np.concatenate([p[k] for p in parts], axis=1) for k in range(2))
            yield parts[0]._replace(x=x, target=target)


@pytest.mark.parametrize(("size", "drop_last"), [(1, False), (2, False), (4, False), (4, True)])
def test_a_loader_with_a_distributed_sampler(size, drop_last, tmp_path):
    """Neither of 30 examples is dealt evenly to 4 ranks, nor a rank's 15 or 8 to batches of 3."""

    def run(group, **options):
        data = loader(group.rank, size, drop_last)
        options |= {"validation": data, "checkpoints": tmp_path}
        return trained(group, MODEL, data, **options)

    def fails(now):
        if now.total == 9:
            raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        together(size, lambda group: run(group, every=4, callbacks=[fails]))
    whole = Joined(size, drop_last=drop_last)
    same(
        together(size, lambda group: run(group, every=4, resume=True)),
        trained(None, MODEL, whole, validation=whole, every=4),
    )


def test_loaders_that_do_not_go_with_the_group():
    text = "rank 0 of num_replicas=2, expected rank 1 of 2"
    with pytest.raises(OtherRankError, match=text):
        together(2, lambda group: trained(group, MODEL, loader(0, 2)))

    def masked(group):
        data = loader(group.rank, 2)
        data.collate_fn = lambda examples: next(DATA.batches())
        return trained(group, MODEL, data)

    with pytest.raises(ValueError, match="batch 1 of a DistributedSampler has mask"):
        together(2, masked)
    with pytest.raises(ValueError, match="epoch 1, step 1: checksum of order and data of rank 1"):
        together(2, lambda group: trained(group, MODEL, loader(group.rank, 2, seed=group.rank)))
    for name in ("data", "validation"):
        both = {"data": DATA, "validation": DATA} | {name: loader(0, 2)}
        text = f"train: {name} has a DistributedSampler of num_replicas=2, but group is None, "
        with pytest.raises(ValueError, match=text):
            trained(None, MODEL, **both)


def test_parts_of_the_data_that_ranks_take_themselves_are_refused():
    """They would be cut again: each rank is to have the whole data."""

    def run(group, kind):
        data = Windows(*(a[group.rank :: 2] for a in (SMALL.x, SMALL.target)), every_step=True)
        if kind is list:
            data = [(data.x, data.target)]
        trained(group, MODEL, data)

    for kind in (Windows, list):
        text = (
            "train: first batch of rank 1 is .* the whole data, of which `train` or `Shard` takes"
        )
        with pytest.raises(ValueError, match=text):
            together(2, run, kind)


def test_validation_data_that_differ_are_named():
    def run(group):
        x = SMALL.x.copy()
        x[20, -1, 1] += group.rank == 2
        data = Windows(x, SMALL.target, batch_size=6, every_step=True)
        with pytest.raises(ValueError, match="evaluate: batch 1 of rank 2 is another than that of"):
            trained(group, MODEL, SMALL, validation=data)

    together(3, run)
