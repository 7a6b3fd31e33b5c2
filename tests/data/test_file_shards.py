"""Data in files: the same batches for any number of ranks, of which each reads its own rows."""

import itertools
import pathlib

import numpy as np
import pytest

from tests.data.conftest import equal
from tests.ranks import Shared, Threads, together
from tests.training.runs import Changed, at
from xlstm import LSTM, optim, xLSTMStack
from xlstm.data import FileShards, Prefetch, Shard, Streams, Windows
from xlstm.models import SequenceModel, xLSTMLanguageModel
from xlstm.training import TrainStep, evaluate, train

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 5, 2))
Y = RNG.normal(size=(300, 3))
IDS = RNG.integers(0, 90, (300, 5))
TEXT = bytes(RNG.integers(0, 7, 1501, dtype=np.uint8))
CUTS = [0, 40, 41, 200, 300]  # rows of each file
COUNTED = pathlib.Path("/proc/self/io")
LAST = {"batch_size": 16}
STEPS = {"batch_size": 16, "every_step": True}
TOKENS = {"batch_size": 6, "length": 8, "document_end": 3}


def saved(folder, name, array):
    np.save(folder / name, array)
    return folder / name


def parts_of(array):
    return [array[start:stop] for start, stop in itertools.pairwise(CUTS)]


def pairs(folder, x, y):
    return [
        (saved(folder, f"x{k}.npy", a), saved(folder, f"y{k}.npy", b))
        for k, (a, b) in enumerate(zip(parts_of(x), parts_of(y), strict=True))
    ]


def pair(folder, x, y):
    return [(saved(folder, "a.npy", x), saved(folder, "b.npy", y))]


def tables(folder, x, y, rows=10):
    folder.mkdir(exist_ok=True)
    files = [folder / f"{k}.parquet" for k in range(len(CUTS) - 1)]
    for file, a, b in zip(files, parts_of(x), parts_of(y), strict=True):
        x_of_file, target = ([np.asarray(row).tolist() for row in rows_of] for rows_of in (a, b))
        table = pyarrow.table({"target": target, "x": x_of_file, "other": x_of_file})
        parquet.write_table(table, file, row_group_size=rows)
    return files


def texts(folder):
    files = [folder / "one.txt", folder / "two.txt"]
    for file, part in zip(files, (TEXT[:700], TEXT[700:]), strict=True):
        file.write_bytes(part)
    return files


def marred(array, *at, value=np.nan):
    array = array.copy()
    array[at] = value
    return array


# files, options, and the data in memory with the same batches
KINDS = {
    "examples": (lambda f: pairs(f, X, Y), LAST, Windows(X, Y, **LAST)),
    "examples of steps": (lambda f: pairs(f, IDS, IDS), STEPS, Windows(IDS, IDS, **STEPS)),
    "tokens": (
        lambda f: [saved(f, f"{k}.npy", a) for k, a in enumerate(parts_of(IDS.reshape(-1)[:300]))],
        TOKENS,
        Streams.of_tokens(IDS.reshape(-1)[:300], **TOKENS),
    ),
    "text": (texts, TOKENS, Streams.of_tokens(TEXT, **TOKENS)),
    "tables": (lambda f: tables(f, X, Y), LAST, None),
    "tables of steps": (lambda f: tables(f, X[..., 0], IDS), STEPS, None),
    "one row group a rank": (lambda f: tables(f, IDS, Y, 100), {**LAST, "batch_size": 50}, None),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def files_of(kind, folder):
    files, options, memory = KINDS[kind]
    return FileShards(files(folder), **options), memory


def rng(seed):
    return None if seed is None else np.random.default_rng(seed)


@pytest.mark.parametrize("seed", [None, 4])
def test_batches_and_their_order_are_those_of_one_process(kind, seed, tmp_path):
    data, memory = files_of(kind, tmp_path)
    whole = [*data.batches(rng(seed))]
    assert len(data) == len(whole)
    if memory is not None:
        equal(whole, [*memory.batches(rng(seed))])
    else:
        assert {batch.x.shape[1] for batch in whole[:-1]} == {data.batch_size}
        rows = np.concatenate(
            [batch.x.swapaxes(0, 1).reshape(-1, batch.x[:, 0].size) for batch in whole]
        )
        assert len(np.unique(rows, axis=0)) == 300
    equal([*Prefetch(data).batches(rng(seed), skip=2)], whole[2:])
    timed = data.every_step or data.length is not None
    for size in (1, 2, 3, 4):
        checksums = set()
        every = []
        for rank in range(size):
            group = Threads(rank, Shared(size))
            drawn = rng(seed)
            parts = [*Shard(Prefetch(data), group).batches(drawn)]
            assert drawn is None or drawn.random() == after(data, seed)
            equal([*data.parts(group, rng(seed), skip=3)], parts[3:])
            checksums.add(tuple(part.part.checksum for part in parts))
            every.append(parts)
        assert len(checksums) == 1
        for batch, *parts in zip(whole, *every, strict=True):
            assert [part.part.own.start for part in parts] == [
                0,
                *(p.part.own.stop for p in parts),
            ][:-1]
            assert {(p.part.B, p.part.total) for p in parts} == {
                (batch.x.shape[1], batch.target.size)
            }
            np.testing.assert_array_equal(np.concatenate([p.x for p in parts], axis=1), batch.x)
            target = np.concatenate([p.target for p in parts], axis=int(timed))
            np.testing.assert_array_equal(target, batch.target)


def after(data, seed):
    """Return the number that follows those of an epoch."""
    drawn = rng(seed)
    assert [*data.batches(drawn)]
    return drawn.random()


@pytest.mark.skipif(not COUNTED.exists(), reason="the system does not count bytes")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_rank_reads_its_share_and_at_most_a_batch_more(kind, size, tmp_path):
    data, memory = files_of(kind, tmp_path)

    def read(rank=0, size=1, skip=0):
        """Return the bytes and the sequences that a rank reads in an epoch."""
        before = now()
        batches = [*data.parts(Threads(rank, Shared(size)), rng(1), skip)]
        return now() - before - counting, sum(batch.x.shape[1] for batch in batches)

    counting = -now() + now()
    read()  # imports are done
    whole, sequences = read()
    of_files = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert whole <= (of_files if memory else of_files / 1.5)  # there is a column that nobody reads
    batch = whole / len(data)
    every = [read(rank, size) for rank in range(size)]
    for own, count in every:
        assert own <= whole * count / sequences + batch
    assert sum(count for _, count in every) == sequences
    assert sum(own for own, _ in every) <= whole + 64
    if memory is not None:
        assert read(skip=len(data) - 1)[0] <= 2 * batch


def now():
    return int(COUNTED.read_text().split()[1])


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("examples", SequenceModel(LSTM(2, 4, dropout=0.2, num_layers=2), 3, last=True)),
        ("text", xLSTMLanguageModel(xLSTMStack(8, 2, [1], 2), 7)),
        ("tables", SequenceModel(LSTM(2, 4), 3, last=True)),
    ],
)
def test_resume_within_an_epoch_on_other_numbers_of_ranks(kind, model, tmp_path):
    data, _ = files_of(kind, tmp_path)

    def run(group, data, **files):
        return train(
            model,
            model.init(0, "numpy", "float64"),
            data,
            optim.adam(1e-2),
            epochs=2,
            seed=1,
            validation=data,
            group=group,
            **files,
        )

    # data of one's own, of which batches are left out once they are made
    expected = run(None, Changed(data, lambda number, batch: batch))
    for first, then in ((1, 3), (2, 4), (3, 3)):
        files = {"checkpoints": tmp_path / f"{first}", "resume": True}
        cut = {**files, "progress": at(len(data) + 3)}
        together(first, lambda group, cut=cut: run(group, Prefetch(data), **cut))
        every = together(then, lambda group, files=files: run(group, data, **files))
        for ends in every:
            np.testing.assert_allclose(ends.losses, expected.losses, rtol=1e-10)
            np.testing.assert_allclose(ends.validations, expected.validations, rtol=1e-10)
            for name, p in expected.params.items():
                np.testing.assert_allclose(ends.params[name], p, rtol=0, atol=1e-10)
    same = together(3, lambda group: run(group, data))[0]
    assert all(np.array_equal(every[0].params[name], p) for name, p in same.params.items())
    # the files of another run
    other = files_of(kind, tmp_path)[0]
    del other.identity[[*other.identity][-1]]
    with pytest.raises(
        ValueError, match=r"3/step-.* is of another run: its first batch\['.*(npy|txt|parquet)'"
    ):
        run(None, other, **files)


def test_a_step_takes_parts_of_its_group_and_notices_other_files(tmp_path):
    model = SequenceModel(LSTM(2, 4), 3, last=True)
    files = pairs(tmp_path, X, Y)

    def run(group, differs):
        own = files[1:] if differs and group.rank else files
        step = TrainStep(model, optim.adam(1e-2), group=group)
        state = step.init(model.init(0, "numpy", "float64"))
        for batch in FileShards(own, group).batches():
            state, outcome = step(state, batch)
        data = FileShards(files)
        return outcome.loss, evaluate(model, state.params, data, group=group)

    (one,) = together(1, run, False)
    for loss, mean in together(3, run, False):
        assert (loss, mean) == pytest.approx(one, rel=1e-12)
    with pytest.raises(ValueError, match="checksum of order and data of rank 1"):
        together(2, run, True)


WRONG = {
    "no files": (lambda f: [], {}, "files is empty, expected one"),
    "suffix": (lambda f: ["x.csv"], {}, "files has x.csv .*, expected all"),
    "no length": (lambda f: ["x.npy"], {}, "length is None.* for x.npy"),
    "length": (lambda f: pairs(f, X, Y), {"length": 3}, "length is 3 for .*x0.npy, exp"),
    "missing": (lambda f: [f / "x.npy"], {"length": 3}, "x.npy"),
    "missing table": (lambda f: [f / "x.parquet"], {}, "x.parquet"),
    "no array": (
        lambda f: [texts(f)[0].rename(f / "a.npy")],
        {"length": 3},
        "a.npy is empty or no",
    ),
    "pair": (lambda f: [("x.npy", "y.txt")], {}, "files has x.npy and y.txt"),
    "no table": (lambda f: [texts(f)[0].rename(f / "a.parquet")], {}, "a.parquet has no columns"),
    "few tokens": (texts, {"length": 30}, "one.txt .*1501.*, 1921 or more"),
    "rows": (lambda f: pair(f, X, Y[:4]), {}, "a.npy has 300 rows and .*b.npy 4"),
    "shapes": (lambda f: pairs(f, X, Y) + pair(f, X[:, 1:], Y), {}, r"a.npy has .*\(4, 2\), exp"),
    "dtypes": (lambda f: pairs(f, X, Y) + pair(f, X, IDS[:, :3]), {}, "b.npy has rows of int64"),
    "steps": (lambda f: pairs(f, X, Y), {"every_step": True}, "x0.npy .*with every_step"),
    "no column": (lambda f: tables(f, X, Y), {"x": "y"}, "0.parquet has no columns .*'y'"),
    "scalars": (lambda f: tables(f, IDS[:, 0], Y), {}, "0.parquet, .*expected .T, D"),
    "types": (lambda f: tables(f, X, Y)[:2] + tables(f / "b", IDS, Y), {}, "0.parquet has columns"),
    "no rows": (lambda f: tables(f, X[:1], Y[:1])[1:], {}, "1.parquet and others have no rows"),
    "lengths": (lambda f: tables(f, [*X[1:], X[0, :4]], Y), {}, "3.parquet, row group 9.* 4 to 5"),
    "a null": (lambda f: tables(f, [*X[1:], None], Y), {}, "3.parquet, row group 9.* 1 nulls"),
    # rows 207 and 219 of all are row 7 of the last file, and row 9 of its second row group
    "x": (lambda f: pairs(f, marred(X, 207, 3, 1), Y), {}, r"x3.npy: rows\[7, 3, 1\] is nan, exp"),
    "target": (
        lambda f: pairs(f, X, marred(Y, 207, 2, value=np.inf)),
        {},
        r"y3.npy: rows\[7, 2\] is inf, expected finite",
    ),
    "x of a table": (
        lambda f: tables(f, marred(X, 219, 3, 1), Y),
        {},
        r"3.parquet, row group 1, column x: rows\[9, 3, 1\] is nan, expected",
    ),
    "target of a table": (
        lambda f: tables(f, X, marred(Y[:, 0], 219)),
        {},
        r"row group 1, column target: rows\[9\] is nan, expected",
    ),
    "row groups": (lambda f: tables(f, X, Y, 300), {"group": Threads(0, Shared(4))}, "3 shards"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_file(name, tmp_path):
    files, options, message = WRONG[name]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        [*FileShards(files(tmp_path), **options).batches()]
