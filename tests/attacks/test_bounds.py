"""Input whose time or memory grew beyond all proportion: it is read in a pass, or refused by
name.
"""

import functools
import tracemalloc

import numpy as np
import pytest

from tests.attacks.bounds import refusal
from tests.conftest import later
from xlstm.data import csv_file, series, table
from xlstm.estimators import Forecaster, TextModel, baselines, linear, smoothing
from xlstm.training.folder import read_history

pa = later("pyarrow")
pq = later("pyarrow.parquet")
READERS = {
    "series": series.read_csv,
    "table": table.read_table,
    "numbers": lambda path: table.opened(path).numbers(["c1"]),
    "names": lambda path: table.names_in(table.opened(path), "c1"),
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "wide.parquet"
    pq.write_table(pa.table({f"c{k}": [1.0, 2.0] for k in range(csv_file.COLUMNS + 1)}), path)
    return path


@pytest.mark.parametrize("name", READERS)
def test_parquet_has_as_few_columns_as_csv(wide, name):
    error = refusal(lambda: READERS[name](wide), wide.stat().st_size)
    assert "wide.parquet: the header has 10001 columns, expected at most 10000" in str(error)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_columns_have_a_length(tmp_path, suffix):
    def read(length):
        columns = {"n" * length: [1.0, 2.0]}
        path = tmp_path / f"{length}.{suffix}"
        pq.write_table(pa.table(columns), path) if suffix == "parquet" else table.write_table(
            path, columns
        )
        return refusal(lambda: series.read_csv(path), path.stat().st_size)

    assert read(csv_file.NAME) is None
    assert "the name of a column has 1025 characters, expected at most 1024" in str(
        read(csv_file.NAME + 1)
    )


def test_few_bytes_of_parquet_do_not_hold_any_number_of_rows(tmp_path):
    path = tmp_path / "zeros.parquet"
    rows = pa.table({"v": np.zeros(1 << 20)})
    with pq.ParquetWriter(path, rows.schema) as writer:
        for _ in range(20):
            writer.write_table(rows)
    for name in ("series", "table"):
        assert "take fewer rows" in str(
            refusal(functools.partial(READERS[name], path), path.stat().st_size)
        )


LONG = pa.array(["x" * (1 << 16)])
WORDS = pa.array([*"abcb"])


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize(
    "column",
    [
        LONG.take([0] * 2000),
        pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), LONG),
        pa.array([np.zeros(5 << 20)] + [[]] * 1999),
    ],
    ids=["text", "dictionary", "list"],
)
def test_few_bytes_of_parquet_do_not_hold_any_number_of_texts_or_lists(tmp_path, column, coded):
    """Nobody has them in memory either where other columns are asked for."""
    path = tmp_path / "long.parquet"
    content = pa.table({"c": column, "v": np.zeros(2000)})
    pq.write_table(content, path, compression="zstd", use_dictionary=coded)
    error = refusal(lambda: table.names_in(table.opened(path), "c"), path.stat().st_size)
    assert (
        error is None
        or "; take fewer rows" in str(error)
        or "holds list<element: double>" in str(error)
    )
    for read in (series.read_csv, lambda path: table.read_table(path, ["v"])):
        assert refusal(lambda read=read: read(path), path.stat().st_size) is None


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_texts_of_parquet_are_read_as_they_were_written(tmp_path, kind):
    words = (
        WORDS.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else WORDS.cast(kind)
    )
    for rows, settings in (
        (4, {}),
        (4, {"use_dictionary": False}),
        (4, {"row_group_size": 2}),
        (2, {}),
    ):
        pq.write_table(pa.table({"c": words[:rows]}), tmp_path / "a.parquet", **settings)
        assert (
            table.names_in(table.opened(tmp_path / "a.parquet"), "c").tolist() == [*"abcb"][:rows]
        )


@pytest.mark.parametrize(
    "line", ['{"total": ' + "[" * 100_000, '{"total": 1, "loss": 1' + "0" * 40_000 + "}"], ids=len
)
def test_a_hostile_history_is_refused_and_its_run_goes_on(tmp_path, line):
    sizes = {
        "hidden_size": 2,
        "embedding_size": 2,
        "batch_size": 2,
        "length": 4,
        "backend": "numpy",
    }
    history = tmp_path / "history.jsonl"
    for steps in (1, 2):
        TextModel(**sizes, steps=steps, checkpoints=tmp_path, resume=steps > 1).fit(
            "to be or not to be " * 9
        )
        assert [entry["total"] for entry in read_history(history) if "loss" in entry][-1] == steps
        with history.open("a") as file:
            file.write(f"{line}\n")
        assert "is not readable" in str(
            refusal(lambda: read_history(history), history.stat().st_size)
        )


def test_training_and_scores_take_half_a_kilobyte_a_row(monkeypatch):
    """Beside what chunks take, and the rows of least squares and of smoothing, which do not grow
    with the series.
    """
    for module, name, most in (
        (linear, "MOST", 1000),
        (baselines, "CHUNK", 1000),
        (linear, "CHUNK", 1000),
        (smoothing, "FORECASTS", 400_000),
    ):
        monkeypatch.setattr(module, name, most)
    N = 40_000
    values = np.sin(np.arange(N) / 7) + np.random.default_rng(0).normal(size=N)
    model = Forecaster(epochs=1, hidden_size=2, batch_size=1024, horizon=12, backend="numpy")
    model.fit(values[:400])  # whatever is made once
    peaks = []
    tracemalloc.start()
    try:
        for work in (model.fit, model.score):
            tracemalloc.reset_peak()
            work(values)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert max(peaks) < 500 * N + (12 << 20), peaks
